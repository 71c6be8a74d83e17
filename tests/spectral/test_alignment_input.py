"""Static channels: forms of a partition, automatic thresholds, odd and bad input."""

import math
import re

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from matrices import BAD_MATRICES, INF, NAN, ODD, ODD_FORMS, partition, refusal, seeds
from torch import Tensor

from gch_bench.spectral.alignment import align, block_norms, choose_omega, choose_tau, row_groups
from gch_bench.spectral.labels import LABELS, channel_labels, row_errors


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


@settings(max_examples=150, deadline=None)
@given(count=st.integers(2, 40), density=st.floats(0.01, 0.99), seed=seeds)
def test_tau_cuts_at_the_density(count: int, density: float, seed: int) -> None:
    """Between two values, midway, and as near to the density as unequal values allow."""
    rng = np.random.default_rng(seed)
    values = rng.choice([rng.uniform(size=count), rng.lognormal(0, 2, count), rng.integers(0, 5, count).astype(float)])
    ordered = sorted(set(values.tolist()))
    assume(len(ordered) > 1)
    tau = choose_tau(torch.from_numpy(values).reshape(1, -1), density)
    at = sum(each < tau for each in ordered)
    assert tau == pytest.approx((ordered[at - 1] + ordered[at]) / 2)
    shares = [float((values > each).mean()) for each in ordered[:-1]]
    assert abs(float((values >= tau).mean()) - density) <= min(abs(share - density) for share in shares) + 1e-9


@pytest.mark.parametrize("count", [1, 2, 5, 100])
@pytest.mark.parametrize("value", [3.0, 1e-8, 1e8])
def test_tau_of_equal_values_is_half_of_them(value: float, count: int) -> None:
    nearly = value * (1 + 1e-15 * torch.arange(count, dtype=torch.float64))
    assert choose_tau(nearly) == pytest.approx(value / 2)


def test_omega_cuts_the_positive_strengths() -> None:
    norms = torch.tensor([[3.0, 0.0, 0.0], [2.0, 4.0, 0.0], [1.0, 3.0, 0.0], [0.0, 0.0, 5.0]]).double()
    pairs = sorted([2.0, 1.0, math.hypot(1, 3)])  # the fourth group shares no column
    assert choose_omega(norms, 0.5, 0.34) == pytest.approx((pairs[1] + pairs[2]) / 2)
    assert choose_omega(norms, 0.5, 0.67) == pytest.approx((pairs[0] + pairs[1]) / 2)
    alone = torch.eye(3).double()
    assert choose_omega(alone, 0.5) == pytest.approx(math.sqrt(3))
    assert not align(alone, 3, 0.5, choose_omega(alone, 0.5)).edges.any()


def test_thresholds_refuse_what_they_cannot_cut() -> None:
    assert refusal(choose_tau, torch.zeros(2, 2)) == "norms must have a positive one, got 4 values, none of them positive"
    assert refusal(choose_tau, torch.zeros(0)).startswith("norms must have a positive one, got 0 values")
    for density in (0.0, 1.0, -1.0, NAN):
        assert refusal(choose_tau, torch.ones(2), density) == f"density must be in (0, 1), got {density!r}"


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
    for call in ((align, bad, 1, 1.0, 1.0), (block_norms, bad, 1), (channel_labels, bad, made)):
        assert re.match("matrix " + message, refusal(*call))
    assert re.match("error " + message, refusal(row_errors, bad, made.group))


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
    for kappa in (0, -0.5, INF, NAN):
        assert refusal(channel_labels, matrix, made, kappa) == f"kappa must be > 0 and finite, got {kappa!r}"
    message = refusal(channel_labels, torch.ones(2, 3), made)
    assert message == "matrix must have the alignment's shape (2, 2), got (2, 3)"


def test_groups_of_numpy_integers_are_the_rows_groups() -> None:
    expected = torch.tensor([1, 0, 1])
    for groups in (np.array([1, 0, 1]), list(np.array([1, 0, 1])), (1, 0, 1), torch.tensor([1, 0, 1], dtype=torch.int8)):
        assert torch.equal(row_groups(groups, 3), expected)
    assert torch.equal(row_groups([np.array([1]), range(0, 3, 2)], 3), expected)


def test_huge_and_tiny_matrices() -> None:
    """Squares of these entries are no floating-point numbers."""
    for scale in (2.0**560, 2.0**-560):
        matrix = torch.tensor([[3.0, 0.0], [4.0, 1.0]], dtype=torch.float64) * scale
        made = align(matrix, 1, 2 * scale, scale)
        assert (made.norms / scale).tolist() == [[5.0, 1.0]]
        assert made.core / scale == 5.0
        assert made.radius / scale == 1.0
