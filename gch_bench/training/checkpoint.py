"""Checkpoints: written whole or not at all, read with weights_only=True, and complete: a resumed run is the same run.

Layout: model and model_ema (plain state dicts, so model.checkpoint=... reads them), optimizer, scheduler, scaler, rng (one
state per process), position {epoch, step}, config_hash, num_classes.
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
    """Where training stands: the next step (within its epoch) to take."""

    epoch: int
    step: int


def rng_state(device: torch.device) -> dict[str, Any]:
    """States of the global generators of random, numpy and torch, as tensors and plain values."""
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
    """Write a checkpoint from rank 0; every process must call it (the generators' states are gathered).

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
    """A checkpoint's content, on the CPU.

    Raises:
        UserError: truncated or foreign file.
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
    """Seed the global generators of random, numpy and torch (all devices)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def restore(content: dict[str, Any], model: nn.Module, optimisation: Optimisation, world: World, seed: int) -> Position:
    """Put a checkpoint's content into the model and the optimisation, and this process's generators into its state.

    A checkpoint of another number of processes has no state for each of these: their generators start from (seed, rank, number
    of processes, position), and so neither repeat the draws of the first steps nor each other's.
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
