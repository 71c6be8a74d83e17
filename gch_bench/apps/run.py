"""The main job of train.py and evaluate.py: build a network with noise, train it, evaluate it, record the results."""

import json
import os
import sys
import time
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
from torch import nn

from gch_bench import distributed, files
from gch_bench.config.run import Config
from gch_bench.data.images import BadImage
from gch_bench.data.loaders import workers_warning
from gch_bench.data.sets import DataSource, load_data
from gch_bench.data.stored import StoredImages, stored_images
from gch_bench.display import Display
from gch_bench.distributed import World
from gch_bench.errors import FieldError, UserError
from gch_bench.evaluation.cells import missing_cells, parameter_set, try_corruptions, wanted_cells
from gch_bench.evaluation.predict import Predictor
from gch_bench.evaluation.protocol import Protocol, protocol_of
from gch_bench.evaluation.run import CellImages, evaluate_cell
from gch_bench.loggers import Logger, open_logger
from gch_bench.memory import keep_freed_memory
from gch_bench.metrics import CLEAN, SHOWN
from gch_bench.model.build import NoisyNetwork, build
from gch_bench.model.weights import weights_digest
from gch_bench.results import records
from gch_bench.results.records import CELL_CLEAN, Cell
from gch_bench.results.runfacts import RunFile, identity_hash, sole_use, stage_in_words
from gch_bench.results.summary import MEAN, logged_metrics, means, write_summary
from gch_bench.stopping import Stopped, stop_requests
from gch_bench.threads import torch_threads
from gch_bench.training.loop import StepReport, TrainingJob, train, training_note
from gch_bench.training.setup import training_job, training_warnings


class Job(NamedTuple):
    """A run that is prepared: everything is loaded and checked, and nothing is written yet."""

    config: Config
    world: World
    data: DataSource
    noisy: NoisyNetwork
    cells: list[Cell]
    stored: dict[Cell, StoredImages]  # the stored images of the corrupted cells; {} where the images are generated
    protocol: Protocol
    folder: Path
    run_file: RunFile
    display: Display


def train_and_evaluate(config: Config) -> None:
    """Train, evaluate and record one run. What its folder already holds is not done again. Without a recipe it only evaluates.

    After Ctrl-C, SIGTERM or SIGUSR1 (number n) the process exits with code 128 + n; in training it writes a checkpoint first.

    Raises:
        UserError: a user's mistake, in one line.
    """
    keep_freed_memory(config.memory)  # not in cli.entry, which a job of a sweep on a cluster does not run
    try:
        with distributed.group(config.device) as world, torch_threads(config.threads):
            _run(config, world)
    except Stopped as stopped:
        if world.main:
            print(stopped, file=sys.stderr, flush=True)
        stopped.end()


def _run(config: Config, world: World) -> None:
    with distributed.failing_together(world):
        job = _prepare(config, world)
    known = job.run_file.weights
    _banner(job)
    cells = missing_cells(job.folder, job.cells, job_facts(job, known), stored_facts(job)) if known else job.cells
    if known and not cells:
        job.display.line(f"nothing left to do: {job.folder} holds this run")
        if world.main:
            _show(job, _summary(job, known))
        return
    with sole_use(job.folder, world):
        # Another job may have worked here since run.json was read.
        run_file = RunFile(job.folder, job.run_file.identity, config.resume, world)
        _work(job._replace(run_file=run_file), cells)


