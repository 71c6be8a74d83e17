"""Accuracy, NLL, Brier score, calibration errors, AURC and mCE, computed with NumPy alone from per-sample atoms.

An atom is what one image contributes, such as its confidence. A cell is the evaluation of all images, clean or with one
corruption at one severity. Every number is computed once from all atoms of a cell, never averaged over batches. Rates, errors
and confidences are fractions in [0, 1]; NLL and entropy are in nats; the Brier score is in [0, 2]. Bad input raises a
ValueError with a message of one line.
Legend: N samples, C classes, B bins.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gch_bench.suites import suite_of

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]

CLEAN = "clean"  # the name that the clean cell has in the place of a corruption's
CLEAN_TIMM = "clean_timm"  # the same for clean images in the preparation that timm validates the network with
EXTRA = ("speckle_noise", "gaussian_blur", "spatter", "saturate")  # the corruptions of ImageNet-C besides its 15
NUM_BINS = 15


class SampleAtoms(NamedTuple):
    """What one image contributes to every metric; each field is (N,)."""

    prediction: Ints
    confidence: Floats
    nll: Floats
    brier: Floats
    top5: Bools
    entropy: Floats


class CalibrationBins(NamedTuple):
    """The bins of a reliability diagram; each field is (B,). The means of an empty bin are NaN."""

    count: Ints  # type: ignore[assignment]  # shadows tuple.count, which nobody needs here
    mean_confidence: Floats
    accuracy: Floats


def sample_atoms(log_probabilities: ArrayLike, labels: ArrayLike) -> SampleAtoms:
    """Atoms from log-probabilities (N, C) in nats (log-softmax in float32 or better, best float64) and labels (N,) in 0..C-1.

    prediction is the arg max (ties: the lowest class); confidence its probability; nll = -log p_label exactly, except that
    log 0 = -inf counts as the log of the smallest positive normal float64 (nll 708.4), so that it is finite; brier =
    sum_c (p_c - [c = label])^2 in [0, 2] (Brier 1950); top5: the label is among the min(5, C) largest, ties in class
    order; entropy = -sum_c p_c log p_c in nats. ValueError: wrong shapes, labels outside 0..C-1, NaN, rows that are not
    log-probabilities (probabilities must sum to 1 within 1e-3: logits are refused).
    """
    logp_NC, label_N = _checked_predictions(log_probabilities, labels)
    rows_N = np.arange(len(label_N))
    p_NC = np.exp(logp_NC)
    prediction_N = logp_NC.argmax(axis=1).astype(np.int64)
    confidence_N = np.minimum(p_NC[rows_N, prediction_N], 1.0)
    label_logp_N = logp_NC[rows_N, label_N]
    nll_N = np.maximum(-np.where(np.isneginf(label_logp_N), np.log(np.finfo(np.float64).tiny), label_logp_N), 0.0)
    top5_N = _label_rank(logp_NC, label_N) < 5
    entropy_N = -np.einsum("nc,nc->n", p_NC, np.maximum(logp_NC, np.finfo(np.float64).min))  # 0 log 0 = 0, not 0 * inf
    p_NC[rows_N, label_N] -= 1.0  # squares of differences, not 1 - 2p + sum p^2, which cancels when p is near 1
    brier_N = np.einsum("nc,nc->n", p_NC, p_NC)
    return SampleAtoms(prediction_N, confidence_N, nll_N, brier_N, top5_N, np.maximum(entropy_N, 0.0))


def scored_labels(log_probabilities: ArrayLike, label_sets: Sequence[Sequence[int]]) -> Ints:
    """The label (N,) against which each image is scored, where an image may have several: the most probable one of its labels.

    log_probabilities is (N, C) in nats; label_sets holds N non-empty sequences of classes in 0..C-1. Among equally probable
    labels the lowest class is taken, as in the prediction. With these labels top-1 is the usual multi-label accuracy of ReaL
    (Beyer et al. 2020): the share of images whose prediction is one of their labels. ValueError: an empty set, a class outside
    0..C-1, or another number of sets than rows.
    """
    logp_NC = np.asarray(log_probabilities, dtype=np.float64)
    if logp_NC.ndim != 2 or len(logp_NC) != len(label_sets):
        raise ValueError(f"log_probabilities must be ({len(label_sets)}, C), a row per label set, got shape {logp_NC.shape}")
    labels = []
    for logp_C, label_set in zip(logp_NC, label_sets, strict=True):
        classes = sorted(label_set)
        if not classes or classes[0] < 0 or classes[-1] >= len(logp_C):
            raise ValueError(f"label_sets must hold classes in 0..{len(logp_C) - 1}, at least one each, got {classes}")
        labels.append(classes[int(logp_C[classes].argmax())])
    return np.array(labels, dtype=np.int64)


def top_k_accuracy(log_probabilities: ArrayLike, labels: ArrayLike, k: int) -> float:
    """Fraction of labels (N,) among the k largest of log_probabilities (N, C), ties in class order; k >= C gives 1."""
    if k < 1:
        raise ValueError(f"k must be >= 1, got {k}")
    return float((_label_rank(*_checked_predictions(log_probabilities, labels)) < k).mean())


def bin_index(confidence: ArrayLike, num_bins: int = NUM_BINS) -> Ints:
    """The index (N,) of the equal-width bin (lo, hi] of each confidence (N,). 0 is in the first bin, 1 in the last."""
    if num_bins < 1:
        raise ValueError(f"num_bins must be >= 1, got {num_bins}")
    edges = np.linspace(0, 1, num_bins + 1)
    return np.searchsorted(edges[1:-1], _checked_confidence(confidence), side="left").astype(np.int64)


def calibration_bins(confidence: ArrayLike, correct: ArrayLike, num_bins: int = NUM_BINS) -> CalibrationBins:
    """Count, mean confidence and accuracy of each equal-width bin (see bin_index). An empty bin has count 0 and means NaN."""
    confidence_N, correct_N = _checked(confidence, correct)
    index_N = bin_index(confidence_N, num_bins)
    count = np.bincount(index_N, minlength=num_bins)
    divisor = np.where(count > 0, count, np.nan)
    means = [np.bincount(index_N, weights=values, minlength=num_bins) / divisor for values in (confidence_N, correct_N)]
    return CalibrationBins(count, *means)


def expected_calibration_error(confidence: ArrayLike, correct: ArrayLike, num_bins: int = NUM_BINS) -> float:
    """ECE = sum_b (n_b / N) |accuracy_b - mean confidence_b| over equal-width bins (lo, hi]; empty bins contribute 0.

    Source: Naeini et al. 2015; Guo et al. 2017, eq. 3. confidence (N,) in [0, 1], correct (N,) bool; result in [0, 1].
    """
    bins = calibration_bins(confidence, correct, num_bins)
    return float(np.nansum(bins.count * np.abs(bins.accuracy - bins.mean_confidence)) / bins.count.sum())


def maximum_calibration_error(confidence: ArrayLike, correct: ArrayLike, num_bins: int = NUM_BINS) -> float:
    """MCE = max_b |accuracy_b - mean confidence_b| over the non-empty equal-width bins (Guo et al. 2017, eq. 5)."""
    bins = calibration_bins(confidence, correct, num_bins)
    return float(np.nanmax(np.abs(bins.accuracy - bins.mean_confidence)))


def equal_mass_calibration_error(confidence: ArrayLike, correct: ArrayLike, num_bins: int = NUM_BINS) -> float:
    """ECE over bins of equal counts (Nixon et al. 2019, adaptive calibration error, for the top label, weighted by n_b / N).

    Sorted confidences are cut into groups as by ``np.array_split``, whose sizes differ by at most one. The last confidence of a
    group is the upper edge of its bin (lo, hi]. Equal confidences thus share a bin, the lowest that any of them falls in, so
    the result does not depend on the order of the input, and the counts differ by more than one only where ties force it.
    """
    confidence_N, correct_N = _checked(confidence, correct)
    if num_bins < 1:
        raise ValueError(f"num_bins must be >= 1, got {num_bins}")
    size, larger = divmod(len(confidence_N), num_bins)
    ends = np.cumsum([size + (b < larger) for b in range(num_bins - 1)], dtype=np.int64)
    edges = np.sort(confidence_N)[ends - 1]
    index_N = np.searchsorted(edges, confidence_N, side="left")
    return float(np.abs(np.bincount(index_N, weights=confidence_N - correct_N)).sum() / len(confidence_N))


def top_label_calibration_error(
    confidence: ArrayLike, correct: ArrayLike, prediction: ArrayLike, num_classes: int, num_bins: int = NUM_BINS
) -> float:
    """Top-label ECE: mean over the classes predicted at least once of the ECE among samples predicted as that class.

    Conditioning on the predicted class is the top-label calibration of Gupta & Ramdas 2022 (Top-label calibration and
    multiclass-to-binary reductions), whose TL-ECE weights classes by frequency. The unweighted mean (rare predictions count as
    much as common ones) and equal-width bins are this project's definition. prediction (N,) is in 0..num_classes-1.
    """
    confidence_N, correct_N = _checked(confidence, correct)
    prediction_N = _checked_classes("prediction", prediction, len(confidence_N), num_classes)
    joint_N = prediction_N * num_bins + bin_index(confidence_N, num_bins)
    gap = np.abs(np.bincount(joint_N, weights=confidence_N - correct_N, minlength=num_classes * num_bins))
    count = np.bincount(prediction_N, minlength=num_classes)
    return float((gap.reshape(num_classes, num_bins).sum(axis=1)[count > 0] / count[count > 0]).mean())


def area_under_risk_coverage(confidence: ArrayLike, correct: ArrayLike) -> float:
    """AURC = (1/N) sum_k risk_k, with risk_k the error rate of the k most confident samples (Geifman & El-Yaniv 2017).

    Samples of equal confidence have no order; each counts with the error rate of all samples of its confidence, which makes the
    result the expectation over all their orders. The result is in [0, 1], lower is better.
    """
    confidence_N, correct_N = _checked(confidence, correct)
    _, block_N, count = np.unique(-confidence_N, return_inverse=True, return_counts=True)
    error_N = np.repeat(np.bincount(block_N, weights=~correct_N) / count, count)
    return float((np.cumsum(error_N) / np.arange(1, len(error_N) + 1)).mean())


classwise_calibration_error = top_label_calibration_error  # the former name, still imported by users


class CellAtoms(NamedTuple):
    """The checked columns of one cell's records, each (N,), and the numbers of classes and bins for its metrics."""

    label: Ints
    prediction: Ints
    confidence: Floats
    correct: Bools
    nll: Floats
    brier: Floats
    top5: Floats
    entropy: Floats
    num_classes: int
    num_bins: int


