"""Static channels: forms of a partition, automatic thresholds, odd and bad input."""

import re

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from matrices import BAD_MATRICES, INF, NAN, ODD, ODD_FORMS, partition, refusal, seeds
from torch import Tensor

from gch_bench.spectral.alignment import (
    LABELS,
    align,
    block_norms,
    channel_labels,
    row_groups,
    stable_labels,
    widest_gap,
)


@settings(max_examples=100, deadline=None)
@given(rows=st.integers(1, 40), data=st.data())
def test_a_number_of_groups_is_contiguous_and_balanced(rows: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, rows))
    group = row_groups(count, rows).tolist()
    sizes = [group.count(g) for g in range(count)]
    assert group == sorted(group)
    assert sum(sizes) == rows
    assert max(sizes) - min(sizes) <= 1
    assert min(sizes) >= 1


@given(rows=st.integers(1, 12), seed=seeds)
def test_forms_of_a_partition_agree(rows: int, seed: int) -> None:
    group = partition(rows, seed)
    listed = [[i for i in range(rows) if group[i] == g] for g in range(max(group) + 1)]
    for form in (
        group,
        tuple(group),
        torch.tensor(group),
        torch.tensor(group, dtype=torch.uint8),
        torch.tensor(group).repeat_interleave(2)[::2],
        listed,
        [tuple(reversed(each)) for each in listed],
        [torch.tensor(each) for each in listed],
    ):
        got = row_groups(form, rows)
        assert got.dtype == torch.int64
        assert got.tolist() == group


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (0, "groups must be in 1..3, the number of rows, got 0"),
        (-1, "groups must be in 1..3, the number of rows, got -1"),
        (4, "groups must be in 1..3, the number of rows, got 4"),
        (True, "groups must hold whole numbers, got torch.bool"),
        ([0, 1], r"groups must give each of 3 rows a group 0, 1, ... without gaps, got 2 rows in groups \[0, 1\]"),
        (torch.zeros(4, dtype=torch.int32), "groups must give each of 3 rows a group .* got 4 rows"),
        (torch.zeros(3), r"groups must hold whole numbers, got torch\.float32 of shape \(3,\)"),
        (torch.ones(3, dtype=torch.bool), r"groups must hold whole numbers, got torch\.bool of shape \(3,\)"),
        (torch.zeros(3, 1, dtype=torch.int64), r"groups must hold whole numbers, .* of shape \(3, 1\)"),
        ([True, False, True], r"groups must hold whole numbers, got torch\.bool"),
        ([[0.5], [1.7], [2]], r"groups must hold whole numbers, got torch\.float32"),
        ([0, 2, 2], r"groups must give each of 3 rows a group 0, 1, \.\.\. without gaps, got 3 rows in groups \[0, 2\]"),
        ([1, 1, 2], r"groups must give .* \[1, 2\]"),
        ([0, -1, 1], r"groups must give .* \[-1, 0, 1\]"),
        ([-1, -1, -1], r"groups must give .* \[-1\]"),
        ([[0, 1]], r"groups must be non-empty and hold each of the rows 0\.\.2 once, got \[\[0, 1\]\]"),
        ([[0, 1], [1, 2]], r"groups must be non-empty and hold each of the rows 0\.\.2 once, got \[\[0, 1\], \[1, 2\]\]"),
        ([[0, 1], [3]], "groups must be non-empty and hold each of the rows"),
        ([[0, 0], [2]], "groups must be non-empty and hold each of the rows"),
        ([[0, 1, 2], []], "groups must be non-empty and hold each of the rows"),
        ([[-1, 0], [1]], "groups must be non-empty and hold each of the rows"),
        ([torch.tensor([0, 1])], "groups must be non-empty and hold each of the rows"),
        ([], "groups must give each of 3 rows a group .* got 0 rows"),
    ],
)
def test_what_is_no_partition_is_refused(groups, message: str) -> None:
    matrix = torch.ones(3, 2)
    for call in ((row_groups, groups, 3), (block_norms, matrix, groups), (align, matrix, groups, 1.0, 1.0)):
        assert re.match(message, refusal(*call))


QUARTERS = (0.0, 0.25, 0.5, 0.75, 1.0)  # shares that are whole numbers of 4 k values


