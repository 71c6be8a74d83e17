"""Calibration errors against torchmetrics, netcal, relplot, scikit-learn and plain loops, and on simulated networks."""

import functools
import math

import numpy as np
import pytest
import relplot
import torch
from conftest import REPOSITORY
from hypothesis import given, settings
from hypothesis import strategies as st
from metric_references import CALIBRATION, CASES, EDGES, loop_classwise, random_case, random_logp
from scipy.integrate import trapezoid
from scipy.stats import norm
from sklearn.calibration import calibration_curve
from torchmetrics.functional.classification import binary_calibration_error, multiclass_calibration_error

from gch_bench import calibration, metrics, risk_coverage

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


def test_ece_matches_netcal_apart_from_the_edges_of_bins():
    netcal = pytest.importorskip("netcal.metrics")  # no dependency: it would install gpytorch, pyro and tensorboard
    for num_bins in (1, 10, 15):
        confidence, correct = random_case(num_bins)
        expected = netcal.ECE(num_bins).measure(confidence, correct.astype(int))
        assert calibration.expected_calibration_error(confidence, correct, num_bins) == pytest.approx(expected, **EXACT)
    assert netcal.ECE(2).measure(np.array([0.5, 0.9]), np.array([1, 0])) == pytest.approx(0.2)  # in one bin, [0.5, 1]
    assert calibration.expected_calibration_error([0.5, 0.9], [1, 0], 2) == pytest.approx(0.7)  # in two


# The floor of ECE.


def exact_floor(confidence, num_bins=15):
    """The same expectation by convolution of the distributions of all images in a bin."""
    index, total = calibration.bin_index(confidence, num_bins), 0.0
    for b in range(num_bins):
        members = confidence[index == b]
        law = functools.reduce(np.convolve, [[1 - c, c] for c in members], np.ones(1))
        total += law @ np.abs(np.arange(len(law)) - members.sum())
    return total / len(confidence)


@pytest.mark.parametrize("confidence", [[0.3], [1.0], [0.0, 1.0], [0.99, 0.5, 0.01], [0.7] * 20, [0.999] * 50 + [0.2] * 9])
def test_the_floor_is_exact_where_confidences_of_a_bin_are_equal(confidence):
    assert calibration.calibration_floor(confidence) == pytest.approx(exact_floor(np.array(confidence)), rel=1e-10, abs=1e-14)


@pytest.mark.parametrize("power", [0.02, 0.2, 1.0])  # top-1 of about 98%, 83%, 50%
@pytest.mark.parametrize("num_samples", [40, 360])
def test_the_floor_is_near_the_exact_one(power, num_samples):
    confidence = np.random.default_rng(0).random(num_samples) ** power
    assert calibration.calibration_floor(confidence) == pytest.approx(exact_floor(confidence), rel=0.007)


def test_the_floor_is_the_mean_ece_of_a_calibrated_network():
    rng = np.random.default_rng(1)
    confidence = rng.random(500) ** 0.2
    errors = [calibration.expected_calibration_error(confidence, rng.random(500) < confidence) for _ in range(2000)]
    error = 4 * np.std(errors) / len(errors) ** 0.5
    assert calibration.calibration_floor(confidence) == pytest.approx(np.mean(errors), abs=error + 0.01 * np.mean(errors))
    assert np.mean(errors) > 10 * error


# The debiased squared error.


def pairs_of_gaps(confidence, correct, num_bins=15):
    """sum_b n_b / N times the mean product of the gaps of two different images of bin b."""
    index, gap, total = calibration.bin_index(confidence, num_bins), confidence - correct, 0.0
    for b in set(index.tolist()):
        own = gap[index == b]
        if len(own) > 1:
            total += len(own) * np.mean([x * y for i, x in enumerate(own) for j, y in enumerate(own) if i != j])
    return total / len(confidence)


@pytest.mark.parametrize("num_bins", [1, 4, 15])
@pytest.mark.parametrize("case", CASES)
def test_debiased_error_is_the_mean_over_pairs(case, num_bins):
    confidence, correct = (np.asarray(values) for values in CASES[case])
    expected = pairs_of_gaps(confidence.astype(float), correct, num_bins)
    assert calibration.debiased_squared_error(confidence, correct, num_bins) == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_debiased_error_is_that_of_kumar_where_confidences_of_a_bin_are_equal():
    confidence, correct = np.repeat([0.2, 0.5, 0.9], [8, 30, 5]), np.arange(43) % 3 == 0
    expected = 0.0
    for value in (0.2, 0.5, 0.9):
        own = correct[confidence == value]
        expected += len(own) / 43 * ((value - own.mean()) ** 2 - own.mean() * (1 - own.mean()) / (len(own) - 1))
    assert calibration.debiased_squared_error(confidence, correct) == pytest.approx(expected, **EXACT)


