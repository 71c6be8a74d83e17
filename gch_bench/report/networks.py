"""One row per network of a setting: its reliability under shift by itself, and against the baseline of the same seed."""

import contextlib
from collections.abc import Sequence

import numpy as np
import pandas as pd

from gch_bench.errors import UserError
from gch_bench.metrics import METRICS
from gch_bench.report.runs import find_folders, parallel_map, read_runs, settings_of
from gch_bench.report.statistics import atoms_of
from gch_bench.report.study import CALIBRATED, RAW, Run, Setting
from gch_bench.report.temperature import MIN_ERRORS, TooFewErrors, with_temperature
from gch_bench.results.records import CELL_CLEAN, Cell

# Column -> metric and temperature; the mean over the setting's corrupted cells.
SHIFT = {
    "nll": ("nll", RAW),
    "ece": ("ece", RAW),
    "smece": ("smece", RAW),
    "top1": ("top1", RAW),
    "nll_after_T": ("nll", CALIBRATED),
    "ece_after_T": ("ece", CALIBRATED),
    "smece_after_T": ("smece", CALIBRATED),
}
CONTROL = "clean_top1"


def title(column: str) -> str:
    """The heading of a column of SHIFT."""
    metric, temperature = SHIFT[column]
    return METRICS[metric].title + ("" if temperature == RAW else f" {temperature}")


def read_setting(patterns: Sequence[str]) -> tuple[Setting, list[str]]:
    """The one setting of these runs, and a line for each run that was left out.

    Raises:
        UserError: no run can be read, the runs are of several settings, there is no run without noise, or no corrupted cell.
    """
    found = read_runs(find_folders(patterns))
    settings, refused = settings_of(found.runs, "none")
    if len(settings) != 1:
        reasons = [*(setting.name for setting in settings), *found.refused, *refused]
        raise UserError(f"runs must differ in noise and seed alone, got {len(settings)} settings: {'; '.join(reasons)}")
    if settings[0].baseline is None:
        raise UserError("runs must hold some with noise=none, from which differences are taken, got none")
    if not settings[0].cells:
        raise UserError("runs must be evaluated on corrupted images, got clean records alone: run evaluate.py corruptions=c15")
    return settings[0], [*found.refused, *refused]


def networks_table(setting: Setting) -> pd.DataFrame:
    """A row per network: mechanism, noise, stage, seed, gate_variance (nan without noise), folder, weights, CONTROL, and those
    columns of SHIFT that the records of all networks allow; `left_out` names the others."""
    runs = [(group, seed, run) for group in setting.groups for seed, run in group.runs.items()]
    runs = [each for each in runs if set(setting.cells) <= set(each[2].cells)]
    measured = parallel_map(lambda each: _of_run(each[2], setting.cells), runs)
    rows = []
    for (group, seed, run), numbers in zip(runs, measured, strict=True):
        stages = group.noise["stages"] if group.noise.get("law") else []
        rows.append({
            "mechanism": group.mechanism, "noise": group.noise["name"], "stage": "+".join(stages), "seed": seed,
            "gate_variance": run.facts.gate_variance, "folder": str(run.folder), "weights": run.facts.weights,
            **numbers,
        })  # fmt: skip
    table = pd.DataFrame(rows)
    return table.drop(columns=[name for name in SHIFT if name in table and table[name].isna().any()])


def left_out(table: pd.DataFrame) -> list[str]:
    """A line on the columns of SHIFT that a table of `networks_table` lacks; no line where it has them all."""
    lacking = [title(name) for name in SHIFT if name not in table]
    why = f"at least one network has no logits of these images or fewer than {MIN_ERRORS} errors on clean images"
    return [f"Left out: {', '.join(lacking)}; {why}."] if lacking else []


def _of_run(run: Run, cells: Sequence[Cell]) -> dict[str, float]:
    with contextlib.suppress(TooFewErrors):
        run = with_temperature(run)
    numbers = {CONTROL: _mean("top1", run, RAW, [CELL_CLEAN])}
    for name, (metric, temperature) in SHIFT.items():
        if temperature == RAW or set(cells) <= set(run.calibrated or {}):
            numbers[name] = _mean(metric, run, temperature, cells)
    return numbers


def _mean(metric: str, run: Run, temperature: str, cells: Sequence[Cell]) -> float:
    frames = run.cells if temperature == RAW else run.calibrated
    assert frames is not None
    return float(np.mean([METRICS[metric].formula(atoms_of(frames[cell])) for cell in cells]))


def against_baseline(table: pd.DataFrame) -> pd.DataFrame:
    """The networks with noise that have one without of the same seed; SHIFT and CONTROL are their differences from it."""
    columns = [CONTROL, *(name for name in SHIFT if name in table)]
    none = table[table["noise"] == "none"].set_index("seed")[columns]
    own = table[(table["noise"] != "none") & table["seed"].isin(none.index)].reset_index(drop=True)
    own[columns] = own[columns].to_numpy() - none.loc[own["seed"]].to_numpy()
    return own
