"""The static channels of one interface, in both forms, as rows of the tables: thresholds, shares, certificates and labels.

Definitions: docs/geometry.md. The physical form maps input channels to output channels, the source-mode form the modes of the
first factor to output channels. Thresholds and groups are chosen from the full matrices, without looking at what is truncated.
"""

import math
from typing import Any, NamedTuple

from torch import Tensor

from gch_bench.config.diagnosis import AlignmentConfig
from gch_bench.spectral.alignment import Alignment, align_norms
from gch_bench.spectral.blocks import Thresholds, choose_omega, choose_tau, grouped_norms
from gch_bench.spectral.certificates import Certificate, certify_norms, model_share
from gch_bench.spectral.certified_curve import AlignmentPair, CurvePoint, certified_curve, certified_rank
from gch_bench.spectral.error_blocks import apriori_error_blocks
from gch_bench.spectral.gibbs import effective_rank, energies
from gch_bench.spectral.group_nulls import energy_shares, overlap_share_range, reclustered_share
from gch_bench.spectral.groups import cluster_rows, row_groups
from gch_bench.spectral.labels import LABELS, NO_LABEL, ChannelLabels, certify_labels, channel_labels, row_errors
from gch_bench.spectral.linalg import Decomposition, unit_columns
from gch_bench.spectral.rotations import one_rotation
from gch_bench.spectral.transport import Transport

GIVEN, CLUSTERS = "given", "clusters"  # groupings: the chain's group_size; rows with like profiles
SENSITIVITY = (0.9, 1.1)  # of certified shares to tau
ROTATED_ETA = 0.95  # share of the energy in the windows at which the null of the certified share is taken


class ChannelRow(NamedTuple):
    """The columns of one form in the table of interfaces. A share is of blocks where nothing else is said."""

    groups: int  # q
    grouping: str  # "given" (by the chain's group_size), "clusters" or "contiguous"
    tau: float
    omega: float
    radius: float  # of the strict certificate
    limit: str
    certified: str  # strictly: by the truncation's "bound", by its "measured" error, or "no"
    missing: float  # by how much the measured error exceeds the radius
    core_share: float  # shares of energy
    overlap_share: float
    noise_share: float
    overlap_share_low: float  # 5% and 95% quantiles of the overlap share if rows are shuffled among the groups
    overlap_share_high: float
    overlap_share_reclustered: float  # what clustering finds where columns are independent; nan for other groupings
    active: float  # share that is active
    edges: int
    hubs: int
    SC: int  # rows of each label
    SA: int
    ST: int
    certified_share: float  # decided by the measured error blocks
    energy_certified_share: float
    apriori_certified_share: float  # decided by the a-priori error blocks
    edges_certified: float  # share of pairs of groups; nan for one group
    hubs_certified: float  # share of columns
    masks_certified: float
    labels_certified: float  # share of rows
    margin_01: float  # quantiles of |N - tau| / tau
    margin_05: float
    margin_50: float
    jaccard: float  # active blocks of the full and of the truncated matrix: common ones over all
    agreement: float  # share that is active in both or in neither
    certified_rank_first: float  # k*: the smallest windows from which on 95% of the blocks are decided
    certified_rank_second: float
    certified_eta: float  # share of energy in these windows
    tau_low_share: float  # certified share at 0.9 tau
    tau_high_share: float  # certified share at 1.1 tau
    model_share: float  # a model, not a certificate


class Channels(NamedTuple):
    """All that is known of one form of an interface."""

    row: ChannelRow
    curve: list[CurvePoint]  # the certified shares over eta
    alignment: Alignment
    certificate: Certificate  # by the measured error blocks
    labels: ChannelLabels
    certain_labels: Tensor  # int64 (m,): a label, or NO_LABEL


class ChannelsPair(NamedTuple):
    """Both forms; the field names are the tables' names of the forms."""

    physical: Channels
    source_mode: Channels


def channels_of(
    first: Decomposition, second: Decomposition, moved: Transport, options: AlignmentConfig, group_size: int | None = None
) -> ChannelsPair:
    """The static channels of the interface of two factors.

    Args:
        moved: their transport; its windows are those at which channels are certified.
        group_size: rows of each group, such as those of an attention head; None: groups are made as ``options`` say.

    Raises:
        ValueError: if ``group_size`` does not divide the rows, or the factors' product is zero.
    """
    forms = (moved.physical, moved.physical_truncated), (moved.source_mode, moved.source_mode_truncated)
    made = AlignmentPair(*(_align(full, options, group_size) for full, _ in forms))
    curves = certified_curve(first, second, moved, made)
    apriori = apriori_error_blocks(first, second, moved, made.groups)
    found = []
    for (full, truncated), alignment, curve, bounds in zip(forms, made, curves, apriori, strict=True):
        error = truncated - full
        measured = grouped_norms(error, alignment.group)
        certificate = certify_norms(alignment.norms, measured, alignment.thresholds)
        labels = channel_labels(full, alignment, options.kappa)
        within = row_errors(error, alignment.group)
        certain = certify_labels(full, alignment, certificate, within, options.kappa)
        row: dict[str, Any] = (
            {"grouping": options.grouping if group_size is None else GIVEN}
            | _static(full, alignment, options, clusters=group_size is None and options.grouping == CLUSTERS)
            | _strict(alignment, moved)
            | _certified(alignment, certificate, measured, bounds)
            | _labelled(labels, certain)
            | _compared(alignment, grouped_norms(truncated, alignment.group))
            | _rank(curve)
        )
        found.append(Channels(ChannelRow(**row), curve, alignment, certificate, labels, certain))
    return ChannelsPair(*found)


