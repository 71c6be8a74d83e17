"""Three-valued certificates: what is stated holds for every error within the bounds, and no more is left open than need be."""

from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from matrices import BAD_MATRICES, INF, NAN, matrices, partition, refusal, seeds
from torch import Tensor

from gch_bench.spectral.alignment import CORE, NOISE, OVERLAP, Alignment, align, block_norms, certify
from gch_bench.spectral.certificates import NO, UNDECIDED, UNDECIDED_MASK, YES, Certificate, model_share
from gch_bench.spectral.labels import NO_LABEL, SA, SC, ST, RowErrors, certify_labels, channel_labels, row_errors


class Bounded(NamedTuple):
    """A matrix, thresholds among its norms, and bounds on the blocks of an error."""

    matrix: Tensor
    group: list[int]
    tau: float
    omega: float
    hub_degree: int
    bounds: Tensor  # (q, n)

    def align(self, error: Tensor | None = None) -> Alignment:
        matrix = self.matrix if error is None else self.matrix + error
        return align(matrix, self.group, self.tau, self.omega, self.hub_degree)

    def certify(self) -> Certificate:
        return certify(self.matrix, self.bounds, self.group, self.tau, self.omega, self.hub_degree)


@st.composite
def bounded(draw, largest: int = 8) -> Bounded:
    matrix, seed = draw(matrices(largest)), draw(seeds)
    assume(float(matrix.abs().max()) > 0)
    rng, group = np.random.default_rng(seed), partition(len(matrix), seed)
    norms = block_norms(matrix, group)
    tau = float(np.quantile(norms, rng.uniform()) * rng.uniform(0.7, 1.3))
    assume(tau > 1e-6 * float(norms.max()))
    strengths = align(matrix, group, tau, 1.0).overlap
    omega = float(np.quantile(strengths, rng.uniform()) * rng.uniform(0.7, 1.3)) or tau
    size = 10 ** rng.uniform(-2, 0.3) * tau
    bounds = torch.from_numpy(size * rng.uniform(size=norms.shape) * (rng.uniform(size=norms.shape) < rng.uniform(0.3, 1.5)))
    return Bounded(matrix, group, tau, omega, int(rng.integers(1, 4)), bounds)


def fitted(direction: Tensor, case: Bounded, share: Tensor | float = 1.0) -> Tensor:
    """``direction`` (m, n) with each block scaled to ``share`` of its bound; a block of zeros gets a one in its first row."""
    group, error = torch.tensor(case.group), direction.clone()
    for g in range(int(group.max()) + 1):
        rows = group == g
        dead = block_norms(error, group)[g] == 0
        error[int(rows.nonzero()[0]), dead] = 1.0
    return error * (share * case.bounds / block_norms(error, group))[group]


def errors(case: Bounded, seed: int) -> list[Tensor]:
    """Errors within the bounds: random ones, and ones that push blocks straight out or in, all or a random choice of them."""
    rng = np.random.default_rng(seed)
    shape, blocks = case.matrix.shape, case.bounds.shape
    found = [fitted(torch.from_numpy(rng.normal(size=shape)), case, float(share)) for share in rng.uniform(size=3)]
    norms = block_norms(case.matrix, case.group)
    inward = torch.minimum(torch.ones(blocks, dtype=torch.float64), norms / torch.where(case.bounds > 0, case.bounds, 1))
    straight = fitted(case.matrix, case)
    to_tau = torch.where(norms >= case.tau, -inward, 1.0)
    signs = [torch.ones(blocks).double(), -inward, to_tau, -to_tau.clamp(-1, 1)]
    signs += [torch.from_numpy(rng.choice([-1.0, 0.0, 1.0], size=blocks)) for _ in range(3)]
    for sign in signs:
        found.append(straight * torch.where(sign < 0, torch.maximum(sign, -inward), sign)[case.group])
    return found


def true_values(truths: Tensor) -> Tensor:
    return torch.where(truths, YES, NO)


def agrees(values: Tensor, truths: Tensor) -> bool:
    """Whether decided ``values`` are what ``truths`` say."""
    return bool(((values == UNDECIDED) | (values == true_values(truths))).all())


@settings(max_examples=60, deadline=None)
@given(case=bounded(), seed=seeds)
def test_what_is_certain_holds_for_every_error_within_the_bounds(case: Bounded, seed: int) -> None:
    certain = case.certify()
    for error in errors(case, seed):
        assert bool((block_norms(error, case.group) <= case.bounds * (1 + 1e-13)).all())
        after = case.align(error)
        assert agrees(certain.blocks, after.supports)
        assert agrees(certain.edges, after.edges)
        assert agrees(certain.hubs, after.hubs)
        assert bool(((certain.masks == UNDECIDED_MASK) | (certain.masks == after.block_masks)).all())
        for g in range(len(case.bounds)):
            for h in range(len(case.bounds)):
                assert agrees(certain.shared(g, h), after.shared(g, h))


