"""ImageNet-1k in the layouts in which it is published, and the sets that have its classes or some of them.

The classes of these sets are WordNet ids in the order of ImageNet-1k's 1,000 sorted ones, and the names of images are
WNID/FILE. Names, labels, ids and the fingerprint are therefore the same in every layout.
"""

import csv
import functools
import hashlib
import importlib.resources
import json
import os
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
from timm.data import ImageNetInfo

from gch_bench.config.data import DataConfig
from gch_bench.data.folders import check_same_classes, class_names, fingerprint_of, list_images, root_of, some
from gch_bench.data.images import FileImages, PlacedImages, Subset
from gch_bench.errors import UserError

KAGGLE = Path("ILSVRC") / "Data" / "CLS-LOC"
KAGGLE_LABELS = "LOC_val_solution.csv"
DEVKIT = Path("ILSVRC2012_devkit_t12") / "data"
DEVKIT_LABELS = "ILSVRC2012_validation_ground_truth.txt"
VAL_FILE = re.compile(r"ILSVRC2012_val_(\d{8})\.jpe?g", re.IGNORECASE)
# The sets with 200 of the classes, and timm's list of these.
SOME_CLASSES = {"imagenet_a": "imagenet_a_synsets.txt", "imagenet_r": "imagenet_r_synsets.txt"}


@functools.cache
def wordnet_ids() -> tuple[str, ...]:
    """The WordNet ids of ImageNet-1k's 1,000 classes, sorted, which is the order of every network's logits (timm's list)."""
    return tuple(ImageNetInfo("imagenet-1k").label_names())


@functools.cache
def _class_id(folder: str) -> int:
    """The class 0..999 that a folder is named by, its WordNet id or its number; a number beyond these if it is none."""
    if folder.isascii() and folder.isdigit():
        return int(folder)
    return wordnet_ids().index(folder) if folder in wordnet_ids() else -1


def wordnet_id(folder: str) -> str:
    """The WordNet id of the class that a folder is named by (its WordNet id or its number), or the name if it is none."""
    return wordnet_ids()[_class_id(folder)] if 0 <= _class_id(folder) < 1000 else folder


def packaged(name: str) -> str:
    """The text of a file that timm keeps beside its data code."""
    return (importlib.resources.files("timm.data") / "_info" / name).read_text(encoding="utf-8")


def read_imagenet(config: DataConfig, split: str, other: str | None) -> Subset:
    """ImageNet's images: ROOT/{train,val}/CLASS/*, Kaggle's ILSVRC/Data/CLS-LOC/, or val/ without folders and with the devkit.

    The labels of a val/ without class folders come from ROOT/LOC_val_solution.csv (Kaggle) or from
    ROOT/ILSVRC2012_devkit_t12/data. The classes are those that have a folder or an image.

    Raises:
        UserError: images or labels are missing, do not fit each other, or a folder is no class of ImageNet-1k.
    """
    root = root_of(config)
    base = root / KAGGLE if (root / KAGGLE).is_dir() else root
    if split == "val" and _is_flat(base / "val"):
        labels = root / KAGGLE_LABELS
        wnids = _kaggle_wnids(labels) if labels.is_file() else _devkit_wnids(root / DEVKIT)
        subset = _flat(base / "val", wnids)
    else:
        subset = class_folders(base, split, sizes=split == "val")
    if split == "val" and other is not None:
        others = _class_ids(base / other, _folders(base, other), None).values()
        check_same_classes(base, split, subset.classes, other, [wordnet_ids()[i] for i in others])
    return subset


def read_classes(config: DataConfig, split: str, other: str | None) -> Subset:
    """A set for evaluation with all or some of ImageNet's classes: ROOT/CLASS/* or ROOT/val/CLASS/*.

    A class folder is named by its WordNet id or, as in ImageNet-V2, by its number 0..999. Raises UserError on other folders.
    """
    root = root_of(config)
    known = packaged(SOME_CLASSES[config.name]).split() if config.name in SOME_CLASSES else None
    if (root / split).is_dir():
        return class_folders(root, split, sizes=True, known=known)
    return class_folders(root.parent, root.name, sizes=True, known=known)


