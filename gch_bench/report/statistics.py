"""Differences of mechanisms with intervals that cover: images and training seeds as the two sources of chance.

Images. One resample of the bootstrap draws N images with replacement and uses the same draw in every cell and every run, which
keeps the pairing of the runs and the dependence between cells that show the same image. A metric enters through its influence
(`Metric.influence`), values per image whose mean is the metric, so that all resamples of all metrics are one product of the
matrix of counts with a matrix of influences. The debiased squared calibration error also has a quadratic part, which dominates
where a network is well calibrated; it is resampled from the sums of its bins.

Seeds. Training seeds are a sample, too. With S of them the half width of the interval is the root of the sum of squares of
t(S-1) s / sqrt(S), where s is the standard deviation of the differences over seeds, and of 1.96 times the bootstrap's standard
deviation of their mean over the same images (a MOVER interval, Graybill & Wang 1980; Zou & Donner 2008). Percentiles of a
bootstrap that draws seeds and then images are not used: with few seeds their variance lacks the factor S/(S-1) and their tails
are too light, so that they cover far less than 95% (results/interval_coverage.md has the simulation).

Legend: N images, K cells, R resamples, B bins, M metrics with an influence, S seeds. A count is
how often an image was drawn in a resample.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import norm, permutation_test, t

from gch_bench.calibration import centred_gaps
from gch_bench.metrics import METRICS, CellAtoms, cell_atoms

Floats = NDArray[np.float64]

LEVEL = 0.95
POWER = 0.8  # the probability with which a difference of the size `Differences.detectable` would be found
QUADRATIC = "ce2_debiased"  # the metric with a quadratic part
_MAY_LACK = ("top5", "entropy")  # metrics, each the mean of its column, which `paired_differences` leaves out without it
_BLOCK_COLUMNS = 256  # columns of one matrix product


class Interval(NamedTuple):
    """A number computed on all images, and the bounds of its interval."""

    estimate: float
    low: float
    high: float


class Resampled(NamedTuple):
    """What the bootstrap makes of one run: how far each resample's value lies from the estimate on all images."""

    values: NDArray[np.float32]  # (R, K, M), or (R, M) averaged over cells
    quadratic: NDArray[np.float32]  # (R, K) or (R,): the quadratic part of QUADRATIC alone, which `values` includes

    def over(self, cells: Sequence[int]) -> "Resampled":
        """Averaged over these cells, given by their position."""
        return Resampled(self.values[:, list(cells)].mean(axis=1), self.quadratic[:, list(cells)].mean(axis=1))

    def less(self, other: "Resampled") -> "Resampled":
        """The deviations of the difference self - other, of the same images, cells and metrics."""
        return Resampled(self.values - other.values, self.quadratic - other.quadratic)


class Differences(NamedTuple):
    """The mean over seeds of second - first, with what belongs to it; all fields have the same shape."""

    estimate: Floats
    low: Floats
    high: Floats
    p: Floats  # two-sided: the smallest level at which the interval excludes 0
    detectable: Floats  # smallest true difference that this design finds with probability POWER, at the level of the interval


def metrics_with_interval(columns: Collection[str]) -> list[str]:
    """The keys of METRICS whose differences have an interval, among those that records with these columns allow."""
    return [
        key
        for key, metric in METRICS.items()
        if metric.influence is not None
        and (metric.column is None or metric.column in columns)
        and (key not in _MAY_LACK or key in columns)
    ]


