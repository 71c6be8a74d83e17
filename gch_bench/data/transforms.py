"""Transforms that turn an image into a tensor.

The one for training augments with timm and normalises. The one for evaluation returns uint8, because corruptions act on grey
levels and come before the normalisation.

Legend: B batch, H W height and width in pixels.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
from PIL import Image
from timm.data import create_transform, resolve_data_config
from timm.models import get_pretrained_cfg
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as F

from gch_bench.config.data import AugmentConfig
from gch_bench.errors import UserError

Transform = Callable[[Image.Image], torch.Tensor]
RGB = tuple[float, float, float]


class Normalisation(NamedTuple):
    """Mean and standard deviation of each colour channel, for pixels in [0, 1], by which a network's images are normalised."""

    mean: RGB
    std: RGB


def train_transform(
    augment: AugmentConfig, size: int, normalisation: Normalisation, interpolation: str = "bilinear"
) -> Transform:
    """A transform from an RGB image to float32 (3, size, size), augmented and normalised.

    It draws from the global generators of ``random``, numpy and torch, which ``loaders.TrainDataset`` seeds for each image.

    Raises:
        UserError: timm rejects ``augment.auto_augment``.
    """
    try:
        transform: Transform = create_transform(
            size,
            is_training=True,
            scale=augment.scale,
            ratio=augment.ratio,
            hflip=augment.hflip,
            color_jitter=augment.color_jitter or None,  # type: ignore[arg-type]  # None: timm leaves the step out
            auto_augment=augment.auto_augment,
            interpolation=interpolation,
            mean=normalisation.mean,
            std=normalisation.std,
            re_prob=augment.random_erasing,
            re_mode="pixel",
        )
    except (AssertionError, ValueError, KeyError) as error:
        raise UserError(
            f"augment.auto_augment must be a timm string such as rand-m9-mstd0.5, got {augment.auto_augment!r} ({error})"
        ) from error
    return transform


def default_resize(size: int) -> int:
    """Shorter side in pixels before a centre crop of ``size`` pixels: 256 for 224, and in proportion for other sizes."""
    return round(size * 256 / 224)


@dataclass(frozen=True)
class EvalTransform:
    """From an RGB image to uint8 (3, size, size): torchvision's Resize(resize), antialiased, then CenterCrop(size).

    With ``resize=None`` an image of size x size pixels is left as it is; any other is resized with ``default_resize(size)``.
    For photographs, ``EvalTransform(224, 256)`` is the preparation of ImageNet-C's own images, ``imagenet256``.
    """

    size: int
    resize: int | None = None
    interpolation: str = "bilinear"

    def __call__(self, image: Image.Image) -> torch.Tensor:
        if self.resize is not None or image.size != (self.size, self.size):
            image = F.resize(image, [self.resize or default_resize(self.size)], InterpolationMode(self.interpolation))
            image = F.center_crop(image, [self.size, self.size])
        return F.pil_to_tensor(image)

    def __str__(self) -> str:
        return f"resize{self.resize or default_resize(self.size)}-{self.interpolation}-centercrop{self.size}"


@dataclass(frozen=True)
class TimmTransform:
    """From an RGB image to uint8 (3, size, size): timm's own preparation for validation, without its normalisation.

    The fields are those of a network's ``pretrained_cfg``. After ``normalise`` the pixels equal, bit for bit, those of timm's
    ``create_transform(**resolve_data_config(pretrained_cfg, use_test_size=True))``.
    """

    size: int
    crop_pct: float
    crop_mode: str
    interpolation: str
    mean: RGB  # timm pads with this colour where crop_mode is "border"

    def __call__(self, image: Image.Image) -> torch.Tensor:
        pixels: torch.Tensor = _timm_transform(self)(image)
        return pixels

    def equals(self, other: "Preparation") -> bool:
        """Whether the other preparation does the same to a photograph."""
        if isinstance(other, TimmTransform):
            return self == other
        resize = other.resize or default_resize(other.size)
        same = (self.size, math.floor(self.size / self.crop_pct), self.interpolation) == (
            other.size,
            resize,
            other.interpolation,
        )
        return same and self.crop_mode == "center"

    def __str__(self) -> str:
        return f"timm-{self.crop_mode}-crop{self.crop_pct:g}-{self.interpolation}-{self.size}"


@lru_cache(maxsize=64)
def _timm_transform(of: TimmTransform) -> Transform:
    made: Transform = create_transform(
        of.size, interpolation=of.interpolation, mean=of.mean, crop_pct=of.crop_pct, crop_mode=of.crop_mode, normalize=False
    )
    return made


Preparation = EvalTransform | TimmTransform  # networks with equal preparations see the same pixels


def timm_preparation(name: str) -> TimmTransform:
    """The preparation that timm validates its pretrained network ``name`` with.

    Raises:
        UserError: timm has no pretrained network of this name, or its images are not square.
    """
    try:
        found = get_pretrained_cfg(name)
    except RuntimeError:  # a tag that timm does not know
        found = None
    if found is None:
        raise UserError(f"data.preprocess=timm needs a network that timm has trained weights of, got model.name={name}")
    chosen = resolve_data_config(pretrained_cfg=found.to_dict(), use_test_size=True)
    _, height, width = chosen["input_size"]
    if height != width:
        raise UserError(f"data.preprocess=timm needs square images, got {height}x{width} for model.name={name}")
    return TimmTransform(height, chosen["crop_pct"], chosen["crop_mode"], chosen["interpolation"], tuple(chosen["mean"]))


def normalise(images: torch.Tensor, normalisation: Normalisation) -> torch.Tensor:
    """(images / 255 - mean) / std: uint8 (..., 3, H, W) -> float32 of the same shape on the same device.

    Raises:
        TypeError: the images are not uint8.
    """
    if images.dtype != torch.uint8:
        raise TypeError(f"images must be uint8 in 0..255, got {images.dtype}")
    mean_3, std_3 = (torch.tensor(values, dtype=torch.float32, device=images.device).view(3, 1, 1) for values in normalisation)
    return (images.to(torch.float32) / 255 - mean_3) / std_3
