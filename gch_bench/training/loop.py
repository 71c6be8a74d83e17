"""The training loop: plain PyTorch with timm's optimiser, schedule and mixing, for one process or many.

Randomness: the order of the images depends on (seed, epoch); their augmentation and the internal noise depend on (seed, epoch,
image id). Only mixup and cutmix, which mix the images of one process's batch, and the backbone's own dropout and stochastic
depth draw from the global generators. These are seeded by (seed, rank) and stored in every checkpoint. A run that is stopped at
any step and resumed with the same number of processes ends with the same weights. With another number this holds up to
rounding, unless one of the reasons in training/processes.py applies; a warning then names it.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from gch_bench import distributed
from gch_bench.config.run import RecipeConfig
from gch_bench.data.images import BadImage
from gch_bench.data.loaders import Batch, TrainLoader, checked
from gch_bench.distributed import SharedError, World
from gch_bench.errors import UserError
from gch_bench.model.trunk import Trunk
from gch_bench.noise.draws import image_keys
from gch_bench.noise.hooks import keyed_noise
from gch_bench.results.records import LAST_CHECKPOINT
from gch_bench.rng import seed_of
from gch_bench.stopping import Stopped, stop_requests
from gch_bench.training import checkpoint
from gch_bench.training.batchnorm import recalibrate
from gch_bench.training.checkpoint import Position
from gch_bench.training.freeze import hold_still
from gch_bench.training.optim import Optimisation
from gch_bench.training.processes import process_dependence, synchronise
from gch_bench.training.trunk_cache import TrunkBatch, TrunkCache

CHECK_EVERY = 20  # optimiser steps between readings of the loss, because reading it makes the CPU wait for the GPU
AMP = {"bf16": torch.bfloat16, "fp16": torch.float16}


class StepReport(NamedTuple):
    """The progress of training, for display and logger. The means are over the images since the report before."""

    epoch: int  # from 0
    step: int  # optimiser steps taken in this epoch
    steps_per_epoch: int
    loss: float  # mean
    top1: float  # fraction of images whose own label has the largest logit, also where mixup changed the images
    images_per_second: float  # over all processes
    lr: float  # learning rate of the first parameter group


def training_note(progress: StepReport, epochs: int) -> str:
    return (
        f"epoch {progress.epoch + 1}/{epochs} loss {progress.loss:.3f} top-1 {progress.top1:.1%}"
        f" {progress.images_per_second:.0f} img/s"
    )


class TrainingJob(NamedTuple):
    """A training that is ready to start: the model, its data and recipe, and where its checkpoint lies."""

    model: nn.Module  # not wrapped in DDP, on world.device
    optimisation: Optimisation
    loader: TrainLoader
    recipe: RecipeConfig
    frozen: Trunk
    trunk_cache: TrunkCache | None  # the outputs of the frozen part, kept for all runs that share them
    num_classes: int
    seed: int
    folder: Path
    config_hash: str
    world: World
    skip_bad: bool

    @property
    def steps(self) -> int:
        """Optimiser steps in an epoch."""
        return self.loader.steps_per_epoch // self.recipe.grad_accumulation

    @property
    def checkpoint(self) -> Path:
        return self.folder / LAST_CHECKPOINT

    def inputs(self, batch: Batch) -> Tensor:
        """The images of a batch (B, 3, H, W) on this process's device, in the recipe's memory layout."""
        layout = torch.channels_last if self.recipe.channels_last else torch.contiguous_format
        return batch.images.to(self.world.device, non_blocking=True, memory_format=layout)


def train(
    job: TrainingJob,
    report: Callable[[StepReport], None],
    skipped: list[BadImage],
    warn: Callable[[str], None],
    say: Callable[[str], None] = lambda text: None,
) -> nn.Module:
    """Train to the end of the recipe, from the checkpoint in the job's folder if there is one. All processes must call it.

    Args:
        report: called every CHECK_EVERY steps and at the end of every epoch, on every process.
        skipped: unreadable images are added to this list where the job's skip_bad allows them.
        warn: called with every warning that the reader of the results should see.
        say: called with where the training goes on, if it does not start from the beginning.

    Returns:
        The network to evaluate: the average of the weights (EMA) where the recipe has one, else the trained model.

    Raises:
        UserError: a loss that is not finite (the last good checkpoint is kept), an unreadable image, a folder that cannot be
            written, a checkpoint of another configuration.
        Stopped: a signal of the module stopping, after a checkpoint was written.
    """
    world, recipe = job.world, job.recipe
    checkpoint.seed_all(seed_of(job.seed, "training", world.rank))
    optimisation = job.optimisation
    position = _resume(job, warn)
    if position != Position(0, 0) and position.epoch < recipe.epochs:
        say(f"continuing from epoch {position.epoch + 1}, step {position.step + 1} ({job.checkpoint})")
    wrapped: nn.Module = job.model
    if world.parallel and recipe.sync_bn:
        synchronise(job.model)
    if world.parallel:
        wrapped = DistributedDataParallel(job.model, device_ids=[world.device.index] if world.device.type == "cuda" else None)
    if recipe.compile:
        wrapped = compiled(wrapped)
    with stop_requests() as requests:
        if recipe.keep_every and position == Position(0, 0):
            _save(job, position)
        if position.step == 0:  # of the start; or of the last step of an epoch, after which the training was stopped
            _keep(job, position.epoch)
        for epoch in range(position.epoch, recipe.epochs):
            start = position.step if epoch == position.epoch else 0
            _train_epoch(job, wrapped, epoch, start, report, skipped, requests)
            _save(job, Position(epoch + 1, 0))
            _keep(job, epoch + 1)
        (stop,) = distributed.largest([requests[0] if requests else 0], world)  # a signal during the last checkpoint
        if stop:
            raise Stopped(stop, job.checkpoint)
    trained = optimisation.ema.module if optimisation.ema is not None else job.model
    if recipe.recalibrate_bn:  # on the images of the epoch after the last, in the order and with the augmentation of that epoch
        more = checked(job.loader.epoch(recipe.epochs), job.skip_bad, skipped)
        recalibrate(trained, job.frozen, (job.inputs(batch) for batch in more), world)
        _save(job, Position(recipe.epochs, 0))  # a run that goes on from here estimates the same statistics again
    # Without recipe.sync_bn each process has BatchNorm statistics of its own images. From here on all use those of rank 0.
    distributed.broadcast(trained.state_dict(), world)
    return trained


def compiled(network: nn.Module, backend: str = "inductor") -> nn.Module:
    """The network compiled by torch.compile, with every hook on its modules, such as the noise.

    From here on the whole process compiles with guards on hooks: torch reads this setting when a graph is made, in the first
    forward pass and in some later ones. By default torch compiles one block without hooks and runs the result for all blocks of
    the class, so that noise on some of them would silently be absent.
    """
    torch._dynamo.config.skip_nnmodule_hook_guards = False
    return torch.compile(network, backend=backend)  # type: ignore[return-value]


def _resume(job: TrainingJob, warn: Callable[[str], None]) -> Position:
    """Restore the job from its newest good checkpoint, if there is one, and return the position at which training goes on."""
    world, optimisation = job.world, job.optimisation
    content = checkpoint.newest(job.checkpoint, world, warn)
    if content is not None and content["config_hash"] != job.config_hash:
        raise SharedError(f"{job.checkpoint} belongs to another configuration: choose another output= folder")
    if content is None:
        optimisation.scheduler.step_update(0)
        return Position(0, 0)
    position = checkpoint.restore(content, job.model, optimisation, world, job.seed)
    before, reasons = len(content["rng"]), process_dependence(job.model, job.recipe, job.frozen)
    if before != world.size and reasons and position.epoch < job.recipe.epochs:
        warn(
            f"this run was continued with {world.size} instead of {before} processes at epoch {position.epoch + 1}, step"
            f" {position.step + 1}: from there on it differs from an unbroken run, because {'; '.join(reasons)}"
        )
    return position


def _train_epoch(
    job: TrainingJob,
    wrapped: nn.Module,
    epoch: int,
    start: int,
    report: Callable[[StepReport], None],
    skipped: list[BadImage],
    requests: list[int],
) -> None:
    world, optimisation, steps, accumulation = job.world, job.optimisation, job.steps, job.recipe.grad_accumulation
    batches = _batches(job, Position(epoch, start), skipped, requests)  # which may leave the model in eval mode
    wrapped.train()
    hold_still(job.model, job.frozen)
    # Since the last report: loss times number of images, number of correct predictions, number of images.
    sums = torch.zeros(3, device=world.device, dtype=torch.float64)
    since = saved = time.perf_counter()
    for step in range(start, steps):
        for part in range(accumulation):
            batch = next(batches, None)
            if batch is None:
                raise UserError("no readable training image is left: check data.root")
            last = part == accumulation - 1
            with wrapped.no_sync() if world.parallel and not last else nullcontext():  # type: ignore[operator]
                sums += _backward(job, wrapped, batch, epoch)
        update = epoch * steps + step + 1  # the number of this update of the weights, from 1 over all epochs
        looking = step + 1 == steps or (step + 1) % CHECK_EVERY == 0 or world.device.type == "cpu"
        stop = requests[0] if requests else 0  # the number of a signal
        # Whether it is time for a checkpoint: rank 0's clock decides for all.
        due = int(world.main and time.perf_counter() - saved >= 60 * job.recipe.checkpoint_minutes)
        if looking:
            stop, due = distributed.largest([stop, due], world)
        elif world.parallel:
            stop, due = 0, 0  # later, when all processes look
        if looking or stop or due:
            _refuse_non_finite(job, sums, epoch, step)
        _update(job, update)
        if (step + 1) % CHECK_EVERY == 0 or step + 1 == steps:
            loss, correct, images = distributed.all_reduce(sums.clone(), world).tolist()
            rate = images / (time.perf_counter() - since)
            lr = optimisation.optimizer.param_groups[0]["lr"]
            report(StepReport(epoch, step + 1, steps, loss / max(images, 1), correct / max(images, 1), rate, lr))
            sums.zero_()
            since = time.perf_counter()
        if stop or (due and step + 1 < steps):  # at the end of an epoch `train` writes one anyway
            _save(job, Position(epoch, step + 1) if step + 1 < steps else Position(epoch + 1, 0))
            saved = time.perf_counter()
        if stop:
            distributed.barrier(world)  # none ends before rank 0 has written: a launcher may kill all when the first one ends
            raise Stopped(stop, job.checkpoint)


def _batches(
    job: TrainingJob, position: Position, skipped: list[BadImage], requests: list[int]
) -> Iterator[Batch | TrunkBatch]:
    """The batches of an epoch from a position on, of images or of what the frozen part gives for them."""
    first = position.step * job.recipe.grad_accumulation
    if job.trunk_cache is None:
        return checked(job.loader.epoch(position.epoch, first), job.skip_bad, skipped)

    def end_if_stopped() -> None:
        if requests:  # a signal
            _save(job, position)
            raise Stopped(requests[0], job.checkpoint)

    def all_images() -> Iterator[tuple[Tensor, Tensor, Tensor]]:  # read only if the cache lacks the epoch
        for batch in checked(job.loader.epoch(position.epoch), job.skip_bad, skipped):
            end_if_stopped()
            yield job.inputs(batch), batch.labels, batch.ids

    return job.trunk_cache.epoch(position.epoch, all_images(), first, end_if_stopped)


def _backward(job: TrainingJob, wrapped: nn.Module, batch: Batch | TrunkBatch, epoch: int) -> Tensor:
    """Forward and backward pass of one batch of n images. Returns (loss * n, correct predictions, n), float64 (3,).

    The internal noise on an image is drawn from (seed, epoch, image id).
    """
    world, recipe, optimisation = job.world, job.recipe, job.optimisation
    labels = targets = batch.labels.to(world.device, non_blocking=True)
    if isinstance(batch, TrunkBatch):
        assert job.trunk_cache is not None
        forward = partial(job.trunk_cache.logits, batch, world.device)
    else:
        images = job.inputs(batch)
        if optimisation.mixup is not None:
            images, targets = optimisation.mixup(images, labels)
        forward = partial(wrapped, images)
    keys_B = image_keys(batch.ids.to(world.device, non_blocking=True), job.seed, "training noise", epoch)
    with keyed_noise(job.model, keys_B):  # around the backward pass, too: activation checkpointing repeats the forward there
        with torch.autocast(world.device.type, AMP.get(recipe.amp), enabled=recipe.amp != "none"):
            logits = forward()
        loss = optimisation.loss(logits.float(), targets)
        optimisation.scaler.scale(loss / recipe.grad_accumulation).backward()
    correct = (logits.detach().argmax(1) == labels).sum()
    return torch.stack([loss.detach().double() * len(labels), correct.double(), correct.new_tensor(len(labels)).double()])


def _update(job: TrainingJob, update: int) -> None:
    optimisation = job.optimisation
    optimizer, scaler = optimisation.optimizer, optimisation.scaler
    if job.recipe.grad_clip is not None:
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(job.model.parameters(), job.recipe.grad_clip)
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad(set_to_none=True)
    optimisation.scheduler.step_update(update)
    if optimisation.ema is not None:
        optimisation.ema.update(job.model, step=update)


def _save(job: TrainingJob, position: Position) -> None:
    """Write the checkpoint. Weights that are not finite are refused, so that they never replace a good checkpoint."""
    bad = [name for name, value in job.model.state_dict().items() if not bool(torch.isfinite(value).all())]
    if distributed.any_rank(bool(bad), job.world):
        epoch = position.epoch + (position.step > 0)  # of the last step that was taken, counted from 1
        raise SharedError(f"{', '.join(bad[:3]) or 'weights'} became non-finite in epoch {epoch}: {_advice(job)}")
    checkpoint.save(job.checkpoint, job.model, job.optimisation, position, job.config_hash, job.num_classes, job.world)


def _keep(job: TrainingJob, epoch: int) -> None:
    """Keep the checkpoint that was just written or read, of `epoch` finished epochs, if the recipe asks for it."""
    if job.recipe.keep_every and epoch % job.recipe.keep_every == 0:
        checkpoint.keep(job.checkpoint, epoch, job.world)


def _advice(job: TrainingJob) -> str:
    kept = f"the last good checkpoint is {job.checkpoint}" if job.checkpoint.exists() else "no checkpoint was written yet"
    return f"lower recipe.lr or noise.gamma, or set recipe.grad_clip; {kept}"


def _refuse_non_finite(job: TrainingJob, sums: Tensor, epoch: int, step: int) -> None:
    """Raise SharedError if the loss is not finite on any process.

    It is called before every checkpoint, so that no checkpoint holds weights that come after a loss that was not finite.
    """
    if distributed.any_rank(not bool(torch.isfinite(sums[0])), job.world):
        raise SharedError(f"the training loss is not finite at epoch {epoch + 1}, step {step + 1}: {_advice(job)}")
