"""The main job: config -> network with noise -> training -> evaluation, clean and corrupted -> records."""

import hashlib
import json
import sys
import time
from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, datetime
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
from gch_bench.data.images import BadImage
from gch_bench.data.loaders import eval_loader, train_loader
from gch_bench.data.protocol import Protocol
from gch_bench.data.source import DataSource, load_data
from gch_bench.data.transforms import eval_transform, train_transform
from gch_bench.display import Display, metric_cells, training_note
from gch_bench.distributed import World
from gch_bench.errors import UserError
from gch_bench.evaluation.cells import missing_cells, parameter_set, wanted_cells
from gch_bench.evaluation.evaluate import View, evaluate_cell
from gch_bench.loggers import Logger, evaluation_metrics, open_logger
from gch_bench.metrics import mean_corruption
from gch_bench.records import CELL_CLEAN, Cell
from gch_bench.training.loop import Progress, Stopped, TrainingJob, train
from gch_bench.training.optim import create


class Job(NamedTuple):
    """A run made ready: everything is checked, nothing is written yet."""

    config: Config
    world: World
    data: DataSource
    built: Built
    cells: list[Cell]
    protocol: Protocol
    folder: Path
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
    status = RunFile(job)
    _banner(job)
    facts_known = status.finished_weights()
    if facts_known and not missing_cells(job.folder, job.cells, job_facts(job, facts_known)):
        job.display.line(f"nothing left to do: {job.folder} holds this run")
        _show(job, pd.read_csv(job.folder / "summary.csv"))
        return
    training = _training(job) if config.recipe is not None else None
    distributed.wait(world)  # all have looked before anyone writes
    status.begin()
    logger = open_logger(config, job.folder, world.main)
    started = time.monotonic()
    try:
        model = _train(job, training, logger, status) if training else job.built.model.to(world.device)
        trained = time.monotonic()
        summary = _evaluate(job, model, status)
        if world.main:
            status.finish(weights_digest(model), trained - started, time.monotonic() - trained)
            logger.metrics(evaluation_metrics(summary), training.recipe.epochs * training.steps if training else 0)
            logger.records(job.folder)
            _show(job, summary)
    finally:
        logger.close()


def _prepare(config: Config, world: World) -> Job:
    """Load and build everything, and refuse whatever is wrong, before the first byte is written."""
    cells = wanted_cells(config.corruptions)
    if config.recipe is None and not (config.model.checkpoint or config.model.pretrained):
        raise UserError("evaluate.py needs trained weights: give model.checkpoint=FILE or model.pretrained=true")
    data = _load(config, world)
    torch.manual_seed(config.seed)  # the initial weights
    built = build(config.model, config.noise, len(data.classes), data.size)
    parameters = parameter_set(config.corruptions, data.size)
    own_size = PARAMETER_SETS[parameters].size
    protocol = Protocol(
        source="generated",
        data=data.name,
        data_fingerprint=data.fingerprint,
        size=data.size,
        geometry=data.geometry,
        mean=built.mean,  # type: ignore[arg-type]
        std=built.std,  # type: ignore[arg-type]
        precision=config.evaluation.precision,
        parameters=parameters if data.size == own_size else f"{parameters}@{data.size}",
        jpeg_roundtrip=False,
        num_images=len(data.val),
        corruption_seed=config.corruptions.seed,
        noise_at_test=f"on-T{config.noise.mc_samples}" if config.noise.eval and config.noise.law else "off",
    )
    return Job(config, world, data, built, cells, protocol, Path(config.run_folder), Display(world.main))


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
    transform = train_transform(recipe.augment, job.data.size, job.built.mean, job.built.std, config.data.interpolation)  # type: ignore[arg-type]
    loader = train_loader(
        job.data.train, transform, recipe.batch_size // share, config.seed, config.data.workers, world.rank, world.size
    )
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
        config_hash=identity_hash(config),
        world=world,
        skip_bad=config.data.skip_bad,
    )


def _train(job: Job, training: TrainingJob, logger: Logger, status: "RunFile") -> nn.Module:
    epochs, steps = training.recipe.epochs, training.steps
    skipped: list[BadImage] = []
    with job.display.bar("train", epochs * steps, "steps") as advance:
        done = 0

        def report(progress: Progress) -> None:
            nonlocal done
            step = progress.epoch * steps + progress.step
            advance(training_note(progress, epochs), step - done)
            done = step
            logger.metrics(
                {f"train/{key}": getattr(progress, key) for key in ("loss", "top1", "lr", "images_per_second")}, step
            )

        model = train(training, report, skipped)
    status.note_skipped("train", skipped)
    return model


