"""The main job of train.py and evaluate.py: train a network with noise, evaluate it or several, record the results."""

import contextlib
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pandas as pd
from torch import nn

from gch_bench import distributed, files
from gch_bench.apps.job import Job, Loaded, described, prepare
from gch_bench.apps.networks import configurations, frozen_stage, origin_warnings
from gch_bench.apps.show import banner, show
from gch_bench.config.run import Config
from gch_bench.data.images import BadImage
from gch_bench.data.loaders import workers_warning
from gch_bench.distributed import World
from gch_bench.errors import UserError
from gch_bench.evaluation.cells import missing_cells, parameter_set, try_corruptions
from gch_bench.evaluation.run import evaluate
from gch_bench.evaluation.sharing import with_trunks
from gch_bench.loggers import Logger, open_logger
from gch_bench.memory import keep_freed_memory
from gch_bench.model.weights import weights_digest
from gch_bench.results import records, shards
from gch_bench.results.records import CELL_CLEAN_TIMM, Cell
from gch_bench.results.runfacts import RunFile, Timings, given_weights, identity_hash, sole_use
from gch_bench.results.summary import logged_metrics, write_summary
from gch_bench.stopping import Stopped, stop_requests
from gch_bench.threads import torch_threads
from gch_bench.training.loop import StepReport, TrainingJob, train, training_note
from gch_bench.training.setup import training_job, training_warnings


class Ready(NamedTuple):
    """A job whose weights are final: its network, their digest, and the cells that it has no record of yet."""

    job: Job
    network: nn.Module
    weights: str
    missing: list[Cell]


def train_and_evaluate(config: Config) -> None:
    """Train, evaluate and record one run, or evaluate all networks of `config.checkpoints` in one pass over the images.

    What a run folder already holds is not done again. Without a recipe nothing is trained. After Ctrl-C, SIGTERM or SIGUSR1
    (number n) the process exits with code 128 + n; in training it writes a checkpoint first.

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
        jobs = _prepared(config, world)
    for job in jobs:
        banner(job)
    # All processes wait for each other at the end of this context, so that none writes before all have read the run folders.
    with distributed.failing_together(world):
        left = [job for job in jobs if job.run_file.weights is None or _missing(job)]
    for job in jobs:
        if job not in left:
            job.display.line(f"nothing left to do: {job.folder} holds this run")
            if world.main:
                show(job, _summary(job, str(job.run_file.weights)))
    with contextlib.ExitStack() as stack:
        for job in sorted(left, key=lambda job: str(job.folder.resolve())):  # in the same order in every job on the cluster
            stack.enter_context(sole_use(job.folder, world))
        if left:
            _work([_read_again(job) for job in left], world, stack)


def _read_again(job: Job) -> Job:
    """The job with its run.json as it is now: another job may have worked in the folder before this one had it for itself."""
    return replace(job, run_file=RunFile(job.folder, job.run_file.identity, job.config.resume, job.world))


def _work(jobs: Sequence[Job], world: World, stack: contextlib.ExitStack) -> None:
    """Do what the runs still lack, in their folders, which no other job uses."""
    started = time.monotonic()
    with distributed.failing_together(world):
        trainings = [_training(job) for job in jobs]
    for job in jobs:
        job.run_file.begin(**described(job))
    ready, loggers = [], []
    for job, training in zip(jobs, trainings, strict=True):
        logger = open_logger(job.config, job.folder, world.main) if training else None
        if logger is not None:
            stack.callback(logger.close)
        loggers.append(logger)
        ready.append(_ready(job, training, logger))
    trained = time.monotonic()
    _evaluate(ready, world)
    evaluated = time.monotonic()
    for each, training, logger in zip(ready, trainings, loggers, strict=True):
        _finish(each, training, logger, Timings(trained - started if training else 0.0, evaluated - trained, len(ready)))


def _prepared(config: Config, world: World) -> list[Job]:
    """The jobs of a configuration, all checked, one for each network."""
    loaded = Loaded(world)
    jobs = [prepare(each, world, loaded) for each in configurations(config)]
    folders = [job.folder.resolve() for job in jobs]
    for job in jobs:
        if folders.count(job.folder.resolve()) > 1:
            raise UserError(f"checkpoints must name different networks, got two for the run folder {job.folder}: drop one")
    said = (distributed.unused_tasks(os.environ), workers_warning(config.data.workers, world.local_size))
    for job in jobs:
        job.noisy.warnings.extend(warning for warning in said if warning)
        if job.config.recipe is None:
            job.noisy.warnings.extend(origin_warnings(job.config, job.run_file.identity["inputs"]))
        if config.noise.eval and not job.config.noise.law:
            which = given_weights(job.config.as_dict()) or "this run"
            job.noisy.warnings.append(f"{which} has no noise: noise.eval has no effect on it")
    return jobs


def _missing(job: Job) -> list[Cell]:
    """The cells that the run folder lacks. A run that has not finished yet lacks all, as its weights are not known."""
    known = job.run_file.weights
    if known is None:
        return job.cells
    return missing_cells(job.folder, job.cells, job.facts(known), job.stored_facts, job.logits)


def _training(job: Job) -> TrainingJob | None:
    """The training of the job, if it has a recipe. Raises UserError where a corruption or the recipe cannot be carried out."""
    config, size = job.config, job.data.size
    if not job.stored:
        parameters = parameter_set(config.corruptions, size)
        try_corruptions(_missing(job), size, parameters, job.world.device, job.display.line)
    if config.recipe is None:
        return None
    hashed = identity_hash(job.run_file.identity)
    training = training_job(config, job.data, job.noisy, folder=job.folder, config_hash=hashed, world=job.world)
    for warning in training_warnings(training, job.noisy):
        job.noisy.warnings.append(warning)
        job.display.warn(warning)
    return training


def _ready(job: Job, training: TrainingJob | None, logger: Logger | None) -> Ready:
    """Train the job's network, where there is a training, and find out which cells it has no record of."""
    network = _train(job, training, logger) if training and logger else job.noisy.network.to(job.world.device)
    weights = weights_digest(network)
    missing = missing_cells(job.folder, job.cells, job.facts(weights), job.stored_facts, job.logits)
    return Ready(job, network, weights, missing)


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
            model = train(training, report, skipped, warn, job.display.line)
        except Stopped:  # on every process, at the same step
            _note_skipped(job, "train", [bad for part in distributed.all_gather(skipped, job.world) for bad in part])
            raise
    _note_skipped(job, "train", [bad for part in distributed.all_gather(skipped, job.world) for bad in part])
    return model


