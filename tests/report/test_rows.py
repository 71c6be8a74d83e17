"""The table of results against its own arithmetic, cell by cell, and against `paired_differences`."""

import numpy as np
import pytest
from test_runs import CELLS, make_run

from gch_bench.metrics import METRICS, summarize
from gch_bench.report.figures import setting_figures
from gch_bench.report.rows import rows_of, scopes_of
from gch_bench.report.runs import settings_of
from gch_bench.report.statistics import paired_differences
from gch_bench.report.study import MEAN, ROWS
from gch_bench.results.records import CELL_CLEAN, Cell


def row(rows, mechanism, corruption, severity, metric):
    level = rows["severity"].isna() if severity is None else rows["severity"] == severity
    found = rows[(rows["mechanism"] == mechanism) & (rows["corruption"] == corruption) & (rows["metric"] == metric) & level]
    assert len(found) == 1
    return found.iloc[0]


def test_scopes() -> None:
    scopes = scopes_of(CELLS[1:], [*CELLS, Cell("spatter", 1)])
    names = [(scope.corruption, scope.severity, len(scope.cells)) for scope in scopes]
    assert names == [
        ("clean", 0, 1), (MEAN, None, 4), (MEAN, 1, 2), (MEAN, 2, 2), ("brightness", None, 2), ("brightness", 1, 1),
        ("brightness", 2, 1), ("contrast", None, 2), ("contrast", 1, 1), ("contrast", 2, 1), ("spatter", None, 1),
        ("spatter", 1, 1),
    ]  # fmt: skip


def test_one_seed_equals_paired_differences() -> None:
    none, gch = make_run("none", 0), make_run("gch", 1)
    (setting,), _ = settings_of([none, gch], "none")
    rows = rows_of(setting, 200)
    assert list(rows.columns) == list(ROWS)
    cells = CELLS[1:]
    expected = paired_differences([none.cells[cell] for cell in cells], [gch.cells[cell] for cell in cells], 200)
    for key, interval in expected.items():
        found = row(rows, "gch gamma=1 L4", MEAN, None, key)
        assert (found["difference"], found["low"], found["high"]) == pytest.approx(interval, rel=1e-4, abs=1e-7)
        assert found["value"] == pytest.approx(np.mean([summarize(gch.cells[cell], 3)[key] for cell in cells]))
    without = row(rows, "gch gamma=1 L4", MEAN, None, "ece")
    assert np.isfinite(without["difference"])
    assert without[["low", "high", "p", "p_holm", "detectable", "sign_flip"]].isna().all()
    assert np.isnan(without["se_images"])
    assert np.isnan(row(rows, "gch gamma=1 L4", MEAN, None, "ece_floor")["difference"]), "not a quality of a network"
    baseline = row(rows, "none", MEAN, None, "nll")
    nll_N = np.mean([none.cells[cell]["nll"].to_numpy() for cell in cells], axis=0)
    assert baseline["se_images"] == pytest.approx(nll_N.std() / np.sqrt(len(nll_N)), rel=0.2), "with 200 resamples"
    assert baseline[["difference", "low", "high", "p", "sd"]].isna().all()


def test_every_metric_and_cell_has_its_value() -> None:
    none, gch = make_run("none", 0), make_run("gch", 1)
    (setting,), _ = settings_of([none, gch], "none")
    rows = rows_of(setting, 100)
    for run, mechanism in ((none, "none"), (gch, "gch gamma=1 L4")):
        for cell in CELLS:
            values = summarize(run.cells[cell], 3)
            for key in set(METRICS) & set(values):
                assert row(rows, mechanism, cell.corruption, cell.severity, key)["value"] == pytest.approx(values[key])


def test_seeds_are_paired_and_averaged() -> None:
    runs = [make_run(name, 10 * seed + at, seed=seed) for seed in range(3) for at, name in enumerate(("none", "gch"))]
    (setting,), _ = settings_of(runs, "none")
    found = row(rows_of(setting, 100), "gch gamma=1 L4", "clean", 0, "nll")
    clean = {(run.facts.mechanism, run.facts.config["seed"]): run.cells[CELL_CLEAN]["nll"].mean() for run in runs}
    differences = np.array([clean["gch", seed] - clean["none", seed] for seed in range(3)])
    assert found["difference"] == pytest.approx(differences.mean())
    assert found["sd"] == pytest.approx(np.std([clean["gch", seed] for seed in range(3)], ddof=1))
    assert found["seeds"] == 3
    own_N = np.mean([run.cells[CELL_CLEAN]["nll"] for run in runs if run.facts.mechanism == "gch"], axis=0)
    assert found["se_images"] == pytest.approx(own_N.std() / np.sqrt(len(own_N)), rel=0.25), "of the mean over seeds"
    # Half the width: the root of the sum of squares of t(2) s / sqrt(3) and 1.96 standard errors over images.
    images = np.mean([
        run.cells[CELL_CLEAN]["nll"].to_numpy() * (1 if run.facts.mechanism == "gch" else -1) for run in runs], axis=0
    ) * 2  # fmt: skip
    expected = np.hypot(4.30265 * differences.std(ddof=1) / np.sqrt(3), 1.95996 * images.std() / np.sqrt(60))
    assert (found["high"] - found["low"]) / 2 == pytest.approx(expected, rel=0.12)
    assert found["sign_flip"] == pytest.approx(max(1, sum(_better_or_equal(differences))) / 8)


