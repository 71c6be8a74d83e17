"""Accuracy, NLL, Brier score and mCE, and the list of all metrics, computed with NumPy and SciPy from per-sample atoms.

An atom is what one image contributes, such as its confidence. A cell is the evaluation of all images, clean or with one
corruption at one severity. Every number is computed once from all atoms of a cell, never averaged over batches. Rates, errors
and confidences are fractions in [0, 1]; NLL and entropy are in nats; the Brier score is in [0, 2]. Bad input raises a
ValueError with a message of one line. The calibration errors are in calibration.py, the areas under risk-coverage curves in
risk_coverage.py.
Legend: N samples, C classes.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from gch_bench.calibration import (
    NUM_BINS,
    Bools,
    Floats,
    Ints,
    calibration_floor,
    checked_classes,
    checked_confidence,
    checked_vector,
    debiased_squared_terms,
    equal_mass_calibration_error,
    expected_calibration_error,
    maximum_calibration_error,
    smooth_calibration_error,
    top_label_calibration_error,
)
from gch_bench.risk_coverage import generalized_risk_coverage_terms, risk_coverage_terms
from gch_bench.suites import suite_of

CLEAN = "clean"  # the name that the clean cell has in the place of a corruption's
CLEAN_TIMM = "clean_timm"  # the same for clean images in the preparation that timm validates the network with
EXTRA = ("speckle_noise", "gaussian_blur", "spatter", "saturate")  # the corruptions of ImageNet-C besides its 15


class SampleAtoms(NamedTuple):
    """What one image contributes to every metric; each field is (N,)."""

    prediction: Ints
    confidence: Floats
    nll: Floats
    brier: Floats
    top5: Bools
    entropy: Floats


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


class CellAtoms(NamedTuple):
    """The checked columns of one cell's records, each (N,), and the numbers of classes and bins for its metrics.

    The last three come from logits, and are None without them: the losses after recalibration, and the class-wise ECE of the
    whole cell, repeated for every image.
    """

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
    nll_refined: Any = None
    brier_refined: Any = None
    classwise_ce: Any = None


class Metric(NamedTuple):
    """One number of a cell: a column of summary.csv, and where else and how it is shown."""

    title: str  # its name in papers
    meaning: str  # its definition in a few words; docs/calibration.md has the sources
    formula: Callable[[CellAtoms], float]
    percent: bool = True  # True: the number is a fraction and is shown in percent
    better: str | None = "lower"  # which values are better: "higher", "lower", or None where neither is better by itself
    shown: bool = False  # True: also shown in the console's tables, the logger and the report; False: only in summary.csv
    # Values (N,) whose mean is the metric and whose variance / N is its sampling variance to first order. None: no valid
    # interval is known.
    influence: Callable[[CellAtoms], Floats] | None = None
    compared: bool = True  # False: a difference of two networks in it says nothing about which is better
    column: str | None = None  # the field of CellAtoms without which the metric is left out

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


def _mean(title: str, meaning: str, values: Callable[[CellAtoms], Floats], **how: Any) -> Metric:
    """A metric that is the mean of its influence."""
    return Metric(title, meaning, lambda atoms: values(atoms).mean(), influence=values, **how)


REFINEMENT = "the loss that is left after recalibration"
CALIBRATION = "the loss less its refinement: what recalibration removes"


# The one list of metrics, which summary.csv, console, logger, report and comparison read. Its keys are columns of summary.csv.
METRICS: dict[str, Metric] = {
    "top1": _mean(
        "top-1",
        "share of images whose most probable class is the label",
        lambda a: a.correct.astype(np.float64),
        better="higher",
        shown=True,
    ),
    "top5": _mean(
        "top-5", "share of images whose label is among the 5 most probable classes", lambda a: a.top5, better="higher"
    ),
    "nll": _mean("NLL", "mean of -log(probability of the label), in nats", lambda a: a.nll, percent=False, shown=True),
    "brier": _mean(
        "Brier", "mean squared distance of the probabilities from the label, 0 to 2", lambda a: a.brier, percent=False
    ),
    "ece": Metric(
        "ECE",
        "sum over bins of (images in the bin / N) times the absolute mean gap between confidence and accuracy",
        lambda a: expected_calibration_error(a.confidence, a.correct, a.num_bins),
        shown=True,
    ),
    "ece_floor": Metric(
        "floor of ECE",
        "the expected ECE of a perfectly calibrated network with the same confidences",
        lambda a: calibration_floor(a.confidence, a.num_bins),
        better=None,
        compared=False,
    ),
    "ece_equal_mass": Metric(
        "ECE, equal-mass bins",
        "as ECE, with bins of equally many images; equal confidences share a bin",
        lambda a: equal_mass_calibration_error(a.confidence, a.correct, a.num_bins),
    ),
    "ece_top_label": Metric(
        "top-label ECE",
        "mean over the predicted classes of the ECE of the images predicted as that class",
        lambda a: top_label_calibration_error(a.confidence, a.correct, a.prediction, a.num_classes, a.num_bins),
    ),
    "max_ce": Metric(
        "maximum CE",
        "the largest absolute mean gap of a bin, however few images are in it",
        lambda a: maximum_calibration_error(a.confidence, a.correct, a.num_bins),
    ),
    "ce2_debiased": _mean(
        "debiased squared CE",
        "sum over bins of (images in the bin / N) times (squared mean gap - variance of the gap / images in the bin),"
        " 0 on average where calibrated",
        lambda a: debiased_squared_terms(a.confidence, a.correct, a.num_bins),
        percent=False,
    ),
    "smece": Metric(
        "smECE",
        "the calibration error with a Gaussian kernel in the place of bins, whose width is the error itself",
        lambda a: smooth_calibration_error(a.confidence, a.correct),
    ),
    "signed_gap": _mean(
        "confidence - accuracy",
        "mean of confidence - accuracy, positive where overconfident",
        lambda a: a.confidence - a.correct,
        better=None,
    ),
    "aurc": _mean(
        "AURC",
        "mean over k of the error rate of the k most confident images",
        lambda a: risk_coverage_terms(a.confidence, a.correct),
    ),
    "augrc": _mean(
        "AUGRC",
        "probability that an image is wrong and at least as confident as another one",
        lambda a: generalized_risk_coverage_terms(a.confidence, a.correct),
    ),
    "entropy": _mean("entropy", "mean entropy of the probabilities, in nats", lambda a: a.entropy, percent=False, better=None),
    "confidence": _mean("confidence", "mean probability of the predicted class", lambda a: a.confidence, better=None),
    # From logits.
    "classwise_ce": Metric(
        "class-wise ECE",
        "mean over all classes of the ECE of the class's probability against whether the label is that class",
        lambda a: a.classwise_ce[0],
        column="classwise_ce",
    ),
    "nll_refinement": _mean("NLL, refinement", REFINEMENT, lambda a: a.nll_refined, percent=False, column="nll_refined"),
    "nll_calibration": Metric(
        "NLL, calibration", CALIBRATION, lambda a: (a.nll - a.nll_refined).mean(), percent=False, column="nll_refined"
    ),
    "brier_refinement": _mean(
        "Brier, refinement", REFINEMENT, lambda a: a.brier_refined, percent=False, column="brier_refined"
    ),
    "brier_calibration": Metric(
        "Brier, calibration", CALIBRATION, lambda a: (a.brier - a.brier_refined).mean(), percent=False, column="brier_refined"
    ),
}
SHOWN = {key: metric for key, metric in METRICS.items() if metric.shown}


def cell_atoms(atoms: Any, num_classes: int, num_bins: int = NUM_BINS) -> CellAtoms:
    """The checked columns of one cell, which the formulas and influences of METRICS take.

    Args:
        atoms: a mapping of arrays or a DataFrame with the columns label, prediction, confidence, nll, brier, top5 and entropy,
            each (N,), and those of nll_refined, brier_refined and classwise_ce that there are.

    Raises:
        ValueError: a column of another length, or with values out of its range.
    """
    confidence = checked_confidence(atoms["confidence"])
    label = checked_classes("label", atoms["label"], len(confidence), num_classes)
    prediction = checked_classes("prediction", atoms["prediction"], len(confidence), num_classes)
    names = ["nll", "brier", "top5", "entropy", *(name for name in CellAtoms._field_defaults if name in atoms)]
    means = {name: checked_vector(name, atoms[name], len(confidence)).astype(np.float64) for name in names}
    return CellAtoms(label, prediction, confidence, prediction == label, **means, num_classes=num_classes, num_bins=num_bins)


def summarize(atoms: Any, num_classes: int, num_bins: int = NUM_BINS) -> dict[str, float]:
    """The summary row of one cell: n, the number of samples, and then every metric of METRICS whose column there is, in order.

    For the arguments and errors see cell_atoms.
    """
    cell = cell_atoms(atoms, num_classes, num_bins)
    present = {
        key: metric for key, metric in METRICS.items() if metric.column is None or getattr(cell, metric.column) is not None
    }
    return {"n": len(cell.confidence), **{key: float(metric.formula(cell)) for key, metric in present.items()}}


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
    return logp_NC, checked_classes("labels", labels, *logp_NC.shape)
