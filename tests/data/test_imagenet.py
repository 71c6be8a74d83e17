"""ImageNet and the sets with its classes: the same names, labels and ids in every layout, and what does not fit is one line."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat
from timm.data.real_labels import RealLabelsImagenet

from gch_bench.config.data import DataConfig
from gch_bench.data.imagenet import packaged, wordnet_ids
from gch_bench.data.sets import DATASETS, DataSource, load_data
from gch_bench.errors import UserError

IDS = (2, 10, 999)  # of which the text of 10 sorts before that of 2
WNIDS = [wordnet_ids()[i] for i in IDS]
LABELS = [2, 0, 1, 0, 2, 1]  # of ILSVRC2012_val_00000001.JPEG to _00000006.JPEG


def val_file(number: int) -> str:
    return f"ILSVRC2012_val_{number:08d}.JPEG"


def write(path: Path, shade: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 30), (shade, 0, 0)).save(path, "JPEG")


def tree(root: Path, folders: Sequence[str], val: str = "val") -> Path:
    for i, label in enumerate(LABELS):
        write(root / val / folders[label] / val_file(i + 1), 40 * i)
    return root


def flat(folder: Path) -> None:
    for i in range(len(LABELS)):
        write(folder / val_file(i + 1), 40 * i)


def with_devkit(root: Path, labels: Sequence[int] = LABELS) -> Path:
    """The official layout: a flat val/, and the devkit, whose numbers of classes do not follow the order of WordNet ids."""
    flat(root / "val")
    devkit = root / "ILSVRC2012_devkit_t12" / "data"
    devkit.mkdir(parents=True)
    numbers = [3, 1, 2]
    kind = np.dtype([("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("num_children", "O")])
    rows = [(number, wnid, "words", 0) for number, wnid in zip(numbers, WNIDS, strict=True)]
    savemat(devkit / "meta.mat", {"synsets": np.array([*rows, (1001, "n00001740", "entity", 3)], dtype=kind)})
    lines = "".join(f"{numbers[label]}\n" for label in labels)
    (devkit / "ILSVRC2012_validation_ground_truth.txt").write_text(lines)
    return root


def with_kaggle(root: Path) -> Path:
    flat(root / "ILSVRC" / "Data" / "CLS-LOC" / "val")
    with open(root / "LOC_val_solution.csv", "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["ImageId", "PredictionString"])
        for i in reversed(range(len(LABELS))):
            table.writerow([f"ILSVRC2012_val_{i + 1:08d}", f"{WNIDS[LABELS[i]]} 1 2 3 4 {WNIDS[0]} 5 6 7 8"])
    return root


def loaded(name: str, root: Path, **fields) -> DataSource:
    return load_data(DataConfig(name, root=str(root), **fields), train=False)


def message(name: str, root: Path, train: bool = False, **fields) -> str:
    with pytest.raises(UserError) as caught:
        load_data(DataConfig(name, root=str(root), **fields), train)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_1000_classes_are_in_their_usual_order() -> None:
    assert len(wordnet_ids()) == 1000
    assert list(wordnet_ids()) == sorted(wordnet_ids())
    assert (wordnet_ids()[0], wordnet_ids()[207], wordnet_ids()[999]) == ("n01440764", "n02099601", "n15075141")


def test_every_layout_gives_the_same_images(tmp_path: Path) -> None:
    sources = [
        loaded("imagenet", tree(tmp_path / "tree", WNIDS), num_classes=3),
        loaded("imagenet", tree(tmp_path / "numbers", [str(i) for i in IDS]), num_classes=3),
        loaded("imagenet", with_devkit(tmp_path / "devkit"), num_classes=3),
        loaded("imagenet", with_kaggle(tmp_path / "kaggle"), num_classes=3),
    ]
    order = sorted(range(6), key=lambda i: (LABELS[i], i))
    for source in sources:
        assert (source.classes, source.class_ids) == (WNIDS, IDS)
        assert source.val.names == [f"{WNIDS[LABELS[i]]}/{val_file(i + 1)}" for i in order]
        assert source.val.labels.tolist() == [LABELS[i] for i in order]
        assert [np.asarray(source.val.load(k))[0, 0, 0] // 38 for k in range(6)] == order
        assert (source.fingerprint, source.is_imagenet_1k) == (sources[0].fingerprint, False)


def test_training_images_beside_a_flat_val(tmp_path: Path) -> None:
    root = with_devkit(tmp_path)
    for wnid in WNIDS:
        write(root / "train" / wnid / "a.JPEG", 9)
    source = load_data(DataConfig("imagenet", root=str(root), num_classes=3))
    assert source.train is not None
    assert (source.train.labels.tolist(), len(source.val)) == ([0, 1, 2], 6)
    write(root / "train" / wordnet_ids()[5] / "a.JPEG", 9)
    assert f"must have the same class folders, got 1 only in train/ ({wordnet_ids()[5]})" in message(
        "imagenet", root, train=True, num_classes=3
    )


def test_flat_val_with_missing_or_wrong_annotations(tmp_path: Path) -> None:
    flat(tmp_path / "none" / "val")
    assert "sort them into val/CLASS/ (valprep.sh), or add ILSVRC2012_devkit_t12/data/" in message(
        "imagenet", tmp_path / "none"
    )
    root = with_devkit(tmp_path / "short", LABELS[:5])
    assert "must hold one image for each of the 5 labels" in message("imagenet", root)
    assert "got 6 images" in message("imagenet", root)
    meta = root / "ILSVRC2012_devkit_t12" / "data" / "meta.mat"
    meta.write_bytes(meta.read_bytes()[:300])
    assert "must hold meta.mat and ILSVRC2012_validation_ground_truth.txt" in message("imagenet", root)
    table = with_kaggle(tmp_path / "kaggle") / "LOC_val_solution.csv"
    table.write_text("\n".join(table.read_text().splitlines()[:3]))
    assert "must hold one row ImageId,PredictionString for each" in message("imagenet", tmp_path / "kaggle")
    assert "cannot be read so (rows are missing)" in message("imagenet", tmp_path / "kaggle")


def test_hidden_folders_are_no_classes(tmp_path: Path) -> None:
    root = with_devkit(tmp_path / "devkit")
    before = loaded("imagenet", root, num_classes=3)
    (root / "val" / ".thumbs").mkdir()
    assert loaded("imagenet", root, num_classes=3).fingerprint == before.fingerprint
    write(tmp_path / "other" / "val" / "0.JPEG", 7)
    (tmp_path / "other" / "val" / ".thumbs").mkdir()
    assert "val must hold one folder per class, got hidden folders alone" in message("imagenet", tmp_path / "other")


def test_numbers_are_not_sorted_as_text(tmp_path: Path) -> None:
    root = tree(tmp_path, [str(i) for i in IDS], val="")
    source = loaded("imagenet_v2", root, num_classes=3)
    assert (source.class_ids, source.classes) == (IDS, WNIDS)
    assert source.val.names[0] == f"{WNIDS[0]}/{val_file(2)}"
    assert source.val.path(0) == str(root / "2" / val_file(2))
    assert source.fingerprint == loaded("imagenet_sketch", tree(tmp_path / "other", WNIDS), num_classes=3).fingerprint


@pytest.mark.parametrize("name", ["imagenet_a", "imagenet_r"])
def test_masks_of_200_classes(tmp_path: Path, name: str) -> None:
    wnids = packaged(f"{name}_synsets.txt").split()
    for wnid in wnids:
        write(tmp_path / wnid / "0.jpg", 7)
    source = loaded(name, tmp_path)
    assert [wordnet_ids()[i] for i in source.class_ids or ()] == source.classes == sorted(wnids)
    assert source.val.labels.tolist() == list(range(200))
    other = next(wnid for wnid in wordnet_ids() if wnid not in wnids)
    write(tmp_path / other / "0.jpg", 7)
    assert f"of the 200 classes or their numbers 0..999, got 1 others ({other})" in message(name, tmp_path)
    (tmp_path / other / "0.jpg").unlink()
    (tmp_path / other).rmdir()
    (tmp_path / wnids[3] / "0.jpg").unlink()
    assert f"got 1 without ({wnids[3]})" in message(name, tmp_path)


@pytest.mark.parametrize("strange", ["n00001740", "1000", "tench", "-1", "1.5"])
def test_folders_that_are_no_class_of_imagenet(tmp_path: Path, strange: str) -> None:
    tree(tmp_path, WNIDS)
    write(tmp_path / "val" / strange / "0.jpg", 7)
    for name in ("imagenet", "imagenet_v2"):
        assert f"or their numbers 0..999, got 1 others ({strange})" in message(name, tmp_path, num_classes=3)


def test_two_folders_of_one_class_and_another_number_of_classes(tmp_path: Path) -> None:
    tree(tmp_path, WNIDS)
    assert "data.num_classes must be the number of classes in the data, 3, got 1000" in message("imagenet_v2", tmp_path)
    write(tmp_path / "val" / "999" / "0.jpg", 7)
    assert f"got several of one class (999, {WNIDS[2]})" in message("imagenet_v2", tmp_path)


def test_all_1000_classes_alone_are_not_imagenet_1k(tmp_path: Path) -> None:
    for i in range(1000):
        (tmp_path / "val" / str(i)).mkdir(parents=True)
        (tmp_path / "val" / str(i) / "0.jpeg").write_bytes(b"")
    source = loaded("imagenet_v2", tmp_path)
    assert source.class_ids == tuple(range(1000))
    assert not source.is_imagenet_1k, "AlexNet's errors are of other images"
    assert source.val.labels.tolist() == list(range(1000))


@pytest.mark.parametrize("name", [name for name, row in DATASETS.items() if not row.trainable])
def test_sets_without_training_images_are_refused_by_training(tmp_path: Path, name: str) -> None:
    assert f"to train on, got '{name}', which evaluate.py alone takes" in message(name, tmp_path, train=True)


def test_packaged_real_labels_are_timms(tmp_path: Path) -> None:
    source = loaded("imagenet_real", tree(tmp_path, WNIDS))
    timm = RealLabelsImagenet([""] * 50_000).real_labels
    assert len(source.val) == sum(bool(timm[val_file(i + 1)]) for i in range(6)) == 5  # the first image has no label
    assert source.val.label_sets is not None
    for name, label, labels in zip(source.val.names, source.val.labels, source.val.label_sets, strict=True):
        assert list(labels) == timm[Path(name).name]
        assert label == labels[0]
    assert (
        source.class_ids == tuple(range(1000)),
        source.val.label_sets[source.val.names.index(f"{WNIDS[0]}/{val_file(2)}")],
    ) == (
        True,
        (970, 795),
    )


def test_own_real_labels(tmp_path: Path) -> None:
    root, path = with_devkit(tmp_path / "data"), tmp_path / "real.json"
    path.write_text(json.dumps([[5, 6], [], [7], [8], [], [1]]))
    source = loaded("imagenet_real", root, labels=str(path))
    assert [Path(name).name for name in source.val.names] == [val_file(i) for i in (4, 3, 6, 1)]
    assert (source.val.label_sets, source.val.labels.tolist()) == ([(8,), (7,), (1,), (5, 6)], [8, 7, 1, 5])
    assert np.asarray(source.val.load(3))[0, 0, 0] == 0
    path.write_text(json.dumps([[5, 9], [], [7], [8], [], [1]]))
    assert loaded("imagenet_real", root, labels=str(path)).fingerprint != source.fingerprint
    for content in (json.dumps([[1]] * 5), "[[1", json.dumps([[1000]] * 6), json.dumps([1] * 6), json.dumps([[]] * 6)):
        path.write_text(content)
        assert message("imagenet_real", root, labels=str(path)).startswith(
            ("data.labels must", "data=imagenet_real needs images")
        )
    assert "data.labels must be null for data=imagenet, as only data=imagenet_real has it" in message(
        "imagenet", root, labels=str(path)
    )
