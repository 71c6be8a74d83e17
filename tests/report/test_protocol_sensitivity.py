"""scripts/protocol_sensitivity.py: its numbers on made-up records, against their definitions written out with NumPy."""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import REPOSITORY

from gch_bench.errors import UserError
from gch_bench.metrics import summarize
from gch_bench.report.study import Run
from gch_bench.results.records import CELL_CLEAN, Cell

sys.path.insert(0, str(REPOSITORY / "scripts"))

from protocol_sensitivity import MEAN, Network, arguments_of, changes, figure, rows_of, verdict, yardsticks

IMAGES = 400
CELLS = [CELL_CLEAN, Cell("fog", 3), Cell("snow", 3)]
NETWORKS = [Network(mechanism, seed) for mechanism in ("none", "gch") for seed in (0, 1)]
Found = dict[str, dict[Network, Run]]


def records(rng: np.random.Generator) -> pd.DataFrame:
    confidence_N = rng.uniform(0.3, 1, IMAGES).astype(np.float32)
    prediction_N = rng.integers(0, 4, IMAGES)
    label_N = np.arange(IMAGES) % 4
    right_N = rng.random(IMAGES) < confidence_N
    values = {
        "id": np.arange(IMAGES), "label": label_N, "prediction": np.where(right_N, label_N, prediction_N),
        "confidence": confidence_N, "nll": rng.exponential(size=IMAGES), "brier": 0.5, "top5": True, "entropy": 0.5,
    }  # fmt: skip
    return pd.DataFrame(values)


@pytest.fixture
def found() -> Found:
    """Under `jpeg` the corrupted images have another NLL and 40 other predictions, `stored` equals it, `bf16` adds noise to the
    NLL that is 0 on average, `timm` adds much to every NLL, and more for gch."""
    rng = np.random.default_rng(0)
    cells = {network: {cell: records(rng) for cell in CELLS} for network in NETWORKS}

    def under(name: str) -> dict[Network, Run]:
        runs = {}
        for network, own in cells.items():
            own = {cell: table.copy() for cell, table in own.items()}
            for cell, table in own.items():
                if name in ("jpeg", "stored") and cell != CELL_CLEAN:
                    table["nll"] += 0.01 * np.random.default_rng(cell.severity).normal(1, 1, IMAGES)
                    table.loc[:39, "prediction"] = (table.loc[:39, "prediction"] + 1) % 4
                elif name == "bf16":
                    table["nll"] += 0.01 * (np.arange(IMAGES) % 2 - 0.5)
                elif name == "timm":
                    table["nll"] += 1.0 + (network.mechanism == "gch")
            runs[network] = Run(Path(name), None, own, dict.fromkeys(own))  # type: ignore[arg-type]  # its facts are not read
        return runs

    return {name: under(name) for name in ("memory", "stored", "jpeg", "timm", "bf16")}


def one(table: pd.DataFrame, protocol: str, part: str, network: str, metric: str, against: str = "memory") -> pd.Series:
    rows = table[
        (table[["protocol", "against", "part", "network", "metric"]] == [protocol, against, part, network, metric]).all(axis=1)
    ]
    assert len(rows) == 1
    return rows.iloc[0]


def per_image(runs: dict[Network, Run], column: str) -> np.ndarray:
    """The mean over networks and corrupted cells for each image."""
    return np.mean([run.cells[cell][column] for run in runs.values() for cell in CELLS[1:]], axis=0)


def test_a_change_and_its_interval_are_those_of_the_paired_images(found: Found) -> None:
    table = rows_of(found, 2000)
    before_N, after_N = per_image(found["memory"], "nll"), per_image(found["jpeg"], "nll")
    row = one(table, "jpeg", "shift", MEAN, "nll")
    assert (row["reference"], row["value"]) == pytest.approx((before_N.mean(), after_N.mean()))
    assert row["difference"] == pytest.approx((after_N - before_N).mean())
    error = (after_N - before_N).std() / IMAGES**0.5
    assert [row["difference"] - row["low"], row["high"] - row["difference"]] == pytest.approx([1.96 * error] * 2, rel=0.08)
    assert row["se_images"] == pytest.approx(before_N.std() / IMAGES**0.5, rel=0.08)
    assert row["changed"] == pytest.approx(0.1)


