"""Top-radial coordinates, interface amplitudes and the margin inequality. Source: GSA I, arXiv 2605.02108; docs/geometry.md.

Legend: a factor A (m, n), d = min(m, n), is normalised to ||A||_F = sqrt(d). Its top-radial coordinate r is log s_1 after this
normalisation, and rho_d(a) is the r of the chart with exponent a (gibbs.py).
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from gch_bench.spectral.gibbs import GibbsFit, energies, fit_exponent, mean_log_rank
from gch_bench.spectral.linalg import gram_values, matrix64, norm, top_value


class Radial(NamedTuple):
    """The top-radial coordinate of one factor, and the same coordinate of its fitted chart."""

    radial: float  # r = log s_1 >= 0
    chart: float  # rho_d(a)
    residual: float  # e = r - rho_d(a), signed
    fit: GibbsFit
    norm: float  # ||A||_F before normalisation


class Interface(NamedTuple):
    """Two adjacent factors, A_l then A_{l+1}, and the margin inequality |rho_{l+1} - rho_l| <= 2 g + slack + |e_{l+1} - e_l|.

    The inequality cannot fail: 2 g + slack = r_l + r_{l+1}, in which g cancels, and rho = r - e. It is an identity to test, not
    evidence of alignment; that is the slack beside its null (nulls.py).
    """

    amplitude: float  # g = 1/2 log s_1(A_{l+1} A_l), both normalised; -inf where the product is zero
    slack: float  # r_l + r_{l+1} - 2 g >= 0, the non-backtracking slack
    residual_change: float  # e_{l+1} - e_l, signed
    displacement: float  # |rho_{l+1} - rho_l|
    bound: float  # 2 g + slack + |e_{l+1} - e_l| >= displacement
    exponent_change: float  # a_{l+1} - a_l
    exponent_bound: float  # bound / kappa >= |exponent_change| if both have the same d, else nan
    first: Radial
    second: Radial


def chart_radial(exponent: float, count: int) -> float:
    """rho_d(a) = (log d - log H_d(a)) / 2, strictly increasing from rho_d(0) = 0 to log(d) / 2."""
    if math.isinf(exponent):
        return math.log(count) / 2
    log_i = torch.arange(1, count + 1, dtype=torch.float64).log_()
    return (math.log(count) - float((-exponent * log_i).logsumexp(0))) / 2


def radial_of_values(singular_values: Tensor) -> Radial:
    """The radial coordinate of a factor with these singular values (d,). Raises ValueError as ``fit_exponent``."""
    fit = fit_exponent(singular_values)
    top = float(energies(singular_values)[0])
    radial = max((math.log(top) + math.log(fit.size)) / 2, 0.0)
    chart = chart_radial(fit.exponent, fit.size)
    return Radial(radial, chart, radial - chart, fit, norm(singular_values.to(torch.float64)))


def interface(first: Tensor, second: Tensor) -> Interface:
    """The interface of ``first`` (m, n), applied first, and ``second`` (k, m).

    Raises:
        ValueError: if the shapes do not compose, a matrix is zero, or a value is not finite.
    """
    first, second = composable(first, second)
    for name, matrix in (("first", first), ("second", second)):
        if not matrix.any():
            raise ValueError(f"{name} must not be a zero matrix, got {tuple(matrix.shape)} of zeros")
    one, two = (radial_of_values(gram_values(matrix)) for matrix in (first, second))
    return interface_of(one, two, top_value((second / two.norm) @ (first / one.norm)))


def composable(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Both matrices as float64. Raises ValueError unless ``second @ first`` exists and all values are finite."""
    first, second = matrix64(first, "first"), matrix64(second, "second")
    if second.shape[1] != first.shape[0]:
        raise ValueError(
            f"second must take what first gives: second has shape {tuple(second.shape)}, first {tuple(first.shape)}"
        )
    return first, second


def interface_of(first: Radial, second: Radial, top: float) -> Interface:
    """The interface of two factors whose ``top`` = s_1(A_{l+1} A_l) / (||A_l||_F ||A_{l+1}||_F) is already known."""
    counts = first.fit.size, second.fit.size
    log_top = math.log(top) + math.log(math.prod(counts)) / 2 if top > 0 else -math.inf
    both = first.radial + second.radial
    log_top = min(log_top, both)  # exceeds it by rounding only: s_1(A B) <= s_1(A) s_1(B)
    slack = both - log_top
    change = second.residual - first.residual
    bound = both + abs(change)  # 2 g + slack is r_l + r_{l+1}, also where both are infinite
    exponents = first.fit.exponent, second.fit.exponent
    kappa = mean_log_rank(max(exponents), counts[0]) / 2
    return Interface(
        amplitude=log_top / 2,
        slack=slack,
        residual_change=change,
        displacement=abs(second.chart - first.chart),
        bound=bound,
        exponent_change=_change(*exponents),
        exponent_bound=math.nan if counts[0] != counts[1] else bound / kappa if kappa > 0 else math.inf,
        first=first,
        second=second,
    )


def _change(first: float, second: float) -> float:
    return 0.0 if first == second else second - first  # inf - inf would be nan


def near_identity_radial(direction: Tensor, epsilon: float) -> float:
    """r of I + eps B to first order, for B = ``direction`` (d, d): eps (lambda_max((B + B^T) / 2) - tr B / d).

    The error is O(eps^2). Source: GSA I.

    Raises:
        ValueError: if B is not square or not finite, or eps < 0.
    """
    direction = matrix64(direction, "direction")
    if direction.shape[0] != direction.shape[1]:
        raise ValueError(f"direction must be square, got {tuple(direction.shape)}")
    if not epsilon >= 0:
        raise ValueError(f"epsilon must be >= 0, got {epsilon!r}")
    largest = torch.linalg.eigvalsh((direction + direction.mT) / 2)[-1]
    return float(epsilon * (largest - direction.trace() / len(direction)))
