"""Spatter: water or mud on the lens. See corruptions/spatter.py.

Shapes: an image of H x W pixels. A padded field has a margin of some pixels on each side, into which the pixels are reflected
about the centres of the edge pixels.
"""

import numpy as np

from gch_bench.corruptions.compiled.draws import normal
from gch_bench.corruptions.compiled.edges import canny, distance_to_edges, equalize
from gch_bench.corruptions.compiled.filters import gaussian_filter
from gch_bench.corruptions.compiled.jit import jit
from gch_bench.corruptions.filters import TIE_MARGIN
from gch_bench.corruptions.shared import Shared
from gch_bench.corruptions.spatter import (
    DISTANCE_UNIT,
    EDGE,
    EMBOSS,
    LAYER,
    LEAST_COVER,
    MUD,
    REACH,
    WATER,
    WEAK_EDGE,
)


def spatter(image: Shared[np.ndarray], out: np.ndarray, level: tuple[float, ...], key: int) -> None:
    """Drops of water or mud wherever a smooth random layer exceeds a threshold.

    Level: (``mean`` and ``sd`` of the layer's normal draws, ``sigma`` in pixels of the Gaussian that makes it smooth, the
    ``threshold``, the ``strength`` of water or, of mud, the sigma in pixels of a second blur, ``mud``: 0 for water, 1 for mud).
    """
    mean, sd, sigma, threshold, strength, mud = level
    height, width = out.shape[1:]
    z = gaussian_filter(normal(key, LAYER, height * width).reshape(height, width), sigma)
    layer = (z, np.float32(mean), np.float32(sd), np.float32(threshold))
    if mud:
        _mud(image.pixels, out, gaussian_filter(_drops(*layer), strength))
    else:
        liquid = _liquid(*layer)
        relief = _relief(equalize(_mean_distance(distance_to_edges(canny(liquid, WEAK_EDGE, EDGE))), REACH + 1))
        _water(image.pixels, out, liquid, relief, np.float32(strength))


@jit
def _drops(z, mean, sd, threshold):
    """1 where the layer mean + sd * z exceeds the threshold, 0 elsewhere: float32 (H, W)."""
    out = np.empty_like(z)
    for y in range(z.shape[0]):
        row, drops = z[y], out[y]
        for x in range(z.shape[1]):
            drops[x] = np.float32(row[x] * sd + mean > threshold)
    return out


@jit
def _mud(image, out, cover):
    """Blend brown into the image where it covers enough of a pixel."""
    for channel in range(3):
        brown = np.float32(MUD[channel])
        for y in range(cover.shape[0]):
            pixels, row, mud = image[channel, y], out[channel, y], cover[y]
            for x in range(cover.shape[1]):
                share = mud[x] if mud[x] >= np.float32(LEAST_COVER) else np.float32(0)
                clean = np.float32(pixels[x])
                row[x] = np.uint8(clean + share * (brown - clean) + np.float32(TIE_MARGIN))


@jit
def _liquid(z, mean, sd, threshold):
    """The layer mean + sd * z in grey levels where it reaches the threshold, 0 elsewhere: uint8 (H, W)."""
    out = np.empty(z.shape, np.uint8)
    for y in range(z.shape[0]):
        row, liquid = z[y], out[y]
        for x in range(z.shape[1]):
            layer = row[x] * sd + mean
            grey = np.uint8(np.int16(layer * np.float32(255)))  # a layer above 1 wraps around, as in the reference
            liquid[x] = grey if layer >= threshold else np.uint8(0)
    return out


