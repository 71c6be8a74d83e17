"""Calibration errors: how far the confidence of a network is from its accuracy. NumPy and SciPy alone.

confidence (N,) is the probability of the predicted class, correct (N,) says whether the prediction is right, and the gap of an
image is confidence - correct. Errors are fractions, computed once from all images. docs/calibration.md compares the estimators,
says which have an interval, and what other libraries compute. Bad input raises a ValueError with a message of one line.
Legend: N images, C classes, B bins, M intervals of a grid.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.fft import dct
from scipy.special import gammaln, xlog1py, xlogy

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]

NUM_BINS = 15
_GRID = 4096  # intervals of the grid on which confidences are smoothed
_ROWS = 4096  # rows of probabilities that are converted to float64 at a time


class CalibrationBins(NamedTuple):
    """The bins of a reliability diagram; each field is (B,). The means of an empty bin are NaN."""

    count: Ints  # type: ignore[assignment]  # shadows tuple.count, which nobody needs here
    mean_confidence: Floats
    accuracy: Floats


class CentredGaps(NamedTuple):
    """What the sampling variance of the debiased squared error is made of (see `centred_gaps`)."""

    bin: Ints  # (N,) the bin of each image
    weight: Floats  # (B,) the share of the images that are in a bin
    centred: Floats  # (N,) (gap - mean gap of its bin) / number of images in its bin


def bin_index(confidence: ArrayLike, num_bins: int = NUM_BINS) -> Ints:
    """The index (N,) of the equal-width bin (lo, hi] of each confidence (N,). 0 is in the first bin, 1 in the last."""
    return np.searchsorted(_edges(num_bins)[1:-1], checked_confidence(confidence), side="left").astype(np.int64)


def calibration_bins(confidence: ArrayLike, correct: ArrayLike, num_bins: int = NUM_BINS) -> CalibrationBins:
    """Count, mean confidence and accuracy of each equal-width bin (see bin_index). An empty bin has count 0 and means NaN."""
    confidence_N, correct_N = checked_pair(confidence, correct)
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


def calibration_floor(confidence: ArrayLike, num_bins: int = NUM_BINS) -> float:
    """The expected ECE of a perfectly calibrated network with these confidences (N,): above 0 on finitely many images.

    It is sum_b E|S_b - sum_{i in b} confidence_i| / N, where S_b is the number of correct predictions in bin b if each is
    correct with the probability confidence_i. S_b is taken as binomial with the bin's count and mean confidence (De Moivre's
    formula for its mean absolute deviation). This is exact where the confidences of a bin are equal, thus also for one image,
    and otherwise less than 1% too high; sqrt(2 / pi * sum confidence_i (1 - confidence_i)) would hold in large bins alone.
    """
    confidence_N = checked_confidence(confidence)
    index_N = bin_index(confidence_N, num_bins)
    count = np.bincount(index_N, minlength=num_bins)
    n = count[count > 0]
    p = np.minimum(np.bincount(index_N, weights=confidence_N, minlength=num_bins)[count > 0] / n, 1)
    # E|S - n p| = 2 k C(n, k) p^k (1 - p)^(n - k + 1) with k = floor(n p) + 1
    k = np.minimum(np.floor(n * p) + 1, n)
    log_pairs = gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1)
    deviation = 2 * k * np.exp(log_pairs + xlogy(k, p) + xlog1py(n - k + 1, -p))
    return float(deviation.sum() / len(confidence_N))


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
    confidence_N, correct_N = checked_pair(confidence, correct)
    _edges(num_bins)  # refuses num_bins < 1
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
    confidence_N, correct_N = checked_pair(confidence, correct)
    prediction_N = checked_classes("prediction", prediction, len(confidence_N), num_classes)
    joint_N = prediction_N * num_bins + bin_index(confidence_N, num_bins)
    gap = np.abs(np.bincount(joint_N, weights=confidence_N - correct_N, minlength=num_classes * num_bins))
    count = np.bincount(prediction_N, minlength=num_classes)
    return float((gap.reshape(num_classes, num_bins).sum(axis=1)[count > 0] / count[count > 0]).mean())


def classwise_calibration_error(probabilities: ArrayLike, labels: ArrayLike, num_bins: int = NUM_BINS) -> float:
    """Class-wise ECE: the mean over all C classes of the ECE of a class's probability against whether the label is that class.

    Every image counts for every class, also one whose label never occurs. Bins are equal-width, (lo, hi]. Source: Kull et al.
    2019 (Beyond temperature scaling, classwise-ECE); Nixon et al. 2019 (static calibration error). Since almost all of the C
    probabilities of an image are near 0, the result is small where C is large.

    Args:
        probabilities: (N, C), each row with a sum of 1 within 1e-3.
        labels: (N,) in 0..C-1.
    """
    p_NC, edges = np.asarray(probabilities), _edges(num_bins)
    if p_NC.ndim != 2 or 0 in p_NC.shape:
        raise ValueError(f"probabilities must be a non-empty (N, C) array, got shape {p_NC.shape}")
    num_samples, num_classes = p_NC.shape
    label_N = checked_classes("labels", labels, num_samples, num_classes)
    gap_CB = np.zeros((num_classes, num_bins))
    for start in range(0, num_samples, _ROWS):
        p, label = np.asarray(p_NC[start : start + _ROWS], dtype=np.float64), label_N[start : start + _ROWS]
        if not ((p >= 0).all() and np.allclose(p.sum(axis=1), 1, rtol=0, atol=1e-3)):  # NaN fails both
            raise ValueError(
                f"probabilities must be >= 0 in rows with a sum of 1, got others in rows {start}..{start + len(p) - 1}"
            )
        p = np.minimum(p, 1)  # rounding may have taken a probability above 1
        row, column = np.nonzero(p > edges[1])  # few: all others are in the first bin
        above = column * num_bins + np.searchsorted(edges[1:-1], p[row, column], side="left")
        sums_CB = np.bincount(above, weights=p[row, column], minlength=gap_CB.size).reshape(gap_CB.shape)
        sums_CB = sums_CB.astype(np.float64)  # where nothing is above, bincount returns integers
        sums_CB[:, 0] = p.sum(axis=0) - sums_CB.sum(axis=1)
        own = np.searchsorted(edges[1:-1], p[np.arange(len(p)), label], side="left")
        gap_CB += sums_CB - np.bincount(label * num_bins + own, minlength=gap_CB.size).reshape(gap_CB.shape)
    return float(np.abs(gap_CB).sum() / num_samples / num_classes)


def centred_gaps(confidence: ArrayLike, correct: ArrayLike, num_bins: int = NUM_BINS) -> CentredGaps:
    """Bins, their weights and the centred gaps, of which the part of second order of `debiased_squared_error` is made.

    If image i is drawn w_i times instead of once, and as many images of each bin as before, the squared error without its
    correction becomes the mean of w_i (2 m_b g_i - m_b^2), which is linear in w (see `debiased_squared_terms`), plus
    sum_b weight_b (sum_{i in b} w_i centred_i)^2. Where the network is calibrated, only the latter is left.
    """
    index_N, gap_N, count, mean = _binned_gaps(confidence, correct, num_bins)
    return CentredGaps(index_N, count / len(gap_N), (gap_N - mean[index_N]) / count[index_N])


def debiased_squared_terms(confidence: ArrayLike, correct: ArrayLike, num_bins: int = NUM_BINS) -> Floats:
    """Values (N,) with the mean `debiased_squared_error`, whose variance / N is its sampling variance to first order.

    In a bin with mean gap m and variance s^2 of n gaps, an image with the gap g has 2 m g - m^2 - s^2 / n; alone in it, 0.
    These vanish where the network is calibrated; an interval also needs the part of second order (see `centred_gaps`).
    """
    index_N, gap_N, count, mean = _binned_gaps(confidence, correct, num_bins)
    squares = np.bincount(index_N, weights=(gap_N - mean[index_N]) ** 2, minlength=num_bins)
    bias = squares / np.maximum(count - 1, 1) / np.maximum(count, 1)
    return np.where(count[index_N] > 1, (2 * gap_N - mean[index_N]) * mean[index_N] - bias[index_N], 0.0)


def debiased_squared_error(confidence: ArrayLike, correct: ArrayLike, num_bins: int = NUM_BINS) -> float:
    """Debiased squared calibration error: sum_b n_b / N (m_b^2 - s_b^2 / n_b), over equal-width bins.

    m_b is the mean gap of bin b and s_b^2 its unbiased variance. The square of a mean of n_b gaps exceeds the square of the
    expected gap by s_b^2 / n_b on average; this is subtracted. The result is therefore not biased given the counts, is 0 on
    average for a calibrated network, and may be negative. The variance cannot be estimated in a bin of one image, which
    contributes 0 (as in the equal form, the mean product of the gaps of two different images). Source: Kumar, Liang & Ma 2019
    (Verified uncertainty calibration), whose confidences are equal within a bin; the variance of the gap also covers others.
    """
    return float(debiased_squared_terms(confidence, correct, num_bins).mean())


def smooth_calibration_error(confidence: ArrayLike, correct: ArrayLike) -> float:
    """smECE, the calibration error without bins (Blasiok & Nakkiran 2023, Smooth ECE), in [0, 1].

    smECE_s is the integral over [0, 1] of |mean over images of gap_i K_s(t, confidence_i)|, with K_s the Gaussian kernel of
    standard deviation s reflected at 0 and 1. It falls as s grows; smECE is the s at which smECE_s = s. The gaps are put on a
    grid of 4,096 intervals, where K_s is a product in the cosine transform.
    """
    confidence_N, correct_N = checked_pair(confidence, correct)
    transform = _gap_transform(confidence_N, confidence_N - correct_N)
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if _smoothed(transform, middle) > middle else (low, middle)
    return (low + high) / 2


def _gap_transform(confidence_N: Floats, gap_N: Floats) -> Floats:
    """The cosine transform (M + 1,) of the mean gap on the grid; each gap is shared linearly between its two neighbours."""
    left_N = np.minimum((confidence_N * _GRID).astype(np.int64), _GRID - 1)
    share_N = confidence_N * _GRID - left_N
    mass = np.bincount(left_N, weights=gap_N * (1 - share_N), minlength=_GRID + 1)
    mass += np.bincount(left_N + 1, weights=gap_N * share_N, minlength=_GRID + 1)
    mean = mass / len(gap_N)
    mean[1:-1] /= 2  # the transform of type 1 counts inner points twice
    return np.asarray(dct(mean, type=1))


def _smoothed(transform: Floats, width: float) -> float:
    """The integral of |mean gap|, smoothed with a reflected Gaussian kernel of standard deviation `width`."""
    frequency = np.pi * np.arange(len(transform))
    smooth = np.abs(dct(transform * np.exp(-((width * frequency) ** 2) / 2), type=1))
    return float((smooth.sum() - (smooth[0] + smooth[-1]) / 2) / _GRID)


def _binned_gaps(confidence: ArrayLike, correct: ArrayLike, num_bins: int) -> tuple[Ints, Floats, Ints, Floats]:
    """Bin (N,) and gap (N,) of each image, count (B,) and mean gap (B,) of each bin, 0 in an empty one."""
    confidence_N, correct_N = checked_pair(confidence, correct)
    index_N, gap_N = bin_index(confidence_N, num_bins), confidence_N - correct_N
    count = np.bincount(index_N, minlength=num_bins)
    return index_N, gap_N, count, np.bincount(index_N, weights=gap_N, minlength=num_bins) / np.maximum(count, 1)


def _edges(num_bins: int) -> Floats:
    if num_bins < 1:
        raise ValueError(f"num_bins must be >= 1, got {num_bins}")
    return np.linspace(0, 1, num_bins + 1)


def checked_pair(confidence: ArrayLike, correct: ArrayLike) -> tuple[Floats, Bools]:
    """confidence and correct as arrays. ValueError: other lengths, a confidence outside [0, 1], correct not true or false."""
    confidence_N = checked_confidence(confidence)
    correct_N = checked_vector("correct", correct, len(confidence_N))
    if not (boolean_N := np.isin(correct_N, (0, 1))).all():
        raise ValueError(f"correct must be true or false, got {correct_N[~boolean_N][0]}")
    return confidence_N, correct_N.astype(bool)


def checked_confidence(confidence: ArrayLike) -> Floats:
    """confidence as an array (N,). ValueError: another shape, empty, or a value outside [0, 1]."""
    confidence_N = checked_vector("confidence", confidence).astype(np.float64)
    if not (inside_N := (confidence_N >= 0) & (confidence_N <= 1)).all():
        raise ValueError(f"confidence must be in [0, 1], got {confidence_N[~inside_N][0]}")
    return confidence_N


def checked_classes(name: str, values: ArrayLike, length: int, num_classes: int) -> Ints:
    """values as an array (length,) of classes. ValueError: another shape, no integers, or outside 0..num_classes-1."""
    class_N = checked_vector(name, values, length)
    if class_N.dtype.kind not in "iu" or not ((class_N >= 0) & (class_N < num_classes)).all():
        span = f"{class_N.dtype} {class_N.min()}..{class_N.max()}"
        raise ValueError(f"{name} must be integers in 0..{num_classes - 1}, got {span}")
    return class_N.astype(np.int64)


def checked_vector(name: str, values: ArrayLike, length: int | None = None) -> NDArray[Any]:
    """values as an array (length,), of any length if it is None. ValueError: another shape, or empty."""
    vector_N = np.asarray(values)
    if vector_N.ndim != 1 or not len(vector_N) or length not in (None, len(vector_N)):
        raise ValueError(f"{name} must be a ({length or 'N'},) array, not empty, got shape {vector_N.shape}")
    return vector_N
