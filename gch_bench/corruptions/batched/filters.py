"""What several batched corruptions use: truncation to grey levels, the Gaussian, motion blur and the enlargement.

Shapes: B images of C channels and H x W pixels; T taps of a filter.
"""

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from gch_bench.corruptions.filters import TIE_MARGIN, enlarged, gaussian_matrix, motion_weights


def truncate(field: Tensor) -> Tensor:
    """Clip a field in grey levels to 0..255 and drop the fractions: uint8 of the same shape. The field is overwritten."""
    return field.clamp_(0, 255).to(torch.int16).to(torch.uint8)  # direct conversion to uint8 takes torch 4 times as long


def truncate_blur(field: Tensor, margin: float = TIE_MARGIN) -> Tensor:
    """Add ``margin`` to a blurred field in grey levels and truncate it: uint8 of the same shape. The field is overwritten."""
    return truncate(field.add_(margin))


def gaussian_filter(field_BCHW: Tensor, sigma: float, border: str = "edge", cut: float = 4.0) -> Tensor:
    """Filter a field (B, C, H, W) with a Gaussian; returns float32 of the same shape.

    The filter is separable, so it is two matrix products, S_HH @ x along the columns and x @ S_WW.T along the rows. They are
    in float64, because the rounding of a product may depend on the batch and on the user's settings (TF32).

    Args:
        sigma: standard deviation in pixels.
        border: how the field continues outside, a mode of numpy.pad.
        cut: where the Gaussian ends, in units of ``sigma``.
    """
    height, width = field_BCHW.shape[2:]
    S_HH, S_WW = (_matrix(n, sigma, border, cut, str(field_BCHW.device)) for n in (height, width))
    x_NHW = field_BCHW.to(torch.float64).flatten(0, 1)
    planes = len(x_NHW)
    x_NHW = torch.bmm(torch.bmm(S_HH.expand(planes, -1, -1), x_NHW), S_WW.T.expand(planes, -1, -1))
    return x_NHW.to(torch.float32).view(field_BCHW.shape)


@lru_cache(maxsize=32)
def _matrix(n: int, sigma: float, border: str, cut: float, device: str) -> Tensor:
    return torch.from_numpy(gaussian_matrix(n, sigma, border, cut)).to(device)


def motion_blur_at(images: Tensor, radius: float, sigma: float, angles_B: Tensor) -> Tensor:
    """ImageMagick's motion blur at angles in degrees, float64 (B,): uint8 (B, C, H, W) -> float32. See ``motion_taps``."""
    batch, channels, height, width = images.shape
    device, weights = images.device, motion_weights(radius, sigma).tolist()
    y, x = torch.arange(height, device=device), torch.arange(width, device=device)
    radians_B11 = torch.deg2rad(angles_B)[:, None, None]
    sine_B11, cosine_B11 = torch.sin(radians_B11), torch.cos(radians_B11)
    field_BCN = images.flatten(2).to(torch.float32)
    blurred_BCN = field_BCN * weights[0]  # tap 0 reads the pixel itself
    for tap, weight in enumerate(weights[1:], start=1):
        row_BH1 = (y[:, None] + torch.ceil(tap * sine_B11 - 0.5).long()).clamp_(0, height - 1)
        column_B1W = (x + torch.ceil(tap * cosine_B11 - 0.5).long()).clamp_(0, width - 1)
        place_B1N = (row_BH1 * width + column_B1W).view(batch, 1, -1)
        blurred_BCN += field_BCN.gather(2, place_B1N.expand(-1, channels, -1)).mul_(weight)
    return blurred_BCN.view(images.shape)


def enlarge(crops: Tensor, factor: float, size: tuple[int, int]) -> Tensor:
    """Enlarge float32 (..., h, w) by ``factor``, then cut out the middle of ``size`` = (height, width) pixels."""
    for axis, wanted in zip((-2, -1), size, strict=True):
        low, high, part = _enlarged(crops.shape[axis], factor, wanted, str(crops.device))
        start = crops.index_select(axis, low)
        crops = crops.index_select(axis, high).sub_(start).mul_(part[:, None] if axis == -2 else part).add_(start)
    return crops


@lru_cache(maxsize=512)
def _enlarged(n: int, factor: float, wanted: int, device: str) -> tuple[Tensor, Tensor, Tensor]:
    low, high, part = (torch.from_numpy(np.array(table)).to(device) for table in enlarged(n, factor, wanted))
    return low, high, part
