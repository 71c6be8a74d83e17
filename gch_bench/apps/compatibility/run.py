"""The job of diagnose.py mode=compatibility: what noise mechanisms do to one network at its stages, on real images."""

import hashlib
import json
import shlex
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
from torch import Tensor

from gch_bench import files
from gch_bench.apps.compatibility.bench import Bench, open_stage
from gch_bench.apps.compatibility.measure import Pairs, pairs_of
from gch_bench.apps.compatibility.stage import StageResult, examine
from gch_bench.apps.diagnosis.folder import Layout, as_job, check_folder, check_identity, move
from gch_bench.apps.diagnosis.images import prepared, spread_images
from gch_bench.apps.diagnosis.mechanisms import chosen_noise, mechanism_of
from gch_bench.apps.diagnosis.subjects import Subject, one_network
from gch_bench.config.diagnosis import DiagnoseConfig
from gch_bench.config.parse import identity_of
from gch_bench.config.run import NoiseConfig
from gch_bench.data.sets import load_data
from gch_bench.data.transforms import normalise
from gch_bench.display import Display
from gch_bench.errors import UserError
from gch_bench.loggers import open_logger
from gch_bench.noise.mechanism import Mechanism
from gch_bench.provenance import provenance
from gch_bench.report import compatibility as report
from gch_bench.report.compatibility_figures import all_figures
from gch_bench.report.figure_style import save
from gch_bench.results.compatibility import judged
from gch_bench.results.runfacts import differences
from gch_bench.training.batchnorm import batchnorms, reestimate
from gch_bench.training.freeze import NOTHING

TABLES = ("summary", "measurements", "images")
LAYOUT = Layout(
    "compatibility",
    ("run.json", "report.md", "report.html", *(f"{name}.{kind}" for name in TABLES for kind in ("parquet", "csv"))),
    ("figures",),
)


class Named(NamedTuple):
    """A mechanism and its name in the tables."""

    name: str
    mechanism: Mechanism


def compatibility(config: DiagnoseConfig) -> None:
    """Measure first, then write, so that a job that fails leaves nothing in the folder.

    Raises:
        UserError: if the user made a mistake; the message says which in one line.
    """
    as_job(config, _run)


def _run(config: DiagnoseConfig, device: torch.device) -> None:
    display = Display(True)
    base = Path(config.output or "runs")
    if config.output:
        check_folder(base, LAYOUT, identity_of(config))
    mechanisms = named_mechanisms(chosen_noise(config))
    subject = one_network(config)
    images, origin = _images(config, subject)
    network = subject.network
    assert network is not None
    network.to(device)
    warnings = list(subject.warnings)
    if not subject.trained:
        reestimate(network, batchnorms(network, NOTHING), [images.to(device)])
        warnings.append("random weights: the numbers say where noise can act, not what it does to a trained network")
    display.line(f"{subject.label}: {subject.origin} (weights {subject.digest}); {origin}")
    for warning in warnings:
        display.warn(warning)
    with torch.inference_mode(False):
        results, skipped = _measure(config, subject, mechanisms, images.to(device), display)
    for line in skipped:
        display.warn(line)
    warnings += skipped
    tables = {
        "summary": pd.DataFrame([each.summary for each in results]),
        "measurements": judged(pd.concat([each.rows for each in results], ignore_index=True)),
        "images": pd.concat([each.images for each in results], ignore_index=True),
    }
    options = identity_of(config)
    identity = hashlib.sha256(json.dumps([options, subject.digest], sort_keys=True).encode()).hexdigest()
    folder = base if config.output else base / f"compatibility-{files.slug(subject.label)}-{identity[:8]}"
    check_identity(folder, LAYOUT, identity)
    facts = {
        "kind": LAYOUT.kind,
        "command": shlex.join(sys.argv),
        **provenance(),
        "config": config.as_dict(),
        "options": options,
        "identity": identity,
        "network": {"label": subject.label, "origin": subject.origin, "weights": subject.digest, "size": subject.size},
        "images": origin,
        "mechanisms": {each.name: str(each.mechanism) for each in mechanisms},
        "warnings": warnings,
    }
    _write(config, folder, facts, tables, display)


