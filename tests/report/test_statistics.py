"""Intervals of differences against a naive loop over resampled rows, against other packages, and by simulation."""

import numpy as np
import pandas as pd
import pytest
from interval_coverage import networks
from scipy.stats import norm, t
from statsmodels.stats.multitest import multipletests

from gch_bench.calibration import debiased_squared_error
from gch_bench.metrics import sample_atoms, summarize
from gch_bench.report import statistics
from gch_bench.report.statistics import (
    Interval,
    combine,
    holm,
    metrics_with_interval,
    paired_differences,
    sign_flip,
)
from gch_bench.risk_coverage import area_under_generalized_risk_coverage, area_under_risk_coverage


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


def naive_means(cells, rows):
    """The linear metrics of the resampled rows, averaged over cells."""
    per_cell = []
    for cell in cells:
        drawn = cell.iloc[rows]
        correct = (drawn["prediction"] == drawn["label"]).to_numpy()
        numbers = (drawn[name].mean() for name in ("top5", "nll", "brier", "entropy", "confidence"))
        per_cell.append([correct.mean(), drawn["confidence"].mean() - correct.mean(), *numbers])
    return np.mean(per_cell, axis=0)


LINEAR = ("top1", "signed_gap", "top5", "nll", "brier", "entropy", "confidence")


def half_width(interval):
    assert interval.high - interval.estimate == pytest.approx(interval.estimate - interval.low, abs=1e-12)
    return (interval.high - interval.low) / 2


@pytest.mark.parametrize(("seed", "level"), [(0, 0.95), (7, 0.5)])
def test_linear_metrics_match_a_naive_loop(seed, level):
    first, second = make_run(1), make_run(2, strength=1.5)
    got = paired_differences(first, second, num_resamples=40, seed=seed, level=level)
    rng = np.random.default_rng(seed)
    every = [rng.integers(0, 60, size=60) for _ in range(40)]
    resampled = np.array([naive_means(second, rows) - naive_means(first, rows) for rows in every])
    expected = naive_means(second, np.arange(60)) - naive_means(first, np.arange(60))
    for at, key in enumerate(LINEAR):
        assert got[key].estimate == pytest.approx(expected[at], abs=1e-12), key
        assert half_width(got[key]) == pytest.approx(norm.isf((1 - level) / 2) * resampled[:, at].std(), rel=1e-4, abs=1e-8), (
            key
        )


@pytest.mark.parametrize(
    ("key", "formula"),
    [
        ("aurc", area_under_risk_coverage),
        ("augrc", area_under_generalized_risk_coverage),
        ("ce2_debiased", debiased_squared_error),
    ],
)
def test_other_metrics_have_the_spread_of_a_naive_bootstrap(key, formula):
    """Their influence is a linearisation; a resample of the whole metric has about the same spread."""
    first, second = make_run(1, num_images=400), make_run(2, num_images=400, strength=1.5, sharpness=2.5)

    def value(cells, rows):
        drawn = [cell.iloc[rows] for cell in cells]
        return np.mean([formula(cell["confidence"], (cell["prediction"] == cell["label"]).to_numpy()) for cell in drawn])

    rng = np.random.default_rng(0)
    every = [rng.integers(0, 400, size=400) for _ in range(300)]
    resampled = [value(second, rows) - value(first, rows) for rows in every]
    got = paired_differences(first, second, num_resamples=1000)[key]
    assert got.estimate == pytest.approx(value(second, np.arange(400)) - value(first, np.arange(400)), abs=1e-12)
    assert half_width(got) / 1.96 == pytest.approx(np.std(resampled), rel=0.12)


def test_metrics_without_a_valid_interval_are_left_out():
    got = paired_differences(make_run(1), make_run(2), 20)
    assert not {"ece", "ece_floor", "ece_equal_mass", "ece_top_label", "max_ce", "smece"} & set(got)
    assert list(got) == metrics_with_interval(make_run(1)[0].columns)
    few = [cell.drop(columns=["top5", "entropy"]) for cell in make_run(1)]
    assert set(got) - set(paired_differences(few, few, 20)) == {"top5", "entropy"}


