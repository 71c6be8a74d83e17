"""Block norms of a matrix whose rows form groups, thresholds for them, and what is active at these thresholds.

Source: GSA II, arXiv 2605.02111; the rules for the thresholds are this project's (docs/geometry.md).

Legend: the rows of M (m, n) form q groups G_1..G_q, and N_gj = ||M[G_g, j]||_2 is a block norm. A block (g, j) is active if its
norm is at least tau. Two groups are joined by an edge if their overlap strength is at least omega. A column is a hub if it is
active in at least ``hub_degree`` groups.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from gch_bench.spectral.groups import Groups, row_groups
from gch_bench.spectral.linalg import matrix64, power_of_two

NOISE, CORE, OVERLAP = 0, 1, 2  # masks: inactive; active in one group only; active in two groups or more
DENSITY = 0.15  # share of active blocks
EDGE_DENSITY = 0.5  # share of edges among the pairs of groups that share an active column
TIE = 1e-9  # neighbours that are closer than this share of the largest value count as equal: no threshold parts them


class Thresholds(NamedTuple):
    """What a block, a pair of groups and a column must reach."""

    tau: float  # block norm from which a block is active
    omega: float  # overlap strength from which an edge joins two groups
    hub_degree: int = 2  # number of active blocks from which a column is a hub

    def checked(self) -> "Thresholds":
        """Itself. Raises ValueError if a threshold is out of its range."""
        for name, value in (("tau", self.tau), ("omega", self.omega)):
            if not 0 < value < float("inf"):
                raise ValueError(f"{name} must be > 0 and finite, got {value!r}")
        degree = self.hub_degree
        if isinstance(degree, bool) or not isinstance(degree, int) or degree < 1:
            raise ValueError(f"hub_degree must be a whole number >= 1, got {degree!r}")
        return self


def block_norms(matrix: Tensor, groups: Groups) -> Tensor:
    """N (q, n): the 2-norm of each column within each group of rows of ``matrix`` (m, n), in one of ``row_groups``' forms."""
    matrix = matrix64(matrix)
    return grouped_norms(matrix, row_groups(groups, matrix.shape[0]).to(matrix.device))


def grouped_norms(matrix: Tensor, group: Tensor) -> Tensor:
    """``block_norms`` of a float64 ``matrix`` (m, n) whose rows' groups, int64 (m,), are known to be a partition."""
    scale = power_of_two(matrix.abs().max())
    return scale * (membership(group) @ (matrix / scale).square_()).sqrt_()


def membership(group: Tensor) -> Tensor:
    """float64 (q, m): 1 where a row is in a group, 0 elsewhere, from each row's group, int64 (m,)."""
    return torch.nn.functional.one_hot(group).mT.to(torch.float64)


def overlap_strengths(norms: Tensor, supports: Tensor) -> Tensor:
    """o (q, q), 0 on the diagonal: o_gh = (sum of min(N_gj, N_hj)^2 over the columns j active in both g and h)^1/2."""
    scale = power_of_two(norms.max())
    active = torch.where(supports, norms, 0) / scale
    strength = torch.zeros(len(norms), len(norms), dtype=norms.dtype, device=norms.device)
    for g in range(len(norms)):  # min(N_gj, 0) is 0 where j is not active in both
        strength[g] = torch.linalg.vector_norm(torch.minimum(active[g], active), dim=1)
    return scale * strength.fill_diagonal_(0)


def mask_of(supports: Tensor) -> Tensor:
    """int8 (q, n): NOISE, CORE or OVERLAP for each block, from its supports, bool (q, n)."""
    kind = torch.where(supports.sum(0) >= 2, OVERLAP, CORE)
    return torch.where(supports, kind, NOISE).to(torch.int8)


def choose_tau(norms: Tensor, density: float = DENSITY) -> float:
    """A threshold that as nearly as possible a share ``density`` of ``norms`` reaches (definition of this project).

    It is the middle between two neighbours of the sorted values, so that no value lies on it. Where equal values leave no such
    middle at the density, the nearest one is taken; if all values are equal it is half of them. No error of the matrix is
    looked at: the threshold is the same whatever is truncated.

    Raises:
        ValueError: if there are no values, none is positive, or ``density`` is outside (0, 1).
    """
    if not 0 < density < 1:
        raise ValueError(f"density must be in (0, 1), got {density!r}")
    if norms.numel() == 0 or not float(norms.max()) > 0:
        raise ValueError(f"norms must have a positive one, got {norms.numel()} values, none of them positive")
    ordered = norms.flatten().sort().values
    cuts = (ordered.diff() > TIE * ordered[-1]).nonzero().flatten()  # a cut at i parts value i from value i + 1
    if len(cuts) == 0:
        return float(ordered[-1]) / 2
    wanted = (1 - density) * len(ordered) - 1
    at = int(cuts[(cuts - wanted).abs().argmin()])
    return float(ordered[at]) + float(ordered[at + 1] - ordered[at]) / 2


def choose_omega(norms: Tensor, tau: float, density: float = EDGE_DENSITY) -> float:
    """A threshold that a share ``density`` of the positive overlap strengths reaches, by the rule of ``choose_tau``.

    Where no two groups share an active column, it is the norm of the whole matrix, which no overlap strength exceeds.
    """
    strengths = overlap_strengths(norms, norms >= tau)
    pairs = strengths[torch.triu(torch.ones_like(strengths, dtype=torch.bool), 1)]
    pairs = pairs[pairs > 0]
    if len(pairs) == 0:
        scale = power_of_two(norms.max())
        return float(scale * torch.linalg.vector_norm(norms / scale))
    return choose_tau(pairs, density)
