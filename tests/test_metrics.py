"""Metrics against torchmetrics, scikit-learn, SciPy and plain loops; adversarial inputs; properties over METRICS."""

import itertools
import math

import numpy as np
import pytest
import torch
from metric_references import (
    cell,
    loop_aurc_in_order,
    loop_classwise,
    loop_ece,
    loop_equal_mass,
    loop_max_ce,
    random_case,
    random_logp,
)
from scipy.integrate import trapezoid
from scipy.special import log_softmax
from scipy.stats import entropy as scipy_entropy
from sklearn.metrics import brier_score_loss, log_loss, roc_auc_score, top_k_accuracy_score
from torchmetrics.functional.classification import multiclass_accuracy

from gch_bench import calibration, metrics, risk_coverage
from gch_bench.metrics import METRICS

EXACT = {"rel": 1e-12, "abs": 1e-14}  # float64 sums in another order


# Atoms.


def test_atoms_match_other_libraries():
    logp, label = random_logp(0, num_classes=9)
    atoms = metrics.sample_atoms(logp, label)
    p, hot = np.exp(logp), np.eye(9)[label]
    np.testing.assert_array_equal(atoms.prediction, torch.from_numpy(logp).argmax(1).numpy())
    np.testing.assert_array_equal(atoms.confidence, p.max(axis=1))
    np.testing.assert_array_equal(atoms.nll, -logp[np.arange(len(label)), label])
    assert atoms.nll.mean() == pytest.approx(log_loss(label, p / p.sum(1, keepdims=True), labels=range(9)), rel=1e-12)
    np.testing.assert_allclose(atoms.brier, ((p - hot) ** 2).sum(axis=1), rtol=1e-12)
    one_class_each = [brier_score_loss(label == c, p[:, c]) for c in range(9)]
    assert atoms.brier.mean() == pytest.approx(sum(one_class_each), rel=1e-12)
    np.testing.assert_allclose(atoms.entropy, scipy_entropy(p, axis=1), rtol=1e-12)
    assert atoms.top5.mean() == pytest.approx(top_k_accuracy_score(label, p, k=5, labels=range(9)), abs=1e-15)
    assert 0 < atoms.top5.sum() < len(label)


@pytest.mark.parametrize("k", [1, 2, 5, 6])
def test_top_k_matches_torchmetrics(k):
    logp, label = random_logp(1)
    expected = multiclass_accuracy(torch.from_numpy(logp), torch.from_numpy(label), 7, average="micro", top_k=k)
    assert round(metrics.top_k_accuracy(logp, label, k) * len(label)) == round(float(expected) * len(label))
    assert 0 < expected < 1


def test_top_k_breaks_ties_in_class_order_as_stable_sort_does():
    logits = np.random.default_rng(2).integers(0, 3, (200, 9)).astype(float)
    label = np.random.default_rng(3).integers(0, 9, 200)
    logp = log_softmax(logits, axis=1)
    order = np.argsort(-logits, axis=1, kind="stable")
    atoms = metrics.sample_atoms(logp, label)
    np.testing.assert_array_equal(atoms.prediction, order[:, 0])
    np.testing.assert_array_equal(atoms.top5, [lab in row[:5] for lab, row in zip(label, order, strict=True)])
    for k in range(1, 10):
        expected = np.mean([lab in row[:k] for lab, row in zip(label, order, strict=True)])
        assert metrics.top_k_accuracy(logp, label, k) == expected
    assert metrics.top_k_accuracy(logp, label, 1) == (atoms.prediction == label).mean()