@pytest.mark.parametrize("columns", [1, 60, 100])
def test_blocks_of_cells_change_nothing(monkeypatch, columns):
    first, second = make_run(1), make_run(2)
    whole = paired_differences(first, second, num_resamples=23)
    monkeypatch.setattr(statistics, "_BLOCK_COLUMNS", columns)
    for key, value in paired_differences(first, second, num_resamples=23).items():
        assert value == pytest.approx(whole[key], rel=1e-5, abs=1e-7)


def test_identical_runs_differ_by_exactly_zero():
    cells = make_run(1, num_images=501, num_cells=5)
    differences = paired_differences(cells, [cell.copy() for cell in cells], num_resamples=50)
    assert set(differences.values()) == {Interval(0.0, 0.0, 0.0)}


def test_swapping_the_runs_flips_the_sign():
    first, second = make_run(1), make_run(2, strength=2.0)
    forward, backward = (paired_differences(a, b, 100) for a, b in ((first, second), (second, first)))
    for key, value in forward.items():
        mirrored = (-backward[key].estimate, -backward[key].high, -backward[key].low)
        assert value == pytest.approx(mirrored, rel=1e-5, abs=1e-8)


def test_a_constant_shift_has_an_interval_of_no_width():
    first = make_run(1)
    second = [cell.assign(nll=cell["nll"] + 0.25) for cell in first]
    differences = paired_differences(first, second, 50)
    assert differences["nll"] == pytest.approx((0.25, 0.25, 0.25), rel=1e-6)
    assert differences["brier"] == Interval(0.0, 0.0, 0.0)


def test_seed_and_level_matter():
    first, second = make_run(1), make_run(2)
    default = paired_differences(first, second, 200)
    assert default == paired_differences(first, second, 200, seed=0)
    assert default["nll"].low != paired_differences(first, second, 200, seed=1)["nll"].low
    narrow = paired_differences(first, second, 200, level=0.5)
    for key in set(default) - {"top5"}:  # with four classes it is always 1
        assert default[key].low < narrow[key].low < narrow[key].high < default[key].high


def test_width_is_that_of_the_paired_standard_error():
    """Linear metrics have a closed form: images are the units, cells of one image move together, pairing removes its ease."""
    first, second = make_run(1, num_images=800), make_run(2, num_images=800, strength=1.3)
    differences = paired_differences(first, second, num_resamples=2000)
    for key in ("nll", "brier"):
        one, two = (np.mean([cell[key] for cell in run], axis=0) for run in (first, second))
        got = half_width(differences[key]) / 1.959964
        assert got == pytest.approx((two - one).std() / np.sqrt(800), rel=0.08)
        assert got < 0.8 * np.sqrt(one.var() + two.var()) / np.sqrt(800)


@pytest.mark.parametrize("overconfidence", [(0.3, 0.0), (0.0, 0.0)])
def test_intervals_cover_the_truth_about_as_often_as_they_say(overconfidence):
    """The cases in which a percentile interval of the plain ECE covers 8 to 23% of the time, or whose difference is degenerate.

    scripts/interval_coverage.py runs this with more scenarios, images and trials."""
    rng = np.random.default_rng(0)
    many = networks(rng, 1_000_000, overconfidence)
    one, two = (summarize(cell.assign(top5=0.0, entropy=0.0), 2) for cell in many)
    truth = {key: 0.0 if overconfidence[0] == overconfidence[1] else two[key] - one[key] for key in one}
    trials = 120
    hits = dict.fromkeys(metrics_with_interval(many[0].columns), 0)
    for trial in range(trials):
        first, second = networks(rng, 360, overconfidence)
        for key, found in paired_differences([first], [second], 100, seed=trial).items():
            hits[key] += found.low <= truth[key] <= found.high
    assert all(count / trials >= 0.89 for count in hits.values()), hits


