"""Linear algebra that every part of the geometry uses: checked float64 values, singular values and a decomposition.

Legend: a matrix is (m, n), outputs x inputs; d = min(m, n); its singular values are s_1 >= ... >= s_d >= 0.

The eigenvalues of the Gram matrix cost a quarter of an SVD or less. Their error is about d 1e-16 s_1^2, so that of the singular
value s_i is about d 1e-16 s_1^2 / s_i. Hence the Gram matrix is used if s_d > GRAM_FLOOR s_1, and LAPACK's SVD otherwise.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

GRAM_FLOOR = 1e-4
LARGE = 2048  # a matrix with both sides above it is large: see leading.py


def is_large(*matrices: Tensor) -> bool:
    """Whether all sides of all ``matrices`` are above LARGE."""
    return min(side for matrix in matrices for side in matrix.shape) > LARGE


def matrix64(matrix: Tensor, name: str = "matrix") -> Tensor:
    """``matrix`` as float64, on its device.

    Raises:
        ValueError: if ``matrix`` is not a 2-d tensor, or is empty, complex or not finite.
    """
    if not isinstance(matrix, Tensor) or matrix.ndim != 2 or 0 in matrix.shape:
        got = tuple(matrix.shape) if isinstance(matrix, Tensor) else type(matrix).__name__
        raise ValueError(f"{name} must be a non-empty matrix (rows, columns), got {got}")
    return finite64(matrix, name)


def finite64(values: Tensor, name: str) -> Tensor:
    """``values`` as float64. Raises ValueError if they are complex, or one is NaN or infinite."""
    if values.is_complex():
        raise ValueError(f"{name} must be real, got {values.dtype}")
    values = values.detach().to(torch.float64)
    # A sum is quicker than a check of each value, but it may overflow although all values are finite.
    if not bool(torch.isfinite(values.sum())) and (bad := int((~torch.isfinite(values)).sum())):
        raise ValueError(f"{name} must be finite, got {bad} NaN or infinite values")
    return values


def numerical_rank(values: Tensor, shape: tuple[int, int], dtype: torch.dtype, taps: int = 1) -> int:
    """The number of singular ``values`` (d,), descending, that rounding to ``dtype`` could not have made, at least 1.

    They exceed max(m, n) eps(dtype) s_1, as in NumPy and LAPACK. For 16-bit types this would cut whole matrices (it is 4 s_1
    for 4096 columns of float16); there the cut is the largest singular value of independent uniform rounding errors,
    eps (sqrt m + sqrt n) ||A||_F / sqrt(12 m n) (definition of this project). ``values`` of several ``taps``, matrices of the
    same ``shape`` (m, n), are taken together.
    """
    rows, columns = shape
    eps = torch.finfo(dtype).eps
    if eps < torch.finfo(torch.float16).eps:
        cut = max(rows, columns) * eps * float(values[0])
    else:
        cut = eps * (math.sqrt(rows) + math.sqrt(columns)) * norm(values) / math.sqrt(12 * rows * columns * taps)
    return max(int((values > cut).sum()), 1)


def gram_values(matrices: Tensor) -> Tensor:
    """Singular values (..., d) of matrices (..., m, n), descending, by the Gram matrix, or by an SVD where it is too coarse."""
    tall, scale = scaled_tall(matrices)
    squares = torch.linalg.eigvalsh(tall.mT @ tall).flip(-1).clamp_(min=0)
    values = squares.sqrt_()
    coarse = values[..., -1] <= GRAM_FLOOR * values[..., 0]
    if bool(coarse.any()):
        values[coarse] = torch.linalg.svdvals(tall[coarse])
    return values * scale


def scaled_tall(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """Matrices or their transposes, (..., max(m, n), d), scaled to a largest entry in [1, 2); and their divisors (..., 1)."""
    scale = power_of_two(matrices.abs().amax((-2, -1), keepdim=True))
    matrices = matrices / scale
    return matrices.mT if matrices.shape[-2] < matrices.shape[-1] else matrices, scale[..., 0]


def power_of_two(largest: Tensor) -> Tensor:
    """The largest power of two that is at most ``largest`` >= 0, elementwise; 1 for 0.

    Values divided by this power, which loses no precision, can be squared without overflow or underflow.
    """
    return torch.where(largest > 0, torch.ldexp(torch.ones_like(largest), torch.frexp(largest).exponent - 1), 1)


def top_value(matrix: Tensor) -> float:
    """The largest singular value s_1 of a float64 matrix (m, n)."""
    tall, scale = scaled_tall(matrix)
    return float(torch.linalg.eigvalsh(tall.mT @ tall)[-1].clamp(min=0).sqrt() * scale)


def norm(values: Tensor) -> float:
    """The 2-norm of all ``values`` at any scale; torch's own norm would square them unscaled and could overflow."""
    if values.numel() == 0:
        return 0.0
    scale = power_of_two(values.abs().max())
    return float(scale * torch.linalg.vector_norm(values / scale))


