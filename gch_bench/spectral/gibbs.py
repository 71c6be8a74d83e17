"""Spectra of layer factors and their Gibbs-Cartan chart. Source: GSA I, arXiv 2605.02108; docs/geometry.md.

Legend: a factor has singular values s_1 >= ... >= s_d and energies p_i = s_i^2 / sum s^2. The chart p_i(a) = i^-a / H_d(a),
H_d(a) = sum_i i^-a, is a family of power laws for the p_i. It is a Gibbs family on the ranks 1..d: rank i has the energy log i,
and the inverse temperature is a, called the exponent. It is an exponent of energies; singular values fall like i^(-a/2).
"""

import itertools
import math
from typing import NamedTuple

import torch
from torch import Tensor

from gch_bench.spectral.linalg import finite64

FLAT = 1e-9  # nats from the uniform distribution, up to which a spectrum counts as flat


class GibbsFit(NamedTuple):
    """The chart fitted to one spectrum."""

    exponent: float  # a by maximum likelihood, sum_i p_i log i = E_a[log i]; inf if one value is not 0, 0 for d = 1
    slope: float  # least squares of log p_i on log i over the non-zero energies, -a on the chart; nan for fewer than two
    r_squared: float  # of the line that the slope is of; nan where it is not defined
    kl: float  # KL(p || p(a)), nats
    explained_share: float  # 1 - KL(p || p(a)) / KL(p || uniform): 1 on the chart, nan for a flat spectrum
    fisher: float  # I(a) = Var_a(log i)
    size: int  # d


def energies(singular_values: Tensor) -> Tensor:
    """float64 (d,): p_i = s_i^2 / sum s^2, descending, from singular values (d,) in any order.

    Raises:
        ValueError: if the values are not 1-d, or there are none, or one is negative or not finite, or all are zero.
    """
    if not isinstance(singular_values, Tensor) or singular_values.ndim != 1 or len(singular_values) == 0:
        got = tuple(singular_values.shape) if isinstance(singular_values, Tensor) else type(singular_values).__name__
        raise ValueError(f"singular_values must be a non-empty 1-d tensor, got {got}")
    values = finite64(singular_values, "singular_values")
    if bool((values < 0).any()):
        raise ValueError(f"singular_values must be >= 0, got {float(values.min())!r}")
    if float(values.max()) == 0:
        raise ValueError(f"singular_values must have a positive one, got {len(values)} zeros")
    squares = (values / values.max()).square().sort(descending=True).values
    return squares / squares.sum()


def chart(exponent: float, count: int) -> Tensor:
    """float64 (d,): p_i(a) = i^-a / H_d(a), i = 1..d = ``count``; a = inf puts all energy on the first rank."""
    return torch.exp(_log_chart(exponent, count))


def _log_chart(exponent: float, count: int) -> Tensor:
    log_i = _log_ranks(count)
    if exponent == math.inf:
        return torch.where(log_i == 0, 0.0, -math.inf).to(torch.float64)
    return (-exponent * log_i).log_softmax(0)


def _log_ranks(count: int) -> Tensor:
    return torch.arange(1, count + 1, dtype=torch.float64).log_()


def fit_exponent(singular_values: Tensor) -> GibbsFit:
    """The chart that fits ``singular_values`` (d,), in any order and at any scale.

    Raises:
        ValueError: as ``energies``.
    """
    p = energies(singular_values).cpu()
    log_i = _log_ranks(len(p))
    exponent = _solve(float(p @ log_i), log_i)
    slope, r_squared = _line(log_i, p)
    # The logarithm of the chart is used, because the chart itself may underflow to 0 where p does not.
    kl = float((torch.special.xlogy(p, p) - torch.where(p > 0, p * _log_chart(exponent, len(p)), 0)).sum())
    kl = max(kl, 0.0)
    # Pythagoras: KL(p || uniform) = KL(p || p(a)) + KL(p(a) || uniform), exactly at the maximum-likelihood exponent.
    from_uniform = float(torch.special.xlogy(p, p).sum()) + math.log(len(p))
    share = 1 - kl / from_uniform if from_uniform > FLAT else math.nan
    return GibbsFit(exponent, slope, r_squared, kl, share, fisher_information(exponent, len(p)), len(p))


