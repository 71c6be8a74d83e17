"""The nulls, against Haar rotations of SciPy, explicit products, and Gaussian matrices."""

import itertools
import math

import numpy as np
import pytest
import torch
from matrices import orthogonal
from scipy import stats
from torch import Tensor

from gch_bench.spectral import nulls
from gch_bench.spectral.linalg import decompose
from gch_bench.spectral.nulls import Alignment, Spectra, compared, gaussian_spectra, interface_nulls
from gch_bench.spectral.rotations import DENSE, DRAWS, haar_rotations
from gch_bench.spectral.transport import mean_cosine_squared, principal_angles


def haar(size: int, count: int) -> Tensor:
    return torch.from_numpy(stats.ortho_group.rvs(size, size=count, random_state=np.random.default_rng(1)))


def factor(rows: int, columns: int, exponent: float, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    count = min(rows, columns)
    values = torch.arange(1, count + 1, dtype=torch.float64) ** (-exponent / 2)
    return (orthogonal(rows, count, generator) * values) @ orthogonal(columns, count, generator).mT


def measured(first: Tensor, second: Tensor, windows: tuple[int, int] = (3, 5), seed: int = 0) -> Alignment:
    one, two = decompose(first), decompose(second)
    top, energy = float(torch.linalg.matrix_norm(second @ first, 2)), float((second @ first).square().sum())
    overlap = mean_cosine_squared(one, two, *windows)
    return interface_nulls(Spectra(one.values, two.values, len(first)), top, energy, (overlap, *windows), (seed, 0))


@pytest.mark.parametrize(("size", "inputs", "outputs"), [(12, 12, 12), (12, 5, 30), (30, 9, 7), (2, 2, 2), (130, 40, 130)])
def test_nulls_are_those_of_haar_rotations(size: int, inputs: int, outputs: int) -> None:
    """Mean and sd in closed form, and the drawn tops, against SciPy's Haar matrices; dimension 130 uses permuted ones."""
    first, second = factor(size, inputs, 1.5, 0), factor(outputs, size, 0.7, 1)
    windows = (min(2, inputs), min(3, outputs))
    found = measured(first, second, windows)
    rotations = haar(size, 1000 if size < 100 else 200)
    rotated = second @ rotations @ first
    norms = float(first.square().sum() * second.square().sum())
    gains = size * rotated.square().sum((1, 2)) / norms
    count = math.sqrt(len(gains))
    assert found.energy_gain.mean == 1
    assert float(gains.mean()) == pytest.approx(1, abs=4 * float(gains.std()) / count)
    assert found.energy_gain.sd == pytest.approx(float(gains.std()), rel=0.12)
    one, two = decompose(first), decompose(second)
    left = one.outputs[:, : windows[0]] / one.values[: windows[0]]
    right = two.inputs[: windows[1]] / two.values[: windows[1], None]
    cosines = (right @ rotations @ left).square().sum((1, 2)) / min(windows)
    assert found.mean_cosine_squared.mean == max(windows) / size
    assert float(cosines.mean()) == pytest.approx(max(windows) / size, abs=4 * float(cosines.std()) / count)
    assert found.mean_cosine_squared.sd == pytest.approx(float(cosines.std()), rel=0.15, abs=1e-9)
    both = math.log(float(one.values[0] * two.values[0]) / math.sqrt(norms)) + math.log(len(one.values) * len(two.values)) / 2
    slacks = (float((one.values[0] * two.values[0]).log()) - torch.linalg.matrix_norm(rotated, 2).log()) / both
    error = math.hypot(float(slacks.std()) / count, found.slack_ratio.sd / 9)
    assert found.slack_ratio.mean == pytest.approx(float(slacks.mean()), abs=4 * error)
    assert found.slack_ratio.sd == pytest.approx(float(slacks.std()), rel=0.45)


def test_a_drawn_top_is_that_of_its_rotation() -> None:
    """Lanczos against a dense singular value, for the very rotations."""
    size = DENSE + 40
    rotations = haar_rotations(size, 3)
    first, second = torch.rand(size - 20).double(), torch.linspace(2, 0.5, size).double()
    got = rotations.tops(first, second)
    assert len(got) == len(rotations.traces(first, second)) == DRAWS
    assert float(got.max()) <= float(first.max() * second.max()) * (1 + 1e-6)
    each = rotations.rows.shape[2]
    for draw in (0, each - 1, 2 * each, DRAWS - 1):
        base, at = divmod(draw, each)
        x, y = torch.zeros(size), second.float()
        x[: len(first)] = first.float()
        explicit = y[rotations.rows[base, :, at]][:, None] * rotations.bases[base] * x[rotations.columns[base, :, at]]
        assert float(got[draw]) == pytest.approx(float(torch.linalg.matrix_norm(explicit.double(), 2)), rel=1e-4)
    gram = rotations.bases[0] @ rotations.bases[0].mT
    assert torch.allclose(gram, torch.eye(size), atol=1e-5)


def test_aligned_and_turned_away() -> None:
    """The second factor reads what the first writes; then the opposite."""
    first, basis = factor(40, 40, 2.0, 0), factor(40, 40, 2.0, 1)
    left = torch.linalg.svd(first).U
    aligned = measured(first, left.mT, (4, 4))  # a flat spectrum: nothing to align with
    assert aligned.energy_gain.value == pytest.approx(1)
    assert math.isnan(aligned.energy_gain.z)
    weak_first = (basis * torch.arange(1, 41, dtype=torch.float64) ** -1.0) @ left.mT
    good = measured(first, weak_first, (4, 4))
    assert good.energy_gain.z > 5
    assert good.energy_gain.percentile == good.mean_cosine_squared.percentile == 100
    assert good.slack_ratio.percentile == 0
    away = measured(first, (basis * torch.arange(1, 41, dtype=torch.float64)) @ left.mT, (4, 4))
    assert away.energy_gain.percentile == 0
    assert away.slack_ratio.percentile == 100


def test_unrelated_factors_are_not_aligned() -> None:
    """Over 60 random pairs z has mean 0 and sd 1, and the percentile is uniform: nothing is found where nothing is."""
    rows = [measured(factor(24, 24, 1.0, 2 * i), factor(24, 24, 1.0, 2 * i + 1), seed=i) for i in range(60)]
    for name in Alignment._fields:
        z = np.array([getattr(row, name).z for row in rows])
        percentiles = [getattr(row, name).percentile / 100 for row in rows]
        assert abs(z.mean()) < 4 / math.sqrt(60), name
        assert 0.7 < z.std() < 1.4, name
        assert stats.kstest(percentiles, "uniform").pvalue > 1e-3, name


@pytest.mark.parametrize("exponent", [0.0, 0.3, 4.0])
@pytest.mark.parametrize("size", [DENSE + 3, 192])
def test_lanczos_of_flat_and_steep_spectra(size: int, exponent: float) -> None:
    """Flat spectra converge slowly, steep ones exhaust the Krylov space: single precision must get both right."""
    generator = torch.Generator().manual_seed(0)
    values = torch.arange(1, size + 1, dtype=torch.float64) ** -exponent
    first, second = (values * (1 + 0.1 * torch.rand(size, generator=generator)) for _ in range(2))
    rotations = haar_rotations(size, 0)
    got = rotations.tops(first, second)
    for draw in (0, 40):
        base, at = divmod(draw, rotations.rows.shape[2])
        x, y = first[rotations.columns[base, :, at]], second[rotations.rows[base, :, at]]
        exact = float(torch.linalg.matrix_norm(y[:, None] * rotations.bases[base].double() * x, 2))
        assert float(got[draw]) == pytest.approx(exact, rel=1e-4)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 6])
