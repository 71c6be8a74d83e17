"""Process groups. `group` joins the processes that torchrun or srun started. The functions at the end of this file (all_reduce,
all_gather, barrier, broadcast, ...) are the collectives: all processes must call them. With one process they do nothing.

Every wait has an end. All processes must meet within `MEETING_SECONDS`. A process that dies, leaves with an error or falls
silent for `SILENCE_SECONDS` ends all others with one line, whatever they are doing (heartbeat.py). A collective that a living
process does not call fails after `COLLECTIVE_TIMEOUT`.
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
from gch_bench.heartbeat import Heartbeat, lost_line
from gch_bench.stopping import Stopped

MEETING_SECONDS = 60.0  # the time in which all processes must meet
SILENCE_SECONDS = 45.0  # without a sign of life, after which a process is lost
COLLECTIVE_TIMEOUT = timedelta(hours=1)  # long, because rank 0 may be downloading the data while the others wait

# A process may join several groups, one after another (a sweep). Their numbers keep their keys in the store apart.
_groups = itertools.count()


class World(NamedTuple):
    """This process as a member of its process group."""

    rank: int  # the number of this process, from 0
    size: int  # the number of processes in the group
    device: torch.device  # the device that this process computes on
    local_size: int = 1  # the number of processes of the group on this host

    @property
    def main(self) -> bool:
        return self.rank == 0

    @property
    def parallel(self) -> bool:
        return self.size > 1


class SharedError(UserError):
    """A UserError that all processes of the group raise together. Only rank 0 prints it."""


class Launch(NamedTuple):
    """What the launcher (torchrun or srun) says about this process."""

    rank: int  # the number of this process, from 0
    size: int  # the number of processes
    local_rank: int  # the number of this process among those on this host, from 0
    local_size: int  # the number of processes on this host
    address: str  # where rank 0 listens, so that all processes can meet
    port: int


CONTINUE = "the same command continues the run"
ALONE = Launch(0, 1, 0, 1, "", 0)


def launched(environment: Mapping[str, str]) -> Launch:
    """Read what torchrun (RANK, WORLD_SIZE, ...) or srun (SLURM_STEP_NUM_TASKS, ...) says in the environment of its processes.

    Under SLURM the number of tasks of the *step* counts, which srun starts. SLURM_NTASKS does not: it is the number of tasks of
    the job, also in an sbatch script, which is one process, and a program that the script starts without srun is alone.

    Raises:
        UserError: a variable is missing or no number, or RANK lies outside 0..WORLD_SIZE-1.
    """
    if "RANK" in environment:
        size = _number(environment, "WORLD_SIZE", 1)
        rank = _number(environment, "RANK")
        local = _number(environment, "LOCAL_RANK", 0), _number(environment, "LOCAL_WORLD_SIZE", 1)
        if size == 1:
            return ALONE._replace(local_rank=local[0])
        if not 0 <= rank < size:
            raise UserError(f"RANK must be in 0..WORLD_SIZE-1 = 0..{size - 1}, got {rank}: start with torchrun or srun")
        port = _number(environment, "MASTER_PORT")
        if not environment.get("MASTER_ADDR"):
            raise UserError("the environment variable MASTER_ADDR must name rank 0's host: start with torchrun or srun")
        return Launch(rank, size, *local, environment["MASTER_ADDR"], port)
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
        port=_number(environment, "MASTER_PORT", 20000 + (job + 101 * step) % 20000),  # each step has its own port
    )


def unused_tasks(environment: Mapping[str, str]) -> str | None:
    """A warning if SLURM granted the job several tasks but this process was started without srun and is alone; else None."""
    tasks = environment.get("SLURM_NTASKS", "1")
    if tasks == "1" or not environment.keys().isdisjoint({"RANK", "SLURM_STEP_NUM_TASKS"}) or "SLURM_PROCID" not in environment:
        return None
    return f"this is one process in a SLURM job of {tasks} tasks: start it with srun to use them all"


@contextmanager
def group(device: str = "auto", patience: float = MEETING_SECONDS, silence: float = SILENCE_SECONDS) -> Iterator[World]:
    """Within the context this process is a member of the group that its launcher describes; without a launcher it is alone.

    The backend is nccl on CUDA and gloo on the CPU. Afterwards the group is destroyed and the current CUDA device restored;
    environment variables are never changed.

    Args:
        device: auto (CUDA where there is a GPU), cpu or cuda.
        patience: seconds in which all processes must meet.
        silence: seconds without a sign of life after which a process is lost.

    Raises:
        UserError: a GPU is missing, a process does not arrive, or one is lost later. Where this process cannot raise, because
            it hangs or is busy, it prints the line and exits with code 2 within seconds of the loss.
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
        heartbeat = _join(launch, "nccl" if cuda else "gloo", patience, silence) if joined else None
        failure, stopped = None, False  # what the others are told, and whether it was a signal
        try:
            yield World(launch.rank, launch.size, own, launch.local_size)
        except SharedError:
            if launch.rank:
                sys.exit(2)
            raise
        except BaseException as error:
            gloo = isinstance(error, RuntimeError) and launch.size > 1 and "gloo" in str(error)
            if gloo or isinstance(error, dist.DistError):
                known = heartbeat.failure() if heartbeat else None
                raise UserError(lost_line(launch.rank, known, f"{CONTINUE} ({_first_line(error)})")) from error
            stopped = isinstance(error, Stopped)
            failure = str(error) if stopped or isinstance(error, UserError) else f"{type(error).__name__}: {_first_line(error)}"
            raise
        finally:
            if heartbeat:
                heartbeat.leave(failure, stopped)
            if joined and dist.is_initialized():
                dist.destroy_process_group()