@jit
def _water(image, out, liquid, relief, strength):
    """Add turquoise in proportion to the layer of water times a relief, uint8 (H, W)."""
    height, width = liquid.shape
    amount, most = np.empty((height, width), np.uint16), np.uint16(1)
    for y in range(height):
        row, water, drops = amount[y], relief[y], liquid[y]
        for x in range(width):
            row[x] = np.uint16(np.uint16(water[x]) * np.uint16(drops[x]))
            most = row[x] if row[x] > most else most
    scale = strength / np.float32(most)
    for channel in range(3):
        colour = np.float32(WATER[channel])
        for y in range(height):
            pixels, row, water = image[channel, y], out[channel, y], amount[y]
            for x in range(width):
                value = np.float32(pixels[x]) + np.float32(water[x]) * scale * colour
                row[x] = np.uint8(value if value < np.float32(255) else np.float32(255))


@jit
def _mean_distance(distance):
    """The mean over 3 x 3 pixels of a field of distances with a margin of 2, in whole pixels: uint8 (H, W)."""
    out = np.empty((distance.shape[0] - 4, distance.shape[1] - 4), np.uint8)
    _reflect(distance, 2)
    for y in range(len(out)):
        _box(distance[y + 1, 1:], distance[y + 2, 1:], distance[y + 3, 1:], 0, 9 * DISTANCE_UNIT, out[y])
    return out


@jit
def _relief(levels):
    """``levels``, uint8 (H, W), embossed and smoothed by the mean over 3 x 3 pixels, rounded to whole levels: uint8 (H, W)."""
    height, width = levels.shape
    field, embossed = np.empty((height + 2, width + 2), np.int16), np.empty((height + 2, width + 2), np.int16)
    for y in range(height):
        row, own = levels[y], field[y + 1]
        for x in range(width):
            own[x + 1] = row[x]
    _reflect(field, 1)
    for y in range(height):
        _emboss(field[y], field[y + 1], field[y + 2], embossed[y + 1])
    _reflect(embossed, 1)
    out = np.empty_like(levels)
    for y in range(height):
        _box(embossed[y], embossed[y + 1], embossed[y + 2], 4, 9, out[y])
    return out


@jit
def _reflect(field, margin):
    """Fill the innermost pixels of a field's margin. A single row or column has nothing to reflect and is repeated."""
    height, width = field.shape
    inwards = 1 if width > 2 * margin + 1 else 0
    for y in range(margin, height - margin):
        field[y, margin - 1] = field[y, margin + inwards]
        field[y, width - margin] = field[y, width - margin - 1 - inwards]
    inwards = 1 if height > 2 * margin + 1 else 0
    for x in range(margin - 1, width - margin + 1):
        field[margin - 1, x] = field[margin + inwards, x]
        field[height - margin, x] = field[height - margin - 1 - inwards, x]


@jit
def _box(above, here, below, added, divisor, out):
    """(the sum over the 3 x 3 pixels around each pixel + added) // divisor; three rows with a margin of 1, uint8 (W,).

    float32 holds such sums exactly and the quotient of two of them is never rounded up to a whole number.
    """
    for x in range(len(out)):
        left = np.int32(above[x]) + np.int32(here[x]) + np.int32(below[x])
        middle = np.int32(above[x + 1]) + np.int32(here[x + 1]) + np.int32(below[x + 1])
        right = np.int32(above[x + 2]) + np.int32(here[x + 2]) + np.int32(below[x + 2])
        out[x] = np.uint8(np.int32(np.float32(np.int32(left + middle + right + added)) / np.float32(divisor)))


@jit
def _emboss(above, here, below, out):
    """The sum of the 3 x 3 pixels around each pixel times EMBOSS, clipped to 0..255; rows with a margin of 1, int16."""
    rows, line = (above, here, below), out[1:-1]
    line[:] = 0
    for i in range(3):
        for j in range(3):
            pixels, weight = rows[i][j : j + len(line)], np.int16(EMBOSS[i, j])
            if weight != 0:
                for x in range(len(line)):
                    line[x] += np.int16(weight * pixels[x])
    for x in range(len(line)):
        positive = line[x] if line[x] > 0 else np.int16(0)
        line[x] = positive if positive < 255 else np.int16(255)