def test_atoms_of_certain_predictions():
    logp = np.array([[0.0, -np.inf, -np.inf], [0.0, -np.inf, -np.inf], [0.0, -1000.0, -2000.0]])
    atoms = metrics.sample_atoms(logp, [0, 1, 1])
    np.testing.assert_array_equal(atoms.confidence, [1, 1, 1])
    np.testing.assert_array_equal(atoms.nll, [0, -np.log(np.finfo(float).tiny), 1000])
    np.testing.assert_array_equal(atoms.brier, [0, 2, 2])
    np.testing.assert_array_equal(atoms.entropy, [0, 0, 0])
    np.testing.assert_array_equal(atoms.top5, [True, True, True])


def test_brier_keeps_precision_near_certainty():
    logp = np.log(np.array([[1 - 2.0**-30, 2.0**-30]]))
    assert metrics.sample_atoms(logp, [0]).brier[0] == pytest.approx(2 * 2.0**-60, rel=1e-6)


def test_one_class_and_few_classes():
    atoms = metrics.sample_atoms(np.zeros((3, 1)), [0, 0, 0])
    np.testing.assert_array_equal(np.stack(atoms), np.array([[0], [1], [0], [0], [1], [0]]) * np.ones((1, 3)))
    logp, label = random_logp(4, num_classes=5)
    assert metrics.sample_atoms(logp, label).top5.all()
    assert metrics.top_k_accuracy(logp, label, 6) == 1


def test_atoms_do_not_depend_on_the_batch_and_leave_input_alone():
    logp, label = random_logp(5)
    before = logp.copy()
    whole = metrics.sample_atoms(logp, label)
    np.testing.assert_array_equal(logp, before)
    parts = [metrics.sample_atoms(logp[i : i + 37], label[i : i + 37]) for i in range(0, 300, 37)]
    for name in ("prediction", "confidence", "nll", "top5"):
        np.testing.assert_array_equal(np.concatenate([getattr(part, name) for part in parts]), getattr(whole, name))


# Risk-coverage.


def test_aurc_matches_loops():
    confidence, correct = random_case(3)
    errors = (~correct[np.argsort(-confidence)]).astype(int).tolist()
    assert risk_coverage.area_under_risk_coverage(confidence, correct) == pytest.approx(loop_aurc_in_order(errors), **EXACT)


def test_aurc_with_ties_is_the_mean_over_their_orders():
    confidence, correct = [0.9, 0.5, 0.5, 0.5, 0.5, 0.2], [True, False, True, True, False, False]
    orders = [[0, *middle, 1] for middle in itertools.permutations([1, 0, 0, 1])]
    expected = np.mean([loop_aurc_in_order(errors) for errors in orders])
    assert risk_coverage.area_under_risk_coverage(confidence, correct) == pytest.approx(expected, **EXACT)
    assert len({loop_aurc_in_order(errors) for errors in orders}) > 1


def test_aurc_extremes():
    assert risk_coverage.area_under_risk_coverage([0.3, 0.3, 1.0], [True] * 3) == 0
    assert risk_coverage.area_under_risk_coverage([0.3, 0.0, 1.0], [False] * 3) == 1
    assert risk_coverage.area_under_risk_coverage([0.9, 0.1], [True, False]) == 0.25
    assert risk_coverage.area_under_risk_coverage([0.1, 0.9], [True, False]) == 0.75


def test_augrc_is_the_area_under_the_line_through_all_coverages():
    confidence, correct = random_case(6)
    wrong = np.concatenate([[0], np.cumsum(~correct[np.argsort(-confidence)])]) / 400
    expected = trapezoid(wrong, np.arange(401) / 400)
    assert risk_coverage.area_under_generalized_risk_coverage(confidence, correct) == pytest.approx(expected, **EXACT)


@pytest.mark.parametrize("levels", [5, 10**9])
def test_augrc_is_a_function_of_accuracy_and_auroc(levels):
    confidence, correct = random_case(7)
    confidence, a = np.ceil(confidence * levels) / levels, correct.mean()
    expected = (1 - roc_auc_score(correct, confidence)) * a * (1 - a) + (1 - a) ** 2 / 2  # Traub et al. 2024
    assert risk_coverage.area_under_generalized_risk_coverage(confidence, correct) == pytest.approx(expected, **EXACT)


