"""Plain loops over the definitions of the metrics, and the inputs that every metric is tried on."""

import itertools
import math

import numpy as np
import pandas as pd
from scipy.special import log_softmax

from gch_bench import calibration, metrics

# Plain references: Python loops over the definition.


def loop_gaps(confidence, correct, edges):
    """(count, |mean confidence - accuracy|) of each non-empty bin (lo, hi], the first one closed below."""
    gaps = []
    for b, (low, high) in enumerate(itertools.pairwise(edges)):
        members = [i for i, c in enumerate(confidence) if (low < c or (b == 0 and c == low)) and c <= high]
        if members:
            mean_confidence = math.fsum(confidence[i] for i in members) / len(members)
            accuracy = sum(bool(correct[i]) for i in members) / len(members)
            gaps.append((len(members), abs(mean_confidence - accuracy)))
    assert sum(count for count, _ in gaps) == len(confidence)
    return gaps


def loop_ece(confidence, correct, num_bins=15):
    gaps = loop_gaps(confidence, correct, np.linspace(0, 1, num_bins + 1))
    return math.fsum(count * gap for count, gap in gaps) / len(confidence)


def loop_max_ce(confidence, correct, num_bins=15):
    return max(gap for _, gap in loop_gaps(confidence, correct, np.linspace(0, 1, num_bins + 1)))


def loop_classwise(confidence, correct, prediction, num_bins=15):
    per_class = []
    for c in sorted(set(prediction.tolist())):
        members = prediction == c
        per_class.append(loop_ece(confidence[members], correct[members], num_bins))
    return sum(per_class) / len(per_class)


def loop_equal_mass(confidence, correct, num_bins=15):
    """A block of ties goes whole to the first group of np.array_split that holds one of its members."""
    bins = {}
    groups = np.array_split(np.sort(confidence), num_bins)
    for value, hit in zip(confidence, correct, strict=True):
        home = next(g for g, group in enumerate(groups) if value in group)
        bins.setdefault(home, []).append((value, bool(hit)))
    total = 0.0
    for members in bins.values():
        total += abs(math.fsum(c for c, _ in members) - sum(hit for _, hit in members))
    return total / len(confidence)


def loop_aurc_in_order(errors):
    return sum(sum(errors[:k]) / k for k in range(1, len(errors) + 1)) / len(errors)


CALIBRATION = {  # name: (function, reference), both of (confidence, correct)
    "ece": (calibration.expected_calibration_error, loop_ece),
    "max_ce": (calibration.maximum_calibration_error, loop_max_ce),
    "equal_mass": (calibration.equal_mass_calibration_error, loop_equal_mass),
}
EDGES = np.linspace(0, 1, 16)
CASES = {  # name: (confidence, correct)
    "one_wrong": ([0.7], [False]),
    "one_right": ([1.0], [True]),
    "zero_and_one": ([0.0, 1.0, 0.0, 1.0], [True, False, False, True]),
    "every_edge": (EDGES, np.arange(16) % 3 == 0),
    "beside_edges": (np.concatenate([np.nextafter(EDGES[1:], 0), np.nextafter(EDGES[:-1], 1)]), np.arange(30) % 4 == 0),
    "all_wrong": (np.linspace(0.01, 0.99, 40), np.zeros(40, bool)),
    "all_right": (np.linspace(0.01, 0.99, 40), np.ones(40, bool)),
    "all_tied": (np.full(37, 0.4), np.arange(37) < 11),
    "tied_blocks": (np.repeat([0.2, 0.5, 0.55, 0.9], [3, 20, 1, 9]), np.arange(33) % 5 < 3),
    "fewer_than_bins": ([0.3, 0.1, 0.2], [True, False, True]),
    "float32": (np.linspace(0, 1, 16, dtype=np.float32), np.arange(16) % 2 == 0),
}


def random_case(seed, num_samples=400):
    rng = np.random.default_rng(seed)
    confidence = rng.random(num_samples)
    return confidence, rng.random(num_samples) < confidence**2


def random_logp(seed, num_samples=300, num_classes=7, scale=2.0):
    rng = np.random.default_rng(seed)
    label = rng.integers(0, num_classes, num_samples)
    logits = scale * rng.standard_normal((num_samples, num_classes)) + 1.5 * np.eye(num_classes)[label]
    return log_softmax(logits, axis=1), label


def cell(seed=0, num_classes=7, num_samples=300, scale=2.0):
    logp, label = random_logp(seed, num_samples, num_classes, scale)
    return pd.DataFrame({"id": np.arange(num_samples), "label": label, **metrics.sample_atoms(logp, label)._asdict()})
