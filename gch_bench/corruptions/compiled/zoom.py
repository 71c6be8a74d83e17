"""Zoom blur, and the enlargement that it and snow use. Source: hendrycks/robustness, make_imagenet_c.py."""

import numpy as np

from gch_bench.corruptions.compiled.jit import jit
from gch_bench.corruptions.filters import enlarged


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


def zoom_blur(image, out, level):
    raise NotImplementedError("zoom_blur")
