"""Three-valued certificates: what is certain about the static channels of M + E if only the sizes of E's blocks are known.

Definition of this project (docs/geometry.md); what is certified is GSA II's, arXiv 2605.02111.

Legend: e_gj >= ||E[G_g, j]|| bounds each block of the error E, hence the block norm of M + E lies in
[N_gj - e_gj, N_gj + e_gj]. Three values: 1 certainly active (an edge, a hub, shared), -1 certainly not, 0 undecided.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from gch_bench.spectral.blocks import CORE, NOISE, OVERLAP, Thresholds, grouped_norms, overlap_strengths
from gch_bench.spectral.groups import Groups, row_groups
from gch_bench.spectral.linalg import matrix64, power_of_two

YES, UNDECIDED, NO = 1, 0, -1
UNDECIDED_MASK = -1
# Each interval is widened by this share of its upper end. The sums of squares that norms are made of are exact to half the
# number of terms times 2.2e-16, and M + E is rounded, too. An error of exactly 0 widens nothing: then M + E is M.
ROUNDING = 1e-12
MARGINS = (0.01, 0.05, 0.5)  # quantiles of the margins


class Certificate(NamedTuple):
    """What holds for M + E, whatever E within the bounds. Shares are nan where there is nothing to decide."""

    blocks: Tensor  # int8 (q, n): three values, is the block active?
    edges: Tensor  # int8 (q, q): three values, symmetric, -1 on the diagonal
    hubs: Tensor  # int8 (n,): three values
    masks: Tensor  # int8 (q, n): NOISE, CORE or OVERLAP of each block, UNDECIDED_MASK where it is not certain
    certified_share: float  # share of blocks that are decided
    energy_share: float  # share of the energy N^2 that lies in decided blocks
    edges_share: float  # share of pairs of groups that are decided
    hubs_share: float  # share of columns for which it is decided whether they are hubs
    masks_share: float  # share of blocks whose mask is decided
    margins: tuple[float, ...]  # the 1%, 5% and 50% quantiles of |N - tau| / tau

    def shared(self, one: int, other: int) -> Tensor:
        """int8 (n,), three values: is the column active in both groups, that is, in the SRS set of their edge?"""
        return torch.minimum(self.blocks[one], self.blocks[other])


def certify(matrix: Tensor, error_blocks: Tensor, groups: Groups, tau: float, omega: float, hub_degree: int = 2) -> Certificate:
    """The certificate of ``matrix`` M (m, n) for every E whose blocks are within ``error_blocks``.

    Args:
        matrix: the full matrix, of which the thresholds were chosen.
        error_blocks: e (q, n) >= 0, upper bounds of the block norms ||E[G_g, j]||_2.
        groups: groups of rows, in one of the forms that ``row_groups`` takes.
        tau, omega, hub_degree: as in ``align``.

    Raises:
        ValueError: if a matrix is empty or not finite, a bound is negative, shapes do not fit, the groups are no partition of
            the rows, or a threshold is out of range.
    """
    matrix = matrix64(matrix)
    group = row_groups(groups, matrix.shape[0]).to(matrix.device)
    return certify_norms(grouped_norms(matrix, group), error_blocks, Thresholds(tau, omega, hub_degree).checked())


def certify_norms(norms: Tensor, error_blocks: Tensor, at: Thresholds) -> Certificate:
    """``certify`` of a matrix of which the block norms N (q, n) are known, at checked thresholds.

    Raises:
        ValueError: if ``error_blocks`` has another shape, is not finite, or has a negative value.
    """
    error_blocks = matrix64(error_blocks, "error_blocks").to(norms.device)
    if error_blocks.shape != norms.shape:
        raise ValueError(
            f"error_blocks must have a row per group and M's columns, {tuple(norms.shape)}, got {tuple(error_blocks.shape)}"
        )
    if bool((error_blocks < 0).any()):
        raise ValueError(f"error_blocks must be >= 0, got {float(error_blocks.min())!r}")
    low, high = _interval(norms, error_blocks)
    blocks = _three(low, high, at.tau)
    masks = possible_masks(blocks)
    edges = _edges(low, high, blocks, at.omega)
    degree = ((blocks == YES).sum(0), (blocks != NO).sum(0))
    hubs = _three(*degree, at.hub_degree)
    only = masks.sum(0) == 1
    kinds = torch.tensor([NOISE, CORE, OVERLAP], dtype=torch.int8, device=norms.device)
    energy = (norms / power_of_two(norms.max())).square()
    decided = blocks != UNDECIDED
    pairs = torch.triu(torch.ones_like(edges, dtype=torch.bool), 1)
    quantiles = torch.tensor(MARGINS, dtype=norms.dtype, device=norms.device)
    return Certificate(
        blocks=blocks,
        edges=edges,
        hubs=hubs,
        masks=torch.where(only, kinds[masks.to(torch.int8).argmax(0)], UNDECIDED_MASK).to(torch.int8),
        certified_share=_mean(decided),
        energy_share=float((energy * decided).sum() / energy.sum()),
        edges_share=_mean(edges[pairs] != UNDECIDED),
        hubs_share=_mean(hubs != UNDECIDED),
        masks_share=_mean(only),
        margins=tuple(torch.quantile((norms - at.tau).abs().flatten() / at.tau, quantiles).tolist()),
    )


def _mean(truths: Tensor) -> float:
    return float(truths.double().mean())


def _interval(norms: Tensor, errors: Tensor) -> tuple[Tensor, Tensor]:
    """Least and largest norms within ``errors`` >= 0 of ``norms``, widened by ROUNDING where there is an error at all."""
    widened = torch.where(errors > 0, errors + ROUNDING * (norms + errors), 0)
    return (norms - widened).clamp(min=0), norms + widened


def _three(low: Tensor, high: Tensor, threshold: float) -> Tensor:
    """int8: 1 where ``low`` reaches the threshold, -1 where ``high`` does not, 0 elsewhere."""
    return (low >= threshold).to(torch.int8) - (high < threshold).to(torch.int8)


def _edges(low: Tensor, high: Tensor, blocks: Tensor, omega: float) -> Tensor:
    """The least overlap strength counts what is certainly active, the largest one what may be."""
    least, largest = overlap_strengths(low, blocks == YES), overlap_strengths(high, blocks != NO)
    exact = least == largest
    least, largest = torch.where(exact, least, least * (1 - ROUNDING)), torch.where(exact, largest, largest * (1 + ROUNDING))
    return _three(least, largest, omega).fill_diagonal_(NO)


def possible_masks(blocks: Tensor) -> Tensor:
    """bool (3, q, n): may a block's mask be NOISE, CORE, OVERLAP? At least one is true. ``blocks`` (q, n): three values."""
    active, surely = blocks != NO, blocks == YES
    others_surely = surely.sum(0) - surely.to(torch.int64)  # of the column's blocks but this one
    others = active.sum(0) - active.to(torch.int64)
    return torch.stack([blocks != YES, active & (others_surely == 0), active & (others > 0)])