class RestFit(NamedTuple):
    """The chart's power law fitted to the ranks behind the first ones alone."""

    exponent: float  # nan where fewer than two ranks are left
    explained_share: float  # as GibbsFit's, of the remaining ranks; nan also where they are flat


def fit_rest(p: Tensor, first: int) -> RestFit:
    """The power law i^-a on the ranks i = ``first`` + 1..d of the energies ``p`` (d,), descending (definition of this project).

    Any family that decays explains a spectrum that one large mode dominates. On an exact power law the rest has the exponent of
    the whole and an explained share of 1, because its ranks keep their numbers.
    """
    rest = p[first:].to(torch.float64).cpu()
    if len(rest) < 2 or float(rest.sum()) <= 0:
        return RestFit(math.nan, math.nan)
    rest, log_i = rest / rest.sum(), _log_ranks(len(p))[first:]
    exponent = _solve(float(rest @ (log_i - log_i[0])), log_i - log_i[0])
    if math.isinf(exponent):
        return RestFit(exponent, 1.0)
    entropy = float(torch.special.xlogy(rest, rest).sum())
    kl = max(entropy - float(rest @ (-exponent * log_i).log_softmax(0)), 0.0)
    from_uniform = entropy + math.log(len(rest))
    return RestFit(exponent, 1 - kl / from_uniform if from_uniform > FLAT else math.nan)


def _solve(mean_log_rank: float, log_i: Tensor) -> float:
    """The a with E_a[log i] = ``mean_log_rank``, by Newton's method inside a bracket: E_a[log i] falls as a grows."""
    if len(log_i) == 1:
        return 0.0  # one rank: every exponent gives the same chart
    if mean_log_rank >= float(log_i.mean()):
        return 0.0  # the mean of sorted energies exceeds that of a flat spectrum only by rounding
    if mean_log_rank <= 0:
        return math.inf
    low, high = 0.0, 2.0
    while _moments(high, log_i)[0] > mean_log_rank:
        low, high = high, 2 * high
    a = (low + high) / 2
    for _ in range(200):
        mean, variance = _moments(a, log_i)
        low, high = (a, high) if mean > mean_log_rank else (low, a)
        step = a + (mean - mean_log_rank) / variance if variance > 0 else high
        following = step if low < step < high else (low + high) / 2
        if abs(following - a) <= 1e-14 * max(1.0, abs(a)):
            return following
        a = following
    return a


def _moments(exponent: float, log_i: Tensor) -> tuple[float, float]:
    p = (-exponent * log_i).softmax(0)
    mean = float(p @ log_i)
    return mean, float(p @ (log_i - mean).square_())


def _line(log_i: Tensor, p: Tensor) -> tuple[float, float]:
    """Slope and R^2 of the least-squares line of log p_i on log i over the positive energies."""
    log_i, log_p = log_i[p > 0], p[p > 0].log()
    x, y = log_i - log_i.mean(), log_p - log_p.mean()
    xx, yy, xy = float(x @ x), float(y @ y), float(x @ y)
    if xx == 0:
        return math.nan, math.nan
    flat = yy <= 1e-24 * len(p)  # nothing but rounding: there is no variance to explain
    return xy / xx, math.nan if flat else xy * xy / (xx * yy)


def fisher_information(exponent: float, count: int) -> float:
    """I(a) = Var_a(log i) of the chart on ``count`` ranks. The Bures-Wasserstein line element is ds^2 = (d/4) I(a) da^2."""
    return 0.0 if math.isinf(exponent) else _moments(exponent, _log_ranks(count))[1]


