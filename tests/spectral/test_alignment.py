"""Static channels of theory 3: against plain loops, and what the strict certificate promises."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from matrices import INF, matrices, orthogonal, partition, scales, seeds
from torch import Tensor

from gch_bench.spectral.alignment import (
    CORE,
    NOISE,
    OVERLAP,
    Alignment,
    align,
    block_norms,
    overlap_strengths,
)

FAMILY = ("supports", "degree", "edges", "hubs", "masks")  # what the certificate is about, with the SRS sets


class Case(NamedTuple):
    matrix: Tensor
    group: list[int]
    tau: float
    omega: float
    hub_degree: int
    noise_budget: float | None

    def align(self, matrix: Tensor | None = None) -> Alignment:
        matrix = self.matrix if matrix is None else matrix
        return align(matrix, self.group, self.tau, self.omega, self.hub_degree, self.noise_budget)


@st.composite
def cases(draw, largest: int = 9) -> Case:
    """Thresholds among the values that they cut, so that no side is empty as a rule."""
    matrix, seed = draw(matrices(largest)), draw(seeds)
    assume(float(matrix.abs().max()) > 0)
    rng, group = np.random.default_rng(seed), partition(len(matrix), seed)
    norms = reference_norms(matrix, group)
    tau = float(np.quantile(norms, rng.uniform()) * rng.uniform(0.7, 1.3))
    assume(tau > 0)
    strengths = reference_overlap(norms, norms >= tau)
    omega = float(np.quantile(strengths, rng.uniform()) * rng.uniform(0.7, 1.3)) or tau
    budget = draw(st.one_of(st.none(), st.floats(0, 2)))
    return Case(matrix, group, tau, omega, int(rng.integers(1, 4)), budget)


def reference_norms(matrix: Tensor, group: Sequence[int]) -> np.ndarray:
    """N_gj by loops."""
    rows, columns = matrix.shape
    norms = np.zeros((max(group) + 1, columns))
    for g in range(len(norms)):
        for j in range(columns):
            norms[g, j] = math.hypot(*(float(matrix[i, j]) for i in range(rows) if group[i] == g))
    return norms


def reference_overlap(norms: np.ndarray, supports: np.ndarray) -> np.ndarray:
    """o_gh by loops."""
    count, columns = norms.shape
    strengths = np.zeros((count, count))
    for g in range(count):
        for h in range(count):
            both = [j for j in range(columns) if supports[g, j] and supports[h, j] and g != h]
            strengths[g, h] = math.hypot(*(min(norms[g, j], norms[h, j]) for j in both))
    return strengths


def random_like(matrix: Tensor, size: float, seed: int) -> Tensor:
    """A perturbation of Frobenius norm ``size``: all over the matrix, or in one column, one row or one entry."""
    rng = np.random.default_rng(seed)
    error = rng.normal(size=matrix.shape)
    row, column = rng.integers(matrix.shape[0]), rng.integers(matrix.shape[1])
    where = np.ones(matrix.shape, bool)
    if seed % 4 in (1, 2):
        where &= np.arange(matrix.shape[1]) == column
    if seed % 4 in (2, 3):
        where &= np.arange(matrix.shape[0])[:, None] == row
    error *= where
    return torch.from_numpy(error / np.linalg.norm(error) * size)


def changed(case: Case, one: Alignment, two: Alignment) -> list[str]:
    """The names of what differs, of all that a certificate covers."""
    names = [name for name in FAMILY if not torch.equal(getattr(one, name), getattr(two, name))]
    count = len(one.supports)
    if any(not torch.equal(one.shared(g, h), two.shared(g, h)) for g in range(count) for h in range(count)):
        names.append("shared")
    if case.noise_budget is not None:
        within = [each.noise <= case.noise_budget * math.hypot(each.core, each.overlapping, each.noise) for each in (one, two)]
        if within[0] != within[1]:
            names.append("noise budget")
    return names


@settings(max_examples=100, deadline=None)
@given(case=cases())
def test_against_plain_loops(case: Case) -> None:
    got, group = case.align(), case.group
    norms = reference_norms(case.matrix, group)
    assume((np.abs(norms - case.tau) > 1e-12 * case.tau).all())  # a tie within rounding has no right answer
    supports = norms >= case.tau
    strengths = reference_overlap(norms, supports)
    off = ~np.eye(len(norms), dtype=bool)
    assume((np.abs(strengths - case.omega)[off] > 1e-12 * case.omega).all())
    np.testing.assert_allclose(got.norms, norms, rtol=1e-13)
    np.testing.assert_allclose(block_norms(case.matrix, group), norms, rtol=1e-13)
    np.testing.assert_array_equal(got.supports, supports)
    degree = [sum(bool(supports[g, j]) for g in range(len(norms))) for j in range(norms.shape[1])]
    assert got.degree.tolist() == degree
    np.testing.assert_allclose(got.overlap, strengths, rtol=1e-13)
    np.testing.assert_allclose(overlap_strengths(torch.from_numpy(norms), torch.from_numpy(supports)), strengths, rtol=1e-13)
    np.testing.assert_array_equal(got.edges, (strengths >= case.omega) & off)
    assert got.hubs.tolist() == [each >= case.hub_degree for each in degree]
    assert got.group.tolist() == group
    for i, row in enumerate(got.masks.tolist()):
        for j, kind in enumerate(row):
            assert kind == (NOISE if not supports[group[i], j] else CORE if degree[j] == 1 else OVERLAP)
    for g in range(len(norms)):
        for h in range(len(norms)):
            assert got.shared(g, h).tolist() == (supports[g] & supports[h]).tolist()


@settings(max_examples=100, deadline=None)
@given(case=cases())
def test_the_split_is_orthogonal(case: Case) -> None:
    """core^2 + overlap^2 + noise^2 = ||M||^2, each part the norm of M on its mask."""
    got, m = case.align(), case.matrix.numpy()
    assert math.hypot(got.core, got.overlapping, got.noise) == pytest.approx(np.linalg.norm(m), rel=1e-13)
    for part, kind in ((got.core, CORE), (got.overlapping, OVERLAP), (got.noise, NOISE)):
        assert part == pytest.approx(np.linalg.norm(m * (got.masks.numpy() == kind)), rel=1e-13)


@settings(max_examples=100, deadline=None)
@given(case=cases())
def test_radius_is_its_formula(case: Case) -> None:
    got = case.align()
    norms, whole = reference_norms(case.matrix, case.group), np.linalg.norm(case.matrix.numpy())
    terms = {"support": min(abs(float(n) - case.tau) for n in norms.flat)}
    strengths = got.overlap.numpy()
    between = [abs(strengths[g, h] - case.omega) for g in range(len(norms)) for h in range(g)]
    if between:
        terms["edge"] = min(between)
    if case.noise_budget is not None:
        nu = case.noise_budget
        terms["noise budget"] = (nu * whole - got.noise) / (1 + nu)
    assert got.radius == pytest.approx(min(terms.values()), rel=1e-12, abs=1e-13 * whole)
    assert terms[got.limit] == pytest.approx(got.radius, rel=1e-12, abs=1e-13 * whole)


@settings(max_examples=100, deadline=None)
@given(case=cases(), seed=seeds)
def test_certificate(case: Case, seed: int) -> None:
    """Nothing changes under ||E||_F = 0.999 radius, whatever E: random, sparse, or straight at the closest threshold."""
    before = case.align()
    assume(before.radius > 1e-10 * float(case.matrix.abs().max()))
    size = 0.999 * before.radius
    for error in [random_like(case.matrix, size, seed + k) for k in range(8)] + straight(case, before, size):
        assert float(error.norm()) <= before.radius
        assert changed(case, before, case.align(case.matrix + error)) == []


def straight(case: Case, made: Alignment, size: float) -> list[Tensor]:
    """Perturbations of norm ``size`` along the block closest to tau, the pair closest to omega and the noise: both ways."""
    m, group = case.matrix, made.group
    g, j = divmod(int((made.norms - case.tau).abs().argmin()), m.shape[1])
    block = torch.zeros_like(m)
    block[group == g, j] = m[group == g, j]
    if not block.any():
        block[group == g, j] = 1.0
    noise = torch.where(made.masks == NOISE, m, 0)
    directions = [block, noise if noise.any() else (made.masks == NOISE).to(m.dtype)]
    if len(made.norms) > 1:
        away = (made.overlap - case.omega).abs().fill_diagonal_(INF)
        g, h = divmod(int(away.argmin()), len(away))
        pair = torch.zeros_like(m)
        for j in made.shared(g, h).nonzero().flatten().tolist():
            rows = group == (g if made.norms[g, j] <= made.norms[h, j] else h)
            pair[rows, j] = m[rows, j]
        directions.append(pair)
    return [sign * size / each.norm() * each for each in directions if each.any() for sign in (1, -1)]


# Two groups of one row, tau = 1; each limit is the closest one in its case.
LIMITS = {
    "support": Case(torch.tensor([[3.0, 0.0], [0.0, 1.5]]), [0, 1], 1.0, 9.0, 2, None),
    "support, from below": Case(torch.tensor([[3.0, 0.0], [0.0, 0.7]]), [0, 1], 1.0, 9.0, 2, None),
    "edge": Case(torch.tensor([[3.0, 0.0], [4.0, 0.0]]), [0, 1], 1.0, 2.8, 2, None),
    "edge, from below": Case(torch.tensor([[3.0, 0.0], [4.0, 0.0]]), [0, 1], 1.0, 3.4, 2, None),
    "noise budget": Case(torch.tensor([[3.0, 0.0], [0.0, 3.0]]), [0, 1], 1.0, 9.0, 2, 4e-4),
}


@pytest.mark.parametrize("name", LIMITS)
def test_the_radius_is_no_smaller_than_it_need_be(name: str) -> None:
    """1.001 radius straight at the threshold does change something: the certificate names its limit rightly."""
    case, limit = LIMITS[name]._replace(matrix=LIMITS[name].matrix.double()), name.split(",")[0]
    before = case.align()
    assert before.limit == limit
    told = {"support": "supports", "edge": "edges", "noise budget": "noise budget"}[limit]
    for share in (0.999, 1.001):
        found = [changed(case, before, case.align(case.matrix + e)) for e in straight(case, before, share * before.radius)]
        assert any(told in names for names in found) == (share > 1)


def test_negative_radius_where_the_budget_is_spent() -> None:
    spent = align(torch.tensor([[3.0, 0.9], [0.0, 3.0]]), 2, 1.0, 9.0, noise_budget=0.1)
    assert spent.limit == "noise budget"
    assert spent.radius == pytest.approx((0.1 * math.sqrt(18.81) - 0.9) / 1.1)
    assert spent.radius < 0


@settings(max_examples=100, deadline=None)
@given(case=cases(), factor=scales, seed=seeds)
def test_scale_and_rotations(case: Case, factor: float, seed: int) -> None:
    """M, tau and omega in other units; a rotation of the rows within each group; an order of columns."""
    before = case.align()
    assume(min(float((before.norms - case.tau).abs().min()) / case.tau, 1) > 1e-9)
    scaled = align(factor * case.matrix, case.group, factor * case.tau, factor * case.omega, case.hub_degree, case.noise_budget)
    assert torch.equal(scaled.supports, before.supports)
    whole = float(case.matrix.norm())
    assert scaled.radius == pytest.approx(factor * before.radius, rel=1e-9, abs=1e-12 * factor * whole)
    generator = torch.Generator().manual_seed(seed)
    turned = case.matrix.clone()
    for g in range(max(case.group) + 1):
        rows = before.group == g
        turned[rows] = orthogonal(int(rows.sum()), int(rows.sum()), generator) @ turned[rows]
    got = case.align(turned)
    torch.testing.assert_close(got.norms, before.norms, rtol=0, atol=1e-13 * whole)
    assert torch.equal(got.supports, before.supports)
    assert torch.equal(got.masks, before.masks)
    assert (got.core, got.overlapping, got.noise) == pytest.approx(
        (before.core, before.overlapping, before.noise), rel=1e-12, abs=1e-13 * whole
    )
    order = torch.randperm(turned.shape[1], generator=generator)
    assert torch.equal(case.align(case.matrix[:, order]).masks, before.masks[:, order])
