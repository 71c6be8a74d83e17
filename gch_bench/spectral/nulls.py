"""What the numbers of the geometry are by chance: Haar rotations at an interface, and Gaussian matrices.

Definitions of this project (docs/geometry.md).

An interface is the place where a factor A_l (m, n) meets the next one, A_{l+1} (p, m). Its null is A_{l+1} Q A_l with a
Haar-random rotation Q of the m shared channels: both factors keep their spectra, and only how they are turned to each other is
lost. With X = A_l A_l^T and Y = A_{l+1}^T A_{l+1}, mean and variance of tr(Q X Q^T Y) are known in closed form,

    E = tr X tr Y / m,   Var = 2 |X_0|^2 |Y_0|^2 / ((m - 1)(m + 2)),   X_0 = X - (tr X / m) I,

because the traceless symmetric matrices are an irreducible representation of dimension (m - 1)(m + 2) / 2. The energy gain and
the principal angles are of this form. Percentiles, and everything about the largest singular value, come from draws.

A second null assigns the shared channels anew: A_{l+1} P A_l with a random permutation P. It keeps what any assignment has,
such as a direction in which all channels move together; a gain beyond it is due to which channel meets which.

The null of a spectrum is a Gaussian matrix of the same shape. Its singular values are drawn as those of a bidiagonal matrix of
chi variables (Silverstein, 1985; Dumitriu and Edelman, 2002), which costs O(d^2) and not O(d^3).
"""

import functools
import math
from typing import NamedTuple

import numpy as np
import torch
from scipy.linalg import eigvalsh_tridiagonal
from torch import Tensor

from gch_bench.spectral.rotations import haar_rotations

GAUSSIANS = 20
STILL = 1e-6  # relative spread of a null that is rounding: its draws are float32


class Null(NamedTuple):
    """A number beside what it is by chance."""

    value: float
    mean: float  # of the null
    sd: float  # of the null
    z: float  # (value - mean) / sd; nan where the null does not vary
    percentile: float  # share of the null's draws below the value, 0..100; nan where the null does not vary


def compared(value: float, draws: Tensor, mean: float | None = None, sd: float | None = None) -> Null:
    """``value`` beside ``draws`` (k,) of its null, whose exact ``mean`` and ``sd`` are taken where they are given.

    A null that varies by rounding alone has no scale to compare with: z and percentile are then nan.
    """
    if math.isnan(value):
        return Null(value, math.nan, math.nan, math.nan, math.nan)
    mean = float(draws.mean()) if mean is None else mean
    sd = float(draws.std()) if sd is None else sd
    if not sd > STILL * max(abs(mean), STILL):
        return Null(value, mean, sd, math.nan, math.nan)
    return Null(value, mean, sd, (value - mean) / sd, 100 * float((draws < value).double().mean()))


class Alignment(NamedTuple):
    """How two factors are turned to each other at their interface, each number beside its null under Haar rotations."""

    energy_gain: Null  # m ||A_{l+1} A_l||_F^2 / (||A_{l+1}||_F^2 ||A_l||_F^2), by chance 1
    slack_ratio: Null  # slack / (r_l + r_{l+1}): 0 if the tops of both factors meet; nan if both spectra are flat
    mean_cosine_squared: Null  # of the principal angles between the two windows, by chance max(k_l, k_{l+1}) / m


class Spectra(NamedTuple):
    """What the null of an interface depends on: singular values of both factors, descending, and the dimension they share."""

    first: Tensor  # of A_l (d1,)
    second: Tensor  # of A_{l+1} (d2,)
    shared: int  # m


def interface_nulls(
    spectra: Spectra, top: float, energy: float, overlap: tuple[float, int, int], seed: tuple[int, int] = (0, 0)
) -> Alignment:
    """The numbers of one interface beside their nulls.

    Args:
        spectra: of the two factors.
        top: s_1(A_{l+1} A_l).
        energy: ||A_{l+1} A_l||_F^2.
        overlap: the mean cos^2 of the principal angles, and the windows k_l and k_{l+1} that it is of.
        seed: of the rotations, and the number of the interface in its chain, which gets rotations of its own.
    """
    m = spectra.shared
    first, second = (values.cpu().double() / float(torch.linalg.vector_norm(values)) for values in spectra[:2])
    norms = float(torch.linalg.vector_norm(spectra.first)) * float(torch.linalg.vector_norm(spectra.second))
    cosine, k1, k2 = overlap
    rotations = haar_rotations(m, *seed)
    gain = compared(
        m * energy / norms**2, m * rotations.traces(first.square(), second.square()), 1.0, _trace_sd(first**2, second**2, m) * m
    )
    ones = torch.ones(max(k1, k2), dtype=torch.float64)
    least = min(k1, k2)
    angles = compared(
        cosine, rotations.traces(ones[:k1], ones[:k2]) / least, max(k1, k2) / m, _trace_sd(ones[:k1], ones[:k2], m) / least
    )
    both = math.log(float(first[0])) + math.log(float(second[0])) + (math.log(len(first)) + math.log(len(second))) / 2
    if both < 1e-9:  # both spectra are flat: the product has no top to lose
        return Alignment(gain, compared(math.nan, torch.zeros(1)), angles)
    most = math.log(float(first[0])) + math.log(float(second[0]))
    drawn = (most - rotations.tops(first, second).log()) / both
    slack = max(most - math.log(top / norms), 0.0) / both if top > 0 else math.inf
    return Alignment(gain, compared(slack, drawn), angles)


