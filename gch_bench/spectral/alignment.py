"""Static channels of an interface: supports, incidence, masks, the certificate of all three, and channel labels.

Source: GSA II, arXiv 2605.02111. The names are from its abstract, the definitions are in docs/geometry.md.

Legend: the rows of the Physical Alignment Matrix M (m, n) are output channels, divided into q groups G_1..G_q; its columns are
input channels or source modes. N_gj = ||M[G_g, j]||_2 is a block norm. A column is active in a group if this norm is at least
tau; the columns that are active in a group are the group's support.
"""

import numbers
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gch_bench.spectral.linalg import matrix64, norm, power_of_two

NOISE, CORE, OVERLAP = 0, 1, 2
SC, SA, ST = 0, 1, 2
LABELS = ("SC", "SA", "ST")
Groups = int | Tensor | Sequence[int] | Sequence[Sequence[int]]


class Alignment(NamedTuple):
    """What a Physical Alignment Matrix shows at the thresholds tau and omega."""

    norms: Tensor  # N (q, n): block norms
    supports: Tensor  # bool (q, n): N >= tau
    degree: Tensor  # int64 (n,): in how many supports a column lies
    overlap: Tensor  # o (q, q): overlap strengths of two groups, 0 on the diagonal
    edges: Tensor  # bool (q, q): o >= omega off the diagonal, symmetric
    hubs: Tensor  # bool (n,): degree >= hub_degree
    masks: Tensor  # int64 (m, n): 0 noise (inactive), 1 core (active, degree 1), 2 overlap (active, degree >= 2)
    core: float  # Frobenius norms of M on the masks: core^2 + overlapping^2 + noise^2 = ||M||^2
    overlapping: float
    noise: float
    radius: float  # adding a matrix of a smaller Frobenius norm to M changes no support, edge, shared set, hub or mask
    limit: str  # which of the three terms is the radius: "support", "edge" or "noise budget"
    group: Tensor  # int64 (m,): each row's group

    def shared(self, one: int, other: int) -> Tensor:
        """bool (n,): the SRS set of the edge between two groups, which is the columns that are active in both."""
        return self.supports[one] & self.supports[other]


class ChannelLabels(NamedTuple):
    """Invariant Channel Mapping: a label per output channel, and the margins by which the label is kept."""

    label: Tensor  # int64 (m,): index into LABELS
    core: Tensor  # (m,): norm of the row on the core mask
    overlap: Tensor  # (m,): norm of the row on the overlap mask
    noise: Tensor  # (m,): norm of the row on the noise mask
    cosine: Tensor  # (m,): of the angle between the row and its group's mean profile on the group's support; 0 if either is 0
    gap: Tensor  # (m,): the largest of core, overlap and noise less the second largest
    cosine_margin: Tensor  # (m,): ||cosine| - kappa|
    row: Tensor  # (m,): norm of the row
    profile: Tensor  # (m,): norm of the mean profile of the row's group


def row_groups(groups: Groups, rows: int) -> Tensor:
    """int64 (m,): the group of each of the ``rows`` rows, m = ``rows``.

    Args:
        groups: one of three forms: the number q of contiguous groups of nearly equal size; the group of each row; or, for each
            group, the indices of its rows.

    Raises:
        ValueError: if ``groups`` does not divide the rows into non-empty groups that share no row.
    """
    if isinstance(groups, int) and not isinstance(groups, bool):
        if not 1 <= groups <= rows:
            raise ValueError(f"groups must be in 1..{rows}, the number of rows, got {groups}")
        return torch.arange(rows) * groups // rows
    if isinstance(groups, Sequence) and len(groups) and not isinstance(groups[0], numbers.Number):
        members = [_whole(rows_of) for rows_of in groups]
        listed = torch.cat(members)
        if not all(len(rows_of) for rows_of in members) or sorted(listed.tolist()) != list(range(rows)):
            raise ValueError(
                f"groups must be non-empty and hold each of the rows 0..{rows - 1} once, got {[m.tolist() for m in members]}"
            )
        group = torch.empty(rows, dtype=torch.int64)
        group[listed] = torch.arange(len(members)).repeat_interleave(torch.tensor([len(rows_of) for rows_of in members]))
        return group
    group = _whole(groups)
    if len(group) != rows or sorted(set(group.tolist())) != list(range(int(group.max()) + 1)):
        raise ValueError(
            f"groups must give each of {rows} rows a group 0, 1, ... without gaps, got {len(group)} rows in groups"
            f" {sorted(set(group.tolist()))}"
        )
    return group


