"""The main job: config -> network with noise -> training -> evaluation, clean and corrupted -> records."""

import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
from torch import nn

from gch_bench import distributed, records
from gch_bench.build import Built, build
from gch_bench.config import Config
from gch_bench.corruptions import PARAMETER_SETS
from gch_bench.data.imagenet_c import StoredImages, stored_images
from gch_bench.data.images import BadImage, ImageSet
from gch_bench.data.loaders import Batch, eval_loader, train_loader
from gch_bench.data.protocol import NOT_APPLICABLE, Protocol
from gch_bench.data.source import DataSource, load_data
from gch_bench.data.transforms import eval_transform, train_transform
from gch_bench.display import Display, metric_cells, training_note
from gch_bench.distributed import World
from gch_bench.errors import UserError
from gch_bench.evaluation.cells import missing_cells, parameter_set, try_corruptions, wanted_cells
from gch_bench.evaluation.evaluate import View, evaluate_cell
from gch_bench.loggers import Logger, evaluation_metrics, open_logger
from gch_bench.metrics import averaged, mean_corruption
from gch_bench.records import CELL_CLEAN, Cell
from gch_bench.runfile import RunFile, identity, identity_hash, weights_digest
from gch_bench.training.loop import StepReport, Stopped, TrainingJob, stop_requests, train
from gch_bench.training.optim import create


class Job(NamedTuple):
    """A run made ready: everything is checked, nothing is written yet."""

    config: Config
    world: World
    data: DataSource
    built: Built
    cells: list[Cell]
    stored: dict[Cell, StoredImages]  # the corrupted cells' images, {} where they are generated
    protocol: Protocol
    folder: Path
    status: RunFile
    display: Display


def train_and_evaluate(config: Config) -> None:
    """Train, evaluate and record one run; what its folder already holds is not done again.

    Raises:
        UserError: the user's mistake, in one line. Exits with 130 (Ctrl-C) or 143 (SIGTERM) after a checkpoint.
    """
    world = distributed.start(config.device)
    try:
        _run(config, world)
    except Stopped as stopped:
        if world.main:
            print(stopped, file=sys.stderr, flush=True)
        sys.exit(stopped.exit_code)
    finally:
        distributed.stop()


def _run(config: Config, world: World) -> None:
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    job = _prepare(config, world)
    known = job.status.weights
    _banner(job)
    cells = missing_cells(job.folder, job.cells, job_facts(job, known), stored_facts(job)) if known else job.cells
    if known and not cells:
        job.display.line(f"nothing left to do: {job.folder} holds this run")
        if world.main:
            _show(job, _summary(job, known))
        return
    if not job.stored:
        try_corruptions(cells, job.data.size, parameter_set(config.corruptions, job.data.size))
    training = _training(job) if config.recipe is not None else None
    distributed.wait(world)  # all have looked before anyone writes
    job.status.begin(config, job.data, job.built, job.protocol)
    logger = open_logger(config, job.folder, world.main)
    started = time.monotonic()
    try:
        model = _train(job, training, logger) if training else job.built.model.to(world.device)
        trained = time.monotonic()
        weights = weights_digest(model)
        _evaluate(job, model, weights)
        if world.main:
            summary = _summary(job, weights, afresh=True)
            job.status.finish(weights, trained - started, time.monotonic() - trained)
            logger.metrics(evaluation_metrics(summary), training.recipe.epochs * training.steps if training else 0)
            logger.artifact(job.folder, "records", ["records", "summary.csv", "run.json"])
            _show(job, summary)
    finally:
        logger.close()


def _prepare(config: Config, world: World) -> Job:
    """Load and build everything, and refuse whatever is wrong, before the first byte is written."""
    cells = wanted_cells(config.corruptions)
    data = _load(config, world)
    torch.manual_seed(config.seed)  # the initial weights
    built = build(config.model, config.noise, len(data.classes), data.size)
    _check_weights(config, built, len(data.classes))
    protocol = _protocol(config, data, built, world)
    stored = _stored(config, data, cells)
    same = identity(config, data, built)
    folder = Path(config.output or f"runs/{config.run_name}-{identity_hash(same)[:8]}")
    status = RunFile(folder, same, config.resume, world)
    return Job(config, world, data, built, cells, stored, protocol, folder, status, Display(world.main))


def _protocol(config: Config, data: DataSource, built: Built, world: World) -> Protocol:
    corruptions, noisy = config.corruptions, bool(config.noise.eval and config.noise.law)
    stored = corruptions.stored
    parameters = parameter_set(corruptions, data.size)
    scaled = "" if data.size == PARAMETER_SETS[parameters].size else f"@{data.size}"
    return Protocol(
        source="generated" if not stored else "stored_resized" if corruptions.resize else "stored",
        data=data.name,
        data_fingerprint=data.fingerprint,
        size=data.size,
        geometry=data.geometry,
        mean=built.mean,  # type: ignore[arg-type]
        std=built.std,  # type: ignore[arg-type]
        precision=config.evaluation.precision,
        parameters=NOT_APPLICABLE if stored else parameters + scaled,
        jpeg_roundtrip=stored or corruptions.jpeg_roundtrip,
        num_images=len(data.val),
        corruption_seed=None if stored else corruptions.seed,
        noise_at_test=f"on-T{config.noise.mc_samples}" if noisy else "off",
        draws=world.device.type if noisy or not stored else NOT_APPLICABLE,
    )