def test_seeds_and_images_are_both_in_the_interval():
    """The MOVER interval covers whichever of the two sources dominates, and is no wider than the images' where seeds agree."""
    rng = np.random.default_rng(0)
    for seed_sd, image_sd in ((1.0, 0.1), (0.1, 1.0), (0.5, 0.5)):
        estimate_SX = 0.3 + seed_sd * rng.normal(size=(3, 4000)) + image_sd * rng.normal(size=4000)
        found = combine(estimate_SX, np.full(4000, image_sd**2))
        covered = ((found.low <= 0.3) & (found.high >= 0.3)).mean()
        assert 0.94 < covered < 0.985
    same = combine(np.full((3, 1), 0.5), np.array([0.04]))
    assert (same.low[0], same.high[0]) == pytest.approx((0.5 - 1.959964 * 0.2, 0.5 + 1.959964 * 0.2), rel=1e-6)
    few = combine(np.array([[0.4], [0.6]]), np.array([0.0]))
    assert half_width(Interval(few.estimate[0], few.low[0], few.high[0])) == pytest.approx(t.isf(0.025, 1) * 0.1, rel=1e-6)


@pytest.mark.parametrize("seeds", [1, 2, 5])
def test_p_is_the_level_at_which_the_interval_touches_zero(seeds):
    rng = np.random.default_rng(seeds)
    estimate_SX, images_X = rng.normal(0.5, 0.3, size=(seeds, 6)), rng.uniform(0.01, 0.2, size=6)
    for at, p in enumerate(combine(estimate_SX, images_X).p):
        touching = combine(estimate_SX[:, at : at + 1], images_X[at : at + 1], level=1 - p)
        assert min(abs(touching.low[0]), abs(touching.high[0])) < 1e-9


def test_a_detectable_difference_is_detected_four_times_in_five():
    rng = np.random.default_rng(0)
    size = combine(np.zeros((1, 1)), np.array([0.04])).detectable[0]
    found = combine(size + 0.2 * rng.normal(size=(1, 20000)), np.full(20000, 0.04))
    assert (found.p < 0.05).mean() == pytest.approx(0.8, abs=0.01)


def test_sign_flip_has_its_floor_and_counts_all_patterns():
    better_SX = np.array([[1.0, -1.0, 1.0], [2.0, -2.0, 2.0], [3.0, -3.0, -0.5]])
    assert sign_flip(better_SX).tolist() == [1 / 8, 1.0, 2 / 8]
    assert np.isnan(sign_flip(better_SX[:1])).all()


@pytest.mark.parametrize("tests", [0, 1, 2, 7, 12])
def test_holm_equals_statsmodels(tests):
    rng = np.random.default_rng(tests)
    p_X = rng.permutation([*rng.random(tests) ** 3, np.nan, np.nan, *([0.2, 0.2] if tests > 5 else [])])
    tests = np.isfinite(p_X)
    got = holm(p_X)
    assert np.isnan(got[~tests]).all()
    if tests.any():
        np.testing.assert_allclose(got[tests], multipletests(p_X[tests], method="holm")[1], rtol=1e-12)


def test_string_ids_are_allowed():
    cells = [cell.assign(id=[f"n{i:03}" for i in cell["id"]]) for cell in make_run(1)]
    assert paired_differences(cells, cells, 10) == paired_differences(make_run(1), make_run(1), 10)


def test_one_image():
    first, second = make_run(1, num_images=1), make_run(2, num_images=1)
    assert all(found.low == found.estimate == found.high for found in paired_differences(first, second, 5).values())


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
        (lambda cell: cell.assign(nll=np.nan), r"nll of every image must be finite, got nan in second\[1\]"),
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
        (lambda run: paired_differences([run[0].iloc[:0]], run[:1]), "unique ids, got 0 in 0 rows"),
        (lambda run: paired_differences([pd.concat([run[0], run[0]])], run[:1]), "unique ids, got 60 in 120 rows"),
        (lambda run: paired_differences(run, run, num_resamples=1), "num_resamples must be >= 2, got 1"),
        (lambda run: paired_differences(run, run, level=1.0), r"level must be in \(0, 1\), got 1.0"),
        (lambda run: paired_differences(run, run, level=95), r"level must be in \(0, 1\), got 95"),
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
