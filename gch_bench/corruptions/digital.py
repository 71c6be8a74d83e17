"""Digital corruptions: pixelate, JPEG compression. Source: hendrycks/robustness, make_imagenet_c.py.

Every function takes uint8 images (B, 3, H, W) and one severity's level and returns new uint8 images.
"""

import io
from functools import lru_cache

import numpy as np
import torch
from PIL import Image
from torch import Tensor

_FIXED_POINT_BITS = 22  # of Pillow's 8-bit resampling weights


def pixelate(images: Tensor, scale: float) -> Tensor:
    """Box-shrunk to int(side ``scale``) pixels, at least 1, then box-enlarged to the old size.

    Equal to Pillow's, bit by bit, unless an image is over twice as tall as wide (Pillow 13 then takes the columns first).
    Enlarging by a box filter copies the nearest pixel.
    """
    shrunk = images
    for dim in (3, 2):  # Pillow's order: along the rows, rounded to 8 bits, then along the columns
        shrunk = _box_shrink(shrunk, dim, max(1, int(images.shape[dim] * scale)))
    for dim in (3, 2):
        shrunk = shrunk.index_select(dim, _nearest(shrunk.shape[dim], images.shape[dim], str(images.device)))
    return shrunk


def _box_shrink(images: Tensor, dim: int, size: int) -> Tensor:
    """Box filter along ``dim`` down to ``size``, in Pillow's fixed point (int32)."""
    source, weight = _box_taps(images.shape[dim], size, str(images.device))
    shape = (-1, *(1 for _ in range(3 - dim)))  # broadcasts along dim
    total: Tensor | None = None
    for tap_source, tap_weight in zip(source, weight, strict=True):
        term = images.index_select(dim, tap_source) * tap_weight.view(shape)
        total = term if total is None else total.add_(term)
    assert total is not None  # there is one tap at least
    return total.add_(1 << (_FIXED_POINT_BITS - 1)).bitwise_right_shift_(_FIXED_POINT_BITS).to(torch.uint8)


@lru_cache(maxsize=64)
def _box_taps(size_in: int, size_out: int, device: str) -> tuple[Tensor, Tensor]:
    """Sources (int64) and weights (int32, summing to about 2**22), both (taps, size_out), as in Pillow's Resample.c."""
    scale = size_in / size_out
    center = (np.arange(size_out) + 0.5) * scale
    first = np.maximum((center - scale / 2 + 0.5).astype(int), 0)
    last = np.minimum((center + scale / 2 + 0.5).astype(int), size_in)
    source = first + np.arange((last - first).max())[:, None]
    position = (source - center + 0.5) * (1 / scale)
    weight = ((position > -0.5) & (position <= 0.5) & (source < last)).astype(float)
    fixed = (weight * (1 / weight.sum(0)) * (1 << _FIXED_POINT_BITS) + 0.5).astype(np.int32)
    return torch.from_numpy(source.clip(max=size_in - 1)).to(device), torch.from_numpy(fixed).to(device)


@lru_cache(maxsize=64)
def _nearest(size_in: int, size_out: int, device: str) -> Tensor:
    """int64 (size_out,): the input pixel under each output pixel's centre."""
    return torch.from_numpy(((np.arange(size_out) + 0.5) * (size_in / size_out)).astype(np.int64)).to(device)


def jpeg_compression(images: Tensor, quality: int) -> Tensor:
    """Saved as JPEG of this ``quality`` (libjpeg scale, 4:2:0) and read back, by Pillow, one image at a time on the CPU."""
    decoded_BHW3 = np.empty((images.shape[0], *images.shape[2:], 3), dtype=np.uint8)
    for image_HW3, out_HW3 in zip(images.permute(0, 2, 3, 1).contiguous().cpu().numpy(), decoded_BHW3, strict=True):
        with io.BytesIO() as file:
            Image.fromarray(image_HW3).save(file, "JPEG", quality=quality)
            out_HW3[:] = Image.open(file)
    return torch.from_numpy(decoded_BHW3).to(images.device).permute(0, 3, 1, 2).contiguous()
