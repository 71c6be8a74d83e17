"""The table of data sets, and ``load_data``, which reads the training and evaluation images of a run.

To add a data set, write a row of DATASETS, a function that reads the images, and a file configs/data/NAME.yaml.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

from gch_bench.checks import check, check_choice
from gch_bench.config.data import DataConfig
from gch_bench.data import digits, folders, imagenet, timm_readers, tiny_imagenet
from gch_bench.data.images import ImageSet, Subset, chosen, drawn_ids, image_sizes
from gch_bench.data.transforms import EvalTransform, Preparation, default_resize
from gch_bench.errors import FieldError, UserError

LARGEST_NATIVE = 512  # pixels; larger square images of a folder are resized and cropped to 224, as photographs are
TREE = "train/CLASS/* and val/CLASS/*"


class DataSet(NamedTuple):
    """The properties of a data set that do not depend on a run. A run's DataConfig may override size and resize."""

    read: Callable[[DataConfig, str, str | None], Subset]  # (config, split, the other split if both are read) -> its images
    size: int | None  # side in pixels of the network's input; None: found from the images
    resize: int | None = None  # shorter side in pixels before the centre crop; None: only images of another size are resized
    root: str | None = TREE  # what data.root must hold; None: the data set ships inside a package and has no root
    num_classes: int | None = None  # None: as many as there are class folders
    download: bool = False  # whether data.download=true can fetch it
    splits: tuple[str, str] = ("train", "val")  # the data set's own names for the training and the evaluation images
    trainable: bool = True  # whether it has training images; without them train.py refuses it


def _imagenet_like(read: Callable[[DataConfig, str, str | None], Subset], num_classes: int, root: str) -> DataSet:
    """A set that is evaluated with networks for ImageNet-1k, and has no training images."""
    return DataSet(read, size=224, resize=256, root=root, num_classes=num_classes, trainable=False)


