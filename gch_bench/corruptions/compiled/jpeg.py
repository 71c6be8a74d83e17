"""JPEG compression and decompression of one image, with the same pixels as libjpeg-turbo bit by bit.

The entropy coding, which comes between the two and loses nothing, is left out. Everything is computed in whole numbers as in
libjpeg; see corruptions/jpeg.py for the sources. Blocks of 8 x 8 pixels are transformed many at a time, each in a lane of its
own of the arrays, so that the processor's vectors can be used.
"""

from functools import lru_cache

import numpy as np

from gch_bench.corruptions.compiled.jit import inline, jit
from gch_bench.corruptions.jpeg import (
    BLUE_OF_CHROMA,
    BLUE_OF_RGB,
    CHROMA,
    EVEN,
    FORWARD_COLUMNS_BITS,
    FORWARD_ROWS_BITS,
    GREEN_OF_CHROMA,
    INVERSE_COLUMNS_BITS,
    INVERSE_ROWS_BITS,
    LUMA,
    LUMA_OF_RGB,
    ODD,
    RED_OF_CHROMA,
    RED_OF_RGB,
    quantisation,
)
from gch_bench.corruptions.shared import Shared

_LANES = 64  # blocks that are transformed together
_EVEN, _ODD = (tuple(tuple(np.int32(weight) for weight in row) for row in rows) for rows in (EVEN, ODD))
_EVEN_OF, _ODD_OF = (tuple(zip(*rows, strict=True)) for rows in (_EVEN, _ODD))  # weights of the frequencies, for samples 0..3


