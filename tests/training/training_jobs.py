"""A training job as the program makes it, for tests that look inside; and several of them, when run under torchrun."""

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
from gch_bench.noise.mechanism import Gate
from gch_bench.training.loop import TrainingJob, train
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


def save_gates(folder: Path) -> None:
    """Train one epoch in this process of the group, and write what it drew and where it ended to `folder`/RANK.pt."""
    with distributed.group("cpu") as world:
        gates: list[torch.Tensor] = []
        transform = Gate.transform

        def noted(self: Gate, psi_BHW: torch.Tensor) -> torch.Tensor:
            gates.append(transform(self, psi_BHW))
            return gates[-1]

        job = make_job(
            folder, "noise=gch", "recipe.epochs=1", "recipe.batch_size=32", "recipe.recalibrate_bn=true", world=world
        )
        Gate.transform = noted  # type: ignore[method-assign]
        trained = train(job, lambda progress: None, [], warn=print)
        torch.save({"gates": gates, "weights": trained.state_dict()}, folder / f"{world.rank}.pt")


# Trainings of 6 optimiser steps on a network without BatchNorm. The number of processes must not matter.
EQUAL_CASES = {
    "gch": ("noise=gch",),
    "dropblock": ("noise=dropblock", "noise.p=0.3"),
    "accumulation": ("noise=gch", "noise.per_channel=true", "recipe.grad_accumulation=2"),
    "average": ("noise=hard_mask", "recipe.ema_decay=0.5"),
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


def save_equal_weights(folder: Path) -> None:
    with distributed.group("cpu") as world:
        weights = equal_weights(folder / str(world.size), world)
        if world.main:
            torch.save(weights, folder / f"{world.size}.pt")


if __name__ == "__main__":
    {"gates": save_gates, "equal": save_equal_weights}[sys.argv[1]](Path(sys.argv[2]))
