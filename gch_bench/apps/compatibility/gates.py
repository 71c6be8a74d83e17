"""What is measured of a mechanism's gate alone, on the stage's map: log-ratios, roughness, mean, variance and correlation.

Shapes: B draws of the gate, H x W map, N = H*W sites in row-major order.
"""

import math
from collections.abc import Iterator

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from gch_bench.noise.mechanism import DENSE_COVARIANCE_SITES, FieldNoise, Mechanism, Moments
from gch_bench.noise.moments import both_kept_probability
from gch_bench.results.compatibility import Row, mean_row, not_applicable, p_value, row, untested, variance_row
from gch_bench.rng import generator

RATIO, ROUGH, MEAN = "log-ratio", "roughness", "mean"
RANDOM_PAIRS = 24  # pairs of sites besides the named ones whose log-ratio is measured
QUANTILES = np.linspace(0.02, 0.98, 25)
OVERFLOW = "at this strength some gates are 0 or infinite in float32"
HEAVY = "gamma^2 Var psi > 1: the tails are too heavy for a test with so few draws"
GROUPS = 16  # parts of the draws that the jackknife of a correlation length leaves out


def named_pairs(height: int, width: int) -> dict[str, tuple[int, int]]:
    """Pairs of sites that every report shows, as far as the map has them: name -> two sites in row-major order."""
    middle_row, middle = (height // 2) * width, width // 2
    centre, last = middle_row + middle, height * width - 1
    pairs = {
        "centre and its neighbour": (centre, middle_row + max(middle - 1, 0)),
        "corner and its neighbour": (0, min(1, width - 1)),
        "centre and corner": (centre, 0),
        "opposite corners": (0, last),
    }
    found: dict[str, tuple[int, int]] = {}
    for name, (x, y) in pairs.items():
        if x != y and (x, y) not in found.values():
            found[name] = (x, y)
    return found


def random_pairs(sites: int, count: int) -> Tensor:
    """`count` pairs of different sites, always the same: (count, 2), int64."""
    first = torch.randint(sites, (count,), generator=generator("pairs", sites))
    step = torch.randint(1, sites, (count,), generator=generator("steps", sites)) if sites > 1 else torch.ones_like(first)
    return torch.stack([first, (first + step) % sites], 1)


def gate_rows(mechanism: Mechanism, gates_BHW: Tensor) -> Iterator[Row]:
    """All rows on the gate of one mechanism.

    Args:
        gates_BHW: independent draws of the gate (additive noise: one plus what is added), float64.
    """
    yield from _ratio_rows(mechanism, gates_BHW)
    yield from _roughness_rows(mechanism, gates_BHW)
    yield from _mean_rows(mechanism, gates_BHW)


def _ratio_rows(mechanism: Mechanism, gates_BHW: Tensor) -> Iterator[Row]:
    _, height, width = gates_BHW.shape
    gates_BN = gates_BHW.flatten(1)
    if height * width < 2:
        yield not_applicable(RATIO, "variance", "the map has one site")
        return
    named = named_pairs(height, width)
    others = random_pairs(height * width, RANDOM_PAIRS).tolist()
    pairs = {**named, **{f"sites {x} and {y}": (x, y) for x, y in others}}
    law = mechanism.log_ratio(height, width)
    if mechanism.adds:
        why = "the noise is added, so that what it does to a ratio of features depends on the features"
        yield not_applicable(RATIO, "variance", why)
    elif law is None:
        yield not_applicable(RATIO, "variance", _no_law(mechanism, height, width))
    else:
        mean_NN, sd_NN = law
        for name, (x, y) in pairs.items():
            ratio_B = (gates_BN[:, x] / gates_BN[:, y]).log()
            if not bool(ratio_B.isfinite().all()):
                yield not_applicable(RATIO, "variance", OVERFLOW)._replace(at=name)
                continue
            variance = float(sd_NN[x, y] ** 2)
            yield variance_row(RATIO, "variance", ratio_B, variance, at=name, x=variance)
            if name in named:
                yield mean_row(RATIO, "mean", ratio_B, float(mean_NN[x, y]), at=name)
        name, (x, y) = next(iter(named.items()))
        if sd_NN[x, y] > 0:
            standard_B = ((gates_BN[:, x] / gates_BN[:, y]).log() - mean_NN[x, y]) / sd_NN[x, y]
            if bool(standard_B.isfinite().all()):
                yield from _normality_rows(standard_B, name)
    yield from _singular_rows(mechanism, gates_BN, torch.tensor(others), height, width)


def _no_law(mechanism: Mechanism, height: int, width: int) -> str:
    if height * width > DENSE_COVARIANCE_SITES and mechanism.positive:
        return f"the map has more than {DENSE_COVARIANCE_SITES} sites"
    if mechanism.positive:
        return "no closed form of the law of a ratio is known"
    if mechanism.law.gaussian:
        return "a Gaussian gate may be negative, and its log is not Gaussian"
    return "a mask sets sites to zero, where a ratio is 0, infinite or undefined"


def _normality_rows(standard_B: Tensor, at: str) -> Iterator[Row]:
    """The distance of Kolmogorov and Smirnov from N(0, 1), and quantiles with their intervals by the binomial distribution.

    The quantiles are for a figure; the distance tests them together.
    """
    values = np.sort(standard_B.numpy())
    test = stats.kstest(values, "norm", method="asymp")
    critical = float(stats.kstwobign.ppf(0.95) / math.sqrt(len(values)))
    made = Row(RATIO, "distance from N(0, s^2)", at, measured=float(test.statistic), low=0.0, high=critical, theory=0.0)
    yield made._replace(p_value=float(test.pvalue), n=len(values), note="Kolmogorov-Smirnov; interval: 95% of normal samples")
    for level in QUANTILES:
        low, high = (int(each) for each in stats.binom.ppf([0.025, 0.975], len(values), level))
        rank = min(int(level * len(values)), len(values) - 1)
        wanted = float(stats.norm.ppf(level))
        interval = (float(values[low]), float(values[min(high, len(values) - 1)]))
        yield Row(RATIO, "quantile", at, wanted, float(values[rank]), *interval, wanted, n=len(values))


def _singular_rows(mechanism: Mechanism, gates_BN: Tensor, pairs_K2: Tensor, height: int, width: int) -> Iterator[Row]:
    """The share of pairs whose ratio is 0, infinite, negative or undefined, because a gate is not positive."""
    if mechanism.adds:
        yield not_applicable(RATIO, "singular share", "the noise is added: there is no ratio of gates")
        return
    positive_BN = gates_BN > 0
    singular_B = (~(positive_BN[:, pairs_K2[:, 0]] & positive_BN[:, pairs_K2[:, 1]])).double().mean(1)
    expected = _singular_share(mechanism, pairs_K2, height, width)
    yield mean_row(RATIO, "singular share", singular_B, expected, at="random pairs of sites")


def _singular_share(mechanism: Mechanism, pairs_K2: Tensor, height: int, width: int) -> float | None:
    if mechanism.positive:
        return 0.0
    share = mechanism.nonpositive_share(height, width)
    if mechanism.independent_sites and share is not None:
        return 1 - (1 - share) ** 2
    both_NN = both_kept_probability(mechanism, height, width)
    return None if both_NN is None else 1 - float(both_NN[pairs_K2[:, 0], pairs_K2[:, 1]].mean())


def _roughness_rows(mechanism: Mechanism, gates_BHW: Tensor) -> Iterator[Row]:
    _, height, width = gates_BHW.shape
    name = "per site"
    if mechanism.adds or bool((gates_BHW <= 0).any()):
        why = "the noise is added" if mechanism.adds else "a gate that is not positive has no log: the roughness is infinite"
        yield not_applicable(ROUGH, name, why)
        return
    log_BHW = gates_BHW.log()
    edges = (log_BHW.diff(dim=1).square().sum((1, 2)) + log_BHW.diff(dim=2).square().sum((1, 2))) / (height * width)
    whole = mechanism.roughness(height, width)
    expected = None if whole is None else whole / (height * width)
    yield mean_row(ROUGH, name, edges, expected, at=f"{height}x{width} map", x=float(height * width))


def _mean_rows(mechanism: Mechanism, gates_BHW: Tensor) -> Iterator[Row]:
    draws, height, width = gates_BHW.shape
    gates_BN = gates_BHW.flatten(1)
    moments, expected = mechanism.moments(height, width), mechanism.expected(height, width)
    heavy = heavy_tails(mechanism, height, width)
    yield _tested(_worst_site(mechanism, gates_BN, moments, width), heavy)
    pooled_B = gates_BN.mean(1)
    exact = mechanism.law.mean_one_per_sample
    spread = math.sqrt((expected.pooled_distortion or 0.0) / draws)
    note = "one in every sample" if exact else "one on average"
    yield _tested(mean_row(MEAN, "mean over sites", pooled_B, 1.0, spread, note=note), heavy)
    centred_BN = gates_BN - (gates_BN.mean(0) if moments is None else moments.mean_N)
    yield _tested(mean_row(MEAN, "gate variance", centred_BN.square().mean(1), expected.gate_variance), heavy)
    squares_B = (pooled_B - 1).square()
    yield _tested(mean_row(MEAN, "pooled distortion", squares_B, expected.pooled_distortion, at="constant map"), heavy)
    if not mechanism.adds:
        dropped_N = mechanism.drop_probability(height, width)
        rate = expected.drop_rate if dropped_N is None else float(dropped_N.mean())
        nominal = f"nominal p = {expected.nominal_drop_rate:g}" if expected.nominal_drop_rate else ""
        yield mean_row(MEAN, "drop rate", (gates_BN == 0).double().mean(1), rate, note=nominal)
    yield from _correlation_rows(mechanism, gates_BHW)


def heavy_tails(mechanism: Mechanism, height: int, width: int) -> bool:
    """Whether the gate is log-normal with gamma^2 Var psi > 1 somewhere: the mean and the variance of so few draws are then far
    from normal, so that neither has a test."""
    variance_N = mechanism.law.log_variance(height, width)
    return variance_N is not None and bool(variance_N.max() > 1 + 1e-9)


def _tested(made: Row, heavy: bool) -> Row:
    return untested(made, HEAVY) if heavy else made


def _worst_site(mechanism: Mechanism, gates_BN: Tensor, moments: Moments | None, width: int) -> Row:
    """The site whose mean gate deviates most, in standard errors, from theory (from one where theory has no closed form)."""
    draws, sites = gates_BN.shape
    measured_N, error_N = gates_BN.mean(0), gates_BN.std(0) / math.sqrt(draws)
    wanted_N = torch.ones(sites, dtype=torch.float64) if moments is None else moments.mean_N
    if moments is not None:
        error_N = torch.maximum(error_N, (moments.covariance_NN.diagonal() / draws).sqrt())
    z_N = (measured_N - wanted_N).abs() / error_N.clamp_min(1e-6)
    worst = int(z_N.argmax())
    measured, wanted, error = (float(each[worst]) for each in (measured_N, wanted_N, error_N))
    at = f"row {worst // width}, column {worst % width}: the most deviant of {sites}"
    made = row(MEAN, "mean at a site", measured, error, None if moments is None else wanted, draws, at=at)
    if moments is not None:
        return made._replace(p_value=min(1.0, sites * p_value(measured, wanted, error, draws)))
    large = sites > DENSE_COVARIANCE_SITES
    return made._replace(note="closed forms are left out on so large a map" if large else "no closed form")


def _correlation_rows(mechanism: Mechanism, gates_BHW: Tensor) -> Iterator[Row]:
    """The distance along the middle row at which the correlation with its middle site falls below 1/e: of the gate, and for an
    exponential gate of its log, beside that of the field."""
    _, height, width = gates_BHW.shape
    quantity = "correlation length"
    if width < 3:
        yield not_applicable(MEAN, quantity, "the map has fewer than three columns")
        return
    if not float(gates_BHW[:, height // 2].std(1).max()) > 0:
        yield not_applicable(MEAN, quantity, "the gate is the same at all sites")
        return
    line = torch.arange(height // 2 * width + width // 2, height // 2 * width + width)
    moments = mechanism.moments(height, width)
    theory_of_gate = None if moments is None else _length_of(moments.covariance_NN[line][:, line])
    line_BW = gates_BHW[:, height // 2, width // 2 :].numpy()
    yield _length_row("correlation length", line_BW, theory_of_gate, "sites")
    small = height * width <= DENSE_COVARIANCE_SITES
    if mechanism.positive and isinstance(mechanism, FieldNoise) and (line_BW > 0).all() and small:
        of_field = _length_of(mechanism.kernel.covariance(height, width)[line][:, line])
        wick = not mechanism.mean_one_per_sample
        kernels = "none" if of_field is None else f"{of_field:.2f}"
        note = "sites" if wick else f"sites; the kernel's is {kernels}, and log xi is gamma psi less what all sites share"
        yield _length_row("correlation length of log xi", np.log(line_BW), of_field if wick else None, note)


def _length_row(quantity: str, line_BW: np.ndarray, theory: float | None, note: str) -> Row:
    """The length with the standard error of a jackknife over GROUPS parts of the draws, which is tested with as many values."""
    parts = np.array_split(np.arange(len(line_BW)), GROUPS)
    without = np.array([_measured_length(np.delete(line_BW, part, axis=0)) for part in parts])
    error = float(np.sqrt((GROUPS - 1) / GROUPS * ((without - without.mean()) ** 2).sum()))
    made = row(MEAN, quantity, _measured_length(line_BW), error, theory, GROUPS, at="middle row", note=note)
    made = made._replace(n=len(line_BW))
    return made if error > 0 else untested(made, "all parts of the draws give the same length")


def _length_of(covariance_WW: Tensor) -> float | None:
    """The correlation length from the first site of a line on; None where that site never varies."""
    variance_W = covariance_WW.diagonal()
    if not float(variance_W[0]) > 0:
        return None
    correlation_W = covariance_WW[0] / (variance_W[0] * variance_W).sqrt().clamp_min(1e-30)
    return _length(correlation_W.numpy())


def _measured_length(line_BW: np.ndarray) -> float:
    """The correlation length of draws along a line of sites, from its first site on."""
    with np.errstate(invalid="ignore"):  # a site that never varies has no correlation
        return _length(np.corrcoef(line_BW.T)[0])


def _length(correlation: np.ndarray) -> float:
    """Where a correlation over distances 0, 1, 2, ... falls below 1/e, linearly interpolated; if it does not, the last one."""
    below = np.flatnonzero(~(correlation >= math.exp(-1)))
    if not len(below):
        return float(len(correlation) - 1)
    k = int(below[0])
    drop = correlation[k - 1] - correlation[k]
    return float(k - 1 + (correlation[k - 1] - math.exp(-1)) / drop) if k and np.isfinite(drop) else float(k)
