"""Paired bootstrap against a naive loop over resampled rows, and what an interval must satisfy."""

import numpy as np
import pandas as pd
import pytest

from gch_bench.metrics import sample_atoms
from gch_bench.report import statistics
from gch_bench.report.statistics import KEYS, Interval, interval, paired_differences


def make_run(seed, num_images=60, num_cells=3, strength=1.0, sharpness=1.0):
    """Cells of 4 classes; each image has a difficulty shared by all cells and runs. Higher strength is more accurate."""
    shared, rng = np.random.default_rng(99), np.random.default_rng(seed)
    label = shared.integers(0, 4, num_images)
    ease = shared.normal(0, 1, num_images)
    cells = []
    for _ in range(num_cells):
        logits = rng.normal(0, 1, (num_images, 4)) + (strength + ease)[:, None] * np.eye(4)[label]
        logits *= sharpness
        logp = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        cells.append(pd.DataFrame({"id": np.arange(num_images) * 3, "label": label, **sample_atoms(logp, label)._asdict()}))
    return cells


def naive_ece(confidence, correct):
    edges = np.linspace(0, 1, 16)
    total = 0.0
    for b in range(15):
        inside = (confidence > edges[b]) & (confidence <= edges[b + 1])
        if inside.any():
            total += inside.mean() * abs(confidence[inside].mean() - correct[inside].mean())
    return total


def naive_means(cells, rows):
    per_cell = []
    for cell in cells:
        drawn = cell.iloc[rows]
        correct = (drawn["prediction"] == drawn["label"]).to_numpy()
        ece = naive_ece(drawn["confidence"].to_numpy(), correct)
        per_cell.append([correct.mean(), ece, drawn["nll"].mean(), drawn["brier"].mean()])
    return np.mean(per_cell, axis=0)


