"""Zoom blur. To be converted."""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from gch_bench.corruptions.batched.common import truncate_blur

# Zoom blur enlarges many planes (channels of images) together, with the planes last in memory: on a CPU this is 10 times as
# quick as one plane at a time. Their number is filled up with empty planes to a multiple of this one, which the processor's
# vectors divide, so that the rounding of a plane does not depend on how many others there are.
ZOOM_PLANES = 16


def zoom_blur(images: Tensor, start_stop_step: tuple[float, float, float]) -> Tensor:
    """The mean of the image and of its enlargements by ``numpy.arange(*level)``; level: (start, stop, step) of the factors."""
    factors = np.arange(*start_stop_step).tolist()
    batch, _, height, width = images.shape
    planes = -(-3 * batch // ZOOM_PLANES) * ZOOM_PLANES
    x_HWN = torch.zeros(height, width, planes, dtype=torch.float32, device=images.device)
    x_HWN[..., : 3 * batch] = images.flatten(0, 1).permute(1, 2, 0)
    x_NHW = x_HWN.permute(2, 0, 1)
    total_NHW = x_NHW.clone()
    for factor in factors:
        total_NHW += clipped_zoom(x_NHW, factor)
    return truncate_blur(total_NHW.div_(len(factors) + 1))[: 3 * batch].unflatten(0, (batch, 3)).contiguous()


def clipped_zoom(field: Tensor, factor: float) -> Tensor:
    """Enlarge the middle by ``factor`` >= 1, bilinear between the corner pixels' centres: float32 (C, H, W) -> the same."""
    if factor == 1:
        return field
    height, width = field.shape[1:]
    crop_height, crop_width = zoom_crop(height, factor), zoom_crop(width, factor)
    top, left = (height - crop_height) // 2, (width - crop_width) // 2
    crop = field[None, :, top : top + crop_height, left : left + crop_width].contiguous(memory_format=torch.channels_last)
    return enlarge(crop, factor, (height, width))[0]


def zoom_crop(n: int, factor: float) -> int:
    """How many of ``n`` pixels in a row or column are enlarged by ``factor`` to fill about ``n`` pixels again."""
    return math.ceil(n / factor)


def enlarge(crops: Tensor, factor: float, size: tuple[int, int]) -> Tensor:
    """Enlarge float32 (B, C, h, w) by ``factor``, then cut out the middle of ``size`` = (height, width) pixels."""
    enlarged = [round(n * factor) for n in crops.shape[2:]]
    field = F.interpolate(crops, enlarged, mode="bilinear", align_corners=True)
    top, left = ((n - wanted) // 2 for n, wanted in zip(enlarged, size, strict=True))
    return field[..., top : top + size[0], left : left + size[1]]