def model_share(norms: Tensor, error_blocks: Tensor, sizes: Tensor, tau: float) -> float:
    """A model, not a certificate: the expected share of blocks that would keep their status if E pointed nowhere in particular.

    Each block of E is taken to be an isotropic random direction of length e in its |G| rows. Then N'^2 = N^2 + e^2 + 2 N e c,
    c the cosine of the two, which is nearly Gaussian with standard deviation 1 / sqrt(|G|). Hence N' is nearly Gaussian about
    (N^2 + e^2)^1/2 with the standard deviation N e / (N^2 + e^2)^1/2 / sqrt(|G|). A truncation error is no random direction: it
    depends on M, so that the true share may be larger or
    smaller (definition of this project).

    Args:
        norms, error_blocks: N and e (q, n).
        sizes: (q,), the number of rows of each group.
        tau: block norm from which a block is active.
    """
    centre = torch.hypot(norms, error_blocks)
    deviation = norms * error_blocks / torch.where(centre > 0, centre, 1) / sizes.to(norms)[:, None].sqrt()
    away = torch.where(norms >= tau, centre - tau, tau - centre)
    probable = torch.special.ndtr(away / torch.where(deviation > 0, deviation, 1))
    certain = (away > 0) | ((away == 0) & (norms >= tau))
    return float(torch.where(deviation > 0, probable, certain.to(norms)).mean())