class Permuted(NamedTuple):
    """An energy gain beside that with permuted shared channels; mean and spread are exact."""

    mean: float
    sd: float
    z: float  # nan where the null does not vary


def permuted_gain(first: Tensor, second: Tensor, gain: float) -> Permuted:
    """The energy ``gain`` of A_l, ``first`` (m, n), and A_{l+1}, ``second`` (p, m), beside A_{l+1} P A_l for all
    permutations P.

    tr(P X P^T Y) = sum_i x_{s(i)} y_i + sum_{i != j} X_{s(i) s(j)} Y_ij, a linear rank statistic of the diagonals x and y and
    Mantel's statistic (1967) of the rest. Its moments follow from how often the indices of two terms agree.
    """
    return permuted_gain_of((first @ first.mT, second.mT @ second), gain)


def permuted_gain_of(scatters: tuple[Tensor, Tensor], gain: float) -> Permuted:
    """``permuted_gain`` from A_l A_l^T and A_{l+1}^T A_{l+1} (m, m)."""
    m = len(scatters[0])
    x, y = (_scatter(each) for each in scatters)
    pairs = max(m * (m - 1), 1)
    mean = x.diagonal * y.diagonal / m + x.rest * y.rest / pairs
    squared = x.diagonal_squares * y.diagonal_squares / m
    squared += (x.diagonal**2 - x.diagonal_squares) * (y.diagonal**2 - y.diagonal_squares) / pairs
    squared += 2 * x.rest_squares * y.rest_squares / pairs + 4 * x.mixed * y.mixed / pairs
    if m > 2:
        squared += 4 * (x.rows - x.rest_squares) * (y.rows - y.rest_squares) / (pairs * (m - 2))
        squared += 2 * (x.diagonal * x.rest - 2 * x.mixed) * (y.diagonal * y.rest - 2 * y.mixed) / (pairs * (m - 2))
    if m > 3:
        apart = [each.rest**2 - 4 * each.rows + 2 * each.rest_squares for each in (x, y)]
        squared += apart[0] * apart[1] / (pairs * (m - 2) * (m - 3))
    sd = m * math.sqrt(max(squared - mean**2, 0.0))
    found = compared(gain, torch.zeros(1, dtype=torch.float64), m * mean, sd)
    return Permuted(found.mean, found.sd, found.z)


class _Scatter(NamedTuple):
    """Sums over X = A A^T / tr(A A^T), with the diagonal x and the rest X' (i != j), whose row sums are R."""

    diagonal: float  # sum x_i
    diagonal_squares: float  # sum x_i^2
    rest: float  # sum X'_ij
    rest_squares: float  # sum X'_ij^2
    rows: float  # sum R_i^2
    mixed: float  # sum x_i R_i


def _scatter(scatter: Tensor) -> _Scatter:
    scatter = scatter / scatter.trace()
    x = scatter.diagonal()
    rows = scatter.sum(1) - x
    squares = float(scatter.square().sum()) - float(x.square().sum())
    return _Scatter(
        float(x.sum()), float(x.square().sum()), float(rows.sum()), squares, float(rows.square().sum()), float((x * rows).sum())
    )


def _trace_sd(x: Tensor, y: Tensor, m: int) -> float:
    """Standard deviation of tr(Q X Q^T Y) for the non-zero eigenvalues ``x`` and ``y`` of X and Y (m, m)."""
    spread = [max(float(each.square().sum()) - float(each.sum()) ** 2 / m, 0.0) for each in (x, y)]
    return math.sqrt(2 * spread[0] * spread[1] / ((m - 1) * (m + 2))) if m > 1 else 0.0


@functools.lru_cache(maxsize=256)
def gaussian_spectra(rows: int, columns: int, taps: int = 1, seed: int = 0) -> Tensor:
    """float64 (GAUSSIANS, d taps): singular values, descending, of Gaussian matrices (rows, columns) with ||A||_F = 1.

    Those of ``taps`` independent matrices are taken together as one spectrum. They are exact draws: a Gaussian matrix has the
    singular values of a bidiagonal matrix whose entries are independent chi variables.
    """
    large, d = max(rows, columns), min(rows, columns)
    generator = np.random.default_rng([seed, rows, columns, taps])
    on = generator.chisquare(np.arange(large, large - d, -1), (GAUSSIANS * taps, d))
    beside = generator.chisquare(np.arange(d - 1, 0, -1), (GAUSSIANS * taps, d - 1))
    energies = on.copy()
    if d > 1:
        energies[:, 1:] += beside
        pairs = zip(energies, np.sqrt(on[:, :-1] * beside), strict=True)
        energies = np.array([eigvalsh_tridiagonal(*each, check_finite=False, lapack_driver="sterf") for each in pairs])
    drawn = torch.from_numpy(energies).reshape(GAUSSIANS, -1).clamp_(min=0).sort(1, descending=True).values
    return (drawn / drawn.sum(1, keepdim=True)).sqrt()
