"""The Gibbs-Cartan chart: fits against exact laws, SciPy and plain loops; theory 2."""

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from matrices import INF, NAN, refusal, scales, seeds
from scipy.integrate import quad
from scipy.linalg import sqrtm
from scipy.optimize import brentq
from scipy.spatial.distance import euclidean
from scipy.stats import entropy, linregress

from gch_bench.spectral.gibbs import (
    bures_squared,
    chart,
    effective_rank,
    energies,
    fisher_action,
    fisher_information,
    fit_exponent,
    hellinger_squared,
    kl_divergence,
    mean_log_rank,
    rank_window,
    tail_bound,
)

exponents = st.floats(0, 20)
ETAS = (0.9, 0.95, 0.99)


def moments(exponent: float, count: int) -> tuple[float, float]:
    """Mean and variance of log i on the chart, by loops in NumPy's longdouble."""
    log_i = np.log(np.arange(1, count + 1, dtype=np.longdouble))
    p = np.exp(-np.longdouble(exponent) * log_i)
    p /= p.sum()
    mean = (p * log_i).sum()
    return float(mean), float((p * (log_i - mean) ** 2).sum())


def power_law(exponent: float, count: int) -> np.ndarray:
    return np.arange(1, count + 1) ** (-exponent / 2)


# Spectra that are no power law: heavy or light, spiked, with a floor, with zeros.
@st.composite
def spectra(draw, largest: int = 60) -> torch.Tensor:
    count, rng = draw(st.integers(2, largest)), np.random.default_rng(draw(seeds))
    kind = draw(st.sampled_from(["uniform", "lognormal", "exponential", "spiked", "floor", "zeros", "noisy law"]))
    values = {
        "uniform": lambda: rng.uniform(0.01, 1, count),
        "lognormal": lambda: rng.lognormal(0, 3, count),
        "exponential": lambda: np.exp(-rng.uniform(0.01, 3) * np.arange(count)),
        "spiked": lambda: np.r_[100.0, rng.uniform(0.5, 1, count - 1)],
        "floor": lambda: np.maximum(power_law(4, count), 1e-3),
        "zeros": lambda: np.where(np.arange(count) < (count + 2) // 2, rng.uniform(0.1, 1, count), 0.0),
        "noisy law": lambda: power_law(rng.uniform(0, 6), count) * rng.lognormal(0, 0.2, count),
    }[kind]()
    return torch.from_numpy(rng.permutation(values) * draw(scales))


def simplex(count: int, seed: int, floor: float = 0.0) -> torch.Tensor:
    return energies(torch.from_numpy(np.random.default_rng(seed).uniform(0, 1, count) + floor))


@settings(max_examples=100, deadline=None)
@given(values=spectra())
def test_energies(values: torch.Tensor) -> None:
    p = energies(values)
    expected = np.sort((values.numpy() / values.numpy().max()) ** 2)[::-1]
    np.testing.assert_allclose(p, expected / expected.sum(), rtol=1e-13)
    assert p.dtype == torch.float64
    assert (p.diff() <= 0).all()


@settings(max_examples=100, deadline=None)
@given(exponent=exponents, count=st.integers(2, 2000), scale=scales, seed=seeds)
def test_exact_laws_recover_their_exponent(exponent: float, count: int, scale: float, seed: int) -> None:
    values = np.random.default_rng(seed).permutation(power_law(exponent, count)) * scale
    fit = fit_exponent(torch.from_numpy(values))
    assert fit.exponent == pytest.approx(exponent, abs=1e-8)
    assert fit.slope == pytest.approx(-exponent, abs=1e-8)
    assert fit.kl == pytest.approx(0, abs=1e-12)
    assert fit.fisher == pytest.approx(moments(exponent, count)[1], rel=1e-6)
    assert fit.size == count
    if exponent > 1e-3:
        assert fit.r_squared == pytest.approx(1, abs=1e-9)


@settings(max_examples=100, deadline=None)
@given(values=spectra())
def test_fit_is_the_maximum_of_the_likelihood(values: torch.Tensor) -> None:
    p = energies(values).numpy()
    log_i = np.log(np.arange(1, len(p) + 1))
    target = p @ log_i
    expected = brentq(lambda a: moments(a, len(p))[0] - target, -1, 1000, xtol=1e-13, rtol=1e-14)
    fit = fit_exponent(values)
    assert fit.exponent == pytest.approx(max(expected, 0), rel=1e-10, abs=1e-10)

    def cross_entropy(a: float) -> float:
        return a * target + math.log1p((np.arange(2, len(p) + 1) ** -a).sum())

    for step in (-1e-3, 1e-3):
        assert cross_entropy(fit.exponent) <= cross_entropy(fit.exponent + step)
    assert fit.fisher == pytest.approx(moments(fit.exponent, len(p))[1], rel=1e-10)


@settings(max_examples=100, deadline=None)
@given(values=spectra())
def test_line_and_divergence_against_scipy(values: torch.Tensor) -> None:
    p = energies(values).numpy()
    fit = fit_exponent(values)
    positive = p[p > 0]
    line = linregress(np.log(np.arange(1, len(positive) + 1)), np.log(positive))
    assert fit.slope == pytest.approx(line.slope, rel=1e-9)
    assert fit.r_squared == pytest.approx(line.rvalue**2, rel=1e-9)
    expected = entropy(p, np.arange(1, len(p) + 1) ** -fit.exponent)  # SciPy normalises
    assert fit.kl == pytest.approx(expected, rel=1e-9, abs=1e-14)


@settings(max_examples=100, deadline=None)
@given(exponent=exponents, count=st.integers(1, 2000))
def test_chart_and_its_moments(exponent: float, count: int) -> None:
    p = np.arange(1, count + 1) ** -exponent
    np.testing.assert_allclose(chart(exponent, count), p / p.sum(), rtol=1e-12)
    mean, variance = moments(exponent, count)
    assert mean_log_rank(exponent, count) == pytest.approx(mean, rel=1e-12)
    assert fisher_information(exponent, count) == pytest.approx(variance, rel=1e-11)


@settings(max_examples=100, deadline=None)
@given(exponent=st.floats(0.01, 15), count=st.integers(2, 1000))
def test_fisher_information_is_a_derivative(exponent: float, count: int) -> None:
    """I(a) = -d E_a[log i] / da."""
    step = 1e-3
    rise = moments(exponent + step, count)[0] - moments(exponent - step, count)[0]
    assert fisher_information(exponent, count) == pytest.approx(-rise / (2 * step), rel=1e-4)


@settings(max_examples=100, deadline=None)
@given(exponent=st.floats(0.01, 15), count=st.integers(2, 1000))
def test_line_element(exponent: float, count: int) -> None:
    """ds^2 = (d/4) I(a) da^2."""
    step = 1e-3
    between = bures_squared(chart(exponent - step / 2, count), chart(exponent + step / 2, count))
    assert between / step**2 == pytest.approx(count / 4 * moments(exponent, count)[1], rel=1e-4)


@settings(max_examples=60, deadline=None)
@given(count=st.integers(1, 7), one=seeds, two=seeds, turned=st.booleans())
def test_bures_is_its_definition(count: int, one: int, two: int, turned: bool) -> None:
    """tr A + tr B - 2 tr (A^1/2 B A^1/2)^1/2 of A = diag(d p), B = diag(d q), also in another common basis."""
    p, q = simplex(count, one, 0.2), simplex(count, two, 0.2)
    basis = np.linalg.qr(np.random.default_rng(one).normal(size=(count, count)))[0] if turned else np.eye(count)
    a, b = (basis @ np.diag(count * each.numpy()) @ basis.T for each in (p, q))
    root = sqrtm(a)
    expected = np.trace(a) + np.trace(b) - 2 * np.trace(sqrtm(root @ b @ root)).real
    assert bures_squared(p, q) == pytest.approx(expected, abs=1e-12 * count)


@settings(max_examples=100, deadline=None)
@given(first=st.integers(1, 40), second=st.integers(1, 40), one=seeds, two=seeds)
def test_divergences(first: int, second: int, one: int, two: int) -> None:
    """Against SciPy, of unequal lengths as well; >= 0, 0 iff equal, and the inequalities between them."""
    p, q = simplex(first, one), simplex(second, two)
    longest = max(first, second)
    wide_p, wide_q = (np.pad(each.numpy(), (0, longest - len(each))) for each in (p, q))
    hellinger, kl = hellinger_squared(p, q), kl_divergence(p, q)
    assert hellinger == pytest.approx(euclidean(np.sqrt(wide_p), np.sqrt(wide_q)) ** 2 / 2, rel=1e-10, abs=1e-16)
    assert hellinger == hellinger_squared(q, p)
    assert 0 <= hellinger <= 1
    expected = entropy(wide_p, wide_q)
    assert kl == (INF if math.isinf(expected) else pytest.approx(expected, rel=1e-9, abs=1e-14))
    assert (first > second) == math.isinf(kl)
    assert kl >= 2 * hellinger - 1e-14
    assert kl >= np.abs(wide_p - wide_q).sum() ** 2 / 2 - 1e-14  # Pinsker
    assert (hellinger > 0) == (kl > 0) == (not np.array_equal(wide_p, wide_q))


@given(count=st.integers(1, 50), seed=seeds)
def test_no_divergence_from_itself(count: int, seed: int) -> None:
    p = simplex(count, seed)
    assert hellinger_squared(p, p.clone()) == bures_squared(p, p.clone()) == kl_divergence(p, p.clone()) == 0
    padded = torch.cat([p, torch.zeros(3, dtype=torch.float64)])
    assert hellinger_squared(p, padded) == kl_divergence(p, padded) == kl_divergence(padded, p) == 0


def test_disjoint_energies() -> None:
    p, q = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    assert hellinger_squared(p, q) == 1
    assert bures_squared(p, q) == 4
    assert kl_divergence(p, q) == INF


@settings(max_examples=50, deadline=None)
@given(path=st.lists(st.floats(0, 6), min_size=1, max_size=6), count=st.integers(2, 100))
def test_fisher_action(path: list[float], count: int) -> None:
    expected = 0.0
    for at in range(len(path) - 1):
        expected += moments((path[at] + path[at + 1]) / 2, count)[1] * (path[at + 1] - path[at]) ** 2
    assert fisher_action(path, count) == pytest.approx(expected, rel=1e-10)


def plain_rank(p: list[float], eta: float) -> int:
    for k in range(1, len(p) + 1):
        if math.fsum(p[:k]) >= eta:
            return k
    return len(p)


@settings(max_examples=150, deadline=None)
@given(values=spectra(), eta=st.one_of(st.sampled_from(ETAS), st.floats(0.01, 0.999)))
def test_effective_rank_is_a_plain_loop(values: torch.Tensor, eta: float) -> None:
    p = energies(values)
    assume(all(abs(math.fsum(p[:k].tolist()) - eta) > 1e-12 for k in range(1, len(p) + 1)))  # a tie has no right answer
    assert effective_rank(p, eta) == plain_rank(p.tolist(), eta)


@pytest.mark.parametrize("percent", [90, 95, 99, 100])
def test_effective_rank_of_flat_spectra(percent: int) -> None:
    """Exact ties: of d equal energies, eta needs the share eta of them, rounded up."""
    for count in range(1, 301):
        assert effective_rank(energies(torch.ones(count)), percent / 100) == -(-count * percent // 100)


@settings(max_examples=100, deadline=None)
@given(exponent=exponents, less=st.floats(0, 5), count=st.integers(1, 500), eta=st.sampled_from(ETAS))
def test_rank_window(exponent: float, less: float, count: int, eta: float) -> None:
    low, high = rank_window(exponent, less, count, eta)
    assert 1 <= low <= effective_rank(chart(exponent, count), eta) <= high <= count
    for rank, shifted in ((low, exponent + less), (high, max(exponent - less, 0.0))):  # energies are in descending order
        p = np.arange(1, count + 1) ** -shifted
        p /= p.sum()
        # R = min{k: sum >= eta}, but for ties within rounding
        assert p[:rank].sum() >= eta - 1e-12
        assert p[: rank - 1].sum() < eta + 1e-12


near_one = st.sampled_from([1.0, 1 - 1e-15, 1 + 1e-15, 1 - 1e-13, 1 + 1e-13, 1 - 1e-11, 1 + 1e-9, 1 - 1e-6, 1 + 1e-6])


@settings(max_examples=100, deadline=None)
@given(exponent=st.one_of(exponents, near_one, st.just(0.0)), ends=st.tuples(st.integers(1, 2000), st.integers(1, 2000)))
def test_tail_bound(exponent: float, ends: tuple[int, int]) -> None:
    """Above the sum, below the closed forms of the theory, equal to the integral."""
    rank, count = sorted(ends)
    bound = tail_bound(exponent, rank, count)
    rounding = 1 + 1e-12
    assert math.fsum(i**-exponent for i in range(rank + 1, count + 1)) <= bound * rounding
    integral = quad(lambda t: math.exp((1 - exponent) * t), math.log(rank), math.log(count), epsabs=0, epsrel=1e-11)[0]
    assert bound == pytest.approx(integral, rel=1e-9)
    if exponent > 1:
        assert bound <= rank ** (1 - exponent) / (exponent - 1) * rounding
    if abs(exponent - 1) > 1e-3:
        assert bound == pytest.approx((count ** (1 - exponent) - rank ** (1 - exponent)) / (1 - exponent), rel=1e-9, abs=0)
    if exponent == 1:
        assert bound == pytest.approx(math.log(count / rank), rel=1e-13)


def test_limits_of_the_exponent() -> None:
    assert chart(INF, 3).tolist() == [1.0, 0.0, 0.0]
    assert chart(0, 4).tolist() == [0.25] * 4
    assert fisher_information(INF, 5) == mean_log_rank(INF, 5) == tail_bound(INF, 1, 5) == 0
    assert rank_window(INF, 1.0, 5, 0.9) == (1, 1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8])
def test_degenerate_spectra(dtype: torch.dtype) -> None:
    one = fit_exponent(torch.tensor([7], dtype=dtype))
    assert (one.exponent, one.kl, one.fisher, one.size) == (0.0, 0.0, 0.0, 1)
    assert math.isnan(one.explained_share)
    assert math.isnan(one.slope)
    assert math.isnan(one.r_squared)
    single = fit_exponent(torch.tensor([0, 2, 0], dtype=dtype))
    assert (single.exponent, single.kl, single.fisher, single.explained_share) == (INF, 0.0, 0.0, 1.0)
    assert math.isnan(single.slope)
    flat = fit_exponent(torch.tensor([3, 3, 3, 3], dtype=dtype))
    assert flat.exponent == pytest.approx(0, abs=1e-14)
    assert flat.kl == pytest.approx(0, abs=1e-14)
    assert flat.slope == 0
    assert math.isnan(flat.r_squared)
    strided = torch.tensor([4, 9, 2, 9, 1, 9], dtype=dtype)[::2]
    assert fit_exponent(strided) == fit_exponent(torch.tensor([1.0, 4.0, 2.0], dtype=torch.float64))


@pytest.mark.parametrize("function", [energies, fit_exponent])
@pytest.mark.parametrize(
    ("values", "message"),
    [
        (torch.tensor([1.0, NAN]), "singular_values must be finite, got 1 NaN or infinite values"),
        (torch.tensor([INF, -INF]), "singular_values must be finite, got 2 NaN or infinite values"),
        (torch.tensor([1.0, -0.5]), "singular_values must be >= 0, got -0.5"),
        (torch.zeros(3), "singular_values must have a positive one, got 3 zeros"),
        (torch.ones(0), "singular_values must be a non-empty 1-d tensor, got (0,)"),
        (torch.ones(2, 2), "singular_values must be a non-empty 1-d tensor, got (2, 2)"),
        (torch.tensor(1.0), "singular_values must be a non-empty 1-d tensor, got ()"),
        ([1.0, 2.0], "singular_values must be a non-empty 1-d tensor, got list"),
        (torch.ones(2, dtype=torch.complex64), "singular_values must be real, got torch.complex64"),
    ],
)
def test_bad_spectra_are_refused(function, values, message: str) -> None:
    assert refusal(function, values) == message


def test_bad_arguments_are_refused() -> None:
    p = torch.tensor([0.5, 0.5])
    for eta in (0, -0.1, 1.5, NAN):
        assert refusal(effective_rank, p, eta) == f"eta must be in (0, 1], got {eta!r}"
        assert refusal(rank_window, 1.0, 0.1, 5, eta) == f"eta must be in (0, 1], got {eta!r}"
    for rank in (0, -1, 6):
        assert refusal(tail_bound, 1.0, rank, 5) == f"rank must be in 1..5, got {rank}"
    for exponent in (-0.1, NAN):
        assert refusal(tail_bound, exponent, 1, 5) == f"exponent must be >= 0, got {exponent}"
    assert refusal(bures_squared, p, torch.ones(3) / 3) == "p and q must have the same length, got 2 and 3"


def test_spectra_whose_chart_underflows_still_have_a_quality() -> None:
    """p_2 is 1e-300: the fitted chart's p_3 is no floating-point number, KL is."""
    fit = fit_exponent(torch.tensor([1, 1e-150, 1e-150], dtype=torch.float64))
    assert 900 < fit.exponent < 1100
    assert 0 <= fit.kl < 1e-290


@pytest.mark.parametrize(("count", "eta", "rank"), [(400, 0.99, 396), (470, 0.9, 423), (3000, 0.95, 2850), (4096, 1.0, 4096)])
def test_exact_ties_of_long_flat_spectra(count: int, eta: float, rank: int) -> None:
    assert effective_rank(energies(torch.ones(count)), eta) == rank


def test_a_flat_spectrum_but_for_rounding_has_no_r_squared() -> None:
    q = torch.linalg.qr(torch.randn(64, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))).Q
    assert math.isnan(fit_exponent(torch.linalg.svdvals(q)).r_squared)
