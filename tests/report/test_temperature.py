"""Temperature scaling and ensembles against a dense grid, direct computations, and by simulation."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.special import log_softmax, softmax
from test_runs import make_run

from gch_bench.errors import UserError
from gch_bench.metrics import METRICS, sample_atoms
from gch_bench.report import temperature
from gch_bench.report.statistics import atoms_of
from gch_bench.report.study import Group
from gch_bench.report.temperature import TooFewErrors, ensemble, fit_temperature, mean_log_softmax, scaled, with_temperature
from gch_bench.results.records import CELL_CLEAN, Cell, write_record

FOG = Cell("fog", 3)


def frame(logits, labels):
    return pd.DataFrame(
        {"id": np.arange(len(labels)), "label": labels, **sample_atoms(log_softmax(logits, axis=1), labels)._asdict()}
    )


def network(rng, num_images=400, classes=5, sharpness=2.0, signal=2.0):
    """Logits that are too sharp by the factor `sharpness`: the labels are drawn from their softmax after division by it."""
    true = signal * rng.normal(size=(num_images, classes))
    labels = np.array([rng.choice(classes, p=p) for p in softmax(true, axis=1)])
    return (sharpness * true).astype(np.float16), labels


def nll(logits, labels, T):
    return -log_softmax(logits.astype(np.float64) / T, axis=1)[np.arange(len(labels)), labels].mean()


@pytest.mark.parametrize("sharpness", [0.3, 1.0, 4.0])
def test_the_fit_is_the_best_of_a_dense_grid(sharpness):
    logits, labels = network(np.random.default_rng(1), sharpness=sharpness)
    grid = np.exp(np.linspace(np.log(0.05), np.log(20), 4001))
    best = grid[np.argmin([nll(logits, labels, T) for T in grid])]
    found = fit_temperature(logits, labels)
    assert found == pytest.approx(best, rel=2e-3)
    assert nll(logits, labels, found) <= min(nll(logits, labels, found * factor) for factor in (0.999, 1.001))
    assert found == pytest.approx(sharpness, rel=0.25)


def test_extreme_logits_stay_within_the_bounds():
    separable = np.eye(3)[[0, 1, 2]] * 5
    assert fit_temperature(separable, np.arange(3)) == pytest.approx(temperature.LOWEST, rel=1e-3)
    assert fit_temperature(-separable, np.arange(3)) == pytest.approx(temperature.HIGHEST, rel=1e-3)


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (np.zeros((0, 3)), np.zeros(0, int), "not empty"),
        (np.zeros((2, 3)), np.zeros(3, int), "not empty"),
        (np.zeros((2, 3)), np.array([0, 3]), r"labels must be in 0..2, got 0..3"),
        (np.array([[0.0, np.inf], [0, 0]]), np.array([0, 1]), "must be finite"),
    ],
)
def test_bad_logits_are_refused(logits, labels, message):
    with pytest.raises(ValueError, match=message):
        fit_temperature(logits, labels)


def two_cells(rng, **how):
    logits, labels = network(rng, **how)
    shifted = (logits + 2 * rng.normal(size=logits.shape)).astype(np.float16)
    of = {CELL_CLEAN: logits, FOG: shifted}
    return of, {cell: frame(each.astype(np.float64), labels) for cell, each in of.items()}, labels


def test_no_image_is_scored_by_a_temperature_that_was_fitted_on_it():
    of, cells, labels = two_cells(np.random.default_rng(2))
    found = scaled(of.__getitem__, cells)
    fold_N = np.random.default_rng(0).permutation(400) % 5
    for k in range(5):
        T = fit_temperature(of[CELL_CLEAN][fold_N != k], labels[fold_N != k])
        expected = frame(of[FOG][fold_N == k].astype(np.float64) / T, labels[fold_N == k])
        got = found.calibrated[FOG][fold_N == k]
        for name in ("prediction", "confidence", "nll", "brier", "entropy"):
            np.testing.assert_allclose(got[name], expected[name], rtol=1e-6)
    assert found.temperature == pytest.approx(fit_temperature(of[CELL_CLEAN], labels), rel=1e-9)
    pd.testing.assert_frame_equal(found.raw[FOG][list(cells[FOG])], cells[FOG])


def test_slopes_and_influence_are_those_of_the_fit():
    of, cells, labels = two_cells(np.random.default_rng(3))
    found = scaled(of.__getitem__, cells)
    up, down = (nll(of[FOG], labels, found.temperature * np.exp(h)) for h in (1e-3, -1e-3))
    assert found.slopes[FOG]["nll"] == pytest.approx((up - down) / 2e-3, rel=0.05)
    assert found.slopes[FOG]["top1"] == 0
    # Leaving an image out moves log T by its influence / N.
    for i in (0, 7, int(np.abs(found.influence_N).argmax())):
        rest = np.arange(400) != i
        moved = np.log(fit_temperature(of[CELL_CLEAN][rest], labels[rest]) / found.temperature)
        assert moved == pytest.approx(-found.influence_N[i] / 400, rel=0.1, abs=1e-5)


def test_the_uncertainty_of_the_temperature_is_in_the_interval():
    """The standard error of the NLL after T of a shifted cell, with the influence of the fit, against many repetitions."""
    truth, errors, without = [], [], []
    for trial in range(150):
        of, cells, _ = two_cells(np.random.default_rng(100 + trial), num_images=300)
        found = scaled(of.__getitem__, cells)
        nll_N = found.calibrated[FOG]["nll"].to_numpy()
        truth.append(nll_N.mean())
        errors.append((nll_N + found.slopes[FOG]["nll"] * found.influence_N).std() / np.sqrt(300))
        without.append(nll_N.std() / np.sqrt(300))
    assert np.mean(errors) == pytest.approx(np.std(truth), rel=0.15)
    assert abs(np.mean(errors) - np.std(truth)) < abs(np.mean(without) - np.std(truth))


def test_refinement_is_what_the_best_temperature_of_the_cell_leaves():
    of, cells, labels = two_cells(np.random.default_rng(4))
    found = scaled(of.__getitem__, cells)
    grid = np.exp(np.linspace(np.log(0.1), np.log(20), 2001))
    probabilities = [softmax(of[FOG].astype(np.float64) / T, axis=1) for T in grid]
    brier = [((p - np.eye(5)[labels]) ** 2).sum(axis=1).mean() for p in probabilities]
    values = {key: METRICS[key].formula(atoms_of(found.raw[FOG])) for key in METRICS}
    assert values["nll_refinement"] == pytest.approx(min(nll(of[FOG], labels, T) for T in grid), rel=1e-5)
    assert values["brier_refinement"] == pytest.approx(min(brier), rel=1e-4)
    assert values["nll_refinement"] + values["nll_calibration"] == pytest.approx(values["nll"])
    assert values["classwise_ce"] > METRICS["classwise_ce"].formula(atoms_of(found.calibrated[FOG]))


def save(run, folder, of, labels):
    run = run._replace(folder=folder, cells={cell: frame(each.astype(np.float64), labels) for cell, each in of.items()})
    for cell, logits in of.items():
        write_record(folder, cell, run.cells[cell], {"protocol": "p"}, logits)
    return run


def test_a_run_from_disk(tmp_path: Path):
    of, cells, labels = two_cells(np.random.default_rng(5))
    run = with_temperature(save(make_run("gch"), tmp_path, of, labels))
    assert run.calibrated is not None
    assert set(run.calibrated) == {CELL_CLEAN, FOG}
    assert run.temperature == pytest.approx(fit_temperature(of[CELL_CLEAN], labels))
    write_record(tmp_path, FOG, cells[FOG], {"protocol": "p"})
    assert set(with_temperature(run).calibrated or {}) == {CELL_CLEAN}, "a cell without logits is absent"
    write_record(tmp_path, CELL_CLEAN, cells[CELL_CLEAN], {"protocol": "p"})
    bare = run._replace(calibrated=None, temperature=None)
    assert with_temperature(bare).calibrated is None, "without clean logits there is no temperature"


def test_logits_of_another_record_and_too_few_errors_are_refused(tmp_path: Path):
    of, _, labels = two_cells(np.random.default_rng(6))
    run = save(make_run("gch"), tmp_path / "a", of, labels)
    write_record(tmp_path / "a", FOG, run.cells[FOG], {"protocol": "p"}, of[FOG][::-1].copy())
    with pytest.raises(UserError, match="fog-3 has logits that contradict the predictions of its record"):
        with_temperature(run)
    perfect = np.eye(5)[labels].astype(np.float16) * 4
    with pytest.raises(TooFewErrors, match="only 0 clean images are predicted wrongly, and a temperature needs 20"):
        with_temperature(save(make_run("gch"), tmp_path / "b", {CELL_CLEAN: perfect}, labels))


def test_ensembles(tmp_path: Path):
    of, _, labels = two_cells(np.random.default_rng(7))
    rng = np.random.default_rng(8)
    members = {}
    for seed in range(3):
        own = {cell: (each + rng.normal(size=each.shape)).astype(np.float16) for cell, each in of.items()}
        members[seed] = (save(make_run("gch", seed=seed), tmp_path / str(seed), own, labels), own)
    group = Group("gch", members[0][0].facts.config["noise"], {seed: run for seed, (run, _) in members.items()})
    found = ensemble(group)
    assert found is not None
    assert (found.kind, len(found.runs)) == ("ensemble", 1)
    mean = np.mean([softmax(own[FOG].astype(np.float64), axis=1) for _, own in members.values()], axis=0)
    cell = found.runs[0].cells[FOG]
    np.testing.assert_allclose(cell["nll"], -np.log(mean[np.arange(400), labels]), rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(cell["prediction"], mean.argmax(axis=1))
    assert cell["nll"].mean() < np.mean([run.cells[FOG]["nll"].mean() for run, _ in members.values()])
    assert found.runs[0].temperature is not None
    assert ensemble(group._replace(runs={0: group.runs[0]})) is None
    members[1][1][FOG][3, 2] = np.inf
    write_record(group.runs[1].folder, FOG, group.runs[1].cells[FOG], {"protocol": "p"}, members[1][1][FOG])
    with pytest.raises(UserError, match="no ensemble of gch: fog-3: "):
        ensemble(group)
    np.testing.assert_allclose(softmax(mean_log_softmax([of[FOG]]), axis=1), softmax(of[FOG].astype(float), axis=1), atol=1e-6)
