"""Theory 1.4: every exact statement, by Monte Carlo and by independent algebra, against the closed forms."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import norm
from timm.layers.drop import DropBlock2d

from gch_bench.noise import DirichletGreen, Gate, GaussianChaosNoise, HardMask, White, theory
from gch_bench.noise.kernels import KERNELS
from gch_bench.noise.laws import hard_mask, samplewise_gate, wick_gate

COUNT = 40_000
SIGMA = 5  # standard errors allowed


def gates(normalization: str, height: int, width: int, gamma: float = 0.8, beta: float = 1.5) -> torch.Tensor:
    noise = GaussianChaosNoise(gamma, beta, normalization=normalization)
    return noise.gate(COUNT, height, width, torch.Generator().manual_seed(7)).double()


@pytest.mark.parametrize("gamma", [0.0, 1.0, 100.0])
@pytest.mark.parametrize("name", KERNELS)
def test_samplewise_mean_is_one_in_every_sample(name: str, gamma: float) -> None:
    gate = Gate(KERNELS[name](), gamma).gate(64, 5, 7)
    assert torch.isfinite(gate).all()
    assert (gate >= 0).all()
    torch.testing.assert_close(gate.mean((1, 2)), torch.ones(64), atol=2e-6, rtol=0)


def test_samplewise_is_its_formula() -> None:
    psi = torch.randn(3, 4, 5, dtype=torch.float64)
    expected = np.exp(1.3 * psi.numpy())
    np.testing.assert_allclose(samplewise_gate(psi, 1.3), expected / expected.mean((1, 2), keepdims=True), rtol=1e-12)


def test_wick_moments() -> None:
    gamma = 0.6
    xi = gates("wick", 3, 4, gamma).flatten(1)
    covariance = DirichletGreen(1.5).covariance(3, 4)
    second = torch.exp(gamma**2 * covariance)
    mean_error = (xi.var(0) / COUNT).sqrt()
    assert ((xi.mean(0) - 1).abs() < SIGMA * mean_error).all()
    products = xi[:, :, None] * xi[:, None, :]
    assert ((products.mean(0) - second).abs() < SIGMA * (products.var(0) / COUNT).sqrt()).all()
    torch.testing.assert_close(theory.wick_gate_covariance(DirichletGreen(1.5), 3, 4, gamma), second - 1)


def test_wick_inside_ring_is_exactly_one() -> None:
    gate = GaussianChaosNoise(boundary="inside", normalization="wick").gate(5, 4, 6)
    assert (gate[:, 0] == 1).all()
    assert (gate[:, :, -1] == 1).all()
    assert (gate[:, 1:-1, 1:-1] != 1).all()


@pytest.mark.parametrize("normalization", ["samplewise", "wick"])
def test_log_ratio_deformation(normalization: str) -> None:
    """1: log(xi(x)/xi(y)) ~ N(mean, gamma^2 R / beta)."""
    gamma, beta, kernel = 0.8, 1.5, DirichletGreen(1.5)
    log_xi = gates(normalization, 3, 4, gamma, beta).flatten(1).log()
    ratio = log_xi[:, :, None] - log_xi[:, None, :]
    variance = theory.log_ratio_variance(kernel, 3, 4, gamma)
    torch.testing.assert_close(variance, gamma**2 * kernel.resistance(3, 4) / beta)
    mean = theory.log_ratio_mean(kernel, 3, 4, gamma, normalization)
    assert ((ratio.mean(0) - mean).abs() <= SIGMA * (variance / COUNT).sqrt() + 1e-7).all()
    assert ((ratio.var(0) - variance).abs() <= SIGMA * variance * math.sqrt(2 / COUNT) + 1e-7).all()
    green = kernel.covariance(3, 4).diagonal() * beta
    if normalization == "wick":
        torch.testing.assert_close(mean, -(gamma**2) * (green[:, None] - green[None, :]) / (2 * beta))


@pytest.mark.parametrize("margin", [0.1, 0.5, 1.5])
def test_ranking_stability(margin: float) -> None:
    """2: the order of features F(x) = e^m F(y) flips with probability Phi(-m/s)."""
    log_xi = gates("samplewise", 3, 4).flatten(1).log()
    sd = float(theory.log_ratio_variance(DirichletGreen(1.5), 3, 4, 0.8)[0, 6].sqrt())
    expected = float(theory.flip_probability(margin, sd))
    assert expected == pytest.approx(norm.cdf(-margin / sd), rel=1e-12)
    flipped = float((log_xi[:, 0] + margin < log_xi[:, 6]).double().mean())
    assert abs(flipped - expected) < SIGMA * math.sqrt(expected * (1 - expected) / COUNT)


@pytest.mark.parametrize(("side", "figure"), [(7, 0.80797), (14, 0.90038), (4, 0.67992)])
def test_intrinsic_roughness(side: int, figure: float) -> None:
    """3: against the theory's figures, and a sum over edges of the resistances (Foster)."""
    assert round(theory.roughness(DirichletGreen(), side, side, 1.0) / side**2, 5) == figure
    gamma, beta = 0.7, 2.0
    resistance = DirichletGreen().resistance(side, side)
    site = np.arange(side**2).reshape(side, side)
    edges = [
        *zip(site[:-1].ravel(), site[1:].ravel(), strict=True),
        *zip(site[:, :-1].ravel(), site[:, 1:].ravel(), strict=True),
    ]
    expected = gamma**2 / beta * sum(float(resistance[x, y]) for x, y in edges)
    assert theory.roughness(DirichletGreen(beta), side, side, gamma) == pytest.approx(expected, rel=1e-10)


