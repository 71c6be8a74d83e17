"""A training job as the program makes it, for tests that look inside; and several of them, when run under torchrun."""

import shutil
import sys
from dataclasses import replace
from pathlib import Path

import torch
from conftest import TINY, configuration

from gch_bench import distributed
from gch_bench.data.images import ArrayImages
from gch_bench.data.sets import load_data
from gch_bench.distributed import World
from gch_bench.model.build import build
from gch_bench.training import checkpoint
from gch_bench.training.loop import StepReport, TrainingJob, train
from gch_bench.training.setup import training_job

ALONE = World(0, 1, torch.device("cpu"))


def make_job(folder: Path, *overrides: str, world: World = ALONE) -> TrainingJob:
    """The job of `train.py` with TINY and these overrides: 72 digits of 32 x 32 pixels, a network of two blocks."""
    config = configuration(*TINY, *overrides)
    data = load_data(config.data, train=True)
    assert isinstance(data.train, ArrayImages)
    data = replace(data, train=ArrayImages(data.train.names[:72], data.train.labels[:72], data.train.pixels[:72]))
    torch.manual_seed(config.seed)
    noisy = build(config.model, config.noise, len(data.classes), data.size)
    return training_job(config, data, noisy, folder=folder, config_hash="hash", world=world)


# Trainings of 6 optimiser steps on a network without BatchNorm. The number of processes must not matter.
EQUAL_CASES = {
    "gch": ("noise=gch",),
    "dropblock": ("noise=dropblock", "noise.p=0.3"),
    "accumulation": ("noise=gch", "noise.per_channel=true", "recipe.grad_accumulation=2"),
    "average": ("noise=hard_mask", "recipe.ema_decay=0.5"),
    "frozen": ("noise=gch", "noise.stages=[late]", "recipe.freeze=early", "recipe.ema_decay=0.5"),
}
EQUAL = (
    "model.factory=tinynet:groupnorm", "noise.stages=[early,late]", "recipe.epochs=2", "recipe.batch_size=24", "recipe.lr=0.1",
)  # fmt: skip


def equal_weights(folder: Path, world: World = ALONE) -> dict[str, dict[str, torch.Tensor]]:
    """Case of EQUAL_CASES -> the weights at the end of its training."""
    return {
        name: train(make_job(folder / name, *EQUAL, *options, world=world), lambda progress: None, [], warn=print).state_dict()
        for name, options in EQUAL_CASES.items()
    }


# Trainings with BatchNorm, which depend on the number of processes; but all processes must end with the same network.
BATCHNORM_CASES = {
    "batchnorm": (),
    "recalibrated": ("recipe.freeze=early", "recipe.ema_decay=0.5", "recipe.recalibrate_bn=true"),
}


# A training of 9 optimiser steps with all that a process draws by itself.
RESUMED = (
    "noise=gch", "recipe.ema_decay=0.9", "recipe.grad_accumulation=2", "recipe.mixup=0.2", "recipe.epochs=3",
    "recipe.batch_size=24", "recipe.checkpoint_minutes=0.00001",
)  # fmt: skip


def resumed_weights(folder: Path, world: World) -> dict[str, dict[str, torch.Tensor]]:
    """The weights at the end of a training, and of one that goes on from the straight one's checkpoint in its second epoch."""
    jobs = {name: make_job(folder / name, *RESUMED, world=world) for name in ("straight", "resumed")}

    def keep(progress: StepReport) -> None:
        if world.main and progress.epoch == 1:
            shutil.copytree(jobs["straight"].checkpoint.parent, jobs["resumed"].checkpoint.parent)

    weights = {"straight": train(jobs["straight"], keep, [], warn=print).state_dict()}
    position = checkpoint.newest(jobs["resumed"].checkpoint, world, print)["position"]  # type: ignore[index]
    assert position == {"epoch": 1, "step": 2}, position
    return weights | {"resumed": train(jobs["resumed"], lambda progress: None, [], warn=print).state_dict()}


def save_weights(folder: Path) -> None:
    """In each process of the group: write the weights at the end of all trainings to `folder`/RANK.pt."""
    with distributed.group("cpu") as world:
        weights = equal_weights(folder, world)
        for name, options in BATCHNORM_CASES.items():
            job = make_job(folder / name, "noise=gch", "recipe.epochs=1", "recipe.batch_size=24", *options, world=world)
            weights[name] = train(job, lambda progress: None, [], warn=print).state_dict()
        weights |= resumed_weights(folder, world)
        torch.save(weights, folder / f"{world.rank}.pt")


if __name__ == "__main__":
    save_weights(Path(sys.argv[1]))