def _evaluate(ready: Sequence[Ready], world: World) -> None:
    """Evaluate all networks in one pass, and turn the shards into records."""
    cells = list(dict.fromkeys(cell for each in ready for cell in each.job.cells))
    images = ready[0].job.images._replace(cells=cells)
    tasks = [each.job.task(each.network.eval(), each.weights, each.missing, cells) for each in ready]
    frozen, sizes = [frozen_stage(each.job.config) for each in ready], [each.job.data.size for each in ready]
    for task, predictor in zip(tasks, with_trunks([task.predictor for task in tasks], frozen, sizes), strict=True):
        task.predictor = predictor
    distributed.barrier(world)  # no process may write a shard before all have looked which ones are there
    display, total = ready[0].job.display, sum(int(task.needed.sum()) for task in tasks)
    left = int(np.logical_or.reduce([task.needed.any(0) for task in tasks]).sum())
    if left < len(images.ids):
        display.line(f"{len(images.ids) - left} of {len(images.ids)} images are already evaluated")
    with stop_requests() as stop, display.bar("evaluate", total, "images") as advance:

        def step(note: str, images: int) -> None:
            advance(note, images)
            if stop:  # stop between two batches, where no file is half written and no library catches the exception
                raise Stopped(stop[0], ready[0].job.folder)

        evaluate(tasks, images, world, step)
    with distributed.failing_together(world):  # and so all processes have written their shards before they are joined
        distributed.barrier(world)
        for each in ready if world.main else ():
            _join(each, len(images.ids))


def _join(each: Ready, images: int) -> None:
    """Write the records of a run from its shards."""
    job, facts = each.job, each.job.facts(each.weights)
    val, ids = job.data.val, job.ids
    listed = {"id": ids, "label": val.labels[ids], "name": [val.names[i] for i in ids]}
    files.write_csv(job.folder / "images.csv", pd.DataFrame(listed))
    _note_skipped(job, "val", shards.bad_images(job.folder, facts))
    commit = {"commit": str(job.run_file.commit)}
    more = {cell: commit | ({"images": job.stored[cell].fingerprint} if cell in job.stored else {}) for cell in each.missing}
    if job.timm is not None:
        more[CELL_CLEAN_TIMM] = commit | {"preparation": str(job.timm)}  # other than the protocol's
    shards.join(job.folder, each.missing, images, facts, more, job.logits)
    shards.clear(job.folder)


def _note_skipped(job: Job, split: str, skipped: Sequence[tuple[str, str]]) -> None:
    count = job.run_file.note_skipped(split, skipped)
    if count:
        job.display.warn(f"{count} unreadable {split} images were skipped; {job.run_file.path} names them")


def _finish(each: Ready, training: TrainingJob | None, logger: Logger | None, timings: Timings) -> None:
    """Write the tables of a finished run, log its metrics and show them."""
    job = each.job
    if not job.world.main:
        return
    summary = _summary(job, each.weights)
    job.run_file.finish(each.weights, timings)
    own = logger or open_logger(job.config, job.folder, job.world.main)
    steps = training.recipe.epochs * training.steps if training else 0
    own.metrics(logged_metrics(summary, job.data.is_imagenet_1k), steps)
    own.artifact(job.folder, "records", ["records", "summary.csv", "means.csv", "run.json"])
    if logger is None:
        own.close()
    show(job, summary)


def _summary(job: Job, weights: str) -> pd.DataFrame:
    """Write summary.csv and means.csv from the records, and return the table of summary.csv.

    It is written anew from the records each time, so that a finished run shows every metric that this version knows.
    """
    cells = records.recorded_cells(job.folder, job.facts(weights))
    return write_summary(job.folder, cells, len(job.data.classes), job.data.is_imagenet_1k)
