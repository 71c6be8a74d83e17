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
    height, width = out.shape[1:]
    above, down = _enlargements(height, start_stop_step)
    left, across = _enlargements(width, start_stop_step)
    _zoom_blur(image.pixels, above, down, left, across, TIE_MARGIN, out)


@lru_cache(maxsize=64)
def _enlargements(n: int, level: tuple[float, float, float]) -> tuple[np.ndarray, np.ndarray]:
    """``enlarged`` for the F factors after the first one, which is 1: the pixels before each place, uint16 (F, n), and the
    parts, float32 (F, 4 n), four times each."""
    low, parts = [], []
    for factor in zoom_factors(*level)[1:]:
        crop = zoom_crop(n, factor)
        before, _, part = enlarged(crop, factor, n)
        low.append(before + (n - crop) // 2)
        parts.append(np.repeat(part, 4))
    return np.array(low, np.uint16).reshape(-1, n), np.array(parts, np.float32).reshape(-1, 4 * n)


@jit
def _zoom_blur(image, above, down, left, across, margin, out):
    """See ``zoom_blur``. A pixel is four floats, red, green, blue and an empty one, which are copied together as a complex128:
    the processor has no quick way to gather single floats."""
    _, height, width = image.shape
    pixels = np.zeros((height + 1, 4 * width), np.float32)  # the last row is there twice
    for y in range(height + 1):
        row = pixels[y]
        red, green, blue = image[0, min(y, height - 1)], image[1, min(y, height - 1)], image[2, min(y, height - 1)]
        for x in range(width):
            row[4 * x], row[4 * x + 1], row[4 * x + 2] = red[x], green[x], blue[x]
    row = np.zeros(4 * width + 4, np.float32)
    before, after, total = np.empty(4 * width, np.float32), np.empty(4 * width, np.float32), np.empty(4 * width, np.float32)
    left_pixel, right_pixel = row.view(np.complex128), row.view(np.complex128)[1:]
    befores, afters = before.view(np.complex128), after.view(np.complex128)
    count = np.float32(len(above) + 2)  # the image itself is taken twice: also as its enlargement by 1
    margin = np.float32(margin)
    for y in range(height):
        row_of_image = pixels[y]
        for i in range(4 * width):
            total[i] = row_of_image[i] + row_of_image[i]
        for f in range(len(above)):
            upper, lower, part = pixels[above[f, y]], pixels[np.int64(above[f, y]) + 1], down[f, 4 * y]
            for i in range(4 * width):
                row[i] = upper[i] + (lower[i] - upper[i]) * part
            places, parts = left[f], across[f]
            for x in range(width):
                befores[x] = left_pixel[places[x]]
                afters[x] = right_pixel[places[x]]
            for i in range(4 * width):
                total[i] += before[i] + (after[i] - before[i]) * parts[i]
        red, green, blue = out[0, y], out[1, y], out[2, y]
        for x in range(width):
            red[x] = np.uint8(np.int32(total[4 * x] / count + margin))
            green[x] = np.uint8(np.int32(total[4 * x + 1] / count + margin))
            blue[x] = np.uint8(np.int32(total[4 * x + 2] / count + margin))