def naive_intervals(function, num_images, num_resamples, seed, level):
    """Intervals of function(rows) -> (4,), redrawing the rows of every resample one by one."""
    rng = np.random.default_rng(seed)
    resampled = np.array([function(rng.integers(0, num_images, size=num_images)) for _ in range(num_resamples)])
    low, high = np.quantile(resampled, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return {key: Interval(*values) for key, *values in zip(KEYS, function(np.arange(num_images)), low, high, strict=True)}


def assert_close(got, expected):
    assert list(got) == list(expected) == list(KEYS)
    for key in KEYS:
        assert got[key] == pytest.approx(expected[key], rel=1e-10, abs=1e-13), key


@pytest.mark.parametrize(("seed", "level"), [(0, 0.95), (7, 0.5)])
def test_paired_differences_match_a_naive_loop(seed, level):
    first, second = make_run(1), make_run(2, strength=1.5)
    expected = naive_intervals(lambda rows: naive_means(second, rows) - naive_means(first, rows), 60, 40, seed, level)
    assert_close(paired_differences(first, second, num_resamples=40, seed=seed, level=level), expected)


def test_interval_matches_a_naive_loop():
    cells = make_run(1)
    assert_close(interval(cells, 40, 3, 0.9), naive_intervals(lambda rows: naive_means(cells, rows), 60, 40, 3, 0.9))


@pytest.mark.parametrize("block_bytes", [1, 8 * 60 * 7, 8 * 60 * 15 * 2])
def test_blocks_of_resamples_and_cells_change_nothing(monkeypatch, block_bytes):
    first, second = make_run(1), make_run(2)
    whole = paired_differences(first, second, num_resamples=23)
    monkeypatch.setattr(statistics, "_BLOCK_BYTES", block_bytes)
    assert_close(paired_differences(first, second, num_resamples=23), whole)


def test_identical_runs_differ_by_exactly_zero():
    cells = make_run(1, num_images=501, num_cells=5)
    differences = paired_differences(cells, [cell.copy() for cell in cells], num_resamples=50)
    assert differences == {key: Interval(0.0, 0.0, 0.0) for key in KEYS}


def test_swapping_the_runs_flips_the_sign():
    first, second = make_run(1), make_run(2, strength=2.0)
    forward, backward = (paired_differences(a, b, 100) for a, b in ((first, second), (second, first)))
    for key in KEYS:
        mirrored = (-backward[key].estimate, -backward[key].high, -backward[key].low)
        assert forward[key] == pytest.approx(mirrored, rel=1e-9, abs=1e-13)


def test_a_constant_shift_has_an_interval_of_no_width():
    first = make_run(1)
    second = [cell.assign(nll=cell["nll"] + 0.25) for cell in first]
    differences = paired_differences(first, second, 50)
    assert differences["nll"] == pytest.approx((0.25, 0.25, 0.25), rel=1e-12)
    assert differences["brier"] == Interval(0.0, 0.0, 0.0)


def test_seed_and_level_matter():
    first, second = make_run(1), make_run(2)
    default = paired_differences(first, second, 200)
    assert default == paired_differences(first, second, 200, seed=0)
    assert default["nll"].low != paired_differences(first, second, 200, seed=1)["nll"].low
    narrow = paired_differences(first, second, 200, level=0.5)
    for key in KEYS:
        assert default[key].low < narrow[key].low < narrow[key].high < default[key].high
        assert default[key].low < default[key].estimate < default[key].high


def test_width_is_that_of_the_paired_standard_error():
    """Linear metrics have a closed form: images are the units, cells of one image move together, pairing removes its ease."""
    first, second = make_run(1, num_images=800), make_run(2, num_images=800, strength=1.3)
    differences = paired_differences(first, second, num_resamples=2000)
    apart = interval(second, num_resamples=2000)
    for key in ("nll", "brier"):
        one, two = (np.mean([cell[key] for cell in run], axis=0) for run in (first, second))
        got = (differences[key].high - differences[key].low) / (2 * 1.959964)
        assert got == pytest.approx((two - one).std() / np.sqrt(800), rel=0.08)
        assert (apart[key].high - apart[key].low) / (2 * 1.959964) == pytest.approx(two.std() / np.sqrt(800), rel=0.08)
        unpaired = np.sqrt(one.var() + two.var()) / np.sqrt(800)
        assert got < 0.8 * unpaired
        as_if_independent = np.sqrt(sum(cell[key].var() for cell in second)) / len(second) / np.sqrt(800)
        assert two.std() / np.sqrt(800) > 1.2 * as_if_independent


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    rng = np.random.default_rng(0)
    hits = 0
    for trial in range(200):
        label = np.zeros(100, int)
        frames = []
        for accuracy in (0.6, 0.7):
            prediction = (rng.random(100) >= accuracy).astype(int)
            frames.append(
                pd.DataFrame(
                    {"id": range(100), "label": label, "prediction": prediction, "confidence": 0.65, "nll": 1.0, "brier": 1.0}
                )
            )
        top1 = paired_differences(frames[:1], frames[1:], num_resamples=200, seed=trial, level=0.9)["top1"]
        hits += top1.low <= 0.1 <= top1.high
    assert 166 <= hits <= 193  # binomial(200, 0.9): 180 +- 3.2 standard deviations


def test_percentiles_of_ece_sit_above_the_estimate_of_a_calibrated_run():
    """The documented limit: resampling adds noise to every bin, and ECE takes its absolute value."""
    rng = np.random.default_rng(0)
    confidence = rng.uniform(0.3, 1, 300)
    prediction = (rng.random(300) >= confidence).astype(int)
    cell = pd.DataFrame(
        {"id": range(300), "label": 0, "prediction": prediction, "confidence": confidence, "nll": 1.0, "brier": 1.0}
    )
    ece = interval([cell], 500)["ece"]
    assert (ece.low + ece.high) / 2 > ece.estimate


def test_string_ids_are_allowed():
    cells = [cell.assign(id=[f"n{i:03}" for i in cell["id"]]) for cell in make_run(1)]
    assert interval(cells, 10) == interval(make_run(1), 10)


def test_one_image():
    cells = make_run(1, num_images=1)
    got = interval(cells, 5)
    expected = naive_means(cells, [0])
    for key, value in zip(KEYS, expected, strict=True):
        assert got[key] == pytest.approx((value, value, value), rel=1e-12)


def reordered(cell):
    return cell.iloc[::-1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (reordered, r"id of every cell must equal those of first\[0\], got others in second\[1\]"),
        (lambda cell: cell.iloc[:-1], r"id of every cell .* second\[1\]"),
        (lambda cell: cell.assign(id=cell["id"] + 1), r"id of every cell .* second\[1\]"),
        (lambda cell: cell.assign(label=(cell["label"] + 1) % 4), r"label of every cell .* second\[1\]"),
        (lambda cell: cell.assign(confidence=1.5), r"confidence must be in \[0, 1\], got 1.5"),
        (lambda cell: cell.assign(nll=np.nan), "nll and brier must be finite, got others in cell 1"),
    ],
)
def test_bad_cells_are_refused(change, message):
    first, second = make_run(1), make_run(2)
    second[1] = change(second[1])
    with pytest.raises(ValueError, match=message) as error:
        paired_differences(first, second, 5)
    assert "\n" not in str(error.value)


def test_a_cell_of_the_first_run_is_named():
    first, second = make_run(1), make_run(2)
    first[2] = reordered(first[2])
    with pytest.raises(ValueError, match=r"got others in first\[2\]"):
        paired_differences(first, second, 5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda run: paired_differences(run, run[:2]), "same cells, got 3 and 2"),
        (lambda run: paired_differences([], []), "first must list at least one cell"),
        (lambda run: interval([]), "cells must list at least one cell"),
        (lambda run: interval([run[0].iloc[:0]]), "unique ids, got 0 in 0 rows"),
        (lambda run: interval([pd.concat([run[0], run[0]])]), "unique ids, got 60 in 120 rows"),
        (lambda run: interval(run, num_resamples=0), "num_resamples must be >= 1, got 0"),
        (lambda run: interval(run, level=1.0), r"level must be in \(0, 1\), got 1.0"),
        (lambda run: interval(run, level=95), r"level must be in \(0, 1\), got 95"),
    ],
)
def test_bad_arguments_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(make_run(1))


def test_an_image_with_several_labels_may_be_scored_against_different_ones() -> None:
    cell = pd.DataFrame({"id": [0, 1], "label": [3, 4], "prediction": [3, 3], "confidence": 0.5, "nll": 1.0, "brier": 0.5})
    other = cell.assign(label=[3, 3])
    with pytest.raises(ValueError, match="label of every cell must equal"):
        paired_differences([cell], [other], 10)
    assert paired_differences([cell], [other], 10, several_labels=True)["top1"][0] == 0.5
