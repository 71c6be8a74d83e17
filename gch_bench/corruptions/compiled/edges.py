"""OpenCV's Canny edges, chamfer distance and histogram equalisation, in whole numbers and for one image.

Shapes: an image of H x W pixels. A padded field has a margin of some pixels on each side.
"""

import numpy as np

from gch_bench.corruptions.compiled.jit import inline, jit
from gch_bench.corruptions.spatter import DIAGONAL, DISTANCE_UNIT, KNIGHT, REACH, STRAIGHT, TANGENT

FAR = REACH * DISTANCE_UNIT
MARGIN = 16  # of the lines in which steps are taken along a row
WEAK, STRONG = np.uint8(1), np.uint8(2)  # edges to Canny; all other pixels are 0


@jit
def canny(grey, low, high):
    """The edges of ``grey``, uint8 (H, W), bool (H, W), as cv2.Canny finds them with 3 x 3 Sobel filters and the L1 norm.

    A pixel is an edge if its gradient is the largest across the edge, and either exceeds ``high``, or exceeds ``low`` where
    edge pixels link it to such a pixel. Source: Canny, IEEE PAMI 1986.
    """
    width = grey.shape[1]
    kind, strong, count, weak = _peaks(grey, low, high)
    while count > 0 and weak > 0:
        count -= 1
        y, x = strong[count] // width, strong[count] % width
        for v in range(y, y + 3):
            for u in range(x, x + 3):
                if kind[v, u] == WEAK:
                    kind[v, u] = STRONG
                    weak -= 1
                    strong[count] = (v - 1) * width + u - 1
                    count += 1
    edges = np.empty(grey.shape, np.bool_)
    for y in range(len(grey)):
        row, own = kind[y + 1], edges[y]
        for x in range(width):
            own[x] = row[x + 1] == STRONG
    return edges


@jit
def _peaks(grey, low, high):
    """Where the gradient is the largest across the edge: uint8 (H + 2, W + 2), 0, WEAK or STRONG.

    Also returns the places of the STRONG pixels in a buffer, their number and the number of WEAK ones.
    """
    height, width = grey.shape
    kind = np.zeros((height + 2, width + 2), np.uint8)
    strong, count, weak = np.empty(height * width, np.int32), 0, 0
    magnitude = _gradients(grey)
    for y in range(height):
        above, row, below = magnitude[y], magnitude[y + 1], magnitude[y + 2]
        for x in range(width):
            here = row[x + 1]
            if here <= low:
                continue  # as most are
            gx, gy = _gradient(grey, y, x)
            down, tangent = abs(gy) << 15, abs(gx) * TANGENT
            if down < tangent:
                peak = here > row[x] and here >= row[x + 2]
            elif down > tangent + (abs(gx) << 16):
                peak = here > above[x + 1] and here >= below[x + 1]
            elif (gx < 0) == (gy < 0):
                peak = here > above[x] and here > below[x + 2]
            else:
                peak = here > above[x + 2] and here > below[x]
            if peak:
                if here > high:
                    kind[y + 1, x + 1] = STRONG
                    strong[count] = y * width + x
                    count += 1
                else:
                    kind[y + 1, x + 1] = WEAK
                    weak += 1
    return kind, strong, count, weak


@jit
def _gradients(grey):
    """The L1 norm of the gradient at each pixel, int16 (H + 2, W + 2), with a margin of zeros."""
    height, width = grey.shape
    out = np.zeros((height + 2, width + 2), np.int16)
    across, down = np.empty(width + 2, np.int16), np.empty(width + 2, np.int16)
    for y in range(height):
        above, row, below = grey[max(y - 1, 0)], grey[y], grey[min(y + 1, height - 1)]
        for x in range(width):
            a, b, c = np.int16(above[x]), np.int16(row[x]), np.int16(below[x])
            across[x + 1], down[x + 1] = np.int16(a + c + np.int16(2) * b), np.int16(c - a)
        across[0], across[width + 1], down[0], down[width + 1] = across[1], across[width], down[1], down[width]
        norm = out[y + 1]
        for x in range(width):
            gx = np.int16(across[x + 2] - across[x])
            gy = np.int16(down[x] + down[x + 2] + np.int16(2) * down[x + 1])
            norm[x + 1] = np.int16(max(gx, np.int16(-gx)) + max(gy, np.int16(-gy)))
    return out


