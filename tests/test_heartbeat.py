"""A process that is lost ends the others, also those that are busy by themselves; a busy process is not lost."""

import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import environment

# One process of a group of two that does what its argument says. Being busy is a loop that never gives up the interpreter by
# itself and calls no collective.
MEMBER = """
import os, sys, time
from contextlib import suppress
from pathlib import Path
from gch_bench import distributed
from gch_bench.apps.cli import reported
from gch_bench.errors import UserError
from gch_bench.stopping import Stopped

victim, what, silence = int(sys.argv[1]), sys.argv[2], float(sys.argv[3])

def busy(seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass

with suppress(Stopped), reported(), distributed.group("cpu", silence=silence) as world:
    distributed.barrier(world)
    Path(f"{world.rank}.ready").write_text(str(os.getpid()))
    if what == "busy":
        busy(3 * silence if world.rank == victim else 0)
    elif what == "early":
        busy(0 if world.rank == victim else 3 * silence)
    elif what == "mistake" and world.rank == victim:
        raise UserError("the disk is full")
    elif what == "signal":  # to both; the other notes it at the end of a step
        busy(0 if world.rank == victim else silence / 2)
        raise Stopped(10, Path("run"))
    else:
        busy(60)
    if what != "early":
        distributed.barrier(world)
"""


def members(folder: Path, victim: int, what: str, silence: float) -> list[subprocess.Popen]:
    (folder / "member.py").write_text(MEMBER)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return [
        subprocess.Popen(
            [sys.executable, "member.py", str(victim), what, str(silence)],
            cwd=folder,
            env={
                **environment(), "RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "LOCAL_RANK": str(rank),
                "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
            },
            stderr=subprocess.PIPE, text=True,
        )
        for rank in (0, 1)
    ]  # fmt: skip


def ready(folder: Path) -> None:
    deadline = time.monotonic() + 60
    while not all((folder / f"{rank}.ready").exists() for rank in (0, 1)):
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_lost_process_ends_one_that_is_busy(victim: int, how: signal.Signals, tmp_path: Path) -> None:
    """Killed: its connection breaks. Stopped, as on a host that hangs: it is silent for 3 s (45 s by default)."""
    processes = members(tmp_path, victim, "hang", silence=3)
    try:
        ready(tmp_path)
        processes[victim].send_signal(how)
        started = time.monotonic()
        _, errors = processes[1 - victim].communicate(timeout=30)
        assert time.monotonic() - started < 10
        assert processes[1 - victim].returncode == 2
        (line,) = errors.splitlines()
        assert line.startswith(f"error: rank {1 - victim} lost another process of this run: rank {victim} ")
        assert ("was killed" if how == signal.SIGKILL else "gave no sign of life for 3 s") in line
    finally:
        for process in processes:
            process.kill()
            process.wait()


@pytest.mark.parametrize("victim", [0, 1])
def test_the_error_of_a_process_is_shown_by_the_other(victim: int, tmp_path: Path) -> None:
    processes = members(tmp_path, victim, "mistake", silence=3)
    errors = [process.communicate(timeout=60)[1].splitlines() for process in processes]
    assert [process.returncode for process in processes] == [2, 2]
    assert errors[victim] == ["error: the disk is full"]
    (line,) = errors[1 - victim]
    assert line.startswith(f"error: rank {1 - victim} lost another process")
    assert f"rank {victim} failed: the disk is full" in line


@pytest.mark.parametrize("what", ["busy", "early"])
def test_a_busy_process_is_alive(what: str, tmp_path: Path) -> None:
    """Busy for three times the silence, or still at work when the other has ended in peace."""
    processes = members(tmp_path, 1, what, silence=1)
    errors = [process.communicate(timeout=60)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors
    assert errors == ["", ""]


def test_a_signal_to_all_leaves_each_time_to_end_its_step(tmp_path: Path) -> None:
    processes = members(tmp_path, 0, "signal", silence=4)
    errors = [process.communicate(timeout=60)[1] for process in processes]
    assert errors == ["", ""]
    assert [process.returncode for process in processes] == [0, 0]
