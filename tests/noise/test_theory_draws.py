"""The exact statements of the theory against 100,000 draws of the program's own mechanisms, within 5 standard errors."""

import math
from functools import cache

import pytest
import torch
from scipy.stats import norm

from gch_bench.noise import DirichletGreen, GaussianChaosNoise, HardMask, theory
from gch_bench.noise.draws import GlobalDraws
from gch_bench.noise.dropout import DropBlock, Dropout
from gch_bench.noise.mechanism import Mechanism

COUNT = 100_000
SIGMA = 5  # standard errors allowed
GAMMA, BETA = 0.9, 0.7
GRIDS = [("outside", 3, 4), ("outside", 1, 5), ("inside", 4, 5)]
LAWS = ["samplewise", "wick"]


@cache
def log_gates(normalization: str, boundary: str, height: int, width: int) -> torch.Tensor:
    noise = GaussianChaosNoise(GAMMA, BETA, boundary, normalization)
    return noise.gate(COUNT, height, width, torch.Generator().manual_seed(11)).double().flatten(1).log()


def masks(mechanism: Mechanism, *shape: int) -> torch.Tensor:
    """COUNT draws of the gate on one channel: (COUNT, N)."""
    torch.manual_seed(12)
    return mechanism.draw(torch.empty(COUNT, 1, *shape), GlobalDraws(torch.device("cpu"))).double().flatten(1)


def close(found: float, values: torch.Tensor) -> bool:
    """Whether the number agrees with the mean of independent values, by their own standard error."""
    return abs(float(values.mean()) - found) < SIGMA * float(values.std()) / math.sqrt(len(values)) + 1e-12


def share_is(expected: float, events: torch.Tensor) -> bool:
    return abs(float(events.double().mean()) - expected) < SIGMA * math.sqrt(expected * (1 - expected) / len(events)) + 1e-12


@pytest.mark.parametrize("normalization", LAWS)
@pytest.mark.parametrize("grid", GRIDS)
def test_log_ratio_mean_and_variance(normalization: str, grid: tuple[str, int, int]) -> None:
    """1.4.1, for all pairs of sites; a ratio is normal, so its sample variance has the standard error s^2 sqrt(2 / n)."""
    boundary, height, width = grid
    kernel = DirichletGreen(BETA, boundary)
    log_xi = log_gates(normalization, *grid)
    variance = theory.log_ratio_variance(kernel, height, width, GAMMA)
    mean = theory.log_ratio_mean(kernel, height, width, GAMMA, normalization)
    assert (normalization == "wick") == bool(mean.any())
    for x in range(height * width):
        ratio = log_xi[:, x : x + 1] - log_xi
        assert ((ratio.mean(0) - mean[x]).abs() <= SIGMA * (variance[x] / COUNT).sqrt() + 1e-6).all()
        assert ((ratio.var(0) - variance[x]).abs() <= SIGMA * variance[x] * math.sqrt(2 / COUNT) + 1e-9).all()


@pytest.mark.parametrize("normalization", LAWS)
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("margin", [0.05, 0.5, 1.5])
def test_order_flips(normalization: str, grid: tuple[str, int, int], margin: float) -> None:
    """1.4.2: Phi(-m/s) for the sample-wise gate, Phi(-(m + mean)/s) for Wick, in both directions of a pair."""
    boundary, height, width = grid
    kernel = DirichletGreen(BETA, boundary)
    log_xi = log_gates(normalization, *grid)
    x, y = {("outside", 3, 4): (0, 6), ("outside", 1, 5): (0, 2), ("inside", 4, 5): (0, 7)}[grid]  # edge and middle
    for one, other in ((x, y), (y, x)):
        sd = float(theory.log_ratio_variance(kernel, height, width, GAMMA)[one, other].sqrt())
        mean = float(theory.log_ratio_mean(kernel, height, width, GAMMA, normalization)[one, other])
        assert (abs(mean) > 0.01) == (normalization == "wick")
        expected = float(theory.flip_probability(margin, sd, mean))
        assert expected == pytest.approx(norm.cdf(-(margin + mean) / sd), rel=1e-12)
        assert share_is(expected, margin + log_xi[:, one] - log_xi[:, other] < 0)


