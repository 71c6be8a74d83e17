"""Zoom blur of many images at once. Source: hendrycks/robustness, make_imagenet_c.py."""

import torch
from torch import Tensor

from gch_bench.corruptions.batched.filters import enlarge, truncate_blur
from gch_bench.corruptions.filters import zoom_crop, zoom_factors
from gch_bench.corruptions.shared import Shared


def zoom_blur(images: Shared[Tensor], start_stop_step: tuple[float, float, float]) -> Tensor:
    """See ``compiled.zoom.zoom_blur``."""
    factors = zoom_factors(*start_stop_step)
    height, width = images.pixels.shape[2:]
    field = images.pixels.to(torch.float32)
    total = field.clone()
    for factor in factors:
        crop_height, crop_width = zoom_crop(height, factor), zoom_crop(width, factor)
        top, left = (height - crop_height) // 2, (width - crop_width) // 2
        total += enlarge(field[..., top : top + crop_height, left : left + crop_width], factor, (height, width))
    return truncate_blur(total.div_(len(factors) + 1))
