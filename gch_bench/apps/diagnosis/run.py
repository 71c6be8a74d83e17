"""The job of diagnose.py: measure the geometry of weights, compare it with runs' reliability, and write one folder."""

import hashlib
import json
import shlex
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from gch_bench import files
from gch_bench.apps.diagnosis.folder import Layout, as_job, check_folder, check_identity, move
from gch_bench.apps.diagnosis.images import prepared, spread_images
from gch_bench.apps.diagnosis.subjects import Subject, subjects
from gch_bench.config.diagnosis import DiagnoseConfig
from gch_bench.config.parse import identity_of
from gch_bench.data.sets import load_data
from gch_bench.data.transforms import normalise
from gch_bench.display import Display
from gch_bench.errors import UserError
from gch_bench.geometry import chains
from gch_bench.geometry.analysis import analyse, weight_table
from gch_bench.geometry.chain_format import Chain, builtin_chains, load_chain
from gch_bench.geometry.chains import Factor
from gch_bench.loggers import open_logger
from gch_bench.noise.stages import feature_stages
from gch_bench.provenance import provenance
from gch_bench.report import geometry, geometry_compare, geometry_figures
from gch_bench.report.figure_style import save
from gch_bench.report.runs import read_run
from gch_bench.report.study import Run
from gch_bench.results.geometry import MEASURED, ChainReport
from gch_bench.spectral.jacobian import network_jacobians

CSV = ("summary", "factors", "interfaces", "weights", "comparison", "correlations")
TABLES = (*CSV, "channels", "columns", "edges", "spectra")  # the long ones, of a row per channel or value, are Parquet alone
LAYOUT = Layout(
    "diagnosis",
    ("run.json", "report.md", "metrics.csv", *(f"{name}.{kind}" for name in TABLES for kind in ("parquet", "csv"))),
    ("figures", "matrices"),
)


class Diagnosed(NamedTuple):
    """What was measured on one subject: facts for run.json, the table of its weights, and the reports on its chains."""

    facts: dict[str, Any]
    weights: pd.DataFrame
    reports: list[ChainReport]


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
    runs = [read_run(Path(run)) for run in config.runs]  # before the measuring, so that a missing record is found early
    named = [_load_chain(name) for name in config.chain or [] if name != "auto"]
    _check_names(named)
    images = _images(config) if config.jacobian.images else None
    # All files are written to a scratch folder and moved when they are complete; the scratch folder is removed in any case.
    with files.making(base), tempfile.TemporaryDirectory(prefix=".diagnosis-", suffix=".tmp", dir=base) as scratch:
        found = []
        for subject in subjects(config):
            display.line(f"{subject.label}: {subject.origin} (weights {subject.digest})")
            try:
                found.append(_diagnose_subject(_Work(config, device, display, Path(scratch)), subject, named, images))
            except ValueError as error:
                raise UserError(f"{subject.label}: {error}") from error
        identity = _identity(config, named, found)
        folder = base if config.output else base / f"diagnose-{_name(found)}-{identity[:8]}"
        check_identity(folder, LAYOUT, identity)
        comparison = _compare(runs, found, config.seed) if runs else None
        _write(config, folder, identity, found, comparison, Path(scratch), display)


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


class _Work(NamedTuple):
    """What every measurement of one diagnosis needs."""

    config: DiagnoseConfig
    device: torch.device
    display: Display
    scratch: Path  # the folder where matrices are kept until the diagnosis is whole


def _diagnose_subject(
    work: _Work, subject: Subject, named: list[Chain], images: Callable[[Subject], list[tuple[str, Tensor]]] | None
) -> Diagnosed:
    """Everything that is measured of one subject: its chains, its block Jacobians where asked for, and its single weights."""
    wanted = named or chains.find_chains(subject.weights)
    warnings = list(subject.warnings)
    if not wanted:
        warnings.append(
            f"no built-in chain fits these weights: only the weights themselves were looked at; give chain=FILE.yaml, or one of"
            f" {', '.join(builtin_chains())}"
        )
    reports, fitting = [], []
    for chain in wanted:
        blocks = chains.chain_blocks(subject.weights, chain)
        factors = chains.chain_factors(subject.weights, chain, work.device, subject.head_dim)
        try:
            reports.append(_report_chain(work, subject.label, factors, len(blocks), (chain.name, chain.description)))
            fitting.append(chain)
        except ValueError as error:
            if named:
                raise
            warnings.append(f"chain {chain.name} was left out: {error}")
    if images is not None and fitting:
        reports += _jacobian_reports(work, subject, fitting[0], images(subject))
    table = pd.DataFrame()
    if work.config.spectral.weights:
        try:
            table = weight_table(chains.weight_matrices(subject.weights, work.device))
        except ValueError as error:
            raise ValueError(f"{error}; spectral.weights=false looks at the chains alone") from error
    facts = {
        "label": subject.label,
        "origin": subject.origin,
        "weights": subject.digest,
        "size": subject.size,
        "chains": [item.chain for item in reports],
        "last_stage": feature_stages(subject.network).get("L4") if subject.network is not None else None,
        "warnings": warnings,
    }
    return Diagnosed(facts, table, reports)


