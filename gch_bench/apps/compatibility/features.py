"""The rows on real activations: log-ratios, order of sites, distortion of the map, of its mean and of the logits.

Shapes: T noisy passes, M images, C channels, N = H*W sites, K pairs of sites of an image, each in one channel.
"""

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from gch_bench.apps.compatibility.bench import Bench
from gch_bench.apps.compatibility.gates import HEAVY, OVERFLOW, RATIO, heavy_tails
from gch_bench.apps.compatibility.measure import (
    RANK_IMAGES,
    TINY,
    Measured,
    Pairs,
    coherence_and_positivity,
    effective_rank,
)
from gch_bench.noise import theory
from gch_bench.noise.injection import Additive
from gch_bench.noise.mechanism import Mechanism
from gch_bench.noise.moments import distortion
from gch_bench.results.compatibility import Row, mean_row, not_applicable, row, share_row, untested

RANKING, DISTORTION, NORM = "ranking", "distortion", "norm"
INSIDE = "this noise acts inside the stage, not on its output"
STANDARD = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, math.inf)  # edges of bins of the margin in standard deviations
LOG = (0.0, 0.1, 0.25, 0.5, 1.0, 2.0, math.inf)  # edges of bins of the log-margin
FEWEST = 200  # pairs of a bin that is shown
CLEAR = 1.0  # log-margin from which the order of two values is called clear: one is e times the other


class Flips(NamedTuple):
    """What theory says of the order of pairs: the probability that it is lost, and the margin that it depends on; (M, K)."""

    probability: Tensor | None
    standard: Tensor | None  # the margin in units of the noise's standard deviation; None where it depends on no margin


def flips(mechanism: Mechanism, bench: Bench, pairs: Pairs) -> Flips:
    height, width = bench.map_MCHW.shape[2:]
    law = mechanism.log_ratio(height, width)
    if law is not None:
        mean, sd = (matrix[pairs.first, pairs.second] for matrix in law)
        probability = theory.flip_probability(pairs.margin, sd.clamp_min(TINY), mean)
        return Flips(probability, (pairs.margin + mean) / sd.clamp_min(1e-9))
    moments = mechanism.moments(height, width)
    if mechanism.law.gaussian and moments is not None:
        one, two = pairs.larger, pairs.smaller
        if isinstance(mechanism, Additive):  # what the added noise of a pair's channel is multiplied by, twice
            units_MC = mechanism.units(bench.map_MCHW).double().flatten(1).expand(bench.map_MCHW.shape[:2])
            one = two = units_MC.gather(1, pairs.channel)
        covariance = moments.covariance_NN
        variance = one**2 * covariance[pairs.first, pairs.first] + two**2 * covariance[pairs.second, pairs.second]
        sd = (variance - 2 * one * two * covariance[pairs.first, pairs.second]).clamp_min(TINY).sqrt()
        standard = (pairs.larger - pairs.smaller) / sd
        return Flips(torch.special.ndtr(-standard), standard)
    dropped_N = mechanism.drop_probability(height, width)
    return Flips(None if dropped_N is None else dropped_N[pairs.first], None)


def feature_rows(mechanism: Mechanism, bench: Bench, pairs: Pairs, measured: Measured) -> Iterator[Row]:
    """The rows on log-ratios, order and distortion of real activations."""
    if measured.map is None:
        yield from (not_applicable(section, "features", INSIDE) for section in (RATIO, RANKING, DISTORTION))
    else:
        yield _ratio_row(mechanism, bench, pairs, measured)
        yield from _order_rows(flips(mechanism, bench, pairs), pairs, measured)
        yield from _distortion_rows(mechanism, bench, measured)
    yield from _decision_rows(bench, measured)


def _ratio_row(mechanism: Mechanism, bench: Bench, pairs: Pairs, measured: Measured) -> Row:
    """The squared change of log-ratios over its expectation, averaged over pairs, which must be one."""
    quantity = "variance on features / theory"
    law = mechanism.log_ratio(*bench.map_MCHW.shape[2:])
    if law is None:
        return not_applicable(RATIO, quantity, "the log-ratio has no Gaussian law here")
    assert measured.ratio is not None
    mean, sd = (matrix[pairs.first, pairs.second].numpy() for matrix in law)
    used = pairs.valid.numpy() & (sd > 1e-9)
    if not used.any():
        return not_applicable(RATIO, quantity, "no pair of positive values at sites whose gates differ")
    if np.isnan(measured.ratio[:, used]).any():
        return not_applicable(RATIO, quantity, OVERFLOW)
    standard = np.where(used, (measured.ratio - mean) / np.where(used, sd, 1.0), np.nan) ** 2
    by_image = np.nanmean(standard[:, used.any(1)], axis=2).flatten()
    excluded = 1 - float(pairs.valid.double().mean())
    made = mean_row(RATIO, quantity, by_image, 1.0, at="pairs of positive values of a channel")
    return made._replace(excluded=excluded, note="excluded: pairs of equal values, or with one that is not positive")


def _order_rows(expected: Flips, pairs: Pairs, measured: Measured) -> Iterator[Row]:
    """Share of pairs whose order is lost, in bins of the margin; the interval is over image and pass, which share a gate."""
    valid = pairs.valid
    excluded = 1 - float(valid.double().mean())
    if not bool(valid.any()):
        yield not_applicable(RANKING, "order lost", "no pair of positive values")
        return
    standard = expected.standard is not None
    margin = expected.standard if expected.standard is not None else pairs.margin
    edges, unit = (STANDARD, "margin / s") if standard else (LOG, "log-margin")
    for low, high in pairwise(edges):
        inside = valid & (margin >= low) & (margin < high)
        if int(inside.sum()) >= FEWEST:
            made = _share(inside, expected.probability, measured)
            name = f"{unit} {low:g} to {high:g}" if high < math.inf else f"{unit} from {low:g}"
            yield made._replace(quantity="order lost", at=name, x=float(margin[inside].mean()), excluded=excluded)
    clear = valid & (pairs.margin >= CLEAR)
    if bool(clear.any()):
        made = _share(clear, expected.probability, measured)
        yield made._replace(quantity="clear order lost", at=f"log-margin from {CLEAR:g}", excluded=excluded)