def _stored(config: Config, data: DataSource, cells: list[Cell]) -> dict[Cell, StoredImages]:
    """The stored images of each corrupted cell, {} where they are generated. Raises UserError if any is not there."""
    if not config.corruptions.root:
        return {}
    root = Path(config.corruptions.root).expanduser()
    corrupted = [cell for cell in cells if cell != CELL_CLEAN]
    found = stored_images(root, corrupted, data.val, None if config.corruptions.resize else data.size)
    return {cell: found[cell] for cell in corrupted}


def _check_weights(config: Config, built: Built, num_classes: int) -> None:
    """Refuse an evaluation of weights that nobody trained; warn of fine-tuning from nothing."""
    model = config.model
    given = model.checkpoint or model.pretrained
    if config.recipe is None:
        theirs = (getattr(built.model, "pretrained_cfg", None) or {}).get("num_classes")
        if not given:
            raise UserError("evaluate.py needs trained weights: give model.checkpoint=FILE or model.pretrained=true")
        if model.reset_head:
            raise UserError("model.reset_head=true makes a new classifier, which evaluate.py would not train: use train.py")
        if model.pretrained and theirs != num_classes:
            raise UserError(
                f"model.pretrained=true has {theirs} classes and the data {num_classes}: evaluate.py would score an untrained"
                " classifier; train one with train.py recipe=finetune"
            )
    elif config.recipe.name == "finetune" and not given:
        built.warnings.append("recipe=finetune starts from random weights: give model.pretrained=true or model.checkpoint=FILE")


def _load(config: Config, world: World) -> DataSource:
    if config.data.download and not world.main:
        distributed.wait(world)  # rank 0 downloads
    data = load_data(config.data, train=config.recipe is not None)
    if config.data.download and world.main:
        distributed.wait(world)
    return data


def _training(job: Job) -> TrainingJob:
    """The training of a run, ready to start. Raises UserError on what the recipe gets wrong."""
    config, world, recipe = job.config, job.world, job.config.recipe
    assert recipe is not None
    assert job.data.train is not None
    share = world.size * recipe.grad_accumulation
    if recipe.batch_size % share:
        raise UserError(
            f"recipe.batch_size must be a multiple of processes x grad_accumulation = {share}, got {recipe.batch_size}"
        )
    own_batch = recipe.batch_size // share
    if (recipe.mixup > 0 or recipe.cutmix > 0) and own_batch % 2:
        raise UserError(f"recipe.batch_size must be even in each process for mixup and cutmix, got {own_batch}")
    transform = train_transform(recipe.augment, job.data.size, job.built.mean, job.built.std, config.data.interpolation)  # type: ignore[arg-type]
    loader = train_loader(job.data.train, transform, own_batch, config.seed, config.data.workers, world.rank, world.size)
    steps = loader.steps_per_epoch // recipe.grad_accumulation
    if steps == 0:
        raise UserError(f"recipe.batch_size must be at most the number of training images, got {recipe.batch_size}; lower it")
    layout = torch.channels_last if recipe.channels_last else torch.contiguous_format
    model = job.built.model.to(world.device).to(memory_format=layout)
    classes = len(job.data.classes)
    return TrainingJob(
        model=model,
        optimisation=create(recipe, model, classes, steps, world.device),
        loader=loader,
        recipe=recipe,
        num_classes=classes,
        seed=config.seed,
        folder=job.folder,
        config_hash=identity_hash(job.status.identity),
        world=world,
        skip_bad=config.data.skip_bad,
    )


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

        try:
            model = train(training, report, skipped)
        except Stopped:  # on every process, at the same step
            _note_skipped(job, "train", skipped)
            raise
    _note_skipped(job, "train", skipped)
    return model


