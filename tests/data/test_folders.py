import io
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import batches_of
from PIL import Image

from gch_bench.config.data import DataConfig
from gch_bench.data.images import BadImage, LostImage
from gch_bench.data.sets import load_data
from gch_bench.data.transforms import EvalTransform
from gch_bench.errors import UserError

CIFAR = Path(__file__).parents[3] / "shared" / "data" / "cifar10_test.parquet"


def write_image(path: Path, size: tuple[int, int] = (32, 32), seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def tree(tmp_path):
    for split, count in (("train", 3), ("val", 2)):
        for c, name in enumerate(("ant", "bee", "cat")):
            for i in range(count):
                write_image(tmp_path / split / name / f"{i}.png", seed=10 * c + i)
    return tmp_path


def folder(root: Path, **fields) -> DataConfig:
    return DataConfig("folder", root=str(root), **fields)


def message(config: DataConfig, train: bool = True) -> str:
    with pytest.raises(UserError) as caught:
        load_data(config, train)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_classes_size_and_order_are_read_from_the_tree(tree):
    source = load_data(folder(tree))
    assert source.description == f"folder ({tree}: 9 train / 6 val images, 3 classes, 32x32)"
    assert (source.classes, source.size, source.geometry) == (["ant", "bee", "cat"], 32, "none")
    assert source.val.names == ["ant/0.png", "ant/1.png", "bee/0.png", "bee/1.png", "cat/0.png", "cat/1.png"]
    assert source.val.labels.tolist() == [0, 0, 1, 1, 2, 2]
    with Image.open(tree / "val/bee/1.png") as image:
        assert np.array_equal(np.asarray(source.val.load(3)), np.asarray(image))


def test_another_split_is_evaluated(tree):
    for name in ("ant", "bee", "cat"):
        write_image(tree / "tune" / name / "a.png", seed=77)
    plain, tune = load_data(folder(tree)), load_data(folder(tree, split="tune"))
    assert tune.val.names == ["ant/a.png", "bee/a.png", "cat/a.png"]
    assert tune.train is not None
    assert tune.train_fingerprint == plain.train_fingerprint
    assert tune.description == f"folder ({tree}: 9 train / 3 tune images, 3 classes, 32x32)"
    before = tune.fingerprint
    write_image(tree / "tune/cat/a.png", seed=78)
    assert load_data(folder(tree, split="tune"), train=False).fingerprint != before, "the content counts, as for val"


def test_a_split_that_cannot_be_evaluated_is_one_line(tree):
    rule = "data.split must be a folder of data.root other than train, got "
    assert message(folder(tree, split="train")) == f"{rule}'train'"
    assert message(folder(tree, split="")) == f"{rule}''"
    assert "without a folder test/ (it holds train, val)" in message(folder(tree, split="test"))
    (tree / "tune/ant").mkdir(parents=True)
    assert "must have the same class" in message(folder(tree, split="tune"))
    problem = message(DataConfig("digits", split="tune"))
    assert problem == "data.split must be null for data=digits, as only data=folder has it, got 'tune'"


@pytest.mark.parametrize(
    ("sizes", "fields", "size", "geometry"),
    [
        ([(40, 40)], {}, 40, "none"),
        ([(40, 30)], {}, 224, "resize256-bilinear-centercrop224"),
        ([(40, 40), (32, 32)], {}, 224, "resize256-bilinear-centercrop224"),
        ([(600, 600)], {"interpolation": "bicubic"}, 224, "resize256-bicubic-centercrop224"),
        ([(40, 40)], {"size": 40}, 40, "none"),
        ([(40, 40)], {"size": 28}, 28, "resize32-bilinear-centercrop28"),
        ([(40, 40)], {"size": 40, "resize": 48}, 40, "resize48-bilinear-centercrop40"),
    ],
)
def test_size_and_geometry(tmp_path, sizes, fields, size, geometry):
    for i, wh in enumerate(sizes):
        write_image(tmp_path / "val" / "ant" / f"{i}.png", wh)
    source = load_data(folder(tmp_path, **fields), train=False)
    assert (source.size, source.geometry) == (size, geometry)


def test_evaluation_needs_no_train_folder_and_keeps_the_fingerprint(tree):
    both = load_data(folder(tree))
    shutil.rmtree(tree / "train")
    alone = load_data(folder(tree), train=False)
    assert (alone.train, alone.train_fingerprint, alone.fingerprint) == (None, None, both.fingerprint)
    assert (
        message(folder(tree)) == f"data.root must hold train/CLASS/* images, got {tree} without a folder train/ (it holds val)"
    )


def test_fingerprint_follows_names_and_val_sizes(tree):
    before = load_data(folder(tree))
    with open(tree / "val/ant/0.png", "ab") as file:
        file.write(b"x")
    grown = load_data(folder(tree))
    assert (grown.fingerprint != before.fingerprint, grown.train_fingerprint) == (True, before.train_fingerprint)
    os.rename(tree / "train/ant/0.png", tree / "train/ant/9.png")
    renamed = load_data(folder(tree))
    assert (renamed.fingerprint, renamed.train_fingerprint != grown.train_fingerprint) == (grown.fingerprint, True)


def test_missing_root(tmp_path):
    missing = tmp_path / "none"
    assert message(folder(missing)) == (
        f"data.root must be an existing folder, got {missing} (no such folder); pass data.root=/path"
    )
    missing.write_text("")
    assert "(a file)" in message(folder(missing))


def test_empty_root_and_class_tree_without_splits(tmp_path):
    assert (
        message(folder(tmp_path))
        == f"data.root must hold val/CLASS/* images, got {tmp_path} without a folder val/ (it holds nothing)"
    )
    for name in ("ant", "bee", "cat", "dog"):
        (tmp_path / name).mkdir()
    assert message(folder(tmp_path)).endswith("without a folder val/ (it holds ant, bee, cat, ...)")


def test_empty_val_flat_val_and_classes_without_images(tree):
    shutil.rmtree(tree / "val")
    (tree / "val").mkdir()
    assert (
        message(folder(tree))
        == f"data.root: {tree}/val must hold one folder per class, got an empty folder; put images into val/CLASS/"
    )
    for i in range(2):
        write_image(tree / "val" / f"ILSVRC2012_val_{i}.JPEG")
    assert message(folder(tree)) == (
        f"data.root: {tree}/val must hold one folder per class, got 2 images directly inside; "
        "sort them into val/CLASS/ (for ImageNet's validation images: valprep.sh)"
    )
    for name in ("ant", "bee", "cat"):
        (tree / "val" / name).mkdir()
    assert message(folder(tree)).startswith(
        f"data.root: {tree}/val must hold images in its class folders, got none; supported are .jpg"
    )
    write_image(tree / "val" / "bee" / "0.png")
    assert message(folder(tree)) == (
        f"data.root: every class folder of {tree}/val must hold an image, "
        "got 2 without (ant, cat); add images or remove the folder"
    )


def test_class_mismatch_names_up_to_three(tree):
    for name in ("dog", "elk", "fox", "gnu"):
        write_image(tree / "train" / name / "0.png")
    shutil.rmtree(tree / "train" / "cat")
    assert message(folder(tree)) == (
        f"data.root: val/ and train/ of {tree} must have the same class folders, "
        "got 1 only in val/ (cat); 4 only in train/ (dog, elk, fox, ...)"
    )


def test_number_of_classes(tree):
    assert message(folder(tree, num_classes=1000)) == (
        "data.num_classes must be the number of classes in the data, 3, got 1000; correct it or data.root"
    )


def test_unreadable_files_are_named_results(tree):
    (tree / "val/ant/0.png").write_bytes(b"")
    (tree / "val/bee/0.png").write_bytes((tree / "val/bee/1.png").read_bytes()[:500])
    (tree / "val/cat/0.png").unlink()
    (tree / "val/cat/0.png").symlink_to("nowhere.png")
    source = load_data(folder(tree))
    assert source.size == 32
    assert source.val.load_or_bad(0) == BadImage(f"{tree}/val/ant/0.png", "not an image in a format Pillow knows")
    lost = source.val.load_or_bad(4)
    assert isinstance(lost, LostImage), "a file that is gone is no broken image"
    assert "(No such file or directory)" in lost.reason
    truncated = source.val.load_or_bad(2)
    assert isinstance(truncated, BadImage)
    assert "truncated" in truncated.reason


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "I;16"])
def test_every_mode_becomes_rgb(tmp_path, mode):
    (tmp_path / "val/ant").mkdir(parents=True)
    Image.new("L", (8, 8), 200).convert(mode).save(tmp_path / "val/ant/0.tif")
    image = load_data(folder(tmp_path), train=False).val.load(0)
    assert (image.mode, image.size) == ("RGB", (8, 8))


@pytest.mark.skipif(not CIFAR.exists(), reason="needs shared/data/cifar10_test.parquet")
def test_real_photographs(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = parquet.read_table(CIFAR).take(list(range(0, 9900, 33))).to_pylist()
    for row in rows:
        path = tmp_path / "val" / f"{row['name']}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(row["image"])
    source = load_data(folder(tmp_path, num_classes=10), train=False)
    assert (len(source.val), source.size, source.geometry) == (300, 32, "none")
    batches = list(batches_of(source.val, EvalTransform(source.size), 128))
    by_name = {f"{row['name']}.jpg": row for row in rows}
    seen = 0
    for batch in batches:
        for image, label, i in zip(batch.images[0], batch.labels.tolist(), batch.ids.tolist(), strict=True):
            row = by_name[source.val.names[i]]
            with Image.open(io.BytesIO(row["image"])) as reference:
                assert np.array_equal(image.permute(1, 2, 0).numpy(), np.asarray(reference.convert("RGB")))
            assert label == row["label"]
            seen += 1
    assert seen == 300
