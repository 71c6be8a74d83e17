"""Snow, frost and fog. Source: hendrycks/robustness, make_imagenet_c.py.

Every corruption fills ``out`` with one corrupted image; see ``table.Corruption``.
"""

import numpy as np

from gch_bench.corruptions.compiled.draws import normal, signed, uniform
from gch_bench.corruptions.compiled.filters import motion_blur_at
from gch_bench.corruptions.compiled.jit import inline, jit
from gch_bench.corruptions.compiled.zoom import enlarge
from gch_bench.corruptions.filters import zoom_crop
from gch_bench.corruptions.shared import Shared
from gch_bench.corruptions.weather import (
    ANGLE,
    ANGLES,
    CROP,
    FLAKES,
    LUMA,
    PLASMA,
    frost_photographs,
    frost_texture,
    plasma_side,
    wibbles,
)

RED, GREEN, BLUE = (np.float32(weight) for weight in LUMA)
ZERO, QUARTER, TOP = np.float32(0), np.float32(0.25), np.float32(255)


@inline
def _level(value):
    """A float32 value, clipped and truncated to a whole grey level."""
    return np.uint8(min(max(value, ZERO), TOP))


def snow(image: Shared[np.ndarray], out: np.ndarray, level: tuple[float, ...], key: int) -> None:
    """A layer of snowflakes, and the same layer turned by 180 degrees, added to a whitened image.

    Level: (``mean`` and ``sd`` of the flakes' normal draws, factor ``zoom`` of their enlargement, ``threshold`` below which the
    layer is 0, ``radius`` and ``sigma`` in pixels of its motion blur, weight ``keep`` of the image against its whitened
    version). The angle of the motion blur is uniform in -135..-45 degrees.
    """
    mean, sd, zoom, threshold, radius, sigma, keep = level
    height, width = size = out.shape[1:]
    crop = zoom_crop(height, zoom), zoom_crop(width, zoom)
    flakes = normal(key, FLAKES, crop[0] * crop[1]).reshape(crop) * np.float32(sd) + np.float32(mean)
    layer, blurred = np.empty((1, *size), np.uint8), np.empty((1, *size), np.uint8)
    _keep_bright(enlarge(flakes, zoom, size), np.float32(threshold), layer[0])
    low, high = ANGLES
    angle = low + (high - low) * float(uniform(key, ANGLE, 1)[0])
    motion_blur_at(layer, radius, sigma, angle, blurred)
    _add_snow(image.pixels, blurred[0], np.float32(keep), np.float32(1 - keep), out)


@jit
def _keep_bright(flakes, threshold, layer):
    """The flakes, float32 (H, W), as grey levels, without those below ``threshold``."""
    for y in range(len(flakes)):
        row, out_row = flakes[y], layer[y]
        for x in range(len(row)):
            out_row[x] = _level(row[x] * TOP if row[x] >= threshold else ZERO)


@jit
def _add_snow(image, layer, keep, whiten, out):
    channels, height, width = out.shape
    whitened, snow = np.empty(width, np.float32), np.empty(width, np.float32)
    for y in range(height):
        red, green, blue = image[0, y], image[1, y], image[2, y]
        flakes, turned = layer[y], layer[height - 1 - y, ::-1]
        for x in range(width):
            snow[x] = np.float32(flakes[x]) + np.float32(turned[x])
        for x in range(width):
            luma = np.float32(red[x]) * RED + np.float32(green[x]) * GREEN + np.float32(blue[x]) * BLUE
            whitened[x] = luma * np.float32(1.5) + np.float32(127.5)
        for c in range(channels):
            row, out_row = image[c, y], out[c, y]
            for x in range(width):
                value = np.float32(row[x])
                out_row[x] = _level(max(value, whitened[x]) * whiten + value * keep + snow[x])


def frost(image: Shared[np.ndarray], out: np.ndarray, level: tuple[float, float, float], key: int) -> None:
    """The weighted sum of the image and a random crop of a photograph of frost, clipped.

    Level: (weight of the image, weight of the frost, scale of the photographs). A photograph that is too small for the image is
    enlarged further. Five photographs are used: the reference has a sixth, but never draws it.
    """
    image_weight, frost_weight, scale = level
    height, width = out.shape[1:]
    which, down, across = uniform(key, CROP, 3)
    texture = frost_texture(int(which * len(frost_photographs())), scale, height, width)
    top, left = int(down * (texture.shape[1] - height)), int(across * (texture.shape[2] - width))
    _weighted_sum(image.pixels, np.float32(image_weight), texture, top, left, np.float32(frost_weight), out)


