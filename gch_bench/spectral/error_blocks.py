"""Bounds e_gj on the blocks of a truncation error: measured and a priori, in both forms, and for many windows at a time.

Definition of this project (docs/geometry.md); the truncated transport is GSA II's, arXiv 2605.02111.

Legend: the factor A1 = U1 Sigma1 V1^T (m, n) is applied first, then A2 (p, m); k1 and k2 are the numbers of top modes that a
truncation keeps. The physical form is A2 A1 (p, n) against A2^k2 A1^k1. The source-mode form is A2 U1 Sigma1 (p, d1), whose
columns are modes of A1, against A2^k2 U1 Sigma1 with zeros outside the first k1 columns.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from gch_bench.spectral.blocks import membership
from gch_bench.spectral.linalg import Decomposition, norm, power_of_two, unit_columns
from gch_bench.spectral.transport import Transport

# Share by which an a-priori bound is widened: singular vectors are orthonormal to rounding only.
WIDENED = 1e-9
SQUARINGS = 6


class ErrorBlocks(NamedTuple):
    """An upper bound of each block norm of the error in either form."""

    physical: Tensor  # (q, n)
    source_mode: Tensor  # (q', d1); the groups of the two forms need not be the same


class GroupPair(NamedTuple):
    """Each row's group, int64 (p,), in either form."""

    physical: Tensor
    source_mode: Tensor


class Windowed(NamedTuple):
    """What is measured at one pair of windows."""

    rank_first: int  # k1
    rank_second: int  # k2
    error: float  # Frobenius norm of full less truncated, the same in both forms
    blocks: ErrorBlocks  # measured


def apriori_error_blocks(first: Decomposition, second: Decomposition, moved: Transport, groups: GroupPair) -> ErrorBlocks:
    """Bounds that need no truncated product, at the windows of ``moved``, which is the transport of the two factors.

    e_gj = ||A2[g] U_tail||_2 ||(Sigma_tail V_tail^T)_j|| + ||A2_tail[g]||_2 ||A1^k1 e_j||: what the tail of A1 loses, seen
    through all of A2, and what the tail of A2 loses of what the window of A1 keeps. The columns' norms are those of A1 in the
    physical form, and its singular values in the source-mode form.
    """
    k1, k2 = moved.rank_first, moved.rank_second
    lengths = torch.linalg.vector_norm(first.outputs[:, k1:], dim=0)
    through = moved.source_mode[:, k1:] / torch.where(lengths > 0, lengths, 1)  # A2 U_tail
    lost = second.outputs[:, k2:]  # A2_tail, but for a rotation of its columns
    kept = torch.arange(len(first.values), device=lost.device) < k1
    sides = {
        "physical": (_columns(first.inputs[k1:]), _columns(first.inputs[:k1])),
        "source_mode": (torch.where(kept, 0, first.values), torch.where(kept, first.values, 0)),
    }
    same = torch.equal(groups.physical, groups.source_mode)
    tops = [(_tops(through, group), _tops(lost, group)) for group in ([groups.physical] if same else groups)]
    bounds = [
        (1 + WIDENED) * (of_first[:, None] * outside + of_second[:, None] * inside)
        for (of_first, of_second), (outside, inside) in zip(tops * (3 - len(tops)), sides.values(), strict=True)
    ]
    return ErrorBlocks(*bounds)


def _columns(matrix: Tensor) -> Tensor:
    return torch.linalg.vector_norm(matrix, dim=0)


def _tops(matrix: Tensor, group: Tensor) -> Tensor:
    """(q,): an upper bound of the largest singular value of each group's rows of ``matrix`` (p, k); 0 where k = 0.

    For a Gram matrix G with r rows s_1 <= ||G^n||_F^(1 / 2n) <= r^(1 / 4n) s_1. With n = 2^SQUARINGS that is 2% too much at
    most for 256 rows, and takes a fraction of the time of eigenvalues.
    """
    found = torch.zeros(int(group.max()) + 1, dtype=matrix.dtype, device=matrix.device)
    if matrix.shape[1] == 0:
        return found
    scale = power_of_two(matrix.abs().max())
    for g in range(len(found)):
        rows = matrix[group == g] / scale
        gram = rows @ rows.mT if rows.shape[0] <= rows.shape[1] else rows.mT @ rows
        logarithm = 0.0  # of the factor that has been taken out of G^n, per factor of G
        for power in range(SQUARINGS + 1):
            size = float(torch.linalg.vector_norm(gram))
            if size == 0:
                break
            logarithm += math.log(size) / 2**power
            gram = gram / size
            gram = gram @ gram
        else:
            found[g] = math.exp(logarithm / 2)
    return scale * found


def error_blocks_along(
    first: Decomposition, second: Decomposition, moved: Transport, groups: GroupPair, windows: Sequence[tuple[int, int]]
) -> Iterator[Windowed]:
    """The measured error blocks of both forms at each pair of ``windows`` (k1, k2), neither of which may shrink on the way.

    The error at one pair of windows is that at the pair before, less the modes that come in. These updates cost about 3.5
    products of the factors' size for any number of windows; each window computed by itself would cost up to 2.

    Raises:
        ValueError: if a window is smaller than the one before.
    """
    scale = power_of_two(moved.physical.abs().max())
    full = moved.full / scale
    left, right_T = unit_columns(second.outputs), unit_columns(first.inputs.mT).mT  # U2 (p, d2), V1^T (d1, n)
    physical, source = moved.physical / scale, moved.source_mode / scale
    members = [membership(group) for group in groups]
    k1 = k2 = 0
    for to1, to2 in windows:
        if to1 < k1 or to2 < k2:
            raise ValueError(f"windows must not shrink, got {(to1, to2)} after {(k1, k2)}")
        if to2 > k2 and k1:
            core = full[k2:to2, :k1]
            source[:, :k1].addmm_(left[:, k2:to2], core, alpha=-1)
            physical.addmm_(left[:, k2:to2], core @ right_T[:k1], alpha=-1)
        if to1 > k1:
            columns = left[:, :to2] @ full[:to2, k1:to1]
            source[:, k1:to1] -= columns
            physical.addmm_(columns, right_T[k1:to1], alpha=-1)
        k1, k2 = to1, to2
        blocks = [scale * (one @ each.square()).sqrt_() for one, each in zip(members, (physical, source), strict=True)]
        yield Windowed(k1, k2, norm(blocks[0]), ErrorBlocks(*blocks))
