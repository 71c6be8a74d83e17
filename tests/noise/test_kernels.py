"""Kernels against a Laplacian built by loops and inverted by numpy, an FFT, and published values of its variance."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from gch_bench.noise import DirichletGreen, MassiveGreen, PeriodicGreen, White
from gch_bench.noise.kernels import DENSE_SITES, KERNELS, Kernel, _on_device, variance_on

GRIDS = [(1, 1), (1, 5), (4, 4), (3, 6), (7, 7)]
ALL = [White(), DirichletGreen(), DirichletGreen(boundary="inside"), MassiveGreen(mass=0.7), PeriodicGreen()]


def dense_laplacian(height: int, width: int, periodic: bool = False) -> np.ndarray:
    """4 on the diagonal, -1 for each neighbour in the grid (or on the torus)."""
    laplacian = np.zeros((height * width, height * width))
    for i in range(height):
        for j in range(width):
            laplacian[i * width + j, i * width + j] += 4
            for k, m in ((i + 1, j), (i - 1, j), (i, j + 1), (i, j - 1)):
                if periodic:
                    laplacian[i * width + j, (k % height) * width + m % width] -= 1
                elif 0 <= k < height and 0 <= m < width:
                    laplacian[i * width + j, k * width + m] -= 1
    return laplacian


def dense_covariance(kernel: Kernel, height: int, width: int) -> np.ndarray:
    """Cov psi at beta = 1 of any kernel, by numpy."""
    if isinstance(kernel, White):
        return np.eye(height * width)
    if isinstance(kernel, PeriodicGreen):
        return np.linalg.pinv(dense_laplacian(height, width, periodic=True), rcond=1e-12)
    mass = kernel.mass if isinstance(kernel, MassiveGreen) else 0.0
    ring = int(getattr(kernel, "boundary", "outside") == "inside")
    free = dense_laplacian(height - 2 * ring, width - 2 * ring)
    green = np.linalg.inv(free + mass**2 * np.eye(len(free)))
    inner = np.zeros((height, width), dtype=bool)
    inner[ring : height - ring, ring : width - ring] = True
    full = np.zeros((height * width, height * width))
    full[np.ix_(inner.ravel(), inner.ravel())] = green
    return full


def grids_of(kernel: Kernel) -> list[tuple[int, int]]:
    smallest = 3 if getattr(kernel, "boundary", None) == "inside" else 1
    return [grid for grid in GRIDS if min(grid) >= smallest]


@pytest.mark.parametrize("kernel", ALL, ids=str)
@pytest.mark.parametrize("beta", [1.0, 2.5])
def test_covariance_is_the_dense_inverse(kernel: Kernel, beta: float) -> None:
    for height, width in grids_of(kernel):
        covariance = replace(kernel, beta=beta).covariance(height, width)
        np.testing.assert_allclose(covariance, dense_covariance(kernel, height, width) / beta, atol=1e-12)
        np.testing.assert_allclose(
            replace(kernel, beta=beta).variance(height, width).flatten(), covariance.diagonal(), atol=1e-13
        )


def test_figures_of_the_theory() -> None:
    kernel = DirichletGreen()
    figures: dict[int, tuple[float | None, ...]] = {
        1: (0.25, 0.25, 0.25),
        7: (0.3022, 0.3974, 0.4890),
        14: (None, 0.4735, 0.5886),
        28: (None, 0.5605, None),
        56: (None, 0.6556, 0.8025),
    }
    for side, expected in figures.items():
        variance = kernel.variance(side, side)
        for value, figure in zip((variance.min(), variance.mean(), variance.max()), expected, strict=True):
            assert figure is None or round(float(value), 4) == figure


def test_periodic_equals_the_fourier_series() -> None:
    height, width = 4, 6
    k, m = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    eigenvalues = 4 - 2 * np.cos(2 * np.pi * k / height) - 2 * np.cos(2 * np.pi * m / width)
    eigenvalues[0, 0] = np.inf
    first_row = np.fft.ifft2(1 / eigenvalues).real
    np.testing.assert_allclose(PeriodicGreen().covariance(height, width)[0], first_row.ravel(), atol=1e-13)


@pytest.mark.parametrize("kernel", ALL, ids=str)
@pytest.mark.parametrize("grid", [(5, 4), (3, 90)], ids=["dense", "separable"])
def test_samples_have_the_covariance(kernel: Kernel, grid: tuple[int, int]) -> None:
    """Both sampling paths; every entry within 5.5 standard errors sqrt((C_xx C_yy + C_xy^2) / n): 73,000 of them at most."""
    count = 20_000
    psi = kernel.sample(count, *grid, torch.Generator().manual_seed(3)).flatten(1).double()
    expected = torch.as_tensor(dense_covariance(kernel, *grid))
    error = psi.T @ psi / count - expected
    variance = expected.diagonal()
    standard_error = ((variance[:, None] * variance[None, :] + expected**2) / count).sqrt()
    assert (math.prod(grid) > DENSE_SITES) == (grid == (3, 90))
    assert (error.abs() <= 5.5 * standard_error + 1e-12).all()


def test_dense_and_separable_products_agree() -> None:
    spectrum, root = _on_device(DirichletGreen(), 6, 5, torch.device("cpu"), torch.float64)
    z = torch.randn(3, 6, 5, dtype=torch.float64)
    separable = spectrum.basis_HH.T @ (spectrum.amplitude_HW * z) @ spectrum.basis_WW
    torch.testing.assert_close((z.flatten(1) @ root).view_as(z), separable)


def test_inside_ring_is_pinned() -> None:
    psi = DirichletGreen(boundary="inside").sample(10, 5, 6)
    ring = torch.ones(5, 6, dtype=torch.bool)
    ring[1:-1, 1:-1] = False
    assert (psi[:, ring] == 0).all()
    assert (psi[:, ~ring] != 0).all()
    with pytest.raises(ValueError, match=r'boundary="inside" needs a map of at least 3x3, got 2x7'):
        DirichletGreen(boundary="inside").sample(1, 2, 7)


@pytest.mark.parametrize("boundary", ["outside", "inside"])
def test_energy_budget(boundary: str) -> None:
    """E[1/2 <psi, L psi>] = trace(L C) / 2 = energy."""
    height, width, energy = 5, 6, 3.7
    ring = int(boundary == "inside")
    covariance = DirichletGreen(boundary=boundary, energy=energy).covariance(height, width).numpy()
    inner = np.zeros((height, width), dtype=bool)
    inner[ring : height - ring, ring : width - ring] = True
    laplacian = dense_laplacian(height - 2 * ring, width - 2 * ring)
    assert np.trace(laplacian @ covariance[np.ix_(inner.ravel(), inner.ravel())]) / 2 == pytest.approx(energy, rel=1e-12)


@pytest.mark.parametrize("name", KERNELS)
def test_match_variance(name: str) -> None:
    kernel = KERNELS[name](beta=3.0, match_variance=True)
    assert float(kernel.variance(6, 4).mean()) == pytest.approx(1, rel=1e-12)
    inside = DirichletGreen(boundary="inside", match_variance=True).variance(6, 4)
    assert float(inside[1:-1, 1:-1].mean()) == pytest.approx(1, rel=1e-12)


def test_resistance_is_that_of_the_grounded_grid() -> None:
    """Unit current in at x, out at y, the boundary grounded: the voltage between them."""
    height, width = 3, 4
    laplacian = dense_laplacian(height, width)
    resistance = DirichletGreen(beta=7.0).resistance(height, width)
    for x, y in ((0, 11), (5, 6), (3, 3)):
        current = np.zeros(height * width)
        current[x] += 1
        current[y] -= 1
        voltage = np.linalg.solve(laplacian, current)
        assert float(resistance[x, y]) == pytest.approx(voltage[x] - voltage[y], abs=1e-12)


def test_generator_decides_the_draw() -> None:
    kernel = DirichletGreen()
    first, again = (kernel.sample(2, 4, 4, torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, kernel.sample(2, 4, 4, torch.Generator().manual_seed(2)))


def test_matrices_are_cached_per_grid_device_and_dtype() -> None:
    key = (DirichletGreen(beta=1.25), 5, 5, torch.device("cpu"), torch.float32)
    with torch.inference_mode():
        first = _on_device(*key)
    assert _on_device(DirichletGreen(beta=1.25), *key[1:]) is first
    assert _on_device(*key[:4], torch.float64) is not first
    assert not first[0].amplitude_HW.is_inference()
    assert not variance_on(*key).is_inference()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DirichletGreen(beta=0), "beta must be a finite number > 0, got 0"),
        (lambda: White(beta=math.nan), "beta must be a finite number > 0, got nan"),
        (lambda: DirichletGreen(boundary="round"), "boundary must be one of outside, inside, got 'round'"),
        (lambda: DirichletGreen(energy=-1), "energy must be a finite number > 0, got -1"),
        (lambda: DirichletGreen(beta=2.0, energy=1.0), "give one of them, got energy=1 and beta=2"),
        (lambda: MassiveGreen(mass=-0.1), "mass must be a finite number >= 0, got -0.1"),
        (lambda: White().variance(0, 3), "a grid must be at least 1x1, got 0x3"),
    ],
)
def test_bad_input(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
