"""The closed forms on every grid up to 12 x 12, against a Laplacian that is inverted by numpy and sums over listed edges."""

import math
import re
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from gch_bench.noise import DirichletGreen, MassiveGreen, PeriodicGreen, White, theory
from gch_bench.noise.kernels import Kernel

GAMMA, BETA = 0.8, 1.6
BOUNDARIES = ["outside", "inside"]


def free_laplacian(height: int, width: int) -> np.ndarray:
    rows, columns = (2 * np.eye(n) - np.eye(n, k=1) - np.eye(n, k=-1) for n in (height, width))
    return np.kron(rows, np.eye(width)) + np.kron(np.eye(height), columns)


def dense_green(height: int, width: int, boundary: str) -> np.ndarray:
    """G on all sites of the map, (N, N), with rows and columns of zeros at pinned sites."""
    ring = int(boundary == "inside")
    free = np.zeros((height, width), dtype=bool)
    free[ring : height - ring, ring : width - ring] = True
    green = np.zeros((height * width, height * width))
    green[np.ix_(free.ravel(), free.ravel())] = np.linalg.inv(free_laplacian(height - 2 * ring, width - 2 * ring))
    return green


def edges_of(height: int, width: int) -> list[tuple[int, int]]:
    """All pairs of neighbours on the map, as numbers of sites in row-major order."""
    sites = list(product(range(height), range(width)))
    down = [(i * width + j, (i + 1) * width + j) for i, j in sites if i + 1 < height]
    return down + [(i * width + j, i * width + j + 1) for i, j in sites if j + 1 < width]


def all_grids(boundary: str) -> Iterator[tuple[int, int]]:
    return product(range(3 if boundary == "inside" else 1, 13), repeat=2)


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_closed_forms_are_those_of_the_dense_inverse(boundary: str) -> None:
    """1.1 and 1.4: covariance, variance, resistance and the moments of log-ratios."""
    kernel = DirichletGreen(BETA, boundary)
    for height, width in all_grids(boundary):
        green = dense_green(height, width, boundary)
        diagonal = np.diagonal(green)
        resistance = diagonal[:, None] + diagonal[None, :] - 2 * green
        same = {"rtol": 0, "atol": 1e-12, "err_msg": f"{height}x{width}"}
        np.testing.assert_allclose(kernel.covariance(height, width), green / BETA, **same)
        np.testing.assert_allclose(kernel.variance(height, width).flatten(), diagonal / BETA, **same)
        np.testing.assert_allclose(kernel.resistance(height, width), resistance, **same)
        free = diagonal > 0
        assert (kernel.covariance(height, width).numpy()[np.ix_(free, free)] > 0).all()
        variance = theory.log_ratio_variance(kernel, height, width, GAMMA)
        np.testing.assert_allclose(variance, GAMMA**2 * resistance / BETA, **same)
        wick = theory.log_ratio_mean(kernel, height, width, GAMMA, "wick")
        expected = -(GAMMA**2) * (diagonal[:, None] - diagonal[None, :]) / (2 * BETA)
        np.testing.assert_allclose(wick, expected, **same)
        assert not theory.log_ratio_mean(kernel, height, width, GAMMA).any()


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_roughness_is_the_sum_over_edges(boundary: str) -> None:
    """1.4.3: edge by edge, Foster's closed form, and |U| gamma^2 / beta with the edges to the pinned ring."""
    kernel = DirichletGreen(BETA, boundary)
    for height, width in all_grids(boundary):
        green, edges = dense_green(height, width, boundary), edges_of(height, width)
        assert len(edges) == height * (width - 1) + width * (height - 1)
        inside_the_map = sum(green[x, x] + green[y, y] - 2 * green[x, y] for x, y in edges) * GAMMA**2 / BETA
        drift = sum((green[x, x] - green[y, y]) ** 2 for x, y in edges) * (GAMMA**2 / (2 * BETA)) ** 2
        found = theory.edge_roughness(kernel, height, width, GAMMA)
        assert found == pytest.approx(inside_the_map, rel=1e-11, abs=1e-13)
        wick = theory.edge_roughness(kernel, height, width, GAMMA, "wick")
        assert wick == pytest.approx(inside_the_map + drift, rel=1e-11, abs=1e-13)
        to_the_ring = 0.0  # with boundary="inside" the ring's edges are among the map's
        if boundary == "outside":
            assert theory.roughness(kernel, height, width, GAMMA) == pytest.approx(inside_the_map, rel=1e-10, abs=1e-12)
            for i, j in product(range(height), range(width)):
                off_the_map = (i == 0) + (i == height - 1) + (j == 0) + (j == width - 1)
                to_the_ring += off_the_map * green[i * width + j, i * width + j] * GAMMA**2 / BETA
        free = height * width if boundary == "outside" else (height - 2) * (width - 2)
        total = theory.roughness_with_boundary(kernel, height, width, GAMMA)
        assert total == pytest.approx(free * GAMMA**2 / BETA, rel=1e-12)
        assert total == pytest.approx(inside_the_map + to_the_ring, rel=1e-11)


