"""Selective prediction: the areas under the risk-coverage curve, and what their sampling variances are computed from.

Legend: N samples, B blocks of equal confidence. Bad input raises a ValueError with a message of one line.
"""

import numpy as np
from numpy.typing import ArrayLike

from gch_bench.calibration import Floats, Ints, checked_pair


def area_under_risk_coverage(confidence: ArrayLike, correct: ArrayLike) -> float:
    """AURC = (1/N) sum_k risk_k, with risk_k the error rate of the k most confident samples (Geifman & El-Yaniv 2017).

    Samples of equal confidence have no order; each counts with the error rate of all samples of its confidence, which makes the
    result the expectation over all their orders. The result is in [0, 1], lower is better.
    """
    return float(risk_coverage_terms(confidence, correct).mean())


def risk_coverage_terms(confidence: ArrayLike, correct: ArrayLike) -> Floats:
    """Values (N,) with the mean `area_under_risk_coverage`, whose variance / N is its sampling variance to first order.

    They are AURC plus its influence function: risk_i + sum_{k >= i} (e_i - risk_k) / k for the sample with rank i and error e_i
    (0 or 1). Samples of equal confidence get the mean over the ranks that they share.
    """
    block_N, count_B, error_N = _blocks(confidence, correct)
    rank_N = np.arange(1, len(error_N) + 1)
    risk_N = np.cumsum(np.repeat(np.bincount(block_N, weights=error_N) / count_B, count_B)) / rank_N
    starts_B = np.cumsum(count_B) - count_B
    from_here = [np.cumsum((values / rank_N)[::-1])[::-1] for values in (1.0, risk_N)]
    risk_B, share_B, lost_B = (np.add.reduceat(values, starts_B) / count_B for values in (risk_N, *from_here))
    return (risk_B - lost_B)[block_N] + error_N * share_B[block_N]


def area_under_generalized_risk_coverage(confidence: ArrayLike, correct: ArrayLike) -> float:
    """AUGRC: the probability that a sample is wrong and at least as confident as another one (Traub et al. 2024).

    It is the area under the rate of wrong samples among the k most confident ones, as a share of all N, over the coverage k / N
    from 0 to 1, with straight lines between these points: (1 - AUROC) a (1 - a) + (1 - a)^2 / 2, with a the accuracy and AUROC
    that of confidence against correctness. Samples of equal confidence count as in all their orders. The result is in [0, 1/2].
    """
    return float(generalized_risk_coverage_terms(confidence, correct).mean())


def generalized_risk_coverage_terms(confidence: ArrayLike, correct: ArrayLike) -> Floats:
    """Values (N,) with the mean `area_under_generalized_risk_coverage`, whose variance / N is its variance to first order.

    AUGRC is the mean over pairs (i, k) of e_i [confidence_k < confidence_i], where e_i is 0 or 1 for wrong and a tie counts
    half. Sample i thus has the mean over its pairs in both places, minus AUGRC (the projection of a U-statistic).
    """
    block_N, count_B, error_N = _blocks(confidence, correct)
    wrong_B = np.bincount(block_N, weights=error_N)
    below_N = (len(error_N) - np.cumsum(count_B) + count_B / 2)[block_N] / len(error_N)
    above_N = (np.cumsum(wrong_B) - wrong_B / 2)[block_N] / len(error_N)
    return error_N * below_N + above_N - above_N.mean()


def _blocks(confidence: ArrayLike, correct: ArrayLike) -> tuple[Ints, Ints, Floats]:
    """Samples in blocks of equal confidence, the most confident first: block (N,) of each, sizes (B,), errors (N,) 0 or 1."""
    confidence_N, correct_N = checked_pair(confidence, correct)
    _, block_N, count_B = np.unique(-confidence_N, return_inverse=True, return_counts=True)
    return block_N.astype(np.int64), count_B.astype(np.int64), 1.0 - correct_N.astype(np.float64)
