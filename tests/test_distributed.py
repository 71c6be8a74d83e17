"""What a launcher's environment means, and that no process waits for another without an end."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import environment

from gch_bench.distributed import ALONE, Launch, World, failing_together, group, launched, unused_tasks
from gch_bench.errors import UserError

# As a real one-node SLURM gives them, sbatch --ntasks=2: to the script itself, and to the second task of an srun in it.
BATCH = {
    "SLURM_JOB_ID": "7", "SLURM_LOCALID": "0", "SLURM_NNODES": "1", "SLURM_NODEID": "0", "SLURM_NODELIST": "node1",
    "SLURM_NPROCS": "2", "SLURM_NTASKS": "2", "SLURM_PROCID": "0", "SLURM_TASKS_PER_NODE": "2", "SLURM_CPUS_ON_NODE": "2",
}  # fmt: skip
STEP = {
    **BATCH, "SLURM_LOCALID": "1", "SLURM_PROCID": "1", "SLURM_STEP_ID": "0", "SLURM_STEP_NODELIST": "node1",
    "SLURM_STEP_NUM_NODES": "1", "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_TASKS_PER_NODE": "2", "MASTER_ADDR": "node1",
}  # fmt: skip
ALLOCATION = {name: value for name, value in BATCH.items() if name not in ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID")}
ONE_TASK = {**STEP, "SLURM_NTASKS": "1", "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}
TORCHRUN = {
    "RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "node0", "MASTER_PORT": "29500",
}  # fmt: skip


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, ALONE),
        (BATCH, ALONE),  # without srun: one process, whatever the job's tasks
        (ALLOCATION, ALONE),  # the shell of salloc
        (ONE_TASK, ALONE),
        (STEP, Launch(1, 2, 1, 2, "node1", 20007)),
        ({**STEP, "SLURM_STEP_ID": "2"}, Launch(1, 2, 1, 2, "node1", 20209)),  # two steps at once do not meet each other
        ({**STEP, "MASTER_PORT": "5"}, Launch(1, 2, 1, 2, "node1", 5)),
        (TORCHRUN, Launch(3, 4, 1, 2, "node0", 29500)),
        ({**BATCH, **TORCHRUN}, Launch(3, 4, 1, 2, "node0", 29500)),  # torchrun in an sbatch
        ({"RANK": "0", "WORLD_SIZE": "1"}, ALONE),
    ],
)
def test_launched(given: dict[str, str], expected: Launch) -> None:
    assert launched(given) == expected


@pytest.mark.parametrize(("node", "tasks"), [(0, 4), (1, 4), (2, 3)])
def test_tasks_of_each_node(node: int, tasks: int) -> None:
    step = {**STEP, "SLURM_STEP_NUM_TASKS": "11", "SLURM_STEP_TASKS_PER_NODE": "4(x2),3", "SLURM_NODEID": str(node)}
    assert launched(step).local_size == tasks


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ({"RANK": "first", "WORLD_SIZE": "2"}, "RANK"),
        ({"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "node0"}, "MASTER_PORT"),
        ({"RANK": "0", "WORLD_SIZE": "2", "MASTER_PORT": "29500"}, "MASTER_ADDR"),
        ({**TORCHRUN, "RANK": "4"}, "RANK"),
    ],
)
def test_malformed_environment(given: dict[str, str], name: str) -> None:
    with pytest.raises(UserError, match=name):
        launched(given)


def test_unused_tasks() -> None:
    assert "2 tasks" in str(unused_tasks(BATCH))
    for given in ({}, STEP, ONE_TASK, ALLOCATION, {**BATCH, **TORCHRUN}, {**BATCH, "SLURM_NTASKS": "1"}):
        assert unused_tasks(given) is None


def test_alone() -> None:
    before = dict(os.environ)
    with group("cpu") as world:
        assert world == World(0, 1, torch.device("cpu"))
        assert not torch.distributed.is_initialized()
    assert dict(os.environ) == before
    with pytest.raises(UserError, match="mine"), failing_together(world):
        raise UserError("mine")


# One process of a group of two. Its argument says what it does.
MEMBER = """
import os, sys, time
import torch
from gch_bench import distributed
from gch_bench.apps.cli import reported
from gch_bench.errors import UserError