def rotated_share(
    first: Decomposition, second: Decomposition, options: AlignmentConfig, group_size: int | None = None
) -> float:
    """The null of the certified share at the windows of 95% of the energy: that of A_{l+1} Q A_l, Q a Haar rotation.

    It is of the physical form. Groups and thresholds are chosen anew, by the same rules; the arguments are those of
    ``channels_of``.
    """
    k1, k2 = (effective_rank(energies(each.values.cpu()), ROTATED_ETA) for each in (first, second))
    rotation = one_rotation(len(first.matrix)).to(first.matrix.device)
    full = second.matrix @ (rotation @ first.matrix)
    left, right = unit_columns(second.outputs[:, :k2]), unit_columns(first.inputs[:k1].mT)
    core = second.inputs[:k2] @ (rotation @ first.outputs[:, :k1])
    made = _align(full, options, group_size)
    error = grouped_norms(full - (left @ core) @ right.mT, made.group)
    return certify_norms(made.norms, error, made.thresholds).certified_share


def _align(matrix: Tensor, options: AlignmentConfig, group_size: int | None) -> Alignment:
    rows = len(matrix)
    if group_size is not None:
        if group_size < 1 or rows % group_size:
            raise ValueError(f"group_size must divide the {rows} rows, got {group_size}")
        group = row_groups(rows // group_size, rows)
    elif options.grouping == CLUSTERS:
        group = cluster_rows(matrix, min(options.groups, rows))
    else:
        group = row_groups(min(options.groups, rows), rows)
    group = group.to(matrix.device)
    norms = grouped_norms(matrix, group)
    if not bool(norms.any()):
        raise ValueError("the product of its factors is zero, it carries nothing")
    tau = choose_tau(norms, options.density)
    at = Thresholds(tau, choose_omega(norms, tau, options.edge_density), options.hub_degree)
    return align_norms(norms, group, at, options.noise_budget)


def _static(matrix: Tensor, made: Alignment, options: AlignmentConfig, clusters: bool) -> dict[str, float]:
    shares = energy_shares(made.norms, made.thresholds.tau)
    low, high = overlap_share_range(matrix, made.group, options.density)
    again = reclustered_share(matrix, len(made.norms), options.density).overlap if clusters else math.nan
    return {
        "groups": len(made.norms),
        "tau": made.thresholds.tau,
        "omega": made.thresholds.omega,
        "core_share": shares.core,
        "overlap_share": shares.overlap,
        "noise_share": shares.noise,
        "overlap_share_low": low,
        "overlap_share_high": high,
        "overlap_share_reclustered": again,
        "active": float(made.supports.double().mean()),
        "edges": int(made.edges.sum()) // 2,
        "hubs": int(made.hubs.sum()),
    }


def _strict(made: Alignment, moved: Transport) -> dict[str, float | str]:
    certified = "bound" if moved.bound < made.radius else "measured" if moved.error < made.radius else "no"
    missing = max(moved.error - made.radius, 0.0)
    return {"radius": made.radius, "limit": made.limit, "certified": certified, "missing": missing}


def _certified(made: Alignment, certain: Certificate, measured: Tensor, bounds: Tensor) -> dict[str, float]:
    norms, at = made.norms, made.thresholds
    low, high = (certify_norms(norms, measured, at._replace(tau=part * at.tau)).certified_share for part in SENSITIVITY)
    return {
        "certified_share": certain.certified_share,
        "energy_certified_share": certain.energy_share,
        "apriori_certified_share": certify_norms(norms, bounds, at).certified_share,
        "edges_certified": certain.edges_share,
        "hubs_certified": certain.hubs_share,
        "masks_certified": certain.masks_share,
        **dict(zip(("margin_01", "margin_05", "margin_50"), certain.margins, strict=True)),
        "tau_low_share": low,
        "tau_high_share": high,
        "model_share": model_share(norms, measured, made.sizes, at.tau),
    }


def _labelled(labels: ChannelLabels, certain: Tensor) -> dict[str, float]:
    counts = {name: int((labels.label == kind).sum()) for kind, name in enumerate(LABELS)}
    return counts | {"labels_certified": float((certain != NO_LABEL).double().mean())}


def _compared(made: Alignment, truncated: Tensor) -> dict[str, float]:
    """Supports of the full and of the truncated matrix, from the latter's block norms (q, n), at the same tau."""
    full, cut = made.supports, truncated >= made.thresholds.tau
    common, either = int((full & cut).sum()), int((full | cut).sum())
    return {"jaccard": common / either if either else 1.0, "agreement": float((full == cut).double().mean())}


def _rank(curve: list[CurvePoint]) -> dict[str, float]:
    found = certified_rank(curve)
    ranks = (math.nan,) * 3 if found is None else (found.rank_first, found.rank_second, found.eta)
    return dict(zip(("certified_rank_first", "certified_rank_second", "certified_eta"), ranks, strict=True))