def _share(inside: Tensor, probability: Tensor | None, measured: Measured) -> Row:
    """The share of the pairs `inside` (M, K) whose order is lost, over all passes.

    Where theory knows the probabilities, the standard error comes from the differences of images and passes, which share a
    gate; it is at least that of independent pairs. Else it comes from the differences between images.
    """
    assert measured.destroyed is not None
    chosen = inside.numpy()
    counts = (measured.destroyed & chosen).sum(2)  # (T, M)
    passes, sizes = len(counts), chosen.sum(1)
    images, total = int((sizes > 0).sum()), int(sizes.sum()) * passes
    share = float(counts.sum() / total)
    if probability is None:
        squares = float(((counts.sum(0) - share * passes * sizes) ** 2).sum())
        return _clipped(row(RANKING, "", share, _root(squares, images) / total, None, images))
    p = np.where(chosen, probability.numpy(), 0.0)
    squares = float(((counts - p.sum(1)) ** 2).sum())
    error = max(_root(squares, images * passes), math.sqrt(passes * float((p * (1 - p)).sum()))) / total
    return _clipped(row(RANKING, "", share, error, float(p.sum() * passes / total), images * passes))


def _root(squares: float, clusters: int) -> float:
    """The standard error of a sum over clusters with this sum of squared differences."""
    return math.sqrt(squares * clusters / max(clusters - 1, 1))


def _clipped(made: Row) -> Row:
    return made._replace(low=max(made.low, 0.0), high=min(made.high, 1.0))


def _distortion_rows(mechanism: Mechanism, bench: Bench, measured: Measured) -> Iterator[Row]:
    """Relative squared distortions; where theory knows them, their differences from it are averaged over images and passes."""
    assert measured.map is not None
    assert measured.pooled is not None
    assert measured.contrast is not None
    size = bench.map_MCHW.shape[2:]
    moments, heavy = mechanism.moments(*size), heavy_tails(mechanism, *size)
    exact = None
    if moments is not None:
        exact = [distortion(mechanism, moments, each.flatten(1).T) for each in bench.map_MCHW]
    for name, title, values in (
        ("whole", "squared distortion of the map", measured.map),
        ("pooled", "squared distortion of the pooled feature", measured.pooled),
        ("contrast", "amplification of the contrast between sites", measured.contrast),
    ):
        if not np.isfinite(values).all():
            yield not_applicable(DISTORTION, title, "the sites of some images do not differ")
            continue
        made = mean_row(DISTORTION, title, values.mean(0), note="interval: over images")
        if exact is not None:
            wanted = np.array([getattr(each, name) for each in exact])
            error = float((values - wanted).std(ddof=1) / math.sqrt(values.size))
            note = "interval: over the noise on these images"
            made = row(DISTORTION, title, float(values.mean()), error, float(wanted.mean()), values.size, note=note)
        yield untested(made, HEAVY) if heavy and exact is not None else made
    assert measured.cosine is not None
    yield mean_row(DISTORTION, "cosine of pooled features", measured.cosine.mean(0), at="mean over passes")
    assert measured.rank is not None
    before = effective_rank(bench.map_MCHW[:RANK_IMAGES]).numpy()
    yield mean_row(DISTORTION, "effective rank", before, at="before")
    yield mean_row(DISTORTION, "effective rank", measured.rank.mean(0), at="after")
    coherence, positivity = coherence_and_positivity(bench.map_MCHW)
    of_images = {
        "distortion of the map": measured.map.mean(0),
        "distortion of the pooled feature": measured.pooled.mean(0),
        "distortion of the logits": measured.logits.mean(0),
        "cosine of pooled features": measured.cosine.mean(0),
    }
    for name, values in of_images.items():
        yield _rank_correlation(f"{name} and coherence", values, coherence)
        yield _rank_correlation(f"{name} and positivity", values, positivity)


def _rank_correlation(quantity: str, one: np.ndarray, two: np.ndarray) -> Row:
    """Spearman's rank correlation over images, with Fisher's interval (standard error 1.03 / sqrt(n - 3))."""
    if np.ptp(one) == 0 or np.ptp(two) == 0:
        return not_applicable(DISTORTION, quantity, "one of the two is the same for all images")
    found = float(stats.spearmanr(one, two).statistic)
    z, half = math.atanh(min(max(found, -0.9999), 0.9999)), 1.96 * 1.03 / math.sqrt(len(one) - 3)
    note = "rank correlation over images; 0 without relation"
    return Row(DISTORTION, quantity, "", math.nan, found, math.tanh(z - half), math.tanh(z + half), n=len(one), note=note)


def _decision_rows(bench: Bench, measured: Measured) -> Iterator[Row]:
    """Distortion of the logits, and flips of the top class in five equal groups of images by their logit margin."""
    yield mean_row(DISTORTION, "squared distortion of the logits", measured.logits.mean(0))
    top = bench.logits_MK.topk(2, dim=1).values
    margin = (top[:, 0] - top[:, 1]).numpy()
    share = measured.flipped.mean(0)
    for number, group in enumerate(np.array_split(np.argsort(margin), 5)):
        name = f"fifth {number + 1} of the images by logit margin"
        yield share_row(RANKING, "top class flips", share[group], at=name, x=float(margin[group].mean()))
    yield share_row(RANKING, "top class flips", share, at="all images")