def _better_or_equal(differences):
    signs = np.array(np.meshgrid(*[[-1, 1]] * 3)).reshape(3, -1)
    return (-signs.T @ differences / 3) >= -differences.mean() - 1e-12


def test_missing_cells_leave_the_rest() -> None:
    """A run that lacks cells has no mean over them, but its own cells, with their differences."""
    runs = [make_run("none", 0), make_run("dropout", 3), make_run("gch", 1, cells=CELLS[:3])]
    (setting,), _ = settings_of(runs, "none")
    rows = rows_of(setting, 100)
    own = rows[rows["noise"] == "gch"]
    assert set(own["corruption"]) == {"clean", "brightness"}
    assert np.isfinite(row(rows, "gch gamma=1 L4", "brightness", 2, "nll")["low"])
    assert np.isfinite(row(rows, "dropout gamma=1 L4", MEAN, None, "nll")["low"])


def test_a_cell_without_logits_leaves_out_the_means_that_need_them() -> None:
    none, gch = make_run("none", 0), make_run("gch", 1)
    for run, cells in ((none, CELLS), (gch, CELLS[:-1])):
        run.cells.update({cell: run.cells[cell].assign(nll_refined=0.5, brier_refined=0.2, classwise_ce=0.1) for cell in cells})
    (setting,), _ = settings_of([none, gch], "none")
    rows = rows_of(setting, 100)
    refined = rows[(rows["metric"] == "nll_refinement") & (rows["noise"] == "gch")]
    assert MEAN not in set(refined[refined["severity"].isna()]["corruption"])
    assert len(refined[refined["corruption"] == "contrast"]) == 1
    assert np.isfinite(row(rows, "gch gamma=1 L4", MEAN, None, "nll")["low"])


def test_holm_is_over_the_mechanisms_of_one_metric_and_part() -> None:
    runs = [make_run("none", 0), *(make_run("gch", at, gamma=float(at)) for at in range(1, 5))]
    (setting,), _ = settings_of(runs, "none")
    rows = rows_of(setting, 100)
    family = rows[(rows["corruption"] == MEAN) & rows["severity"].isna() & (rows["metric"] == "nll") & rows["p"].notna()]
    assert len(family) == 4
    ordered = family.sort_values("p")
    expected = np.minimum(np.maximum.accumulate(ordered["p"].to_numpy() * [4, 3, 2, 1]), 1)
    np.testing.assert_allclose(ordered["p_holm"], expected)


def test_a_calibrated_copy_has_rows_after_t_whose_intervals_know_of_the_fit() -> None:
    """A run with a calibrated copy gets rows `after T`; influence of the fit widens their intervals."""
    runs = [make_run("none", 0), make_run("gch", 1)]
    influence_N = np.random.default_rng(0).normal(size=60)
    influence_N -= influence_N.mean()
    rows = {}
    for slope in (0.0, 5.0):
        slopes = {cell: {"nll": slope} for cell in CELLS}
        fitted = [run._replace(temperature=1.5, calibrated=run.cells, slopes=slopes, influence_N=influence_N * at)
                  for at, run in enumerate(runs)]  # fmt: skip
        (setting,), _ = settings_of(fitted, "none")
        whole = rows_of(setting, 200)
        rows[slope] = whole[whole["temperature"] == "after T"]
    before, after = (row(rows[slope], "gch gamma=1 L4", "clean", 0, "nll") for slope in (0.0, 5.0))
    assert before["difference"] == after["difference"]
    assert after["high"] - after["low"] > 3 * (before["high"] - before["low"])
    same = [row(rows[slope], "gch gamma=1 L4", "clean", 0, "brier") for slope in (0.0, 5.0)]
    assert same[0]["low"] == pytest.approx(same[1]["low"], abs=1e-9)


def test_figures_of_a_mechanism_that_lacks_cells() -> None:
    """It is left out of the figures that need all cells, and nothing fails."""
    runs = [make_run("none", 0), make_run("dropout", 3), make_run("gch", 1, cells=CELLS[:3])]
    (setting,), _ = settings_of(runs, "none")
    figures = setting_figures(setting, rows_of(setting, 100))
    lines = figures["accuracy-coverage"].axes
    assert [len(axis.get_lines()) for axis in lines] == [3, 2], "clean, shift"