@pytest.mark.parametrize("normalization", LAWS)
@pytest.mark.parametrize("grid", GRIDS)
def test_roughness(normalization: str, grid: tuple[str, int, int]) -> None:
    """1.4.3, over the edges of the map."""
    boundary, height, width = grid
    log_xi = log_gates(normalization, *grid).view(-1, height, width)
    rough = log_xi.diff(dim=1).square().sum((1, 2)) + log_xi.diff(dim=2).square().sum((1, 2))
    assert close(theory.edge_roughness(DirichletGreen(BETA, boundary), height, width, GAMMA, normalization), rough)


def test_roughness_with_the_pinned_ring() -> None:
    """1.4.3: |U| gamma^2 / beta, with psi = 0 around the map."""
    psi = DirichletGreen(BETA).sample(COUNT, 3, 4, torch.Generator().manual_seed(3)).double()
    pinned = torch.nn.functional.pad(psi, [1] * 4)
    rough = pinned.diff(dim=1).square().sum((1, 2)) + pinned.diff(dim=2).square().sum((1, 2))
    assert close(theory.roughness_with_boundary(DirichletGreen(BETA), 3, 4, GAMMA), GAMMA**2 * rough)
    assert theory.roughness_with_boundary(DirichletGreen(BETA), 3, 4, GAMMA) == pytest.approx(12 * GAMMA**2 / BETA)


@pytest.mark.parametrize("p", [0.1, 0.4])
def test_iid_masks_destroy_the_order_and_are_singular(p: float) -> None:
    """1.4.2 and 1.4.4: flip or tie with p whatever the margin; an infinite or undefined log-ratio with 1 - (1-p)^2."""
    mask = masks(Dropout(p), 1, 2)
    for margin in (0.0001, 0.5, 20.0):
        assert share_is(p, math.exp(margin) * mask[:, 0] <= mask[:, 1])
    assert share_is(1 - (1 - p) ** 2, ~(mask[:, 0] / mask[:, 1]).log().isfinite())


def test_hard_mask_of_a_field_destroys_the_order_where_it_drops() -> None:
    """1.4.2: sites of a field's mask are not independent, but the order is lost exactly where x is dropped, at any margin."""
    mask = masks(HardMask(DirichletGreen(), 0.25), 3, 4)
    dropped = mask[:, 0] == 0
    assert 0.05 < float(dropped.double().mean()) < 0.5
    for margin in (0.0001, 20.0):
        assert torch.equal(math.exp(margin) * mask[:, 0] <= mask[:, 6], dropped)
    assert float((log_gates("samplewise", "outside", 3, 4)).isfinite().double().mean()) == 1


@pytest.mark.parametrize("spread", [0.0, 0.3, 3.0])
def test_pooled_distortion_and_coherence(spread: float) -> None:
    """1.4.4: an iid mask changes the pooled feature by p / (1-p) / (N kappa), a block mask by more than its equal variance."""
    p, generator = 0.3, torch.Generator().manual_seed(5)
    features = 1 + spread * torch.randn(16, 3, generator=generator, dtype=torch.float64)
    pooled = features.mean(0)
    kappa = float(pooled @ pooled / (features @ features.T).diagonal().mean())
    assert theory.coherence(features) == pytest.approx(kappa, rel=1e-12)
    assert (kappa == pytest.approx(1)) == (spread == 0)
    iid = p / (1 - p) / (16 * kappa)
    assert theory.pooled_distortion(p / (1 - p) * torch.eye(16).double(), features) == pytest.approx(iid, rel=1e-12)
    for mechanism, covariance in (
        (Dropout(p), p / (1 - p) * torch.eye(16).double()),
        (GaussianChaosNoise(GAMMA, BETA, normalization="wick"), theory.wick_gate_covariance(DirichletGreen(BETA), 4, 4, GAMMA)),
    ):
        change = (masks(mechanism, 4, 4) - 1) @ features / 16
        assert close(theory.pooled_distortion(covariance, features), change.square().sum(1) / (pooled @ pooled))
    if spread == 0:
        assert theory.pooled_distortion(covariance, features) == pytest.approx(theory.pooled_distortion(covariance))
        block = theory.dropblock_covariance(p, 2, 4, 4)
        assert theory.pooled_distortion(block) > 2 * float(block.diagonal().mean()) / 16
        assert close(theory.pooled_distortion(block), (masks(DropBlock(p, 2), 4, 4).mean(1) - 1).square())


