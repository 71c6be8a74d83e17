"""The job of diagnose.py: measure the geometry of weights, compare it with runs' reliability, and write one folder."""

import hashlib
import json
import shlex
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from gch_bench import files
from gch_bench.apps.diagnosis.folder import Layout, as_job, check_folder, check_identity, move
from gch_bench.apps.diagnosis.images import prepared, spread_images
from gch_bench.apps.diagnosis.measure import Diagnosed, Work, diagnose_subject, matrices_file
from gch_bench.apps.diagnosis.subjects import Subject, subjects
from gch_bench.apps.diagnosis.weight_files import expanded
from gch_bench.config.diagnosis import DiagnoseConfig
from gch_bench.config.parse import identity_of
from gch_bench.data.sets import load_data
from gch_bench.data.transforms import normalise
from gch_bench.display import Display
from gch_bench.errors import UserError
from gch_bench.geometry.chain_format import Chain, load_chain
from gch_bench.geometry.network import frames
from gch_bench.loggers import open_logger
from gch_bench.provenance import provenance
from gch_bench.report import geometry, geometry_compare, geometry_figures, geometry_trajectory
from gch_bench.report.figure_style import save
from gch_bench.report.geometry_headline import headline
from gch_bench.report.runs import read_run
from gch_bench.report.study import Run
from gch_bench.report.text_table import write as write_table
from gch_bench.results.geometry import ChainReport

CSV = (
    "summary", "factors", "interfaces", "certificates", "weights", "over_images", "composition", "comparison", "correlations",
    "trajectory",
)  # fmt: skip
TABLES = (*CSV, "channels", "columns", "edges", "spectra")  # the long ones, of a row per channel or value, are Parquet alone
PER_SUBJECT = ("weights", "over_images", "composition")
HEADLINE_FILES = tuple(f"geometry_headline.{kind}" for kind in ("csv", "md", "tex"))
LAYOUT = Layout(
    "diagnosis",
    (
        "run.json",
        "report.md",
        "metrics.csv",
        *HEADLINE_FILES,
        *(f"{name}.{kind}" for name in TABLES for kind in ("parquet", "csv")),
    ),
    ("figures", "matrices"),
)


def diagnose(config: DiagnoseConfig) -> None:
    """Measure first, then write, so that a diagnosis that fails leaves nothing in the folder.

    Raises:
        UserError: if the user made a mistake; the message says which in one line.
    """
    as_job(config, _run)


def _run(config: DiagnoseConfig, device: torch.device) -> None:
    display = Display(True)
    base = Path(config.output or "runs")
    if config.output:
        check_folder(base, LAYOUT, identity_of(config))
    runs = [
        read_run(Path(run)) for run in expanded(config).config.runs
    ]  # before the measuring, so that a missing record is found early
    named = [_load_chain(name) for name in config.chain or [] if name != "auto"]
    _check_names(named)
    images = _images(config) if config.jacobian.images else None
    # All files are written to a scratch folder and moved when they are complete; the scratch folder is removed in any case.
    with files.making(base), tempfile.TemporaryDirectory(prefix=".diagnosis-", suffix=".tmp", dir=base) as scratch:
        work, found = Work(config, device, display, Path(scratch), named), []
        for subject in subjects(config):
            display.line(f"{subject.label}: {subject.origin} (weights {subject.digest})")
            try:
                found.append(diagnose_subject(work, subject, images))
            except ValueError as error:
                raise UserError(f"{subject.label}: {error}") from error
        identity = _identity(config, named, found)
        folder = base if config.output else base / f"diagnose-{_name(found)}-{identity[:8]}"
        check_identity(folder, LAYOUT, identity)
        # Behind the runs comes their architecture with random weights, where it was asked for: it has no reliability.
        comparison = _compare(runs, found[: len(runs)], config.seed) if runs else None
        outcome = _outcome(config, identity, found, comparison)
        figures = _write(outcome, Path(scratch))
        written = move(Path(scratch), folder, LAYOUT)
        logger = open_logger(config, folder, main=True)
        try:
            logger.metrics(geometry.logged_metrics(outcome.reports), 0)
            logger.pictures([folder / "figures" / f"{name}.png" for name in figures])
            logger.artifact(folder, "geometry", written)
        finally:
            logger.close()
        _show(outcome, display)
        display.line(f"report: {folder / 'report.md'}")


def _compare(runs: list[Run], found: list[Diagnosed], seed: int) -> geometry_compare.Comparison:
    reports = [(item.facts["label"], item.reports) for item in found]
    stages = {item.facts["label"]: item.facts["last_stage"] for item in found}
    digests = {item.facts["label"]: item.facts["weights"] for item in found}
    return geometry_compare.compare(runs, reports, stages, digests, seed)


def _load_chain(name: str) -> Chain:
    try:
        return load_chain(name)
    except ValueError as error:
        raise UserError(f"chain: {error}") from error


def _check_names(named: list[Chain]) -> None:
    names = [chain.name for chain in named]
    if len({files.slug(name) for name in names}) < len(names):
        raise UserError(f"chain: files and built-in chains must have different names, got {', '.join(names)}")


