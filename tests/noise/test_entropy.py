"""The Green field has the largest entropy at equal energy: on all small grids, by optimisation, at random, as a divergence.

The dense matrices of these tests are built here with numpy's Kronecker product, not by the package.
"""

import math
from itertools import product

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch.distributions import MultivariateNormal, kl_divergence

from gch_bench.noise import DirichletGreen, MassiveGreen, PeriodicGreen, White, entropy
from gch_bench.noise.entropy import GREEN, field_energy, field_entropy, max_entropy_check, other_kernels
from gch_bench.noise.kernels import Kernel

CASES = [("outside", 1, 1), ("outside", 1, 7), ("outside", 3, 5), ("outside", 12, 11), ("inside", 3, 4), ("inside", 5, 8)]


def laplacian(height: int, width: int, boundary: str) -> np.ndarray:
    """The Dirichlet Laplacian on the free sites, (N, N)."""
    ring = 2 * (boundary == "inside")
    rows, columns = (2 * np.eye(n) - np.eye(n, k=1) - np.eye(n, k=-1) for n in (height - ring, width - ring))
    return np.kron(rows, np.eye(len(columns))) + np.kron(np.eye(len(rows)), columns)


def free_covariance(kernel: Kernel, height: int, width: int, boundary: str) -> np.ndarray:
    """Cov psi on the free sites, (N, N), by the dense method of the kernel."""
    if boundary == "inside" and not kernel.pinned:
        return kernel.covariance(height - 2, width - 2).numpy()
    covariance = kernel.covariance(height, width).numpy()
    free = np.ones((height, width), dtype=bool)
    if boundary == "inside":
        free[[0, -1]] = free[:, [0, -1]] = False
    return covariance[np.ix_(free.ravel(), free.ravel())]


def dense_entropy(covariance: np.ndarray) -> float:
    sign, log_determinant = np.linalg.slogdet(2 * math.pi * math.e * covariance)
    assert sign == 1
    return float(log_determinant / 2)


@pytest.mark.parametrize("boundary", ["outside", "inside"])
def test_green_has_the_largest_entropy_on_every_grid(boundary: str) -> None:
    smallest = 3 if boundary == "inside" else 1
    for height, width in product(range(smallest, 13), repeat=2):
        found = max_entropy_check(height, width, boundary=boundary)
        assert found.holds
        assert found.sites == len(laplacian(height, width, boundary))
        assert found.beta == 1
        for name in other_kernels(boundary):
            gap = found.gap[name]
            if found.sites == 1 and name != "periodic":  # every covariance on one site is a multiple of Green's
                assert gap == 0
                assert found.entropy[name] == pytest.approx(found.entropy[GREEN], abs=1e-12)
            else:
                assert gap > 1e-6, (height, width, name)
                assert gap == found.entropy[GREEN] - found.entropy[name]
            assert found.gap_per_site[name] == gap / found.sites
        assert found.entropy["periodic"] == -math.inf


@pytest.mark.parametrize(("boundary", "height", "width"), CASES)
def test_entropy_and_energy_are_those_of_dense_matrices(boundary: str, height: int, width: int) -> None:
    dense, beta = laplacian(height, width, boundary), 1.7
    sites = len(dense)
    green = DirichletGreen(beta, boundary)
    expected = (sites * math.log(2 * math.pi * math.e / beta) - np.linalg.slogdet(dense)[1]) / 2
    assert field_entropy(green, height, width) == pytest.approx(expected, rel=1e-11)
    assert field_energy(green, height, width, boundary) == pytest.approx(sites / (2 * beta), rel=1e-12)
    massive = MassiveGreen(beta, boundary, mass=0.6)
    expected = (sites * math.log(2 * math.pi * math.e / beta) - np.linalg.slogdet(dense + 0.36 * np.eye(sites))[1]) / 2
    assert field_entropy(massive, height, width) == pytest.approx(expected, rel=1e-11)
    for name, kernel in (other_kernels(boundary) | {"matched": DirichletGreen(boundary=boundary, match_variance=True)}).items():
        covariance = free_covariance(kernel, height, width, boundary)
        energy = float(np.trace(dense @ covariance)) / 2
        assert field_energy(kernel, height, width, boundary) == pytest.approx(energy, rel=1e-11, abs=1e-14)
        if name != "periodic":
            found = max_entropy_check(height, width, energy=3.0, boundary=boundary, kernels={name: kernel})
            assert found.entropy[name] == pytest.approx(dense_entropy(covariance * 3 / energy), rel=1e-10)
    assert field_entropy(White(beta), height, width) == pytest.approx(
        height * width / 2 * math.log(2 * math.pi * math.e / beta), rel=1e-12
    )
    assert field_entropy(PeriodicGreen(), height, width) == -math.inf