def test_roughness_of_samples() -> None:
    """3, by Monte Carlo on a non-square map; the standard error is that of the samples."""
    log_xi = gates("samplewise", 3, 5).log()
    rough = log_xi.diff(dim=1).square().sum((1, 2)) + log_xi.diff(dim=2).square().sum((1, 2))
    expected = theory.roughness(DirichletGreen(1.5), 3, 5, 0.8)
    assert abs(float(rough.mean()) - expected) < SIGMA * float(rough.std()) / math.sqrt(COUNT)


def test_roughness_with_boundary_edges() -> None:
    """3: with the pinned field's boundary edges, exactly |U| gamma^2 / beta."""
    side, boundary = 5, np.zeros((5, 5))
    for edge in (boundary[0], boundary[-1], boundary[:, 0], boundary[:, -1]):
        edge += 1
    outside = (boundary * DirichletGreen(2.0).variance(side, side).numpy()).sum() * 0.9**2
    assert theory.roughness(DirichletGreen(2.0), side, side, 0.9) + outside == pytest.approx(side**2 * 0.9**2 / 2.0)
    with pytest.raises(ValueError, match="outside"):
        theory.roughness(DirichletGreen(boundary="inside"), side, side, 1.0)


def test_iid_masks_are_singular() -> None:
    """2 and 4: flips with probability p whatever the margin, infinite log-ratio with 1 - (1-p)^2, distortion sqrt(p/(1-p))."""
    p = 0.3
    torch.manual_seed(5)
    mask = torch.nn.Dropout(p)(torch.ones(COUNT, 2, dtype=torch.float64))
    for margin in (0.1, 10.0):
        flip_or_tie = float((math.exp(margin) * mask[:, 0] <= mask[:, 1]).double().mean())
        assert abs(flip_or_tie - p) < SIGMA * math.sqrt(p * (1 - p) / COUNT)
    infinite = float((mask == 0).any(1).double().mean())
    expected = 1 - (1 - p) ** 2
    assert abs(infinite - expected) < SIGMA * math.sqrt(expected * (1 - expected) / COUNT)
    for spread in (1.0, 1e-3):  # the relative distortion does not shrink as the sites become parallel
        features = torch.exp(spread * torch.randn(2, dtype=torch.float64))
        squared = ((mask - 1) * features).square().sum(1) / features.square().sum()
        error = float(squared.std()) / math.sqrt(COUNT)
        assert abs(float(squared.mean()) - theory.iid_mask_distortion(p) ** 2) < SIGMA * error


def test_pooled_distortion() -> None:
    """4: on a constant map E||mean F~ - mean F||^2 / ||mean F||^2 = mean of Cov(xi, xi); sample-wise: 0."""
    gamma = 0.8
    pooled = gates("wick", 4, 4, gamma).mean((1, 2))
    expected = theory.pooled_distortion(theory.wick_gate_covariance(DirichletGreen(1.5), 4, 4, gamma))
    squared = (pooled - 1) ** 2
    assert abs(float(squared.mean()) - expected) < SIGMA * float(squared.std()) / math.sqrt(COUNT)
    assert float(((gates("samplewise", 4, 4, gamma).mean((1, 2)) - 1) ** 2).max()) < 1e-12


def test_dropblock_removes_coherent_regions() -> None:
    """4: its pooled distortion on a constant map is above that of an iid mask with the same share of dropped sites."""
    torch.manual_seed(2)
    mask = DropBlock2d(0.1, block_size=3)(torch.ones(COUNT, 1, 8, 8))
    squared, dropped = (mask.double().mean((1, 2, 3)) - 1) ** 2, float((mask == 0).double().mean())
    iid = theory.pooled_distortion(theory.iid_mask_distortion(dropped) ** 2 * torch.eye(64))
    assert float(squared.mean()) - SIGMA * float(squared.std()) / math.sqrt(COUNT) > 2 * iid


@pytest.mark.parametrize("p", [0.0, 0.1, 0.11, 0.5, 0.99])
def test_hard_mask_keeps_the_largest(p: float) -> None:
    psi = torch.randn(20, 6, 5)
    mask = hard_mask(psi, p)
    kept = max(1, round((1 - p) * 30))
    assert ((mask > 0).sum((1, 2)) == kept).all()
    torch.testing.assert_close(mask.mean((1, 2)), torch.ones(20))
    for field, keep in zip(psi, mask > 0, strict=True):
        assert kept == 30 or field[keep].min() > field[~keep].max()
    assert HardMask(White(), p).gate(2, 6, 5).shape == (2, 6, 5)


def test_wick_is_its_formula() -> None:
    psi, variance = torch.randn(2, 3, 3, dtype=torch.float64), torch.rand(3, 3, dtype=torch.float64)
    expected = np.exp(0.9 * psi.numpy() - 0.9**2 / 2 * variance.numpy())
    np.testing.assert_allclose(wick_gate(psi, variance, 0.9), expected, rtol=1e-12)