def _whole(numbers_1d: Any) -> Tensor:
    """int64 (k,) from a sequence or tensor of whole numbers. Raises ValueError if it holds anything else."""
    try:
        values = torch.as_tensor(numbers_1d).cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"groups must hold whole numbers, got {numbers_1d!r}") from error
    if values.ndim != 1 or (len(values) and (values.dtype == torch.bool or values.is_floating_point())):
        raise ValueError(f"groups must hold whole numbers, got {values.dtype} of shape {tuple(values.shape)}")
    return values.to(torch.int64)


def block_norms(matrix: Tensor, groups: Groups) -> Tensor:
    """N (q, n): the 2-norm of each column within each group of rows of ``matrix`` (m, n)."""
    matrix = matrix64(matrix)
    return _block_norms(matrix, row_groups(groups, matrix.shape[0]).to(matrix.device))


def _block_norms(matrix: Tensor, group: Tensor) -> Tensor:
    scale = power_of_two(matrix.abs().max())
    groups = range(int(group.max()) + 1)
    return scale * torch.stack([torch.linalg.vector_norm(matrix[group == g] / scale, dim=0) for g in groups])


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
    for name, threshold in (("tau", tau), ("omega", omega), ("noise_budget", 0 if noise_budget is None else noise_budget)):
        if not 0 <= threshold < float("inf") or (threshold == 0 and name != "noise_budget"):
            raise ValueError(f"{name} must be {'>= 0' if name == 'noise_budget' else '> 0'} and finite, got {threshold!r}")
    if isinstance(hub_degree, bool) or not isinstance(hub_degree, int) or hub_degree < 1:
        raise ValueError(f"hub_degree must be a whole number >= 1, got {hub_degree!r}")
    group = row_groups(groups, matrix.shape[0]).to(matrix.device)
    norms = _block_norms(matrix, group)
    supports = norms >= tau
    degree = supports.sum(0)
    strength = overlap_strengths(norms, supports)
    off_diagonal = ~torch.eye(len(norms), dtype=torch.bool, device=matrix.device)
    masks = torch.where(supports, torch.where(degree >= 2, OVERLAP, CORE), NOISE)[group]
    parts = [norm(matrix[masks == kind]) for kind in (NOISE, CORE, OVERLAP)]
    radii = {"support": float((norms - tau).abs().min())}
    if len(norms) > 1:
        radii["edge"] = float((strength - omega)[off_diagonal].abs().min())
    if noise_budget is not None:
        whole = norm(matrix)
        radii["noise budget"] = (noise_budget * whole - parts[NOISE]) / (1 + noise_budget)
    limit = min(radii, key=lambda name: radii[name])
    return Alignment(
        norms=norms,
        supports=supports,
        degree=degree,
        overlap=strength,
        edges=(strength >= omega) & off_diagonal,
        hubs=degree >= hub_degree,
        masks=masks,
        core=parts[CORE],
        overlapping=parts[OVERLAP],
        noise=parts[NOISE],
        radius=radii[limit],
        limit=limit,
        group=group,
    )


def overlap_strengths(norms: Tensor, supports: Tensor) -> Tensor:
    """o (q, q), 0 on the diagonal: o_gh = (sum of min(N_gj, N_hj)^2 over the columns j active in both g and h)^1/2."""
    active = torch.where(supports, norms, 0)
    strength = torch.zeros(len(norms), len(norms), dtype=norms.dtype, device=norms.device)
    for g in range(len(norms)):  # min(N_gj, 0) is 0 where j is not active in both
        strength[g] = torch.linalg.vector_norm(torch.minimum(active[g], active), dim=1)
    return strength.fill_diagonal_(0)