@settings(max_examples=60, deadline=None)
@given(case=bounded())
def test_an_undecided_block_can_be_made_active_and_inactive(case: Bounded) -> None:
    """Straight out and straight in reach both sides of tau, but for bounds that end within rounding of it. A hub likewise."""
    certain, norms = case.certify(), block_norms(case.matrix, case.group)
    clear = ((norms - case.tau).abs() - case.bounds).abs() > 1e-9 * case.tau
    outward = fitted(case.matrix, case)
    inward = (
        -outward * torch.minimum(torch.tensor(1.0).double(), norms / torch.where(case.bounds > 0, case.bounds, 1))[case.group]
    )
    most, least = case.align(outward), case.align(inward)
    open_blocks = (certain.blocks == UNDECIDED) & clear
    assert bool(most.supports[open_blocks].all())
    assert not bool(least.supports[open_blocks].any())
    open_hubs = (certain.hubs == UNDECIDED) & clear.all(0)
    assert bool(most.hubs[open_hubs].all())
    assert not bool(least.hubs[open_hubs].any())
    if bool(clear.all()):  # the strengths rise with every norm, so that the two errors attain both ends of each interval
        open_edges = (certain.edges == UNDECIDED) & ((most.overlap - case.omega).abs() > 1e-9 * case.omega)
        open_edges &= (least.overlap - case.omega).abs() > 1e-9 * case.omega
        assert bool(most.edges[open_edges].all())
        assert not bool(least.edges[open_edges].any())


@settings(max_examples=60, deadline=None)
@given(case=bounded())
def test_shares_and_masks_by_loops(case: Bounded) -> None:
    certain, norms = case.certify(), block_norms(case.matrix, case.group)
    groups, columns = case.bounds.shape
    decided = certain.blocks != UNDECIDED
    assert certain.certified_share == pytest.approx(int(decided.sum()) / decided.numel())
    assert certain.energy_share == pytest.approx(float(norms[decided].norm() ** 2 / norms.norm() ** 2))
    pairs = [int(certain.edges[g, h]) for g in range(groups) for h in range(g)]
    assert certain.edges_share == pytest.approx(sum(each != 0 for each in pairs) / len(pairs) if pairs else NAN, nan_ok=True)
    assert certain.hubs_share == pytest.approx(sum(each != 0 for each in certain.hubs.tolist()) / columns)
    np.testing.assert_allclose(certain.margins, np.quantile(abs(norms - case.tau) / case.tau, [0.01, 0.05, 0.5]))
    for g in range(groups):
        for j in range(columns):
            block, others = certain.blocks[g, j], [int(certain.blocks[h, j]) for h in range(groups) if h != g]
            mask = UNDECIDED_MASK
            if block == NO:
                mask = NOISE
            elif block == YES and all(other == NO for other in others):
                mask = CORE
            elif block == YES and any(other == YES for other in others):
                mask = OVERLAP
            assert int(certain.masks[g, j]) == mask
    assert certain.masks_share == pytest.approx(float((certain.masks != UNDECIDED_MASK).double().mean()))


def test_no_error_leaves_nothing_open() -> None:
    """Even a norm that lies on tau, or an overlap strength on omega: M + 0 is M."""
    matrix = torch.tensor([[3.0, 0.0], [3.0, 1.0]])
    certain = certify(matrix, torch.zeros(2, 2), 2, 3.0, 3.0)
    made = align(matrix, 2, 3.0, 3.0)
    assert certain.blocks.tolist() == true_values(made.supports).tolist() == [[1, -1], [1, -1]]
    assert certain.edges.tolist() == [[-1, 1], [1, -1]]
    assert certain.hubs.tolist() == [1, -1]
    assert certain.certified_share == certain.energy_share == certain.edges_share == certain.masks_share == 1


def test_an_example_by_hand() -> None:
    """Norms 4, 1 / 3, 2 at tau = 2.5 with e = 1: the first column's second block and the second column's are open."""
    certain = certify(torch.tensor([[4.0, 1.0], [3.0, 2.0]]), torch.ones(2, 2), 2, 2.5, 3.0)
    assert certain.blocks.tolist() == [[1, -1], [0, 0]]
    assert certain.hubs.tolist() == [0, -1]
    assert certain.edges.tolist() == [[-1, 0], [0, -1]]  # 0 if the second block falls below tau, 4 at most
    assert certain.masks.tolist() == [[UNDECIDED_MASK, NOISE], [UNDECIDED_MASK, UNDECIDED_MASK]]
    assert certain.shared(0, 1).tolist() == [0, -1]
    assert (certain.certified_share, certain.energy_share, certain.edges_share) == (0.5, pytest.approx(17 / 30), 0.0)


