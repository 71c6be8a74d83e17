"""Top-radial coordinates, interfaces and the margin inequality of theory 2, on random and on constructed factors."""

import itertools
import math
import re

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from matrices import (
    BAD_MATRICES,
    INF,
    NAN,
    ODD,
    ODD_FORMS,
    REGULAR,
    factors,
    matrices,
    orthogonal,
    pairs,
    refusal,
    scales,
    seeds,
)
from scipy.special import logsumexp
from torch import Tensor

from gch_bench.spectral.linalg import gram_values
from gch_bench.spectral.radial import (
    Interface,
    chart_radial,
    composable,
    interface,
    interface_of,
    near_identity_radial,
    radial_of_values,
)

ROUNDING = 1e-13


def rho(exponent: float, count: int) -> float:
    return (math.log(count) - logsumexp(-exponent * np.log(np.arange(1, count + 1)))) / 2


def normalised(matrix: Tensor) -> Tensor:
    return matrix * math.sqrt(min(matrix.shape)) / torch.linalg.matrix_norm(matrix)


@settings(max_examples=100, deadline=None)
@given(exponents=st.tuples(st.floats(0, 20), st.floats(0, 20)), count=st.integers(1, 2000))
def test_chart_radial(exponents: tuple[float, float], count: int) -> None:
    """rho_d(a) = (log d - log H_d(a)) / 2, strictly increasing from 0 towards log(d) / 2."""
    low, high = sorted(exponents)
    below, above = chart_radial(low, count), chart_radial(high, count)
    assert below == pytest.approx(rho(low, count), abs=1e-13)
    if count > 1 and high > low + 1e-3:
        slope = above - below
        assert (slope > 0) or low > 15  # saturated at log(d) / 2
    assert -1e-14 <= below <= above + 1e-14 <= math.log(count) / 2 + 2e-14
    assert chart_radial(0, count) == pytest.approx(0, abs=1e-14)
    assert chart_radial(INF, count) == math.log(count) / 2


@settings(max_examples=150, deadline=None)
@given(matrix=matrices())
def test_radial_is_the_top_of_the_normalised_factor(matrix: Tensor) -> None:
    count = min(matrix.shape)
    made = radial_of_values(torch.linalg.svdvals(matrix))
    assert made.norm == pytest.approx(np.linalg.norm(matrix.numpy()), rel=1e-12)
    assert made.radial == pytest.approx(math.log(np.linalg.norm(normalised(matrix).numpy(), 2)), abs=1e-13)
    assert made.radial >= 0
    assert made.fit.size == count
    assert made.chart == pytest.approx(rho(made.fit.exponent, count) if made.fit.exponent < INF else math.log(count) / 2)
    assert made.residual == made.radial - made.chart


@settings(max_examples=50, deadline=None)
@given(exponent=st.floats(0, 20), count=st.integers(1, 500), scale=scales)
def test_no_residual_on_the_chart(exponent: float, count: int, scale: float) -> None:
    made = radial_of_values(torch.arange(1, count + 1, dtype=torch.float64) ** (-exponent / 2) * scale)
    assert made.residual == pytest.approx(0, abs=1e-9)
    assert made.radial == pytest.approx(rho(exponent, count), abs=1e-12)


def checked(one: Interface) -> None:
    """The statements that hold at every interface; ROUNDING where all terms are 0."""
    assert one.slack >= 0
    assert one.displacement <= one.bound + ROUNDING
    assert one.displacement == abs(one.second.chart - one.first.chart)
    assert one.residual_change == one.second.residual - one.first.residual
    if one.slack < INF:
        parts = 2 * one.amplitude + one.slack + abs(one.residual_change)
        assert one.bound == pytest.approx(parts, rel=1e-12, abs=1e-12)
        assert one.slack == pytest.approx(one.first.radial + one.second.radial - 2 * one.amplitude, abs=1e-12)
    # The margin inequality is an identity in disguise: rho = r - e.
    change = one.second.radial - one.first.radial - one.residual_change
    assert one.displacement == pytest.approx(abs(change), abs=ROUNDING)
    sizes, exponents = (one.first.fit.size, one.second.fit.size), (one.first.fit.exponent, one.second.fit.exponent)
    if sizes[0] != sizes[1]:
        assert math.isnan(one.exponent_bound)
        return
    assert abs(one.exponent_change) <= one.exponent_bound + ROUNDING
    if 0 < max(exponents) < INF and sizes[0] > 1:
        weights = np.arange(1, sizes[0] + 1) ** -max(exponents)
        kappa = weights @ np.log(np.arange(1, sizes[0] + 1)) / weights.sum() / 2
        assert one.exponent_bound == pytest.approx(one.bound / kappa, rel=1e-9)
        assert one.exponent_change == exponents[1] - exponents[0]