class Metric(NamedTuple):
    """One number of a cell: a column of summary.csv, and where else and how it is shown."""

    title: str  # its name in papers
    formula: Callable[[CellAtoms], float]
    percent: bool = True  # True: the number is a fraction and is shown in percent
    better: str | None = "lower"  # which values are better: "higher", "lower", or None where neither is better by itself
    shown: bool = False  # True: also shown in the console's tables, the logger and the report; False: only in summary.csv

    @property
    def header(self) -> str:
        """The title with its unit, for the heading of a column or row."""
        return f"{self.title} %" if self.percent else self.title

    def text(self, value: float, sign: str = "") -> str:
        """A value as tables show it: percent with two decimals, others with four. `sign="+"` also shows the sign +, for a
        difference."""
        return f"{100 * value:{sign}.2f}" if self.percent else f"{value:{sign}.4f}"

    def interval(self, difference: tuple[float, float, float]) -> str:
        """A difference and the bounds of its interval as tables show them."""
        estimate, low, high = (self.text(value, "+") for value in difference)
        return f"{estimate} [{low}, {high}]"


_TOP_LABEL = Metric(
    "top-label ECE",
    lambda a: top_label_calibration_error(a.confidence, a.correct, a.prediction, a.num_classes, a.num_bins),
)
# The one list of metrics, which summary.csv, console, logger, report and comparison read. Its keys are columns of summary.csv.
METRICS: dict[str, Metric] = {
    "top1": Metric("top-1", lambda a: a.correct.mean(), better="higher", shown=True),
    "top5": Metric("top-5", lambda a: a.top5.mean(), better="higher"),
    "nll": Metric("NLL", lambda a: a.nll.mean(), percent=False, shown=True),
    "brier": Metric("Brier", lambda a: a.brier.mean(), percent=False),
    "ece": Metric("ECE", lambda a: expected_calibration_error(a.confidence, a.correct, a.num_bins), shown=True),
    "ece_equal_mass": Metric(
        "ECE, equal-mass bins", lambda a: equal_mass_calibration_error(a.confidence, a.correct, a.num_bins)
    ),
    "ece_top_label": _TOP_LABEL,
    # The former name, kept for programs that read this column of summary.csv.
    "ece_classwise": _TOP_LABEL._replace(title="top-label ECE (former name)"),
    "max_ce": Metric("maximum CE", lambda a: maximum_calibration_error(a.confidence, a.correct, a.num_bins)),
    "aurc": Metric("AURC", lambda a: area_under_risk_coverage(a.confidence, a.correct)),
    "entropy": Metric("entropy", lambda a: a.entropy.mean(), percent=False, better=None),
    "confidence": Metric("confidence", lambda a: a.confidence.mean(), better=None),
}
SHOWN = {key: metric for key, metric in METRICS.items() if metric.shown}