def test_augrc_extremes():
    assert risk_coverage.area_under_generalized_risk_coverage([0.3, 0.3, 1.0], [True] * 3) == 0
    assert risk_coverage.area_under_generalized_risk_coverage([0.3, 0.0, 1.0], [False] * 3) == pytest.approx(0.5)
    assert risk_coverage.area_under_generalized_risk_coverage([0.9, 0.1], [True, False]) == 0.125
    assert risk_coverage.area_under_generalized_risk_coverage([0.1, 0.9], [True, False]) == 0.375


# Influences.

INFLUENCES = [key for key, metric in METRICS.items() if metric.influence]


def tied_cell(levels, scale=1.2):
    """A cell whose confidences are rounded up to so many levels, with all columns that may be missing."""
    frame = cell(scale=scale).assign(classwise_ce=0.1, nll_refined=cell()["nll"] / 2, brier_refined=cell()["brier"] / 2)
    return frame.assign(confidence=np.ceil(frame["confidence"] * levels) / levels)


def test_only_metrics_with_a_valid_interval_have_an_influence():
    without = {"ece", "ece_floor", "ece_equal_mass", "ece_top_label", "max_ce", "smece"}
    assert set(METRICS) - set(INFLUENCES) == without | {"classwise_ce", "nll_calibration", "brier_calibration"}
    assert not any(metric.shown for metric in METRICS.values() if metric.column)


@pytest.mark.parametrize("levels", [1, 4, 10**9])
@pytest.mark.parametrize("key", INFLUENCES)
def test_the_mean_influence_is_the_metric(key, levels):
    frame = tied_cell(levels)
    values = METRICS[key].influence(metrics.cell_atoms(frame, 7))
    assert values.shape == (300,)
    assert values.mean() == pytest.approx(metrics.summarize(frame, 7)[key], rel=1e-12)


@pytest.mark.parametrize("levels", [4, 10**9])
@pytest.mark.parametrize("key", INFLUENCES)
def test_an_influence_is_what_leaving_the_image_out_changes(key, levels):
    frame = tied_cell(levels, scale=2.0)  # not well calibrated, so that the squared error has a large linear part
    whole = metrics.cell_atoms(frame, 7)
    values, estimate = METRICS[key].influence(whole), METRICS[key].formula(whole)
    columns = {name: frame[name].to_numpy() for name in frame}
    jackknife = []
    for i in range(300):
        rest = metrics.cell_atoms({name: np.delete(column, i) for name, column in columns.items()}, 7)
        jackknife.append(estimate + 299 * (estimate - METRICS[key].formula(rest)))
    distance = {"ce2_debiased": 0.05, "aurc": 0.02}.get(key, 0.01)
    assert np.std(values) == pytest.approx(np.std(jackknife), rel=distance)
    assert np.corrcoef(values, jackknife)[0, 1] > 1 - distance


@pytest.mark.parametrize("levels", [1, 4, 10**9])
@pytest.mark.parametrize("key", METRICS)
def test_the_order_of_rows_changes_nothing(key, levels):
    frame, order = tied_cell(levels), np.random.default_rng(0).permutation(300)
    one, two = (metrics.cell_atoms(rows, 7) for rows in (frame, frame.iloc[order]))
    assert METRICS[key].formula(two) == pytest.approx(METRICS[key].formula(one), rel=1e-11)
    if METRICS[key].influence:
        np.testing.assert_allclose(METRICS[key].influence(two), METRICS[key].influence(one)[order], rtol=1e-9, atol=1e-12)


# Summaries.


