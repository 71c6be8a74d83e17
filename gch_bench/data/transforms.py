"""Transforms that turn an image into a tensor.

The one for training augments with timm and normalises. The one for evaluation returns uint8, because corruptions act on grey
levels and come before the normalisation.

Legend: B batch, H W height and width in pixels.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from PIL import Image
from timm.data import create_transform
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
    """The transform for evaluation; made by ``eval_transform``."""

    size: int
    resize: int | None
    interpolation: InterpolationMode

    def __call__(self, image: Image.Image) -> torch.Tensor:
        if self.resize is not None or image.size != (self.size, self.size):
            image = F.resize(image, [self.resize or default_resize(self.size)], self.interpolation)
            image = F.center_crop(image, [self.size, self.size])
        return F.pil_to_tensor(image)


def eval_transform(size: int, resize: int | None = None, interpolation: str = "bilinear") -> EvalTransform:
    """A transform from an RGB image to uint8 (3, size, size): torchvision's Resize(resize), antialiased, then CenterCrop(size).

    With ``resize=None`` an image of size x size pixels is left as it is; any other is resized with ``default_resize(size)``.
    """
    return EvalTransform(size, resize, InterpolationMode(interpolation))


def normalise(images: torch.Tensor, normalisation: Normalisation) -> torch.Tensor:
    """(images / 255 - mean) / std: uint8 (..., 3, H, W) -> float32 of the same shape on the same device.

    Raises:
        TypeError: the images are not uint8.
    """
    if images.dtype != torch.uint8:
        raise TypeError(f"images must be uint8 in 0..255, got {images.dtype}")
    mean_3, std_3 = (torch.tensor(values, dtype=torch.float32, device=images.device).view(3, 1, 1) for values in normalisation)
    return (images.to(torch.float32) / 255 - mean_3) / std_3