def jpeg_compression(image: Shared[np.ndarray], out: np.ndarray, level: int) -> None:
    """What Pillow reads after saving the image as JPEG of quality ``level``, 1..100."""
    luma, blue, red = image.once(_frequencies)
    steps, chroma_steps = _steps(LUMA, level), _steps(CHROMA, level)
    columns = -(-out.shape[2] // 16) * 16
    _to_rgb(
        _quantised(luma, *steps, columns),
        _quantised(blue, *chroma_steps, columns // 2),
        _quantised(red, *chroma_steps, columns // 2),
        out,
    )


@jit
def _frequencies(image):
    """The DCT of luma and of both differences: what all qualities have in common. See ``_transformed``."""
    luma, blue, red = _to_planes(image)
    return _transformed(luma), _transformed(blue), _transformed(red)


@lru_cache(maxsize=64)
def _steps(table: tuple[tuple[int, ...], ...], quality: int) -> tuple[np.ndarray, np.ndarray]:
    step, per_step = quantisation(table, quality)
    return step.ravel().astype(np.int32), per_step.ravel().astype(np.float32)


@jit
def _to_planes(image):
    """Luma (H, W), the blue and the red difference (h, w) of half the height and width: uint8, 128 above their values.

    The image is extended to the right and downwards by repeating its last column and row, so that all sides are multiples of 8.
    """
    height, width = image.shape[1:]
    columns, chroma_rows = -(-width // 16) * 16, (height + 1) // 2
    luma = np.empty((-(-height // 8) * 8, columns), np.uint8)
    blue = np.empty((-(-chroma_rows // 8) * 8, columns // 2), np.uint8)
    red = np.empty(blue.shape, np.uint8)
    blue_sum, red_sum = np.empty(columns, np.int16), np.empty(columns, np.int16)
    for y in range(2 * chroma_rows):
        row = min(y, height - 1)
        _mix(image[0, row], image[1, row], image[2, row], luma[y], blue_sum, red_sum, y % 2)
        if y % 2:
            _halve(blue_sum, blue[y // 2])
            _halve(red_sum, red[y // 2])
    _repeat_last(luma, 2 * chroma_rows)
    _repeat_last(blue, chroma_rows)
    _repeat_last(red, chroma_rows)
    return luma, blue, red


@jit
def _repeat_last(plane, rows):
    """Fill a plane, of which the first ``rows`` rows are known, with the last of these."""
    for y in range(rows, len(plane)):
        for x in range(plane.shape[1]):
            plane[y, x] = plane[rows - 1, x]


@inline
def _weighted(weights, red, green, blue):
    return np.int32(weights[0] + (128 << 16) + weights[1] * red + weights[2] * green + weights[3] * blue) >> 16


@jit
def _mix(red, green, blue, luma, blue_sum, red_sum, add):
    """Turn a row of pixels into luma and the differences; the latter are added to what is there if ``add`` is 1."""
    width = len(red)
    for x in range(width):
        luma[x] = _weighted(LUMA_OF_RGB, red[x], green[x], blue[x])
    for x in range(width):
        blue_sum[x] = np.int16(_weighted(BLUE_OF_RGB, red[x], green[x], blue[x])) + add * blue_sum[x]
    for x in range(width):
        red_sum[x] = np.int16(_weighted(RED_OF_RGB, red[x], green[x], blue[x])) + add * red_sum[x]
    for x in range(width, len(luma)):
        luma[x], blue_sum[x], red_sum[x] = luma[width - 1], blue_sum[width - 1], red_sum[width - 1]


@jit
def _halve(sums, halved):
    """The means of 2 x 2 pixels from the sums over 2 rows; halves are rounded down in even columns and up in odd ones."""
    for x in range(len(halved) // 2):
        halved[2 * x] = (sums[4 * x] + sums[4 * x + 1] + 1) >> 2
        halved[2 * x + 1] = (sums[4 * x + 2] + sums[4 * x + 3] + 2) >> 2


@jit
def _transformed(plane):
    """The DCT of a plane: int16 (N, 64 _LANES), where _LANES blocks of 8 x 8 pixels lie side by side in each row.

    The frequency (y, x) of a lane's block is at (8 y + x) _LANES + lane. It is 8 times as large as in the norm.
    """
    across = plane.shape[1] // 8
    blocks = across * (plane.shape[0] // 8)
    frequencies = np.empty((-(-blocks // _LANES), 64 * _LANES), np.int16)
    values = np.zeros(64 * _LANES, np.int32)
    for first in range(0, blocks, _LANES):
        for lane in range(min(_LANES, blocks - first)):
            top, left = 8 * ((first + lane) // across), 8 * ((first + lane) % across)
            for place in range(64):
                values[place * _LANES + lane] = np.int32(plane[top + place // 8, left + place % 8]) - 128
        for y in range(8):
            _forward(values, 8 * y * _LANES, _LANES, FORWARD_ROWS_BITS)
        for x in range(8):
            _forward(values, x * _LANES, 8 * _LANES, FORWARD_COLUMNS_BITS)
        row = frequencies[first // _LANES]
        for i in range(len(values)):
            row[i] = np.int16(values[i])
    return frequencies


@jit
def _quantised(frequencies, step, per_step, columns):
    """Round the frequencies to multiples of the quantisation steps, and turn them back into a plane, uint8 (rows, ``columns``).

    The plane has rows for all lanes, also for those that hold no block.
    """
    across = columns // 8
    blocks = len(frequencies) * _LANES
    plane = np.empty((8 * -(-blocks // across), columns), np.uint8)
    values = np.empty(64 * _LANES, np.int32)
    levels = np.empty(64 * _LANES, np.uint8)
    for chunk in range(len(frequencies)):
        for place in range(64):
            first, last = place * _LANES, (place + 1) * _LANES
            _quantise(frequencies[chunk, first:last], step[place], per_step[place], values[first:last])
        for x in range(8):
            _inverse(values, x * _LANES, 8 * _LANES, INVERSE_COLUMNS_BITS)
        for y in range(8):
            _inverse(values, 8 * y * _LANES, _LANES, INVERSE_ROWS_BITS)
        for i in range(len(values)):
            levels[i] = np.uint8(min(max(values[i] + 128, 0), 255))
        for lane in range(_LANES):
            block = chunk * _LANES + lane
            top, left = 8 * (block // across), 8 * (block % across)
            for place in range(64):
                plane[top + place // 8, left + place % 8] = levels[place * _LANES + lane]
    return plane


@inline
def _dot(weights, a, b, c, d):
    return np.int32(weights[0] * a + weights[1] * b + weights[2] * c + weights[3] * d)


@inline
def _forward(values, first, step, bits):
    """DCT of 8 values, ``step`` apart, in each lane, in place. The sums are shifted to the right by ``bits``, rounded."""
    half = np.int32(1 << (bits - 1))
    for i in range(first, first + _LANES):
        a, b = np.int32(values[i] + values[i + 7 * step]), np.int32(values[i + step] + values[i + 6 * step])
        c, d = np.int32(values[i + 2 * step] + values[i + 5 * step]), np.int32(values[i + 3 * step] + values[i + 4 * step])
        e, f = np.int32(values[i] - values[i + 7 * step]), np.int32(values[i + step] - values[i + 6 * step])
        g, h = np.int32(values[i + 2 * step] - values[i + 5 * step]), np.int32(values[i + 3 * step] - values[i + 4 * step])
        values[i] = np.int32(_dot(_EVEN[0], a, b, c, d) + half) >> bits
        values[i + step] = np.int32(_dot(_ODD[0], e, f, g, h) + half) >> bits
        values[i + 2 * step] = np.int32(_dot(_EVEN[1], a, b, c, d) + half) >> bits
        values[i + 3 * step] = np.int32(_dot(_ODD[1], e, f, g, h) + half) >> bits
        values[i + 4 * step] = np.int32(_dot(_EVEN[2], a, b, c, d) + half) >> bits
        values[i + 5 * step] = np.int32(_dot(_ODD[2], e, f, g, h) + half) >> bits
        values[i + 6 * step] = np.int32(_dot(_EVEN[3], a, b, c, d) + half) >> bits
        values[i + 7 * step] = np.int32(_dot(_ODD[3], e, f, g, h) + half) >> bits


@jit
def _quantise(frequencies, step, per_step, out):
    """Round frequencies, which are 8 times too large, to multiples of ``step``."""
    for i in range(len(frequencies)):
        out[i] = np.int32(np.rint(np.float32(frequencies[i]) * per_step)) * step


@inline
def _inverse(values, first, step, bits):
    """Inverse DCT in place, as ``_forward``."""
    half = np.int32(1 << (bits - 1))
    for i in range(first, first + _LANES):
        a, b, c, d = values[i], values[i + 2 * step], values[i + 4 * step], values[i + 6 * step]
        e, f, g, h = values[i + step], values[i + 3 * step], values[i + 5 * step], values[i + 7 * step]
        even0, odd0 = np.int32(_dot(_EVEN_OF[0], a, b, c, d) + half), _dot(_ODD_OF[0], e, f, g, h)
        even1, odd1 = np.int32(_dot(_EVEN_OF[1], a, b, c, d) + half), _dot(_ODD_OF[1], e, f, g, h)
        even2, odd2 = np.int32(_dot(_EVEN_OF[2], a, b, c, d) + half), _dot(_ODD_OF[2], e, f, g, h)
        even3, odd3 = np.int32(_dot(_EVEN_OF[3], a, b, c, d) + half), _dot(_ODD_OF[3], e, f, g, h)
        values[i], values[i + 7 * step] = np.int32(even0 + odd0) >> bits, np.int32(even0 - odd0) >> bits
        values[i + step], values[i + 6 * step] = np.int32(even1 + odd1) >> bits, np.int32(even1 - odd1) >> bits
        values[i + 2 * step], values[i + 5 * step] = np.int32(even2 + odd2) >> bits, np.int32(even2 - odd2) >> bits
        values[i + 3 * step], values[i + 4 * step] = np.int32(even3 + odd3) >> bits, np.int32(even3 - odd3) >> bits


@jit
def _to_rgb(luma, blue, red, out):
    """Double the differences' height and width by a triangle filter, and turn them and luma into colours.

    A new pixel is 9/16 of the old pixel in which it lies, 3/16 of each of the two nearest neighbours beside and above or below
    it, and 1/16 of the nearest one across the corner; edges are repeated. In planes of 1 or 2 columns pixels are only repeated.
    """
    height, width = out.shape[1:]
    rows, columns = (height + 1) // 2, (width + 1) // 2
    sums = np.empty(columns + 2, np.int16)
    blue_row, red_row = np.empty(2 * columns, np.int16), np.empty(2 * columns, np.int16)
    for y in range(height):
        own = y // 2
        near = own if columns <= 2 else min(max(own - 1 + 2 * (y % 2), 0), rows - 1)
        _double(blue[own], blue[near], sums, blue_row)
        _double(red[own], red[near], sums, red_row)
        _add_colour(luma[y], blue_row, red_row, out[0, y], out[1, y], out[2, y])


@jit
def _double(own, near, sums, doubled):
    """A row of differences (-128..127) from the row in which it lies and the nearest other one."""
    columns = len(doubled) // 2
    for x in range(columns):
        sums[x + 1] = 3 * np.int16(own[x]) + np.int16(near[x]) - 512
    sums[0], sums[columns + 1] = sums[1], sums[columns]
    for x in range(columns):
        if columns <= 2:
            doubled[2 * x] = doubled[2 * x + 1] = sums[x + 1] >> 2
        else:
            doubled[2 * x] = (3 * sums[x + 1] + sums[x] + 8) >> 4
            doubled[2 * x + 1] = (3 * sums[x + 1] + sums[x + 2] + 7) >> 4


@inline
def _level(luma, weights, blue, red):
    level = luma + (np.int32(weights[0] * blue + weights[1] * red + 32768) >> 16)
    return np.uint8(min(max(level, 0), 255))


@jit
def _add_colour(luma, of_blue, of_red, red, green, blue):
    for x in range(len(red)):
        red[x] = _level(luma[x], RED_OF_CHROMA, of_blue[x], of_red[x])
    for x in range(len(red)):
        green[x] = _level(luma[x], GREEN_OF_CHROMA, of_blue[x], of_red[x])
    for x in range(len(red)):
        blue[x] = _level(luma[x], BLUE_OF_CHROMA, of_blue[x], of_red[x])
