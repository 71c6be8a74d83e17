"""Gaussian blur, motion blur and glass blur. Source: hendrycks/robustness, make_imagenet_c.py."""

import numpy as np
from numba import uint8, uint32

from gch_bench.corruptions.compiled.draws import to_below, uniform, words
from gch_bench.corruptions.compiled.filters import filter_image, gaussian_taps, motion_blur_at
from gch_bench.corruptions.compiled.jit import jit
from gch_bench.corruptions.filters import ANGLE, ANGLES
from gch_bench.corruptions.shared import Shared


def gaussian_blur(image: Shared[np.ndarray], out: np.ndarray, sigma: float) -> None:
    """Gaussian filter with standard deviation ``sigma`` in pixels, cut at 4 sigma; the edge pixels are repeated outwards."""
    filter_image(image.pixels, *gaussian_taps(*out.shape[1:], sigma), out)


def motion_blur(image: Shared[np.ndarray], out: np.ndarray, radius_sigma: tuple[float, float], key: int) -> None:
    """ImageMagick's motion blur at a uniform random angle in -45..45 degrees; level in pixels: (``radius``, ``sigma``)."""
    low, high = ANGLES
    motion_blur_at(image.pixels, *radius_sigma, low + (high - low) * uniform(key, ANGLE, 1)[0], out)


def glass_blur(image: Shared[np.ndarray], out: np.ndarray, level: tuple[float, int, int], key: int) -> None:
    """Gaussian blur, random displacement of the pixels, and Gaussian blur again.

    Level: (``sigma`` of the blurs in pixels, largest displacement ``max_delta`` in pixels, number of ``iterations``). The draws
    of iteration i are stream i.
    """
    sigma, max_delta, iterations = level
    taps = gaussian_taps(*out.shape[1:], sigma)
    filter_image(image.pixels, *taps, out)
    filter_image(_scanned(out, max_delta, iterations, key), *taps, out)


@jit
def _scanned(image, max_delta, iterations, key):
    """The image after all scans of glass blur."""
    _, height, width = image.shape
    packed = np.empty(height * width, np.uint32)  # red, green and blue in one number, to be copied together
    red, green, blue = image[0].reshape(-1), image[1].reshape(-1), image[2].reshape(-1)
    for i in range(len(packed)):
        packed[i] = uint32(red[i]) | uint32(green[i]) << uint32(8) | uint32(blue[i]) << uint32(16)
    for iteration in range(iterations):
        scan(packed, height, width, max_delta, key, iteration)
    out = np.empty_like(image)
    red, green, blue = out[0].reshape(-1), out[1].reshape(-1), out[2].reshape(-1)
    for i in range(len(packed)):
        red[i], green[i], blue[i] = uint8(packed[i]), uint8(packed[i] >> uint32(8)), uint8(packed[i] >> uint32(16))
    return out


@jit
def scan(pixels, height, width, max_delta, key, stream):
    """One scan of glass blur over the pixels (H W,), which are overwritten.

    It goes from the bottom right to the top left pixel, without a margin at the border, and gives each pixel the value that a
    random neighbour has at that time (the reference means to swap the two values, but copies one). The draws are the numbers of
    the neighbours, row by row, in the square of displacements from -max_delta to max_delta - 1 in both directions.
    """
    rows, columns, side = height - 2 * max_delta, width - 2 * max_delta, 2 * max_delta
    if rows <= 0 or columns <= 0:
        return
    moves = np.empty(side * side, np.int64)
    for i in range(side * side):
        moves[i] = (i // side - max_delta) * width + i % side - max_delta
    drawn = words(key, stream, rows * columns)
    for row in range(rows - 1, -1, -1):
        first = (row + max_delta + 1) * width + max_delta + 1
        for column in range(columns - 1, -1, -1):
            pixels[first + column] = pixels[first + column + moves[to_below(drawn[row * columns + column], side * side)]]
