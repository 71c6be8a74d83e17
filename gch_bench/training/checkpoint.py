"""Training checkpoints. They hold everything that training depends on, so that a resumed run continues as if never stopped.

A checkpoint is written whole or not at all, and read with weights_only=True. Two are kept: last.pt, which exists at every
moment after its first write, and the one before it, previous.pt, from which training goes on if last.pt is damaged; with
recipe.keep_every also epoch-N.pt, which training does not read. The keys:
model and model_ema (plain state dicts, which model.checkpoint=... can load too), optimizer, scheduler, scaler, rng (one state
per process), position (epoch, step), config_hash, num_classes.
"""

import os
import random
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from gch_bench import distributed
from gch_bench.distributed import World
from gch_bench.errors import UserError
from gch_bench.files import write_atomic, writing
from gch_bench.rng import seed_of
from gch_bench.training.optim import Optimisation

START_AFRESH = "; delete it to start afresh"  # the end of the message about an unreadable checkpoint


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
        if path.exists():  # the new checkpoint is whole, and is about to replace this one
            _link(path, previous_of(path))

    write_atomic(path, write)


def previous_of(path: Path) -> Path:
    """Where the checkpoint before the one at `path` is kept."""
    return path.with_name("previous.pt")


def keep(path: Path, epoch: int, world: World) -> None:
    """Keep the checkpoint at `path` as epoch-N.pt beside it, N = `epoch` finished epochs."""
    if world.main:
        with writing(path):
            _link(path, path.with_name(f"epoch-{epoch}.pt"))


def _link(source: Path, name: Path) -> None:
    """Make `name` the same file as `source`, or a copy where the file system has no hard links. It is never half-written."""
    temporary = name.with_name(f".{name.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        os.link(source, temporary)
    except OSError:
        shutil.copyfile(source, temporary)
    try:
        os.replace(temporary, name)
    finally:
        temporary.unlink(missing_ok=True)


def newest(path: Path, world: World, warn: Callable[[str], None]) -> dict[str, Any] | None:
    """The content of the checkpoint at `path`, or of the one before it if that one is damaged; None if there is neither.

    All processes must call it, and all get the same checkpoint. If the one at `path` is damaged, it is replaced by the one
    before it, so that it never becomes the one before the next.

    Args:
        warn: called with a warning if the newest checkpoint was damaged.

    Raises:
        UserError: all that are there are damaged.
    """
    content, damage = None, ""
    if path.exists():
        try:
            content = read(path)
        except UserError as error:
            damage = str(error)
    if not distributed.any_rank(content is None, world):
        return content
    before = previous_of(path)
    with distributed.failing_together(world):  # at its end every process has read what it will
        if not before.exists():
            if damage:
                raise UserError(damage)
            return None
        try:
            content = read(before)
        except UserError as error:
            raise UserError(f"{damage or f'{path} is missing'}; and {error}") from error
    place = Position(**content["position"])
    warn(
        f"{damage.removesuffix(START_AFRESH) or f'checkpoint {path} is missing'}: training went on from {before.name}, epoch"
        f" {place.epoch + 1}, step {place.step + 1}"
    )
    if world.main:
        with writing(path):
            _link(before, path)
    return content


def read(path: Path) -> dict[str, Any]:
    """The content of the checkpoint at `path` (see the module's docstring), with all tensors on the CPU.

    Raises:
        UserError: the file is truncated or damaged, or is no checkpoint of this program.
    """
    try:
        with zipfile.ZipFile(path) as archive:  # torch.load does not look at the checksums
            if (damaged := archive.testzip()) is not None:
                raise ValueError(f"the checksum of {damaged} in it does not match")
        content = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(content, dict) or not {"model", "position", "config_hash"} <= content.keys():
            raise ValueError("not a checkpoint of this program")
    except Exception as error:  # torch, zipfile and pickle each raise their own
        text = " ".join(str(error).split())
        raise UserError(f"checkpoint {path} cannot be read, it is truncated or foreign: {text}{START_AFRESH}") from error
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