@jit
def _weighted_sum(image, image_weight, texture, top, left, frost_weight, out):
    channels, height, width = out.shape
    for c in range(channels):
        for y in range(height):
            row, frost_row, out_row = image[c, y], texture[c, top + y, left : left + width], out[c, y]
            for x in range(width):
                out_row[x] = _level(np.float32(row[x]) * image_weight + np.float32(frost_row[x]) * frost_weight)


def fog(image: Shared[np.ndarray], out: np.ndarray, level: tuple[float, float], key: int) -> None:
    """A random map of fog (plasma) added to the image; the sum is scaled so that it cannot exceed the image's brightest value.

    Level: (``strength`` of the plasma in units of the full range of levels, ``decay`` of its finer details, see ``wibbles``).
    """
    strength, decay = level
    side = plasma_side(*out.shape[1:])
    _add_fog(image.pixels, plasma(signed(key, PLASMA, side * side), wibbles(side, decay)), np.float32(255 * strength), out)


@jit
def _add_fog(image, plasma, amount, out):
    channels, height, width = out.shape
    brightest = np.uint8(0)
    for c in range(channels):
        for y in range(height):
            row = image[c, y]
            for x in range(width):
                brightest = max(brightest, row[x])
    scale = np.float32(brightest) / (np.float32(brightest) + amount)
    lowest, highest = _extremes(plasma)
    span = highest - lowest
    fog = np.empty(width, np.float32)
    for y in range(height):
        row = plasma[y]
        for x in range(width):
            fog[x] = (row[x] - lowest) / span * amount
        for c in range(channels):
            row, out_row = image[c, y], out[c, y]
            for x in range(width):
                out_row[x] = _level((np.float32(row[x]) + fog[x]) * scale)


@jit
def _extremes(field):
    """The smallest and the largest value of a field, by those of each column, which the processor's vectors find."""
    low, high = field[0].copy(), field[0].copy()
    for y in range(1, len(field)):
        row = field[y]
        for x in range(len(row)):
            low[x], high[x] = min(low[x], row[x]), max(high[x], row[x])
    return low.min(), high.max()


@jit
def plasma(draws, wibbles):
    """Diamond-square plasma of ``len(draws)`` = side^2 points, see ``weather.wibbles``: float32 (side + 1, side + 1).

    The last row and column repeat the first ones, because the map wraps around.
    """
    corners = np.zeros((2, 2), np.float32)
    for wibble in wibbles:
        corners = _doubled(corners, draws, wibble)
    return corners


@jit
def _doubled(corners, draws, wibble):
    """The map of k x k points, float32 (k + 1, k + 1), with new points between the old ones: (2 k + 1, 2 k + 1)."""
    k = len(corners) - 1
    finer = np.empty((2 * k + 1, 2 * k + 1), np.float32)
    middle, above = np.empty(k + 1, np.float32), np.empty(k + 1, np.float32)  # in place 0 stands the last point again
    _middle_row(corners, draws, wibble, k - 1, above)
    for i in range(k):
        _middle_row(corners, draws, wibble, i, middle)
        old, below = corners[i], corners[i + 1]
        top_draws, left_draws = draws[(2 * k + i) * k : (2 * k + i + 1) * k], draws[(3 * k + i) * k : (3 * k + i + 1) * k]
        even, odd = finer[2 * i], finer[2 * i + 1]
        for j in range(k):
            top = (((old[j] + old[j + 1]) + middle[j + 1]) + above[j + 1]) * QUARTER + top_draws[j] * wibble
            left = (((old[j] + below[j]) + middle[j + 1]) + middle[j]) * QUARTER + left_draws[j] * wibble
            even[2 * j], even[2 * j + 1] = old[j], top
            odd[2 * j], odd[2 * j + 1] = left, middle[j + 1]
        even[2 * k], odd[2 * k] = even[0], odd[0]
        middle, above = above, middle
    finer[2 * k] = finer[0]
    return finer


@jit
def _middle_row(corners, draws, wibble, i, middle):
    k = len(corners) - 1
    old, below, row_draws = corners[i], corners[i + 1], draws[(k + i) * k : (k + i + 1) * k]
    for j in range(k):
        middle[j + 1] = (((old[j] + old[j + 1]) + below[j]) + below[j + 1]) * QUARTER + row_draws[j] * wibble
    middle[0] = middle[k]
