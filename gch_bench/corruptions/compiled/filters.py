"""Weighted sums of shifted rows, and the filters made of them: the Gaussian, and motion blur.

A filter's output row is the sum of rows of its input, each shifted and times a weight. The rows are slices of one flat buffer,
which are given by their first places. Four are added at a time, so that the sum is seldom loaded and stored.

Shapes: H x W pixels, T taps, of which there are a multiple of four.
"""

from functools import lru_cache

import numpy as np

from gch_bench.corruptions.compiled.jit import inline, jit
from gch_bench.corruptions.filters import TIE_MARGIN, border_pixels, gaussian_weights, motion_taps

TOGETHER = 4  # how many taps are added at a time


@jit
def truncate_row(row, out, margin=TIE_MARGIN):
    """Add ``margin``, clip to 0..255 and drop the fractions: float32 (W,) into uint8 (W,)."""
    low, high, margin = np.float32(0), np.float32(255), np.float32(margin)
    for x in range(len(row)):
        out[x] = np.uint8(np.int32(min(max(row[x] + margin, low), high)))


@jit
def weighted_sum(buffer, starts, weights, out):
    """out[x] = sum over the taps of weights[t] * buffer[starts[t] + x]; float32, ``starts`` int64 (T,)."""
    n = len(out)
    out[:] = 0
    for t in range(0, len(weights), TOGETHER):
        a, b, c, d = starts[t], starts[t + 1], starts[t + 2], starts[t + 3]
        row0, row1, row2, row3 = buffer[a : a + n], buffer[b : b + n], buffer[c : c + n], buffer[d : d + n]
        w0, w1, w2, w3 = weights[t], weights[t + 1], weights[t + 2], weights[t + 3]
        for x in range(n):
            out[x] += (w0 * row0[x] + w1 * row1[x]) + (w2 * row2[x] + w3 * row3[x])


@inline
def add_pairs(buffer, starts, ends, weights, first_tap, out):
    """out[x] += sum over the taps from ``first_tap`` on of weights[t] * (buffer[starts[t] + x] + buffer[ends[t] + x])."""
    n = len(out)
    for t in range(first_tap, len(weights), TOGETHER):
        a, b, c, d = starts[t], starts[t + 1], starts[t + 2], starts[t + 3]
        row0, row1, row2, row3 = buffer[a : a + n], buffer[b : b + n], buffer[c : c + n], buffer[d : d + n]
        a, b, c, d = ends[t], ends[t + 1], ends[t + 2], ends[t + 3]
        end0, end1, end2, end3 = buffer[a : a + n], buffer[b : b + n], buffer[c : c + n], buffer[d : d + n]
        w0, w1, w2, w3 = weights[t], weights[t + 1], weights[t + 2], weights[t + 3]
        for x in range(n):
            first = w0 * (row0[x] + end0[x]) + w1 * (row1[x] + end1[x])
            second = w2 * (row2[x] + end2[x]) + w3 * (row3[x] + end3[x])
            out[x] += first + second


@jit
def symmetric_sum(buffer, middle, starts, ends, weights, out):
    """out[x] = weights[0] * buffer[middle + x] plus the sum of ``add_pairs`` over the taps 1, 2, ..."""
    row, weight = buffer[middle : middle + len(out)], weights[0]
    for x in range(len(out)):
        out[x] = weight * row[x]
    add_pairs(buffer, starts, ends, weights, 1, out)


def filled(weights: np.ndarray) -> np.ndarray:
    """The weights, float32, with zeros up to a multiple of TOGETHER."""
    return np.pad(weights, (0, -len(weights) % TOGETHER)).astype(np.float32)


# ---- the Gaussian ----


def gaussian_filter(field: np.ndarray, sigma: float, border: str = "edge", cut: float = 4.0) -> np.ndarray:
    """Filter a field (H, W), float32, with a Gaussian; returns another one.

    Args:
        sigma: standard deviation in pixels.
        border: how the field continues outside, a mode of numpy.pad.
        cut: where the Gaussian ends, in units of ``sigma``.
    """
    out = np.empty_like(field)
    _filter(field, *gaussian_taps(*field.shape, sigma, border, cut), out, np.empty((0, field.shape[1]), np.uint8))
    return out


