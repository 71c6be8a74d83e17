"""The arrays behind an interface's figures: its alignment matrix sorted by groups, and its incidence graph."""

from typing import NamedTuple

import torch
from torch import Tensor

from gch_bench.results.geometry import PICTURE, Picture
from gch_bench.spectral.alignment import Alignment


class Place(NamedTuple):
    """Which matrix of which interface is shown."""

    interface: int  # its number in the chain
    form: str  # BLOCK or BRANCH
    matrix: str  # PHYSICAL or SOURCE
    title: str


def picture(place: Place, matrix: Tensor, alignment: Alignment, edges: Tensor) -> Picture:
    """The small arrays of a Physical Alignment Matrix.

    Args:
        matrix: M (m, n), the matrix that ``alignment`` was made of.
        edges: (q, q), three values for each pair of groups: 1 certainly an edge, 0 undecided, -1 certainly none.

    Raises:
        ValueError: if the matrix or ``edges`` has another shape than the alignment's, or the matrix is zero.
    """
    groups, columns = alignment.norms.shape
    if matrix.shape != (len(alignment.group), columns):
        raise ValueError(f"matrix must have the alignment's shape {(len(alignment.group), columns)}, got {tuple(matrix.shape)}")
    if edges.shape != (groups, groups):
        raise ValueError(f"edges must have a row and a column per group, {(groups, groups)}, got {tuple(edges.shape)}")
    squares, group = matrix.detach().cpu().double().abs(), alignment.group.cpu()
    largest = float(squares.max())
    if largest == 0:
        raise ValueError("matrix must not be zero, got a matrix of zeros")
    squares = (squares / largest).square()  # scaled, so that no square overflows
    dominant = alignment.norms.cpu().argmax(0)
    sorted_squares = squares[_order(group, squares.sum(1))][:, _order(dominant, alignment.norms.cpu().max(0).values)]
    sizes, dominated = group.bincount(minlength=groups), dominant.bincount(minlength=groups)
    whole = squares.sum()
    energy = torch.zeros(groups, columns, dtype=torch.float64).index_add_(0, group, squares)
    by_group = torch.zeros(groups, groups, dtype=torch.float64).index_add_(1, dominant, energy)
    entries = sizes[:, None] * dominated[None, :]
    mean = whole / squares.numel()
    return Picture(
        interface=place.interface,
        form=place.form,
        matrix=place.matrix,
        title=place.title,
        energy=largest * _coarse(_coarse(sorted_squares).T).T.sqrt(),
        row_ends=_ends(sizes),
        column_ends=_ends(dominated),
        blocks=torch.where(entries > 0, by_group / entries.clamp(min=1), torch.nan) / mean,
        sizes=sizes,
        strengths=alignment.overlap.detach().cpu().double() / (largest * whole.sqrt()),
        edges=edges.cpu().to(torch.int8),
        hubs=int(alignment.hubs.sum()),
        columns=columns,
    )


def _order(group: Tensor, size: Tensor) -> Tensor:
    """The order by group, and within a group by size, largest first."""
    by_size = size.argsort(descending=True, stable=True)
    return by_size[group[by_size].argsort(stable=True)]


def _ends(counts: Tensor) -> Tensor:
    """Where each part of so many lines ends, in cells."""
    lines = int(counts.sum())
    return counts.cumsum(0).double() * (min(lines, PICTURE) / lines)


def _coarse(values: Tensor) -> Tensor:
    """(min(k, PICTURE), n): the means of runs of the rows of ``values`` (k, n), whose lengths differ by at most one."""
    count = len(values)
    if count <= PICTURE:
        return values
    cell = torch.arange(count) * PICTURE // count
    sums = torch.zeros(PICTURE, values.shape[1], dtype=values.dtype).index_add_(0, cell, values)
    return sums / cell.bincount()[:, None]
