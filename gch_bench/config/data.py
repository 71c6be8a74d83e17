"""The data and augmentation choices of a run, checked once. Imports no torch, so that ``--help`` stays fast."""

import re
from dataclasses import dataclass

from gch_bench.errors import UserError

INTERPOLATIONS = ("bilinear", "bicubic")

# name -> what data.root must hold; None: the data set ships inside a package and has no root
ROOTS: dict[str, str | None] = {
    "digits": None,
    "imagenet": "train/CLASS/* and val/CLASS/*",
    "folder": "train/CLASS/* and val/CLASS/*",
    "cifar10": "cifar-10-batches-py/",
    "pets": "oxford-iiit-pet/",
}
# name -> side in pixels when data.size is null; None: read from the images
SIZES: dict[str, int | None] = {"digits": 64, "imagenet": 224, "folder": None, "cifar10": 32, "pets": 224}
DOWNLOADS = ("cifar10", "pets")

_AUTO_AUGMENT = re.compile(r"(rand|augmix)(-[a-z]+[0-9.]*)+|original|originalr|v0|v0r|3a")


def default_resize(size: int) -> int:
    """Shorter side in pixels before a centre crop of ``size``: 256 for 224, in proportion for the others."""
    return round(size * 256 / 224)


def _check_int(field: str, value: object, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise UserError(f"{field} must be an integer >= {least}, got {value!r}")


@dataclass(frozen=True)
class DataConfig:
    """Fields of ``configs/data/*.yaml``. Raises UserError on a value out of its range."""

    name: str  # digits | imagenet | folder | cifar10 | pets
    root: str | None = None
    size: int | None = (
        None  # side of the images the network sees, pixels; None: the data set's own, for folder read from the images
    )
    resize: int | None = (
        None  # shorter side before the centre crop; None: no resize of images that have `size`, else size*256/224
    )
    interpolation: str = "bilinear"  # bilinear | bicubic
    download: bool = False
    skip_bad: bool = False  # count and report unreadable images instead of stopping
    workers: int | None = None  # loader processes; 0: load in the main process; None: as many as there are cores
    num_classes: int | None = None  # expected number of classes, checked; None: any
    output_stride: int | None = None  # not used by data; the model config reads it

    def __post_init__(self) -> None:
        if self.name not in ROOTS:
            raise UserError(f"data.name must be one of {', '.join(ROOTS)}, got {self.name!r}")
        self._check_root()
        for field in ("size", "resize", "num_classes", "output_stride"):
            if getattr(self, field) is not None:
                _check_int(f"data.{field}", getattr(self, field), least=1)
        if self.workers is not None:
            _check_int("data.workers", self.workers, least=0)
        if self.interpolation not in INTERPOLATIONS:
            raise UserError(f"data.interpolation must be one of {', '.join(INTERPOLATIONS)}, got {self.interpolation!r}")
        for field in ("download", "skip_bad"):
            if not isinstance(getattr(self, field), bool):
                raise UserError(f"data.{field} must be true or false, got {getattr(self, field)!r}")
        if self.download and self.name not in DOWNLOADS:
            raise UserError(
                f"data.download must be false for data={self.name} (only {', '.join(DOWNLOADS)} can be downloaded), got true"
            )
        if self.resize is not None:
            size = self.size or SIZES[self.name]
            if size is None:
                raise UserError(
                    f"data.resize needs data.size for data={self.name}, got resize {self.resize}; pass data.size=PIXELS"
                )
            if self.resize < size:
                raise UserError(
                    f"data.resize must be at least data.size ({size}), or the centre crop has no pixels, got {self.resize}"
                )

    def _check_root(self) -> None:
        content = ROOTS[self.name]
        if content is None and self.root is not None:
            others = ", ".join(name for name, held in ROOTS.items() if held)
            raise UserError(
                f"data.root must be null for data={self.name}, got {self.root!r}; to use that folder choose data from {others}"
            )
        if content is not None and (not isinstance(self.root, str) or not self.root.strip()):
            raise UserError(
                f"data.root must be the folder that holds {content} for data={self.name}, got {self.root!r}; "
                "pass data.root=/path"
            )


def _check_interval(field: str, value: tuple[float, ...], low: float, high: float) -> None:
    if len(value) != 2 or not low < value[0] <= value[1] <= high:
        raise UserError(f"{field} must be two numbers with {low:g} < low <= high <= {high:g}, got {list(value)}")


@dataclass(frozen=True)
class AugmentConfig:
    """Training augmentation (timm's). Raises UserError on a value out of its range."""

    scale: tuple[float, float] = (0.08, 1.0)  # random resized crop: fraction of the image's area
    ratio: tuple[float, float] = (3 / 4, 4 / 3)  # random resized crop: width / height
    hflip: float = 0.5  # probability
    color_jitter: float = 0.0  # strength of brightness, contrast and saturation jitter
    auto_augment: str | None = None  # timm's string, e.g. rand-m9-mstd0.5-inc1
    random_erasing: float = 0.0  # probability; erased pixels become normal noise, as in timm's recipes

    def __post_init__(self) -> None:
        for field in ("scale", "ratio"):  # a YAML list arrives as a list; the field is a tuple
            object.__setattr__(self, field, tuple(getattr(self, field)))
        _check_interval("augment.scale", self.scale, 0, 1)
        _check_interval("augment.ratio", self.ratio, 0, float("inf"))
        for field in ("hflip", "random_erasing"):
            if not 0 <= getattr(self, field) <= 1:
                raise UserError(f"augment.{field} must be a probability in [0, 1], got {getattr(self, field)!r}")
        if not 0 <= self.color_jitter <= 1:
            raise UserError(f"augment.color_jitter must be in [0, 1], got {self.color_jitter!r}")
        if self.auto_augment is not None:
            if not _AUTO_AUGMENT.fullmatch(self.auto_augment):
                raise UserError(
                    f"augment.auto_augment must be null or a timm string such as rand-m9-mstd0.5, got {self.auto_augment!r}"
                )
            if self.color_jitter and self.auto_augment != "3a":
                raise UserError(
                    f"augment.color_jitter must be 0 with auto_augment={self.auto_augment} (timm would turn it off), "
                    f"got {self.color_jitter}"
                )
