"""Tiny-ImageNet-200: its val/ has one folder for all images, and a file that says their classes."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gch_bench.config.data import DataConfig
from gch_bench.data.sets import DataSource, load_data
from gch_bench.data.stored import stored_images
from gch_bench.errors import UserError

CLASSES = ("n01443537", "n01629819")
OF = {"val_0.JPEG": 1, "val_1.JPEG": 0, "val_2.JPEG": 1, "val_10.JPEG": 1}


def write(path: Path, shade: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (64, 64), (shade, 0, 0)).save(path, "JPEG")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "tiny"
    for label, name in enumerate(CLASSES):
        for i in range(2):
            write(root / "train" / name / "images" / f"{name}_{i}.JPEG", 50 * label + i)
        (root / "train" / name / f"{name}_boxes.txt").write_text("")
    for shade, file in enumerate(OF):
        write(root / "val" / "images" / file, 50 * shade)
    lines = [f"{file}\t{CLASSES[label]}\t0\t0\t9\t9\n" for file, label in OF.items()]
    (root / "val" / "val_annotations.txt").write_text("".join(lines))
    return root


def load(root: Path, train: bool = True) -> DataSource:
    return load_data(DataConfig("tiny_imagenet", root=str(root), num_classes=2), train)


def message(root: Path) -> str:
    with pytest.raises(UserError) as caught:
        load(root)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_both_layouts_of_val(root: Path) -> None:
    source = load(root)
    names = [f"{CLASSES[0]}/val_1.JPEG"] + [f"{CLASSES[1]}/val_{i}.JPEG" for i in (0, 10, 2)]
    assert (source.val.names, source.val.labels.tolist()) == (names, [0, 1, 1, 1])
    assert [round(np.asarray(source.val.load(i))[0, 0, 0] / 50) for i in range(4)] == [1, 0, 3, 2]
    assert (source.size, source.geometry, source.class_ids, source.classes) == (64, "none", None, list(CLASSES))
    assert source.train is not None
    assert source.train.names[0] == f"{CLASSES[0]}/{CLASSES[0]}_0.JPEG"
    for file, label in OF.items():
        (root / "val" / CLASSES[label] / "images").mkdir(parents=True, exist_ok=True)
        shutil.move(root / "val" / "images" / file, root / "val" / CLASSES[label] / "images" / file)
    (root / "val" / "images").rmdir()
    again = load(root)
    assert (again.val.names, again.fingerprint) == (names, source.fingerprint)


def test_stored_corruptions_of_it(root: Path, tmp_path: Path) -> None:
    for file, label in OF.items():
        write(tmp_path / "c" / "Tiny-ImageNet-C" / "fog" / "2" / CLASSES[label] / file, 99)
    images = stored_images(tmp_path / "c", [("fog", 2)], load(root, train=False).val, 64)[("fog", 2)]
    assert images.path(2).endswith(f"fog/2/{CLASSES[1]}/val_10.JPEG")


def test_annotations_that_do_not_fit(root: Path) -> None:
    path = root / "val" / "val_annotations.txt"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[1:], f"val_77.JPEG\t{CLASSES[0]}\t0"]))
    assert "got 1 images without a line (val_0.JPEG) and 1 lines without an image (val_77.JPEG)" in message(root)
    path.write_text("val_0.JPEG\n")
    assert "must have lines FILE, WNID, ..., and cannot be read so" in message(root)
    path.write_text("\n".join(line.replace(CLASSES[0], "n99999999") for line in lines))
    assert "must have the same class folders, got 1 only in val/ (n99999999); 1 only in train/" in message(root)
    path.unlink()
    assert "No such file or directory" in message(root)
