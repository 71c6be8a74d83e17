"""Zoom blur, and the enlargement that it and snow use. Source: hendrycks/robustness, make_imagenet_c.py."""

from functools import lru_cache

import numpy as np

from gch_bench.corruptions.compiled.jit import jit
from gch_bench.corruptions.filters import TIE_MARGIN, enlarged, zoom_crop, zoom_factors
from gch_bench.corruptions.shared import Shared


def enlarge(crop: np.ndarray, factor: float, size: tuple[int, int]) -> np.ndarray:
    """Enlarge float32 (h, w) by ``factor``, then cut out the middle of ``size`` = (height, width) pixels. See ``enlarged``."""
    rows, columns = (enlarged(n, factor, wanted) for n, wanted in zip(crop.shape, size, strict=True))
    return _enlarge(crop, rows, columns)


@jit
def _enlarge(crop, rows, columns):
    above, below, down = rows
    left, right, across = columns
    out, row = np.empty((len(above), len(left)), np.float32), np.empty(crop.shape[1], np.float32)
    for y in range(len(above)):
        upper, lower, part = crop[above[y]], crop[below[y]], down[y]
        for x in range(len(row)):
            row[x] = upper[x] + (lower[x] - upper[x]) * part
        for x in range(len(left)):
            start = row[left[x]]
            out[y, x] = start + (row[right[x]] - start) * across[x]
    return out


def zoom_blur(image: Shared[np.ndarray], out: np.ndarray, start_stop_step: tuple[float, float, float]) -> None:
    """The mean of the image and of its enlargements by ``zoom_factors``; level: (start, stop, step) of the factors."""
    factors = zoom_factors(*start_stop_step)
    _mean(image.once(_Totals).over(factors), np.float32(len(factors) + 1), np.float32(TIE_MARGIN), out)


class _Totals:
    """The sums of an image and of its enlargements by several factors, each begun with the sum over the first of these factors
    that is known already: those of one severity are often the head of another's.

    A pixel is four floats, red, green, blue and an empty one, which are copied together as a complex128: the processor has no
    quick way to gather single floats.
    """

    def __init__(self, pixels: np.ndarray) -> None:
        self.size = pixels.shape[1:]
        self.pixels_HX = _in_fours(pixels)
        self.known: dict[tuple[float, ...], np.ndarray] = {
            (1.0,): 2 * self.pixels_HX
        }  # the enlargement by 1 is the image itself

    def over(self, factors: tuple[float, ...]) -> np.ndarray:
        """The sum for these factors, of which the first is 1: float32 (H, 4 W)."""
        if factors not in self.known:
            head = max((known for known in self.known if known == factors[: len(known)]), key=len)
            (above, down), (left, across) = (_enlargements(n, factors[len(head) :]) for n in self.size)
            self.known[factors] = _with_enlargements(self.known[head], self.pixels_HX, above, down, left, across)
        return self.known[factors]


@lru_cache(maxsize=128)
def _enlargements(n: int, factors: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray]:
    """``enlarged`` for F factors: the pixels before each place, uint16 (F, n); the parts, float32 (F, 4 n), each four times."""
    low, parts = [], []
    for factor in factors:
        crop = zoom_crop(n, factor)
        before, _, part = enlarged(crop, factor, n)
        low.append(before + (n - crop) // 2)
        parts.append(np.repeat(part, 4))
    return np.array(low, np.uint16).reshape(-1, n), np.array(parts, np.float32).reshape(-1, 4 * n)


@jit
def _in_fours(image):
    """uint8 (3, H, W) -> float32 (H, 4 W)."""
    _, height, width = image.shape
    pixels = np.zeros((height, 4 * width), np.float32)
    for y in range(height):
        row, red, green, blue = pixels[y], image[0, y], image[1, y], image[2, y]
        for x in range(width):
            row[4 * x], row[4 * x + 1], row[4 * x + 2] = red[x], green[x], blue[x]
    return pixels


@jit
def _with_enlargements(start, pixels, above, down, left, across):
    """``start`` plus the enlargements of the pixels by all factors of these tables: float32 (H, 4 W)."""
    height, width = len(pixels), pixels.shape[1] // 4
    totals = np.empty_like(start)
    row = np.zeros(4 * width + 4, np.float32)
    before, after = np.empty(4 * width, np.float32), np.empty(4 * width, np.float32)
    left_pixel, right_pixel = row.view(np.complex128), row.view(np.complex128)[1:]
    befores, afters = before.view(np.complex128), after.view(np.complex128)
    for y in range(height):
        total, start_row = totals[y], start[y]
        for i in range(4 * width):
            total[i] = start_row[i]
        for f in range(len(above)):
            first = np.int64(above[f, y])
            upper, lower, part = pixels[first], pixels[min(first + 1, height - 1)], down[f, 4 * y]
            for i in range(4 * width):
                row[i] = upper[i] + (lower[i] - upper[i]) * part
            places, parts = left[f], across[f]
            for x in range(width):
                befores[x] = left_pixel[places[x]]
                afters[x] = right_pixel[places[x]]
            for i in range(4 * width):
                total[i] += before[i] + (after[i] - before[i]) * parts[i]
    return totals


@jit
def _mean(total, count, margin, out):
    """``total`` / ``count`` + ``margin``, truncated: float32 (H, 4 W) into uint8 (3, H, W)."""
    _, height, width = out.shape
    for y in range(height):
        row, red, green, blue = total[y], out[0, y], out[1, y], out[2, y]
        for x in range(width):
            red[x] = np.uint8(np.int32(row[4 * x] / count + margin))
            green[x] = np.uint8(np.int32(row[4 * x + 1] / count + margin))
            blue[x] = np.uint8(np.int32(row[4 * x + 2] / count + margin))
