"""The comparison table against its own arithmetic, and its warnings."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from gch_bench.errors import UserError
from gch_bench.report.tables import Run, compare
from gch_bench.results.records import CELL_CLEAN, Cell
from gch_bench.results.runfacts import RunFacts

CELLS = [CELL_CLEAN, *(Cell(name, severity) for name in ("brightness", "contrast") for severity in (1, 2))]


def make_run(name: str, seed: int, protocol: str = "p", warnings: tuple[str, ...] = (), cells: list[Cell] = CELLS) -> Run:
    rng, rows = np.random.default_rng(seed), {}
    labels = np.arange(60) % 3
    for cell in cells:
        prediction = np.where(rng.random(60) < 0.7, labels, rng.integers(0, 3, 60))
        numbers = {key: rng.random(60) for key in ("confidence", "nll", "brier", "entropy")}
        rows[cell] = pd.DataFrame({"id": np.arange(60), "label": labels, "prediction": prediction, "top5": True, **numbers})
    config = {"noise": {"name": name}, "seed": seed}
    facts = RunFacts(
        status="finished", started="", command="train.py", processes=1, device="cpu", commit="c", versions={}, hardware={},
        protocol_id=protocol, protocol={}, mechanism=name, stages=[], warnings=list(warnings), data={"num_classes": 3},
        parameters=1, config=config, identity={}, weights="w",
    )  # fmt: skip
    return Run(Path("runs") / f"{name}-{seed}", facts, rows, {})


def test_numbers() -> None:
    runs = [make_run("none", 0), make_run("gch", 1)]
    table = compare(runs, num_resamples=50)
    assert table.columns == ["", "none", "gch", "gch - none"]
    rows = {row[0]: row[1:] for row in table.rows}
    top1 = [np.mean([(run.cells[c]["label"] == run.cells[c]["prediction"]).mean() for c in CELLS[1:]]) for run in runs]
    assert rows["shift top-1 %"][:2] == [f"{100 * value:.2f}" for value in top1]
    assert rows["shift top-1 %"][2].startswith(f"{100 * (top1[1] - top1[0]):+.2f} [")
    nll = [run.cells[CELL_CLEAN]["nll"].mean() for run in runs]
    assert rows["clean NLL"][:2] == [f"{value:.4f}" for value in nll]
    assert table.markdown().count("\n") == 4 + len(table.rows) + 1 + len(table.notes)


def test_same_mechanism_is_told_apart_by_folder() -> None:
    assert compare([make_run("gch", 0), make_run("gch", 1)], 10).columns[1:3] == ["gch-0", "gch-1"]


def test_only_shared_cells_count() -> None:
    table = compare([make_run("none", 0), make_run("gch", 1, cells=CELLS[:3])], 10)
    assert "over 1 corruptions (brightness)" in table.notes[0]
    assert "2 corrupted cells are left out" in table.notes[1]
    clean_only = compare([make_run("none", 0, cells=CELLS[:1]), make_run("gch", 1)], 10)
    assert len(clean_only.rows) == 3


def test_extra_corruptions_are_averaged_by_themselves() -> None:
    both = [*CELLS, Cell("spatter", 1), Cell("spatter", 2)]
    with_extra, without = (
        compare([make_run("none", 0, cells=cells), make_run("gch", 1, cells=cells)], 10) for cells in (both, CELLS)
    )
    assert with_extra.rows == without.rows
    assert "2 corrupted cells are left out" in with_extra.notes[1]
    alone = [CELL_CLEAN, Cell("spatter", 1)]
    assert "(spatter)" in compare([make_run("none", 0, cells=alone), make_run("gch", 1, cells=alone)], 10).notes[0]


def test_warnings_are_shown() -> None:
    table = compare([make_run("none", 0), make_run("gch", 1, protocol="q", warnings=("stage L4 is the IDENTITY",))], 10)
    text = " ".join(table.notes)
    assert "DIFFERENT PROTOCOLS" in text
    assert "WARNING: gch: stage L4 is the IDENTITY" in text


def test_other_stored_images_are_shown() -> None:
    runs = [make_run("none", 0), make_run("gch", 1)]
    for run in runs:
        run.images.update(dict.fromkeys(CELLS[1:], "a"))
    assert "STORED" not in " ".join(compare(runs, 10).notes)
    runs[1].images[CELLS[1]] = "b"
    assert "WARNING: 1 corrupted cells were measured on DIFFERENT STORED IMAGES" in " ".join(compare(runs, 10).notes)


def test_bad_input() -> None:
    with pytest.raises(UserError, match="runs must be a list of run folders"):
        compare([])
    other = make_run("gch", 1)
    other.cells[CELL_CLEAN]["id"] += 1
    with pytest.raises(UserError, match="not evaluated on the same images"):
        compare([make_run("none", 0), other], 10)