def read_real(config: DataConfig, split: str, other: str | None) -> Subset:
    """ImageNet's validation images with the ReaL labels of Beyer et al. 2020 (arXiv 2006.07159).

    An image may have several labels. They come from ``config.labels``, a JSON list with the list of labels of each validation
    image, or from timm. Images without labels are left out.

    Raises:
        UserError: what ``read_imagenet`` raises, a list that is malformed or too short, or an image that is not named
            ILSVRC2012_val_NUMBER.JPEG.
    """
    images = read_imagenet(config, split, other).images
    assert isinstance(images, FileImages)
    where = config.labels or "timm's imagenet_real_labels.json"
    sets = _real_labels(config.labels)
    chosen: list[tuple[int, ...]] = []
    for name in images.names:
        number = VAL_FILE.fullmatch(os.path.basename(name))
        if number is None or not 1 <= int(number[1]) <= len(sets):
            raise UserError(
                f"data=imagenet_real needs images named ILSVRC2012_val_NUMBER.JPEG with NUMBER in 1..{len(sets)}, the number of"
                f" lists in {where}, got {name}"
            )
        chosen.append(sets[int(number[1]) - 1])
    kept = [i for i, labels in enumerate(chosen) if labels]
    if not kept:
        raise UserError(f"data.labels must have labels for some of the {len(images)} images, got none in {where}")
    label_sets = [chosen[i] for i in kept]
    files = images.files if isinstance(images, PlacedImages) else images.names
    first = np.array([labels[0] for labels in label_sets], dtype=np.int64)
    placed = PlacedImages(
        [images.names[i] for i in kept], first, images.folder, [files[i] for i in kept], label_sets=label_sets
    )
    digest = hashlib.sha256((fingerprint_of(placed, sizes=True) + json.dumps(label_sets)).encode()).hexdigest()[:16]
    return Subset(list(wordnet_ids()), placed, digest, tuple(range(1000)))


def class_folders(root: Path, split: str, sizes: bool, known: Collection[str] | None = None) -> Subset:
    """The images of ROOT/SPLIT, whose class folders are named by WordNet ids of ImageNet-1k or by the classes' numbers 0..999.

    Args:
        sizes: whether the fingerprint covers the files' sizes and first 4 KiB.
        known: the WordNet ids that the set may have; None: all 1,000.

    Raises:
        UserError: a folder is missing or empty, is no class of the set, or has the same class as another one.
    """
    folders = _folders(root, split)
    ids = _class_ids(root / split, folders, known)
    folders.sort(key=ids.__getitem__)
    files, labels_N = list_images(root / split, folders, "data.root")
    wnids = [wordnet_ids()[ids[name]] for name in folders]
    names = files if wnids == folders else [wnids[i] + file[len(folders[i]) :] for i, file in zip(labels_N, files, strict=True)]
    images = PlacedImages(names, labels_N, str(root / split), files)
    return Subset(wnids, images, fingerprint_of(images, sizes), tuple(ids[name] for name in folders))


def _folders(root: Path, split: str) -> list[str]:
    """The class folders of ROOT/SPLIT without hidden ones. Raises UserError if there are none."""
    names = [name for name in class_names(root, split, "data.root") if not name.startswith(".")]
    if not names:
        raise UserError(f"data.root: {root / split} must hold one folder per class, got hidden folders alone")
    return names


def _class_ids(folder: Path, names: list[str], known: Collection[str] | None) -> dict[str, int]:
    """Folder name -> which of ImageNet-1k's classes 0..999 it is."""
    ids = {name: _class_id(name) for name in names}
    allowed = set(range(1000)) if known is None else {_class_id(wnid) for wnid in known}
    strange = [name for name in names if ids[name] not in allowed]
    if strange:
        raise UserError(
            f"data.root: the folders of {folder} must be WordNet ids of the {len(allowed)} classes or their numbers 0..999, got"
            f" {len(strange)} others ({some(strange)}); data=folder takes any names"
        )
    if len(set(ids.values())) < len(names):
        twice = [name for name in names if list(ids.values()).count(ids[name]) > 1]
        raise UserError(f"data.root: every class must have one folder in {folder}, got several of one class ({some(twice)})")
    return ids


