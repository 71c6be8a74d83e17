"""Config -> data: the images to train on and to evaluate on, and what identifies them."""

from dataclasses import dataclass
from pathlib import Path

from gch_bench.config.data import SIZES, DataConfig, default_resize
from gch_bench.data import folders
from gch_bench.data.digits import CLASSES, digits
from gch_bench.data.images import ImageSet, image_sizes
from gch_bench.errors import UserError

LARGEST_NATIVE = 512  # pixels: a folder of larger square images is resized and cropped to 224 like photographs


@dataclass(frozen=True, eq=False)
class DataSource:
    """What a run trains and evaluates on; ``size`` in pixels is the side of the images the network sees."""

    name: str
    description: str
    classes: list[str]
    size: int
    train: ImageSet | None  # None if not asked for
    val: ImageSet
    fingerprint: str  # 16 hex digits over the val images: what the numbers are measured on, whether or not train was loaded
    train_fingerprint: str | None
    geometry: str  # "none", or e.g. "resize256-bilinear-centercrop224": goes into the protocol id


def load_data(config: DataConfig, train: bool = True) -> DataSource:
    """The data of ``config``; with ``train=False`` only val, and train/ need not exist. Raises UserError if it is not there."""
    if config.name == "digits":
        return _load_digits(config, train)
    root = Path(str(config.root)).expanduser()
    if not config.download:
        folders.check_root(root)
    val = _subset(config, root, "val", other="train" if train else None)
    trained = _subset(config, root, "train", other=None) if train else None
    if trained and trained.classes != val.classes:  # image folders were compared by name already
        raise UserError(
            f"data.root: train and val images of {root} must have the same classes, got {trained.classes} and {val.classes}"
        )
    folders.check_num_classes(len(val.classes), config.num_classes)
    sizes = image_sizes(val.images) if config.resize is None else set()
    size = config.size or SIZES[config.name] or _native_size(sizes)
    counts = f"{len(trained.images)} train / {len(val.images)} val images" if trained else f"{len(val.images)} val images"
    return DataSource(
        name=config.name,
        description=f"{config.name} ({root}: {counts}, {len(val.classes)} classes, {size}x{size})",
        classes=val.classes,
        size=size,
        train=trained.images if trained else None,
        val=val.images,
        fingerprint=val.fingerprint,
        train_fingerprint=trained.fingerprint if trained else None,
        geometry=_geometry(config, size, sizes),
    )


def _load_digits(config: DataConfig, train: bool) -> DataSource:
    size = config.size or SIZES["digits"]
    assert size is not None
    folders.check_num_classes(len(CLASSES), config.num_classes)
    data = digits(size)
    counts = f"{len(data.train)} train / {len(data.val)} val images"
    return DataSource(
        name=config.name,
        description=f"digits (embedded: scikit-learn handwritten digits, {counts}, {size}x{size})",
        classes=list(CLASSES),
        size=size,
        train=data.train if train else None,
        val=data.val,
        fingerprint=data.val_fingerprint,
        train_fingerprint=data.train_fingerprint if train else None,
        geometry=_geometry(config, size, {(size, size)}),
    )


def _subset(config: DataConfig, root: Path, split: str, other: str | None) -> folders.Subset:
    if config.name == "cifar10":
        return folders.cifar10(root, split == "train", config.download)
    if config.name == "pets":
        return folders.pets(root, split == "train", config.download)
    return folders.image_folder(root, split, other)


def _native_size(sizes: set[tuple[int, int]]) -> int:
    """The one square size that all looked-at images have, up to 512 pixels; else 224."""
    if len(sizes) == 1:
        width, height = next(iter(sizes))
        if width == height <= LARGEST_NATIVE:
            return width
    return 224


def _geometry(config: DataConfig, size: int, sizes: set[tuple[int, int]]) -> str:
    """Name of what ``eval_transform(size, config.resize, config.interpolation)`` does to these images."""
    if config.resize is None and sizes == {(size, size)}:
        return "none"
    return f"resize{config.resize or default_resize(size)}-{config.interpolation}-centercrop{size}"
