"""Transport between factors and its truncation (theory 3) against NumPy's SVD and SciPy's angles."""

import math
import re

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from matrices import BAD_MATRICES, ODD, ODD_FORMS, REGULAR, factors, orthogonal, pairs, refusal, scales, seeds
from scipy.linalg import subspace_angles
from torch import Tensor

from gch_bench.spectral.gibbs import fit_exponent
from gch_bench.spectral.linalg import decompose
from gch_bench.spectral.transport import Transport, fitted_tail, principal_angles, transport, transport_of

# A decomposition states an error of 1e-16 s_1^2 / s_i <= 1e-11 s_1 of a singular value (linalg.GRAM_FLOOR): so has a product.
ACCURACY = 1e-11


@st.composite
def cases(draw, **options) -> tuple[Tensor, Tensor, int, int]:
    """Two factors that compose, and windows."""
    first, second = draw(pairs(**options))
    return first, second, draw(st.integers(1, min(first.shape))), draw(st.integers(1, min(second.shape)))


def svd(matrix: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return np.linalg.svd(matrix.numpy(), full_matrices=False)


def cut(matrix: Tensor, rank: int) -> np.ndarray:
    left, values, right = svd(matrix)
    return (left[:, :rank] * values[:rank]) @ right[:rank]


def separated(matrix: Tensor, rank: int) -> bool:
    """Whether the window has an edge: else the truncation is not unique."""
    values = np.append(svd(matrix)[1], 0)
    return values[rank - 1] - values[rank] > 1e-2 * values[0]


def magnitude(first: Tensor, second: Tensor) -> float:
    return float(np.linalg.norm(first.numpy(), 2) * np.linalg.norm(second.numpy(), 2))


def norm(matrix: Tensor) -> float:
    return float(np.linalg.norm(matrix.numpy()))


@settings(max_examples=100, deadline=None)
@given(case=cases())
def test_bounds_of_the_truncation(case: tuple[Tensor, Tensor, int, int]) -> None:
    """error <= bound <= fitted bound, with the bound of NumPy's singular values and charts."""
    first, second, k1, k2 = case
    made = transport(*case)
    rounding = ACCURACY * magnitude(first, second)
    assert made.error <= made.bound + rounding
    assert made.bound <= made.fitted_bound * (1 + 1e-12) + rounding
    s1, s2 = svd(first)[1], svd(second)[1]
    expected = np.hypot(s2[0] * np.linalg.norm(s1[k1:]), s1[0] * np.linalg.norm(s2[k2:]))
    assert made.bound == pytest.approx(expected, rel=1e-9, abs=3 * rounding)
    assert (made.rank_first, made.rank_second) == (k1, k2)


@settings(max_examples=100, deadline=None)
@given(case=cases())
def test_one_error_in_three_forms(case: tuple[Tensor, Tensor, int, int]) -> None:
    first, second, k1, k2 = case
    made, rounding = transport(*case), ACCURACY * magnitude(first, second)
    counts = min(first.shape), min(second.shape)
    assert made.full.shape == made.truncated.shape == (counts[1], counts[0])
    assert made.physical.shape == made.physical_truncated.shape == (len(second), first.shape[1])
    assert made.source_mode.shape == made.source_mode_truncated.shape == (len(second), counts[0])
    for whole, part in (
        (made.full, made.truncated),
        (made.physical, made.physical_truncated),
        (made.source_mode, made.source_mode_truncated),
    ):
        assert made.error == pytest.approx(norm(whole - part), rel=1e-9, abs=rounding)
    assert not made.truncated[k2:].any()
    assert not made.truncated[:, k1:].any()
    assert torch.equal(made.truncated[:k2, :k1], made.full[:k2, :k1])
    assert not made.source_mode_truncated[:, k1:].any()


@settings(max_examples=100, deadline=None)
@given(case=cases())
def test_physical_forms_against_numpy(case: tuple[Tensor, Tensor, int, int]) -> None:
    first, second, k1, k2 = case
    made, rounding = transport(*case), 10 * ACCURACY * magnitude(first, second)
    np.testing.assert_allclose(made.physical, second.numpy() @ first.numpy(), rtol=0, atol=rounding)
    for whole in (made.full, made.source_mode):
        assert norm(whole) == pytest.approx(norm(made.physical), rel=1e-9, abs=rounding)
    assume(separated(first, k1) and separated(second, k2))
    np.testing.assert_allclose(made.physical_truncated, cut(second, k2) @ cut(first, k1), rtol=0, atol=rounding)


@settings(max_examples=100, deadline=None)
@given(case=cases(kinds=("gaussian", "power law")))
def test_transport_is_its_formula(case: tuple[Tensor, Tensor, int, int]) -> None:
    """T = Sigma_{l+1} V_{l+1}^T U_l Sigma_l and A_{l+1} U_l Sigma_l, up to the signs of singular vectors."""
    first, second, _, k2 = case
    (u1, s1, _), (u2, s2, v2) = svd(first), svd(second)
    for values in (s1, s2):
        assume((-np.diff(np.append(values, 0)) > 1e-3 * values[0]).all())
    made, rounding = transport(*case), 100 * ACCURACY * magnitude(first, second)
    expected = s2[:, None] * (v2 @ u1) * s1
    np.testing.assert_allclose(made.full.abs(), np.abs(expected), rtol=0, atol=rounding)
    source = second.numpy() @ (u1 * s1)
    np.testing.assert_allclose(made.source_mode.abs(), np.abs(source), rtol=0, atol=rounding)
    inside = u2[:, :k2] @ (u2[:, :k2].T @ source[:, : case[2]])
    np.testing.assert_allclose(made.source_mode_truncated[:, : case[2]].abs(), np.abs(inside), rtol=0, atol=rounding)


@settings(max_examples=50, deadline=None)
@given(pair=pairs())
def test_full_windows_leave_nothing_out(pair: tuple[Tensor, Tensor]) -> None:
    made = transport(*pair, *(min(each.shape) for each in pair))
    assert made.error == made.bound == made.fitted_bound == 0
    assert torch.equal(made.full, made.truncated)
    torch.testing.assert_close(made.physical_truncated, made.physical, rtol=0, atol=ACCURACY * magnitude(*pair))


def test_bound_is_attained() -> None:
    """An isometry after a factor passes its tail on whole, as the bound says."""
    isometry = orthogonal(4, 4, torch.Generator().manual_seed(1))
    made = transport(torch.diag(torch.tensor([4.0, 3.0, 2.0, 1.0])), isometry, 2, 4)
    assert made.error == pytest.approx(math.sqrt(5))
    assert made.bound == pytest.approx(math.sqrt(5))


def test_fitted_bound_on_the_chart_is_the_bound() -> None:
    """Exact power laws have no chart error, hence nothing between the two bounds; other spectra have."""
    law = torch.diag(torch.arange(1, 7, dtype=torch.float64) ** -1.0)
    made = transport(law, law, 2, 3)
    assert made.fitted_bound == pytest.approx(made.bound, rel=1e-7)
    step = torch.diag(torch.tensor([1.0, 1.0, 1.0, 0.1, 0.1, 0.1], dtype=torch.float64))
    assert transport(step, step, 3, 3).fitted_bound > 1.5 * transport(step, step, 3, 3).bound


@settings(max_examples=100, deadline=None)
@given(case=st.integers(1, 9).flatmap(lambda side: st.tuples(factors(side, side), st.integers(0, side))))
def test_fitted_tail(case: tuple[Tensor, int]) -> None:
    values, rank = torch.from_numpy(svd(case[0])[1]), case[1]
    s = values.numpy()
    exponent = fit_exponent(values).exponent
    q = np.arange(1, len(s) + 1) ** -exponent
    q /= q.sum()
    error = np.linalg.norm(s[rank:] / np.linalg.norm(s) - np.sqrt(q[rank:]))
    got = fitted_tail(values, rank)
    assert got == pytest.approx(np.linalg.norm(s) * (math.sqrt(q[rank:].sum()) + error), rel=1e-9, abs=1e-14 * s[0])
    assert got >= np.linalg.norm(s[rank:]) * (1 - 1e-12)


@settings(max_examples=100, deadline=None)
@given(case=cases(kinds=REGULAR))
def test_principal_angles_against_scipy(case: tuple[Tensor, Tensor, int, int]) -> None:
    first, second, k1, k2 = case
    gap = 1.0  # of the squares at the window's edge: the Gram matrix knows the subspaces to 1e-16 over it (Davis and Kahan)
    for matrix, rank in ((first, k1), (second, k2)):
        values = svd(matrix)[1]
        assume(separated(matrix, rank) and values[-1] > 1e-2 * values[0])
        if rank < len(values):
            gap = min(gap, float(values[rank - 1] ** 2 - values[rank] ** 2) / float(values[0] ** 2))
    assume(gap > 1e-6)
    tolerance = 2e-14 / gap
    angles = principal_angles(decompose(first), decompose(second), k1, k2)
    left, right = svd(first)[0][:, :k1], svd(second)[2][:k2].T
    expected = subspace_angles(left, right)[::-1]
    assert angles.shape == (min(k1, k2),)
    assert (angles.diff() >= 0).all()
    # SciPy's angles near a right angle are themselves off by up to 1e-11.
    cosines = np.linalg.svd(np.asarray(right).T @ np.asarray(left))[1]
    np.testing.assert_allclose(angles.cos(), cosines, rtol=0, atol=tolerance)
    wide = expected > 1e-3  # a cosine does not resolve the others
    np.testing.assert_allclose(angles[torch.from_numpy(wide)], expected[wide], rtol=0, atol=1e-8)


@settings(max_examples=50, deadline=None)
@given(angle=st.floats(0.01, math.pi / 2), scale=scales, seed=seeds)
def test_angle_of_two_lines(angle: float, scale: float, seed: int) -> None:
    basis = orthogonal(5, 2, torch.Generator().manual_seed(seed))
    line = math.cos(angle) * basis[:, 0] + math.sin(angle) * basis[:, 1]
    first, second = scale * basis[:, :1], torch.stack([line, 0 * line])
    assert float(principal_angles(decompose(first), decompose(second), 1, 1)) == pytest.approx(angle, abs=1e-12)


@settings(max_examples=100, deadline=None)
@given(case=cases(kinds=REGULAR), scale=st.tuples(scales, scales), seed=seeds)
def test_invariances(case: tuple[Tensor, Tensor, int, int], scale: tuple[float, float], seed: int) -> None:
    """A change of basis in the middle keeps the physical forms; a scale of either factor is one of all errors."""
    first, second, k1, k2 = case
    assume(separated(first, k1) and separated(second, k2))
    middle = orthogonal(len(first), len(first), torch.Generator().manual_seed(seed))
    expected, rounding = transport(*case), 10 * ACCURACY * magnitude(first, second)
    turned = transport(middle @ first, second @ middle.mT, k1, k2)
    for name in ("physical", "physical_truncated"):
        torch.testing.assert_close(getattr(turned, name), getattr(expected, name), rtol=0, atol=rounding)
    scaled = transport(scale[0] * first, scale[1] * second, k1, k2)
    for got, factor in ((turned, 1.0), (scaled, scale[0] * scale[1])):
        for name in ("error", "bound"):
            assert getattr(got, name) == pytest.approx(factor * getattr(expected, name), rel=1e-9, abs=factor * rounding)


def fields(made: Transport) -> dict[str, Tensor | float]:
    return {name: value.abs() if isinstance(value, Tensor) else value for name, value in made._asdict().items()}


@pytest.mark.parametrize("form", ODD_FORMS)
def test_any_layout_and_precision(form: str) -> None:
    second = torch.tensor([[1, 2], [0, 1], [5, -1]])
    got, expected = (fields(transport(one, second, 1, 2)) for one in (ODD_FORMS[form], ODD.double()))
    for name, value in expected.items():
        if isinstance(value, Tensor):
            assert got[name].dtype == torch.float64
            torch.testing.assert_close(got[name], value, rtol=0, atol=1e-12)
        else:
            assert got[name] == pytest.approx(value, rel=1e-12)


def test_one_by_one_and_rank_one() -> None:
    one = transport(torch.tensor([[2.0]]), torch.tensor([[-3.0]]), 1, 1)
    assert one.physical.tolist() == one.physical_truncated.tolist() == [[-6.0]]
    assert abs(float(one.full)) == 6
    column, row = torch.tensor([[3.0], [4.0]]), torch.tensor([[1.0, 2.0, 2.0]])
    made = transport(column @ row, torch.eye(2), 1, 2)
    assert made.error == pytest.approx(0, abs=1e-14)
    torch.testing.assert_close(made.physical_truncated, (column @ row).double())


def test_modes_of_size_zero_stay_zero() -> None:
    """A window wider than the rank adds nothing, and no NaN."""
    made = transport(torch.diag(torch.tensor([2.0, 0.0, 0.0])), torch.diag(torch.tensor([3.0, 1.0, 0.0])), 3, 3)
    assert made.physical_truncated.tolist() == torch.diag(torch.tensor([6.0, 0.0, 0.0])).tolist()
    angles = principal_angles(decompose(torch.diag(torch.tensor([2.0, 0.0]))), decompose(torch.eye(2)), 2, 2)
    assert angles.tolist() == pytest.approx([0, math.pi / 2])


@pytest.mark.parametrize("case", BAD_MATRICES)
def test_bad_matrices_are_refused(case: str) -> None:
    bad, message = BAD_MATRICES[case]
    assert re.match("first " + message, refusal(transport, bad, torch.eye(2), 1, 1))
    assert re.match("second " + message, refusal(transport, torch.eye(2), bad, 1, 1))


def test_what_else_is_refused() -> None:
    first, second = torch.ones(3, 4), torch.eye(3)[:2]
    for rank in (0, -1, 4):
        assert refusal(transport, first, second, rank, 1) == f"rank_first must be a whole number in 1..3, got {rank}"
    for rank in (0, -1, 3):
        message = f"rank_second must be a whole number in 1..2, got {rank}"
        assert refusal(transport, first, second, 1, rank) == message
        assert refusal(transport_of, decompose(first), decompose(second), 1, rank) == message
    message = refusal(transport, torch.ones(3, 4), torch.ones(4, 2), 1, 1)
    assert message == "second must take what first gives: second has shape (4, 2), first (3, 4)"
    for one, two in ((torch.zeros(2, 3), torch.eye(2)), (torch.eye(2), torch.zeros(3, 2))):
        assert refusal(transport, one, two, 1, 1) == "singular_values must have a positive one, got 2 zeros"


def test_angles_of_small_modes_are_exact_too() -> None:
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.linalg.qr(torch.randn(n, 3, dtype=torch.float64, generator=generator)).Q for n in (6, 3))
    matrix = (left * torch.tensor([1, 3e-4, 2e-4], dtype=torch.float64)) @ right.mT
    assert float(principal_angles(decompose(matrix), decompose(matrix.mT), 3, 3).max()) < 1e-7


def test_tight_bounds_hold_for_badly_conditioned_factors() -> None:
    generator = torch.Generator().manual_seed(1)
    basis = [torch.linalg.qr(torch.randn(n, n, dtype=torch.float64, generator=generator)).Q for n in (3, 3, 3)]
    for small in (1.5e-3, 1.5e-4, 1.5e-5, 1.5e-6):
        first = basis[0] @ torch.diag(torch.tensor([1, small, 0.8 * small], dtype=torch.float64)) @ basis[1]
        moved = transport(first, basis[2], 2, 3)
        assert moved.error <= moved.bound * (1 + 1e-9)
        assert moved.error == pytest.approx(0.8 * small, rel=1e-9)


@pytest.mark.parametrize("rank", [2.0, 2.5, True])
def test_ranks_are_whole_numbers(rank) -> None:
    with pytest.raises(ValueError, match=r"rank_first must be a whole number in 1\.\.2"):
        transport(torch.eye(2), torch.eye(2), rank, 1)