def _join(launch: Launch, backend: str, patience: float, silence: float) -> Heartbeat:
    """Meet the other processes and join them in a group, or raise UserError after `patience` seconds."""
    where = f"{launch.address}:{launch.port}"
    try:
        store = _meet(launch, patience)
        peers = _connect(launch, store, patience)
        limit = timedelta(seconds=patience)
        dist.init_process_group(backend, store=store, rank=launch.rank, world_size=launch.size, timeout=limit)
    except (RuntimeError, OSError) as error:  # dist.DistError, gloo's, or a socket's
        raise UserError(
            f"the {launch.size} processes of this run must meet at {where} and stay, rank {launch.rank} failed:"
            f" {_first_line(error)}; see the messages of the others, or set MASTER_PORT to a free port"
        ) from error
    set_timeout = getattr(dist, "set_timeout", None) or dist.distributed_c10d._set_pg_timeout  # the name in older torch
    set_timeout(COLLECTIVE_TIMEOUT)
    return Heartbeat(launch.rank, peers, silence, CONTINUE)


def _connect(launch: Launch, store: dist.Store, patience: float) -> dict[int, socket.socket]:
    """Connect rank 0 with each other process: rank -> socket. Raises OSError if a process does not connect in time."""
    if launch.rank:
        peer = socket.create_connection((launch.address, int(store.get("heartbeat"))), timeout=patience)
        peer.sendall(launch.rank.to_bytes(4))
        return {0: peer}
    peers: dict[int, socket.socket] = {}
    with socket.create_server(("", 0), backlog=launch.size) as server:
        server.settimeout(patience)
        store.set("heartbeat", str(server.getsockname()[1]))
        while len(peers) < launch.size - 1:
            peer, _ = server.accept()
            peer.settimeout(patience)
            peers[int.from_bytes(peer.recv(4, socket.MSG_WAITALL))] = peer
    return peers


