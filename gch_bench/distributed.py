"""Process groups. `group` joins the processes that torchrun or srun started; the functions at the end are what the members of a
group do together, and do nothing where there is one process alone.

No wait is without an end: all processes must have met within `MEETING_SECONDS`, and a collective that one of them does not join
fails after `COLLECTIVE_TIMEOUT`, or as soon as its connection breaks.
"""

import itertools
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from datetime import timedelta
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from gch_bench.errors import UserError

MEETING_SECONDS = 60.0  # for all processes to meet
COLLECTIVE_TIMEOUT = timedelta(hours=1)  # afterwards: rank 0 may be downloading the data while the others wait

_groups = itertools.count()  # a process may join several groups, one after another: each has its own keys in the store


class World(NamedTuple):
    """This process in its group: `device` is its own, `local_size` the number of processes of the group on this host."""

    rank: int
    size: int
    device: torch.device
    local_size: int = 1

    @property
    def main(self) -> bool:
        return self.rank == 0

    @property
    def parallel(self) -> bool:
        return self.size > 1


class SharedError(UserError):
    """A UserError that every process of the group raises at once: rank 0 alone prints it."""


class Launch(NamedTuple):
    """What the launcher says of this process: its rank among how many, in all and on this host, and where rank 0 listens."""

    rank: int
    size: int
    local_rank: int
    local_size: int
    address: str
    port: int


ALONE = Launch(0, 1, 0, 1, "", 0)


def launched(environment: Mapping[str, str]) -> Launch:
    """Read the environment that torchrun (RANK, WORLD_SIZE, ...) or srun (SLURM_STEP_NUM_TASKS, ...) gives its processes.

    Under SLURM the tasks of the *step* count, which srun makes: in the script of an sbatch, SLURM_NTASKS is the job's number of
    tasks, but the script itself is one process, and a program that it starts without srun is alone.

    Raises:
        UserError: a variable that is missing or no number.
    """
    if "RANK" in environment:
        size = _number(environment, "WORLD_SIZE", 1)
        rank = _number(environment, "RANK")
        local = _number(environment, "LOCAL_RANK", 0), _number(environment, "LOCAL_WORLD_SIZE", 1)
        if size == 1:
            return ALONE._replace(local_rank=local[0])
        if not 0 <= rank < size:
            raise UserError(f"RANK must be in 0..WORLD_SIZE-1 = 0..{size - 1}, got {rank}: start with torchrun or srun")
        return Launch(rank, size, *local, environment.get("MASTER_ADDR", "127.0.0.1"), _number(environment, "MASTER_PORT"))
    size = _number(environment, "SLURM_STEP_NUM_TASKS", 1)
    if size == 1:
        return ALONE
    job, step = _number(environment, "SLURM_JOB_ID", 0), _number(environment, "SLURM_STEP_ID", 0)
    return Launch(
        rank=_number(environment, "SLURM_PROCID"),
        size=size,
        local_rank=_number(environment, "SLURM_LOCALID"),
        local_size=_tasks_here(environment.get("SLURM_STEP_TASKS_PER_NODE", "1"), _number(environment, "SLURM_NODEID", 0)),
        address=environment.get("MASTER_ADDR") or _first_host(environment.get("SLURM_STEP_NODELIST", "")),
        port=_number(environment, "MASTER_PORT", 20000 + (job + 101 * step) % 20000),  # one port a step
    )


def unused_tasks(environment: Mapping[str, str]) -> str | None:
    """A warning where SLURM granted several tasks and this one process, started without srun, uses one of them."""
    tasks = environment.get("SLURM_NTASKS", "1")
    if tasks == "1" or not environment.keys().isdisjoint({"RANK", "SLURM_STEP_NUM_TASKS"}) or "SLURM_PROCID" not in environment:
        return None
    return f"this is one process in a SLURM job of {tasks} tasks: start it with srun to use them all"


@contextmanager
def group(device: str = "auto", patience: float = MEETING_SECONDS) -> Iterator[World]:
    """Within the context this process is a member of its group; alone where no launcher announces one.

    `device`: auto (CUDA where there is one), cpu or cuda. Backend: nccl on CUDA, gloo on the CPU. `patience`: seconds.
    Nothing of it is left behind: neither environment variables nor the current CUDA device nor the group.

    Raises:
        UserError: no GPU, processes that do not arrive, or one that is lost later.
    """
    launch = launched(os.environ)
    cuda = device == "cuda" or (device == "auto" and torch.cuda.is_available())
    if cuda and launch.local_rank >= torch.cuda.device_count():
        raise UserError(
            f"device=cuda needs a GPU for each of this host's processes, found {torch.cuda.device_count()}: set device=cpu"
        )
    own = torch.device("cuda", launch.local_rank) if cuda else torch.device("cpu")
    with torch.cuda.device(own) if cuda else nullcontext():
        joined = launch.size > 1 and not dist.is_initialized()
        if joined:
            _join(launch, "nccl" if cuda else "gloo", patience)
        try:
            yield World(launch.rank, launch.size, own, launch.local_size)
        except SharedError:
            if launch.rank:
                sys.exit(2)
            raise
        except RuntimeError as error:
            if isinstance(error, dist.DistError) or (launch.size > 1 and "gloo" in str(error)):
                raise UserError(_lost(launch, error)) from error
            raise
        finally:
            if joined and dist.is_initialized():
                dist.destroy_process_group()


