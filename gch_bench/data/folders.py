"""Data sets on disk: image folders (ROOT/{train,val}/CLASS/*) and torchvision's CIFAR and Oxford-IIIT Pet."""

import hashlib
import os
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from torchvision.datasets import CIFAR10, CIFAR100, OxfordIIITPet
from torchvision.datasets.folder import IMG_EXTENSIONS, find_classes, has_file_allowed_extension, make_dataset

from gch_bench.config.data import DataConfig
from gch_bench.data.images import ArrayImages, FileImages, Subset
from gch_bench.errors import UserError


def root_of(config: DataConfig) -> Path:
    """The folder ``config.root`` of a data set on disk, with ~ expanded."""
    return Path(str(config.root)).expanduser()


def check_root(root: Path) -> None:
    """Raise UserError if ``root`` is not a folder that can be read."""
    if not os.path.isdir(root) or not os.access(root, os.R_OK | os.X_OK):
        found = "no permission to read it" if os.path.isdir(root) else "a file" if os.path.exists(root) else "no such folder"
        raise UserError(f"data.root must be an existing folder, got {root} ({found}); pass data.root=/path")


def read_tree(config: DataConfig, split: str, other: str | None) -> Subset:
    """A data set of class folders, see ``image_folder``."""
    # load_data reads the evaluation images first and compares their classes with those of train, which is not done again.
    return image_folder(root_of(config), split, other if split != "train" else None)


def image_folder(root: Path, split: str, other: str | None, field: str = "data.root") -> Subset:
    """The images of ``root/split``, which has one folder per class.

    The fingerprint is a hash of the sorted relative paths and the labels. Except for train it also covers the size and first
    4 KiB of each file; for train it does not, because reading a million files takes too long.

    Args:
        root: the folder that holds the splits.
        split: the name of the split's folder.
        other: another split, which must have the same class folders; None: no comparison.
        field: what the user calls ``root``, for messages.

    Raises:
        UserError: a folder is missing or empty, images lie outside of class folders, a class is empty, or the classes of the
            two splits differ.
    """
    classes = class_names(root, split, field)
    if other is not None:
        check_same_classes(root, split, classes, other, class_names(root, other, field))
    names, labels_N = list_images(root / split, classes, field)
    images = FileImages(names, labels_N, str(root / split))
    return Subset(classes, images, fingerprint_of(images, sizes=split != "train"))


def list_images(root: Path, classes: list[str], field: str) -> tuple[list[str], np.ndarray]:
    """The paths relative to ``root`` of the images in the class folders, and their labels (N,) int64.

    The label is the position of the folder in ``classes``, and the images are sorted by label, then by path. ``field`` is what
    the user calls the folder. Raises UserError if a class folder has no image.
    """
    folder = str(root)
    found = make_dataset(folder, {name: i for i, name in enumerate(classes)}, extensions=IMG_EXTENSIONS, allow_empty=True)
    found.sort(key=lambda image: image[1])  # a stable sort: make_dataset goes through the classes in the order of their names
    labels_N = np.array([label for _, label in found], dtype=np.int64)
    empty = np.flatnonzero(np.bincount(labels_N, minlength=len(classes)) == 0).tolist()
    if len(empty) == len(classes):
        raise UserError(
            f"{field}: {folder} must hold images in its class folders, got none; supported are {', '.join(IMG_EXTENSIONS)}"
        )
    if empty:
        raise UserError(
            f"{field}: every class folder of {folder} must hold an image, "
            f"got {len(empty)} without ({some(classes[i] for i in empty)}); add images or remove the folder"
        )
    return [path[len(folder) + 1 :] for path, _ in found], labels_N


def read_cifar10(config: DataConfig, split: str, other: str | None) -> Subset:
    """The 50,000 train or 10,000 test images of 32x32. Raises UserError if they are absent, corrupted or not downloadable."""
    return _cifar("CIFAR-10", CIFAR10, config, split)


def read_cifar100(config: DataConfig, split: str, other: str | None) -> Subset:
    """As read_cifar10, of 100 classes."""
    return _cifar("CIFAR-100", CIFAR100, config, split)


def _cifar(title: str, kind: type[CIFAR10], config: DataConfig, split: str) -> Subset:
    root, download = root_of(config), config.download
    data = _torchvision(title, root, download, lambda: kind(str(root), train=split == "train", download=download))
    labels_N = np.array(data.targets, dtype=np.int64)
    images = ArrayImages([f"{config.name}/{split}/{i:05d}" for i in range(len(labels_N))], labels_N, data.data)
    return Subset(data.classes, images, hashlib.sha256(data.data.tobytes() + labels_N.astype("<i8").tobytes()).hexdigest()[:16])