def product(left: Tensor, right: Tensor) -> Tensor:
    """``left`` (p, m) times ``right`` (m, n), float64; computed in float32 if both are large."""
    if not is_large(left, right):
        return left @ right
    scales = [power_of_two(matrix.abs().max()) for matrix in (left, right)]
    found = (left / scales[0]).float() @ (right / scales[1]).float()
    return found.double().mul_(scales[0]).mul_(scales[1])


def unit_columns(columns: Tensor) -> Tensor:
    """``columns`` (m, k) scaled to unit length; columns of length 0 stay 0."""
    lengths = torch.linalg.vector_norm(columns, dim=0)
    return columns / torch.where(lengths > 0, lengths, 1)


class Decomposition(NamedTuple):
    """A = U Sigma V^T, kept as U Sigma and Sigma V^T: these products need no division by a small singular value."""

    matrix: Tensor  # A (m, n)
    values: Tensor  # Sigma (d,), descending
    outputs: Tensor  # U Sigma (m, d): output channels x modes; of a large matrix the leading modes only
    inputs: Tensor  # Sigma V^T (d, n): modes x input channels; likewise
    # Of a large matrix: the Gram matrix on its shorter side, float32 (d, d), of A divided by a power of two (``power_of_two``).
    gram: Tensor | None = None

    @property
    def modes(self) -> int:
        """The number of modes of which the vectors are known: d, or fewer for a large matrix."""
        return len(self.inputs)


def decompose(matrix: Tensor, dtype: torch.dtype = torch.float64) -> Decomposition:
    """The singular value decomposition of ``matrix`` (m, n), by the Gram matrix where it is accurate, else by an SVD.

    Modes beyond the numerical rank of ``dtype``, in which the matrix was stored, need not be accurate.

    Raises:
        ValueError: if the matrix is not 2-d, or is empty, complex or not finite.
    """
    matrix = matrix64(matrix)
    tall, scale = scaled_tall(matrix)
    vectors = torch.linalg.eigh(tall.mT @ tall).eigenvectors
    left = tall @ vectors
    values, order = torch.linalg.vector_norm(left, dim=0).sort(descending=True)  # more exact than roots of eigenvalues
    left, vectors = left[:, order], vectors[:, order]
    last = numerical_rank(values, tuple(matrix.shape), dtype) - 1  # type: ignore[arg-type]
    if values[last] <= GRAM_FLOOR * values[0]:
        left, values, vectors_T = torch.linalg.svd(tall, full_matrices=False)
        left, vectors = left * values, vectors_T.mT
    values, left, right = scale * values, scale * left, scale * values[:, None] * vectors.mT
    return Decomposition(matrix, values, *((left, right) if tall.shape == matrix.shape else (right.mT, left.mT)))


def tail(values: Tensor, rank: int) -> float:
    """Frobenius norm of what a truncation to the top ``rank`` modes leaves out, from descending singular ``values`` (d,)."""
    return norm(values[rank:])