def test_one_group_has_no_pair_to_decide() -> None:
    certain = certify(torch.eye(2), torch.full((1, 2), 0.1), 1, 0.5, 1.0)
    assert np.isnan(certain.edges_share)
    assert certain.edges.tolist() == [[-1]]


@pytest.mark.parametrize("case", BAD_MATRICES)
def test_bad_matrices_are_refused_by_the_certificate(case: str) -> None:
    bad, message = BAD_MATRICES[case]
    with pytest.raises(ValueError, match="matrix " + message):
        certify(bad, torch.ones(1, 2), 1, 1.0, 1.0)
    with pytest.raises(ValueError, match="error_blocks " + message):
        certify(torch.eye(2), bad, 1, 1.0, 1.0)


def test_what_else_the_certificate_refuses() -> None:
    matrix, bounds = torch.eye(3), torch.ones(3, 3)
    message = "error_blocks must have a row per group and M's columns, (3, 3), got (2, 3)"
    assert refusal(certify, matrix, bounds[:2], 3, 1.0, 1.0) == message
    assert refusal(certify, matrix, bounds - 1.5, 3, 1.0, 1.0) == "error_blocks must be >= 0, got -0.5"
    assert refusal(certify, matrix, bounds, 3, 0.0, 1.0) == "tau must be > 0 and finite, got 0.0"
    assert refusal(certify, matrix, bounds, 3, 1.0, INF) == "omega must be > 0 and finite, got inf"
    assert refusal(certify, matrix, bounds, 3, 1.0, 1.0, 0) == "hub_degree must be a whole number >= 1, got 0"


def test_huge_and_tiny_matrices_are_certified_alike() -> None:
    matrix, bounds = torch.randn(6, 5, dtype=torch.float64), torch.full((3, 5), 0.4, dtype=torch.float64)
    plain = certify(matrix, bounds, 3, 1.0, 1.5)
    for scale in (2.0**560, 2.0**-560):
        scaled = certify(scale * matrix, scale * bounds, 3, scale, 1.5 * scale)
        for name in ("blocks", "edges", "hubs", "masks"):
            assert torch.equal(getattr(scaled, name), getattr(plain, name))
        assert scaled.energy_share == pytest.approx(plain.energy_share)


kappas = st.floats(0.3, 4)


@settings(max_examples=60, deadline=None)
@given(case=bounded(), kappa=kappas, seed=seeds)
def test_certain_labels_are_those_of_every_error_within_the_bounds(case: Bounded, kappa: float, seed: int) -> None:
    """The error's rows are bounded by the largest of the errors that are tried, and so are its means."""
    tried = errors(case, seed)
    made, certain = case.align(), case.certify()
    each = [row_errors(error, made.group) for error in tried]
    within = RowErrors(*(torch.stack(list(bounds)).amax(0) for bounds in zip(*each, strict=True)))
    known = certify_labels(case.matrix, made, certain, within, kappa)
    for error, bounds in zip(tried, each, strict=True):
        own = certify_labels(case.matrix, made, certain, bounds, kappa)
        after = channel_labels(case.matrix + error, case.align(error), kappa).label
        for labels in (known, own):
            assert bool(((labels == NO_LABEL) | (labels == after)).all())
        assert bool(((known == NO_LABEL) | (known == own)).all())  # smaller errors leave no more open


@settings(max_examples=50, deadline=None)
@given(case=bounded(), kappa=kappas)
def test_without_an_error_every_clear_label_is_certain(case: Bounded, kappa: float) -> None:
    case = case._replace(bounds=torch.zeros_like(case.bounds))
    made = case.align()
    labels = channel_labels(case.matrix, made, kappa)
    nothing = row_errors(torch.zeros_like(case.matrix), made.group)
    known = certify_labels(case.matrix, made, case.certify(), nothing, kappa)
    clear = (labels.gap > 1e-9 * labels.row) & (labels.cosine_margin > 1e-6)
    assert torch.equal(known[clear], labels.label[clear])


def test_where_noise_dominates_no_cosine_margin_is_needed() -> None:
    """The first row is noise; its cosine of 0.447 is within reach of the threshold, which does not matter."""
    matrix = torch.tensor([[0.0, 0.0, 1.0, 1.0], [5.0, 0, 0, 0], [0, 5.0, 0, 0], [0, 0.1, 0, 0]]).double()
    made = align(matrix, [0, 1, 2, 2], 2.0, 1.0)
    certain = certify(matrix, torch.full((3, 4), 0.2), [0, 1, 2, 2], 2.0, 1.0)
    bounds = RowErrors(torch.full((4,), 0.2).double(), torch.full((3,), 0.2).double())
    assert certify_labels(matrix, made, certain, bounds).tolist() == [ST, SC, SC, NO_LABEL]
    wide = certify(matrix, torch.full((3, 4), 4.0), [0, 1, 2, 2], 2.0, 1.0)
    assert certify_labels(matrix, made, wide, RowErrors(20 * bounds.rows, 20 * bounds.means)).tolist() == [NO_LABEL] * 4
    assert SA not in certify_labels(matrix, made, certain, bounds)


