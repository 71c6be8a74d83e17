"""Paired bootstrap over images: intervals for the mean over cells of top1, ece, nll and brier, and for their differences.

One resample draws N images with replacement and uses the same draw in every cell and in both runs. This keeps the pairing of
the runs and the dependence between cells that show the same image. The interval says how much the result depends on which
images were drawn; it says nothing about training seeds.

Legend: N images, K cells, R resamples, B bins of the ECE, M linear metrics (those that are means over images). A count is how
often an image was drawn in a resample.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import spearmanr

from gch_bench.calibration import NUM_BINS, bin_index, expected_calibration_error

Floats = NDArray[np.float64]

KEYS = ("top1", "ece", "nll", "brier")
_LINEAR = ("top1", "nll", "brier")
_BLOCK_BYTES = 100_000_000  # most memory of each large temporary array: counts (R, N), gaps (N, cells x B)


class Interval(NamedTuple):
    """A number computed on all images, and the percentile interval of its bootstrap resamples."""

    estimate: float
    low: float
    high: float


class _Run(NamedTuple):
    linear_NM: Floats  # per image, the mean over cells of the values whose mean is the metric
    bin_KN: NDArray[np.int8]  # ECE bin of the confidence
    gap_KN: Floats  # confidence - correct
    ece: float  # mean over cells


def paired_differences(
    first: Sequence[pd.DataFrame],
    second: Sequence[pd.DataFrame],
    num_resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
    several_labels: bool = False,
) -> dict[str, Interval]:
    """Intervals of second - first for top1, ece, nll and brier, each averaged over cells; positive means second is larger.

    ``first`` and ``second`` list the same cells in the same order. Each cell is a DataFrame of N rows with the columns id,
    label, prediction, confidence, nll and brier; ids and labels must agree in every cell of both runs. With ``several_labels``
    only the ids must: an image is then scored against one of its labels, which depends on the prediction. Resample r consists
    of the rows ``rng.integers(0, N, size=N)``, the r-th draw of ``rng = numpy.random.default_rng(seed)``. top1, ece and brier
    are fractions, nll is in nats.

    Source: percentile interval of the resampled differences, Efron & Tibshirani 1993, section 13.3. Limits: ECE is biased
    upward on a finite sample, and a resample adds sampling noise to every bin once more. Resampled ECEs therefore lie above the
    estimate on average, most of all for few images and a well calibrated run. In the difference of two runs this bias largely
    cancels if both are calibrated alike; otherwise the interval of ece may be shifted against the better calibrated run. A
    "basic" interval (2 estimate - quantiles) would correct the shift, but its bounds may lie outside the metric's range, so
    percentile intervals are used for all four metrics.

    Raises:
        ValueError: if there are no cells, the runs have different numbers of cells, ids or labels differ (the message names run
            and cell), an id is repeated, nll or brier is not finite, a confidence is outside [0, 1], ``num_resamples`` < 1, or
            ``level`` is outside (0, 1).
    """
    if len(first) != len(second):
        raise ValueError(f"first and second must list the same cells, got {len(first)} and {len(second)}")
    _check_images({"first": first, "second": second}, ("id",) if several_labels else ("id", "label"))
    one, two = _run(first), _run(second)
    return _intervals(two.linear_NM - one.linear_NM, [(1, two), (-1, one)], num_resamples, seed, level)


def interval(
    cells: Sequence[pd.DataFrame], num_resamples: int = 1000, seed: int = 0, level: float = 0.95
) -> dict[str, Interval]:
    """Intervals of top1, ece, nll and brier of one run, each averaged over cells.

    Arguments, draws and errors are those of ``paired_differences``. The interval of ece is shifted upward and may even lie
    above its estimate, for the reason given there.
    """
    _check_images({"cells": cells}, ("id", "label"))
    run = _run(cells)
    return _intervals(run.linear_NM, [(1, run)], num_resamples, seed, level)


def _check_images(runs: dict[str, Sequence[pd.DataFrame]], columns: Sequence[str]) -> None:
    """Raises ValueError unless these columns are equal in every cell of every run, and every id occurs once."""
    reference_name, reference_cells = next(iter(runs.items()))
    if not reference_cells:
        raise ValueError(f"{reference_name} must list at least one cell, got none")
    reference = reference_cells[0]
    if reference.empty or not reference["id"].is_unique:
        raise ValueError(f"{reference_name}[0] must hold unique ids, got {reference['id'].nunique()} in {len(reference)} rows")
    for column in columns:
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
    """How often each image is drawn in each resample (R, N); floats, so that products with them use BLAS."""
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
    """Spearman's rank correlation of two columns (n,), and its percentile interval over resampled rows.

    All three numbers are nan if there are fewer than three rows, a column is constant, or a value is not finite. Resamples in
    which a column is constant are left out. With few rows the percentile interval is too narrow, so the number of rows should
    be shown beside it.

    Raises:
        ValueError: if the columns have different lengths.
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