def test_permuted_gain_over_all_permutations(size: int) -> None:
    first, second = factor(size, 4, 1.0, 0), factor(6, size, 2.0, 1)
    norms = float(first.square().sum() * second.square().sum())
    orders = list(itertools.permutations(range(size)))
    gains = torch.tensor(
        [size * float((second[:, order] @ first).square().sum()) / norms for order in orders], dtype=torch.float64
    )
    found = nulls.permuted_gain(first, second, 2.0)
    assert found.mean == pytest.approx(float(gains.mean()), rel=1e-12)
    assert found.sd == pytest.approx(float(gains.std(correction=0)), rel=1e-6, abs=1e-9)
    assert found.z == pytest.approx((2.0 - found.mean) / found.sd) if size > 1 else math.isnan(found.z)


def test_flat_factors_have_no_slack_to_lose() -> None:
    eye = torch.eye(6, dtype=torch.float64)
    made = measured(eye, eye, (2, 2))
    assert math.isnan(made.slack_ratio.value)
    assert math.isnan(made.slack_ratio.percentile)
    assert made.energy_gain.value == pytest.approx(1)
    one = measured(torch.ones(1, 3).double(), torch.ones(2, 1).double(), (1, 1))
    assert (one.energy_gain.value, one.mean_cosine_squared.value) == (pytest.approx(1), pytest.approx(1))


def test_mean_cosine_is_that_of_the_angles() -> None:
    one, two = decompose(factor(9, 7, 1.0, 0)), decompose(factor(5, 9, 1.0, 1))
    for windows in ((1, 1), (3, 5), (7, 2)):
        expected = float(principal_angles(one, two, *windows).cos().square().mean())
        assert mean_cosine_squared(one, two, *windows) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("rows", "columns", "taps"), [(12, 12, 1), (40, 8, 1), (5, 9, 4), (6, 1, 1), (1, 1, 1)])
def test_gaussian_spectra_are_those_of_gaussian_matrices(rows: int, columns: int, taps: int) -> None:
    drawn = torch.cat([gaussian_spectra(rows, columns, taps, (seed, 0)) for seed in range(20)])
    generator = torch.Generator().manual_seed(9)
    matrices = torch.randn(400, taps, rows, columns, dtype=torch.float64, generator=generator)
    values = torch.linalg.svdvals(matrices).flatten(1).sort(1, descending=True).values
    values = values / torch.linalg.vector_norm(values, dim=1, keepdim=True)
    assert drawn.shape == values.shape
    for column in {0, values.shape[1] // 2, values.shape[1] - 1}:
        assert stats.ks_2samp(drawn[:, column].numpy().round(12), values[:, column].numpy().round(12)).pvalue > 1e-3


def test_draws_of_several_taps_share_no_matrix() -> None:
    """With a common stock of matrices the draws would be alike, and everything outside them."""
    drawn = gaussian_spectra(30, 1, 9).square()
    ratios = (drawn / drawn.sum(1, keepdim=True)).numpy()
    assert len(np.unique(ratios.round(12))) == ratios.size


def test_compared() -> None:
    draws = torch.tensor([1.0, 2.0, 2.0, 3.0], dtype=torch.float64)
    got = compared(2.0, draws)
    assert (got.mean, got.percentile, compared(2.5, draws).percentile) == (2.0, 25.0, 75.0)
    assert got.sd == pytest.approx(float(draws.std()))
    assert compared(2.5, draws, mean=1.0, sd=0.5).z == 3.0
    still = compared(1.0, torch.ones(4) + 1e-7 * torch.arange(4))  # nothing but the rounding of float32
    assert math.isnan(still.z)
    assert math.isnan(still.percentile)
    assert math.isnan(compared(math.nan, draws).percentile)
    assert compared(math.inf, draws).percentile == 100
