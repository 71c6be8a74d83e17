"""Static channels of an interface: supports, incidence, masks, and the strict certificate of all three.

Source: GSA II, arXiv 2605.02111. The names are from its abstract, the definitions are in docs/geometry.md.

Legend: the rows of the Physical Alignment Matrix M (m, n) are output channels, divided into q groups G_1..G_q; its columns are
input channels or source modes. N_gj = ||M[G_g, j]||_2 is a block norm. A column is active in a group if this norm is at least
tau; the columns that are active in a group are the group's support.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from gch_bench.spectral.blocks import (
    CORE,
    NOISE,
    OVERLAP,
    Thresholds,
    block_norms,
    choose_omega,
    choose_tau,
    grouped_norms,
    mask_of,
    overlap_strengths,
)
from gch_bench.spectral.certificates import Certificate, certify
from gch_bench.spectral.groups import Groups, row_groups
from gch_bench.spectral.linalg import matrix64, norm

__all__ = [
    "CORE",
    "NOISE",
    "OVERLAP",
    "Alignment",
    "Certificate",
    "align",
    "block_norms",
    "certify",
    "choose_omega",
    "choose_tau",
    "overlap_strengths",
    "row_groups",
]


class Alignment(NamedTuple):
    """What a Physical Alignment Matrix shows at the thresholds tau and omega."""

    norms: Tensor  # N (q, n): block norms
    supports: Tensor  # bool (q, n): N >= tau
    degree: Tensor  # int64 (n,): in how many supports a column lies
    overlap: Tensor  # o (q, q): overlap strengths of two groups, 0 on the diagonal
    edges: Tensor  # bool (q, q): o >= omega off the diagonal, symmetric
    hubs: Tensor  # bool (n,): degree >= hub_degree
    block_masks: Tensor  # int8 (q, n): 0 noise (inactive), 1 core (active, degree 1), 2 overlap (active, degree >= 2)
    core: float  # Frobenius norms of M on the masks: core^2 + overlapping^2 + noise^2 = ||M||^2
    overlapping: float
    noise: float
    radius: float  # adding a matrix of a smaller Frobenius norm to M changes no support, edge, shared set, hub or mask
    limit: str  # which of the three terms is the radius: "support", "edge" or "noise budget"
    group: Tensor  # int64 (m,): each row's group
    thresholds: Thresholds

    @property
    def masks(self) -> Tensor:
        """int8 (m, n): each row's masks, which are those of its group."""
        return self.block_masks[self.group]

    @property
    def sizes(self) -> Tensor:
        """int64 (q,): the number of rows of each group."""
        return self.group.bincount()

    def shared(self, one: int, other: int) -> Tensor:
        """bool (n,): the SRS set of the edge between two groups, which is the columns that are active in both."""
        return self.supports[one] & self.supports[other]


def align(
    matrix: Tensor, groups: Groups, tau: float, omega: float, hub_degree: int = 2, noise_budget: float | None = None
) -> Alignment:
    """Supports, incidence, masks and certificate radius of a Physical Alignment Matrix (m, n).

    The radius is the smallest of min_gj |N_gj - tau|, min_{g<h} |o_gh - omega| and, if there is a noise budget nu,
    (nu ||M|| - ||noise||) / (1 + nu); norms without an index are Frobenius norms. Source: GSA II.

    Args:
        groups: groups of rows, in one of the forms that ``row_groups`` takes.
        tau: a column is active in a group if its block norm there is at least ``tau`` > 0.
        omega: two groups are joined by an edge if their overlap strength is at least ``omega`` > 0.
        hub_degree: a column that is active in at least so many groups is a hub.
        noise_budget: nu >= 0; with it, perturbations below the radius also keep the noise within nu times the matrix's norm.

    Raises:
        ValueError: if the matrix is empty or not finite, the groups are not a partition of its rows, or a threshold is out of
            range.
    """
    matrix = matrix64(matrix)
    at = Thresholds(tau, omega, hub_degree).checked()
    if noise_budget is not None and not 0 <= noise_budget < float("inf"):
        raise ValueError(f"noise_budget must be >= 0 and finite, got {noise_budget!r}")
    group = row_groups(groups, matrix.shape[0]).to(matrix.device)
    return align_norms(grouped_norms(matrix, group), group, at, noise_budget)


def align_norms(norms: Tensor, group: Tensor, at: Thresholds, noise_budget: float | None = None) -> Alignment:
    """``align`` of a matrix of which the block norms N (q, n) and the rows' groups (m,) are known, at checked thresholds."""
    supports = norms >= at.tau
    degree = supports.sum(0)
    strength = overlap_strengths(norms, supports)
    off_diagonal = ~torch.eye(len(norms), dtype=torch.bool, device=norms.device)
    masks = mask_of(supports)
    parts = [norm(norms[masks == kind]) for kind in (NOISE, CORE, OVERLAP)]
    radii = {"support": float((norms - at.tau).abs().min())}
    if len(norms) > 1:
        radii["edge"] = float((strength - at.omega)[off_diagonal].abs().min())
    if noise_budget is not None:
        radii["noise budget"] = (noise_budget * norm(norms) - parts[NOISE]) / (1 + noise_budget)
    limit = min(radii, key=lambda name: radii[name])
    return Alignment(
        norms=norms,
        supports=supports,
        degree=degree,
        overlap=strength,
        edges=(strength >= at.omega) & off_diagonal,
        hubs=degree >= at.hub_degree,
        block_masks=masks,
        core=parts[CORE],
        overlapping=parts[OVERLAP],
        noise=parts[NOISE],
        radius=radii[limit],
        limit=limit,
        group=group,
        thresholds=at,
    )