@pytest.mark.parametrize("overconfidence", [0.0, 0.2])
def test_debiased_error_is_not_biased_and_the_plain_one_is(overconfidence):
    rng = np.random.default_rng(2)
    levels = np.array([0.25, 0.55, 0.85, 0.97])
    expected = np.mean((overconfidence * levels) ** 2)  # the levels lie in four bins and are equally frequent
    debiased, plain = [], []
    for _ in range(2000):
        confidence = rng.choice(levels, 200)
        correct = rng.random(200) < confidence * (1 - overconfidence)
        debiased.append(calibration.debiased_squared_error(confidence, correct))
        bins = calibration.calibration_bins(confidence, correct)
        plain.append(np.nansum(bins.count / 200 * (bins.mean_confidence - bins.accuracy) ** 2))
    error = 4 * np.std(debiased) / 2000**0.5
    assert np.mean(debiased) == pytest.approx(expected, abs=error)
    assert np.mean(plain) - expected > 4 * error
    assert min(debiased) < 0 or overconfidence


def test_centred_gaps_give_the_part_of_second_order():
    """Resampled within bins, the squared error is the linear part plus the squares of the resampled centred gaps, exactly."""
    confidence, correct = random_case(5)
    index, weight, centred = calibration.centred_gaps(confidence, correct, 7)
    gap, rng = confidence - correct, np.random.default_rng(0)
    mean = np.array([gap[index == b].mean() for b in range(7)])
    drawn = np.concatenate([rng.choice(np.flatnonzero(index == b), (index == b).sum()) for b in range(7)])
    linear = np.mean((2 * gap * mean[index] - mean[index] ** 2)[drawn])
    second = sum(weight[b] * centred[drawn[index[drawn] == b]].sum() ** 2 for b in range(7))
    resampled = [gap[drawn[index[drawn] == b]].mean() for b in range(7)]
    assert linear + second == pytest.approx(sum(weight * np.square(resampled)), **EXACT)
    assert second > 0.01 * linear
    np.testing.assert_array_equal(weight, np.bincount(index, minlength=7) / 400)
    np.testing.assert_allclose(np.bincount(index, weights=centred), 0, atol=1e-15)


# Smooth calibration error.


def smoothed_by_definition(confidence, correct, width, points=20_001):
    """The integral of the smoothed gap with a kernel that sums over the images' reflections."""
    t, total = np.linspace(0, 1, points), np.zeros(points)
    for c, gap in zip(confidence, confidence - correct, strict=True):
        total += gap * sum(norm.pdf(t, loc=2 * k + sign * c, scale=width) for k in range(-2, 3) for sign in (1, -1))
    return trapezoid(np.abs(total), t) / len(confidence)


@pytest.mark.parametrize("overconfidence", [0.0, 0.3])
def test_smooth_error_is_the_fixed_point_of_the_definition(overconfidence):
    rng = np.random.default_rng(3)
    confidence = np.append(rng.random(60) ** 0.3, [0.0, 1.0])
    correct = rng.random(62) < confidence * (1 - overconfidence)
    error = calibration.smooth_calibration_error(confidence, correct)
    assert smoothed_by_definition(confidence, correct, error) == pytest.approx(error, abs=1e-5)
    assert 0.02 < error < 0.5


@pytest.mark.parametrize("overconfidence", [-0.1, 0.0, 0.1, 0.3])
@pytest.mark.parametrize("num_samples", [360, 20_000])
def test_smooth_error_matches_relplot(num_samples, overconfidence):
    rng = np.random.default_rng(4)
    confidence = rng.random(num_samples) ** 0.3
    correct = rng.random(num_samples) < confidence - overconfidence * confidence * (1 - confidence) * 4
    expected = relplot.smECE(confidence, correct.astype(float))  # by steps of 1/1024 in the width of its kernel
    assert calibration.smooth_calibration_error(confidence, correct) == pytest.approx(expected, abs=1e-3)


def test_smooth_error_extremes():
    assert calibration.smooth_calibration_error([1.0, 0.0, 1.0], [True, False, True]) == pytest.approx(0, abs=1e-11)
    assert calibration.smooth_calibration_error([1.0, 0.0], [False, True]) > 0.2  # gaps 1 and -1, far from each other
    assert calibration.smooth_calibration_error([1.0, 1.0], [False, False]) == pytest.approx(1)
    # Calibrated at 0.2 and a gap of 0.4 in the other half; relplot counts images at 1 half and gives 0.134.
    at_one = calibration.smooth_calibration_error([0.2] * 5 + [1.0] * 5, [1, 0, 0, 0, 0, 1, 1, 1, 0, 0])
    assert at_one == pytest.approx(0.2, abs=1e-11)
    same_place = calibration.smooth_calibration_error([0.5, 0.5], [True, False])
    assert same_place == pytest.approx(0, abs=1e-11)


# Class-wise error.


