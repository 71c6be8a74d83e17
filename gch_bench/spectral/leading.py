"""Large matrices: all singular values, but only the leading modes; and what two of them do together, without their modes.

A matrix is large if both its sides exceed ``linalg.LARGE``. A whole decomposition of it would take minutes. All of its singular
values cost the eigenvalues of a float64 Gram matrix; tails and bounds follow from them alone. Singular vectors are computed in
float32, and only for the modes that hold half of the energy, between which principal angles are.

Definition of this project (docs/geometry.md).
"""

from typing import NamedTuple

import numpy as np
import scipy.linalg
import torch
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor

from gch_bench.spectral.linalg import Decomposition, matrix64, norm, numerical_rank, power_of_two, scaled_tall, top_value

SHARE = 0.5  # of the energy, in the modes whose singular vectors are computed
# The error of a singular value s_i is about 1e-15 s_1^2 / s_i: below this share of s_1 it would be 0.1% of s_i.
FLOOR = 1e-6
STRIP = 512  # columns of a Gram matrix that are computed at a time
PRECISION = 1e-5  # relative, of the square of the largest singular value of a product


def leading(matrix: Tensor, dtype: torch.dtype = torch.float64) -> Decomposition:
    """All singular values of ``matrix`` (m, n), and U Sigma (m, k) and Sigma V^T (k, n) of the k modes with half its energy.

    The singular values are those of ``decompose`` to 0.1% or better, and to 1e-9 above 1e-3 s_1, if they are within the
    numerical rank of ``dtype``, in which the matrix was stored. The modes' subspaces are accurate to about 1e-5.

    Raises:
        ValueError: if the matrix is not 2-d, or is empty, complex or not finite.
    """
    matrix = matrix64(matrix)
    tall, scale = scaled_tall(matrix)
    gram = _lower_gram(tall)
    values = torch.linalg.eigvalsh(gram).flip(0).clamp_(min=0).sqrt_()
    last = numerical_rank(values, tuple(matrix.shape), dtype) - 1  # type: ignore[arg-type]
    if values[last] <= FLOOR * values[0]:
        values = torch.linalg.svdvals(tall)
    energy = values.square().cumsum(0)
    modes = int((energy < SHARE * energy[-1]).sum()) + 1
    vectors = _top_vectors(gram, modes)
    left = (tall.float() @ vectors).double()
    right = (values[:modes] * vectors).mT
    outputs, inputs = (left, right) if tall.shape == matrix.shape else (right.mT, left.mT)
    whole = gram.tril_().float()
    whole += whole.tril(-1).mT
    return Decomposition(matrix, scale * values, scale * outputs, scale * inputs, whole)


def _lower_gram(tall: Tensor) -> Tensor:
    """A^T A (d, d) of ``tall`` (m, d), zero above the blocks of its diagonal: what reads it looks at the lower half only."""
    d = tall.shape[1]
    gram = tall.new_zeros(d, d)
    for start in range(0, d, STRIP):
        end = min(start + STRIP, d)
        gram[start:end, :end] = tall[:, start:end].mT @ tall[:, :end]
    return gram


def _top_vectors(gram: Tensor, count: int) -> Tensor:
    """float32 (d, count): the eigenvectors of the largest eigenvalues of a Gram matrix, of which the lower half is read."""
    d = len(gram)
    lower = gram.float().cpu().numpy()
    vectors = scipy.linalg.eigh(lower, lower=True, subset_by_index=(d - count, d - 1), driver="evr", check_finite=False)[1]
    return torch.from_numpy(vectors).to(gram.device).flip(1)


class Met(NamedTuple):
    """What A_l (m, n) and A_{l+1} (p, m) do together."""

    top: float  # s_1(A_{l+1} A_l)
    energy: float  # ||A_{l+1} A_l||_F^2
    scatters: tuple[Tensor, Tensor]  # A_l A_l^T and A_{l+1}^T A_{l+1} (m, m)


def met(first: Decomposition, second: Decomposition) -> Met:
    """``first`` (m, n) and ``second`` (p, m), float64: numbers to a precision of 1e-5, without the product.

    ||A_{l+1} A_l||_F^2 is tr(X Y) for X = A_l A_l^T and Y = A_{l+1}^T A_{l+1}, and s_1 the root of the largest eigenvalue of
    A_l^T Y A_l, by Lanczos steps. Products are in float32, sums in float64. Where nearly all cancels, so that the energy is
    below 1e-6 of ||A_{l+1}||^2 ||A_l||^2 (by chance it is 1 / m), the product itself is computed after all, in float64.
    """
    scales = [float(power_of_two(each.matrix.abs().max())) for each in (first, second)]
    one, two = ((each.matrix / scale).float() for each, scale in zip((first, second), scales, strict=True))
    wide, tall = one.shape[0] < one.shape[1], two.shape[0] >= two.shape[1]  # those whose known Gram matrix is the wanted one
    x = first.gram if wide and first.gram is not None else one @ one.mT
    y = second.gram if tall and second.gram is not None else two.mT @ two
    whole = scales[0] ** 2, scales[1] ** 2
    scatters = x.double() * whole[0], y.double() * whole[1]
    energy = float((x * y).sum(dtype=torch.float64))
    if energy <= 1e-6 * float(x.trace()) * float(y.trace()):
        moved = second.matrix @ first.matrix
        return Met(top_value(moved), norm(moved) ** 2, scatters)
    return Met(_top(one, y) ** 0.5 * scales[0] * scales[1], energy * whole[0] * whole[1], scatters)


def _top(first: Tensor, gram: Tensor) -> float:
    """The largest eigenvalue of A^T Y A for A = ``first`` (m, n) and Y = ``gram`` (m, m), both float32."""

    def step(vector: np.ndarray) -> np.ndarray:
        here = torch.from_numpy(vector.astype(np.float32).ravel()).to(first.device)
        return (first.mT @ (gram @ (first @ here))).cpu().numpy()

    n = first.shape[1]
    if n == 1:  # ARPACK needs at least two
        return float(step(np.ones(1))[0])
    operator = LinearOperator((n, n), matvec=step, dtype=np.float32)
    start = torch.randn(n, generator=torch.Generator().manual_seed(0)).numpy()
    return float(eigsh(operator, 1, which="LA", v0=start, tol=PRECISION, return_eigenvectors=False)[0])