def _work(job: Job, cells: list[Cell]) -> None:
    """Do what the run still lacks, in its folder, which no other job uses. `cells` are those that have no record yet."""
    config, world = job.config, job.world
    training = None
    # All processes wait for each other at the end of this context, so that none writes before all have read the run folder.
    with distributed.failing_together(world):
        if not job.stored:
            try_corruptions(cells, job.data.size, parameter_set(config.corruptions, job.data.size))
        if config.recipe is not None:
            training = training_job(
                config, job.data, job.noisy, folder=job.folder, config_hash=identity_hash(job.run_file.identity), world=world
            )
            for warning in training_warnings(training, job.noisy):
                job.noisy.warnings.append(warning)
                job.display.warn(warning)
    job.run_file.begin(**_described(job))
    logger = open_logger(config, job.folder, world.main)
    started = time.monotonic()
    try:
        model = _train(job, training, logger) if training else job.noisy.network.to(world.device)
        trained = time.monotonic()
        weights = weights_digest(model)
        _evaluate(job, model, weights)
        if world.main:
            summary = _summary(job, weights)
            job.run_file.finish(weights, trained - started, time.monotonic() - trained)
            logger.metrics(
                logged_metrics(summary, job.data.is_imagenet_1k), training.recipe.epochs * training.steps if training else 0
            )
            logger.artifact(job.folder, "records", ["records", "summary.csv", "means.csv", "run.json"])
            _show(job, summary)
    finally:
        logger.close()


def _prepare(config: Config, world: World) -> Job:
    """Load and build everything, and raise UserError at whatever is wrong, before the first byte is written."""
    cells = wanted_cells(config.corruptions)
    data = _load(config, world)
    torch.manual_seed(config.seed)  # the initial weights
    noisy = build(config.model, config.noise, len(data.classes), data.size)
    _check_weights(config, noisy, len(data.classes))
    said = (distributed.unused_tasks(os.environ), workers_warning(config.data.workers, world.local_size))
    noisy.warnings.extend(warning for warning in said if warning)
    protocol = protocol_of(config, data, noisy.normalisation, world.device.type)
    stored = _stored(config, data, cells)
    same = run_identity(config, data, noisy)
    folder = Path(config.output or f"runs/{config.run_name}-{identity_hash(same)[:8]}")
    run_file = RunFile(folder, same, config.resume, world)
    return Job(config, world, data, noisy, cells, stored, protocol, folder, run_file, Display(world.main))


def _stored(config: Config, data: DataSource, cells: list[Cell]) -> dict[Cell, StoredImages]:
    """The stored images of each corrupted cell; {} where they are generated. Raises UserError if an image is missing."""
    if not config.corruptions.root:
        return {}
    if config.corruptions.resize and data.resize is None:
        raise FieldError("corruptions.resize=true", "resizes like the clean images: give data.resize=PIXELS, it is null")
    root = Path(config.corruptions.root).expanduser()
    corrupted = [cell for cell in cells if cell != CELL_CLEAN]
    found = stored_images(root, corrupted, data.val, None if config.corruptions.resize else data.size)
    return {cell: found[cell] for cell in corrupted}


def run_identity(config: Config, data: DataSource, noisy: NoisyNetwork) -> dict[str, Any]:
    """What determines the weights and the results of each cell: the configuration, the images, and the given initial weights.

    All values are plain JSON. Paths are not part of an identity; fingerprints of the content are.
    """
    given = config.model.checkpoint or config.model.pretrained
    inputs = {
        "images": data.fingerprint,
        "train_images": data.train_fingerprint,
        "size": data.size,
        "geometry": data.geometry,
        "weights": weights_digest(noisy.network) if given else None,
    }
    plain: dict[str, Any] = json.loads(json.dumps(config.identity | {"inputs": inputs}))
    return plain


def _described(job: Job) -> dict[str, Any]:
    """The fields of RunFacts that say what was run, for RunFile.begin."""
    data = job.data
    return {
        "protocol_id": job.protocol.id,
        "protocol": asdict(job.protocol),
        "mechanism": job.noisy.mechanism,
        "stages": [stage.facts() for stage in job.noisy.stages],
        "warnings": job.noisy.warnings,
        "data": {
            "description": data.description,
            "fingerprint": data.fingerprint,
            "train_fingerprint": data.train_fingerprint,
            "num_classes": len(data.classes),
            "imagenet_1k": data.is_imagenet_1k,
        },
        "parameters": sum(parameter.numel() for parameter in job.noisy.network.parameters()),
        "config": job.config.as_dict(),
    }


