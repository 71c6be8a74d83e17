"""Brightness, contrast and saturation of one image."""

import numpy as np

from gch_bench.corruptions.color import brightness_table
from gch_bench.corruptions.compiled.jit import inline, jit
from gch_bench.corruptions.shared import Shared

_BLOCK = 1024  # values or pixels that are treated together, in simple loops after each other, so that they stay in the cache
_PER_255 = round(2**52 / 255) / 2**52  # 1 / 255 in 45 bits, ...
_PER_255_REST = (1 - 255 * _PER_255) / 255  # ... and the rest of it


def brightness(image: Shared[np.ndarray], out: np.ndarray, level: float) -> None:
    """Add ``level`` to the V of HSV, V in [0, 1], and clip; hue and saturation stay."""
    _brightness(image.pixels.reshape(3, -1), out.reshape(3, -1), brightness_table(level))


@jit
def _brightness(image, out, table):
    places = np.empty((3, _BLOCK), np.uint16)
    for first in range(0, image.shape[1], _BLOCK):
        red, green, blue = image[0, first : first + _BLOCK], image[1, first : first + _BLOCK], image[2, first : first + _BLOCK]
        for i in range(len(red)):
            largest = np.uint16(max(red[i], green[i], blue[i])) << np.uint16(8)
            places[0, i], places[1, i], places[2, i] = largest | red[i], largest | green[i], largest | blue[i]
        for c in range(3):
            brighter = out[c, first : first + _BLOCK]
            for i in range(len(brighter)):
                brighter[i] = table[places[c, i]]


def contrast(image: Shared[np.ndarray], out: np.ndarray, level: float) -> None:
    """(x - mean) ``level`` + mean for each value x; the mean is taken over each channel."""
    _contrast(image.pixels.reshape(3, -1), out.reshape(3, -1), level)


@jit
def _contrast(image, out, factor):
    """Each channel has one mean, so a table of 256 outputs serves it."""
    table = np.empty(256, np.uint8)
    for c in range(3):
        channel, changed = image[c], out[c]
        total = np.int64(0)
        for i in range(len(channel)):
            total += channel[i]
        mean = total / (255.0 * len(channel))
        for level in range(256):
            x = level / 255.0
            table[level] = np.uint8(min(max((x - mean) * factor + mean, 0.0), 1.0) * 255.0)
        for i in range(len(channel)):
            changed[i] = table[channel[i]]


def saturate(image: Shared[np.ndarray], out: np.ndarray, level: tuple[float, float]) -> None:
    """The S of HSV becomes clip(S factor + offset), where ``level`` is (factor, offset); hue and V stay.

    A channel is V (1 - S k), where k is 0 for the largest of the three channels and 1 for the smallest. A grey pixel has hue 0,
    so an offset turns it red, as in the reference: red alone counts as the largest channel. The work is done in float64,
    because many results are whole levels but for rounding, and truncation must treat them as the reference does.
    """
    factor, offset = level
    _saturate(image.pixels.reshape(3, -1), out.reshape(3, -1), float(factor), float(offset))


@inline
def _unit(level):
    """level / 255 as float64, rounded as a division rounds it but quicker: the first product and the remainder are exact."""
    return level * _PER_255 + level * _PER_255_REST


@jit
def _saturate(image, out, factor, offset):
    """See ``saturate``; image and out are uint8 (3, H W)."""
    levels = np.empty((5, _BLOCK), np.uint8)
    largest, middle, smallest, new_middle, new_smallest = levels[0], levels[1], levels[2], levels[3], levels[4]
    for first in range(0, image.shape[1], _BLOCK):
        red, green, blue = image[0, first : first + _BLOCK], image[1, first : first + _BLOCK], image[2, first : first + _BLOCK]
        for i in range(len(red)):
            low, high = min(red[i], green[i]), max(red[i], green[i])
            largest[i], middle[i], smallest[i] = max(high, blue[i]), max(low, min(high, blue[i])), min(low, blue[i])
        for i in range(len(red)):
            V, x, low = _unit(largest[i]), _unit(middle[i]), _unit(smallest[i])
            S = min(max((V - low) / max(V, 1 / 255) * factor + offset, 0.0), 1.0)
            k = (V - x) / max(V - low, 1 / 255)
            new_middle[i] = np.uint8(np.int32((1.0 - k * S) * V * 255.0))
            new_smallest[i] = np.uint8(np.int32((1.0 - S) * V * 255.0))
        for c in range(3):
            channel, changed = image[c, first : first + _BLOCK], out[c, first : first + _BLOCK]
            for i in range(len(channel)):
                other = new_smallest[i] if channel[i] == smallest[i] else new_middle[i]
                is_largest = channel[i] == largest[i] and (c == 0 or largest[i] != smallest[i])
                changed[i] = largest[i] if is_largest else other