def _images(config: DiagnoseConfig) -> Callable[[Subject], list[tuple[str, Tensor]]]:
    """A function: subject -> [(name, normalised image (1, 3, size, size))], images spread evenly over the validation set."""
    data = load_data(config.data, train=False)
    chosen = spread_images(data, config.jacobian.images, "jacobian.images")

    def of(subject: Subject) -> list[tuple[str, Tensor]]:
        assert subject.size is not None
        assert subject.normalisation is not None
        images = prepared(data, chosen, subject.size)
        return [
            (f"{data.name}-{i}", normalise(image[None], subject.normalisation)) for i, image in zip(chosen, images, strict=True)
        ]

    return of


def _tables(found: list[Diagnosed]) -> dict[str, pd.DataFrame]:
    """Name -> table of all subjects; the first column says which subject a row is of."""
    parts = [
        (item.facts["label"], frames(item.reports) | {name: getattr(item, name) for name in PER_SUBJECT}) for item in found
    ]
    tables = {}
    for name in dict.fromkeys(name for _, tables_of in parts for name in tables_of):
        filled = [of[name].assign(subject=label) for label, of in parts if len(of[name])]
        tables[name] = pd.concat(filled, ignore_index=True) if filled else pd.DataFrame()
        if filled:
            tables[name].insert(0, "subject", tables[name].pop("subject"))
    return tables


def _folder(item: Diagnosed) -> Path:
    """Where the checkpoint lies that was diagnosed: those of one training lie together."""
    return Path(item.facts["origin"]).resolve().parent


def _trajectories(found: list[Diagnosed]) -> tuple[pd.DataFrame, Figure | None]:
    """The chains' headline quantities over the epochs of one training, if two or more of its checkpoints were diagnosed."""
    of_epochs = [item for item in found if item.facts["epoch"] is not None]
    epochs, folders = {item.facts["epoch"] for item in of_epochs}, {_folder(item) for item in of_epochs}
    if len(epochs) < 2 or len(epochs) < len(of_epochs) or len(folders) > 1:
        return pd.DataFrame(), None
    chains: dict[str, list[tuple[str, int | None, dict[str, float]]]] = {}
    for item in of_epochs:
        for report in item.reports:
            chains.setdefault(report.chain, []).append((item.facts["label"], item.facts["epoch"], report.summary))
    return geometry_trajectory.trajectories(chains)


class _Outcome(NamedTuple):
    """All that a diagnosis found."""

    facts: dict[str, Any]  # run.json
    found: list[Diagnosed]
    comparison: geometry_compare.Comparison | None

    @property
    def reports(self) -> list[tuple[str, ChainReport]]:
        return [(item.facts["label"], report) for item in self.found for report in item.reports]


def _outcome(
    config: DiagnoseConfig, identity: str, found: list[Diagnosed], comparison: geometry_compare.Comparison | None
) -> _Outcome:
    facts = {
        "kind": "diagnosis",
        "command": shlex.join(sys.argv),
        **provenance(),
        "config": config.as_dict(),
        "options": identity_of(config),
        "identity": identity,
        "subjects": [item.facts for item in found],
    }
    return _Outcome(facts, found, comparison)


def _write(outcome: _Outcome, scratch: Path) -> list[str]:
    """Write all files to ``scratch``; returns the figures' names."""
    found, comparison, reports = outcome.found, outcome.comparison, outcome.reports
    tables, figures = _tables(found), geometry_figures.all_figures(reports)
    tables["trajectory"], over_epochs = _trajectories(found)
    if over_epochs is not None:
        figures["trajectory"] = over_epochs
    if comparison is not None:
        tables |= {"comparison": comparison.table, "correlations": comparison.correlations}
        if comparison.figure is not None:
            figures["comparison"] = comparison.figure
    for name in TABLES:
        table = tables.get(name, pd.DataFrame())
        if len(table.columns):
            files.write_parquet(scratch / f"{name}.parquet", table)
            if name in CSV:
                files.write_csv(scratch / f"{name}.csv", table)
    save(figures, scratch / "figures", ("svg", "png", "pdf"))
    complete = {
        matrices_file(label, each.chain, row["index"], row["form"])
        for label, each in reports
        for row in each.interfaces.to_dict("records")
    }
    for path in scratch.glob("matrices/*"):
        if path.name not in complete:  # it is of a chain that failed half-way and was left out
            path.unlink()
    if reports:
        write_table(headline(reports), scratch)
    captions = {name: str(figure.get_label()) for name, figure in figures.items()}
    over_images = {item.facts["label"]: item.over_images for item in found}
    text = geometry.markdown(outcome.facts, reports, comparison, captions, over_images)
    files.write_atomic(scratch / "report.md", lambda file: file.write(text.encode()))
    files.write_json(scratch / "run.json", outcome.facts)
    return list(figures)


def _show(outcome: _Outcome, display: Display) -> None:
    for item in outcome.found:
        for warning in item.facts["warnings"]:
            display.warn(f"{item.facts['label']}: {warning}")
    for shown in geometry.console_tables(outcome.reports):
        display.table(*shown)
    if outcome.comparison is not None:
        display.table(*outcome.comparison.console)


def _name(found: list[Diagnosed]) -> str:
    return files.slug(found[0].facts["label"]) if len(found) == 1 else f"{len(found)}-networks"


def _identity(config: DiagnoseConfig, named: list[Chain], found: list[Diagnosed]) -> str:
    """A hash of what determines the numbers: the weights, and all options except where results are written and logged."""
    plain = identity_of(config) | {"chains": [asdict(chain) for chain in named]}
    facts = [(item.facts["label"], item.facts["weights"]) for item in found]
    return hashlib.sha256(json.dumps([plain, facts], sort_keys=True).encode()).hexdigest()