def summarize(atoms: Any, num_classes: int, num_bins: int = NUM_BINS) -> dict[str, float]:
    """The summary row of one cell: n, the number of samples, and then every metric of METRICS, in order.

    Args:
        atoms: a mapping of arrays or a DataFrame with the columns label, prediction, confidence, nll, brier, top5 and entropy,
            each (N,).

    Raises:
        ValueError: a column of another length, or with values out of its range.
    """
    confidence = _checked_confidence(atoms["confidence"])
    label = _checked_classes("label", atoms["label"], len(confidence), num_classes)
    prediction = _checked_classes("prediction", atoms["prediction"], len(confidence), num_classes)
    means = {
        name: _vector(name, atoms[name], len(confidence)).astype(np.float64) for name in ("nll", "brier", "top5", "entropy")
    }
    checked = CellAtoms(label, prediction, confidence, prediction == label, **means, num_classes=num_classes, num_bins=num_bins)
    return {"n": len(confidence), **{key: float(metric.formula(checked)) for key, metric in METRICS.items()}}


def averaged(names: Iterable[str]) -> list[str]:
    """The names over which a mean is taken, in their order: those of the 15 corruptions if there are any, else those of the
    first suite (see suites.py), else the extra ones.

    The 4 extra corruptions are meant for tuning (Hendrycks & Dietterich 2019). A mean over several kinds could not be compared
    with any published number. Clean images are left out, and each name appears once.
    """
    corruptions = [name for name in dict.fromkeys(names) if name not in (CLEAN, CLEAN_TIMM)]
    published = [name for name in corruptions if name not in EXTRA] or corruptions
    suites = list(dict.fromkeys(suite_of(name) for name in published))
    chosen = None if None in suites else next(iter(suites), None)
    return [name for name in published if suite_of(name) == chosen]