@settings(max_examples=200, deadline=None)
@given(quarter=st.integers(1, 6), window=st.sampled_from([(a, b) for a in QUARTERS for b in QUARTERS if a < b]), seed=seeds)
def test_widest_gap_against_a_loop(quarter: int, window: tuple[float, float], seed: int) -> None:
    rng, count = np.random.default_rng(seed), 4 * quarter
    values = rng.choice([rng.uniform(size=count), rng.lognormal(0, 2, count), rng.integers(0, 5, count).astype(float)])
    ordered, gaps = sorted(values.tolist()), []
    for below in range(1, count):
        if window[0] <= below / count <= window[1]:
            gaps.append((ordered[below] - ordered[below - 1], (ordered[below] + ordered[below - 1]) / 2))
    assume(gaps and max(gaps)[0] > 0)
    found = widest_gap(torch.from_numpy(values).reshape(4, quarter), *window)
    widest = [middle for width, middle in gaps if width >= max(gaps)[0] * (1 - 1e-12)]
    assert min(abs(found - middle) for middle in widest) <= 1e-12 * max(1, ordered[-1])
    below = sum(each < found for each in ordered)
    assert window[0] * count <= below <= window[1] * count


@pytest.mark.parametrize("count", [1, 2, 5, 100])
@pytest.mark.parametrize("value", [3.0, 1e-8, 1e8])
def test_widest_gap_of_equal_values_is_half_of_them(value: float, count: int) -> None:
    for window in ((0.0, 1.0), (0.75, 0.95), (0.5, 0.5)):
        assert widest_gap(torch.full((count,), value, dtype=torch.float64), *window) == value / 2
    assert widest_gap(torch.full((1, 1), value, dtype=torch.float64), 0.25, 0.75) == value / 2


def test_widest_gap_is_the_largest_margin_of_a_threshold() -> None:
    values = torch.tensor([5.0, 1.0, 1.2, 5.1, 1.1, 5.3, 1.3, 20.0])
    assert widest_gap(values, 0.25, 0.75) == pytest.approx((1.3 + 5.0) / 2)
    assert widest_gap(values, 0.0, 1.0) == pytest.approx((5.3 + 20) / 2)


@pytest.mark.parametrize("form", ODD_FORMS)
def test_any_layout_and_precision(form: str) -> None:
    expected = align(ODD.double(), [1, 0], 1.5, 0.5, 1, 0.9)
    got = align(ODD_FORMS[form], [1, 0], 1.5, 0.5, 1, 0.9)
    assert got.norms.dtype == torch.float64
    for name, value in expected._asdict().items():
        assert torch.equal(getattr(got, name), value) if isinstance(value, Tensor) else getattr(got, name) == value
    labels = channel_labels(ODD_FORMS[form], got)
    for one, two in zip(labels, channel_labels(ODD.double(), expected), strict=True):
        assert torch.equal(one, two)
    assert torch.equal(block_norms(ODD_FORMS[form], 1), block_norms(ODD.double(), 1))


def test_degenerate_matrices() -> None:
    """A zero matrix, one by one, one group, one column: nothing active, or no edge to be had."""
    zero = align(torch.zeros(3, 4), 3, 1.0, 0.5, noise_budget=0.1)
    assert not zero.supports.any()
    assert not zero.edges.any()
    assert zero.core == zero.overlapping == zero.noise == zero.radius == 0
    assert zero.limit == "noise budget"
    labels = channel_labels(torch.zeros(3, 4), zero)
    assert [LABELS[kind] for kind in labels.label.tolist()] == ["ST"] * 3
    assert labels.cosine.tolist() == [0.0] * 3
    assert not stable_labels(labels, zero, torch.zeros(3, 4)).any()
    one = align(torch.tensor([[-2.0]]), 1, 0.5, 1.0)
    assert (one.radius, one.limit, one.core) == (1.5, "support", 2.0)
    assert one.edges.tolist() == [[False]]
    assert LABELS[channel_labels(torch.tensor([[-2.0]]), one).label] == "SC"
    rank_one = torch.outer(torch.tensor([1.0, 1.0, 3.0]), torch.tensor([1.0, 2.0]))
    shared = align(rank_one, 3, 0.5, 1.0)
    assert shared.degree.tolist() == [3, 3]
    assert shared.core == shared.noise == 0
    assert shared.edges.sum() == 6