@lru_cache(maxsize=64)
def gaussian_taps(
    height: int, width: int, sigma: float, border: str = "edge", cut: float = 4.0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The filter's weights at the offsets 0, 1, 2, ..., float32, and ``border_pixels`` for so many offsets along the columns
    and along the rows, int64."""
    weights = gaussian_weights(sigma, cut)
    weights = np.append(weights[:1].astype(np.float32), filled(weights[1:]))
    rows, columns = (border_pixels(n, len(weights) - 1, border) for n in (height, width))
    return weights, rows, columns


@jit
def _filter_along(source, columns, starts, ends, weights, padded, out):
    """Filter a row of pixels along itself. ``padded``, float32, is overwritten with the row and its border."""
    first = (len(padded) - len(source)) // 2
    middle, last = padded[first : first + len(source)], first + len(source)
    for x in range(len(source)):
        middle[x] = source[x]
    for x in range(first):
        padded[x] = source[columns[x]]
        padded[last + x] = source[columns[last + x]]
    symmetric_sum(padded, first, starts, ends, weights, out)


@jit
def _filter(field, weights, rows, columns, out, levels):
    """Filter a field (H, W) with ``gaussian_taps``. Row y of the result is row y % len(``out``) of ``out``, float32, and it is
    also truncated into row y of ``levels``, uint8, which may have no rows."""
    height, width = field.shape
    radius = len(weights) - 1
    mask = 1
    while mask < 2 * radius + 1:
        mask *= 2
    known = np.empty((mask, width), np.float32)  # the last rows that were filtered along themselves: row i is in i & (mask - 1)
    mask, ready = mask - 1, 0
    padded, offset = np.empty(width + 2 * radius, np.float32), np.arange(radius + 1)
    left, right = radius - offset, radius + offset
    above, below = np.empty_like(offset), np.empty_like(offset)
    for y in range(height):
        while ready < min(height, y + radius + 1):
            _filter_along(field[ready], columns, left, right, weights, padded, known[ready & mask])
            ready += 1
        for k in range(radius + 1):
            above[k] = (rows[y + radius - k] & mask) * width
            below[k] = (rows[y + radius + k] & mask) * width
        row = out[y % len(out)]
        symmetric_sum(known.reshape(-1), above[0], above, below, weights, row)
        if len(levels):
            truncate_row(row, levels[y])


@jit
def filter_image(image, weights, rows, columns, out):
    """Filter uint8 (C, H, W) with ``gaussian_taps`` into uint8 ``out``, truncated to whole levels."""
    row = np.empty((1, image.shape[2]), np.float32)
    for channel in range(len(image)):
        _filter(image[channel], weights, rows, columns, row, out[channel])


# ---- motion blur ----


def motion_blur_at(image: np.ndarray, radius: float, sigma: float, angle: float, out: np.ndarray) -> None:
    """ImageMagick's motion blur at ``angle`` degrees, truncated: uint8 (C, H, W) into uint8 ``out``. See ``motion_taps``."""
    rows, columns, weights = motion_taps(radius, sigma, angle)
    _motion_blur(image, rows, columns, filled(weights), out)


@jit
def _motion_blur(image, rows, columns, weights, out):
    count, height, width = image.shape
    top, left = max(0, -rows.min()), max(0, -columns.min())
    right, bottom = max(0, columns.max()), max(0, rows.max())
    row, place = np.empty(width, np.float32), np.zeros(len(weights), np.int64)
    padded = np.empty((top + height + bottom, left + width + right), np.float32)
    stride = padded.shape[1]
    for channel in range(count):
        for i in range(len(padded)):
            source, line = image[channel, min(max(i - top, 0), height - 1)], padded[i]
            line[:left] = source[0]
            line[left + width :] = source[width - 1]
            middle = line[left : left + width]
            for x in range(width):
                middle[x] = source[x]
        for y in range(height):
            place[: len(rows)] = (y + top + rows) * stride + left + columns
            weighted_sum(padded.reshape(-1), place, weights, row)
            truncate_row(row, out[channel, y])