def mean_corruption(cells: Mapping[Any, Mapping[str, float]], keys: Iterable[str]) -> dict[str, float]:
    """The mean of each metric in `keys`: first over the severities of a corruption, then over the corruptions of `averaged`.

    Args:
        cells: (corruption, severity) -> summary row (see summarize).

    Raises:
        ValueError: there is no corrupted cell, or the corruptions have different severities: an incomplete run has no mean.
    """
    levels = {name: sorted(s for other, s in cells if other == name) for name in averaged(name for name, _ in cells)}
    if len(set(map(tuple, levels.values()))) != 1:
        raise ValueError(f"cells must hold corruptions, each with the same severities, got {levels}")
    return {key: float(np.mean([np.mean([cells[name, s][key] for s in levels[name]]) for name in levels])) for key in keys}


def mean_corruption_error(errors: Mapping[str, Sequence[float]], baseline: Mapping[str, float]) -> float:
    """mCE = mean over corruptions c of (mean over severities of errors[c]) / baseline[c], a fraction: 1 equals the baseline.

    Source: Hendrycks & Dietterich 2019, where CE_c = sum_s E_{s,c} / sum_s E^AlexNet_{s,c}.

    Args:
        errors: corruption -> its top-1 errors (fractions), one per severity.
        baseline: corruption -> the baseline's top-1 error (fraction), averaged over the same severities.

    Raises:
        ValueError: the two name different corruptions (a mean over some of them is no mCE), or a value is no fraction. The
            message names the corruption.
    """
    _check_errors(errors, baseline)
    return float(np.mean([np.mean(errors[name]) / baseline[name] for name in errors]))