def _is_flat(folder: Path) -> bool:
    """Whether the folder holds ImageNet's validation images directly."""
    try:
        with os.scandir(folder) as entries:
            seen = [entry for entry in entries if not entry.name.startswith(".")]
            kinds = {entry.is_dir() for entry in seen if entry.is_dir() or VAL_FILE.fullmatch(entry.name)}
    except OSError:
        return False
    return kinds == {False}


def _flat(folder: Path, wnids: list[str]) -> Subset:
    """The images ILSVRC2012_val_00000001.JPEG, ... of a folder, of which the i-th has the i-th WordNet id."""
    files = sorted(name for name in os.listdir(folder) if VAL_FILE.fullmatch(name))
    numbers = [int(match[1]) for match in map(VAL_FILE.fullmatch, files) if match]
    if numbers != list(range(1, len(wnids) + 1)):
        raise UserError(
            f"data.root: {folder} must hold one image for each of the {len(wnids)} labels, ILSVRC2012_val_00000001.JPEG to"
            f" _{len(wnids):08d}, got {len(files)} images; for a subset, sort the images into class folders"
        )
    order = sorted(range(len(files)), key=lambda i: (wnids[i], files[i]))
    classes = sorted(set(wnids))
    ids = _class_ids(folder, classes, None)
    label_of = {wnid: label for label, wnid in enumerate(classes)}
    labels_N = np.array([label_of[wnids[i]] for i in order], dtype=np.int64)
    names = [f"{wnids[i]}/{files[i]}" for i in order]
    images = PlacedImages(names, labels_N, str(folder), [files[i] for i in order])
    return Subset(classes, images, fingerprint_of(images, sizes=True), tuple(ids[wnid] for wnid in classes))


def _kaggle_wnids(path: Path) -> list[str]:
    """The WordNet id of each validation image, from Kaggle's LOC_val_solution.csv: ImageId,PredictionString."""
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = sorted((row["ImageId"], row["PredictionString"].split()[0]) for row in csv.DictReader(file))
        numbers = [int(re.fullmatch(r"ILSVRC2012_val_(\d{8})", name)[1]) for name, _ in rows]  # type: ignore[index]
        if numbers != list(range(1, len(rows) + 1)):
            raise ValueError("rows are missing")
    except (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise UserError(
            f"data.root: {path} must hold one row ImageId,PredictionString for each of ILSVRC2012_val_00000001, ..., and cannot"
            f" be read so ({error}); restore it"
        ) from error
    return [wnid for _, wnid in rows]


def _devkit_wnids(folder: Path) -> list[str]:
    """The WordNet id of each validation image, from the devkit: a number per line, and meta.mat, which names the numbers."""
    from scipy.io import loadmat  # only here: it takes long to load

    if not folder.is_dir():
        raise UserError(
            f"data.root: {folder.parents[1]} has validation images without class folders: sort them into val/CLASS/"
            f" (valprep.sh), or add {DEVKIT}/ or Kaggle's {KAGGLE_LABELS}, which hold their labels"
        )
    try:
        synsets: Any = loadmat(folder / "meta.mat", squeeze_me=True)["synsets"]
        wnid_of = {int(number): str(wnid) for number, wnid in zip(synsets["ILSVRC2012_ID"], synsets["WNID"], strict=True)}
        return [wnid_of[int(line)] for line in (folder / DEVKIT_LABELS).read_text().split()]
    except Exception as error:  # a broken file makes loadmat raise OSError, ValueError, KeyError, TypeError, zlib.error, ...
        raise UserError(
            f"data.root: {folder} must hold meta.mat and {DEVKIT_LABELS} of ImageNet's devkit, which cannot be read"
            f" ({type(error).__name__}: {error}); unpack ILSVRC2012_devkit_t12.tar.gz again"
        ) from error


def _real_labels(path: str | None) -> list[tuple[int, ...]]:
    try:
        text = packaged("imagenet_real_labels.json") if path is None else Path(path).expanduser().read_text()
        sets = [tuple(labels) for labels in json.loads(text)]
        if not sets:
            raise ValueError("an empty list")
        if not all(type(label) is int and 0 <= label < 1000 for labels in sets for label in labels):
            raise ValueError("other values")
    except (OSError, ValueError, TypeError) as error:
        raise UserError(
            f"data.labels must be a JSON file with a list of labels in 0..999 for each validation image, got {path} ({error})"
        ) from error
    return [tuple(dict.fromkeys(labels)) for labels in sets]
