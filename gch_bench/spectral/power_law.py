"""Two other exponents of a spectrum: weightwatcher's alpha, and the chart's exponent on square parts of a matrix.

Legend: a matrix is (m, n); d = min(m, n); its eigenvalues are x = s^2, the squares of its singular values; a is the exponent of
the Gibbs-Cartan chart (gibbs.py). On an exact power law, x_i proportional to i^-a, alpha = 1 + 1/a.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from gch_bench.spectral.gibbs import fit_exponent
from gch_bench.spectral.linalg import finite64, matrix64, power_of_two

LEAST_TAIL = 8  # weightwatcher does not look at matrices with fewer eigenvalues
SMALL = 20  # below this many eigenvalues weightwatcher corrects the bias of alpha
SQUARES = 4  # most square parts of a matrix that are looked at
_BLOCK = 256  # thresholds whose distances are computed at a time


class PowerLaw(NamedTuple):
    """A power law of density x^-alpha for x >= xmin, fitted to the largest eigenvalues. All nan, and no tail, if none fits."""

    alpha: float
    xmin: float
    distance: float  # Kolmogorov-Smirnov distance of the tail's distribution from the power law
    tail_count: int  # n, number of eigenvalues >= xmin


def power_law_tail(eigenvalues: Tensor, floor: float = 0.0) -> PowerLaw:
    """The power law of the tail of ``eigenvalues`` (N,), in any order, at any scale.

    With each eigenvalue but the largest as xmin, alpha = 1 + n / sum log(x / xmin), over the n eigenvalues x >= xmin; the xmin
    whose power law has the smallest Kolmogorov-Smirnov distance is chosen. Below SMALL eigenvalues above the floor the
    numerator is n - 1, and tails shorter than LEAST_TAIL are not considered. With fewer than LEAST_TAIL, or if all are equal,
    the fields are nan.

    Args:
        floor: only larger eigenvalues are used. weightwatcher's is 1e-5 (an absolute number, so that its alpha may depend on
            the matrix's scale). A floor only removes candidates for xmin, so it changes alpha only if xmin would lie below.

    Source: Clauset, Shalizi, Newman 2009, Power-law distributions in empirical data; the rules are those of weightwatcher 0.7.7
    (WW_powerlaw.WWFit).

    Raises:
        ValueError: if the eigenvalues are not a 1-d tensor of real finite numbers >= 0, or the floor is not >= 0.
    """
    if not isinstance(eigenvalues, Tensor) or eigenvalues.ndim != 1:
        got = tuple(eigenvalues.shape) if isinstance(eigenvalues, Tensor) else type(eigenvalues).__name__
        raise ValueError(f"eigenvalues must be a 1-d tensor, got {got}")
    if not 0 <= floor < math.inf:
        raise ValueError(f"floor must be finite and >= 0, got {floor!r}")
    values = finite64(eigenvalues, "eigenvalues").cpu()
    if bool((values < 0).any()):
        raise ValueError(f"eigenvalues must be >= 0, got {float(values.min())!r}")
    values = values[values > floor].sort().values
    total = len(values)
    if total < LEAST_TAIL or bool(values[0] == values[-1]):
        return PowerLaw(math.nan, math.nan, math.nan, 0)
    logs = values.log()
    counts = torch.arange(total, 0, -1, dtype=torch.float64)[:-1]  # n of each candidate
    sums = logs.flip(0).cumsum(0).flip(0)[:-1] - counts * logs[:-1]  # sum log(x / xmin)
    small = total < SMALL
    rates = torch.where(sums > 1e-12, (counts - int(small)) / sums, math.inf)  # alpha - 1
    distances = _distances(logs, rates, counts)
    if small:
        distances[counts < LEAST_TAIL] = math.inf
    at = int(distances.argmin())
    return PowerLaw(1 + float(rates[at]), float(values[at]), float(distances[at]), total - at)


def _distances(logs: Tensor, rates: Tensor, counts: Tensor) -> Tensor:
    """For each candidate xmin the largest |1 - (x / xmin)^(1 - alpha) - share of the tail below x| over the tail's x; 1 where
    alpha is infinite. ``logs`` (N,) ascending; ``rates`` = alpha - 1 and ``counts`` = n, both (N - 1,)."""
    rates = torch.where(torch.isfinite(rates), rates, 0)
    total, found = len(logs), torch.empty_like(rates)
    for start in range(0, len(rates), _BLOCK):
        own = slice(start, start + _BLOCK)
        above = (logs[start:] - logs[:-1][own, None]).mul_(-rates[own, None]).exp_()  # 1 - the power law's distribution
        below = torch.arange(total - start, dtype=torch.float64) - torch.arange(len(above), dtype=torch.float64)[:, None]
        gap = above.add_(below.div_(counts[own, None])).sub_(1).abs_()
        found[own] = gap.triu_().amax(1)  # an x below the candidate is not of its tail
    return torch.where(rates > 0, found, 1)


def square_exponent(matrix: Tensor) -> float:
    """Mean exponent of the charts of square parts of ``matrix`` (m, n), by which matrices of any aspect ratio can be compared.

    The exponent of a Gaussian matrix of 256 rows falls from .60 to .27 as its aspect ratio n/m grows from 1 to 8, so that a
    difference of exponents may be one of shapes. Therefore the longer side is cut into k = floor(long / short) parts of `short`
    rows or columns, each of every k-th one, and the exponents of at most SQUARES of them, spread evenly, are averaged. A part
    that is zero is left out. A square matrix is its own only part. What remains is the size d: a square Gaussian matrix has .71
    at d = 64 and .60 at d = 256, so compare equal d.

    Source: definition of this project.

    Raises:
        ValueError: if the matrix is not 2-d, or is empty, complex, not finite, or zero.
    """
    matrix = matrix64(matrix)
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.mT
    short, long = wide.shape
    step = long // short
    chosen = sorted({round(at * (step - 1) / max(SQUARES - 1, 1)) for at in range(SQUARES)})
    parts = [wide[:, first::step][:, :short] for first in chosen]
    exponents = [fit_exponent(_values(part)).exponent for part in parts if bool(part.any())]
    if not exponents:
        raise ValueError(f"matrix must have a value that is not zero in its square parts, got {tuple(matrix.shape)} zeros")
    return sum(exponents) / len(exponents)


def _values(square: Tensor) -> Tensor:
    """Singular values (d,) of a matrix (d, d) by its Gram matrix, which is enough here, however small the last ones are: the
    exponent depends on sum p_i log i alone, of which an error of d 1e-16 in each energy p_i is nothing."""
    scaled = square / power_of_two(square.abs().max())
    return torch.linalg.eigvalsh(scaled @ scaled.mT).clamp(min=0).sqrt()
