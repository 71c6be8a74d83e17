"""Comparison of finished runs: metrics on clean images and averaged over corruptions, and paired differences from the first."""

from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from gch_bench.errors import UserError
from gch_bench.metrics import CLEAN, SHOWN, Metric, averaged, mean_corruption, summarize
from gch_bench.report.statistics import Interval, paired_differences
from gch_bench.results.records import CELL_CLEAN, Cell, read_record, record_facts, recorded_cells
from gch_bench.results.runfacts import RunFacts, differences, given_weights, read_run_facts, stage_in_words
from gch_bench.results.summary import logged_metrics

STRENGTHS = ("gamma", "beta", "energy", "p", "block_size", "sigma")  # options of the noise that a run's label shows


class Run(NamedTuple):
    """A finished run: its folder, the facts in run.json, the records of each cell (a row per image), and, for cells of stored
    images, the fingerprint of those images (None elsewhere)."""

    folder: Path
    facts: RunFacts
    cells: dict[Cell, pd.DataFrame]
    images: dict[Cell, str | None]


class Comparison(NamedTuple):
    """A table as text: column headers, rows of strings, and the notes that belong under the table."""

    title: str
    columns: list[str]
    rows: list[list[str]]
    notes: list[str]

    def markdown(self) -> str:
        lines = [self.columns, ["---"] + ["---:"] * (len(self.columns) - 1), *self.rows]
        table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
        return f"**{self.title}**\n\n{table}\n\n" + "".join(f"- {note}\n" for note in self.notes)


def read_run(folder: Path) -> Run:
    """Read a finished run from its folder.

    Raises:
        UserError: if the folder holds no run or an unfinished one, or a file cannot be read.
    """
    facts = read_run_facts(folder)
    if not facts.finished or facts.weights is None:
        raise UserError(f"{folder} holds an unfinished run: finish it with the command it was started with, {facts.command}")
    found = recorded_cells(folder, {"protocol": facts.protocol_id, "weights": facts.weights})
    if CELL_CLEAN not in found:
        raise UserError(f"{folder} has no clean record: run its command again, {facts.command}")
    images = {cell: (record_facts(folder, cell) or {}).get("images") for cell in found}
    return Run(folder, facts, {cell: read_record(folder, cell) for cell in found}, images)


def compare(runs: list[Run], num_resamples: int = 1000, level: float = 0.95) -> Comparison:
    """Runs side by side on the cells they share, with paired bootstrap intervals of their differences from the first.

    Raises:
        UserError: if ``runs`` is empty, or the runs were evaluated on different images.
    """
    if not runs:
        raise UserError("runs must be a list of run folders, got []; pass runs=[FOLDER,FOLDER]")
    shared = shared_cells(runs)
    if len(runs) > 1:
        _check_images(runs, [CELL_CLEAN, *shared])
    labels = _labels(runs)
    columns = ["", *labels, *(f"{label} - {labels[0]}" for label in labels[1:])]
    rows = []
    for part, cells in ((CLEAN, [CELL_CLEAN]), ("shift", shared)):
        if not cells:
            continue
        average = [means(run, cells) for run in runs]
        try:
            intervals = [
                paired_differences(
                    [runs[0].cells[c] for c in cells],
                    [run.cells[c] for c in cells],
                    num_resamples,
                    level=level,
                    several_labels=bool(run.facts.data.get("several_labels")),
                )
                for run in runs[1:]
            ]
        except ValueError as error:
            raise UserError(f"the runs cannot be compared image by image: {error}") from error
        for key, metric in SHOWN.items():
            numbers = [metric.text(mean[key]) for mean in average]
            rows.append([f"{part} {metric.header}", *numbers, *(_interval(metric, each.get(key)) for each in intervals)])
    rows += _corruption_error_rows(runs, shared)
    return Comparison("Comparison of runs", columns, rows, _notes(runs, labels, shared, num_resamples, level))


def _check_images(runs: list[Run], cells: list[Cell]) -> None:
    """Raise UserError unless every run has the same images in all of these cells."""
    first = runs[0].cells[CELL_CLEAN]["id"]
    for run, cell in ((run, cell) for run in runs for cell in cells):
        ids = run.cells[cell]["id"]
        if not ids.equals(first):
            others = " others" if len(ids) == len(first) else ""
            raise UserError(
                f"the runs were not evaluated on the same images: {runs[0].folder} has {len(first)} images, {run.folder}"
                f" has {len(ids)}{others} in {cell.corruption}-{cell.severity}: evaluate both with the same data= and"
                " corruptions.subset"
            )


def _corruption_error_rows(runs: list[Run], shared: list[Cell]) -> list[list[str]]:
    """The rows mCE and relative mCE, if all runs are on ImageNet-1k and hold the 15 corruptions at five severities; else none.

    Their differences are shown without an interval.
    """
    if not all(run.facts.data.get("imagenet_1k") for run in runs):
        return []
    found = []
    for run in runs:
        classes = run.facts.data["num_classes"]
        rows = [{**cell._asdict(), **summarize(run.cells[cell], classes)} for cell in [CELL_CLEAN, *shared]]
        found.append(logged_metrics(pd.DataFrame(rows), imagenet_1k=True))
    return [
        [
            title,
            *(f"{100 * each[key]:.2f}" for each in found),
            *(f"{100 * (each[key] - found[0][key]):+.2f}" for each in found[1:]),
        ]
        for key, title in (("shift/mean/mce", "mCE %"), ("shift/mean/relative_mce", "relative mCE %"))
        if all(key in each for each in found)
    ]