@pytest.mark.parametrize(("boundary", "height", "width"), CASES[:-1])
def test_gap_is_the_divergence_from_the_green_field(boundary: str, height: int, width: int) -> None:
    dense, energy = laplacian(height, width, boundary), 2.3
    found = max_entropy_check(height, width, energy, boundary)
    assert found.beta == len(dense) / (2 * energy)
    green = MultivariateNormal(torch.zeros(len(dense)).double(), precision_matrix=torch.as_tensor(found.beta * dense))
    for name, kernel in other_kernels(boundary).items():
        covariance = torch.as_tensor(free_covariance(kernel, height, width, boundary))
        if name == "periodic":  # no density on U
            assert found.gap[name] == math.inf
            continue
        covariance = covariance * energy / (0.5 * float((torch.as_tensor(dense) * covariance).sum()))
        field = MultivariateNormal(torch.zeros(len(dense)).double(), covariance)
        assert found.gap[name] == pytest.approx(float(kl_divergence(field, green)), rel=1e-8, abs=1e-10)


def excess(covariance_NN: torch.Tensor, dense: torch.Tensor, log_determinant: torch.Tensor) -> torch.Tensor:
    """Minus the entropy, up to a constant, of the covariance after it is scaled to energy |U| / 2."""
    return 0.5 * len(dense) * torch.log((dense * covariance_NN).sum() / len(dense)) - 0.5 * log_determinant


def optimised(objective, start: np.ndarray) -> np.ndarray:
    def value_and_gradient(values: np.ndarray) -> tuple[float, np.ndarray]:
        point = torch.as_tensor(values).requires_grad_()
        value = objective(point)
        return float(value.detach()), torch.autograd.grad(value, point)[0].numpy()

    options = {"maxiter": 5000, "maxfun": 20000, "ftol": 1e-15, "gtol": 1e-9}
    return minimize(value_and_gradient, start, jac=True, method="L-BFGS-B", options=options).x


@pytest.mark.parametrize(("boundary", "height", "width"), [("outside", 3, 4), ("inside", 4, 5), ("outside", 1, 5)])
@pytest.mark.parametrize("seed", [0, 1])
def test_optimisation_over_the_basis_ends_at_the_green_kernel(boundary: str, height: int, width: int, seed: int) -> None:
    """Free variances of the modes of L; the start is random over four orders of magnitude."""
    eigenvalues, modes = (torch.as_tensor(part) for part in np.linalg.eigh(laplacian(height, width, boundary)))
    dense, count = modes @ eigenvalues.diag() @ modes.T, len(eigenvalues)

    def objective(log_variance: torch.Tensor) -> torch.Tensor:
        return excess(modes @ log_variance.exp().diag() @ modes.T, dense, log_variance.sum())

    variance = np.exp(optimised(objective, np.random.default_rng(seed).normal(0, 2, count)))
    variance *= count / (eigenvalues.numpy() * variance).sum()
    np.testing.assert_allclose(variance, 1 / eigenvalues.numpy(), rtol=1e-5)


@pytest.mark.parametrize(("boundary", "height", "width"), [("outside", 3, 4), ("inside", 4, 5), ("outside", 1, 5)])
@pytest.mark.parametrize("seed", [0, 1])
def test_optimisation_over_all_covariances_ends_at_the_green_kernel(boundary: str, height: int, width: int, seed: int) -> None:
    """A free Cholesky factor with a random start: nothing of the kernel's basis is given to the optimiser."""
    dense = torch.as_tensor(laplacian(height, width, boundary))
    count = len(dense)
    rows, columns = torch.tril_indices(count, count)
    diagonal = rows == columns

    def factor(values: torch.Tensor) -> torch.Tensor:
        entries = torch.where(diagonal, values.exp(), values)
        return torch.zeros(count, count, dtype=torch.float64).index_put((rows, columns), entries)

    def objective(values: torch.Tensor) -> torch.Tensor:
        root = factor(values)
        return excess(root @ root.T, dense, 2 * values[diagonal].sum())

    values = optimised(objective, np.random.default_rng(seed).normal(0, 1, len(rows)))
    covariance = factor(torch.as_tensor(values)) @ factor(torch.as_tensor(values)).T
    covariance *= count / (dense * covariance).sum()
    green = free_covariance(DirichletGreen(boundary=boundary), height, width, boundary)
    assert np.abs(covariance.numpy() - green).max() < 1e-5 * green.max()
    assert dense_entropy(covariance.numpy()) == pytest.approx(
        max_entropy_check(height, width, boundary=boundary).entropy[GREEN]
    )


