"""Calibration errors against torchmetrics, netcal, relplot, scikit-learn and plain loops, and on simulated networks."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from metric_references import CALIBRATION, CASES, EDGES, loop_classwise, random_case, random_logp
from sklearn.calibration import calibration_curve
from torchmetrics.functional.classification import multiclass_calibration_error

from gch_bench import calibration, metrics

EXACT = {"rel": 1e-12, "abs": 1e-14}  # float64 sums in another order

# Against other libraries and loops.


@pytest.mark.parametrize(("norm", "name"), [("l1", "ece"), ("max", "max_ce")])
@pytest.mark.parametrize("seed", range(5))
def test_calibration_matches_torchmetrics(norm, name, seed):
    logp, label = random_logp(seed, num_samples=500)
    atoms = metrics.sample_atoms(logp, label)
    assert np.abs(atoms.confidence[:, None] - EDGES).min() > 1e-6  # torchmetrics has bins [lo, hi) and works in float32
    expected = multiclass_calibration_error(torch.from_numpy(np.exp(logp)), torch.from_numpy(label), 7, n_bins=15, norm=norm)
    got = CALIBRATION[name][0](atoms.confidence, atoms.prediction == label)
    assert got == pytest.approx(float(expected), abs=5e-7)
    assert got > 0.01


@pytest.mark.parametrize("num_bins", [1, 2, 7, 15])
@pytest.mark.parametrize("name", CALIBRATION)
@pytest.mark.parametrize("case", CASES)
def test_calibration_matches_loops(case, name, num_bins):
    confidence, correct = (np.asarray(values) for values in CASES[case])
    function, reference = CALIBRATION[name]
    expected = reference(confidence.astype(float), correct, num_bins)
    assert function(confidence, correct, num_bins) == pytest.approx(expected, **EXACT)


@pytest.mark.parametrize("case", CASES)
def test_bins_match_scikit_learn(case):
    confidence, correct = (np.asarray(values) for values in CASES[case])
    confidence = confidence.astype(float)
    bins = calibration.calibration_bins(confidence, correct, 15)
    accuracy, mean_confidence = calibration_curve(correct, confidence, n_bins=15, pos_label=True)  # its bins are (lo, hi] too
    filled = bins.count > 0
    np.testing.assert_allclose(bins.accuracy[filled], accuracy, rtol=1e-13)
    np.testing.assert_allclose(bins.mean_confidence[filled], mean_confidence, rtol=1e-13)
    assert np.isnan(bins.accuracy[~filled]).all()
    assert np.isnan(bins.mean_confidence[~filled]).all()
    assert bins.count.sum() == len(confidence)


def test_edges_belong_to_the_lower_bin():
    np.testing.assert_array_equal(calibration.bin_index(EDGES, 15), [0, *range(15)])
    np.testing.assert_array_equal(calibration.bin_index(np.nextafter(EDGES[:-1], 1), 15), range(15))


def test_hand_computed_calibration():
    confidence, correct = [0.1, 0.3, 0.8, 1.0], [True, False, True, False]
    assert calibration.expected_calibration_error(confidence, correct, 2) == pytest.approx(0.5 * 0.3 + 0.5 * 0.4, **EXACT)
    assert calibration.maximum_calibration_error(confidence, correct, 2) == pytest.approx(0.4, **EXACT)
    top_label = calibration.top_label_calibration_error(confidence, correct, [0, 4, 4, 4], 6, 2)
    assert top_label == pytest.approx((0.9 + (0.3 + 0.8) / 3) / 2, **EXACT)  # class 4: |0.3| + |0.8 - 1 + 1.0| over 3
    assert calibration.equal_mass_calibration_error([0.1, 0.2, 0.2, 0.9], correct, 2) == pytest.approx(
        (abs(0.5 - 2) + 0.9) / 4, **EXACT
    )


def test_equal_mass_is_array_split_without_ties():
    confidence, correct = random_case(0, 101)
    order = np.argsort(confidence)
    groups = np.array_split(order, 15)
    expected = sum(len(g) * abs(confidence[g].mean() - correct[g].mean()) for g in groups) / 101
    assert calibration.equal_mass_calibration_error(confidence, correct) == pytest.approx(expected, **EXACT)
    assert expected != pytest.approx(calibration.expected_calibration_error(confidence, correct), rel=1e-3)


@pytest.mark.parametrize("num_bins", [1, 4, 15])
def test_top_label_matches_loops_and_one_class_is_ece(num_bins):
    confidence, correct = random_case(1)
    prediction = np.random.default_rng(2).integers(0, 9, 400) ** 2 // 9
    got = calibration.top_label_calibration_error(confidence, correct, prediction, 20, num_bins)
    assert got == pytest.approx(loop_classwise(confidence, correct, prediction, num_bins), **EXACT)
    alone = calibration.top_label_calibration_error(confidence, correct, np.full(400, 3), 20, num_bins)
    assert alone == pytest.approx(calibration.expected_calibration_error(confidence, correct, num_bins), **EXACT)


# Properties of every score.

SCORES = {name: function for name, (function, _) in CALIBRATION.items()}
SCORES["smooth"] = calibration.smooth_calibration_error
SCORES["aurc"] = metrics.area_under_risk_coverage
SCORES["augrc"] = metrics.area_under_generalized_risk_coverage
SCORES["top_label"] = lambda confidence, correct: calibration.top_label_calibration_error(
    confidence, correct, np.nan_to_num(np.ravel(confidence) * 1e6).astype(int) % 3, 3
)
samples = st.lists(
    st.tuples(st.one_of(st.floats(0, 1), st.sampled_from(EDGES.tolist())), st.booleans()), min_size=1, max_size=40
)


@pytest.mark.parametrize("name", SCORES)
@settings(max_examples=25, deadline=None)
@given(samples=samples, seed=st.integers(0, 1000))
def test_scores_are_fractions_and_do_not_depend_on_order(name, samples, seed):
    confidence, correct = (np.array(values) for values in zip(*samples, strict=True))
    order = np.random.default_rng(seed).permutation(len(samples))
    score = SCORES[name](confidence, correct)
    assert -1e-12 <= score <= 1 + 1e-12
    assert SCORES[name](confidence[order], correct[order]) == pytest.approx(score, rel=1e-12, abs=1e-12)
    assert SCORES[name](confidence.tolist(), correct.astype(int)) == score


@pytest.mark.parametrize("name", CALIBRATION)
@settings(max_examples=25, deadline=None)
@given(samples=samples, num_bins=st.integers(1, 20))
def test_calibration_matches_loops_on_any_input(name, samples, num_bins):
    confidence, correct = (np.array(values) for values in zip(*samples, strict=True))
    function, reference = CALIBRATION[name]
    assert function(confidence, correct, num_bins) == pytest.approx(
        reference(confidence, correct, num_bins), rel=1e-12, abs=1e-12
    )


@pytest.mark.parametrize("name", CALIBRATION)
def test_one_bin_is_the_gap_of_the_means(name):
    confidence, correct = random_case(4)
    assert SCORES[name](confidence, correct, 1) == pytest.approx(abs(confidence.mean() - correct.mean()), rel=1e-10)


# Bad input.


@pytest.mark.parametrize("name", SCORES)
@pytest.mark.parametrize(
    ("confidence", "correct", "message"),
    [
        ([], [], "confidence must be .* got shape"),
        ([0.5, 0.5], [True], r"correct must be a \(2,\) array"),
        ([0.5, 1.5], [True, True], r"confidence must be in \[0, 1\], got 1.5"),
        ([0.5, -0.1], [True, True], r"confidence must be in \[0, 1\], got -0.1"),
        ([0.5, math.nan], [True, True], r"confidence must be in \[0, 1\], got nan"),
        ([0.5, 0.5], [1, 2], "correct must be true or false, got 2"),
        ([[0.5]], [[True]], "confidence must be"),
    ],
)
def test_scores_refuse(name, confidence, correct, message):
    with pytest.raises(ValueError, match=message) as error:
        SCORES[name](confidence, correct)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", CALIBRATION)
def test_scores_refuse_no_bins(name):
    with pytest.raises(ValueError, match="num_bins must be >= 1, got 0"):
        SCORES[name]([0.5], [True], 0)


def test_classes_are_checked():
    with pytest.raises(ValueError, match=r"num_bins must be >= 1, got 0"):
        calibration.top_label_calibration_error([0.5], [True], [0], 1, 0)
    with pytest.raises(ValueError, match=r"prediction must be integers in 0..2, got .* 3..3"):
        calibration.top_label_calibration_error([0.5], [True], [3], 3)
    with pytest.raises(ValueError, match="prediction must be integers"):
        calibration.top_label_calibration_error([0.5], [True], [1.0], 3)