def shared_cells(runs: list[Run]) -> list[Cell]:
    """The cells that the mean over corruptions is of: those that all runs have, of corruptions that are averaged
    (``metrics.averaged``), at the severities that all of these corruptions have."""
    found = set.intersection(*(set(run.cells) for run in runs))
    names = averaged(sorted(cell.corruption for cell in found))
    found = {cell for cell in found if cell.corruption in names}
    levels = [{cell.severity for cell in found if cell.corruption == name} for name in {cell.corruption for cell in found}]
    common = set.intersection(*levels) if levels else set()
    return sorted(cell for cell in found if cell.severity in common)


def _labels(runs: list[Run]) -> list[str]:
    """Mechanism, strength, stages and seed of each run; also the folder's name, if these do not tell the runs apart."""
    short = [_label(run.facts.config) for run in runs]
    return [f"{label} {run.folder.name}" if short.count(label) > 1 else label for label, run in zip(short, runs, strict=True)]


def _label(config: dict[str, Any]) -> str:
    noise, parts = config["noise"], [config["noise"]["name"]]
    if noise.get("law"):
        parts += [f"{name}={noise[name]:g}" for name in STRENGTHS if noise.get(name) is not None]
        parts.append("+".join(noise["stages"]))
    return " ".join([*parts, f"s{config['seed']}"])


def differences_outside_noise(first: Run, second: Run) -> list[str]:
    """The fields outside the noise in which two runs differ, each as `field: value | value`; [] if there are none."""
    names = [name for name in differences(first.facts.identity, second.facts.identity) if not name.startswith("noise.")]
    return [f"{name}: {_fact(first, name)} | {_fact(second, name)}" for name in names]


def _fact(run: Run, name: str) -> Any:
    """The value of a dotted name in a run's configuration, which also has the defaults, else in the run's identity; or None."""
    for plain in (run.facts.config, run.facts.identity):
        value: Any = plain
        for part in name.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        if value is not None:
            return value
    return None


# Metric -> value of the clean cell, if ``cells`` has it; else averaged over ``cells`` by ``mean_corruption``.
def means(run: Run, cells: list[Cell]) -> dict[str, float]:
    classes = run.facts.data["num_classes"]
    rows = {cell: summarize(run.cells[cell], classes) for cell in cells}
    return rows[CELL_CLEAN] if CELL_CLEAN in rows else mean_corruption(rows, SHOWN)


def _interval(metric: Metric, value: Interval | None) -> str:
    if value is None:  # a metric that the bootstrap does not know
        return "no interval"
    return metric.interval(value)


def _notes(runs: list[Run], labels: list[str], shared: list[Cell], num_resamples: int, level: float) -> list[str]:
    names = sorted({cell.corruption for cell in shared})
    severities = sorted({cell.severity for cell in shared})
    images = len(runs[0].cells[CELL_CLEAN])
    notes = [
        f"{images} images per cell; shift: mean over severities {severities}, then over {len(names)} corruptions"
        f" ({', '.join(names)})" if names else f"{images} images; no corruption was evaluated in all of these runs"
    ]  # fmt: skip
    left_out = len({cell for run in runs for cell in run.cells if cell.severity > 0}) - len(shared)
    if left_out:
        notes.append(
            f"WARNING: {left_out} corrupted cells are left out: extra ones, or not in all of these runs or corruptions"
        )
    if len(runs) > 1:
        notes.append(
            f"differences: paired over images, [{level:.0%} percentile interval of {num_resamples} bootstrap resamples];"
            " they say nothing about other training seeds"
        )
    protocols = {run.facts.protocol_id for run in runs}
    if len(protocols) > 1:
        notes.append(f"WARNING: the runs follow DIFFERENT PROTOCOLS and are not comparable: {', '.join(sorted(protocols))}")
    else:
        notes.append(f"protocol {protocols.pop()}")
        others = [cell for cell in shared if len({run.images.get(cell) for run in runs}) > 1]
        if others:
            notes.append(f"WARNING: {len(others)} corrupted cells were measured on DIFFERENT STORED IMAGES: not comparable")
    for run, label in zip(runs, labels, strict=True):
        if differing := differences_outside_noise(runs[0], run):
            notes.append(
                f"WARNING: {label} differs from {labels[0]} in more than its noise, so a difference of their numbers is not the"
                f" mechanism's alone: {'; '.join(differing)}"
            )
        notes += [f"WARNING: {label}: {warning}" for warning in run.facts.warnings]
        trains = run.facts.config.get("recipe") is not None
        stages = [stage for stage in run.facts.stages if "logit_change" in stage]
        notes += [f"{label}: noise at {stage_in_words(stage, trains)}" for stage in stages]
        given = given_weights(run.facts.config)
        weights = f", weights {given}" if given else ""
        notes.append(f"{label}: {run.folder}{weights}, commit {run.facts.commit}, seed {run.facts.config['seed']}")
    return notes