def _evaluate(job: Job, model: nn.Module, weights: str) -> None:
    """Record the cells that are missing."""
    config, world, data = job.config, job.world, job.data
    facts = job_facts(job, weights)
    torch.backends.cudnn.allow_tf32 = False  # fp32 means fp32; only this run's evaluation follows
    view = View(
        model=model,
        mean=job.built.mean,
        std=job.built.std,
        parameters=None if job.stored else parameter_set(config.corruptions, data.size),
        corruption_seed=config.corruptions.seed,
        jpeg_roundtrip=config.corruptions.jpeg_roundtrip,
        precision=config.evaluation.precision,
        noise_passes=config.noise.mc_samples if job.protocol.noise_at_test != "off" else 0,
        noise_seed=config.seed,
    )
    loader_of = _loaders(job)
    cells = missing_cells(job.folder, job.cells, facts, stored_facts(job))
    distributed.wait(world)  # all have looked before anyone writes
    skipped: list[BadImage] = []
    with stop_requests() as stop, job.display.bar("evaluate", len(cells) * len(data.val), "images") as advance:

        def step(note: str, images: int) -> None:
            advance(note, images)
            if stop:  # between batches, where nothing can swallow an exception or be left half done
                sys.exit(128 + stop[0])

        for number, cell in enumerate(cells):
            note = f"cell {number + 1}/{len(cells)} {cell.corruption}-{cell.severity}"
            bad: list[BadImage] = []
            atoms = evaluate_cell(
                view, cell, loader_of(cell), len(data.val), world, config.data.skip_bad, bad, partial(step, note)
            )
            skipped += bad
            if world.main and number == 0:
                images = {"id": range(len(data.val)), "label": data.val.labels, "name": data.val.names}
                records.write_csv(job.folder / "images.csv", pd.DataFrame(images))
            if world.main:
                commit = {"commit": str(job.status.content["sessions"][-1]["commit"])}
                made_of = {"images": job.stored[cell].fingerprint} if cell in job.stored else {}
                records.write_record(job.folder, cell, atoms, facts | commit | made_of)
    _note_skipped(job, "val", skipped)


def _loaders(job: Job) -> Callable[[Cell], Iterable[Batch]]:
    """cell -> its batches: the data set's own images, or the cell's stored ones."""
    config, world, data = job.config, job.world, job.data

    def loader(images: ImageSet, resize: int | None) -> Iterable[Batch]:
        transform = eval_transform(data.size, resize, config.data.interpolation)
        return eval_loader(images, transform, config.evaluation.batch_size, config.data.workers, world.rank, world.size)

    own = loader(data.val, config.data.resize)
    # Without corruptions.resize a stored image has the size already: eval_transform leaves it untouched.
    resize = config.data.resize if config.corruptions.resize else None
    return lambda cell: loader(job.stored[cell], resize) if cell in job.stored else own


def _note_skipped(job: Job, split: str, skipped: list[BadImage]) -> None:
    count = job.status.note_skipped(split, skipped)
    if count:
        job.display.warn(f"{count} unreadable {split} images were skipped; {job.status.path} names them")


def _summary(job: Job, weights: str, afresh: bool = False) -> pd.DataFrame:
    """summary.csv, written from the records where it is not there, or `afresh`."""
    path = job.folder / "summary.csv"
    if path.exists() and not afresh:
        return pd.read_csv(path)
    cells = records.recorded_cells(job.folder, job_facts(job, weights))
    return records.write_summary(job.folder, cells, len(job.data.classes))


def job_facts(job: Job, weights: str) -> dict[str, str]:
    """What a record must have been made with to be this run's."""
    return {"protocol": job.protocol.id, "weights": weights}


def stored_facts(job: Job) -> dict[Cell, str]:
    """The fingerprints of the stored images that each corrupted cell is made of."""
    return {cell: images.fingerprint for cell, images in job.stored.items()}


def _banner(job: Job) -> None:
    config, show = job.config, job.display
    stages = ", ".join(f"{stage.stage} ({stage.module}, {stage.height}x{stage.width})" for stage in job.built.stages)
    noise = f"{config.noise.name} at {stages}: {job.built.mechanism}" if stages else "none"
    kwargs = f" {config.model.kwargs}" if config.model.kwargs else ""
    show.line(f"data:     {job.data.description}")
    show.line(
        f"model:    {config.model.factory or config.model.name}{kwargs}, output stride {config.model.output_stride or 'native'}"
    )
    show.line(f"noise:    {noise}")
    show.line(f"protocol: {job.protocol.id}")
    show.line(f"run:      {job.folder} (seed {config.seed}, {job.world.size} x {job.world.device})")
    for warning in job.built.warnings:
        show.warn(warning)


def _show(job: Job, summary: pd.DataFrame) -> None:
    """The run's table: clean, and each corruption's mean over severities."""
    cells: dict[Cell, Any] = {Cell(row["corruption"], row["severity"]): row for row in summary.to_dict("records")}
    clean = cells.pop(CELL_CLEAN)
    rows = [["clean", *metric_cells(clean)]]
    keys = ("top1", "ece", "nll")
    for name in dict.fromkeys(name for name, _ in cells):
        own = {cell: row for cell, row in cells.items() if cell[0] == name}
        rows.append([name, *metric_cells(mean_corruption(own, keys))])
    with suppress(ValueError):  # corruptions at different severities have no common mean
        names = averaged(name for name, _ in cells)
        rows.append([f"mean over {len(names)} corruptions", *metric_cells(mean_corruption(cells, keys))])
    notes = [f"WARNING: {warning}" for warning in job.built.warnings]
    job.display.table(
        f"{job.folder.name}: {int(clean['n'])} images per cell, mean over severities",
        ["corruption", "top-1", "ECE", "NLL"], rows, [*notes, f"records: {job.folder}"],
    )  # fmt: skip