def paired_differences(
    first: Sequence[pd.DataFrame],
    second: Sequence[pd.DataFrame],
    num_resamples: int = 1000,
    seed: int = 0,
    level: float = LEVEL,
    several_labels: bool = False,
) -> dict[str, Interval]:
    """Intervals of second - first for every metric that has a valid one, each averaged over cells; positive: second is larger.

    ``first`` and ``second`` list the same cells in the same order. Each cell is a DataFrame of N rows with the columns id,
    label, prediction, confidence, nll and brier (top5 and entropy may be left out, and so are their metrics then); ids and
    labels must agree in every cell of both runs. With ``several_labels`` only the ids must: an image is then scored against one
    of its labels, which depends on the prediction. The interval is about images alone; it says nothing about training seeds.
    It is estimate +- 1.96 (for a level of 95%) standard deviations of the resamples. The plain ECE and its kin are left out:
    no interval of their differences covers when one of the runs is well calibrated.

    Raises:
        ValueError: if there are no cells, the runs have different numbers of cells, ids or labels differ (the message names run
            and cell), an id is repeated, a column is not finite, a confidence is outside [0, 1], ``num_resamples`` < 2, or
            ``level`` is outside (0, 1).
    """
    if len(first) != len(second):
        raise ValueError(f"first and second must list the same cells, got {len(first)} and {len(second)}")
    check_images({"first": first, "second": second}, ("id",) if several_labels else ("id", "label"))
    keys = metrics_with_interval(list(first[0].columns.intersection(second[0].columns)))
    for name, cells in (("first", first), ("second", second)):
        for index, cell in enumerate(cells):
            for column in ("nll", "brier", *(key for key in keys if key in _MAY_LACK)):
                if not (finite_N := np.isfinite(cell[column].to_numpy(dtype=np.float64))).all():
                    got = cell[column].to_numpy()[~finite_N][0]
                    raise ValueError(f"{column} of every image must be finite, got {got} in {name}[{index}]")
    counts_RN = draw_counts(len(first[0]), num_resamples, seed)
    runs = [[atoms_of(cell) for cell in cells] for cells in (first, second)]
    one_M, two_M = (np.mean([[METRICS[key].formula(cell) for key in keys] for cell in cells], axis=0) for cells in runs)
    one, two = (resample(cells, counts_RN, keys).over(range(len(cells))) for cells in runs)
    found = combine((two_M - one_M)[None], image_variance([two.less(one)], keys), level)
    bounds = zip(found.estimate, found.low, found.high, strict=True)
    return {key: Interval(*map(float, each)) for key, each in zip(keys, bounds, strict=True)}


def atoms_of(cell: pd.DataFrame) -> CellAtoms:
    """The checked columns of one cell's records. ValueError: as `metrics.cell_atoms`, or a column is not finite."""
    absent = {name: 0.0 for name in _MAY_LACK if name not in cell}
    return cell_atoms(cell.assign(**absent), num_classes=int(max(cell["prediction"].max(), cell["label"].max())) + 1)


def check_images(runs: Mapping[str, Sequence[pd.DataFrame]], columns: Sequence[str]) -> None:
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


def draw_counts(num_images: int, num_resamples: int = 1000, seed: int = 0) -> NDArray[np.float32]:
    """How often each image is drawn in each resample, (R, N). Resample r consists of the rows ``rng.integers(0, N, size=N)``,
    the r-th draw of ``rng = numpy.random.default_rng(seed)``. Floats, so that products with them use BLAS."""
    if num_resamples < 2:
        raise ValueError(f"num_resamples must be >= 2, got {num_resamples}")
    rng = np.random.default_rng(seed)
    counts_RN = np.empty((num_resamples, num_images), dtype=np.float32)
    for counts_N in counts_RN:
        counts_N[:] = np.bincount(rng.integers(0, num_images, size=num_images), minlength=num_images)
    return counts_RN


