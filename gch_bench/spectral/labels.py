"""Invariant Channel Mapping: a label per output channel, and which labels are certain for M + E.

The names SC, SA and ST are from GSA II, arXiv 2605.02111; rules and bounds are this project's (docs/geometry.md).

Legend: row i of M (m, n) is in group G; c, o and n are its norms on the core, overlap and noise masks, and q is the cosine of
the angle between the row and its group's mean profile, which is the mean of the group's rows on the group's support.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from gch_bench.spectral.alignment import Alignment
from gch_bench.spectral.blocks import CORE, NOISE, OVERLAP, membership
from gch_bench.spectral.certificates import ROUNDING, UNDECIDED, YES, Certificate, possible_masks
from gch_bench.spectral.linalg import matrix64, power_of_two

SC, SA, ST = 0, 1, 2
LABELS = ("SC", "SA", "ST")
NO_LABEL = -1  # a label that is not certain
KAPPA = 2.0
ANGLE = 1e-7  # radians by which an angle's interval is widened: arccos resolves no less than 1.5e-8 near a cosine of 1
ONE_ROW = 0.5


class ChannelLabels(NamedTuple):
    """A label per output channel, and what it was made of."""

    label: Tensor  # int64 (m,): index into LABELS
    core: Tensor  # (m,): norm of the row on the core mask
    overlap: Tensor  # (m,): norm of the row on the overlap mask
    noise: Tensor  # (m,): norm of the row on the noise mask
    cosine: Tensor  # (m,): of the angle between the row and its group's mean profile on the group's support; 0 if either is 0
    threshold: Tensor  # (m,): |cosine| from which a row counts as aligned with its group
    gap: Tensor  # (m,): the largest of core, overlap and noise less the second largest
    cosine_margin: Tensor  # (m,): ||cosine| - threshold|
    row: Tensor  # (m,): norm of the row
    profile: Tensor  # (m,): norm of the mean profile of the row's group


class RowErrors(NamedTuple):
    """Bounds on an error E (m, n)."""

    rows: Tensor  # (m,): of ||E_i||_2 of each row
    means: Tensor  # (q,): of the norm of the mean of E's rows in each group


def row_errors(error: Tensor, group: Tensor) -> RowErrors:
    """The bounds that a known ``error`` (m, n) attains, for the rows' groups, int64 (m,)."""
    error = matrix64(error, "error")
    return RowErrors(torch.linalg.vector_norm(error, dim=1), torch.linalg.vector_norm(_means(error, group), dim=1))


def cosine_thresholds(sizes: Tensor, kappa: float = KAPPA) -> Tensor:
    """|cosine| from which a row counts as aligned with its group's mean, for groups of ``sizes`` rows (this project's rule).

    A mean of independent random rows contains each row itself with weight 1 / |G|: by chance the cosine is 1 / sqrt(|G|).
    The threshold is ``kappa`` times this, but at most half way from chance to 1, as no small group would reach it.
    In a group of one row the cosine says nothing, as the row is its own mean: the threshold is 1/2, which every row exceeds
    whose core or overlap is the largest of the three parts (q^2 >= 1/3).
    """
    if not 0 < kappa < math.inf:
        raise ValueError(f"kappa must be > 0 and finite, got {kappa!r}")
    chance = sizes.to(torch.float64).rsqrt()
    return torch.where(sizes == 1, ONE_ROW, torch.minimum(kappa * chance, (1 + chance) / 2))


def channel_labels(matrix: Tensor, alignment: Alignment, kappa: float = KAPPA) -> ChannelLabels:
    """The label SC, SA or ST of each output channel of ``matrix`` (m, n), the matrix that ``alignment`` was made of.

    The label is SC if c is the largest of c, o and n and |q| reaches the threshold of ``cosine_thresholds``, SA if o is the
    largest and |q| reaches it, and ST otherwise. Names: GSA II; rules: definition of this project.

    Raises:
        ValueError: if the matrix has another shape than the alignment's, or ``kappa`` is not positive and finite.
    """
    matrix = _fitting(matrix, alignment)
    threshold = cosine_thresholds(alignment.sizes, kappa)[alignment.group]
    kinds = torch.stack([alignment.block_masks == kind for kind in (CORE, OVERLAP, NOISE)])  # SC, SA, ST
    parts = _row_norms(matrix, alignment.group, kinds)
    profile = profiles(matrix, alignment)
    row, profile_norm = torch.linalg.vector_norm(matrix, dim=1), torch.linalg.vector_norm(profile, dim=1)[alignment.group]
    cosine = _cosines(matrix, profile, alignment.group)
    ordered = parts.sort(0, descending=True).values
    return ChannelLabels(
        label=torch.where(cosine.abs() >= threshold, parts.argmax(0), ST),
        core=parts[0],
        overlap=parts[1],
        noise=parts[2],
        cosine=cosine,
        threshold=threshold,
        gap=ordered[0] - ordered[1],
        cosine_margin=(cosine.abs() - threshold).abs(),
        row=row,
        profile=profile_norm,
    )