DATASETS: dict[str, DataSet] = {
    "digits": DataSet(digits.read, size=64, root=None, num_classes=10),
    "imagenet": DataSet(imagenet.read_imagenet, size=224, resize=256, num_classes=1000),
    "imagenet_v2": _imagenet_like(imagenet.read_classes, 1000, "0/* to 999/*"),
    "imagenet_a": _imagenet_like(imagenet.read_classes, 200, "WNID/*"),
    "imagenet_r": _imagenet_like(imagenet.read_classes, 200, "WNID/*"),
    "imagenet_sketch": _imagenet_like(imagenet.read_classes, 1000, "WNID/*"),
    "imagenet_real": _imagenet_like(imagenet.read_real, 1000, "ImageNet's val/*"),
    "folder": DataSet(folders.read_tree, size=None),
    "timm": DataSet(timm_readers.read, size=None, root="what timm's reader reads"),
    "tiny_imagenet": DataSet(tiny_imagenet.read, size=64, num_classes=200),
    "cifar10": DataSet(
        folders.read_cifar10, size=32, root="cifar-10-batches-py/", num_classes=10, download=True, splits=("train", "test")
    ),
    "cifar100": DataSet(
        folders.read_cifar100, size=32, root="cifar-100-python/", num_classes=100, download=True, splits=("train", "test")
    ),
    "pets": DataSet(
        folders.read_pets, size=224, resize=256, root="oxford-iiit-pet/", num_classes=37, download=True,
        splits=("trainval", "test"),
    ),
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class DataSource:
    """The data of a run."""

    name: str
    description: str
    classes: list[str]
    preparation: Preparation  # how an image becomes the pixels that the network sees
    train: ImageSet | None  # None if only evaluation images were asked for
    val: ImageSet
    fingerprint: str  # 16 hex digits of a hash of the val images, the same whether or not train was loaded
    train_fingerprint: str | None
    geometry: str  # the preparation in words, e.g. "resize256-bilinear-centercrop224", or "none"; part of the protocol id
    # Which of ImageNet-1k's 1,000 classes (sorted WordNet ids, the order of logits) each of `classes` is; None: other classes.
    class_ids: tuple[int, ...] | None = None

    @property
    def size(self) -> int:
        """The side in pixels of the square images that the network sees."""
        return self.preparation.size

    def prepared(self, preparation: Preparation) -> "DataSource":
        """The same images with another preparation."""
        if preparation == self.preparation:
            return self
        description = self.description.replace(f"{self.size}x{self.size}", f"{preparation.size}x{preparation.size}")
        return replace(self, preparation=preparation, geometry=str(preparation), description=description)

    @property
    def is_imagenet_1k(self) -> bool:
        """Whether this is ImageNet-1k itself, so that errors may be compared with AlexNet's published ones.

        Sets with the same classes but other images or labels (V2, Sketch, ReaL) are not.
        """
        return self.name == "imagenet" and self.class_ids == tuple(range(1000))


def load_data(config: DataConfig, train: bool = True) -> DataSource:
    """Read the data that ``config`` chooses. With ``train=False`` only the val images are read, and train/ need not exist.

    Raises:
        UserError: a choice does not fit the data set, or the data is missing or malformed.
    """
    try:
        config = _fitting(config)
        if train and not DATASETS[config.name].trainable:
            able = ", ".join(name for name, row in DATASETS.items() if row.trainable)
            raise FieldError("name", f"must be one of {able} to train on, got {config.name!r}, which evaluate.py alone takes")
    except FieldError as error:
        raise error.in_group("data") from error
    row = DATASETS[config.name]
    if row.root and not config.download:
        folders.check_root(folders.root_of(config))
    split_train, split_val = row.splits[0], config.split or row.splits[1]
    word = config.split or "val"
    val = row.read(config, split_val, split_train if train else None)
    trained = _training_images(row.read(config, split_train, split_val), config.train_subset) if train else None
    where = folders.root_of(config) if row.root else "embedded"
    if trained and trained.classes != val.classes:  # in image folders the reader has compared them already
        raise UserError(
            f"data.root: train and {word} images of {where} must have the same classes, got {trained.classes} and {val.classes}"
        )
    folders.check_num_classes(len(val.classes), config.num_classes)
    sizes = image_sizes(val.images) if config.resize is None else set()
    size = config.size or _native_size(sizes)
    preparation = EvalTransform(size, config.resize, config.interpolation)
    counts = f"{len(trained.images)} train / {len(val.images)} {word} images" if trained else f"{len(val.images)} {word} images"
    return DataSource(
        name=config.name,
        description=f"{config.name} ({where}: {counts}, {len(val.classes)} classes, {size}x{size})",
        classes=val.classes,
        preparation=preparation,
        train=trained.images if trained else None,
        val=val.images,
        fingerprint=val.fingerprint,
        train_fingerprint=trained.fingerprint if trained else None,
        # An image that has the network's size already is not changed.
        geometry="none" if config.resize is None and sizes == {(size, size)} else str(preparation),
        class_ids=val.class_ids,
    )


def _training_images(read: Subset, count: int | None) -> Subset:
    """`count` of the images that were read, the same ones in every run; None: all.

    Raises:
        FieldError: `count` is more than there are.
    """
    if count is None:
        return read
    total = len(read.images)
    check(count <= total, "data.train_subset", f"at most the number of training images, {total}", count)
    return chosen(read, drawn_ids(total, count, 0, "train subset"))


def _fitting(config: DataConfig) -> DataConfig:
    """The configuration, in which the data set's own values replace a size, resize or number of classes of null, and size and
    resize say what preprocess=imagenet256 means.

    Raises:
        FieldError: a choice does not fit the data set.
    """
    check_choice("name", config.name, DATASETS)
    row, root = DATASETS[config.name], config.root
    if row.root is None:
        others = ", ".join(name for name, other in DATASETS.items() if other.root)
        check(root is None, "root", f"null for data={config.name} (to use a folder choose data from {others})", root)
    else:
        given = isinstance(root, str) and bool(root.strip())
        check(given, "root", f"the folder that holds {row.root} for data={config.name} (pass data.root=/path)", root)
    able = ", ".join(name for name, other in DATASETS.items() if other.download)
    rule = f"false for data={config.name}, as only {able} can be downloaded"
    check(not config.download or row.download, "download", rule, config.download)
    for field, name in (("labels", "imagenet_real"), ("reader", "timm"), ("split", "folder")):
        value = getattr(config, field)
        check(value is None or config.name == name, field, f"null for data={config.name}, as only data={name} has it", value)
    check(config.split not in ("", "train"), "split", "a folder of data.root other than train", config.split)
    size, resize = config.size or row.size, config.resize or row.resize
    if config.preprocess == "imagenet256":
        resize = default_resize(size or 224)
    if resize is not None:
        check(size is not None, "resize", f"null without data.size for data={config.name} (pass data.size=PIXELS)", resize)
        assert size is not None
        check(resize >= size, "resize", f"at least data.size ({size}), or the centre crop has no pixels", resize)
    return replace(config, size=size, resize=resize, preprocess=None, num_classes=config.num_classes or row.num_classes)


def _native_size(sizes: set[tuple[int, int]]) -> int:
    """The side of the images if all of ``sizes`` are one square size of at most LARGEST_NATIVE pixels, otherwise 224."""
    if len(sizes) == 1:
        width, height = next(iter(sizes))
        if width == height <= LARGEST_NATIVE:
            return width
    return 224