def resample(
    cells: Sequence[CellAtoms],
    counts_RN: NDArray[np.float32],
    keys: Sequence[str],
    more_NKM: Sequence[Floats] | None = None,
) -> Resampled:
    """The resampled deviations of one run's metrics `keys` in all cells.

    Args:
        more_NKM: for each cell (N, M), further influence that the metrics have through something that was estimated on the same
            images, such as a temperature; its mean over images must be 0.
    """
    num_resamples, num_images = counts_RN.shape
    values_RKM = np.empty((num_resamples, len(cells), len(keys)), dtype=np.float32)
    quadratic_RK = np.zeros((num_resamples, len(cells)), dtype=np.float32)
    has_quadratic = QUADRATIC in keys
    bins = [centred_gaps(cell.confidence, cell.correct) for cell in cells] if has_quadratic else []
    num_bins = len(bins[0].weight) if bins else 0
    block = max(1, _BLOCK_COLUMNS // (len(keys) + num_bins))
    for start in range(0, len(cells), block):
        part = range(start, min(start + block, len(cells)))
        columns_NkX = np.zeros((num_images, len(part), len(keys) + num_bins), dtype=np.float32)
        for at, k in enumerate(part):
            for m, key in enumerate(keys):
                influence = METRICS[key].influence
                assert influence is not None
                values_N = influence(cells[k]) + (0.0 if more_NKM is None else more_NKM[k][:, m])
                columns_NkX[:, at, m] = (values_N - values_N.mean()) / num_images
            if has_quadratic:
                columns_NkX[np.arange(num_images), at, len(keys) + bins[k].bin] = bins[k].centred
        product_RkX = (counts_RN @ columns_NkX.reshape(num_images, -1)).reshape(num_resamples, len(part), -1)
        values_RKM[:, part] = product_RkX[..., : len(keys)]
        for at, k in enumerate(part):
            if has_quadratic:
                weight_B, centred_N = bins[k].weight, bins[k].centred
                expected = (weight_B * np.bincount(bins[k].bin, centred_N**2, minlength=num_bins)).sum()
                quadratic_RK[:, k] = product_RkX[:, at, len(keys) :] ** 2 @ weight_B - expected
    if has_quadratic:
        values_RKM[..., list(keys).index(QUADRATIC)] += quadratic_RK
    return Resampled(values_RKM, quadratic_RK)


def image_variance(runs: Sequence[Resampled], keys: Sequence[str]) -> Floats:
    """The variance over the draw of images of a mean over seeds, for each metric (M,).

    Args:
        runs: one for each seed: the resampled deviations averaged over cells (`Resampled.over`), for a difference those of one
            run less those of the other (`Resampled.less`).
    """
    variance_M = np.mean([run.values for run in runs], axis=0).var(axis=0, dtype=np.float64)
    if QUADRATIC in keys:
        quadratic, at = np.mean([run.quadratic for run in runs], axis=0).var(dtype=np.float64), list(keys).index(QUADRATIC)
        # The linear part uses measured gaps for true ones, whose noise adds twice the variance of the quadratic part.
        variance_M[at] = max(variance_M[at] - 2 * quadratic, quadratic)
    return variance_M


def combine(estimate_SX: Floats, images_X: Floats, level: float = LEVEL) -> Differences:
    """Differences from the estimates of S seeds and the variance of their mean over images; X stands for any further axes.

    Raises:
        ValueError: `level` is outside (0, 1).
    """
    if not 0 < level < 1:
        raise ValueError(f"level must be in (0, 1), got {level}")
    seeds = len(estimate_SX)
    seeds_X = estimate_SX.var(axis=0, ddof=1) / seeds if seeds > 1 else np.zeros_like(images_X)
    estimate_X = estimate_SX.mean(axis=0)

    def half_width(tail: float | Floats) -> Floats:
        """Half the width of the interval whose upper tail has this probability."""
        width_X = norm.isf(tail) * np.sqrt(images_X)
        return np.asarray(np.hypot(width_X, t.isf(tail, seeds - 1) * np.sqrt(seeds_X)) if seeds > 1 else width_X)

    width_X = half_width((1 - level) / 2)
    # The p value is the level at which the half width equals the estimate: bisection on its logarithm.
    low_X, high_X = np.full(estimate_X.shape, np.log(1e-100)), np.zeros(estimate_X.shape)
    for _ in range(60):
        middle_X = (low_X + high_X) / 2
        inside_X = half_width(np.exp(middle_X) / 2) >= np.abs(estimate_X)
        low_X, high_X = np.where(inside_X, middle_X, low_X), np.where(inside_X, high_X, middle_X)
    detectable_X = width_X + half_width(1 - POWER)
    p_X = np.where(np.isnan(images_X), np.nan, np.where(estimate_X == 0, 1.0, np.exp(low_X)))
    return Differences(estimate_X, estimate_X - width_X, estimate_X + width_X, p_X, detectable_X)


def holm(p_X: Floats) -> Floats:
    """The p values of a family of tests after Holm's correction (Holm 1979); a NaN is no test and stays NaN.

    Its numbers are those of statsmodels' multipletests, which takes 0.2 s a call, because it collects garbage.
    """
    order = np.argsort(p_X)  # NaN last
    tests = int(np.isfinite(p_X).sum())
    adjusted = np.full(p_X.shape, np.nan)
    factors = tests - np.arange(tests)
    adjusted[order[:tests]] = np.minimum(np.maximum.accumulate(p_X[order[:tests]] * factors), 1.0)
    return adjusted


def sign_flip(better_SX: Floats) -> Floats:
    """Exact one-sided p of the sign-flip test over S seeds that the mean of `better_SX` is above 0; its floor is 2^-S.

    Under the null hypothesis each seed's value is as likely to be positive as negative. NaN for one seed. With more than 13
    seeds, 9,999 random sign patterns. Source: Efron 1969, Student's t-test under symmetry conditions.
    """
    if len(better_SX) < 2:
        return np.full(better_SX.shape[1:], np.nan)
    result = permutation_test(
        (better_SX,),
        lambda values, axis: values.mean(axis=axis),
        vectorized=True,
        permutation_type="samples",
        alternative="greater",
        axis=0,
        rng=0,
    )
    return np.asarray(result.pvalue, dtype=np.float64)