def _join(launch: Launch, backend: str, patience: float) -> None:
    """Meet the other processes and make the group of all, or raise UserError after `patience` seconds."""
    where = f"{launch.address}:{launch.port}"
    try:
        store = _meet(launch, patience)
        limit = timedelta(seconds=patience)
        dist.init_process_group(backend, store=store, rank=launch.rank, world_size=launch.size, timeout=limit)
    except RuntimeError as error:  # dist.DistError, or gloo's
        raise UserError(
            f"the {launch.size} processes of this run must meet at {where} and stay, rank {launch.rank} failed:"
            f" {_first_line(error)}; see the messages of the others, or set MASTER_PORT to a free port"
        ) from error
    set_timeout = getattr(dist, "set_timeout", None) or dist.distributed_c10d._set_pg_timeout  # its older name
    set_timeout(COLLECTIVE_TIMEOUT)


def _meet(launch: Launch, patience: float) -> dist.Store:
    """The store in which every process has said that it is there."""
    deadline = time.monotonic() + patience
    where = f"the {launch.size} processes of this run must meet at {launch.address}:{launch.port} within {patience:g} s"
    advice = "start all of them with one torchrun or srun, or one alone without RANK and WORLD_SIZE"
    torchrun = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"  # then torchrun's own process listens, not rank 0
    server = launch.rank == 0 and not torchrun
    while not server and not _listens(launch.address, launch.port):  # torch would wait as well, but print pages
        if time.monotonic() > deadline:
            raise UserError(f"{where}, rank {launch.rank} found nobody listening there (rank 0 should); {advice}")
        time.sleep(0.2)
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    store = dist.PrefixStore(f"{attempt}/{next(_groups)}", _store(launch, server, patience))
    store.set(f"rank {launch.rank}", socket.gethostname())
    if store.add("arrived", 1) == launch.size:
        store.set("complete", "yes")
    while not store.check(["complete"]):
        if time.monotonic() > deadline:
            missing = [str(rank) for rank in range(launch.size) if not store.check([f"rank {rank}"])]
            raise UserError(f"{where}, rank {launch.rank} waited in vain for rank {', '.join(missing)}; {advice}")
        time.sleep(0.05)
    return store


@lru_cache(maxsize=1)
def _store(launch: Launch, server: bool, patience: float) -> dist.Store:
    """Kept until the process ends: others may already be at the next run of a sweep, or still end the last one."""
    limit = timedelta(seconds=patience)
    return dist.TCPStore(launch.address, launch.port, launch.size, server, timeout=limit, wait_for_workers=False)


def _listens(address: str, port: int) -> bool:
    with suppress(OSError), socket.create_connection((address, port), timeout=5):
        return True
    return False


def _lost(launch: Launch, error: RuntimeError) -> str:
    return (
        f"rank {launch.rank} lost another process of this run: that process has printed why, or was killed, perhaps for lack of"
        f" memory; the same command continues the run ({_first_line(error)})"
    )


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0][:200] if str(error) else type(error).__name__


def _number(environment: Mapping[str, str], name: str, default: int | None = None) -> int:
    text = environment.get(name, "" if default is None else str(default))
    if not text.isdecimal():
        raise UserError(f"the environment variable {name} must be a whole number, got {text!r}: start with torchrun or srun")
    return int(text)


def _tasks_here(tasks_per_node: str, node: int) -> int:
    """The number of tasks on a node, from SLURM's list such as 4(x2),3: four on each of two nodes, three on the third."""
    counts: list[int] = []
    for count, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", tasks_per_node):
        counts += [int(count)] * int(times or 1)
    return counts[node] if node < len(counts) else 1


def _first_host(nodes: str) -> str:
    """The first host of a SLURM node list such as gpu[3-6]: where rank 0 runs."""
    try:
        listed = subprocess.run(
            ["scontrol", "show", "hostnames", nodes], capture_output=True, text=True, check=True, timeout=30
        )
        return listed.stdout.split()[0]
    except (OSError, subprocess.SubprocessError, IndexError) as error:
        raise UserError(f"MASTER_ADDR must name rank 0's host, SLURM's node list {nodes!r} does not tell it: set it") from error


@contextmanager
def failing_together(world: World) -> Iterator[None]:
    """A UserError of one process within the context is raised by all of them at its end, where they wait for each other.

    So no process goes on alone, and the message is printed once. All processes must enter the context.
    """
    failure: UserError | None = None
    try:
        yield
    except UserError as error:
        if not world.parallel:
            raise
        failure = error
    first = next((message for message in all_gather(failure and str(failure), world) if message is not None), None)
    if first is not None:
        raise SharedError(first) from failure


def all_reduce(values: torch.Tensor, world: World) -> torch.Tensor:
    """The sum of every process's tensor, on every process: in place, and returned. `values` on world.device, of one shape."""
    if world.parallel:
        dist.all_reduce(values)
    return values


def any_rank(flag: bool, world: World) -> bool:
    """Whether the flag is set on at least one process; every process gets the same answer."""
    return bool(all_reduce(torch.tensor(int(flag), device=world.device), world).item()) if world.parallel else flag


def all_gather(value: Any, world: World) -> list[Any]:
    """Every process's value, in rank order, on every process. Values are any that can be pickled."""
    if not world.parallel:
        return [value]
    values: list[Any] = [None] * world.size
    dist.all_gather_object(values, value)
    return values


def barrier(world: World) -> None:
    """Wait until every process is here."""
    if world.parallel:
        dist.barrier()


def broadcast(tensors: dict[str, torch.Tensor], world: World) -> None:
    """Overwrite every process's tensors, in place, with rank 0's."""
    if world.parallel:
        for tensor in tensors.values():
            dist.broadcast(tensor, 0)