what, patience = sys.argv[1], float(sys.argv[2])
before = dict(os.environ)
with reported():
    for sweep in range(2):
        with distributed.group("cpu", patience) as world:
            assert (world.size, world.local_size) == (2, 2)
            with distributed.failing_together(world):
                if what == "mistake on one" and world.rank == 1:
                    raise UserError("data.root is not there")
                if what == "mistake on both":
                    raise UserError(f"rank {world.rank} found nothing")
            if what == "killed" and world.rank == 0:
                os._exit(9)
            if what == "leaves" and world.rank == 0:
                raise UserError("disk full")
            if what == "slow":
                time.sleep(1.5 * patience * world.rank)  # longer than they may take to meet
            assert distributed.all_gather(world.rank, world) == [0, 1]
            assert distributed.all_reduce(torch.tensor(world.rank + 1), world).item() == 3
            assert distributed.any_rank(world.rank == 1, world)
            assert not distributed.any_rank(False, world)
            tensor = torch.tensor([float(world.rank)])
            distributed.broadcast({"a": tensor}, world)
            assert tensor.item() == 0
            distributed.barrier(world)
        assert not torch.distributed.is_initialized()
    assert dict(os.environ) == before
"""


def members(what: str, ranks: tuple[int, ...], patience: float, tmp_path: Path) -> tuple[list[int], list[list[str]], float]:
    """Run these ranks of a group of two as srun would start them: exit codes, lines on stderr, seconds in all."""
    script = tmp_path / "member.py"
    script.write_text(MEMBER)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = time.monotonic()
    processes = [
        subprocess.Popen(
            [sys.executable, str(script), what, str(patience)],
            env={
                **environment(), **STEP, "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank),
                "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
            },
            stderr=subprocess.PIPE, text=True,
        )
        for rank in ranks
    ]  # fmt: skip
    errors = [process.communicate(timeout=100)[1].splitlines() for process in processes]
    return [process.returncode for process in processes], errors, time.monotonic() - started


@pytest.mark.parametrize("what", ["work", "slow"])
def test_two_groups_one_after_another(what: str, tmp_path: Path) -> None:
    codes, errors, _ = members(what, (0, 1), 4 if what == "slow" else 60, tmp_path)
    assert codes == [0, 0], errors


@pytest.mark.parametrize(("here", "missing"), [(0, "rank 1"), (1, "rank 0")])
def test_a_missing_process(here: int, missing: str, tmp_path: Path) -> None:
    """One line and exit code 2 soon after the time to meet is over (2 s here, a minute by default)."""
    codes, errors, seconds = members("work", (here,), 2, tmp_path)
    assert codes == [2]
    ((line,),) = errors
    assert line.startswith("error: the 2 processes of this run must meet at 127.0.0.1:")
    assert "within 2 s" in line
    assert missing in line
    assert "srun" in line
    assert seconds < 60


def test_a_mistake_of_one_process_ends_all(tmp_path: Path) -> None:
    """Printed once, by rank 0, although rank 1 made it."""
    codes, errors, _ = members("mistake on one", (0, 1), 60, tmp_path)
    assert codes == [2, 2]
    assert errors == [["error: data.root is not there"], []]


def test_a_mistake_of_all_processes_is_printed_once(tmp_path: Path) -> None:
    codes, errors, _ = members("mistake on both", (0, 1), 60, tmp_path)
    assert codes == [2, 2]
    assert errors == [["error: rank 0 found nothing"], []]


@pytest.mark.parametrize(("what", "first"), [("killed", 9), ("leaves", 2)])
def test_a_process_that_is_lost_ends_the_others(what: str, first: int, tmp_path: Path) -> None:
    """A member that waits for one that is gone does not wait for an hour, and prints no traceback."""
    codes, errors, _ = members(what, (0, 1), 60, tmp_path)
    assert codes == [first, 2]
    assert errors[0] == (["error: disk full"] if what == "leaves" else [])
    (line,) = errors[1]
    assert line.startswith("error: rank 1 lost another process of this run")