def named_mechanisms(configs: Sequence[NoiseConfig]) -> list[Named]:
    """The mechanisms with unique names: where a preset's name occurs twice, with the options in which the two differ.

    Raises:
        UserError: an option is wrong, or two entries are the same.
    """
    made = [mechanism_of(config) for config in configs]
    names = []
    for config in configs:
        alike = [other for other in configs if other.name == config.name and other is not config]
        fields = dict.fromkeys(field for other in alike for field in differences(_options(config), _options(other)))
        if alike and not fields:
            raise UserError(f"noise must name each mechanism once, got {config.name} twice with the same options")
        names.append(" ".join([config.name, *(f"{field}={_options(config).get(field)}" for field in fields)]))
    return [Named(*each) for each in zip(names, made, strict=True)]


def _options(config: NoiseConfig) -> dict[str, Any]:
    return {"kernel": config.kernel, "injection": config.injection, **config.options}


def _images(config: DiagnoseConfig, subject: Subject) -> tuple[Tensor, str]:
    """The normalised images (M, 3, S, S), and what they are in words."""
    assert subject.size is not None
    assert subject.normalisation is not None
    data = load_data(config.data, train=False)
    chosen = spread_images(data, config.compatibility.images, "compatibility.images")
    images = normalise(prepared(data, chosen, subject.size), subject.normalisation)
    return images, f"{len(chosen)} of {len(data.val)} validation images of {data.name}, {subject.size} px"


def _measure(
    config: DiagnoseConfig, subject: Subject, mechanisms: Sequence[Named], images: Tensor, display: Display
) -> tuple[list[StageResult], list[str]]:
    """The results of each mechanism at each stage, and a line for each that cannot act there."""
    network, options = subject.network, config.compatibility
    assert network is not None
    results, skipped = [], []
    with display.bar("compatibility", len(config.places) * len(mechanisms), "mechanisms") as advance:
        for stage in config.places:
            try:
                bench: Bench = open_stage(network, stage, images)
            except ValueError as error:
                raise UserError(f"stages: {error}") from error
            pairs: Pairs = pairs_of(bench.map_MCHW)
            for name, mechanism in mechanisms:
                try:
                    results.append(examine(bench, pairs, mechanism, name, options.passes, options.gates, config.seed))
                except ValueError as error:
                    skipped.append(f"{name} was left out at {stage}: {error}")
                advance(f"{stage} {name}", 1)
    if not results:
        raise UserError(skipped[0])
    return results, skipped


def _write(
    config: DiagnoseConfig, folder: Path, facts: dict[str, Any], tables: dict[str, pd.DataFrame], display: Display
) -> None:
    base = folder.parent
    with files.making(base), tempfile.TemporaryDirectory(prefix=".compatibility-", suffix=".tmp", dir=base) as place:
        scratch = Path(place)
        for name, table in tables.items():
            files.write_parquet(scratch / f"{name}.parquet", table)
            files.write_csv(scratch / f"{name}.csv", table)
        figures = all_figures(tables)
        save(figures, scratch / "figures")
        section = report.Section(facts, tables, figures)
        files.write_atomic(scratch / "report.md", lambda file: file.write(report.markdown(section).encode()))
        files.write_atomic(scratch / "report.html", lambda file: file.write(report.page(section).encode()))
        files.write_json(scratch / "run.json", facts)
        written = move(scratch, folder, LAYOUT)
    logger = open_logger(config, folder, main=True)
    try:
        logger.tables(tables)
        logger.pictures([folder / "figures" / f"{name}.png" for name in figures])
        logger.artifact(folder, "compatibility", written)
    finally:
        logger.close()
    for shown in report.console_tables(tables):
        display.table(*shown)
    for line in report.flagged(tables["measurements"]):
        display.line(line)
    display.line(f"report: {folder / 'report.html'}")
