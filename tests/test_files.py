"""A folder is locked for one process, and the lock ends with the process, whatever it dies of."""

import errno
import fcntl
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import TINY, environment

from gch_bench import files
from gch_bench.errors import UserError
from gch_bench.results import runfacts

HOLD = """
import sys, time
from pathlib import Path
from gch_bench.files import locked
with locked(Path(sys.argv[1]), "output"):
    print("locked", flush=True)
    time.sleep(float(sys.argv[2]))
"""


def holder(folder: Path, seconds: float) -> subprocess.Popen:
    command = [sys.executable, "-c", HOLD, str(folder), str(seconds)]
    process = subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "locked\n"
    return process


def test_another_process_is_refused_until_the_holder_dies(tmp_path: Path) -> None:
    process = holder(tmp_path, 60)
    try:
        with pytest.raises(UserError) as refusal, files.locked(tmp_path, "output"):
            pass
        assert all(part in str(refusal.value) for part in (str(tmp_path), f"pid {process.pid}", "host ", "since 2"))
    finally:
        process.kill()
        process.wait()
    assert (tmp_path / ".lock").exists(), "a killed process leaves its note"
    with files.locked(tmp_path, "output"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_waiting_for_the_end_of_another(tmp_path: Path) -> None:
    process = holder(tmp_path, 1.5)
    with pytest.raises(UserError), files.locked(tmp_path, "output", patience=0.3):
        pass
    with files.locked(tmp_path, "output", patience=30):
        assert process.wait(timeout=5) == 0


def test_of_many_threads_one_at_a_time(tmp_path: Path) -> None:
    """Each removes its lock file at the end: who waits for the removed file must not think that it has the lock."""
    inside, most, done = [0], [0], [0]

    def work() -> None:
        for _ in range(3):
            with files.locked(tmp_path, "output", patience=60):
                inside[0] += 1
                most[0] = max(most[0], inside[0])
                time.sleep(0.002)
                inside[0] -= 1
                done[0] += 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (most[0], done[0]) == (1, 12)


def test_a_lock_file_that_the_last_holder_removes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between our opening it and our locking it: a lock on the removed file would be no lock, because others lock a new one."""
    opened = os.open

    def removed(path: Path, *arguments: int) -> int:
        descriptor = opened(path, *arguments)
        if Path(path).name == ".lock":
            Path(path).unlink()
        return descriptor

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", removed)
        with pytest.raises(UserError, match="another run"), files.locked(tmp_path, "output"):
            pass
    with files.locked(tmp_path, "output"):
        pass


def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: int) -> None:
        raise OSError(errno.ENOSYS, "no locks")

    with files.locked(tmp_path, "output") as alone:
        assert alone
    monkeypatch.setattr(fcntl, "flock", none)
    with files.locked(tmp_path, "output") as alone:
        assert not alone
    assert list(tmp_path.iterdir()) == []


def test_a_second_job_on_a_run_folder_is_refused(
    tmp_path: Path, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runfacts, "LOCK_SECONDS", 0.3)
    folder = tmp_path / "run"
    folder.mkdir()
    process = holder(folder, 60)
    try:
        message = refused(*TINY, "corruptions=none", "recipe.epochs=1", f"output={folder}")
    finally:
        process.kill()
        process.wait()
    assert f"another run is at work in {folder} (host " in message
    assert [path.name for path in folder.iterdir()] == [".lock"]