def test_summary_keys_and_values():
    frame = cell(scale=1.2)
    summary = metrics.summarize(frame, num_classes=7)
    confidence, prediction = frame["confidence"].to_numpy(), frame["prediction"].to_numpy()
    correct = prediction == frame["label"].to_numpy()
    expected = {
        "n": 300,
        "top1": correct.mean(),
        "top5": frame["top5"].mean(),
        "nll": frame["nll"].mean(),
        "brier": frame["brier"].mean(),
        "ece": loop_ece(confidence, correct),
        "ece_floor": calibration.calibration_floor(confidence),
        "ece_equal_mass": loop_equal_mass(confidence, correct),
        "ece_top_label": loop_classwise(confidence, correct, prediction),
        "max_ce": loop_max_ce(confidence, correct),
        "ce2_debiased": calibration.debiased_squared_error(confidence, correct),
        "smece": calibration.smooth_calibration_error(confidence, correct),
        "signed_gap": confidence.mean() - correct.mean(),
        "aurc": loop_aurc_in_order((~correct[np.argsort(-confidence)]).astype(int).tolist()),
        "augrc": risk_coverage.area_under_generalized_risk_coverage(confidence, correct),
        "entropy": frame["entropy"].mean(),
        "confidence": confidence.mean(),
    }
    assert list(summary) == list(expected)
    assert summary == pytest.approx(expected, rel=1e-12)
    assert metrics.summarize({name: frame[name].to_numpy() for name in frame}, 7) == summary
    assert len({round(value, 6) for value in summary.values()}) == len(summary) == 17  # no two keys stand in for each other


def test_metrics_from_logits_appear_with_their_columns():
    frame = cell().assign(nll_refined=0.5, brier_refined=0.25, classwise_ce=0.125)
    summary = metrics.summarize(frame, num_classes=7)
    assert list(summary) == ["n", *metrics.METRICS]
    assert {key: summary[key] for key in metrics.METRICS if metrics.METRICS[key].column} == pytest.approx(
        {
            "classwise_ce": 0.125,
            "nll_refinement": 0.5,
            "nll_calibration": frame["nll"].mean() - 0.5,
            "brier_refinement": 0.25,
            "brier_calibration": frame["brier"].mean() - 0.25,
        }
    )
    with pytest.raises(ValueError, match=r"nll_refined must be a \(300,\) array"):
        metrics.summarize({**frame, "nll_refined": [0.5]}, num_classes=7)


def test_mean_corruption_is_over_severities_then_corruptions_without_clean():
    cells = {("clean", 0): {"top1": 100.0, "ece": 7.0}}
    for s in (1, 2, 3):
        cells["fog", s] = {"top1": 0.1 * s, "ece": 0.0}
        cells["snow", s] = {"top1": 0.2 * s, "ece": 0.3}
    assert metrics.mean_corruption(cells, ["top1"]) == {"top1": pytest.approx(0.3)}
    assert list(metrics.mean_corruption(cells, ["ece", "top1"])) == ["ece", "top1"]
    extra = {("spatter", 1): {"top1": 0.9}, ("saturate", 1): {"top1": 0.7}}
    assert metrics.mean_corruption(cells | extra, ["top1"]) == {"top1": pytest.approx(0.3)}  # never beside the 15
    assert metrics.mean_corruption(extra, ["top1"]) == {"top1": pytest.approx(0.8)}
    del cells["fog", 3]
    with pytest.raises(ValueError, match=r"same severities, got .*'fog': \[1, 2\]"):
        metrics.mean_corruption(cells, ["top1"])
    with pytest.raises(ValueError, match="cells must hold corruptions"):
        metrics.mean_corruption({("clean", 0): {"top1": 1.0}}, ["top1"])


