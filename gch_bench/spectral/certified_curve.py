"""How much of an interface is certified at which windows, and the smallest windows that certify nearly all of it.

Definition of this project (docs/geometry.md).
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from gch_bench.spectral.alignment import Alignment
from gch_bench.spectral.certificates import certify_norms
from gch_bench.spectral.error_blocks import ErrorBlocks, GroupPair, Windowed, error_blocks_along
from gch_bench.spectral.gibbs import effective_rank, energies
from gch_bench.spectral.linalg import Decomposition
from gch_bench.spectral.transport import Transport

ETAS = (0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999, 1.0)
ENOUGH = 0.95  # share of blocks that the certified rank decides


class CurvePoint(NamedTuple):
    """What is certified of one form at the windows R_eta of the two factors' measured energies."""

    eta: float  # share of each factor's energy within its window; at 1 nothing is truncated
    rank_first: int
    rank_second: int
    error: float  # Frobenius norm of the truncation error, measured
    certified_share: float  # of blocks
    energy_certified_share: float  # of the blocks' energy
    edges_certified: float  # share of pairs of groups; nan for one group
    hubs_certified: float  # share of columns
    strict: bool  # is the error below the strict certificate's radius?


class AlignmentPair(NamedTuple):
    """The static channels of either form of one interface."""

    physical: Alignment
    source_mode: Alignment

    @property
    def groups(self) -> GroupPair:
        return GroupPair(self.physical.group, self.source_mode.group)


class CurvePair(NamedTuple):
    """A point for each eta, ascending, in either form."""

    physical: list[CurvePoint]
    source_mode: list[CurvePoint]


def certified_curve(
    first: Decomposition, second: Decomposition, moved: Transport, made: AlignmentPair, etas: Sequence[float] = ETAS
) -> CurvePair:
    """The certified shares of both forms at the windows R_eta, with measured error blocks.

    Args:
        first, second: the two factors; ``moved`` is their transport at any windows.
        made: the static channels of ``moved.physical`` and ``moved.source_mode``.
        etas: shares of energy in (0, 1], ascending; 1 stands for all modes.

    Raises:
        ValueError: if ``etas`` are not ascending in (0, 1].
    """
    if list(etas) != sorted(etas):
        raise ValueError(f"etas must be ascending, got {list(etas)}")
    spectra = energies(first.values.cpu()), energies(second.values.cpu())
    windows = [(effective_rank(spectra[0], eta), effective_rank(spectra[1], eta)) for eta in etas if eta < 1]
    along = list(error_blocks_along(first, second, moved, made.groups, windows))
    nothing = ErrorBlocks(*(torch.zeros_like(form.norms) for form in made))
    along += [Windowed(len(first.values), len(second.values), 0.0, nothing) for eta in etas if eta == 1]
    points = CurvePair([], [])
    for eta, here in zip(etas, along, strict=True):
        for found, form, blocks in zip(points, made, here.blocks, strict=True):
            found.append(_point(eta, here, form, blocks))
    return points


def _point(eta: float, here: Windowed, made: Alignment, blocks: Tensor) -> CurvePoint:
    certain = certify_norms(made.norms, blocks, made.thresholds)
    return CurvePoint(
        eta=eta,
        rank_first=here.rank_first,
        rank_second=here.rank_second,
        error=here.error,
        certified_share=certain.certified_share,
        energy_certified_share=certain.energy_share,
        edges_certified=certain.edges_share,
        hubs_certified=certain.hubs_share,
        strict=here.error < made.radius,
    )


def certified_rank(curve: Sequence[CurvePoint], enough: float = ENOUGH) -> CurvePoint | None:
    """k*: the point of the smallest windows from which on a share ``enough`` of the blocks is decided, at all larger ones, too.

    None if the last point, which has the largest windows, decides fewer; at eta = 1 every block is decided.
    """
    found = None
    for point in reversed(curve):
        if point.certified_share < enough:
            break
        found = point
    return found
