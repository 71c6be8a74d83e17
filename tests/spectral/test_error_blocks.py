"""Bounds on the blocks of a truncation error against dense truncations, and the certified curve over windows."""

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from matrices import factors, partition, seeds
from torch import Tensor

from gch_bench.spectral.alignment import align, align_norms, block_norms, choose_omega, choose_tau
from gch_bench.spectral.blocks import Thresholds
from gch_bench.spectral.certificates import certify
from gch_bench.spectral.certified_curve import AlignmentPair, CurvePoint, certified_curve, certified_rank
from gch_bench.spectral.error_blocks import GroupPair, apriori_error_blocks, error_blocks_along
from gch_bench.spectral.linalg import decompose
from gch_bench.spectral.transport import transport_of


@st.composite
def interfaces(draw, largest: int = 8) -> tuple[Tensor, Tensor, GroupPair]:
    """Two factors that compose and groups of the second one's rows, other ones in the two forms."""
    m, n, p = (draw(st.integers(1, largest)) for _ in range(3))
    first, second, seed = draw(factors(m, n)), draw(factors(p, m)), draw(seeds)
    product = second @ first
    assume(float(product.abs().max()) > 1e-6 * float(first.abs().max()) * float(second.abs().max()))
    return first, second, GroupPair(*(torch.tensor(partition(p, seed + k)) for k in range(2)))


def dense_errors(first: Tensor, second: Tensor, k1: int, k2: int) -> tuple[Tensor, Tensor]:
    """Full less truncated in both forms, by NumPy's SVD."""
    u1, s1, v1 = np.linalg.svd(first.numpy(), full_matrices=False)
    u2, s2, v2 = np.linalg.svd(second.numpy(), full_matrices=False)
    cut1, cut2 = (u1[:, :k1] * s1[:k1]) @ v1[:k1], (u2[:, :k2] * s2[:k2]) @ v2[:k2]
    source = np.zeros((len(second), len(s1)))
    source[:, :k1] = cut2 @ (u1[:, :k1] * s1[:k1])
    physical = second.numpy() @ first.numpy() - cut2 @ cut1
    return torch.from_numpy(physical), torch.from_numpy(second.numpy() @ (u1 * s1) - source)


def gapped(values: Tensor, rank: int) -> bool:
    """Whether the window's span is determined: no equal singular values on both sides of its end."""
    return rank == len(values) or float(values[rank - 1] - values[rank]) > 1e-6 * float(values[0])


@settings(max_examples=60, deadline=None)
@given(case=interfaces(), data=st.data())
def test_apriori_bounds_hold_in_both_forms(case, data: st.DataObject) -> None:
    first, second, groups = case
    parts = decompose(first), decompose(second)
    ranks = [data.draw(st.integers(1, len(part.values))) for part in parts]
    moved = transport_of(*parts, *ranks)
    bounds = apriori_error_blocks(*parts, moved, groups)
    size = float(parts[0].values[0] * parts[1].values[0])
    pairs = ((moved.physical, moved.physical_truncated), (moved.source_mode, moved.source_mode_truncated))
    for bound, group, (full, cut) in zip(bounds, groups, pairs, strict=True):
        measured = block_norms(full - cut, group)
        assert bool((measured <= bound + 1e-13 * size).all())
    if ranks == [len(part.values) for part in parts]:
        assert all(float(bound.max()) == 0 for bound in bounds)


@settings(max_examples=60, deadline=None)
@given(case=interfaces(), data=st.data())
def test_apriori_bounds_are_their_formula(case, data: st.DataObject) -> None:
    first, second, groups = case
    parts = decompose(first), decompose(second)
    k1, k2 = (data.draw(st.integers(1, len(part.values))) for part in parts)
    assume(gapped(parts[0].values, k1) and gapped(parts[1].values, k2))
    moved = transport_of(*parts, k1, k2)
    u1, s1, v1 = np.linalg.svd(first.numpy(), full_matrices=False)
    u2, s2, v2 = np.linalg.svd(second.numpy(), full_matrices=False)
    assume(s1.min() > 1e-5 * s1.max())  # else the singular vectors of the tail are arbitrary
    tail = (u2[:, k2:] * s2[k2:]) @ v2[k2:]
    columns = [np.linalg.norm(s1[part, None] * v1[part], axis=0) for part in (slice(k1, None), slice(k1))]
    modes = [np.where(np.arange(len(s1)) >= k1, s1, 0), np.where(np.arange(len(s1)) < k1, s1, 0)]
    for bound, group, (outside, inside) in zip(
        apriori_error_blocks(*parts, moved, groups), groups, (columns, modes), strict=True
    ):
        for g in range(int(group.max()) + 1):
            rows = (group == g).numpy()
            tops = [np.linalg.norm(each[rows], 2) if each.size else 0.0 for each in (second.numpy() @ u1[:, k1:], tail)]
            expected = tops[0] * outside + tops[1] * inside
            size = 1e-9 * s1[0] * s2[0]
            assert (bound[g].numpy() >= expected - size).all()
            assert (bound[g].numpy() <= 1.03 * expected + size).all()


