"""Pixelate. To be converted."""

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

_FIXED_POINT_BITS = 22  # after the binary point of Pillow's weights for resampling 8-bit images


def pixelate(images: Tensor, scale: float) -> Tensor:
    """Shrink each side to int(side * ``scale``) pixels, at least 1, and enlarge it again, both with a box filter.

    The result equals Pillow's bit by bit, unless an image is over twice as tall as wide (Pillow 13 then takes the columns
    first). Enlarging by a box filter copies the nearest pixel.
    """
    height, width = images.shape[2:]
    # As in Pillow: first along the rows, with rounding to 8 bits, then along the columns. Shrinking the number of rows is
    # quicker than that of columns, so the image is transposed for the first step.
    shrunk = _box_shrink_rows(images.transpose(2, 3).contiguous(), max(1, int(width * scale)))
    shrunk = _box_shrink_rows(shrunk.transpose(2, 3).contiguous(), max(1, int(height * scale)))
    rows = _nearest(shrunk.shape[2], height, str(images.device))
    columns = _nearest(shrunk.shape[3], width, str(images.device))
    return shrunk.gather(3, columns.expand(*shrunk.shape[:3], -1)).index_select(2, rows)


def _box_shrink_rows(images: Tensor, size: int) -> Tensor:
    """Box filter from H rows down to ``size`` rows, in Pillow's fixed point (int32).

    All input rows (taps) of an output row have the same weight, so they are added first, in int16, and multiplied once.
    """
    source, present, weight = _box_taps(images.shape[2], size, str(images.device))
    total = images.index_select(2, source[0]).to(torch.int16)
    for tap_source, tap_present in zip(source[1:], present[1:], strict=True):
        total.addcmul_(images.index_select(2, tap_source).to(torch.int16), tap_present)
    total = total.to(torch.int32).mul_(weight).add_(1 << (_FIXED_POINT_BITS - 1))
    return total.bitwise_right_shift_(_FIXED_POINT_BITS).to(torch.uint8)


@lru_cache(maxsize=64)
def _box_taps(size_in: int, size_out: int, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """The input rows (taps) of each output row, as in Pillow's Resample.c: at most 5 if an image shrinks to a quarter.

    Returns:
        source: int64 (taps, size_out), the input rows; the first tap of each output row is always present.
        present: int16 (taps, size_out, 1), 1 if the output row has this tap, else 0.
        weight: int32 (size_out, 1), 2**22 / number of taps of the output row.
    """
    scale = size_in / size_out
    center = (np.arange(size_out) + 0.5) * scale
    first = np.maximum((center - scale / 2 + 0.5).astype(int), 0)
    last = np.minimum((center + scale / 2 + 0.5).astype(int), size_in)
    source = first + np.arange((last - first).max())[:, None]
    position = (source - center + 0.5) * (1 / scale)
    present = (position > -0.5) & (position <= 0.5) & (source < last)
    weight = ((1 / present.sum(0)) * (1 << _FIXED_POINT_BITS) + 0.5).astype(np.int32)
    arrays = (source.clip(max=size_in - 1), present[..., None].astype(np.int16), weight[:, None])
    source, present, weight = (torch.from_numpy(array).to(device) for array in arrays)
    return source, present, weight


@lru_cache(maxsize=64)
def _nearest(size_in: int, size_out: int, device: str) -> Tensor:
    """int64 (size_out,): the input pixel that lies under the centre of each output pixel."""
    return torch.from_numpy(((np.arange(size_out) + 0.5) * (size_in / size_out)).astype(np.int64)).to(device)