def read_pets(config: DataConfig, split: str, other: str | None) -> Subset:
    """The trainval or test images of 37 breeds. Raises UserError if they are absent, malformed or not downloadable."""
    root, download = root_of(config), config.download
    data = _torchvision("Oxford-IIIT Pet", root, download, lambda: OxfordIIITPet(root, split=split, download=download))
    order = sorted(range(len(data)), key=lambda i: data._images[i].name)  # torchvision has no public list of its files
    names = [data._images[i].name for i in order]
    images = FileImages(names, np.array([data._labels[i] for i in order], dtype=np.int64), str(data._images_folder))
    return Subset(data.classes, images, fingerprint_of(images, sizes=True))


def _torchvision(title: str, root: Path, download: bool, make: Callable[[], Any]) -> Any:
    """The data set that ``make`` returns; torchvision's errors become a UserError of one line.

    torchvision raises OSError if the network or the disk fails, RuntimeError if the data is absent, and the others if the
    data is malformed.
    """
    try:
        return make()
    except (OSError, RuntimeError, ValueError, KeyError, EOFError) as error:
        if download:
            raise UserError(
                f"data.root: could not download {title} to {root}: {error}; check the network or the folder"
            ) from error
        raise UserError(
            f"data.root: {root} must hold {title}, got: {str(error).split('. You can use')[0]}; "
            "pass data.download=true or another data.root"
        ) from error


def fingerprint_of(images: FileImages, sizes: bool) -> str:
    """16 hex digits of the sha256 over each file's relative path and label, sorted; with ``sizes`` also over its `_head`."""
    digest = hashlib.sha256()
    for i in sorted(range(len(images)), key=images.names.__getitem__):
        line = [images.names[i].replace(os.sep, "/"), str(images.labels[i])]
        digest.update("\0".join(line + ([_head(images.path(i))] if sizes else [])).encode("utf-8", "surrogateescape") + b"\n")
    return digest.hexdigest()[:16]


def _head(path: str) -> str:
    """The file's size and a checksum of its first 4 KiB, which tell files apart without reading all of ImageNet."""
    try:
        with open(path, "rb") as file:
            return f"{os.fstat(file.fileno()).st_size}-{zlib.crc32(file.read(4096))}"
    except OSError:
        return "unreadable"  # the error is reported with the file's name when the image is used


def class_names(root: Path, split: str, field: str) -> list[str]:
    """The names of the class folders of ROOT/SPLIT, sorted. Raises UserError if there are none."""
    folder = root / split
    if not folder.is_dir():
        held = some(sorted(os.listdir(root))) or "nothing"
        raise UserError(f"{field} must hold {split}/CLASS/* images, got {root} without a folder {split}/ (it holds {held})")
    try:
        return find_classes(folder)[0]
    except FileNotFoundError:  # the folder holds no folders
        files = sum(has_file_allowed_extension(name, IMG_EXTENSIONS) for name in os.listdir(folder))
        if files:
            raise UserError(
                f"{field}: {folder} must hold one folder per class, got {files} images directly inside; "
                f"sort them into {split}/CLASS/ (for ImageNet's validation images: valprep.sh)"
            ) from None
        raise UserError(
            f"{field}: {folder} must hold one folder per class, got an empty folder; put images into {split}/CLASS/"
        ) from None
    except OSError as error:
        raise UserError(f"{field}: {folder} must be readable, got: {error.strerror}") from error


def check_same_classes(root: Path, split: str, classes: list[str], other: str, others: list[str]) -> None:
    """Raise UserError, which names the differences, if two splits have other classes."""
    only_here, only_there = sorted(set(classes) - set(others)), sorted(set(others) - set(classes))
    if only_here or only_there:
        difference = "; ".join(
            f"{len(names)} only in {s}/ ({some(names)})" for s, names in ((split, only_here), (other, only_there)) if names
        )
        raise UserError(f"data.root: {split}/ and {other}/ of {root} must have the same class folders, got {difference}")


def check_num_classes(found: int, expected: int | None) -> None:
    """Raise UserError if the data has another number of classes than the configuration's ``data.num_classes``."""
    if expected is not None and found != expected:
        raise UserError(
            f"data.num_classes must be the number of classes in the data, {found}, got {expected}; correct it or data.root"
        )


def some(names: Iterable[str], most: int = 3) -> str:
    """The first names in a list, for messages."""
    listed = list(names)
    return ", ".join(listed[:most]) + (", ..." if len(listed) > most else "")