def random_probabilities(seed, num_samples, num_classes):
    logp, label = random_logp(seed, num_samples, num_classes)
    return np.exp(logp), label


def test_classwise_matches_torchmetrics_class_by_class():
    p, label = random_probabilities(0, 500, 6)
    assert np.abs(p.reshape(-1, 1) - EDGES).min() > 1e-7
    own = [torch.from_numpy(p[:, c].copy()) for c in range(6)]
    errors = [binary_calibration_error(own[c], torch.from_numpy(label == c).int(), n_bins=15) for c in range(6)]
    assert calibration.classwise_calibration_error(p, label) == pytest.approx(float(np.mean(errors)), abs=5e-7)
    assert np.mean(errors) > 0.01


@pytest.mark.parametrize("num_bins", [1, 2, 15])
@pytest.mark.parametrize("num_classes", [1, 2, 7])
def test_classwise_is_the_mean_ece_of_the_classes(num_classes, num_bins):
    p, label = random_probabilities(1, 5000, num_classes)  # more rows than are converted at a time
    p[:4] = np.eye(num_classes)[np.arange(4) % num_classes]  # certain, right or wrong
    p[4] = 1 / num_classes
    label[label == num_classes - 1] = 0  # a class without images
    errors = [calibration.expected_calibration_error(p[:, c].clip(0, 1), label == c, num_bins) for c in range(num_classes)]
    assert calibration.classwise_calibration_error(p, label, num_bins) == pytest.approx(np.mean(errors), rel=1e-10, abs=1e-14)
    order = np.random.default_rng(0).permutation(5000)
    again = calibration.classwise_calibration_error(p[order].tolist(), label[order], num_bins)
    assert again == pytest.approx(np.mean(errors), rel=1e-10, abs=1e-14)


def test_classwise_edges_belong_to_the_lower_bin():
    p = np.stack([EDGES, 1 - EDGES], axis=1)
    errors = [calibration.expected_calibration_error(p[:, c], [c == 0] * 16) for c in range(2)]
    assert calibration.classwise_calibration_error(p, [0] * 16) == pytest.approx(np.mean(errors), **EXACT)
    assert calibration.classwise_calibration_error([[1.0005, 0.0]], [0], 1) == 0  # rounded above 1


@pytest.mark.parametrize(
    ("probabilities", "labels", "message"),
    [
        (np.zeros((0, 3)), [], r"non-empty \(N, C\)"),
        ([0.5, 0.5], [0], r"\(N, C\) array, got shape \(2,\)"),
        ([[3.0, 1.0]], [0], "sum of 1, got others in rows 0..0"),
        ([[1.5, -0.5]], [0], "probabilities must be >= 0"),
        ([[math.nan, 1.0]], [0], "sum of 1"),
        ([[0.5, 0.5]], [2], r"labels must be integers in 0..1"),
        ([[0.5, 0.5]], [0, 1], r"labels must be a \(1,\) array"),
    ],
)
def test_classwise_refuses(probabilities, labels, message):
    with pytest.raises(ValueError, match=message) as error:
        calibration.classwise_calibration_error(probabilities, labels)
    assert "\n" not in str(error.value)


# Properties of every score.


def test_the_docs_define_each_metric_in_the_words_of_the_page():
    lines = (REPOSITORY / "docs" / "calibration.md").read_text().splitlines()
    for key, metric in metrics.METRICS.items():
        assert any(line.startswith("| `") and f"`{key}`" in line and f"| {metric.meaning} |" in line for line in lines), key


SCORES = {name: function for name, (function, _) in CALIBRATION.items()}
SCORES["smooth"] = calibration.smooth_calibration_error
SCORES["aurc"] = risk_coverage.area_under_risk_coverage
SCORES["augrc"] = risk_coverage.area_under_generalized_risk_coverage
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


BINNED = [function for function, _ in CALIBRATION.values()]
BINNED += [calibration.debiased_squared_error, calibration.debiased_squared_terms, calibration.centred_gaps]
BINNED += [lambda confidence, correct, num_bins: calibration.calibration_floor(confidence, num_bins)]
BINNED += [lambda *_: calibration.classwise_calibration_error([[0.5, 0.5]], [1], 0)]


@pytest.mark.parametrize("function", BINNED)
def test_scores_refuse_no_bins(function):
    with pytest.raises(ValueError, match="num_bins must be >= 1, got 0"):
        function([0.5], [True], 0)


def test_classes_are_checked():
    with pytest.raises(ValueError, match=r"num_bins must be >= 1, got 0"):
        calibration.top_label_calibration_error([0.5], [True], [0], 1, 0)
    with pytest.raises(ValueError, match=r"prediction must be integers in 0..2, got .* 3..3"):
        calibration.top_label_calibration_error([0.5], [True], [3], 3)
    with pytest.raises(ValueError, match="prediction must be integers"):
        calibration.top_label_calibration_error([0.5], [True], [1.0], 3)
