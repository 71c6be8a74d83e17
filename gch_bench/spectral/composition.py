"""How far measured Jacobians of blocks are from composing. Definitions of this project (docs/geometry.md).

Legend: J_l (m, n) and J_{l+1} (p, m) are the Jacobians of two neighbouring blocks, each reduced to its channels by itself, and
T (p, n) is that of both differentiated together (gch_bench/spectral/jacobian.py). d = min(outputs, inputs) of a matrix.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from gch_bench.spectral.linalg import norm, power_of_two, top_value
from gch_bench.spectral.linalg import product as multiplied
from gch_bench.spectral.radial import composable


def composition_defect(first: Tensor, second: Tensor, together: Tensor) -> float:
    """||T - J_{l+1} J_l||_F / ||T||_F, without unit: 0 if the Jacobians compose, nan if T is 0.

    Args:
        first, second: J_l (m, n) and J_{l+1} (p, m).
        together: T (p, n).

    Raises:
        ValueError: if the shapes do not compose.
    """
    _check(first, second, together)
    return _relative(norm(together - second @ first), norm(together))


def rotated_defect(first: Tensor, second: Tensor, together: Tensor) -> float:
    """The null of ``composition_defect``: its root mean square if a random rotation stood between the two Jacobians.

    For Q of the Haar measure of O(m), E ||T - J_{l+1} Q J_l||^2 = ||T||^2 + ||J_{l+1}||^2 ||J_l||^2 / m, because E Q = 0 and
    E Q^T B Q = tr(B) I / m. So it is at least 1, and sqrt 2 where the product is as large as T.

    Raises:
        ValueError: as ``composition_defect``.
    """
    _check(first, second, together)
    size = norm(together)
    return math.hypot(1.0, norm(second) / size * norm(first) / math.sqrt(len(first))) if size > 0 else math.nan


def log_top(matrix: Tensor) -> float:
    """log s_1, the natural logarithm of the largest singular value; -inf for a zero matrix."""
    top = top_value(matrix)
    return math.log(top) if top > 0 else -math.inf


class Product(NamedTuple):
    """The product of a chain's matrices so far, J_l ... J_1, kept near 1 so that a long chain neither over- nor underflows."""

    matrix: Tensor  # the product divided by e^log_scale
    log_scale: float
    log_gain: float  # sum of log(||J||_F / sqrt d) over the matrices, which makes each of them as large as an isometry
    log_null: float  # log of the product's root mean square norm with a Haar rotation at each interface


def product_with(product: Product | None, matrix: Tensor) -> Product:
    """The product with one more ``matrix`` (p, m), which acts last; ``product`` is None for the first one.

    Raises:
        ValueError: if the shapes do not compose.
    """
    size = norm(matrix)
    log_size = math.log(size) if size > 0 else -math.inf
    log_gain = log_size - math.log(min(matrix.shape)) / 2
    if product is None:
        return _scaled(Product(matrix, 0.0, log_gain, log_size))
    composable(product.matrix, matrix)
    log_null = product.log_null + log_size - math.log(matrix.shape[1]) / 2
    return _scaled(Product(multiplied(matrix, product.matrix), product.log_scale, product.log_gain + log_gain, log_null))


def _scaled(product: Product) -> Product:
    scale = power_of_two(product.matrix.abs().max())
    return product._replace(matrix=product.matrix / scale, log_scale=product.log_scale + math.log(float(scale)))


class ChainComposition(NamedTuple):
    """The product of all Jacobians of a chain beside the whole chain's Jacobian differentiated together. Logarithms natural."""

    log_top_normalised: float  # log s_1 of the product of the matrices, each scaled to the Frobenius norm sqrt d
    log_top_product: float  # log s_1 of the product
    log_top_together: float  # log s_1 of the whole Jacobian
    log_top_difference: float  # together - product: 0 if the Jacobians compose
    composition_defect: float  # ||whole - product||_F / ||whole||_F; nan if the whole is 0
    composition_defect_null: float  # its root mean square with a Haar rotation at each interface, at least 1


def chain_composition(product: Product, whole: Tensor) -> ChainComposition:
    """Compare the ``product`` of a chain's Jacobians with its ``whole`` Jacobian (outputs of the last, inputs of the first).

    Raises:
        ValueError: if the shapes differ.
    """
    if product.matrix.shape != whole.shape:
        raise ValueError(f"whole must have the product's shape {tuple(product.matrix.shape)}, got {tuple(whole.shape)}")
    top, of_whole, size = log_top(product.matrix) + product.log_scale, log_top(whole), norm(whole)
    # Compared in units of the whole, since the product alone may be beyond the range of numbers.
    ratio = _exp(product.log_scale - math.log(size)) if size > 0 else math.nan
    defect = norm(whole / size - product.matrix * ratio) if math.isfinite(ratio) else ratio
    return ChainComposition(
        log_top_normalised=top - product.log_gain if top > -math.inf else top,
        log_top_product=top,
        log_top_together=of_whole,
        log_top_difference=of_whole - top,
        composition_defect=defect,
        composition_defect_null=math.hypot(1.0, _exp(product.log_null - math.log(size))) if size > 0 else math.nan,
    )


def _exp(value: float) -> float:
    """e^value, inf where that overflows."""
    return float(torch.tensor(value, dtype=torch.float64).exp())


def _relative(part: float, whole: float) -> float:
    return part / whole if whole > 0 else math.nan


def _check(first: Tensor, second: Tensor, together: Tensor) -> None:
    composable(first, second)
    if together.shape != (len(second), first.shape[1]):
        raise ValueError(f"together must have shape {(len(second), first.shape[1])}, got {tuple(together.shape)}")
