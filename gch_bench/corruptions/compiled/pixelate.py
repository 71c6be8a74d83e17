"""Pixelate one image."""

import numpy as np

from gch_bench.corruptions.compiled.jit import jit
from gch_bench.corruptions.pixelate import FIXED_POINT_BITS, nearest, shrinking, shrunk_size
from gch_bench.corruptions.shared import Shared

_HALF = np.int32(1 << (FIXED_POINT_BITS - 1))
_BITS = np.int32(FIXED_POINT_BITS)
_LANE = np.uint64(21)  # bits of each of the three sums that are computed together
_TWO_LANES = np.uint64(42)
_IN_LANE = np.uint64((1 << 21) - 1)


def pixelate(image: Shared[np.ndarray], out: np.ndarray, level: float) -> None:
    """Shrink each side to int(side * ``level``) pixels, at least 1, and enlarge it again, both with a box filter.

    The result equals Pillow's bit by bit, unless an image is over twice as tall as wide (Pillow 13 then takes the columns
    first).
    """
    height, width = image.pixels.shape[1:]
    rows, columns = shrunk_size(height, level), shrunk_size(width, level)
    _pixelate(
        *(image.pixels, out, shrinking(height, rows), shrinking(width, columns)),
        *(nearest(rows, height), nearest(columns, width)),
    )


@jit
def _pixelate(image, out, shrink_rows, shrink_columns, row_of, column_of):
    """As in Pillow, rows are shrunk first and rounded to 8 bits, and columns then."""
    height, width = image.shape[1:]
    first, taps, weight = shrink_columns
    packed = np.empty(width, np.uint64)  # one row of the three channels, so that three sums are computed by one addition
    sums = np.empty(len(first), np.uint64)
    total = np.empty((3, len(first)), np.int32)
    y = 0
    for row in range(len(shrink_rows.first)):
        total.fill(0)
        for source in range(shrink_rows.first[row], shrink_rows.first[row] + shrink_rows.taps[row]):
            red, green, blue = image[0, source], image[1, source], image[2, source]
            for x in range(width):
                packed[x] = (np.uint64(blue[x]) << _TWO_LANES) | (np.uint64(green[x]) << _LANE) | np.uint64(red[x])
            for x in range(len(sums)):
                sums[x] = packed[first[x]]
                for tap in range(1, taps[x]):
                    sums[x] += packed[first[x] + np.uint32(tap)]
            for channel in range(3):
                shift, of_channel = np.uint64(channel) * _LANE, total[channel]
                for x in range(len(sums)):
                    added = np.int32((sums[x] >> shift) & _IN_LANE)
                    of_channel[x] += (added * weight[x] + _HALF) >> _BITS
        top = y
        while y < height and row_of[y] == row:
            y += 1
        for channel in range(3):
            of_channel, enlarged = total[channel], out[channel, top]
            for x in range(len(of_channel)):
                of_channel[x] = (of_channel[x] * shrink_rows.weight[row] + _HALF) >> _BITS
            for x in range(width):
                enlarged[x] = of_channel[column_of[x]]
            for copy in range(top + 1, y):
                for x in range(width):
                    out[channel, copy, x] = enlarged[x]