def _check_weights(config: Config, noisy: NoisyNetwork, num_classes: int) -> None:
    """Raise UserError if evaluate.py would score untrained weights; add a warning if a fine-tuning starts from random ones."""
    model = config.model
    given = model.checkpoint or model.pretrained
    if config.recipe is None:
        theirs = (getattr(noisy.network, "pretrained_cfg", None) or {}).get("num_classes")
        if not given:
            raise UserError("evaluate.py needs trained weights: give model.checkpoint=FILE or model.pretrained=true")
        if model.reset_head:
            raise UserError("model.reset_head=true makes a new classifier, which evaluate.py would not train: use train.py")
        if model.pretrained and theirs != num_classes:
            raise UserError(
                f"model.pretrained=true has {theirs} classes and the data {num_classes}: evaluate.py would score an untrained"
                " classifier; train one with train.py recipe=finetune"
            )
    elif config.recipe.expects_weights and not given:
        noisy.warnings.append(
            f"recipe={config.recipe.name} starts from random weights: give model.pretrained=true or model.checkpoint=FILE"
        )


def _load(config: Config, world: World) -> DataSource:
    data = None
    if config.data.download:
        with distributed.failing_together(world):  # rank 0 downloads while the others wait
            if world.main:
                data = load_data(config.data, train=config.recipe is not None)
    return data or load_data(config.data, train=config.recipe is not None)


def _train(job: Job, training: TrainingJob, logger: Logger) -> nn.Module:
    epochs, steps = training.recipe.epochs, training.steps
    skipped: list[BadImage] = []
    with job.display.bar("train", epochs * steps, "steps") as advance:
        done = 0

        def report(progress: StepReport) -> None:
            nonlocal done
            step = progress.epoch * steps + progress.step
            advance(training_note(progress, epochs), step - done)
            done = step
            logged = ("loss", "top1", "lr", "images_per_second")
            logger.metrics({f"train/{key}": getattr(progress, key) for key in logged}, step)

        def warn(warning: str) -> None:
            job.display.warn(warning)
            job.run_file.note_warning(warning)

        try:
            model = train(training, report, skipped, warn)
        except Stopped:  # on every process, at the same step
            _note_skipped(job, "train", skipped)
            raise
    _note_skipped(job, "train", skipped)
    return model


def _evaluate(job: Job, model: nn.Module, weights: str) -> None:
    """Evaluate and record the cells of the run that have no record yet."""
    config, world, data = job.config, job.world, job.data
    facts = job_facts(job, weights)
    predictor = Predictor(
        network=model,
        normalisation=job.noisy.normalisation,
        parameters=None if job.stored else parameter_set(config.corruptions, data.size),
        corruption_seed=config.corruptions.seed,
        jpeg_roundtrip=config.corruptions.jpeg_roundtrip,
        precision=config.evaluation.precision,
        noise_passes=config.noise.mc_samples if job.protocol.noise_at_test != "off" else 0,
        noise_seed=config.seed,
    )
    images = CellImages(
        clean=data.val,
        stored=job.stored,
        size=data.size,
        resize=data.resize,
        # Without corruptions.resize a stored image already has the network's size, and eval_transform leaves it untouched.
        stored_resize=data.resize if config.corruptions.resize else None,
        interpolation=data.interpolation,
        batch_size=config.evaluation.batch_size,
        workers=config.data.workers,
        skip_bad=config.data.skip_bad,
    )
    loader_of = images.loaders(world)
    cells = missing_cells(job.folder, job.cells, facts, stored_facts(job))
    distributed.barrier(world)  # no process may write a record before all have looked which ones are missing
    skipped: list[BadImage] = []
    with stop_requests() as stop, job.display.bar("evaluate", len(cells) * len(data.val), "images") as advance:

        def step(note: str, images: int) -> None:
            advance(note, images)
            if stop:  # stop between two batches, where no file is half written and no library catches the exception
                raise Stopped(stop[0], job.folder)

        for number, cell in enumerate(cells):
            note = f"cell {number + 1}/{len(cells)} {cell.corruption}-{cell.severity}"
            bad: list[BadImage] = []
            atoms = evaluate_cell(
                predictor, cell, loader_of(cell), len(data.val), world, config.data.skip_bad, bad, partial(step, note)
            )
            skipped += bad
            if world.main and number == 0:
                listed = {"id": range(len(data.val)), "label": data.val.labels, "name": data.val.names}
                files.write_csv(job.folder / "images.csv", pd.DataFrame(listed))
            if world.main:
                commit = {"commit": str(job.run_file.commit)}
                made_of = {"images": job.stored[cell].fingerprint} if cell in job.stored else {}
                records.write_record(job.folder, cell, atoms, facts | commit | made_of)
    _note_skipped(job, "val", skipped)


