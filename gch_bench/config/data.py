"""The data and augmentation choices of a run. This module imports no torch, so that --help stays quick.

What belongs to a data set itself (its sizes, splits, classes) is a row of the table in gch_bench/data/sets.py, which also
checks that these choices fit it.
"""

import re
from dataclasses import dataclass, field

from gch_bench.checks import check, check_choice, check_probability, check_whole_number
from gch_bench.config.parse import NOT_IN_IDENTITY
from gch_bench.errors import FieldError

INTERPOLATIONS = ("bilinear", "bicubic")
PREPROCESS = ("imagenet256", "timm")

_AUTO_AUGMENT = re.compile(r"(rand|augmix)(-[a-z]+[0-9.]*)+|original|originalr|v0|v0r|3a")


@dataclass(frozen=True)
class DataConfig:
    """Which images a run uses, and how they are prepared. Raises FieldError on a value out of its range.

    The fields size, resize and preprocess are not part of a run's identity, because they may be null. What they resolve to,
    DataSource.size and DataSource.geometry, is part of it.
    """

    name: str  # a row of gch_bench/data/sets.py
    # The folder that holds the data set; null for a data set that ships inside a package.
    root: str | None = field(default=None, metadata=NOT_IN_IDENTITY)
    # timm's name of the reader for data=timm: wds/NAME (WebDataset shards), hfds/NAME (Hugging Face).
    reader: str | None = field(default=None, metadata=NOT_IN_IDENTITY)
    # A JSON file with the labels of ImageNet's validation images for data=imagenet_real; null: the list that timm ships.
    labels: str | None = field(default=None, metadata=NOT_IN_IDENTITY)
    # Side in pixels of the square images that the network sees; null: the data set's own.
    size: int | None = field(default=None, metadata=NOT_IN_IDENTITY)
    # Length in pixels to which the shorter side is resized before the centre crop; null: the data set's own.
    resize: int | None = field(default=None, metadata=NOT_IN_IDENTITY)
    interpolation: str = "bilinear"  # bilinear | bicubic: the interpolation of the resize
    # A preparation by name, in place of size, resize and interpolation. imagenet256: what ImageNet-C's own images went through,
    # a bilinear resize to 256 and a crop of 224 pixels (for another data.size in proportion); timm: what timm validates its
    # pretrained network of this name with. null: as size, resize and interpolation say.
    preprocess: str | None = field(default=None, metadata=NOT_IN_IDENTITY)
    # Download the data set into root if it is not there (cifar10, cifar100 and pets).
    download: bool = field(default=False, metadata=NOT_IN_IDENTITY)
    # Skip unreadable images, and count and report them, instead of stopping at the first one.
    skip_bad: bool = field(default=False, metadata=NOT_IN_IDENTITY)
    # Number of loader processes; 0: the main process loads the images; null: see data/loaders.py, about one per core.
    workers: int | None = field(default=None, metadata=NOT_IN_IDENTITY)
    # The folder of root whose images are evaluated, for data=folder; null: val.
    split: str | None = field(default=None, metadata=NOT_IN_IDENTITY)
    # The number of classes that the data must have; null: the data set's own, or as many as its folders hold.
    num_classes: int | None = field(default=None, metadata=NOT_IN_IDENTITY)
    # Train on this many of the training images, drawn once for all seeds; null: on all. The identity of a run has the
    # fingerprint of the images that it trains on.
    train_subset: int | None = field(default=None, metadata=NOT_IN_IDENTITY)

    def __post_init__(self) -> None:
        for name in ("size", "resize", "num_classes", "train_subset"):
            if getattr(self, name) is not None:
                check_whole_number(name, getattr(self, name), low=1)
        if self.workers is not None:
            check_whole_number("workers", self.workers, low=0)
        check_choice("interpolation", self.interpolation, INTERPOLATIONS)
        if self.preprocess is not None:
            check_choice("preprocess", self.preprocess, PREPROCESS)
            given = ("resize", "interpolation") if self.preprocess == "imagenet256" else ("size", "resize", "interpolation")
            own = {"size": None, "resize": None, "interpolation": "bilinear"}
            for name in given:
                rule = f"left out with preprocess={self.preprocess}, which decides it"
                check(getattr(self, name) == own[name], name, rule, getattr(self, name))
        for name in ("download", "skip_bad"):
            check(isinstance(getattr(self, name), bool), name, "true or false", getattr(self, name))


@dataclass(frozen=True)
class AugmentConfig:
    """The training augmentation, which timm carries out. Raises FieldError on a value out of its range."""

    scale: tuple[float, float] = (0.08, 1.0)  # range of the random resized crop's area, as a fraction of the image's area
    ratio: tuple[float, float] = (3 / 4, 4 / 3)  # range of the random resized crop's aspect ratio, width / height
    hflip: float = 0.5  # probability of a horizontal flip
    color_jitter: float = 0.0  # strength of the brightness, contrast and saturation jitter
    auto_augment: str | None = None  # a policy in timm's notation, e.g. rand-m9-mstd0.5-inc1; null: none
    random_erasing: float = 0.0  # probability that a rectangle is replaced by normal noise, as in timm's recipes

    def __post_init__(self) -> None:
        for name, high in (("scale", 1.0), ("ratio", float("inf"))):
            values = tuple(getattr(self, name))  # a YAML list arrives as a list; the field is a tuple
            object.__setattr__(self, name, values)
            good = len(values) == 2 and 0 < values[0] <= values[1] <= high
            check(good, name, f"two numbers with 0 < low <= high <= {high:g}", list(values))
        for name in ("hflip", "random_erasing", "color_jitter"):
            check_probability(name, getattr(self, name))
        if self.auto_augment is not None:
            named = _AUTO_AUGMENT.fullmatch(self.auto_augment) is not None
            check(named, "auto_augment", "null or a timm string such as rand-m9-mstd0.5", self.auto_augment)
            if self.color_jitter and self.auto_augment != "3a":
                raise FieldError(
                    "color_jitter",
                    f"must be 0 with auto_augment={self.auto_augment}, where timm would turn it off, got {self.color_jitter}",
                )
