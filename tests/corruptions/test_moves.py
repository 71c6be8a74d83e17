"""The wide Gaussian filter of elastic transform, and its affine map, against SciPy and OpenCV."""

import cv2
import numpy as np
import pytest
import scipy.ndimage
import torch

from gch_bench.corruptions.compiled.moves import product, smooth
from gch_bench.corruptions.elastic import CUT, affine_map


@pytest.mark.parametrize("size", [(1, 1), (1, 2), (3, 5), (17, 33), (97, 65), (224, 224)])
@pytest.mark.parametrize("sigma", [0.5, 2.44, 6.4, 19.52, 170.8])
def test_moves_are_smoothed_as_scipy_does(size: tuple[int, int], sigma: float) -> None:
    field = np.random.default_rng(0).uniform(-1, 1, size).astype(np.float32)
    expected = scipy.ndimage.gaussian_filter(field.astype(float), sigma, mode="reflect", truncate=CUT)
    assert np.abs(smooth(field, sigma) - expected).max() < 5e-7  # times 488 pixels, the largest alpha: 2e-4 pixels


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 5, 7), (4, 4, 1), (9, 6, 33), (6, 13, 64)])
def test_product_of_matrices_of_all_shapes(shape: tuple[int, int, int]) -> None:
    rows, inner, columns = shape
    left, right = (
        np.random.default_rng(i).normal(size=n).astype(np.float32) for i, n in enumerate([(inner, rows), (inner, columns)])
    )
    np.testing.assert_allclose(product(left.T, right), left.T @ right, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(product(np.ascontiguousarray(left.T), right), left.T @ right, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("height", "width"), [(224, 224), (40, 97), (2, 1)])
def test_affine_map_equals_opencv(height: int, width: int) -> None:
    draws = np.random.default_rng(0).uniform(size=(50, 6))
    maps = torch.stack(affine_map(torch.from_numpy(draws).unbind(1), 0.4, height, width), 1).numpy()
    middle, reach = np.array([height // 2, width // 2]), max(1, min(height, width) // 3)
    old = (middle + reach * np.array([[1, 1], [1, -1], [-1, -1]])).astype(np.float32)
    for draw, found in zip(draws, maps, strict=True):
        new = (old + 0.4 * (2 * draw.reshape(3, 2) - 1)).astype(np.float32)
        np.testing.assert_allclose(found.reshape(2, 3), cv2.getAffineTransform(new, old), rtol=1e-4, atol=1e-4)
        assert affine_map(draw.tolist(), 0.4, height, width) == pytest.approx(found.tolist(), rel=1e-12, abs=1e-12)