def test_ece_and_its_floor_are_means_over_cells_without_an_interval(found: Found) -> None:
    rows = [summarize(run.cells[cell], 4) for run in found["memory"].values() for cell in CELLS[1:]]
    table = rows_of(found, 50)
    for key, expected in (
        ("ece", [row["ece"] for row in rows]),
        ("ece_excess", [row["ece"] - row["ece_floor"] for row in rows]),
    ):
        row = one(table, "jpeg", "shift", MEAN, key)
        assert row["reference"] == pytest.approx(np.mean(expected))
        assert row[["low", "high", "p", "se_images"]].isna().all()


def test_the_spread_over_seeds_is_pooled_within_mechanisms(found: Found) -> None:
    values = {
        network: np.mean([run.cells[cell]["nll"].mean() for cell in CELLS[1:]]) for network, run in found["memory"].items()
    }
    variances = [np.var([values[Network(name, 0)], values[Network(name, 1)]], ddof=1) for name in ("none", "gch")]
    assert one(rows_of(found, 50), "jpeg", "shift", MEAN, "nll")["sd_seeds"] == pytest.approx(np.mean(variances) ** 0.5)


def test_the_difference_of_mechanisms_moves_by_what_is_added_to_one(found: Found) -> None:
    row = one(rows_of(found, 50), "timm", "shift", "gch - none", "nll")
    assert row["difference"] == pytest.approx(1.0)
    assert (row["low"], row["high"]) == pytest.approx((1.0, 1.0), abs=1e-6), "the same is added to every image"


def test_words(found: Found) -> None:
    table = rows_of(found, 200)

    def words(protocol: str, part: str, against: str = "memory") -> str:
        own = table[table["network"] == MEAN]
        return verdict(own[(own[["protocol", "part", "against"]] == [protocol, part, against]).all(axis=1)])

    assert words("jpeg", "clean") == words("stored", "shift", "jpeg") == "identical"
    assert words("bf16", "shift") == "not seen"
    assert words("jpeg", "shift").startswith("LARGE: top-1"), "a tenth of the predictions was changed"
    assert words("timm", "clean") == "LARGE: NLL"
    lines = changes(table, MEAN)
    assert ["stored JPEGs against the round trip in memory", "shift", "0.00", *["0"] * 5, "identical"] in lines
    assert len(lines) == 2 * 5
    assert [line[1] for line in yardsticks(table, IMAGES)] == ["shift"] * 3 + ["clean"] * 3


def test_small_changes_are_told_from_large_ones(found: Found) -> None:
    for run in found["bf16"].values():
        for cell in CELLS:
            run.cells[cell]["nll"] += 0.006
    own = rows_of(found, 200).query("network == @MEAN and protocol == 'bf16' and part == 'shift'")
    assert verdict(own) == "seen, small: NLL"


def test_the_figure_draws_every_comparison(found: Found) -> None:
    drawn = figure(rows_of(found, 50), IMAGES)
    assert [len(axis.get_yticks()) for axis in drawn.axes] == [5, 5, 5]
    assert f"standard error of {IMAGES} images" in "".join(each.get_text() for each in drawn.legends[0].get_texts())


def test_arguments_are_runs_and_fields_that_no_protocol_sets() -> None:
    options, overrides = arguments_of(["runs/a", "data=folder", "runs/b", "threads=1", "--protocols", "memory", "jpeg"])
    assert (options.runs, overrides, options.protocols) == (
        ["runs/a", "runs/b"],
        ["data=folder", "threads=1"],
        ["memory", "jpeg"],
    )
    with pytest.raises(UserError, match=r"got corruptions\.seed=3, which the protocols set"):
        arguments_of(["runs/a", "corruptions.seed=3"])
    with pytest.raises(UserError, match="got no run"):
        arguments_of(["data=folder"])
