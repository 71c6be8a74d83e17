"""Transport between adjacent factors, full and truncated to rank windows. Source: GSA II, arXiv 2605.02111; docs/geometry.md.

Legend: the factor A_l = U_l Sigma_l V_l^T (m, n) is applied first, then A_{l+1} (p, m). d1 and d2 are their numbers of singular
modes; the windows k1 and k2 are the numbers of top modes that a truncation keeps.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from gch_bench.spectral.gibbs import chart, energies, fit_exponent
from gch_bench.spectral.linalg import Decomposition, decompose, norm, tail, unit_columns
from gch_bench.spectral.radial import composable


class Transport(NamedTuple):
    """The transport through one interface. Physical matrices map input channels to output channels, ``source_mode`` maps the
    modes of the first factor to output channels."""

    full: Tensor  # T = Sigma_{l+1} V_{l+1}^T U_l Sigma_l (d2, d1): target modes x source modes
    truncated: Tensor  # T within the windows, zero elsewhere (d2, d1)
    physical: Tensor  # A_{l+1} A_l (p, n): output channels x input channels
    physical_truncated: Tensor  # A_{l+1}^(k2) A_l^(k1) (p, n)
    source_mode: Tensor  # A_{l+1} U_l Sigma_l (p, d1): output channels x source modes
    source_mode_truncated: Tensor  # A_{l+1}^(k2) U_l Sigma_l, zero outside the first k1 modes (p, d1)
    error: float  # ||A_{l+1} A_l - A_{l+1}^(k2) A_l^(k1)||_F, the same in all three forms
    bound: float  # ((s_1(A_{l+1}) tail_F(l, k1))^2 + (s_1(A_l) tail_F(l+1, k2))^2)^1/2 >= error; see ``transport_of``
    fitted_bound: float  # the bound with ``fitted_tail`` in place of the tails; >= bound
    rank_first: int  # k1
    rank_second: int  # k2


def transport(first: Tensor, second: Tensor, rank_first: int, rank_second: int) -> Transport:
    """The transport from ``first`` (m, n) to ``second`` (p, m), truncated to the ``rank_first`` and ``rank_second`` top modes.

    Raises:
        ValueError: if the shapes do not compose, a value is not finite, a matrix is zero, or a rank is outside 1..d.
    """
    composable(first, second)
    return transport_of(decompose(first), decompose(second), rank_first, rank_second)


def transport_of(first: Decomposition, second: Decomposition, rank_first: int, rank_second: int) -> Transport:
    """``transport`` of two factors that are already decomposed, as in a chain, which decomposes each factor once.

    The error is A_{l+1} (A_l - A_l^(k1)) + (A_{l+1} - A_{l+1}^(k2)) A_l^(k1). The rows of the two terms are orthogonal to each
    other, because those of the modes of A_l are; hence their squared norms add up, and so do the squares of their bounds.
    """
    for name, rank, of in (("rank_first", rank_first, first), ("rank_second", rank_second, second)):
        if isinstance(rank, bool) or not isinstance(rank, int) or not 1 <= rank <= len(of.values):
            raise ValueError(f"{name} must be a whole number in 1..{len(of.values)}, got {rank!r}")
        if of.modes < len(of.values):
            raise ValueError(f"a transport needs all {len(of.values)} modes of its factors, got {of.modes} leading ones")
    full = second.inputs @ first.outputs
    truncated = torch.zeros_like(full)
    truncated[:rank_second, :rank_first] = full[:rank_second, :rank_first]
    right_T = unit_columns(first.inputs[:rank_first].mT).mT  # (k1, n)
    left = unit_columns(second.outputs[:, :rank_second])  # (p, k2)
    source_mode = second.matrix @ first.outputs
    source_mode_truncated = torch.zeros_like(source_mode)
    source_mode_truncated[:, :rank_first] = left @ full[:rank_second, :rank_first]
    bounds = truncation_bounds(first.values, second.values, rank_first, rank_second)
    return Transport(
        full=full,
        truncated=truncated,
        physical=second.matrix @ first.matrix,
        physical_truncated=source_mode_truncated[:, :rank_first] @ right_T,
        source_mode=source_mode,
        source_mode_truncated=source_mode_truncated,
        error=norm(full - truncated),
        bound=bounds[0],
        fitted_bound=bounds[1],
        rank_first=rank_first,
        rank_second=rank_second,
    )


def truncation_bounds(first: Tensor, second: Tensor, rank_first: int, rank_second: int) -> tuple[float, float]:
    """``Transport.bound`` and ``fitted_bound`` of two factors, from all their singular values, descending."""
    tops = float(first[0]), float(second[0])
    tails = tail(first, rank_first), tail(second, rank_second)
    fitted = fitted_tail(first, rank_first), fitted_tail(second, rank_second)
    return math.hypot(tops[1] * tails[0], tops[0] * tails[1]), math.hypot(tops[1] * fitted[0], tops[0] * fitted[1])


def _basis(columns: Tensor) -> Tensor:
    """An orthonormal basis of ``columns``; columns of length 0 stay 0.

    Unlike ``unit_columns``, it orthogonalises again: rounding leaves small modes orthogonal only relative to the largest mode.
    """
    return torch.linalg.qr(columns).Q * (torch.linalg.vector_norm(columns, dim=0) > 0)


def fitted_tail(values: Tensor, rank: int) -> float:
    """Upper bound of ``tail(values, rank)``: the tail of the chart fitted to ``values`` (d,), plus the chart's error there.

    In units of ||A||_F the chart's tail is (sum_{i>k} p_i(a))^1/2, and its error (sum_{i>k} (sqrt p_i - sqrt p_i(a))^2)^1/2.
    """
    p = energies(values).cpu()
    q = chart(fit_exponent(values).exponent, len(p))
    error = torch.linalg.vector_norm(p[rank:].sqrt() - q[rank:].sqrt())
    return norm(values) * float(q[rank:].sum().sqrt() + error)


def principal_angles(first: Decomposition, second: Decomposition, rank_first: int, rank_second: int) -> Tensor:
    """Angles between the span of the top k1 left singular vectors of A_l and that of the top k2 right ones of A_{l+1}.

    Returns:
        float64 (min(k1, k2),), in radians, ascending. Angles below 1e-7 are not resolved, because they are computed from
        cosines, whose rounding error is 1e-15. A mode whose singular value is 0 counts as orthogonal to all others.
    """
    left = _basis(first.outputs[:, :rank_first])
    right = _basis(second.inputs[:rank_second].mT)
    return torch.linalg.svdvals(right.mT @ left).clamp_(0, 1).arccos_()


def mean_cosine_squared(first: Decomposition, second: Decomposition, rank_first: int, rank_second: int) -> float:
    """The mean cos^2 of ``principal_angles``: their subspaces' projectors overlap by so much, on average over the angles."""
    left = _basis(first.outputs[:, :rank_first])
    right = _basis(second.inputs[:rank_second].mT)
    return float((right.mT @ left).square().sum()) / min(rank_first, rank_second)
