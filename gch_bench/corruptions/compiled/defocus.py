"""Defocus blur. Source: hendrycks/robustness, make_imagenet_c.py.

The smoothed disk has up to 441 weights. It is, up to a few weights, a disk of ones that is convolved with Gaussian weights. So
the image is convolved with the disk of ones, by the prefix sums of its rows in whole numbers, and the result with the Gaussian
weights. The other weights, near the array's border where the reference reflects the disk, are added one by one.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from gch_bench.corruptions.compiled.filters import add_pairs, filled, truncate_row
from gch_bench.corruptions.compiled.jit import inline, jit
from gch_bench.corruptions.filters import border_pixels, smoothed_disk, weighted_sums
from gch_bench.corruptions.shared import Shared

REACH = 2  # how far the smoothing weights reach
NEGLIGIBLE = 2e-9  # a weight: all smaller ones together change a value by less than 1e-4 levels


class Parts(NamedTuple):
    """The disk for an image of one size, in the parts from which ``_defocus`` puts the blurred image together."""

    dtype: np.ndarray  # an empty array of the whole numbers that can hold the sum of all pixels below the ones
    ones: np.ndarray  # int64: row i and row -i of the disk of ones contain the columns from -ones[i] to ones[i]
    smoothing: np.ndarray  # float32 (3,): the smoothing weights at the offsets 0, 1, 2, as they are needed along the columns
    scale: np.float32  # the weight of each of the ones
    other_rows: np.ndarray  # int64: the other weights lie in these rows i of the disk, and in the rows -i
    starts: np.ndarray  # int64 (T,): where in the sums of these pairs of rows the places of the other weights start on the left
    ends: np.ndarray  # int64 (T,): and on the right
    weights: np.ndarray  # float32 (T,)
    margin: float  # what to add before truncation
    rows: np.ndarray  # int64: ``border_pixels`` along the columns
    columns: np.ndarray  # int64: and along the rows


def defocus_blur(image: Shared[np.ndarray], out: np.ndarray, level: tuple[float, float]) -> None:
    """Convolution with a disk whose edge is smoothed; level in pixels: (``radius`` of the disk, ``alias``, a Gaussian's sigma).

    The image is reflected about the centres of its edge pixels.
    """
    _defocus(image.pixels, _parts(*level, *out.shape[1:]), out)


@lru_cache(maxsize=64)
def _parts(radius: float, alias: float, height: int, width: int) -> Parts:
    disk = smoothed_disk(radius, alias)
    half = len(disk.inside) // 2
    border = half + REACH
    smoothing = np.pad(disk.smoothing.astype(float), REACH - len(disk.smoothing) // 2)
    scale = 1.0 / disk.inside.sum()
    smoothed = weighted_sums(weighted_sums(np.pad(disk.inside * scale, 2 * REACH), smoothing, 0), smoothing, 1)
    other = (np.pad(disk.kernel.astype(float), REACH) - smoothed)[border:, border:]
    i, j = np.nonzero(np.abs(other) > NEGLIGIBLE)
    other_rows, slot = np.unique(i, return_inverse=True)
    middle = slot * (width + 2 * border) + border
    # A place in row 0 or column 0 is its own mirror image and therefore taken twice.
    weights = filled(other[i, j] / (1.0 + (i == 0)) / (1.0 + (j == 0)))
    missing = (0, len(weights) - len(i))
    return Parts(
        dtype=np.empty(0, np.uint16 if 255 * disk.inside.sum() < 2**16 else np.int32),
        ones=disk.inside[half:, half:].sum(1)[disk.inside[half:, half]] - 1,
        smoothing=smoothing[REACH:].astype(np.float32),
        scale=np.float32(scale),
        other_rows=other_rows,
        starts=np.pad(middle - j, missing),
        ends=np.pad(middle + j, missing),
        weights=weights,
        margin=disk.margin,
        rows=border_pixels(height, border, "reflect"),
        columns=border_pixels(width, border, "reflect"),
    )


@jit
def _defocus(image, parts, out):
    count, height, width = image.shape
    border = (len(parts.rows) - height) // 2
    half = border - REACH
    mask = 1
    while mask < 2 * border + 1:
        mask *= 2
    pixels = np.empty((mask, width + 2 * border), np.float32)  # the last rows of the image: row i is in i & (mask - 1)
    prefix = np.zeros((mask, width + 2 * border + 1), parts.dtype.dtype)  # and the sums of each row's pixels before each place
    mask -= 1
    sums, row = np.empty(width + 2 * REACH, parts.dtype.dtype), np.empty(width, np.float32)
    smooth = np.empty((8, width), np.float32)  # the last rows that are convolved with the disk and smoothed along themselves
    pairs = np.zeros((max(1, len(parts.other_rows)), width + 2 * border), np.float32)
    for channel in range(count):
        ready = 0
        for y in range(-REACH, height + REACH):
            while ready < min(height, half + abs(y) + 1):
                _take_row(image[channel, ready], parts.columns, pixels[ready & mask], prefix[ready & mask])
                ready += 1
            _disk_row(prefix, parts, y + border, mask, half, sums)
            _smooth_row(sums, parts.smoothing, parts.scale, smooth[y & 7])
            if y >= REACH:
                _blurred_row(y - REACH, smooth, pixels, parts, mask, border, pairs, row)
                truncate_row(row, out[channel, y - REACH], parts.margin)


@inline
def _take_row(source, columns, pixels, prefix):
    """Fill ``pixels`` with a row and its border, and ``prefix`` with the sums of the pixels before each place."""
    first = (len(columns) - len(source)) // 2
    last = first + len(source)
    middle, sums = pixels[first:last], prefix[first + 1 : last + 1]
    for x in range(len(source)):
        middle[x] = source[x]
        sums[x] = source[x]
    for x in range(first):
        pixels[x] = prefix[x + 1] = source[columns[x]]
        pixels[last + x] = prefix[last + x + 1] = source[columns[last + x]]
    total = prefix[0]
    for x in range(1, len(prefix)):
        total += prefix[x]
        prefix[x] = total


@inline
def _disk_row(prefix, parts, y, mask, half, sums):
    """Row ``y``, counted from the border's first one, of the image convolved with the disk of ones."""
    n, rows = len(sums), parts.rows
    sums[:] = 0
    for i in range(len(parts.ones)):
        left, right = half - parts.ones[i], half + parts.ones[i] + 1
        above, below = prefix[rows[y - i] & mask], prefix[rows[y + i] & mask]
        start0, end0, start1, end1 = (
            above[left : left + n],
            above[right : right + n],
            below[left : left + n],
            below[right : right + n],
        )
        if i == 0:
            for x in range(n):
                sums[x] = end0[x] - start0[x]
        else:
            for x in range(n):
                sums[x] += (end0[x] - start0[x]) + (end1[x] - start1[x])


@inline
def _smooth_row(sums, smoothing, scale, out):
    """Convolve a row with the smoothing weights along itself."""
    n = len(out)
    a, b, c, d, e = sums[:n], sums[1 : n + 1], sums[2 : n + 2], sums[3 : n + 3], sums[4 : n + 4]
    w0, w1, w2 = smoothing[0] * scale, smoothing[1] * scale, smoothing[2] * scale
    for x in range(n):
        out[x] = w0 * np.float32(c[x]) + w1 * np.float32(b[x] + d[x]) + w2 * np.float32(a[x] + e[x])


@inline
def _blurred_row(y, smooth, pixels, parts, mask, border, pairs, out):
    """Row ``y`` of the blurred image: the rows around it smoothed along the columns, and the other weights."""
    a, b, c, d, e = smooth[(y - 2) & 7], smooth[(y - 1) & 7], smooth[y & 7], smooth[(y + 1) & 7], smooth[(y + 2) & 7]
    w0, w1, w2 = parts.smoothing
    for x in range(len(out)):
        out[x] = w0 * c[x] + w1 * (b[x] + d[x]) + w2 * (a[x] + e[x])
    rows = parts.rows
    for k in range(len(parts.other_rows)):
        i, pair = parts.other_rows[k], pairs[k]
        above, below = pixels[rows[y + border - i] & mask], pixels[rows[y + border + i] & mask]
        for x in range(len(pair)):
            pair[x] = above[x] + below[x]
    add_pairs(pairs.reshape(-1), parts.starts, parts.ends, parts.weights, 0, out)