@jit
def _gradient(grey, y, x):
    """The Sobel gradient at one pixel, int64 (across, down); the edge pixels are repeated outwards."""
    height, width = grey.shape
    top, bottom, left, right = max(y - 1, 0), min(y + 1, height - 1), max(x - 1, 0), min(x + 1, width - 1)
    a, b, c, d = (
        np.int64(grey[top, left]),
        np.int64(grey[top, right]),
        np.int64(grey[bottom, left]),
        np.int64(grey[bottom, right]),
    )
    gx = b + d - a - c + 2 * (np.int64(grey[y, right]) - np.int64(grey[y, left]))
    gy = c + d - a - b + 2 * (np.int64(grey[bottom, x]) - np.int64(grey[top, x]))
    return gx, gy


@jit
def distance_to_edges(edges):
    """The chamfer distance to the nearest edge, as cv2.distanceTransform with a 5 x 5 mask computes it, from bool (H, W).

    A forward scan takes the steps from the left and from the rows above, a backward scan the opposite ones.
    Source: Borgefors, CVGIP 1986.

    Returns:
        int16 (H + 4, W + 4), with a margin of 2: DISTANCE_UNIT times the distance in pixels, which is cut off at REACH.
    """
    height, width = edges.shape
    field = np.full((height + 4, width + 4), FAR, np.int16)
    lines = np.full((2, width + 2 * MARGIN), FAR, np.int16)
    for y in range(height):
        own, row = edges[y], field[y + 2]
        for x in range(width):
            row[x + 2] = np.int16(FAR) * np.int16(1 - own[x])
        _take_steps(field[y + 2], field[y + 1], field[y], lines, -1)
    for y in range(height - 1, -1, -1):
        _take_steps(field[y + 2], field[y + 3], field[y + 4], lines, 1)
    return field


@inline
def _smaller(a, b):
    return a if a < b else b


@jit
def _take_steps(row, near, far, lines, side):
    """Shorten the distances in ``row`` by steps from the next row, the next but one, and from pixels on one side.

    Along the row, 1, 2, 4, ... steps are taken at a time, which reaches far enough.
    """
    width = len(row) - 4
    here, there = lines[0], lines[1]
    line = here[MARGIN : MARGIN + width]
    for x in range(width):
        diagonal, knight = _smaller(near[x + 1], near[x + 3]), _smaller(near[x], near[x + 4])
        knight = _smaller(knight, _smaller(far[x + 1], far[x + 3]))
        above = _smaller(np.int16(diagonal + DIAGONAL), np.int16(knight + KNIGHT))
        above = _smaller(above, np.int16(near[x + 2] + STRAIGHT))
        line[x] = _smaller(row[x + 2], above)
    for doublings in range(5):
        start, cost = MARGIN + (side << doublings), np.int16(STRAIGHT << doublings)
        line, beside, out = here[MARGIN : MARGIN + width], here[start : start + width], there[MARGIN : MARGIN + width]
        for x in range(width):
            out[x] = _smaller(line[x], np.int16(beside[x] + cost))
        here, there = there, here
    line = here[MARGIN : MARGIN + width]
    for x in range(width):
        row[x + 2] = line[x]


@jit
def equalize(values, levels):
    """Equalise the histogram of uint8 values (H, W) in 0..levels - 1 as cv2.equalizeHist does: uint8 (H, W)."""
    height, width = values.shape
    count, table = np.zeros((4, levels), np.int64), np.empty(levels, np.uint8)
    for y in range(height):
        row = values[y]
        for x in range(width):
            count[x & 3, row[x]] += 1  # in four parts, so that the processor seldom waits for the last sum
    first, below, scale = -1, 0, np.float32(0)  # the lowest value that occurs; how many pixels have values up to this one
    for value in range(levels):
        here = count[0, value] + count[1, value] + count[2, value] + count[3, value]
        if first >= 0:
            below += here
        elif here > 0:
            first = value
            rest = height * width - here
            # An image with one value only stays as it is.
            below, scale = (0, np.float32(255) / np.float32(rest)) if rest > 0 else (value, np.float32(1))
        table[value] = np.uint8(np.rint(np.float32(below) * scale))
    out = np.empty_like(values)
    for y in range(height):
        row, equal = values[y], out[y]
        for x in range(width):
            equal[x] = table[row[x]]
    return out