@settings(max_examples=100, deadline=None)
@given(pair=pairs())
def test_margin_inequality(pair: tuple[Tensor, Tensor]) -> None:
    first, second = pair
    one = interface(first, second)
    checked(one)
    top = float(torch.linalg.svdvals(normalised(second) @ normalised(first))[0])
    assert math.exp(2 * one.amplitude) == pytest.approx(top, rel=1e-10, abs=1e-13)


@settings(max_examples=100, deadline=None)
@given(pair=st.integers(1, 9).flatmap(lambda side: st.tuples(factors(side, side), factors(side, side))))
def test_exponent_bound_of_equal_sizes(pair: tuple[Tensor, Tensor]) -> None:
    one = interface(*pair)
    checked(one)
    assert not math.isnan(one.exponent_bound)


@settings(max_examples=100, deadline=None)
@given(exponents=st.lists(st.floats(0, 6), min_size=2, max_size=5), count=st.integers(2, 30), scale=scales, seed=seeds)
def test_aligned_exact_charts_have_no_slack(exponents: list[float], count: int, scale: float, seed: int) -> None:
    """A_l = Q_{l+1} diag(i^(-a_l / 2)) Q_l^T: the product's top is the product of the tops, and 2 g alone bounds the drift."""
    generator = torch.Generator().manual_seed(seed)
    bases = [orthogonal(count, count, generator) for _ in range(len(exponents) + 1)]
    ranks = torch.arange(1, count + 1, dtype=torch.float64)
    chain = [scale * (bases[at + 1] * ranks ** (-exponent / 2)) @ bases[at].mT for at, exponent in enumerate(exponents)]
    made = [interface(*two) for two in itertools.pairwise(chain)]
    for one, two in zip(made, itertools.pairwise(exponents), strict=True):
        checked(one)
        assert one.slack == pytest.approx(0, abs=1e-12)
        assert one.residual_change == pytest.approx(0, abs=1e-9)
        assert 2 * one.amplitude == pytest.approx(rho(two[0], count) + rho(two[1], count), abs=1e-12)
        assert one.exponent_change == pytest.approx(two[1] - two[0], abs=1e-7)


def test_a_product_that_is_zero() -> None:
    """Two factors that meet in no mode: infinite slack, a finite bound."""
    one = interface(torch.diag(torch.tensor([1.0, 2.0, 0.0, 0.0])), torch.diag(torch.tensor([0.0, 0.0, 3.0, 3.0])))
    checked(one)
    assert (one.amplitude, one.slack) == (-INF, INF)
    assert one.bound == one.first.radial + one.second.radial + abs(one.residual_change) < INF


def test_rank_one_factors_have_no_exponent_but_infinity() -> None:
    """One non-zero value each: a = inf, no change; against a flat factor the change is infinite and so is its bound."""
    spike, flat = torch.diag(torch.tensor([5.0, 0.0, 0.0])), torch.eye(3)
    same = interface(spike, spike)
    checked(same)
    assert (same.first.fit.exponent, same.exponent_change, same.exponent_bound) == (INF, 0.0, INF)
    assert same.first.radial == pytest.approx(math.log(3) / 2)
    assert same.amplitude == pytest.approx(math.log(3) / 2)
    other = interface(flat, spike)
    checked(other)
    assert (other.exponent_change, other.exponent_bound) == (INF, INF)
    assert other.displacement == pytest.approx(math.log(3) / 2)


