"""Reliability diagrams and accuracy over coverage, against calibration_bins, SciPy's Wilson interval, AURC and simulation."""

import numpy as np
import pandas as pd
import pytest
from made_report import NONE, made_report, noise
from scipy.stats import binomtest

from gch_bench.calibration import NUM_BINS, bin_index, calibration_bins
from gch_bench.report.record_figures import accuracy_coverage, reliability, selective_accuracy, wilson
from gch_bench.results.records import Cell
from gch_bench.risk_coverage import area_under_risk_coverage

CELLS = [Cell("fog", 1), Cell("fog", 2), Cell("snow", 1), Cell("snow", 2)]


def cell(confidence: np.ndarray, correct: np.ndarray) -> pd.DataFrame:
    return pd.DataFrame({"confidence": confidence, "prediction": np.zeros(len(correct), int), "label": (~correct).astype(int)})


def test_bins_are_those_of_all_rows_together() -> None:
    rng = np.random.default_rng(0)
    confidence, correct = rng.uniform(0.2, 1, (3, 50)), rng.random((3, 50)) < 0.6
    found = reliability([cell(*each) for each in zip(confidence, correct, strict=True)])
    expected = calibration_bins(confidence.ravel(), correct.ravel())
    np.testing.assert_array_equal(found.count, expected.count)
    np.testing.assert_allclose(found.confidence, expected.mean_confidence, rtol=1e-12)
    np.testing.assert_allclose(found.accuracy, expected.accuracy, rtol=1e-12)
    index = bin_index(confidence.ravel()).reshape(3, 50)
    assert list(found.images) == [len({i for row in index for i in np.flatnonzero(row == b)}) for b in range(NUM_BINS)]


def test_the_band_of_one_cell_is_wilsons() -> None:
    rng = np.random.default_rng(1)
    confidence = rng.uniform(0.3, 1, 300)
    correct = rng.random(300) < confidence
    correct[confidence > 0.93] = True  # a bin without a mistake still has a band
    found, index = reliability([cell(confidence, correct)]), bin_index(confidence)
    for b in set(index):
        inside = correct[index == b]
        expected = binomtest(int(inside.sum()), len(inside)).proportion_ci(method="wilson")
        assert (found.low[b], found.high[b]) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_bands_cover_the_truth_where_cells_share_their_images() -> None:
    """20 cells in which an image is nearly always right or nearly always wrong: independent rows would promise too much."""
    rng = np.random.default_rng(2)
    hits, naive = 0, 0
    for _ in range(150):
        chance = rng.beta(0.4, 0.2, 100)  # of each image; the mean is 2/3
        found = reliability([cell(np.full(100, 0.7), rng.random(100) < chance) for _ in range(20)])
        b = int(bin_index([0.7])[0])
        low, high = wilson(found.accuracy[b], found.count[b])
        hits += bool(found.low[b] <= 2 / 3 <= found.high[b])
        naive += bool(low <= 2 / 3 <= high)
    assert hits >= 134  # 89.3%, three standard errors under 95%
    assert naive < 90


def test_selective_accuracy_is_one_minus_the_risk_of_aurc() -> None:
    rng = np.random.default_rng(3)
    confidence = rng.integers(3, 10, 200) / 10  # many ties
    correct = rng.random(200) < confidence
    curve = selective_accuracy(confidence, correct)
    assert curve.mean() == pytest.approx(1 - area_under_risk_coverage(confidence, correct), rel=1e-12)
    assert curve[-1] == pytest.approx(correct.mean())


def test_accuracy_at_full_coverage_is_top1() -> None:
    report = made_report([NONE, noise("gch", gamma=1.0), noise("dropblock", p=0.1)], CELLS)
    figure = accuracy_coverage(report.settings[0], report.rows)
    raw = report.rows[(report.rows["metric"] == "top1") & (report.rows["temperature"] == "raw")]
    for axis, part in zip(figure.axes, ("clean", "mean"), strict=True):
        top1 = raw[raw["corruption"] == part].set_index("mechanism")["value"]
        assert [line.get_label() for line in axis.lines] == ["none", "gch", "dropblock"]
        for line, mechanism in zip(axis.lines, [group.mechanism for group in report.settings[0].groups], strict=True):
            assert line.get_ydata()[-1] == pytest.approx(100 * top1[mechanism])
            assert line.get_xdata()[-1] == 100