def _evaluate(job: Job, model: nn.Module, status: "RunFile") -> pd.DataFrame:
    config, world, data = job.config, job.world, job.data
    facts = job_facts(job, weights_digest(model))
    view = View(
        model, job.built.mean, job.built.std, job.protocol.parameters.split("@")[0], config.corruptions.seed,
        config.evaluation.precision, config.noise.mc_samples if job.protocol.noise_at_test != "off" else 0, config.seed,
    )  # fmt: skip
    transform = eval_transform(data.size, config.data.resize, config.data.interpolation)
    loader = eval_loader(data.val, transform, config.evaluation.batch_size, config.data.workers, world.rank, world.size)
    cells = missing_cells(job.folder, job.cells, facts)
    distributed.wait(world)
    skipped: list[BadImage] = []
    with job.display.bar("evaluate", len(cells) * len(data.val), "images") as advance:
        for number, cell in enumerate(cells):
            note = f"cell {number + 1}/{len(cells)} {cell.corruption}-{cell.severity}"
            step = partial(advance, note)
            atoms = evaluate_cell(view, cell, loader, len(data.val), world, config.data.skip_bad, skipped, step)
            if world.main:
                records.write_record(job.folder, cell, atoms, facts)
    status.note_skipped("val", skipped)
    if not world.main:
        return pd.DataFrame()
    return records.write_summary(job.folder, records.recorded_cells(job.folder, facts), len(data.classes))


class RunFile:
    """run.json: what this run is, kept up to date by the main process."""

    def __init__(self, job: Job) -> None:
        """Read what the folder holds.

        Raises:
            UserError: the folder holds another configuration, or a run at all with resume=never.
        """
        self.job, self.path = job, job.folder / "run.json"
        self.content: dict[str, Any] = {}
        if not self.path.exists():
            return
        if job.config.resume == "never":
            raise UserError(f"{job.folder} already holds a run: choose another output=, delete it, or set resume=auto")
        self.content = records.read_json(self.path)
        differing = _differences(self.content.get("identity", {}), json.loads(json.dumps(job.config.identity)))
        if differing:
            raise UserError(
                f"{job.folder} holds another run (it differs in {', '.join(differing[:5])}): choose another output="
            )

    def finished_weights(self) -> str | None:
        """The digest of the weights of a finished run, else None."""
        return self.content.get("weights") if self.content.get("status") == "finished" else None

    def begin(self) -> None:
        job = self.job
        parameters = sum(parameter.numel() for parameter in job.built.model.parameters())
        self.content = {
            "status": "running",
            "command": " ".join(sys.argv),
            "protocol_id": job.protocol.id,
            "protocol": asdict(job.protocol),
            "warnings": job.built.warnings,
            "mechanism": job.built.mechanism,
            "stages": [stage._asdict() for stage in job.built.stages],
            "data": {
                "description": job.data.description,
                "fingerprint": job.data.fingerprint,
                "train_fingerprint": job.data.train_fingerprint,
                "num_classes": len(job.data.classes),
                "geometry": job.data.geometry,
            },
            "parameters": parameters,
            "processes": job.world.size,
            "device": str(job.world.device.type),
            **records.provenance(),
            "config": job.config.as_dict(),
            "identity": job.config.identity,
            "skipped": self.content.get("skipped", {}),
            "sessions": [*self.content.get("sessions", []), {"started": datetime.now(UTC).isoformat(timespec="seconds")}],
        }
        self.write()

    def note_skipped(self, split: str, skipped: list[BadImage]) -> None:
        """Record every process's skipped images; all must call it."""
        images = sorted({image for part in distributed.gather(skipped, self.job.world) for image in part})
        if images:
            self.content["skipped"][split] = {"count": len(images), "images": [image._asdict() for image in images]}
            self.job.display.warn(f"{len(images)} unreadable {split} images were skipped; run.json names them")

    def finish(self, weights: str, train_seconds: float, evaluate_seconds: float) -> None:
        timings = {"train_seconds": round(train_seconds, 2), "evaluate_seconds": round(evaluate_seconds, 2)}
        self.content["sessions"][-1] |= timings | {"ended": datetime.now(UTC).isoformat(timespec="seconds")}
        self.content |= {"status": "finished", "weights": weights, "timings": timings}
        self.write()

    def write(self) -> None:
        if self.job.world.main:
            records.write_json(self.path, self.content)


def _differences(first: Any, second: Any, path: str = "") -> list[str]:
    """Dotted names of the leaves in which two plain configs differ."""
    if isinstance(first, dict) and isinstance(second, dict):
        names = sorted(first.keys() | second.keys())
        return [leaf for name in names for leaf in _differences(first.get(name), second.get(name), f"{path}.{name}".strip("."))]
    return [] if first == second else [path]


def identity_hash(config: Config) -> str:
    return hashlib.sha256(json.dumps(config.identity, sort_keys=True).encode()).hexdigest()


def weights_digest(model: nn.Module) -> str:
    """16 hex digits over the names and bytes of the state dict: which weights a record was made with."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def job_facts(job: Job, weights: str) -> dict[str, str]:
    return {"protocol": job.protocol.id, "weights": weights}


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
        rows.append(["mean over corruptions", *metric_cells(mean_corruption(cells, keys))])
    notes = [f"WARNING: {warning}" for warning in job.built.warnings]
    job.display.table(
        f"{job.folder.name}: {int(clean['n'])} images per cell, mean over severities",
        ["corruption", "top-1", "ECE", "NLL"], rows, [*notes, f"records: {job.folder}"],
    )  # fmt: skip
