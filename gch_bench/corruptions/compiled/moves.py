"""The Gaussian filter of the moves of elastic transform, which is often wide: sigma is up to 171 pixels in images of 224.

With a symmetric border the filter of n pixels is a symmetric matrix S (n, n) whose eigenvectors are the cosines of the discrete
cosine transform. The filtered field is S_HH X_HW S_WW. A wide filter keeps few waves, so S = L + R, where L is made of the
lowest waves, and the small rest R comes from the cut of the Gaussian at 3 sigma alone. Of the four products

    S X S = L X L + L X R + R X L + R X R

the last is at most 1e-4 pixels at the published levels (measured), and is left out. The others need only products of
matrices with few rows, the waves, which takes a third of the time.

Shapes: H x W pixels, n pixels along one side, r waves of the rows or of the columns.
"""

import math
from functools import lru_cache

import numpy as np

from gch_bench.corruptions.compiled.filters import gaussian_filter
from gch_bench.corruptions.compiled.jit import jit
from gch_bench.corruptions.elastic import CUT
from gch_bench.corruptions.filters import gaussian_matrix


def smooth(field_HW: np.ndarray, sigma: float) -> np.ndarray:
    """Filter a field, float32 (H, W), with a Gaussian of ``sigma`` pixels, and return another one.

    The border is "symmetric" in numpy.pad, that is, the field is reflected about the outer sides of its edge pixels.
    """
    height, width = field_HW.shape
    if sigma**2 < max(height, width):  # so narrow a filter is quicker as a sum over its taps
        return gaussian_filter(field_HW, sigma, "symmetric", CUT)
    waves_rH, weighted_rH, _, rest_HH = _waves(height, sigma)
    waves_rW, weighted_rW, S_WW, _ = _waves(width, sigma)
    first_rW = product(product(weighted_rH, field_HW), S_WW)  # L X S is waves_rH.T @ first_rW
    second_rH = product(product(weighted_rW, np.ascontiguousarray(field_HW.T)), rest_HH)  # R X L is second_rH.T @ waves_rW
    return product(np.concatenate([waves_rH, second_rH]).T, np.concatenate([first_rW, waves_rW]))


@lru_cache(maxsize=8)
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


@jit
def product(left, right):
    """The matrix product of float32 (N, K) and (K, M), by blocks of 4 rows and 4 terms, so that sums are seldom loaded."""
    rows, inner = left.shape
    out = np.zeros((-(-rows // 4) * 4, right.shape[1]), np.float32)  # the rows at the end that fill a block are not returned
    for i in range(0, rows, 4):
        out0, out1, out2, out3 = out[i], out[i + 1], out[i + 2], out[i + 3]
        w0, w1, w2, w3 = left[i], left[min(i + 1, rows - 1)], left[min(i + 2, rows - 1)], left[min(i + 3, rows - 1)]
        for j in range(0, inner - 3, 4):
            a, b, c, d = right[j], right[j + 1], right[j + 2], right[j + 3]
            a0, b0, c0, d0 = w0[j], w0[j + 1], w0[j + 2], w0[j + 3]
            a1, b1, c1, d1 = w1[j], w1[j + 1], w1[j + 2], w1[j + 3]
            a2, b2, c2, d2 = w2[j], w2[j + 1], w2[j + 2], w2[j + 3]
            a3, b3, c3, d3 = w3[j], w3[j + 1], w3[j + 2], w3[j + 3]
            for x in range(len(a)):
                out0[x] += (a0 * a[x] + b0 * b[x]) + (c0 * c[x] + d0 * d[x])
                out1[x] += (a1 * a[x] + b1 * b[x]) + (c1 * c[x] + d1 * d[x])
                out2[x] += (a2 * a[x] + b2 * b[x]) + (c2 * c[x] + d2 * d[x])
                out3[x] += (a3 * a[x] + b3 * b[x]) + (c3 * c[x] + d3 * d[x])
        for j in range(inner // 4 * 4, inner):
            a, a0, a1, a2, a3 = right[j], w0[j], w1[j], w2[j], w3[j]
            for x in range(len(a)):
                out0[x] += a0 * a[x]
                out1[x] += a1 * a[x]
                out2[x] += a2 * a[x]
                out3[x] += a3 * a[x]
    return out[:rows]
