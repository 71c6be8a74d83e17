"""Training checkpoints. They hold everything that training depends on, so that a resumed run continues as if never stopped.

A checkpoint is written whole or not at all, and read with weights_only=True. Its keys: model and model_ema (plain state dicts,
which model.checkpoint=... can load too), optimizer, scheduler, scaler, rng (one state per process), position (epoch, step),
config_hash, num_classes.
"""

import random
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from gch_bench import distributed
from gch_bench.distributed import World
from gch_bench.errors import UserError
from gch_bench.files import write_atomic
from gch_bench.rng import seed_of
from gch_bench.training.optim import Optimisation


class Position(NamedTuple):
    """The optimiser step that training takes next."""

    epoch: int  # from 0
    step: int  # within the epoch, from 0


def rng_state(device: torch.device) -> dict[str, Any]:
    """The states of the global generators of random, numpy and torch, as tensors and plain values.

    Of the GPU generators only that of `device` is included.
    """
    _, keys, *rest = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": (torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
    }


def set_rng_state(state: dict[str, Any], device: torch.device) -> None:
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    keys, *rest = state["numpy"]
    np.random.set_state(("MT19937", keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)


def save(
    path: Path,
    model: nn.Module,
    optimisation: Optimisation,
    position: Position,
    config_hash: str,
    num_classes: int,
    world: World,
) -> None:
    """Write a checkpoint. Rank 0 writes it, but every process must call this, because the generators' states are gathered.

    Raises:
        UserError: the file cannot be written; an earlier checkpoint at `path` is kept.
    """
    states = distributed.all_gather(rng_state(world.device), world)
    if not world.main:
        return
    content = {
        "model": model.state_dict(),
        "model_ema": optimisation.ema.module.state_dict() if optimisation.ema else None,
        "optimizer": optimisation.optimizer.state_dict(),
        "scheduler": optimisation.scheduler.state_dict(),
        "scaler": optimisation.scaler.state_dict(),
        "rng": states,
        "position": position._asdict(),
        "config_hash": config_hash,
        "num_classes": num_classes,
    }

    def write(file: Any) -> None:
        try:
            torch.save(content, file)
        except RuntimeError as error:  # torch's archive writer hides the OSError of a full disk
            cause = error.__context__
            raise cause if isinstance(cause, OSError) else OSError(str(error)) from error

    write_atomic(path, write)


def read(path: Path) -> dict[str, Any]:
    """The content of the checkpoint at `path` (see the module's docstring), with all tensors on the CPU.

    Raises:
        UserError: the file is truncated, or is no checkpoint of this program.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(content, dict) or not {"model", "position", "config_hash"} <= content.keys():
            raise ValueError("not a checkpoint of this program")
    except Exception as error:  # torch, zipfile and pickle each raise their own
        raise UserError(
            f"checkpoint {path} cannot be read, it is truncated or foreign: {error}; delete it to start afresh"
        ) from error
    return content


def seed_all(seed: int) -> None:
    """Seed the global generators of random, numpy and torch, the last on all devices."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def restore(content: dict[str, Any], model: nn.Module, optimisation: Optimisation, world: World, seed: int) -> Position:
    """Load a checkpoint's content into the model, the optimisation and this process's generators; return its position.

    A checkpoint that another number of processes wrote does not hold one generator state per process. The generators are then
    seeded by (seed, rank, number of processes, position), so that they repeat neither the draws of the first steps nor those of
    another process.
    """
    model.load_state_dict(content["model"])
    if optimisation.ema is not None:
        optimisation.ema.module.load_state_dict(content["model_ema"])
    optimisation.optimizer.load_state_dict(content["optimizer"])
    optimisation.scheduler.load_state_dict(content["scheduler"])
    optimisation.scaler.load_state_dict(content["scaler"])
    position = Position(**content["position"])
    if len(content["rng"]) == world.size:
        set_rng_state(content["rng"][world.rank], world.device)
    else:
        seed_all(seed_of(seed, "training", world.rank, world.size, *position))
    return position