def _report_chain(work: _Work, label: str, factors: Iterable[Factor], count: int, titles: tuple[str, str]) -> ChainReport:
    """The report on a chain of `count` factors, with a progress bar; `titles` are the chain's name and description."""
    config, (name, description) = work.config, titles

    def keep(index: int, matrices: dict[str, Tensor]) -> None:
        arrays: dict[str, Any] = {key: value.cpu().numpy() for key, value in matrices.items()}
        path = work.scratch / "matrices" / _matrices_file(label, name, index)
        files.write_atomic(path, partial(np.savez_compressed, **arrays), durable=False)

    with work.display.bar(f"{label} {name}", count, "factors") as advance:

        def ticked() -> Iterator[Factor]:
            for factor in factors:
                yield factor
                advance(factor.name, 1)

        kept = keep if config.save_matrices else None
        return analyse(ticked(), name, description, config.spectral, config.alignment, kept)


def _jacobian_reports(work: _Work, subject: Subject, chain: Chain, images: list[tuple[str, Tensor]]) -> Iterator[ChainReport]:
    """The reports on the measured Jacobians of a chain's blocks, one per image: (name, (1, 3, size, size))."""
    assert subject.network is not None
    jacobian = work.config.jacobian
    blocks = chains.chain_blocks(subject.weights, chain)
    network = subject.network.to(work.device, torch.float64)
    for image_name, image in images:
        image = image.to(work.device, torch.float64)
        found = network_jacobians(network, blocks, image, jacobian.token, jacobian.chunk_mib << 20)
        measured = (Factor(block, matrix, kind=MEASURED) for block, matrix in found)
        name = f"jacobian {image_name}"
        titles = (name, f"blocks of chain {chain.name}, measured at one validation image")
        yield _report_chain(work, subject.label, chains.composing(measured, name), len(blocks), titles)


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
    def joined(parts: list[tuple[str, pd.DataFrame]]) -> pd.DataFrame:
        filled = [part.assign(subject=label) for label, part in parts if len(part.columns)]
        if not filled:
            return pd.DataFrame()
        whole = pd.concat(filled, ignore_index=True)
        whole.insert(0, "subject", whole.pop("subject"))
        return whole

    of_chain = [(item.facts["label"], report) for item in found for report in item.reports]
    tables = {
        name: joined([(label, getattr(report, name)) for label, report in of_chain])
        for name in ("factors", "interfaces", "channels", "columns", "edges", "spectra")
    }
    tables["weights"] = joined([(item.facts["label"], item.weights) for item in found])
    rows = [{"subject": label, "chain": each.chain, "kind": each.kind, **each.summary} for label, each in of_chain]
    tables["summary"] = pd.DataFrame(rows)
    return tables


def _write(
    config: DiagnoseConfig,
    folder: Path,
    identity: str,
    found: list[Diagnosed],
    comparison: geometry_compare.Comparison | None,
    scratch: Path,
    display: Display,
) -> None:
    reports = [(item.facts["label"], report) for item in found for report in item.reports]
    tables, figures = _tables(found), geometry_figures.all_figures(reports)
    if comparison is not None:
        tables |= {"comparison": comparison.table, "correlations": comparison.correlations}
        if comparison.figure is not None:
            figures["comparison"] = comparison.figure
    facts = {
        "kind": "diagnosis",
        "command": shlex.join(sys.argv),
        **provenance(),
        "config": config.as_dict(),
        "options": identity_of(config),
        "identity": identity,
        "subjects": [item.facts for item in found],
    }
    text = geometry.markdown(facts, reports, comparison, list(figures))
    for name in TABLES:
        table = tables.get(name, pd.DataFrame())
        if len(table.columns):
            files.write_parquet(scratch / f"{name}.parquet", table)
            if name in CSV:
                files.write_csv(scratch / f"{name}.csv", table)
    save(figures, scratch / "figures", ("svg", "png"), dpi=150)
    complete = {_matrices_file(label, each.chain, index) for label, each in reports for index in range(len(each.interfaces))}
    for path in scratch.glob("matrices/*"):
        if path.name not in complete:  # it is of a chain that failed half-way and was left out
            path.unlink()
    files.write_atomic(scratch / "report.md", lambda file: file.write(text.encode()))
    files.write_json(scratch / "run.json", facts)
    written = move(scratch, folder, LAYOUT)
    logger = open_logger(config, folder, main=True)
    try:
        logger.metrics(geometry.logged_metrics(reports), 0)
        logger.pictures([folder / "figures" / f"{name}.png" for name in figures])
        logger.artifact(folder, "geometry", written)
    finally:
        logger.close()
    for item in found:
        for warning in item.facts["warnings"]:
            display.warn(f"{item.facts['label']}: {warning}")
    for shown in geometry.console_tables(reports):
        display.table(*shown)
    if comparison is not None:
        display.table(*comparison.console)
    display.line(f"report: {folder / 'report.md'}")


def _matrices_file(subject: str, chain: str, interface: int) -> str:
    return f"{files.slug(subject)}-{files.slug(chain)}-{interface}.npz"


def _name(found: list[Diagnosed]) -> str:
    return files.slug(found[0].facts["label"]) if len(found) == 1 else f"{len(found)}-networks"


def _identity(config: DiagnoseConfig, named: list[Chain], found: list[Diagnosed]) -> str:
    """A hash of what determines the numbers: the weights, and all options except where results are written and logged."""
    plain = identity_of(config) | {"chains": [asdict(chain) for chain in named]}
    facts = [(item.facts["label"], item.facts["weights"]) for item in found]
    return hashlib.sha256(json.dumps([plain, facts], sort_keys=True).encode()).hexdigest()