@pytest.mark.parametrize(("boundary", "height", "width"), [("outside", 3, 4), ("inside", 5, 4), ("outside", 1, 2)])
def test_no_random_covariance_has_more_entropy(boundary: str, height: int, width: int) -> None:
    """Wishart matrices of all shapes, and small changes of the Green covariance, which nearly reach the maximum."""
    dense, generator = laplacian(height, width, boundary), np.random.default_rng(4)
    count = len(dense)
    found = max_entropy_check(height, width, energy=1.5, boundary=boundary)
    root = np.linalg.cholesky(np.linalg.inv(dense))
    closest = math.inf
    for size in (0.01, 0.1, 1.0, 10.0):
        for _ in range(500):
            change = np.eye(count) + size * generator.normal(size=(count, count))
            covariance = root @ change @ change.T @ root.T if generator.random() < 0.5 else change @ change.T
            covariance *= 1.5 / (np.trace(dense @ covariance) / 2)
            gap = found.entropy[GREEN] - dense_entropy(covariance)
            assert gap > 0
            closest = min(closest, gap)
    assert closest < 0.01, "some candidates should come close, or the test would be empty"


@pytest.mark.parametrize(
    ("side", "figures"),
    [
        (4, (0.06380, 0.00007, 0.00650, 0.04641, math.inf, 0.01990)),
        (7, (0.07988, 0.00019, 0.01101, 0.05992, math.inf, 0.01928)),
        (14, (0.09312, 0.00054, 0.01603, 0.07143, math.inf, 0.02019)),
    ],
)
def test_gap_figures(side: int, figures: tuple[float, ...]) -> None:
    """Those of docs/theory.md, in nats per site; they do not depend on the energy."""
    for energy in (None, 0.1):
        found = max_entropy_check(side, side, energy).gap_per_site.values()
        assert tuple(round(gap, 5) for gap in found) == figures


def test_the_verdict_follows_from_the_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    assert max_entropy_check(4, 5).holds
    with monkeypatch.context() as patch:
        patch.setattr(entropy, "_entropy", lambda spectrum: -float(spectrum.amplitude_HW.log().sum()))
        assert not max_entropy_check(4, 5).holds


def test_kernels_of_the_users_own() -> None:
    same = {"beta": DirichletGreen(3.0), "no mass": MassiveGreen(mass=0), GREEN: DirichletGreen()}
    found = max_entropy_check(4, 5, kernels=same | {"small mass": MassiveGreen(mass=1e-2)})
    assert [found.gap[name] for name in same] == [0, 0, 0]
    assert 0 < found.gap["small mass"] < 1e-6
    assert found.holds


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: max_entropy_check(4, 4, energy=0), "^energy must be a finite number > 0, got 0$"),
        (lambda: max_entropy_check(4, 4, energy=-1.0), "^energy must be a finite number > 0, got -1.0$"),
        (lambda: max_entropy_check(4, 4, boundary="round"), "^boundary must be one of outside, inside, got 'round'$"),
        (lambda: max_entropy_check(0, 4), "^height must be a whole number >= 1, got 0$"),
        (lambda: max_entropy_check(4, 2, boundary="inside"), "^width must be a whole number >= 3, got 2$"),
        (lambda: field_energy(White(), 3, 2, "inside"), "^width must be a whole number >= 3, got 2$"),
        (lambda: field_energy(White(), 3, 3, "round"), "^boundary must be one of outside, inside, got 'round'$"),
        (
            lambda: field_energy(DirichletGreen(boundary="inside"), 4, 4),
            "^boundary must be the kernel's own, inside, got 'outside'$",
        ),
        (lambda: field_entropy(DirichletGreen(boundary="inside"), 2, 4), "at least 3x3, got 2x4"),
        (lambda: field_entropy(White(), 0, 4), "a grid must be at least 1x1, got 0x4"),
        (lambda: entropy.RidgedPeriodicGreen(ridge=0), "^ridge must be a finite number > 0, got 0$"),
    ],
)
def test_bad_input(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
