"""Process groups: torchrun, SLURM or a single process; exact shards; sums and gathers."""

import os
import subprocess
from datetime import timedelta
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from gch_bench.errors import UserError


class World(NamedTuple):
    """This process in its group: `device` is its own."""

    rank: int
    size: int
    device: torch.device

    @property
    def main(self) -> bool:
        return self.rank == 0

    @property
    def parallel(self) -> bool:
        return self.size > 1


def start(device: str = "auto") -> World:
    """Join the group that torchrun, or srun with one task a GPU, announces in the environment; alone without one.

    `device`: auto (CUDA where there is one), cpu or cuda. Backend: nccl on CUDA, gloo on the CPU."""
    if "RANK" not in os.environ and int(os.environ.get("SLURM_NTASKS", "1")) > 1 and "SLURM_PROCID" in os.environ:
        slurm = os.environ
        slurm.update(RANK=slurm["SLURM_PROCID"], WORLD_SIZE=slurm["SLURM_NTASKS"], LOCAL_RANK=slurm["SLURM_LOCALID"])
        slurm.setdefault("MASTER_PORT", str(20000 + int(slurm.get("SLURM_JOB_ID", "0")) % 20000))  # one port a job
        if "MASTER_ADDR" not in slurm:
            slurm["MASTER_ADDR"] = _first_host(slurm.get("SLURM_STEP_NODELIST", ""))
    rank, size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    cuda = device == "cuda" or (device == "auto" and torch.cuda.is_available())
    if cuda and int(os.environ.get("LOCAL_RANK", "0")) >= torch.cuda.device_count():
        raise UserError(
            f"device=cuda needs a GPU for each of this host's processes, found {torch.cuda.device_count()}: set device=cpu"
        )
    here = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(here)
    if size > 1 and not dist.is_initialized():
        patience = timedelta(hours=1)  # rank 0 may be downloading
        dist.init_process_group("nccl" if cuda else "gloo", rank=rank, world_size=size, timeout=patience)
    return World(rank, size, here)


def _first_host(nodes: str) -> str:
    """The first host of a SLURM node list such as gpu[3-6]: where rank 0 runs."""
    try:
        listed = subprocess.run(
            ["scontrol", "show", "hostnames", nodes], capture_output=True, text=True, check=True, timeout=30
        )
        return listed.stdout.split()[0]
    except (OSError, subprocess.SubprocessError, IndexError) as error:
        raise UserError(f"MASTER_ADDR must name rank 0's host, SLURM's node list {nodes!r} does not tell it: set it") from error


def stop() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def all_reduce(values: torch.Tensor, world: World) -> torch.Tensor:
    """Sum over the processes (the tensor itself, changed in place, when parallel)."""
    if world.parallel:
        dist.all_reduce(values)
    return values


def any_rank(flag: bool, world: World) -> bool:
    return bool(all_reduce(torch.tensor(int(flag), device=world.device), world).item()) if world.parallel else flag


def all_gather(value: Any, world: World) -> list[Any]:
    """Every process's value, in rank order, on every process."""
    if not world.parallel:
        return [value]
    values: list[Any] = [None] * world.size
    dist.all_gather_object(values, value)
    return values


def barrier(world: World) -> None:
    if world.parallel:
        dist.barrier()


def broadcast(tensors: dict[str, torch.Tensor], world: World) -> None:
    """Overwrite every process's tensors, in place, with rank 0's."""
    if world.parallel:
        for tensor in tensors.values():
            dist.broadcast(tensor, 0)