def mean_log_rank(exponent: float, count: int) -> float:
    """E_a[log i] of the chart on ``count`` ranks."""
    return 0.0 if math.isinf(exponent) else _moments(exponent, _log_ranks(count))[0]


def fisher_action(exponents: list[float], count: int) -> float:
    """Discrete Fisher action of a chain of charts on ``count`` ranks, by the midpoint rule:
    sum_l I((a_l + a_{l+1}) / 2) (a_{l+1} - a_l)^2."""
    pairs = itertools.pairwise(exponents)
    return sum(fisher_information((one + two) / 2, count) * (two - one) ** 2 for one, two in pairs)


def hellinger_squared(p: Tensor, q: Tensor) -> float:
    """H^2 = 1/2 sum_i (sqrt p_i - sqrt q_i)^2 of two energy vectors (d,); a shorter one is filled with zeros."""
    p, q = _aligned(p, q)
    return float((p.sqrt() - q.sqrt()).square().sum() / 2)


def bures_squared(p: Tensor, q: Tensor) -> float:
    """Squared Bures-Wasserstein distance 2 d H^2 of the spectra d p and d q, both of length d and trace d.

    Raises:
        ValueError: if ``p`` and ``q`` have different lengths.
    """
    if len(p) != len(q):
        raise ValueError(f"p and q must have the same length, got {len(p)} and {len(q)}")
    return 2 * len(p) * hellinger_squared(p, q)


def kl_divergence(p: Tensor, q: Tensor) -> float:
    """KL(p || q) in nats, inf if q is 0 where p is not; a shorter vector is filled with zeros."""
    p, q = _aligned(p, q)
    return max(float((torch.special.xlogy(p, p) - torch.special.xlogy(p, q)).sum()), 0.0)


def _aligned(p: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    p, q = p.to(torch.float64), q.to(torch.float64)
    missing = len(p) - len(q)
    pad = torch.nn.functional.pad
    return (p, pad(q, (0, missing))) if missing >= 0 else (pad(p, (0, -missing)), q)


def effective_rank(p: Tensor, eta: float) -> int:
    """R_eta = min{k: p_1 + ... + p_k >= eta} of energies (d,) in descending order.

    Raises:
        ValueError: unless 0 < eta <= 1.
    """
    if not 0 < eta <= 1:
        raise ValueError(f"eta must be in (0, 1], got {eta!r}")
    reached = p.to(torch.float64).cumsum(0) >= eta - 1e-14 - 2.3e-16 * len(p)  # a sum of rounded terms may just miss eta
    return min(int((~reached).sum()) + 1, len(p))


def rank_window(exponent: float, uncertainty: float, count: int, eta: float) -> tuple[int, int]:
    """[R_eta(a + da), R_eta(a - da)] of the chart: its effective ranks for exponents within a finite ``uncertainty``.

    Exponents below 0 count as 0, because energies are in descending order.
    """
    low, high = (effective_rank(chart(max(exponent + da, 0.0), count), eta) for da in (uncertainty, -uncertainty))
    return low, high


def tail_bound(exponent: float, rank: int, count: int) -> float:
    """Upper bound of sum_{i = k + 1}^d i^-a, k = ``rank``, d = ``count``: the integral of x^-a from k to d.

    The integral is (d^(1-a) - k^(1-a)) / (1-a), and log(d / k) at a = 1; for a > 1 it is below k^(1-a) / (a-1).

    Raises:
        ValueError: unless 1 <= ``rank`` <= ``count`` and the exponent a is >= 0.
    """
    if not 1 <= rank <= count:
        raise ValueError(f"rank must be in 1..{count}, got {rank!r}")
    if not exponent >= 0:
        raise ValueError(f"exponent must be >= 0, got {exponent!r}")
    if math.isinf(exponent):
        return 0.0
    width, power = math.log(count / rank), 1 - exponent
    scale = math.exp(power * math.log(rank))
    return scale * width if abs(power * width) < 1e-12 else scale * math.expm1(power * width) / power