@pytest.mark.parametrize("spread", [0.1, 1.0])
def test_contrast_is_amplified_by_coherence(spread: float) -> None:
    """1.4.4: iid masks multiply mean ||F(x) - mean F||^2 by 1 + v (1 - 1/N) / (1 - kappa), but ||F||^2 by 1 + v."""
    p, generator = 0.3, torch.Generator().manual_seed(6)
    features = 1 + spread * torch.randn(12, 3, generator=generator, dtype=torch.float64)
    noisy = masks(Dropout(p), 3, 4)[:, :, None] * features
    contrast = (noisy - noisy.mean(1, keepdim=True)).square().sum(2).mean(1)
    variance = theory.iid_mask_distortion(p) ** 2
    factor = 1 + variance * (1 - 1 / 12) / (1 - theory.coherence(features))
    assert close(factor * float((features - features.mean(0)).square().sum(1).mean()), contrast)
    assert close(variance, (noisy - features).square().sum((1, 2)) / features.square().sum())


@pytest.mark.parametrize(("mean", "sd"), [(0.0, 1.0), (2.0, 0.5)])
def test_batchnorm_records_an_inflated_variance(mean: float, sd: float) -> None:
    """1.3: 1 + (1 + mean^2 / variance) Var xi, read from the layer's running variance."""
    height, width, generator = 3, 4, torch.Generator().manual_seed(8)
    features = mean + sd * torch.randn(COUNT, 1, height, width, generator=generator)
    noisy = features * log_gates("wick", "outside", height, width).exp().view_as(features).float()
    layer = torch.nn.BatchNorm2d(1, momentum=1.0).train()
    layer(noisy)
    gate_variance = float(theory.wick_gate_variance(DirichletGreen(BETA), height, width, GAMMA).mean())
    expected = theory.batchnorm_inflation(gate_variance, mean, sd**2)
    assert expected > 1.3
    spread = (noisy - mean).square().mean((1, 2, 3)).double()
    assert close(expected * sd**2, spread)
    assert float(layer.running_var[0]) == pytest.approx(float(spread.mean()), rel=1e-3)


def test_a_site_norm_removes_a_gate() -> None:
    """1.3: a LayerNorm over the channels of each site hides positive gates and noise that all channels share, not masks."""
    features = torch.randn(8, 3, 4, 16, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    layer = torch.nn.LayerNorm(16, eps=0.0, dtype=torch.float64)
    for law in LAWS:
        gate = log_gates(law, "outside", 3, 4)[:8].exp().view(8, 3, 4, 1)
        torch.testing.assert_close(layer(features * gate), layer(features))
    shared = DirichletGreen().sample(8, 3, 4, torch.Generator().manual_seed(1)).double()[..., None]
    torch.testing.assert_close(layer(features + shared), layer(features))
    mask = masks(Dropout(0.4), 3, 4)[:8].view(8, 3, 4, 1)
    changed = torch.nn.LayerNorm(16, dtype=torch.float64)(features * mask) - layer(features)
    assert float(changed.detach().abs().max()) > 0.1
