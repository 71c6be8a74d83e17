"""weightwatcher's alpha against weightwatcher and powerlaw themselves, and the exponent that is freed of the aspect ratio."""

import math
import time
import warnings

import numpy as np
import powerlaw
import pytest
import torch
from hypothesis import given, settings
from matrices import BAD_MATRICES, made, refusal, seeds
from torch import Tensor
from weightwatcher.WW_powerlaw import WWFit

from gch_bench.spectral.gibbs import fit_exponent
from gch_bench.spectral.power_law import LEAST_TAIL, power_law_tail, square_exponent

SHAPES = [(8, 8), (10, 30), (19, 25), (20, 20), (64, 256), (100, 120), (300, 300)]


def eigenvalues(rows: int, columns: int, kind: str = "gaussian", seed: int = 0) -> Tensor:
    return torch.linalg.svdvals(made(rows, columns, kind, 1.5, 1.0, seed)).square()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", ["gaussian", "power law", "coarse"])
def test_alpha_is_weightwatchers(shape: tuple[int, int], kind: str) -> None:
    values = eigenvalues(*shape, kind=kind, seed=sum(shape))
    own, theirs = power_law_tail(values), WWFit(values.numpy().copy())
    assert own.alpha == pytest.approx(theirs.alpha, abs=1e-6)
    assert own.xmin == pytest.approx(theirs.xmin, rel=1e-12)
    assert own.distance == pytest.approx(theirs.D, abs=1e-9)
    assert own.tail_count == int((values >= theirs.xmin * (1 - 1e-12)).sum())


@settings(max_examples=20, deadline=None)
@given(seeds)
def test_alpha_of_a_sampled_tail_is_weightwatchers(seed: int) -> None:
    values = torch.from_numpy(np.random.default_rng(seed).pareto(1.5, 60) + 1)
    own, theirs = power_law_tail(values), WWFit(values.numpy().copy())
    assert own.alpha == pytest.approx(theirs.alpha, abs=1e-6)
    assert own.xmin == theirs.xmin


def test_the_floor_is_weightwatchers_threshold() -> None:
    values = torch.cat([eigenvalues(40, 40), torch.full((5,), 1e-9, dtype=torch.float64)])
    theirs = WWFit(values[values > 1e-5].numpy().copy())
    assert power_law_tail(values, floor=1e-5).alpha == pytest.approx(theirs.alpha, abs=1e-6)
    assert power_law_tail(values, floor=1e-5) == power_law_tail(values)  # xmin lies far above it


def test_powerlaw_agrees_on_the_tail_of_the_same_xmin() -> None:
    values = torch.from_numpy(np.random.default_rng(1).pareto(1.5, 500) + 1)
    own = power_law_tail(values)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = powerlaw.Fit(values.numpy(), xmin=own.xmin, verbose=False)
    assert own.alpha == pytest.approx(theirs.power_law.alpha, abs=1e-6)


@pytest.mark.parametrize("exponent", [0.5, 1.0, 2.0, 3.0])
def test_alpha_of_an_exact_power_law(exponent: float) -> None:
    """theory: alpha = 1 + 1/a, whatever the scale."""
    for count, error in ((200, 0.03), (4608, 0.002)):
        values = torch.arange(1, count + 1, dtype=torch.float64) ** -exponent
        found = power_law_tail(values)
        assert found.alpha == pytest.approx(1 + 1 / exponent, rel=error)
        assert found.tail_count == count
        assert power_law_tail(1e-20 * values).alpha == pytest.approx(found.alpha, rel=1e-9)


def test_alpha_takes_little_time() -> None:
    values = torch.rand(2048, dtype=torch.float64)
    took = []
    for _ in range(5):
        start = time.perf_counter()
        power_law_tail(values)
        took.append(time.perf_counter() - start)
    assert min(took) < 0.05


def test_no_tail() -> None:
    for values in (torch.rand(LEAST_TAIL - 1), torch.ones(50), torch.zeros(50), torch.zeros(0)):
        found = power_law_tail(values)
        assert found.tail_count == 0
        assert all(math.isnan(value) for value in (found.alpha, found.xmin, found.distance))
    assert power_law_tail(torch.rand(LEAST_TAIL) + 1).tail_count == LEAST_TAIL
    top = torch.cat([torch.linspace(1, 2, 30, dtype=torch.float64), torch.full((3,), 5.0, dtype=torch.float64)])
    assert math.isfinite(power_law_tail(top).alpha)  # the largest values are equal: alpha of that tail is infinite


def test_bad_eigenvalues() -> None:
    assert "eigenvalues must be a 1-d tensor, got (2, 2)" in refusal(power_law_tail, torch.ones(2, 2))
    assert "eigenvalues must be a 1-d tensor, got list" in refusal(power_law_tail, [1.0])
    assert "eigenvalues must be >= 0, got -1.0" in refusal(power_law_tail, torch.tensor([1.0, -1.0]))
    assert "eigenvalues must be finite, got 1 NaN" in refusal(power_law_tail, torch.tensor([1.0, math.nan]))
    assert "floor must be finite and >= 0, got -1" in refusal(power_law_tail, torch.ones(9), floor=-1)


def plain_exponent(matrix: Tensor) -> float:
    return fit_exponent(torch.linalg.svdvals(matrix)).exponent


def test_the_square_exponent_does_not_depend_on_the_aspect_ratio() -> None:
    gaussians = [made(128, 128 * ratio, "gaussian", 0, 1, seed=ratio) for ratio in (1, 2, 4, 8)]
    plain, square = ([function(matrix) for matrix in gaussians] for function in (plain_exponent, square_exponent))
    assert plain[0] > 1.2 * plain[1] > 1.4 * plain[2] > 1.6 * plain[3]
    assert plain[0] / plain[3] > 2
    assert max(square) / min(square) < 1.06
    assert square[0] == pytest.approx(plain[0], rel=1e-9)


@pytest.mark.parametrize(
    ("columns", "first"), [(6, [0]), (13, [0, 1]), (20, [0, 1, 2]), (30, [0, 1, 3, 4]), (54, [0, 3, 5, 8])]
)
def test_the_square_parts(columns: int, first: list[int]) -> None:
    """At most four parts of six columns, each of every k-th column, spread evenly over the k = floor(n / 6) parts."""
    matrix = made(6, columns, "gaussian", 0, 1, seed=columns)
    expected = [plain_exponent(matrix[:, list(range(at, columns, columns // 6))[:6]]) for at in first]
    assert square_exponent(matrix) == pytest.approx(np.mean(expected), rel=1e-9)
    assert square_exponent(matrix.mT) == pytest.approx(square_exponent(matrix), rel=1e-12)
    assert square_exponent(1e200 * matrix) == pytest.approx(square_exponent(matrix), rel=1e-9)


def test_parts_that_are_zero() -> None:
    matrix = made(5, 10, "gaussian", 0, 1, seed=0)
    matrix[:, 1::2] = 0
    assert square_exponent(matrix) == pytest.approx(plain_exponent(matrix[:, ::2]), rel=1e-9)
    assert "matrix must have a value that is not zero in its square parts, got (3, 7) zeros" in refusal(
        square_exponent, torch.zeros(3, 7)
    )
    assert square_exponent(torch.ones(1, 5)) == 0


@pytest.mark.parametrize(("bad", "message"), BAD_MATRICES.values(), ids=BAD_MATRICES)
def test_bad_matrices(bad: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        square_exponent(bad)
