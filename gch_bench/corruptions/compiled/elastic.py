"""Elastic transform. Source: hendrycks/robustness, make_imagenet_c.py.

The three channels of a pixel are packed into one word of 64 bits, 21 bits each in units of 2**-13 grey levels, because reading
pixels at scattered places takes most of the time. Whole levels are exact, and others are off by up to 6e-5 levels.
"""

import numpy as np

from gch_bench.corruptions.compiled.draws import signed, uniform
from gch_bench.corruptions.compiled.jit import inline, jit
from gch_bench.corruptions.compiled.moves import smooth
from gch_bench.corruptions.elastic import MOVES_X, MOVES_Y, SHIFTS, affine_map
from gch_bench.corruptions.filters import TIE_MARGIN
from gch_bench.corruptions.shared import Shared

BITS = 21
MASK = np.uint64(2**BITS - 1)
UNITS, UNIT = np.float32(2**13), np.float32(2**-13)  # units in a grey level, and the reverse
ZERO, HALF, MARGIN = np.float32(0), np.float32(0.5), np.float32(TIE_MARGIN)


def elastic_transform(image: Shared[np.ndarray], out: np.ndarray, level: tuple[float, float, float], key: int) -> None:
    """A random affine map, then a smooth random displacement; level in pixels: (``alpha``, ``sigma``, ``affine``).

    Three points around the middle move by U(-affine, affine) in each direction, which determines the affine map. Then each
    pixel moves in each direction by alpha times a field of U(-1, 1) draws that is blurred with ``sigma``. Both steps sample
    bilinearly; the first reflects the image about the centres of its edge pixels, the second about their outer sides.
    """
    alpha, sigma, affine = level
    height, width = size = out.shape[1:]
    coefficients = np.array(affine_map(uniform(key, SHIFTS, 6).tolist(), affine, height, width), np.float32)
    if alpha > 0:
        draws = (signed(key, stream, height * width).reshape(size) for stream in (MOVES_X, MOVES_Y))
        dx, dy = (smooth(field, sigma) for field in draws)
    else:
        dx = dy = np.zeros(size, np.float32)
    _move(_mapped(_packed(image.pixels), coefficients, height, width), dx, dy, np.float32(alpha), out)


@jit
def _packed(image):
    """uint8 (3, H, W) -> uint64 (H W,)."""
    red, green, blue = image[0].reshape(-1), image[1].reshape(-1), image[2].reshape(-1)
    out = np.empty(len(red), np.uint64)
    unit = np.uint64(UNITS)
    for i in range(len(red)):
        packed = np.uint64(red[i]) | np.uint64(green[i]) << np.uint64(BITS) | np.uint64(blue[i]) << np.uint64(2 * BITS)
        out[i] = packed * unit  # a grey level times 2**13 fits into its 21 bits
    return out


@jit
def _mapped(packed, coefficients, height, width):
    """The image after the affine map, packed: uint64 (H W,)."""
    xx, xy, x0, yx, yy, y0 = coefficients
    x_row, y_row, values = np.empty(width, np.float32), np.empty(width, np.float32), np.empty((3, width), np.float32)
    buffers = _buffers(width)
    out = np.zeros_like(packed)
    for y in range(height):
        for x in range(width):
            x_row[x] = np.float32(x) * xx + np.float32(y) * xy + x0
            y_row[x] = np.float32(x) * yx + np.float32(y) * yy + y0
        _sample(packed, x_row, y_row, height, ZERO, buffers, values)
        row = out[y * width : (y + 1) * width]
        for channel in range(3):
            shift, units = np.uint64(channel * BITS), values[channel]
            for x in range(width):
                row[x] |= np.uint64(np.int32(units[x] + HALF)) << shift
    return out


@jit
def _move(packed, dx, dy, alpha, out):
    """Sample where the pixels have moved by alpha times ``dx`` and ``dy``, float32 (H, W)."""
    channels, height, width = out.shape
    x_row, y_row, values = np.empty(width, np.float32), np.empty(width, np.float32), np.empty((3, width), np.float32)
    buffers = _buffers(width)
    for y in range(height):
        dx_row, dy_row = dx[y], dy[y]
        for x in range(width):
            x_row[x] = dx_row[x] * alpha + np.float32(x)
            y_row[x] = dy_row[x] * alpha + np.float32(y)
        _sample(packed, x_row, y_row, height, HALF, buffers, values)
        for c in range(channels):
            units, out_row = values[c], out[c, y]
            for x in range(width):
                out_row[x] = np.uint8(np.int32(units[x] * UNIT + MARGIN))


@jit
def _buffers(width):
    """Memory that ``_sample`` uses at every row."""
    a, b = np.empty(width, np.uint64), np.empty(width, np.uint64)
    c, d = np.empty(width, np.uint64), np.empty(width, np.uint64)
    return np.empty(width, np.uint32), np.empty(width, np.float32), np.empty(width, np.float32), a, b, c, d


@jit
def _sample(packed, x_row, y_row, height, edge, buffers, values):
    """Bilinear values, float32 (3, W), of a packed image at the places (x, y), in units of 2**-13 levels.

    The image is reflected at ``edge`` pixels outside the centres of its edge pixels.
    """
    place, part_x, part_y, a, b, c, d = buffers
    width = len(x_row)
    # In an image of one row or column the next pixel, whose weight is 0, is the same one.
    right, below = np.uint32(min(1, width - 1)), np.uint32(min(1, height - 1) * width)
    last_x, last_y = np.int32(max(0, width - 2)), np.int32(max(0, height - 2))
    for x in range(width):
        u, v = _reflected(x_row[x], edge, width), _reflected(y_row[x], edge, height)
        i, j = max(np.int32(0), min(np.int32(u), last_x)), max(np.int32(0), min(np.int32(v), last_y))
        place[x] = np.uint32(j * np.int32(width) + i)
        part_x[x], part_y[x] = u - np.float32(i), v - np.float32(j)
    for x in range(width):
        first = place[x]
        a[x], b[x], c[x], d[x] = packed[first], packed[first + right], packed[first + below], packed[first + below + right]
    for channel in range(3):
        shift, row = np.uint64(channel * BITS), values[channel]
        for x in range(width):
            upper = _between(_channel(a[x], shift), _channel(b[x], shift), part_x[x])
            lower = _between(_channel(c[x], shift), _channel(d[x], shift), part_x[x])
            row[x] = _between(upper, lower, part_y[x])


@inline
def _reflected(place, edge, n):
    """A place along an axis of ``n`` pixels, reflected into it and moved to the nearest pixel's centre, if outside of these."""
    last = np.float32(n - 1)
    period = max(np.float32(2) * (last + np.float32(2) * edge), np.float32(1))
    folded = abs(place + edge)
    folded -= np.floor(folded / period) * period
    return max(min(min(folded, period - folded) - edge, last), ZERO)


@inline
def _channel(word, shift):
    return np.float32(np.int32((word >> shift) & MASK))


@inline
def _between(low, high, part):
    return low + (high - low) * part
