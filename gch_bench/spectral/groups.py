"""Groups of the rows of a matrix: given ones, and clusters of rows that resemble each other.

Groups are the architecture's own where it has some, such as attention heads. Contiguous groups of residual channels mean
nothing, because these channels have no order; there the rows are clustered (definition of this project, docs/geometry.md).
"""

import numbers
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

Groups = int | Tensor | Sequence[int] | Sequence[Sequence[int]]


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