@pytest.mark.parametrize(("rows", "share"), [(64, 0.3), (64, 1.5), (9, 0.5)])
def test_the_model_is_what_random_directions_do(rows: int, share: float) -> None:
    """Against sampled directions of the given length; one kept share of each block."""
    generator = torch.Generator().manual_seed(rows)
    matrix = torch.randn(3 * rows, 40, dtype=torch.float64, generator=generator)
    norms, group = block_norms(matrix, 3), torch.arange(3).repeat_interleave(rows)
    bounds = share * norms.mean() * torch.rand(3, 40, dtype=torch.float64, generator=generator)
    tau, kept = float(norms.quantile(0.6)), []
    for _ in range(200):
        error = torch.randn(matrix.shape, dtype=torch.float64, generator=generator)
        error *= (bounds / block_norms(error, 3))[group]
        kept.append(((block_norms(matrix + error, 3) >= tau) == (norms >= tau)).double().mean())
    expected = model_share(norms, bounds, torch.full((3,), rows), tau)
    assert expected == pytest.approx(float(torch.stack(kept).mean()), abs=0.02)
    assert model_share(norms, torch.zeros_like(bounds), torch.full((3,), rows), tau) == 1.0


@settings(max_examples=20, deadline=None)
@given(seed=seeds, turn=st.floats(0.001, 0.5))
def test_certain_labels_withstand_rows_that_turn_to_the_threshold(seed: int, turn: float) -> None:
    """Every column is active in both groups, so that the angle decides; one row at a time turns about its group's mean."""
    rng = np.random.default_rng(seed)
    group, axes = np.arange(32) // 16, np.eye(2, 12)
    away = rng.normal(size=(32, 12)) * (np.arange(12) >= 2)
    angle = rng.uniform(0.8, 1.3, 32)[:, None]  # about 60 degrees, at which the cosine is the threshold of 16 rows
    away /= np.linalg.norm(away, axis=1, keepdims=True)
    m = torch.from_numpy((np.cos(angle) * axes[group] + np.sin(angle) * away + 0.01) * rng.lognormal(0, 0.5, (32, 1)))
    tau = 0.3 * float(block_norms(m, group).min())
    made = align(m, group, tau, 1.0)
    mean = m.reshape(2, 16, 12).mean(1)[group]
    for i in range(0, 32, 4):
        row = m[i] / m[i].norm()
        across = mean[i] - (mean[i] @ row) * row
        for sign in (-1, 1):
            error = torch.zeros_like(m)
            error[i] = sign * np.sin(turn) * np.cos(turn) * m[i].norm() * across / across.norm() - np.sin(turn) ** 2 * m[i]
            certain = certify(m, block_norms(error, group), group, tau, 1.0)
            assert certain.certified_share == 1
            known = certify_labels(m, made, certain, row_errors(error, made.group))
            after = channel_labels(m + error, align(m + error, group, tau, 1.0)).label
            assert bool(((known == NO_LABEL) | (known == after)).all())


@settings(max_examples=50, deadline=None)
@given(case=bounded(), seed=seeds)
def test_certain_labels_withstand_rows_that_move_from_part_to_part(case: Bounded, seed: int) -> None:
    """Each row's largest part shrinks and another one grows: the worst direction for the order of two parts."""
    rng, made = np.random.default_rng(seed), case.align()
    labels = channel_labels(case.matrix, made, 0.3)
    parts = torch.stack([labels.noise, labels.core, labels.overlap])  # NOISE, CORE, OVERLAP
    best = parts.argmax(0)
    for _ in range(4):
        other = (best + torch.from_numpy(rng.integers(1, 3, len(best)))) % 3
        shrink, grow = (torch.where(made.masks == each[:, None], case.matrix, 0) for each in (best, other))
        lengths = [torch.linalg.vector_norm(each, dim=1, keepdim=True).clamp(min=1e-300) for each in (shrink, grow)]
        gap = (parts.max(0).values - parts.gather(0, other[None])[0])[:, None]
        error = rng.uniform(0.3, 0.7) * gap * (grow / lengths[1] - shrink / lengths[0])  # the order turns at one half
        certain = case._replace(bounds=block_norms(error, case.group)).certify()
        known = certify_labels(case.matrix, made, certain, row_errors(error, made.group), 0.3)
        after = channel_labels(case.matrix + error, case.align(error), 0.3).label
        assert bool(((known == NO_LABEL) | (known == after)).all())