def test_one_by_one_and_identity() -> None:
    one = interface(torch.tensor([[2.0]]), torch.tensor([[-3.0]]))
    checked(one)
    assert (one.amplitude, one.slack, one.displacement) == pytest.approx((0, 0, 0), abs=1e-14)
    identity = interface(torch.eye(4), torch.eye(4))
    checked(identity)
    assert (identity.first.radial, identity.amplitude, identity.slack) == pytest.approx((0, 0, 0), abs=1e-14)


def summary(one: Interface) -> tuple[float, ...]:
    """What no change of basis or scale may move."""
    each = (one.first.radial, one.second.radial, one.first.chart, one.second.chart)
    return (*each, one.displacement, one.bound, one.residual_change)


# A spectrum whose second value is noise has an exponent of noise; the regular kinds have none such.
@settings(max_examples=100, deadline=None)
@given(pair=pairs(kinds=REGULAR), scale=st.tuples(scales, scales), seed=seeds)
def test_invariances(pair: tuple[Tensor, Tensor], scale: tuple[float, float], seed: int) -> None:
    """Orthogonal changes of basis in the middle, at the input and at the output, and the scale of either factor."""
    first, second = pair
    generator = torch.Generator().manual_seed(seed)
    middle, before, after = (orthogonal(n, n, generator) for n in (len(first), first.shape[1], len(second)))
    values = [gram_values(each) for each in pair]
    assume(all(float(each[-1]) > 1e-3 * float(each[0]) for each in values))
    expected = interface(first, second)
    for one, two in (
        (middle @ first, second @ middle.mT),
        (first @ before, second),
        (first, after @ second),
        (scale[0] * first, scale[1] * second),
        (-first, second),
    ):
        got = interface(one, two)
        assert summary(got) == pytest.approx(summary(expected), rel=1e-8, abs=1e-8)
        assert math.exp(2 * got.amplitude) == pytest.approx(math.exp(2 * expected.amplitude), rel=1e-10, abs=1e-13)
        for turned, known in ((got.first.fit, expected.first.fit), (got.second.fit, expected.second.fit)):
            for name in ("exponent", "slope", "kl", "fisher", "size"):
                assert getattr(turned, name) == pytest.approx(getattr(known, name), rel=1e-8, abs=1e-8, nan_ok=True)
            if known.slope < -1e-3:  # R^2 of a flat line is one of rounding errors
                assert turned.r_squared == pytest.approx(known.r_squared, rel=1e-8, abs=1e-8)
    for turned, known in ((middle @ first @ before, values[0]), (after @ second @ middle, values[1])):
        torch.testing.assert_close(gram_values(turned), known, rtol=1e-9, atol=0)


def radial_of(matrix: Tensor) -> float:
    return math.log(np.linalg.norm(normalised(matrix).numpy(), 2))


@settings(max_examples=100, deadline=None)
@given(count=st.integers(1, 8), seed=seeds, kind=st.sampled_from(["any", "symmetric", "skew", "top twice"]))
def test_near_identity_error_is_of_second_order(count: int, seed: int, kind: str) -> None:
    """log(1 + x) = x + O(x^2) in s_1^2 and in ||A||_F^2 / d leaves at most 10 (eps ||B||)^2 where eps ||B|| <= 1/6."""
    generator = torch.Generator().manual_seed(seed)
    direction = torch.randn(count, count, dtype=torch.float64, generator=generator)
    if kind == "symmetric":
        direction = direction + direction.mT
    if kind == "skew":
        direction = direction - direction.mT
    if kind == "top twice":
        basis = orthogonal(count, count, generator)
        direction = basis @ torch.diag(torch.arange(count).clamp(min=1).double().flip(0).clamp(max=2)) @ basis.mT
    norm = np.linalg.norm(direction.numpy(), 2)
    for epsilon in (1e-1, 1e-2, 1e-3, 1e-4, 0.0):
        small = min(epsilon, 1 / 6) / max(norm, 1e-9)
        exact = radial_of(torch.eye(count, dtype=torch.float64) + small * direction)
        assert abs(near_identity_radial(direction, small) - exact) <= 10 * (small * norm) ** 2 + 1e-14