def _meet(launch: Launch, patience: float) -> dist.Store:
    """The key-value store of the group, after every process has entered its arrival there.

    Raises:
        UserError: a process did not arrive within `patience` seconds; the message names its rank.
    """
    deadline = time.monotonic() + patience
    where = f"the {launch.size} processes of this run must meet at {launch.address}:{launch.port} within {patience:g} s"
    advice = "start all of them with one torchrun or srun, or one alone without RANK and WORLD_SIZE"
    torchrun = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"  # True: torchrun's own process listens, not rank 0
    server = launch.rank == 0 and not torchrun
    while not server and not _listens(launch.address, launch.port):  # torch would wait, too, but print pages of warnings
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
    """The connection to the store, kept until the process ends.

    Other processes may already be at the next run of a sweep, or may still be ending the last one.
    """
    limit = timedelta(seconds=patience)
    return dist.TCPStore(launch.address, launch.port, launch.size, server, timeout=limit, wait_for_workers=False)


def _listens(address: str, port: int) -> bool:
    with suppress(OSError), socket.create_connection((address, port), timeout=5):
        return True
    return False


def _first_line(error: BaseException) -> str:
    return str(error).splitlines()[0][:200] if str(error) else type(error).__name__


def _number(environment: Mapping[str, str], name: str, default: int | None = None) -> int:
    text = environment.get(name, "" if default is None else str(default))
    if not text.isdecimal():
        raise UserError(f"the environment variable {name} must be a whole number, got {text!r}: start with torchrun or srun")
    return int(text)


def _tasks_here(tasks_per_node: str, node: int) -> int:
    """The number of tasks on the node of index `node`. SLURM's list 4(x2),3 means 4 on each of two nodes and 3 on the third."""
    counts: list[int] = []
    for count, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", tasks_per_node):
        counts += [int(count)] * int(times or 1)
    return counts[node] if node < len(counts) else 1


def _first_host(nodes: str) -> str:
    """The first host of a SLURM node list such as gpu[3-6]. Rank 0 runs there."""
    try:
        listed = subprocess.run(
            ["scontrol", "show", "hostnames", nodes], capture_output=True, text=True, check=True, timeout=30
        )
        return listed.stdout.split()[0]
    except (OSError, subprocess.SubprocessError, IndexError) as error:
        raise UserError(f"MASTER_ADDR must name rank 0's host, SLURM's node list {nodes!r} does not tell it: set it") from error


@contextmanager
def failing_together(world: World) -> Iterator[None]:
    """If one process raises UserError within the context, all processes raise it at the end, as a SharedError.

    The processes wait for each other at the end of the context. So none goes on alone, and the message is printed once. All
    processes must enter the context.
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
    """Overwrite `values` by its sum over all processes, and return it.

    The tensor must lie on world.device and have the same shape on every process.
    """
    if world.parallel:
        dist.all_reduce(values)
    return values


def any_rank(flag: bool, world: World) -> bool:
    """Whether the flag is true on at least one process. Every process gets the same answer."""
    return bool(all_reduce(torch.tensor(int(flag), device=world.device), world).item()) if world.parallel else flag


def largest(values: list[int], world: World) -> list[int]:
    """For each place in the list the largest value of all processes. The list must be equally long on every process."""
    if not world.parallel:
        return values
    tensor = torch.tensor(values, device=world.device)
    dist.all_reduce(tensor, dist.ReduceOp.MAX)
    return [int(value) for value in tensor.tolist()]


def all_gather(value: Any, world: World) -> list[Any]:
    """The values of all processes, in the order of ranks, on every process. Any value that can be pickled is allowed."""
    if not world.parallel:
        return [value]
    values: list[Any] = [None] * world.size
    dist.all_gather_object(values, value)
    return values


def barrier(world: World) -> None:
    """Wait until every process has called this."""
    if world.parallel:
        dist.barrier()


def broadcast(tensors: dict[str, torch.Tensor], world: World) -> None:
    """Overwrite the tensors of every process, in place, by those of rank 0."""
    if world.parallel:
        for tensor in tensors.values():
            dist.broadcast(tensor, 0)
