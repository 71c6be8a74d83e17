"""Paired bootstrap over images: intervals for the mean over cells of top1, ece, nll and brier, and for their differences.

One resample draws N images with replacement and uses them in every cell and in both runs: pairing, and the dependence between
cells that show the same image, are kept. The interval says how much the result depends on which images were drawn; it says
nothing about training seeds.

Legend: N images, K cells, R resamples, B bins, M linear metrics (means over images). Counts are how often an image was drawn.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import spearmanr

from gch_bench.metrics import NUM_BINS, bin_index, expected_calibration_error

Floats = NDArray[np.float64]

KEYS = ("top1", "ece", "nll", "brier")
_LINEAR = ("top1", "nll", "brier")
_BLOCK_BYTES = 100_000_000  # of each of the two large temporaries: counts (R, N) and gaps (N, cells x B)


class Interval(NamedTuple):
    """A number computed on all images, and the percentile interval of its bootstrap resamples."""

    estimate: float
    low: float
    high: float


class _Run(NamedTuple):
    linear_NM: Floats  # mean over cells of the atoms of each linear metric
    bin_KN: NDArray[np.int8]
    gap_KN: Floats  # confidence - correct
    ece: float


def paired_differences(
    first: Sequence[pd.DataFrame],
    second: Sequence[pd.DataFrame],
    num_resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, Interval]:
    """Intervals of second - first for top1, ece, nll and brier, each averaged over cells; positive means second is larger.

    first and second list the same cells in the same order, one DataFrame of N rows per cell with columns id, label, prediction,
    confidence, nll, brier; ids and labels must agree in every cell of both runs. Resample r is image row numbers
    ``rng.integers(0, N, size=N)``, the r-th draw of ``rng = numpy.random.default_rng(seed)``. Fractions, and nats for nll.

    Source: percentile interval, Efron & Tibshirani 1993, section 13.3, of the resampled differences. Limits: ECE is biased
    upward on a finite sample, and a resample adds sampling noise to every bin once more, so resampled ECEs lie above the
    estimate on average, most for few images and a well calibrated run. The bias largely cancels in a difference of runs of like
    calibration, and not otherwise: an interval of ece may then be shifted against the better calibrated run. A "basic" interval
    (2 estimate - quantiles) would reflect this shift, at the price of bounds outside the metric's range: percentiles are
    chosen for all four keys.

    ValueError: no cells, different numbers of cells, ids or labels that differ (names run and cell), repeated ids, nll or brier
    not finite, confidence outside [0, 1], num_resamples < 1, level outside (0, 1).
    """
    if len(first) != len(second):
        raise ValueError(f"first and second must list the same cells, got {len(first)} and {len(second)}")
    _check_images({"first": first, "second": second})
    one, two = _run(first), _run(second)
    return _intervals(two.linear_NM - one.linear_NM, [(1, two), (-1, one)], num_resamples, seed, level)


def interval(
    cells: Sequence[pd.DataFrame], num_resamples: int = 1000, seed: int = 0, level: float = 0.95
) -> dict[str, Interval]:
    """Intervals of top1, ece, nll and brier of one run, each averaged over cells; arguments, draws and errors as above.

    The interval of ece may lie above its estimate (see the limits in paired_differences): it is shifted upward, not symmetric.
    """
    _check_images({"cells": cells})
    run = _run(cells)
    return _intervals(run.linear_NM, [(1, run)], num_resamples, seed, level)


def _check_images(runs: dict[str, Sequence[pd.DataFrame]]) -> None:
    """Every cell of every run holds the same images in the same order, each once."""
    reference_name, reference_cells = next(iter(runs.items()))
    if not reference_cells:
        raise ValueError(f"{reference_name} must list at least one cell, got none")
    reference = reference_cells[0]
    if reference.empty or not reference["id"].is_unique:
        raise ValueError(f"{reference_name}[0] must hold unique ids, got {reference['id'].nunique()} in {len(reference)} rows")
    for column in ("id", "label"):
        expected_N = reference[column].to_numpy()
        for run_name, cells in runs.items():
            for index, cell in enumerate(cells):
                if not np.array_equal(cell[column].to_numpy(), expected_N):
                    raise ValueError(
                        f"{column} of every cell must equal those of {reference_name}[0], got others in {run_name}[{index}]"
                    )


def _run(cells: Sequence[pd.DataFrame]) -> _Run:
    linear_NM = np.zeros((len(cells[0]), len(_LINEAR)))
    bin_KN = np.empty((len(cells), len(cells[0])), dtype=np.int8)
    gap_KN = np.empty(bin_KN.shape)
    ece_K = np.empty(len(cells))
    for k, cell in enumerate(cells):
        confidence_N = cell["confidence"].to_numpy(dtype=np.float64)
        correct_N = cell["prediction"].to_numpy() == cell["label"].to_numpy()
        bin_KN[k] = bin_index(confidence_N)
        gap_KN[k] = confidence_N - correct_N
        ece_K[k] = expected_calibration_error(confidence_N, correct_N)
        linear_NM += np.stack([correct_N, cell["nll"].to_numpy(np.float64), cell["brier"].to_numpy(np.float64)], axis=1)
        if not np.isfinite(linear_NM).all():
            raise ValueError(f"nll and brier must be finite, got others in cell {k}")
    return _Run(linear_NM / len(cells), bin_KN, gap_KN, float(ece_K.mean()))


def _intervals(
    linear_NM: Floats, signed_runs: Sequence[tuple[int, _Run]], num_resamples: int, seed: int, level: float
) -> dict[str, Interval]:
    """Intervals of the means of linear_NM and of the signed sum of the runs' ECEs."""
    if num_resamples < 1:
        raise ValueError(f"num_resamples must be >= 1, got {num_resamples}")
    if not 0 < level < 1:
        raise ValueError(f"level must be in (0, 1), got {level}")
    num_images = len(linear_NM)
    rng = np.random.default_rng(seed)
    chunk = max(1, _BLOCK_BYTES // (8 * num_images))
    resampled: dict[str, list[Floats]] = {key: [] for key in KEYS}
    for start in range(0, num_resamples, chunk):
        counts_RN = _draw_counts(rng, min(chunk, num_resamples - start), num_images)
        for name, values_R in zip(_LINEAR, (counts_RN @ linear_NM / num_images).T, strict=True):
            resampled[name].append(values_R)
        resampled["ece"].append(
            sum((sign * _resampled_ece(counts_RN, run) for sign, run in signed_runs), np.zeros(len(counts_RN)))
        )
    estimate = dict(zip(_LINEAR, linear_NM.mean(axis=0), strict=True))
    estimate["ece"] = sum(sign * run.ece for sign, run in signed_runs)
    tails = ((1 - level) / 2, (1 + level) / 2)
    bounds = {key: np.quantile(np.concatenate(resampled[key]), tails) for key in KEYS}
    return {key: Interval(float(estimate[key]), float(bounds[key][0]), float(bounds[key][1])) for key in KEYS}


def _draw_counts(rng: np.random.Generator, num_resamples: int, num_images: int) -> Floats:
    """Multinomial counts (R, N) as floats for BLAS: N images drawn with replacement, per resample."""
    counts_RN = np.empty((num_resamples, num_images))
    for counts_N in counts_RN:
        counts_N[:] = np.bincount(rng.integers(0, num_images, size=num_images), minlength=num_images)
    return counts_RN


def _resampled_ece(counts_RN: Floats, run: _Run) -> Floats:
    """Mean over cells of ECE = sum_b |sum_{i in b} counts_i (confidence_i - correct_i)| / N, per resample (R,)."""
    num_cells, num_images = run.gap_KN.shape
    block = max(1, _BLOCK_BYTES // (8 * num_images * NUM_BINS))
    rows_N = np.arange(num_images)
    total_R = np.zeros(len(counts_RN))
    for start in range(0, num_cells, block):
        bin_kN, gap_kN = run.bin_KN[start : start + block], run.gap_KN[start : start + block]
        gap_NkB = np.zeros((num_images, len(gap_kN), NUM_BINS))
        for k in range(len(gap_kN)):
            gap_NkB[rows_N, k, bin_kN[k]] = gap_kN[k]
        total_R += np.abs(counts_RN @ gap_NkB.reshape(num_images, -1)).sum(axis=1)
    return total_R / (num_images * num_cells)


def rank_correlation(first: Floats, second: Floats, num_resamples: int = 1000, seed: int = 0, level: float = 0.95) -> Interval:
    """Spearman's rank correlation of two columns (n,) and its percentile interval over resampled rows; nan where undefined.

    Undefined below three rows or for a constant column. Resamples in which a column is constant are left out. Limits: with few
    rows the percentile interval is too narrow; the number of rows belongs beside it.

    ValueError: columns of different length.
    """
    if len(first) != len(second):
        raise ValueError(f"first and second must have the same length, got {len(first)} and {len(second)}")

    def correlation(rows: NDArray[np.int64]) -> float:
        one, two = first[rows], second[rows]
        if not (np.isfinite(one).all() and np.isfinite(two).all()) or np.ptp(one) == 0 or np.ptp(two) == 0:
            return np.nan
        return float(spearmanr(one, two).statistic)

    count = len(first)
    estimate = correlation(np.arange(count)) if count >= 3 else np.nan
    if np.isnan(estimate):
        return Interval(np.nan, np.nan, np.nan)
    rng = np.random.default_rng(seed)
    resampled = np.array([correlation(rng.integers(0, count, size=count)) for _ in range(num_resamples)])
    low, high = np.nanquantile(resampled, ((1 - level) / 2, (1 + level) / 2))
    return Interval(estimate, float(low), float(high))