@pytest.mark.parametrize("kernel", [White(2.0), MassiveGreen(mass=0.7), PeriodicGreen(), White(match_variance=True)], ids=str)
def test_roughness_of_other_kernels(kernel: Kernel) -> None:
    for height, width in ((1, 6), (3, 4), (5, 2)):
        covariance = kernel.covariance(height, width).numpy()
        expected = sum(covariance[x, x] + covariance[y, y] - 2 * covariance[x, y] for x, y in edges_of(height, width))
        found = theory.edge_roughness(kernel, height, width, GAMMA)
        assert found == pytest.approx(GAMMA**2 * expected, rel=1e-12)
    if kernel == White(2.0):
        assert found == pytest.approx(len(edges_of(5, 2)) * GAMMA**2, rel=1e-12), "2 Var psi = 1 on every edge"


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_roughness_with_energy_or_matched_variance(boundary: str) -> None:
    """At energy eps all edges together have roughness 2 eps gamma^2; both options replace 1/beta by another factor."""
    budgeted = DirichletGreen(boundary=boundary, energy=3.0)
    assert theory.roughness_with_boundary(budgeted, 4, 6, GAMMA) == pytest.approx(6 * GAMMA**2, rel=1e-12)
    matched = DirichletGreen(BETA, boundary, match_variance=True)
    free = [slice(None)] * 2 if boundary == "outside" else [slice(1, -1)] * 2
    mean = float(DirichletGreen(boundary=boundary).variance(4, 6)[tuple(free)].mean())
    sites = 24 if boundary == "outside" else 8
    assert theory.roughness_with_boundary(matched, 4, 6, GAMMA) == pytest.approx(sites * GAMMA**2 / mean, rel=1e-12)
    if boundary == "outside":
        assert theory.roughness(matched, 4, 6, GAMMA) == pytest.approx(theory.edge_roughness(matched, 4, 6, GAMMA))


@pytest.mark.parametrize(("side", "figure"), [(4, 0.67992), (7, 0.80797), (14, 0.90038)])
def test_roughness_figures(side: int, figure: float) -> None:
    assert round(theory.edge_roughness(DirichletGreen(), side, side, 1.0) / side**2, 5) == figure


def test_roughness_with_boundary_needs_the_green_kernel() -> None:
    for kernel in (White(), MassiveGreen()):
        with pytest.raises(ValueError, match="roughness_with_boundary needs DirichletGreen, got"):
            theory.roughness_with_boundary(kernel, 3, 3, 1.0)


def test_flip_probability_with_a_mean() -> None:
    """Phi(-(m + mean) / s), with Phi from the error function of the standard library."""
    for margin, sd, mean in ((0.5, 0.7, 0.0), (0.5, 0.7, -0.4), (0.1, 2.0, 0.3), (1.0, 0.5, -1.0)):
        expected = 0.5 * math.erfc((margin + mean) / sd / math.sqrt(2))
        assert float(theory.flip_probability(margin, sd, mean)) == pytest.approx(expected, rel=1e-12)
    assert float(theory.flip_probability(0.5, 0.7)) == float(theory.flip_probability(0.5, 0.7, 0.0))


def test_pooled_distortion_figures() -> None:
    """Those of docs/theory.md, on a constant 7x7 map, with the factor over independent noise of equal variance."""
    kept = theory.dropblock_kept(0.1, 3, 7, 7)
    block_variance = float((kept * (1 - kept)).mean() / kept.mean() ** 2)
    wick_variance = float(theory.wick_gate_variance(DirichletGreen(), 7, 7, 1.0).mean())
    for covariance, variance, figures in (
        (theory.dropblock_covariance(0.1, 3, 7, 7), block_variance, (0.0264, 0.174, 7.4)),
        (theory.wick_gate_covariance(DirichletGreen(), 7, 7, 1.0), wick_variance, (0.0615, 0.490, 6.1)),
    ):
        distortion = theory.pooled_distortion(covariance)
        assert (round(distortion, 4), round(variance, 3), round(49 * distortion / variance, 1)) == figures


def test_the_page_on_theory_names_tests_that_exist() -> None:
    repository = Path(__file__).parents[2]
    named = set(re.findall(r"`(test_\w+)`", (repository / "docs" / "theory.md").read_text()))
    defined = {
        name for path in (repository / "tests").rglob("*.py") for name in re.findall(r"def (test_\w+)", path.read_text())
    }
    assert len(named) > 30
    assert not named - defined