@pytest.mark.parametrize("case", BAD_MATRICES)
def test_bad_matrices_are_refused(case: str) -> None:
    bad, message = BAD_MATRICES[case]
    made = align(torch.eye(2), 2, 0.5, 0.5)
    labels = channel_labels(torch.eye(2), made)
    for call in ((align, bad, 1, 1.0, 1.0), (block_norms, bad, 1), (channel_labels, bad, made)):
        assert re.match("matrix " + message, refusal(*call))
    assert re.match("error " + message, refusal(stable_labels, labels, made, bad))


def test_what_else_is_refused() -> None:
    matrix = torch.eye(2)
    for threshold in (0, 0.0, -1.0, NAN, INF):
        assert refusal(align, matrix, 2, threshold, 1.0) == f"tau must be > 0 and finite, got {threshold!r}"
        assert refusal(align, matrix, 2, 1.0, threshold) == f"omega must be > 0 and finite, got {threshold!r}"
    for budget in (-0.1, NAN, INF):
        message = f"noise_budget must be >= 0 and finite, got {budget!r}"
        assert refusal(align, matrix, 2, 1.0, 1.0, noise_budget=budget) == message
    for hub in (0, -1, 1.5, True):
        assert refusal(align, matrix, 2, 1.0, 1.0, hub_degree=hub) == f"hub_degree must be a whole number >= 1, got {hub!r}"
    made = align(matrix, 2, 0.5, 0.5)
    for kappa in (0, -0.5, 1.01, NAN):
        assert refusal(channel_labels, matrix, made, kappa) == f"kappa must be in (0, 1], got {kappa!r}"
    message = refusal(channel_labels, torch.ones(2, 3), made)
    assert message == "matrix must have the alignment's shape (2, 2), got (2, 3)"


def test_groups_of_numpy_integers_are_the_rows_groups() -> None:
    expected = torch.tensor([1, 0, 1])
    for groups in (np.array([1, 0, 1]), list(np.array([1, 0, 1])), (1, 0, 1), torch.tensor([1, 0, 1], dtype=torch.int8)):
        assert torch.equal(row_groups(groups, 3), expected)
    assert torch.equal(row_groups([np.array([1]), range(0, 3, 2)], 3), expected)


def test_an_error_of_another_shape_is_refused() -> None:
    matrix = torch.randn(4, 6)
    made = align(matrix, 2, 1.0, 1.0)
    labels = channel_labels(matrix, made)
    for shape in ((4, 1), (1, 6), (3, 6)):
        with pytest.raises(ValueError, match=r"error must have the alignment's shape \(4, 6\), got"):
            stable_labels(labels, made, torch.zeros(shape))


@pytest.mark.parametrize(
    ("values", "low", "high", "expected"),
    [
        ([1, 5, 5.1, 5.2, 5.3, 5.4, 5.9, 6, 6.1, 6.2], 0.15, 0.65, 5.65),  # not 3, which leaves a tenth below
        ([1, 1, 1, 5, 5, 5, 5, 5, 5, 9], 0.25, 0.5, 3.0),
        ([1, 2, 4], 0.4, 0.6, 3.0),  # no gap inside: the widest of all
        ([9] * 9 + [10], 0.2, 0.5, 9.5),  # flat inside: the widest of all
        ([2, 2, 2], 0.2, 0.5, 1.0),  # equal values: half
        ([3], 0.2, 0.5, 1.5),
    ],
)
def test_widest_gap_leaves_the_share_below_that_was_asked_for(values: list, low: float, high: float, expected: float) -> None:
    assert widest_gap(torch.tensor(values, dtype=torch.float64), low, high) == pytest.approx(expected)


def test_huge_and_tiny_matrices() -> None:
    """Squares of these entries are no floating-point numbers."""
    for scale in (2.0**560, 2.0**-560):
        matrix = torch.tensor([[3.0, 0.0], [4.0, 1.0]], dtype=torch.float64) * scale
        made = align(matrix, 1, 2 * scale, scale)
        assert (made.norms / scale).tolist() == [[5.0, 1.0]]
        assert made.core / scale == 5.0
        assert made.radius / scale == 1.0
