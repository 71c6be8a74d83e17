"""The comparison table against its own arithmetic, and its warnings."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from gch_bench.errors import UserError
from gch_bench.report.tables import Run, compare
from gch_bench.results.records import CELL_CLEAN, Cell
from gch_bench.results.runfacts import RunFacts
from gch_bench.results.summary import ALEXNET

CELLS = [CELL_CLEAN, *(Cell(name, severity) for name in ("brightness", "contrast") for severity in (1, 2))]


def make_run(
    name: str, draws: int, protocol: str = "p", warnings: tuple[str, ...] = (), cells: list[Cell] = CELLS, **config: Any
) -> Run:
    rng, rows = np.random.default_rng(draws), {}
    labels = np.arange(60) % 3
    for cell in cells:
        prediction = np.where(rng.random(60) < 0.7, labels, rng.integers(0, 3, 60))
        numbers = {key: rng.random(60) for key in ("confidence", "nll", "brier", "entropy")}
        rows[cell] = pd.DataFrame({"id": np.arange(60), "label": labels, "prediction": prediction, "top5": True, **numbers})
    noise = {
        "name": name,
        "law": None if name == "none" else "samplewise",
        "gamma": None if name == "none" else 1.0,
        "stages": ["L4"],
    }
    whole = {"noise": noise, "seed": 0, **config}
    named = {"name": name} if name == "none" else noise
    facts = RunFacts(
        status="finished", started="", command="train.py", processes=1, device="cpu", commit="c", versions={}, hardware={},
        protocol_id=protocol, protocol={}, mechanism=name, stages=[], warnings=list(warnings), data={"num_classes": 3},
        parameters=1, config=whole, identity={"schema": 1, "noise": named, **config}, weights="w",
    )  # fmt: skip
    return Run(Path("runs") / f"{name}-{draws}", facts, rows, {})


def test_numbers() -> None:
    runs = [make_run("none", 0), make_run("gch", 1)]
    table = compare(runs, num_resamples=50)
    assert table.columns == ["", "none s0", "gch gamma=1 L4 s0", "gch gamma=1 L4 s0 - none s0"]
    rows = {row[0]: row[1:] for row in table.rows}
    top1 = [np.mean([(run.cells[c]["label"] == run.cells[c]["prediction"]).mean() for c in CELLS[1:]]) for run in runs]
    assert rows["shift top-1 %"][:2] == [f"{100 * value:.2f}" for value in top1]
    assert rows["shift top-1 %"][2].startswith(f"{100 * (top1[1] - top1[0]):+.2f} [")
    nll = [run.cells[CELL_CLEAN]["nll"].mean() for run in runs]
    assert rows["clean NLL"][:2] == [f"{value:.4f}" for value in nll]
    assert table.markdown().count("\n") == 4 + len(table.rows) + 1 + len(table.notes)


def test_same_mechanism_is_told_apart_by_folder() -> None:
    assert compare([make_run("gch", 0), make_run("gch", 1)], 10).columns[1:3] == [
        "gch gamma=1 L4 s0 gch-0", "gch gamma=1 L4 s0 gch-1"]  # fmt: skip


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
    assert "WARNING: gch gamma=1 L4 s0: stage L4 is the IDENTITY" in text


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
    with pytest.raises(
        UserError, match="same images: runs/none-0 has 60 images, runs/gch-1 has 60 others in clean-0: evaluate"
    ):
        compare([make_run("none", 0), other], 10)
    fewer = make_run("gch", 2)
    fewer.cells[CELLS[-1]] = fewer.cells[CELLS[-1]][:40]
    with pytest.raises(UserError, match="runs/none-0 has 60 images, runs/gch-2 has 40 in contrast-2: evaluate both with the"):
        compare([make_run("none", 0), fewer], 10)
    relabelled = make_run("gch", 3)
    relabelled.cells[CELL_CLEAN]["label"] = 0
    with pytest.raises(UserError, match="cannot be compared image by image: label of every cell must equal"):
        compare([make_run("none", 0), relabelled], 10)


def test_every_difference_outside_the_noise_is_named() -> None:
    """Runs of another width, recipe or seed differ by more than their mechanism, and the table says by what."""
    first = make_run("none", 0, recipe={"lr": 0.1})
    assert not any("more than its noise" in note for note in compare([first, make_run("gch", 1, recipe={"lr": 0.1})], 10).notes)
    other = make_run("gch", 1, recipe={"lr": 0.2}, model={"kwargs": {"width": 4}}, seed=3)
    table = compare([first, other], 10)
    assert table.columns[2] == "gch gamma=1 L4 s3"
    (note,) = [note for note in table.notes if "more than its noise" in note]
    assert note.startswith("WARNING: gch gamma=1 L4 s3 differs from none s0 in more than its noise")
    assert all(part in note for part in ("recipe.lr: 0.1 | 0.2", "model: None | {'kwargs': {'width': 4}}", "seed: 0 | 3"))
    assert "noise." not in note


def test_corruption_errors_are_shown_for_imagenet_alone() -> None:
    cells = [CELL_CLEAN, *(Cell(name, severity) for name in ALEXNET for severity in (1, 2, 3, 4, 5))]
    runs = [make_run("none", 0, cells=cells), make_run("gch", 1, cells=cells)]
    assert not any("mCE" in row[0] for row in compare(runs, 10).rows)
    for run in runs:
        run.facts.data["imagenet_1k"] = True
    rows = {row[0]: row[1:] for row in compare(runs, 10).rows}
    wrong = {cell: (runs[1].cells[cell]["label"] != runs[1].cells[cell]["prediction"]).mean() for cell in cells}
    expected = np.mean([np.mean([wrong[Cell(name, s)] for s in (1, 2, 3, 4, 5)]) / ALEXNET[name] for name in ALEXNET])
    assert rows["mCE %"][1] == f"{100 * expected:.2f}"
    assert "relative mCE %" in rows
    del runs[1].cells[cells[-1]]
    assert not any("mCE" in row[0] for row in compare(runs, 10).rows), "an incomplete set has no mCE"


def test_what_the_noise_measurably_does_is_beside_the_numbers() -> None:
    stage = {"stage": "L4", "module": "layer4", "height": 7, "width": 7, "logit_change": 0.123, "drop_rate": 0.15,
             "nominal_drop_rate": 0.1, "gate_variance": 0.21, "expected_gate_variance": 0.2}  # fmt: skip
    run = make_run("gch", 1)
    run.facts.stages.append(stage)
    run.facts.config["recipe"] = {}
    (note,) = [note for note in compare([make_run("none", 0), run], 10).notes if "layer4" in note]
    assert note == (
        "gch gamma=1 L4 s0: noise at L4 (layer4, 7x7) changes the logits by 12% (before its training), sets 15.0% of the sites"
        " to zero (nominal 10.0%), gate variance 0.21, 0.2 by closed form"
    )
    run.facts.config["recipe"] = None  # evaluate.py measures it on the weights that it evaluates
    assert any("changes the logits by 12%, sets" in note for note in compare([run], 10).notes)