@settings(max_examples=40, deadline=None)
@given(case=interfaces(), data=st.data())
def test_blocks_along_windows_are_those_of_each_window(case, data: st.DataObject) -> None:
    first, second, groups = case
    parts = decompose(first), decompose(second)
    steps = [sorted(data.draw(st.lists(st.integers(1, len(part.values)), min_size=4, max_size=4))) for part in parts]
    moved = transport_of(*parts, 1, 1)
    size = float(parts[0].values[0] * parts[1].values[0])
    untouched = moved.physical.clone()
    for here, (k1, k2) in zip(
        error_blocks_along(*parts, moved, groups, list(zip(*steps, strict=True))), zip(*steps, strict=True), strict=True
    ):
        assert (here.rank_first, here.rank_second) == (k1, k2)
        cut = transport_of(*parts, k1, k2)
        assert here.error == pytest.approx(cut.error, abs=1e-12 * size)
        pairs = ((cut.physical, cut.physical_truncated), (cut.source_mode, cut.source_mode_truncated))
        for got, group, (full, truncated) in zip(here.blocks, groups, pairs, strict=True):
            np.testing.assert_allclose(got, block_norms(full - truncated, group), atol=1e-12 * size)
        if gapped(parts[0].values, k1) and gapped(parts[1].values, k2):
            physical, source = dense_errors(first, second, k1, k2)
            np.testing.assert_allclose(here.blocks.physical, block_norms(physical, groups.physical), atol=1e-8 * size)
            np.testing.assert_allclose(here.error, np.linalg.norm(source), atol=1e-8 * size)
    assert torch.equal(moved.physical, untouched)


def test_windows_that_shrink_are_refused() -> None:
    parts, groups = (decompose(torch.eye(3)), decompose(torch.eye(3))), GroupPair(*[torch.tensor([0, 0, 1])] * 2)
    with pytest.raises(ValueError, match=r"windows must not shrink, got \(1, 2\) after \(2, 2\)"):
        list(error_blocks_along(*parts, transport_of(*parts, 1, 1), groups, [(2, 2), (1, 2)]))


def chosen(matrix: Tensor, group: Tensor):
    norms = block_norms(matrix, group)
    tau = choose_tau(norms, 0.3)
    return align_norms(norms, group, Thresholds(tau, choose_omega(norms, tau)))


def test_curve_against_certificates_of_each_window() -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randn(shape, dtype=torch.float64, generator=generator) for shape in ((20, 15), (24, 20)))
    parts = decompose(first), decompose(second)
    moved, group = transport_of(*parts, 1, 1), torch.arange(24) // 6
    made = AlignmentPair(chosen(moved.physical, group), chosen(moved.source_mode, group))
    etas = (0.5, 0.9, 0.99, 0.9999, 1.0)
    curves = certified_curve(*parts, moved, made, etas)
    for name, curve in curves._asdict().items():
        form = getattr(made, name)
        for eta, point in zip(etas, curve, strict=True):
            energy = [part.values.square().cumsum(0) / part.values.square().sum() for part in parts]
            ranks = [15 if eta == 1 else int((energy[0] < eta).sum()) + 1, 20 if eta == 1 else int((energy[1] < eta).sum()) + 1]
            cut = transport_of(*parts, *ranks)
            full, truncated = getattr(cut, name), getattr(cut, f"{name}_truncated")
            assert [point.rank_first, point.rank_second] == ranks
            bounds = block_norms(full - truncated, group) if eta < 1 else torch.zeros_like(form.norms)
            certain = certify(full, bounds, group, *form.thresholds)
            assert point.certified_share == pytest.approx(certain.certified_share)
            assert point.energy_certified_share == pytest.approx(certain.energy_share)
            assert (point.edges_certified, point.hubs_certified) == (certain.edges_share, certain.hubs_share)
            assert point.strict == (eta == 1 or cut.error < align(full, group, *form.thresholds).radius)
        assert curve[-1][3:] == (0.0, 1.0, 1.0, 1.0, 1.0, True)


def point(eta: float, share: float) -> CurvePoint:
    return CurvePoint(eta, int(100 * eta), 1, 0.0, share, share, math.nan, share, False)


@pytest.mark.parametrize(
    ("shares", "eta"),
    [
        ([0.2, 0.96, 0.97, 1.0], 0.6),
        ([0.96, 0.9, 0.97, 1.0], 0.7),
        ([1.0] * 4, 0.5),
        ([0.0, 0.0, 0.0, 1.0], 1.0),
        ([1, 1, 1, 0.9], None),
    ],
)
def test_certified_rank_holds_for_all_larger_windows(shares: list[float], eta: float | None) -> None:
    found = certified_rank([point(eta, share) for eta, share in zip((0.5, 0.6, 0.7, 1.0), shares, strict=True)])
    assert (found and found.eta) == eta


def test_etas_must_ascend() -> None:
    parts = decompose(torch.eye(3)), decompose(torch.eye(3))
    moved = transport_of(*parts, 1, 1)
    made = AlignmentPair(*[align(torch.eye(3), 3, 0.5, 1.0)] * 2)
    with pytest.raises(ValueError, match=r"etas must be ascending, got \[0\.9, 0\.5\]"):
        certified_curve(*parts, moved, made, (0.9, 0.5))
