"""scripts/protocol_sensitivity.py: its numbers on made-up records, against their definitions written out with NumPy."""

import copy
import sys

import numpy as np
import pandas as pd
import pytest
from conftest import REPOSITORY
from made_report import CLASSES, IMAGES, NONE, made_group, noise
from scipy.stats import norm

from gch_bench.errors import UserError
from gch_bench.metrics import METRICS, summarize
from gch_bench.report.study import Run
from gch_bench.results.records import CELL_CLEAN, Cell

sys.path.insert(0, str(REPOSITORY / "scripts"))

from protocol_sensitivity import figure, lines, mechanism_lines, mechanism_rows, read, rows_of, with_and_without

CELLS = [Cell("fog", 3), Cell("snow", 3)]
Found = dict[str, dict[str, Run]]


def networks(protocol: str) -> dict[str, Run]:
    """Four networks. Not under `memory`, corrupted images have another NLL and confidence, and a tenth another prediction."""
    groups = [made_group(own, CELLS, 2, logits=False) for own in (NONE, noise("gch", p=0.3))]
    runs = {run.folder.name: run for group in groups for run in group.runs.values()}
    for run in runs.values():
        for cell in CELLS if protocol != "memory" else []:
            table = run.cells[cell]
            table["confidence"] *= 0.8
            table["nll"] += 0.1 * np.random.default_rng(cell.severity).random(IMAGES)
            table.loc[: IMAGES // 10 - 1, "prediction"] = (table["prediction"] + 1) % CLASSES
    return runs


@pytest.fixture
def found() -> Found:
    return {name: networks(name) for name in ("memory", "jpeg", "stored")}


def one(table: pd.DataFrame, pair: str, part: str, metric: str) -> pd.Series:
    against, protocol = pair.split()
    keys = ["against", "protocol", "part", "metric"]
    rows = table[(table[keys] == [against, protocol, part, metric]).all(axis=1)]
    assert len(rows) == 1
    return rows.iloc[0]


@pytest.mark.parametrize("metric", ["nll", "top1"])
def test_a_change_and_its_interval_are_those_of_the_paired_images(found: Found, metric: str) -> None:
    def per_image(runs: dict[str, Run]) -> np.ndarray:
        """The mean over networks and corrupted cells for each image."""
        cells = [run.cells[cell] for run in runs.values() for cell in CELLS]
        return np.mean([cell["nll"] if metric == "nll" else cell["prediction"] == cell["label"] for cell in cells], axis=0)

    table = rows_of(found)
    before_N, after_N = per_image(found["memory"]), per_image(found["jpeg"])
    row = one(table, "memory jpeg", "shift", metric)
    assert (row["before"], row["after"]) == pytest.approx((before_N.mean(), after_N.mean()))
    assert row["change"] == pytest.approx((after_N - before_N).mean())
    tests = 3 * 2 * 3  # comparisons x parts x metrics
    half = norm.isf(0.025 / tests) * (after_N - before_N).std() / IMAGES**0.5
    assert [row["change"] - row["low"], row["high"] - row["change"]] == pytest.approx([half] * 2, rel=0.08)
    assert row["se_images"] == pytest.approx(before_N.std() / IMAGES**0.5, rel=0.08)


def test_calibration_errors_are_means_over_cells(found: Found) -> None:
    table = rows_of(found)
    before, after = (
        pd.DataFrame([summarize(run.cells[cell], CLASSES) for run in found[name].values() for cell in CELLS]).mean()
        for name in ("memory", "jpeg")
    )
    change = after - before
    for metric, expected in (
        ("ece", change["ece"]),
        ("ece_excess", change["ece"] - change["ece_floor"]),
        ("ce2_debiased", change["ce2_debiased"]),
    ):
        row = one(table, "memory jpeg", "shift", metric)
        assert row["change"] == pytest.approx(expected)
        assert np.isfinite(row["low"]) == (metric == "ce2_debiased"), "no interval of an ECE's difference is valid"


def test_changed_predictions_and_equal_records(found: Found) -> None:
    table = rows_of(found)
    row = one(table, "memory jpeg", "shift", "top1")
    assert (row["changed"], row["identical"]) == (pytest.approx(0.1), False)
    for pair, part in (("memory jpeg", "clean"), ("jpeg stored", "shift")):
        row = one(table, pair, part, "top1")
        assert (row["changed"], row["identical"], row["low"], row["high"]) == (0, True, 0, 0)
    found["stored"]["none-1"].cells[CELLS[1]].loc[0, "confidence"] += 1e-6
    assert not one(rows_of(found), "jpeg stored", "shift", "top1")["identical"]


@pytest.mark.parametrize("metric", ["nll", "top1"])
def test_what_a_protocol_changes_between_mechanisms(found: Found, metric: str) -> None:
    def difference(runs: dict[str, Run]) -> np.ndarray:
        """For each image the mean of gch less none over seeds and corrupted cells."""

        def of(name: str) -> np.ndarray:
            cells = [runs[f"{name}-{seed}"].cells[cell] for seed in (0, 1) for cell in CELLS]
            return np.mean([cell["nll"] if metric == "nll" else cell["prediction"] == cell["label"] for cell in cells], axis=0)

        return of("gch") - of("none")

    for seed, cell in ((0, CELLS[0]), (1, CELLS[1])):
        table = found["jpeg"][f"gch-{seed}"].cells[cell]
        table["nll"] += np.linspace(0, 0.5, IMAGES)
        table.loc[::4, "prediction"] = 0
    before_N, after_N = difference(found["memory"]), difference(found["jpeg"])
    row = one(mechanism_rows(found), "memory jpeg", "shift", metric)
    assert (row["noise"], row["before"], row["after"]) == (
        "gch p=0.3 L4",
        pytest.approx(before_N.mean()),
        pytest.approx(after_N.mean()),
    )
    assert row["change"] == pytest.approx((after_N - before_N).mean())
    tests = 3 * 2 * 3 * 2  # comparisons x parts x metrics x (difference, change)
    squared = one(mechanism_rows(found), "memory jpeg", "shift", "ce2_debiased")  # which is no mean over images
    differences = [
        np.mean([summarize(runs[f"{n}-{s}"].cells[c], CLASSES)["ce2_debiased"] for s in (0, 1) for c in CELLS])
        for runs in (found["memory"], found["jpeg"])
        for n in ("gch", "none")
    ]
    assert squared["before"] == pytest.approx(differences[0] - differences[1])
    assert squared["change"] == pytest.approx(differences[2] - differences[3] - squared["before"])
    assert squared["low"] < squared["change"] < squared["high"]
    for name, values_N, low, high in (
        ("before", before_N, "before_low", "before_high"),
        ("change", after_N - before_N, "low", "high"),
    ):
        half = norm.isf(0.025 / tests) * values_N.std() / IMAGES**0.5
        assert [row[name] - row[low], row[high] - row[name]] == pytest.approx([half] * 2, rel=0.08)


def test_noises_at_other_stages_are_others() -> None:
    groups = [made_group(own, CELLS, 2, logits=False) for own in (NONE, noise("gch", p=0.3), noise("gch", "L3", p=0.3))]
    runs = {f"{number}-{run.folder.name}": run for number, group in enumerate(groups) for run in group.runs.values()}
    pairs = with_and_without(runs)
    assert sorted(pairs) == ["gch p=0.3 L3", "gch p=0.3 L4"]
    for own in pairs.values():
        assert [(one.facts.config["seed"], other.facts.config["seed"]) for one, other in own] == [(0, 0), (1, 1)]
    table = mechanism_rows({"memory": runs, "jpeg": runs})
    assert len(table) == 2 * 2 * 3
    assert table["identical"].all()
    other = copy.deepcopy(runs)
    other["1-gch-0"].cells[CELLS[0]].loc[0, "confidence"] -= 1e-6
    table = mechanism_rows({"memory": runs, "jpeg": other})
    found = table[table["part"] == "shift"].groupby("noise")["identical"].all()
    assert found.to_dict() == {"gch p=0.3 L3": True, "gch p=0.3 L4": False}


def test_mechanisms_without_a_partner_are_left_out(found: Found) -> None:
    assert len(mechanism_lines(mechanism_rows(found))) == 5 + 3 * 2 + 2
    for runs in found.values():
        del runs["none-1"]
    before = np.mean(
        [found["memory"]["gch-0"].cells[cell]["nll"] - found["memory"]["none-0"].cells[cell]["nll"] for cell in CELLS]
    )
    assert one(mechanism_rows(found), "memory jpeg", "shift", "nll")["before"] == pytest.approx(before), "seed 0 alone"
    for runs in found.values():
        del runs["none-0"]
    assert mechanism_rows(found).empty


def test_the_figure_has_the_intervals_of_shift(found: Found) -> None:
    table = rows_of(found)
    panels = figure(table).axes
    assert [panel.get_xlabel() for panel in panels] == [
        f"change of\n{METRICS[key].header}" for key in ("top1", "nll", "ce2_debiased")
    ]
    rows = table[(table["part"] == "shift") & (table["metric"] == "nll")]
    (segments,) = (each.get_segments() for each in panels[1].collections)
    assert np.array([segment[:, 0] for segment in segments]) == pytest.approx(rows[["low", "high"]].to_numpy())


def test_lines(found: Found) -> None:
    said = lines(rows_of(found), found)
    assert len([line for line in said if line.startswith("| ")]) == 2 + 3 * 2
    assert any(line.startswith("| stored JPEGs against the round trip in memory | shift | identical |") for line in said)
    assert "2 corruptions at severities [3]" in said[9]


def test_what_cannot_be_compared_is_named(found: Found) -> None:
    for argument in ("memory", "jpg=runs"):
        with pytest.raises(UserError, match="an argument must be NAME=FOLDER with NAME one of memory, stored, jpeg"):
            read([argument])
    with pytest.raises(UserError, match="each NAME must be given once, got jpeg=runs/a and jpeg=runs/b"):
        read(["jpeg=runs/a", "memory=runs/c", "jpeg=runs/b"])
    with pytest.raises(UserError, match="folders must hold both protocols of a comparison, got memory"):
        rows_of({"memory": found["memory"]})
    found["jpeg"]["gch-0"].cells[CELL_CLEAN]["id"] += 1
    with pytest.raises(UserError, match="memory and jpeg must be evaluated on the same images: id of every cell"):
        rows_of(found)
