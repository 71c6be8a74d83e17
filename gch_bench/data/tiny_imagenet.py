"""Tiny-ImageNet-200: 100,000 training and 10,000 validation images of 64x64 pixels in 200 classes."""

import os
from pathlib import Path

import numpy as np

from gch_bench.config.data import DataConfig
from gch_bench.data.folders import check_same_classes, class_names, fingerprint_of, list_images, root_of, some
from gch_bench.data.images import PlacedImages, Subset
from gch_bench.errors import UserError


def read(config: DataConfig, split: str, other: str | None) -> Subset:
    """Tiny-ImageNet-200: ROOT/train/WNID/images/*.JPEG, and ROOT/val/images/*.JPEG with val/val_annotations.txt.

    A val/ that was sorted into class folders is read, too. The names are WNID/FILE, in every layout and as in Tiny-ImageNet-C.

    Raises:
        UserError: a folder or the annotations are missing or malformed, or an image has no annotation.
    """
    root = root_of(config)
    if split == "val" and (root / "val" / "images").is_dir():
        subset = _annotated(root / "val")
        if other is not None:
            check_same_classes(root, split, subset.classes, other, class_names(root, other, "data.root"))
        return subset
    classes = class_names(root, split, "data.root")
    files, labels_N = list_images(root / split, classes, "data.root")
    names = [file.replace(f"{os.sep}images{os.sep}", os.sep) for file in files]
    images = PlacedImages(names, labels_N, str(root / split), files)
    return Subset(classes, images, fingerprint_of(images, sizes=split == "val"))


def _annotated(folder: Path) -> Subset:
    """The images of val/images/, whose classes stand in val/val_annotations.txt."""
    path, found = folder / "val_annotations.txt", sorted(os.listdir(folder / "images"))
    try:
        rows = [line.split("\t")[:2] for line in path.read_text().splitlines() if line.strip()]
        wnid_of = dict(rows)
    except (OSError, ValueError) as error:
        raise UserError(f"data.root: {path} must have lines FILE, WNID, ..., and cannot be read so ({error})") from error
    if wnid_of.keys() != set(found):
        missing, surplus = sorted(set(found) - wnid_of.keys()), sorted(wnid_of.keys() - set(found))
        raise UserError(
            f"data.root: {path} must have one line for each of the {len(found)} images of images/, got {len(missing)} images"
            f" without a line ({some(missing)}) and {len(surplus)} lines without an image ({some(surplus)})"
        )
    classes = sorted(set(wnid_of.values()))
    if not classes:
        raise UserError(f"data.root: {folder / 'images'} must hold images, got none")
    files = sorted(found, key=lambda file: (wnid_of[file], file))
    labels_N = np.searchsorted(classes, [wnid_of[file] for file in files]).astype(np.int64)
    images = PlacedImages([os.path.join(wnid_of[file], file) for file in files], labels_N, str(folder / "images"), files)
    return Subset(classes, images, fingerprint_of(images, sizes=True))
