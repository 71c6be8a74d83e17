"""Channel labels against plain loops, their thresholds, and how seldom chance reaches these."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matrices import INF, NAN, refusal
from test_alignment import Case, cases
from torch import Tensor

from gch_bench.spectral.alignment import Alignment, align
from gch_bench.spectral.labels import (
    LABELS,
    ONE_ROW,
    channel_labels,
    cosine_thresholds,
    profiles,
    row_errors,
)


def reference_labels(case: Case, made: Alignment, matrix: Tensor, kappa: float) -> list[dict[str, float | str]]:
    """Label, parts and cosine of each row, by loops."""
    m, supports, degree = matrix.tolist(), made.supports.tolist(), made.degree.tolist()
    found = []
    for i, row in enumerate(m):
        g, mates = case.group[i], [k for k in range(len(m)) if case.group[k] == case.group[i]]
        columns = range(len(row))
        profile = [sum(m[k][j] for k in mates) / len(mates) if supports[g][j] else 0.0 for j in columns]
        core = math.hypot(*(row[j] for j in columns if supports[g][j] and degree[j] == 1))
        overlap = math.hypot(*(row[j] for j in columns if supports[g][j] and degree[j] >= 2))
        noise = math.hypot(*(row[j] for j in columns if not supports[g][j]))
        lengths = math.hypot(*row) * math.hypot(*profile)
        cosine = sum(a * b for a, b in zip(row, profile, strict=True)) / lengths if lengths else 0.0
        chance = 1 / math.sqrt(len(mates))
        threshold = min(kappa * chance, (1 + chance) / 2) if len(mates) > 1 else 0.5
        label = "ST"
        if abs(cosine) >= threshold and max(core, overlap, noise) == core:
            label = "SC"
        elif abs(cosine) >= threshold and max(core, overlap, noise) == overlap:
            label = "SA"
        gap = sorted((core, overlap, noise))[2] - sorted((core, overlap, noise))[1]
        found.append({"label": label, "core": core, "overlap": overlap, "noise": noise, "cosine": cosine, "gap": gap,
                      "row": math.hypot(*row), "profile": math.hypot(*profile), "threshold": threshold})  # fmt: skip
    return found


kappas = st.one_of(st.just(2.0), st.floats(0.1, 5))


@settings(max_examples=80, deadline=None)
@given(case=cases(), kappa=kappas)
def test_labels_against_plain_loops(case: Case, kappa: float) -> None:
    made = case.align()
    got, top = channel_labels(case.matrix, made, kappa), float(case.matrix.abs().max())
    for i, expected in enumerate(reference_labels(case, made, case.matrix, kappa)):
        for name in ("core", "overlap", "noise", "row", "profile", "gap", "threshold"):
            assert float(getattr(got, name)[i]) == pytest.approx(expected[name], rel=1e-12, abs=1e-13 * top)
        if min(expected["row"], expected["profile"]) > 1e-8 * top:
            assert float(got.cosine[i]) == pytest.approx(expected["cosine"], abs=1e-7)
            assert float(got.cosine_margin[i]) == pytest.approx(abs(abs(expected["cosine"]) - expected["threshold"]), abs=1e-7)
            if expected["gap"] > 1e-12 * top and got.cosine_margin[i] > 1e-6:
                assert LABELS[got.label[i]] == expected["label"]


def test_all_labels_occur() -> None:
    """Rows on columns of their own, on shared columns, below tau, and against their group."""
    m = torch.tensor([[9.0, 0, 1, 0], [8.0, 0, 1, 0], [0, 0, 9.0, 0.5], [0, 9.0, 9.5, 0], [0, 0.3, 0.4, 0.5]]).double()
    case = Case(m, [0, 0, 1, 2, 3], 1.2, 2.0, 2, None)
    made = case.align()
    assert made.edges.nonzero().tolist() == [[1, 2], [2, 1]]
    labels = channel_labels(m, made)
    assert [LABELS[kind] for kind in labels.label.tolist()] == ["SC", "SC", "SA", "SA", "ST"]
    opposed = torch.tensor([[9.0, 0.1], [-8.9, 8.0], [1.0, 0.0]]).double()
    turned = channel_labels(opposed, align(opposed, [0, 0, 0], 8.5, 1.0), kappa=1.7)
    assert [LABELS[kind] for kind in turned.label.tolist()] == ["SC", "ST", "SC"]


@settings(max_examples=50, deadline=None)
@given(case=cases())
def test_profiles_are_means_on_the_support(case: Case) -> None:
    made = case.align()
    for g, row in enumerate(profiles(case.matrix, made)):
        mean = case.matrix.numpy()[np.array(case.group) == g].mean(0) * made.supports[g].numpy()
        np.testing.assert_allclose(row, mean, rtol=1e-12, atol=1e-14 * float(case.matrix.abs().max()))


def test_thresholds_are_in_units_of_chance_and_can_be_reached() -> None:
    sizes = torch.tensor([1, 2, 4, 9, 16, 64, 256])
    half_way = [(1 + size**-0.5) / 2 for size in (2, 4)]
    assert cosine_thresholds(sizes).tolist() == pytest.approx([ONE_ROW, *half_way, 2 / 3, 0.5, 0.25, 0.125])
    assert cosine_thresholds(torch.tensor([100]), 3.0).tolist() == pytest.approx([0.3])
    for kappa in (0, -0.5, NAN, INF):
        assert refusal(cosine_thresholds, sizes, kappa) == f"kappa must be > 0 and finite, got {kappa!r}"


@pytest.mark.parametrize("rows", [2, 4, 16, 64])
def test_random_rows_seldom_reach_the_threshold(rows: int) -> None:
    """Chance is 1 / sqrt(|G|) on a full support; twice that is reached by fewer than one row of Gaussian noise in 500."""
    matrix = torch.randn(64 * 8, 1024, dtype=torch.float64, generator=torch.Generator().manual_seed(rows))
    labels = channel_labels(matrix, align(matrix, len(matrix) // rows, 1e-6, 1.0))
    assert float(labels.cosine.abs().mean()) == pytest.approx(rows**-0.5, rel=0.05)
    assert float((labels.cosine.abs() >= labels.threshold).double().mean()) < 0.002


def test_a_group_of_one_row_needs_no_cosine() -> None:
    """SC and SA follow from the parts alone; a row of zeros is ST."""
    matrix = torch.tensor([[3.0, 2.9, 2.9], [2.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 5.0]])
    labels = channel_labels(matrix, align(matrix, 4, 2.95, 1.0), kappa=100.0)
    assert [LABELS[kind] for kind in labels.label.tolist()] == ["ST", "ST", "ST", "SC"]
    matrix[0, 1:] = 1.0
    assert LABELS[channel_labels(matrix, align(matrix, 4, 2.95, 1.0)).label[0]] == "SC"


def test_row_errors_are_norms_of_rows_and_of_means() -> None:
    error = torch.tensor([[3.0, 4.0], [-3.0, 4.0], [0.0, 2.0]])
    found = row_errors(error, torch.tensor([0, 0, 1]))
    assert found.rows.tolist() == [5.0, 5.0, 2.0]
    assert found.means.tolist() == [4.0, 2.0]