def _note_skipped(job: Job, split: str, skipped: list[BadImage]) -> None:
    count = job.run_file.note_skipped(split, skipped)
    if count:
        job.display.warn(f"{count} unreadable {split} images were skipped; {job.run_file.path} names them")


def _summary(job: Job, weights: str) -> pd.DataFrame:
    """Write summary.csv and means.csv from the records, and return the table of summary.csv.

    It is written anew from the records each time, so that a finished run shows every metric that this version knows.
    """
    cells = records.recorded_cells(job.folder, job_facts(job, weights))
    return write_summary(job.folder, cells, len(job.data.classes), job.data.is_imagenet_1k)


def job_facts(job: Job, weights: str) -> dict[str, str]:
    """The facts that a record of this run must have: the protocol id and the digest of the weights."""
    return {"protocol": job.protocol.id, "weights": weights}


def stored_facts(job: Job) -> dict[Cell, str]:
    """Cell -> fingerprint of its stored images; {} where the images are generated."""
    return {cell: images.fingerprint for cell, images in job.stored.items()}


def _banner(job: Job) -> None:
    config, show = job.config, job.display
    kwargs = f" {config.model.kwargs}" if config.model.kwargs else ""
    show.line(f"data:     {job.data.description}")
    show.line(
        f"model:    {config.model.factory or config.model.name}{kwargs}, output stride {config.model.output_stride or 'native'}"
    )
    show.line(f"noise:    {config.noise.name}{f': {job.noisy.mechanism}' if job.noisy.stages else ''}")
    for stage in job.noisy.stages:
        show.line(f"          {stage_in_words(stage.facts())}")
    if config.recipe is not None:
        trained = f"what lies after {config.recipe.freeze}" if config.recipe.freeze else "all weights"
        show.line(f"recipe:   {config.recipe.name} ({config.recipe.epochs} epochs, {trained})")
    show.line(f"protocol: {job.protocol.id}")
    show.line(f"run:      {job.folder} (seed {config.seed}, {job.world.size} x {job.world.device})")
    for warning in job.noisy.warnings:
        show.warn(warning)


def _show(job: Job, summary: pd.DataFrame) -> None:
    """Print the run's table: clean, each corruption's mean over severities, and the mean over corruptions."""
    table = means(summary, job.data.is_imagenet_1k)
    names = [name for name in table["corruption"] if name not in (CLEAN, MEAN)]
    errors = {"ce": "CE %", "relative_ce": "relative CE %"} if job.data.is_imagenet_1k else {}
    rows = []
    for row in table.to_dict("records"):
        name = f"mean over {len(names)} corruptions" if row["corruption"] == MEAN else str(row["corruption"])
        numbers = [metric.text(row[key]) for key, metric in SHOWN.items()]
        rows.append([name, *numbers, *("" if pd.isna(row[key]) else f"{100 * row[key]:.2f}" for key in errors)])
    notes = [f"WARNING: {warning}" for warning in job.run_file.warnings]
    notes += [f"noise at {stage_in_words(stage.facts())}" for stage in job.noisy.stages]
    if errors:
        notes.append("CE, relative CE: top-1 errors relative to AlexNet's published ones (100 is AlexNet); their means are mCE"
                     " and relative mCE (Hendrycks & Dietterich 2019)")  # fmt: skip
    images = int(summary.loc[0, "n"])  # type: ignore[arg-type]
    job.display.table(
        f"{job.folder.name}: {images} images per cell, mean over severities",
        ["corruption", *(metric.header for metric in SHOWN.values()), *errors.values()],
        rows,
        [*notes, f"records: {job.folder}"],
    )