def test_relative_mean_corruption_error_is_of_what_is_added_to_the_clean_error():
    baseline, errors = {"fog": 0.5, "snow": 0.8}, {"fog": [0.1, 0.3], "snow": [0.6, 0.6]}
    expected = ((0.2 - 0.05) / (0.5 - 0.4) + (0.6 - 0.05) / (0.8 - 0.4)) / 2
    assert metrics.relative_mean_corruption_error(errors, 0.05, baseline, 0.4) == pytest.approx(expected, **EXACT)
    as_baseline = {name: [error] * 5 for name, error in baseline.items()}
    assert metrics.relative_mean_corruption_error(as_baseline, 0.4, baseline, 0.4) == pytest.approx(1, **EXACT)
    with pytest.raises(ValueError, match="missing \\['snow'\\]"):
        metrics.relative_mean_corruption_error({"fog": [0.1]}, 0.05, baseline, 0.4)


def test_mean_corruption_error_is_a_mean_of_ratios():
    baseline = {"fog": 0.8, "snow": 0.5}
    errors = {"snow": [0.1, 0.3], "fog": [0.4, 0.8]}
    assert metrics.mean_corruption_error(errors, baseline) == pytest.approx((0.2 / 0.5 + 0.6 / 0.8) / 2, **EXACT)
    assert metrics.mean_corruption_error({name: [e] * 5 for name, e in baseline.items()}, baseline) == pytest.approx(1, **EXACT)


@pytest.mark.parametrize(
    ("errors", "baseline", "message"),
    [
        ({"fog": [0.1], "rain": [0.1]}, {"fog": 0.5}, r"unknown \['rain'\]"),
        ({"fog": [0.1]}, {"fog": 0.5, "snow": 0.5}, r"missing \['snow'\]"),
        ({}, {}, "must name"),
        ({"fog": []}, {"fog": 0.5}, "fog"),
        ({"fog": [0.1, 0.2], "snow": [0.1]}, {"fog": 0.5, "snow": 0.5}, "snow"),
        ({"fog": [10.0]}, {"fog": 0.5}, "percent"),
        ({"fog": [math.nan]}, {"fog": 0.5}, "nan"),
        ({"fog": [0.1]}, {"fog": 81.9}, "81.9"),
        ({"fog": [0.1]}, {"fog": 0.0}, "fog"),
    ],
)
def test_mean_corruption_error_refuses(errors, baseline, message):
    with pytest.raises(ValueError, match=message):
        metrics.mean_corruption_error(errors, baseline)


# Bad input.


def test_classes_are_checked():
    with pytest.raises(ValueError, match=r"label must be integers in 0..5"):
        metrics.summarize(cell(), num_classes=6)
    frame = dict(cell().items())
    frame["nll"] = frame["nll"][:-1]
    with pytest.raises(ValueError, match=r"nll must be a \(300,\) array"):
        metrics.summarize(frame, num_classes=7)


@pytest.mark.parametrize(
    ("logp", "labels", "message"),
    [
        (np.zeros((0, 3)), [], r"non-empty \(N, C\)"),
        (np.zeros(3), [0], r"\(N, C\) array, got shape \(3,\)"),
        ([[3.0, 1.0]], [0], "sum to 1, got a sum of 22.8"),
        ([[1000.0, 0.0]], [0], "sum to 1, got a sum of inf"),
        ([[math.nan, 0.0]], [0], "sum to 1, got a sum of nan"),
        (np.log([[0.5, 0.5]]), [2], r"labels must be integers in 0..1, got .* 2..2"),
        (np.log([[0.5, 0.5]]), [-1], "labels must be integers"),
        (np.log([[0.5, 0.5]]), [0, 1], r"labels must be a \(1,\) array"),
        (np.log([[0.5, 0.5]]), [0.0], "labels must be integers"),
    ],
)
def test_atoms_refuse(logp, labels, message):
    for call in (metrics.sample_atoms, lambda *args: metrics.top_k_accuracy(*args, 1)):
        with pytest.raises(ValueError, match=message):
            call(logp, labels)


def test_top_k_refuses_k_below_one():
    with pytest.raises(ValueError, match="k must be >= 1, got 0"):
        metrics.top_k_accuracy(np.log([[0.5, 0.5]]), [0], 0)