@pytest.mark.parametrize("seed", range(20))
def test_near_identity_error_falls_a_hundredfold(seed: int) -> None:
    direction = torch.randn(6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    identity = torch.eye(6, dtype=torch.float64)
    errors = [abs(near_identity_radial(direction, eps) - radial_of(identity + eps * direction)) for eps in (1e-4, 1e-5)]
    assert errors[0] / errors[1] == pytest.approx(100, rel=0.05)


def test_near_identity_of_known_directions() -> None:
    assert near_identity_radial(torch.eye(3), 0.1) == pytest.approx(0, abs=1e-16)  # a change of scale
    assert near_identity_radial(torch.diag(torch.tensor([3.0, 0.0, 0.0])), 0.1) == pytest.approx(0.1 * (3 - 1))
    assert near_identity_radial(torch.tensor([[0.0, 2.0], [0.0, 0.0]]), 0.1) == pytest.approx(0.1)  # sym B has top 1
    assert near_identity_radial(torch.zeros(2, 2), 1.0) == 0


@pytest.mark.parametrize("form", ODD_FORMS)
def test_any_layout_and_precision(form: str) -> None:
    second = torch.tensor([[1, 2], [0, 1], [5, -1]])
    got, expected = interface(ODD_FORMS[form], second), interface(ODD.double(), second.double())
    assert summary(got) == pytest.approx(summary(expected), rel=1e-12)
    assert got.amplitude == pytest.approx(expected.amplitude, rel=1e-12)
    square = ODD_FORMS[form][:, :2]
    assert near_identity_radial(square, 0.5) == pytest.approx(near_identity_radial(ODD[:, :2].double(), 0.5), rel=1e-12)


@pytest.mark.parametrize("case", BAD_MATRICES)
def test_bad_matrices_are_refused(case: str) -> None:
    bad, message = BAD_MATRICES[case]
    assert re.match("first " + message, refusal(interface, bad, torch.eye(2)))
    assert re.match("second " + message, refusal(interface, torch.eye(2), bad))
    assert re.match("direction " + message, refusal(near_identity_radial, bad, 0.1))


def test_what_else_is_refused() -> None:
    for function in (interface, composable):
        message = refusal(function, torch.ones(3, 4), torch.ones(4, 2))
        assert message == "second must take what first gives: second has shape (4, 2), first (3, 4)"
    assert refusal(interface, torch.zeros(2, 3), torch.eye(2)) == "first must not be a zero matrix, got (2, 3) of zeros"
    assert refusal(interface, torch.eye(2), torch.zeros(3, 2)) == "second must not be a zero matrix, got (3, 2) of zeros"
    assert refusal(near_identity_radial, torch.ones(2, 3), 0.1) == "direction must be square, got (2, 3)"
    for epsilon in (-0.1, NAN):
        assert refusal(near_identity_radial, torch.eye(2), epsilon) == f"epsilon must be >= 0, got {epsilon!r}"
    assert refusal(radial_of_values, torch.ones(2, 2)).startswith("singular_values must be")


def test_rounding_never_makes_the_slack_negative() -> None:
    """A top a little above what the two factors allow, as rounding may give it."""
    flat = radial_of_values(torch.ones(3))
    one = interface_of(flat, flat, (1 + 1e-15) / 3)
    assert one.slack == 0
    checked(one)


@pytest.mark.parametrize("scale", [1e200, 1e160, 1e-160, 1e-200])
def test_any_scale(scale: float) -> None:
    values = torch.tensor([2.0, 1.0], dtype=torch.float64)
    one, other = radial_of_values(values), radial_of_values(values * scale)
    assert other.radial == pytest.approx(one.radial, abs=1e-12)
    assert other.residual == pytest.approx(one.residual, abs=1e-12)
    assert other.norm == pytest.approx(scale * 5**0.5)