def widest_gap(values: Tensor, low: float, high: float) -> float:
    """A threshold for ``values`` that is as far as possible from the nearest value (definition of this project).

    The threshold is the middle of the widest gap between neighbours in the sorted values. Only gaps that leave a share of
    ``low`` to ``high`` of the values below them count, 0 < low < high < 1; if there is none, all gaps count. If all values are
    equal, the threshold is half of that value.

    Raises:
        ValueError: if there are no values.
    """
    if values.numel() == 0:
        raise ValueError("a threshold needs at least one value, got none")
    ordered = values.flatten().sort().values
    gaps, below = ordered.diff(), torch.arange(1, len(ordered), device=values.device)
    inside = (below >= low * len(ordered) - 1e-9) & (below <= high * len(ordered) + 1e-9) & (gaps > 0)
    candidates = torch.where(inside, gaps, 0) if bool(inside.any()) else gaps
    if len(gaps) == 0 or float(candidates.max()) == 0:
        return float(ordered[-1]) / 2
    at = int(candidates.argmax())
    return float(ordered[at] + ordered[at + 1]) / 2


def channel_labels(matrix: Tensor, alignment: Alignment, kappa: float = 0.5) -> ChannelLabels:
    """The label SC, SA or ST of each output channel of ``matrix`` (m, n), the matrix that ``alignment`` was made of.

    Let c, o and n be the norms of row i on the core, overlap and noise masks, and q the cosine of the angle between the row and
    the mean profile of its group on the group's support. The label is SC if c is the largest of the three and |q| >= ``kappa``,
    SA if o is the largest and |q| >= ``kappa``, and ST otherwise. Names: GSA II; rules: definition of this project.

    Raises:
        ValueError: if the matrix has another shape than the alignment's, or ``kappa`` is outside (0, 1].
    """
    matrix = matrix64(matrix)
    if matrix.shape != alignment.masks.shape:
        raise ValueError(f"matrix must have the alignment's shape {tuple(alignment.masks.shape)}, got {tuple(matrix.shape)}")
    if not 0 < kappa <= 1:
        raise ValueError(f"kappa must be in (0, 1], got {kappa!r}")
    parts = torch.stack([_norm_on(matrix, alignment.masks == kind) for kind in (CORE, OVERLAP, NOISE)])  # SC, SA, ST
    profile = profiles(matrix, alignment)[alignment.group]
    row, profile_norm = (torch.linalg.vector_norm(each, dim=1) for each in (matrix, profile))
    product = row * profile_norm
    cosine = torch.where(product > 0, (matrix * profile).sum(1) / torch.where(product > 0, product, 1), 0)
    ordered = parts.sort(0, descending=True).values
    label = torch.where(cosine.abs() >= kappa, parts.argmax(0), ST)
    return ChannelLabels(
        label=label,
        core=parts[0],
        overlap=parts[1],
        noise=parts[2],
        cosine=cosine,
        gap=ordered[0] - ordered[1],
        cosine_margin=(cosine.abs() - kappa).abs(),
        row=row,
        profile=profile_norm,
    )


def profiles(matrix: Tensor, alignment: Alignment) -> Tensor:
    """(q, n): the mean of each group's rows on the group's support, zero elsewhere."""
    groups = range(len(alignment.supports))
    return torch.stack([matrix[alignment.group == g].mean(0) for g in groups]) * alignment.supports


def stable_labels(labels: ChannelLabels, alignment: Alignment, error: Tensor) -> Tensor:
    """bool (m,): which labels of M are certain to be those of M + E, too, E = ``error`` (m, n), if both have the same masks.

    The condition for row i of group g is sufficient: its gap exceeds 2 ||E_i||, and | |q| - kappa | exceeds
    2 ||E_i|| / ||row_i|| + 2 ||mean of E's rows in g|| / ||mean profile of g||.

    Raises:
        ValueError: if ``error`` has another shape than the alignment's, or is not finite.
    """
    error = matrix64(error, "error")
    if error.shape != alignment.masks.shape:
        raise ValueError(f"error must have the alignment's shape {tuple(alignment.masks.shape)}, got {tuple(error.shape)}")
    row_error = torch.linalg.vector_norm(error, dim=1)
    mean_error = torch.linalg.vector_norm(profiles(error, alignment), dim=1)[alignment.group]
    return (labels.gap > 2 * row_error) & (labels.cosine_margin > 2 * row_error / labels.row + 2 * mean_error / labels.profile)


def _norm_on(matrix: Tensor, mask: Tensor) -> Tensor:
    return torch.linalg.vector_norm(torch.where(mask, matrix, 0), dim=1)