def relative_mean_corruption_error(
    errors: Mapping[str, Sequence[float]], clean_error: float, baseline: Mapping[str, float], baseline_clean_error: float
) -> float:
    """Relative mCE: as mCE, but of what a corruption adds to the clean error. A fraction: 1 equals the baseline.

    Source: Hendrycks & Dietterich 2019 (relative CE_c = sum_s (E_{s,c} - E_clean) / sum_s (E^AlexNet_{s,c} - E^AlexNet_clean)).
    The clean errors are fractions. For the other arguments and the errors raised see mean_corruption_error.
    """
    _check_errors(errors, baseline)
    ratios = [(np.mean(errors[name]) - clean_error) / (baseline[name] - baseline_clean_error) for name in errors]
    return float(np.mean(ratios))


def _check_errors(errors: Mapping[str, Sequence[float]], baseline: Mapping[str, float]) -> None:
    if not errors or set(errors) != set(baseline):
        unknown, missing = sorted(set(errors) - set(baseline)), sorted(set(baseline) - set(errors))
        raise ValueError(f"errors must name the baseline's corruptions, got unknown {unknown}, missing {missing}")
    length = len(next(iter(errors.values())))
    for name, values in errors.items():
        if len(values) != length or not length or not all(0 <= value <= 1 for value in values) or not 0 < baseline[name] <= 1:
            got = f"{list(values)} and {baseline[name]}"
            raise ValueError(f"errors and baseline of {name} must be {length} and 1 fractions, not percent, got {got}")


def _label_rank(logp_NC: Floats, label_N: Ints) -> Ints:
    """The rank (N,) of each label, from 0: the number of classes with a larger log-probability, or an equal one and a lower
    index."""
    label_logp_N1 = np.take_along_axis(logp_NC, label_N[:, None], axis=1)
    lower_NC = np.arange(logp_NC.shape[1]) < label_N[:, None]
    return ((logp_NC > label_logp_N1) | ((logp_NC == label_logp_N1) & lower_NC)).sum(axis=1)


def _checked_predictions(log_probabilities: ArrayLike, labels: ArrayLike) -> tuple[Floats, Ints]:
    logp_NC = np.asarray(log_probabilities, dtype=np.float64)
    if logp_NC.ndim != 2 or 0 in logp_NC.shape:
        raise ValueError(f"log_probabilities must be a non-empty (N, C) array, got shape {logp_NC.shape}")
    with np.errstate(over="ignore"):
        total_N = np.exp(logp_NC).sum(axis=1)
    if not (proper_N := np.abs(total_N - 1) <= 1e-3).all():  # NaN fails the comparison too
        raise ValueError(f"log_probabilities must have rows whose probabilities sum to 1, got a sum of {total_N[~proper_N][0]}")
    return logp_NC, _checked_classes("labels", labels, *logp_NC.shape)


def _checked(confidence: ArrayLike, correct: ArrayLike) -> tuple[Floats, Bools]:
    confidence_N = _checked_confidence(confidence)
    correct_N = _vector("correct", correct, len(confidence_N))
    if not (boolean_N := np.isin(correct_N, (0, 1))).all():
        raise ValueError(f"correct must be true or false, got {correct_N[~boolean_N][0]}")
    return confidence_N, correct_N.astype(bool)


def _checked_confidence(confidence: ArrayLike) -> Floats:
    confidence_N = _vector("confidence", confidence).astype(np.float64)
    if not (inside_N := (confidence_N >= 0) & (confidence_N <= 1)).all():
        raise ValueError(f"confidence must be in [0, 1], got {confidence_N[~inside_N][0]}")
    return confidence_N


def _checked_classes(name: str, values: ArrayLike, length: int, num_classes: int) -> Ints:
    class_N = _vector(name, values, length)
    if class_N.dtype.kind not in "iu" or not ((class_N >= 0) & (class_N < num_classes)).all():
        span = f"{class_N.dtype} {class_N.min()}..{class_N.max()}"
        raise ValueError(f"{name} must be integers in 0..{num_classes - 1}, got {span}")
    return class_N.astype(np.int64)


def _vector(name: str, values: ArrayLike, length: int | None = None) -> NDArray[Any]:
    vector_N = np.asarray(values)
    if vector_N.ndim != 1 or not len(vector_N) or length not in (None, len(vector_N)):
        raise ValueError(f"{name} must be a ({length or 'N'},) array, not empty, got shape {vector_N.shape}")
    return vector_N
