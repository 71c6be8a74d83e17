"""The parts of spatter against OpenCV, in compiled and in batched form."""

import cv2
import numpy as np
import pytest
import scipy.ndimage
import torch

from gch_bench.corruptions.batched import edges as batched_edges
from gch_bench.corruptions.compiled import edges as compiled_edges
from gch_bench.corruptions.spatter import DISTANCE_UNIT, EDGE, WEAK_EDGE


@pytest.mark.parametrize("kind", ["smooth", "noisy", "blobs"])
def test_edges_distances_and_equalised_histograms_equal_opencv(kind: str) -> None:
    rng = np.random.default_rng(3)
    for _ in range(10):
        sigma = {"smooth": 6, "noisy": 1, "blobs": 3}[kind]
        field = scipy.ndimage.gaussian_filter(rng.normal(size=(90, 77)), sigma)
        field = 255 * (field - field.min()) / np.ptp(field)
        grey = np.where(field > 150, field, 0).astype(np.uint8) if kind == "blobs" else field.astype(np.uint8)
        edges = cv2.Canny(grey, WEAK_EDGE, EDGE)
        near = np.minimum(cv2.distanceTransform(255 - edges, cv2.DIST_L2, 5), 20)
        equal = cv2.equalizeHist(grey)
        assert kind == "smooth" or edges.any()

        greys = torch.from_numpy(np.stack([grey, grey[::-1]]))
        batch = batched_edges.canny(greys, WEAK_EDGE, EDGE)
        assert np.array_equal(batch[0].numpy(), edges > 0)
        assert np.abs(batched_edges.distance_to_edges(batch)[0].numpy() / DISTANCE_UNIT - near).max() < 1e-4
        assert np.array_equal(batched_edges.equalize(greys.int(), 256)[0].numpy(), equal)

        assert np.array_equal(compiled_edges.canny(grey, WEAK_EDGE, EDGE), edges > 0)
        assert np.abs(compiled_edges.distance_to_edges(edges > 0)[2:-2, 2:-2] / DISTANCE_UNIT - near).max() < 1e-4
        assert np.array_equal(compiled_edges.equalize(grey, 256), equal)


def test_weak_edges_are_linked_over_any_distance() -> None:
    """A ramp that is steep at one end only: the weak edge along it hangs on a few strong pixels."""
    grey = np.zeros((40, 300), np.uint8)
    grey[20:] = np.linspace(13, 60, 300).astype(np.uint8)
    edges = cv2.Canny(grey, WEAK_EDGE, EDGE) > 0
    strong = cv2.Canny(grey, EDGE, EDGE) > 0
    assert edges.sum() - strong.sum() > 10 * batched_edges.LINKS
    assert np.array_equal(compiled_edges.canny(grey, WEAK_EDGE, EDGE), edges)
    assert np.array_equal(batched_edges.canny(torch.from_numpy(grey)[None], WEAK_EDGE, EDGE)[0].numpy(), edges)