def certify_labels(
    matrix: Tensor, alignment: Alignment, certificate: Certificate, errors: RowErrors, kappa: float = KAPPA
) -> Tensor:
    """int64 (m,): the label that each row of M + E certainly has, NO_LABEL where it is not certain.

    M + E is labelled by its own masks and profiles at the thresholds of ``alignment``. ``certificate`` says which masks these
    may be. One part of the row, such as c, is certainly larger than another if its norm on the blocks that are certainly core
    exceeds the other's norm on all blocks that may be the other's by more than sqrt(2) ||E_i||: these blocks are different
    ones, so that E_i cannot be as large on both. The row's angle to the profile changes by at most arcsin(||E_i|| / ||row||)
    plus arcsin(d / ||profile||), d the largest change of the profile. Where the noise is certainly the largest part, the
    label is ST whatever the angle; where the angle is certainly too wide, it is ST whatever the parts.

    Args:
        matrix: M (m, n), the matrix that ``alignment`` and ``certificate`` were made of.
        errors: bounds for the rows of E; the bounds of ``certificate`` must hold for the same E.

    Raises:
        ValueError: as ``channel_labels``.
    """
    matrix = _fitting(matrix, alignment)
    group = alignment.group
    single = (alignment.sizes == 1)[group]
    threshold = cosine_thresholds(alignment.sizes, kappa)[group]
    may = possible_masks(certificate.blocks)[[CORE, OVERLAP, NOISE]]  # SC, SA, ST
    surely = may & (may.sum(0) == 1)
    bounds = _row_norms(matrix, group, torch.cat([surely, may]))
    room = math.sqrt(2) * errors.rows + ROUNDING * (bounds[3:].amax(0) + errors.rows)
    low, high = bounds[:3], bounds[3:]
    largest = torch.stack([low[k] - torch.maximum(high[k - 1], high[k - 2]) > room for k in range(3)])
    least, most = _cosine_interval(matrix, group, certificate.blocks, errors)
    aligned, apart = single | (least >= threshold), ~single & (most < threshold)
    label = torch.full_like(group, NO_LABEL)
    for kind in (SC, SA):
        label[largest[kind] & aligned] = kind
    label[largest[ST] | apart] = ST
    return label


def _cosine_interval(matrix: Tensor, group: Tensor, blocks: Tensor, errors: RowErrors) -> tuple[Tensor, Tensor]:
    """Least and largest |q| (m,) of M + E.

    A column that is undecided in a group may belong to its support or not. Half of the mean profile there is counted, so that
    the profile is wrong by the other half at most, whatever the support.
    """
    mean = _means(matrix, group)
    centre = mean * torch.where(blocks == YES, 1.0, torch.where(blocks == UNDECIDED, 0.5, 0.0).to(mean))
    away = errors.means + torch.linalg.vector_norm(torch.where(blocks == UNDECIDED, mean / 2, 0), dim=1)
    row = torch.linalg.vector_norm(matrix, dim=1)
    turn = _turn(errors.rows, row) + _turn(away, torch.linalg.vector_norm(centre, dim=1))[group] + ANGLE
    nothing = (row == 0) & (errors.rows == 0)  # a row of zeros that stays one: q is 0
    angle = _cosines(matrix, centre, group).clamp(-1, 1).arccos()
    angle = torch.minimum(angle, math.pi - angle)  # of the lines: the sign of q does not matter
    least = torch.where(angle + turn < math.pi / 2, (angle + turn).cos(), 0)
    return least, torch.where(nothing, 0, (angle - turn).clamp(min=0).cos())


def _turn(error: Tensor, length: Tensor) -> Tensor:
    """The largest angle by which a vector of a ``length`` turns if one of the length ``error`` is added to it."""
    share = (1 + 1e-9) * error / torch.where(length > 0, length, 1)
    return torch.where((length > 0) & (share < 1), share.clamp(max=1).arcsin(), math.pi)


def profiles(matrix: Tensor, alignment: Alignment) -> Tensor:
    """(q, n): the mean of each group's rows on the group's support, zero elsewhere."""
    return _means(matrix, alignment.group) * alignment.supports


def _means(matrix: Tensor, group: Tensor) -> Tensor:
    """(q, n): the mean of each group's rows."""
    members = membership(group)
    return (members @ matrix) / members.sum(1, keepdim=True)


def _cosines(matrix: Tensor, profile: Tensor, group: Tensor) -> Tensor:
    """(m,): the cosine of each row with its group's profile (q, n); 0 where one of them is 0."""
    rows, columns = (torch.linalg.vector_norm(each, dim=1) for each in (matrix, profile))
    unit = profile / torch.where(columns > 0, columns, 1)[:, None]
    along = (matrix @ unit.mT).gather(1, group[:, None])[:, 0]
    return torch.where(rows > 0, along / torch.where(rows > 0, rows, 1), 0)


def _row_norms(matrix: Tensor, group: Tensor, masks: Tensor) -> Tensor:
    """(k, m): the norm of each row on each of k masks, bool (k, q, n), of its group."""
    scale = power_of_two(matrix.abs().max())
    squares = (matrix / scale).square_()
    kinds, groups, columns = masks.shape
    found = squares @ masks.reshape(kinds * groups, columns).to(squares).mT
    return scale * found.reshape(-1, kinds, groups)[torch.arange(len(group), device=group.device), :, group].mT.sqrt()


def _fitting(matrix: Tensor, alignment: Alignment) -> Tensor:
    matrix, shape = matrix64(matrix), (len(alignment.group), alignment.norms.shape[1])
    if matrix.shape != shape:
        raise ValueError(f"matrix must have the alignment's shape {shape}, got {tuple(matrix.shape)}")
    return matrix
