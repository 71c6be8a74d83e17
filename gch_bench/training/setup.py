"""Prepares a training from the configuration: loader, frozen part, optimiser, schedule, loss, averaging of the weights."""

from pathlib import Path

import torch

from gch_bench.config.run import Config
from gch_bench.data.folders import root_of
from gch_bench.data.loaders import checked, loader_workers, train_loader
from gch_bench.data.sets import DataSource
from gch_bench.data.transforms import train_transform
from gch_bench.distributed import World
from gch_bench.errors import UserError
from gch_bench.model.build import NoisyNetwork
from gch_bench.model.trunk import Trunk
from gch_bench.noise.hooks import stage_hooks
from gch_bench.provenance import versions
from gch_bench.training.batchnorm import LEAST_INFLATION, MAX_IMAGES, batchnorms, inflation
from gch_bench.training.freeze import freeze
from gch_bench.training.loop import TrainingJob
from gch_bench.training.optim import create, ema_warning
from gch_bench.training.trunk_cache import TrunkCache

AUGMENTING = ("torchvision", "timm", "pillow")  # the packages that decode and augment an image; their versions may differ in it


def training_job(
    config: Config, data: DataSource, noisy: NoisyNetwork, folder: Path, config_hash: str, world: World
) -> TrainingJob:
    """The training of a run, ready to start. The network moves to this process's device.

    Raises:
        UserError: a recipe that does not fit the data, the number of processes or the network.
    """
    recipe = config.recipe
    assert recipe is not None
    assert data.train is not None
    if world.size > len(data.train):
        raise UserError(f"there must be at most as many processes as training images, {len(data.train)}, got {world.size}")
    parts = world.size * recipe.grad_accumulation
    if recipe.batch_size % parts:
        raise UserError(
            f"recipe.batch_size must be a multiple of processes x grad_accumulation = {parts}, got {recipe.batch_size}"
        )
    own_batch = recipe.batch_size // parts
    if (recipe.mixup > 0 or recipe.cutmix > 0) and own_batch % 2:
        raise UserError(f"recipe.batch_size must be even in each process for mixup and cutmix, got {own_batch}")
    if recipe.sync_bn and world.device.type != "cuda":
        raise UserError("recipe.sync_bn=true needs GPUs, as torch has no such BatchNorm for a CPU: leave it out on this device")
    transform = train_transform(recipe.augment, data.size, noisy.normalisation, data.preparation.interpolation)
    workers = loader_workers(config.data.workers, data.train, world.local_size)
    loader = train_loader(data.train, transform, own_batch, config.seed, workers, world.rank, world.size)
    steps = loader.steps_per_epoch // recipe.grad_accumulation
    if steps == 0:
        raise UserError(f"recipe.batch_size must be at most the number of training images, got {recipe.batch_size}; lower it")
    layout = torch.channels_last if recipe.channels_last else torch.contiguous_format
    model = noisy.network.to(world.device).to(memory_format=layout)
    frozen = freeze(model, recipe.freeze, data.size)
    if recipe.trunk_cache is not None and (world.parallel or config.data.skip_bad):
        other = "several processes" if world.parallel else "data.skip_bad=true"
        raise UserError(f"recipe.trunk_cache must be null with {other}, got {recipe.trunk_cache!r}")
    classes = len(data.classes)
    return TrainingJob(
        model=model,
        optimisation=create(recipe, model, classes, steps, world.device),
        loader=loader,
        recipe=recipe,
        frozen=frozen,
        trunk_cache=_trunk_cache(config, data, noisy, frozen),
        num_classes=classes,
        seed=config.seed,
        folder=folder,
        config_hash=config_hash,
        world=world,
        skip_bad=config.data.skip_bad,
    )


def _trunk_cache(config: Config, data: DataSource, noisy: NoisyNetwork, trunk: Trunk) -> TrunkCache | None:
    recipe = config.recipe
    if recipe is None or recipe.trunk_cache is None:
        return None
    made_of = {
        "images": data.train_fingerprint,  # of a folder it covers names and labels alone, so that the folder is told apart, too
        "root": str(root_of(config.data).resolve()) if config.data.root else None,
        "libraries": versions(AUGMENTING),
        "size": data.size,
        "interpolation": data.preparation.interpolation,
        "normalisation": noisy.normalisation,
        "augment": recipe.augment,
        "batch": recipe.batch_size // recipe.grad_accumulation,
        "channels_last": recipe.channels_last,
        "seed": config.seed,
    }
    return TrunkCache(Path(recipe.trunk_cache).expanduser(), noisy.network, trunk, made_of, data.size)


def training_warnings(job: TrainingJob, noisy: NoisyNetwork) -> list[str]:
    """What a user must be told before this training starts. The effect of the noise is measured on its network and images."""
    warnings = [ema_warning(job.recipe, job.recipe.epochs * job.steps), _inflation_warning(job, noisy)]
    return [warning for warning in warnings if warning is not None]


def _inflation_warning(job: TrainingJob, noisy: NoisyNetwork) -> str | None:
    """A warning if the noise inflates the variance of the BatchNorm layers behind it and the recipe does not correct that.

    Only the main process measures; the others return None.
    """
    acts = any(hook.train for hook in stage_hooks(job.model))
    if not acts or job.recipe.recalibrate_bn or not job.world.main or not batchnorms(job.model, job.frozen):
        return None
    batch = next(checked(job.loader.epoch(0), True, []), None)
    if batch is None:
        return None
    ratios = inflation(job.model, job.frozen, job.inputs(batch)[:MAX_IMAGES], job.seed)
    worst = max(ratios, key=lambda name: ratios[name])
    if ratios[worst] < LEAST_INFLATION:
        return None
    inflated = sum(ratio >= LEAST_INFLATION for ratio in ratios.values())
    stages = ", ".join(f"{stage.stage} ({stage.module})" for stage in noisy.stages)
    return (
        f"the noise at {stages} comes before BatchNorm and inflates the variance that {worst} records x{ratios[worst]:.2g}"
        f" ({inflated} of {len(ratios)} BatchNorm layers are affected; measured on the starting weights): an evaluation without"
        " noise then divides by too much; set recipe.recalibrate_bn=true"
    )
