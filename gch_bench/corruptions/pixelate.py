"""What both forms of pixelate share: Pillow's box filter for 8-bit images in fixed point, as in its Resample.c.

It says which pixels are added, and their weight.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np

FIXED_POINT_BITS = 22  # after the binary point of Pillow's weights


class Shrinking(NamedTuple):
    """The box filter from n pixels of a row or column down to m of them.

    New pixel i is (weight[i] * the sum of the ``taps[i]`` old pixels from first[i] on, plus a half) >> FIXED_POINT_BITS.
    """

    first: np.ndarray  # uint32 (m,)
    taps: np.ndarray  # uint32 (m,)
    weight: np.ndarray  # int32 (m,)


@lru_cache(maxsize=64)
def shrinking(size_in: int, size_out: int) -> Shrinking:
    """``size_out`` is at most ``size_in``."""
    scale = size_in / size_out
    center = (np.arange(size_out) + 0.5) * scale
    first = np.maximum((center - scale / 2 + 0.5).astype(int), 0)
    last = np.minimum((center + scale / 2 + 0.5).astype(int), size_in)
    source = first + np.arange((last - first).max())[:, None]
    position = (source - center + 0.5) * (1 / scale)
    taps = ((position > -0.5) & (position <= 0.5) & (source < last)).sum(0)  # the first one is always among them
    weight = ((1 / taps) * (1 << FIXED_POINT_BITS) + 0.5).astype(np.int32)
    return Shrinking(first.astype(np.uint32), taps.astype(np.uint32), weight)


@lru_cache(maxsize=64)
def nearest(size_in: int, size_out: int) -> np.ndarray:
    """uint32 (size_out,): the old pixel that lies under the centre of each new pixel. An enlarging box filter copies it."""
    return ((np.arange(size_out) + 0.5) * (size_in / size_out)).astype(np.uint32)


def shrunk_size(size: int, scale: float) -> int:
    """How many of ``size`` pixels are left."""
    return max(1, int(size * scale))
