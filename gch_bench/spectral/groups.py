"""Groups of the rows of a matrix: given ones, and clusters of rows that resemble each other.

Groups are the architecture's own where it has some, such as attention heads. Contiguous groups of residual channels mean
nothing, because these channels have no order; there the rows are clustered (definition of this project, docs/geometry.md).
"""

import numbers
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gch_bench.spectral.linalg import matrix64, power_of_two

STARTS = 2  # of k-means; the best result counts
OVERSAMPLED, POWERS = 8, 2  # of the random sketch: columns beyond the components that are kept, and power iterations

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


def cluster_rows(matrix: Tensor, count: int, seed: int = 0) -> Tensor:
    """int64 (m,): ``count`` clusters of the rows of ``matrix`` (m, n) by profile; m clusters if m is smaller.

    The profile of a row is |M_ij| over the row's norm: two rows are alike if their energy lies in the same columns, whatever
    the signs. K-means is applied to the leading 2 ``count`` principal components of the profiles, found by a random sketch.
    Rows are then given to the nearest centres, those first to which it makes the largest difference, such that all clusters are
    of equal size or differ by one row: block norms grow with a group's size, and one tau is to serve all groups. Clusters are
    numbered in the order of their first rows; equal input and ``seed`` give equal clusters.

    The clusters are chosen on the matrix whose supports are then counted, so that an excess over the range of permuted rows is
    partly by construction; ``group_nulls.reclustered_share`` is the fairer null. Definition of this project.

    Raises:
        ValueError: if the matrix is empty or not finite, or ``count`` is below 1.
    """
    matrix = matrix64(matrix)
    rows = len(matrix)
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise ValueError(f"count must be a whole number >= 1, got {count!r}")
    if count == 1 or count >= rows:
        return torch.arange(rows) if count > 1 else torch.zeros(rows, dtype=torch.int64)
    members = _equal_sizes(_centre_distances(_profile_scores(matrix, 2 * count, seed), count, seed))
    return row_groups(sorted(members, key=lambda rows_of: rows_of[0]), rows)


def _profile_scores(matrix: Tensor, components: int, seed: int) -> Tensor:
    """float32 (m, k): the leading principal components of the rows' profiles, k at most ``components``."""
    profiles = (matrix / power_of_two(matrix.abs().max())).abs_().to(torch.float32)
    lengths = torch.linalg.vector_norm(profiles, dim=1, keepdim=True)
    profiles /= torch.where(lengths > 0, lengths, 1)
    profiles -= profiles.mean(0)
    width = min(components + OVERSAMPLED, *profiles.shape)
    sketch = torch.randn(profiles.shape[1], width, generator=torch.Generator().manual_seed(seed)).to(profiles)
    basis = torch.linalg.qr(profiles @ sketch).Q
    for _ in range(POWERS):
        basis = torch.linalg.qr(profiles @ (profiles.mT @ basis)).Q
    left, values, _ = torch.linalg.svd(basis.mT @ profiles, full_matrices=False)
    return ((basis @ left) * values)[:, :components]


def _centre_distances(scores: Tensor, count: int, seed: int) -> np.ndarray:
    """(m, q): the distance of each row of ``scores`` to each of ``count`` centres found by k-means."""
    from sklearn.cluster import KMeans  # it is slow to import
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits  # scikit-learn needs it, too

    # One thread is enough for so few numbers. Several would wait for torch's own, and make the sums depend on their number.
    with warnings.catch_warnings(), threadpool_limits(1):
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer different rows than centres: some centres are equal
        return KMeans(count, n_init=STARTS, random_state=seed).fit_transform(scores.cpu().numpy())


def _equal_sizes(distances: np.ndarray) -> list[list[int]]:
    """The rows of each cluster, ascending, from the rows' distances (m, q) to the centres; sizes differ by one at most."""
    rows, count = distances.shape
    size, larger = divmod(rows, count)  # so many clusters have one row more
    two = np.partition(distances, 1, axis=1)
    preferred = distances.argsort(axis=1, kind="stable").tolist()
    members: list[list[int]] = [[] for _ in range(count)]
    for row in np.argsort(two[:, 0] - two[:, 1], kind="stable").tolist():
        at = next(each for each in preferred[row] if len(members[each]) < size + (larger > 0))
        larger -= len(members[at]) == size
        members[at].append(row)
    return [sorted(each) for each in members]
