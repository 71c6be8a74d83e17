"""The Gaussian filter of the moves of elastic transform, which is often wide: sigma is up to 171 pixels in images of 224.

With a symmetric border the filter of n pixels is a symmetric matrix S (n, n) whose eigenvectors are the cosines of the discrete
cosine transform. The filtered field is S_HH X_HW S_WW. A wide filter keeps few waves, so S = L + R, where L is made of the
lowest waves, and the small rest R comes from the cut of the Gaussian at 3 sigma alone. Of the four products

    S X S = L X L + L X R + R X L + R X R

the last is below 3e-5 pixels, as the rounding of the pixels' places is, and is left out. The others need only products of
matrices with few rows, the waves, which takes a third of the time.

Shapes: H x W pixels, n pixels along one side, r waves of the rows or of the columns.
"""

import math
from functools import lru_cache

import numpy as np

from gch_bench.corruptions.compiled.filters import gaussian_filter, product
from gch_bench.corruptions.elastic import CUT
from gch_bench.corruptions.filters import gaussian_matrix


def smooth(field_HW: np.ndarray, sigma: float) -> np.ndarray:
    """Filter a field, float32 (H, W), with a Gaussian of ``sigma`` pixels, and return another one.

    The border is "symmetric" in numpy.pad, that is, the field is reflected about the outer sides of its edge pixels.
    """
    height, width = field_HW.shape
    if sigma**2 < max(height, width):
        return gaussian_filter(field_HW, sigma, "symmetric", CUT)
    waves_rH, weighted_rH, _, rest_HH = _waves(height, sigma)
    waves_rW, weighted_rW, S_WW, _ = _waves(width, sigma)
    first_rW = product(product(weighted_rH, field_HW), S_WW)  # L X S is waves_rH.T @ first_rW
    second_rH = product(product(weighted_rW, np.ascontiguousarray(field_HW.T)), rest_HH)  # R X L is second_rH.T @ waves_rW
    return product(np.concatenate([waves_rH, second_rH]).T, np.concatenate([first_rW, waves_rW]))


@lru_cache(maxsize=32)
def _waves(n: int, sigma: float) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Float32: the lowest waves (r, n), of length 1; they times their eigenvalues (r, n); the matrices S and R (n, n)."""
    count = min(n, math.ceil(2 * n / sigma) + 2)
    wave_rn = np.cos(np.pi / n * np.arange(count)[:, None] * (np.arange(n) + 0.5))
    wave_rn /= np.linalg.norm(wave_rn, axis=1, keepdims=True)
    S_nn = gaussian_matrix(n, sigma, "symmetric", CUT)
    weighted_rn = wave_rn @ S_nn
    rest_nn = S_nn - wave_rn.T @ weighted_rn
    single = np.float32
    return wave_rn.astype(single), weighted_rn.astype(single), S_nn.astype(single), rest_nn.astype(single)
