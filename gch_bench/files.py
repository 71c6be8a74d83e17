"""Writing files so that readers see them whole or not at all, and locking a folder for one process."""

import contextlib
import errno
import fcntl
import json
import os
import re
import socket
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

import pandas as pd

from gch_bench.errors import UserError


def slug(name: str) -> str:
    """The name with everything but letters, digits, `_` and `.` replaced by `-`, for file names."""
    return re.sub(r"[^\w.]+", "-", name).strip("-")


LOCK = ".lock"  # the file by which a process locks a folder, see `locked`
NO_LOCK = -1
ELSEWHERE = "choose another folder with output="


@contextlib.contextmanager
def writing(path: Path, elsewhere: str = ELSEWHERE) -> Iterator[None]:
    """Within the context an OSError, such as a full disk, becomes a UserError that says that `path` cannot be written.

    `elsewhere` ends the message: it says how to choose another place.
    """
    try:
        yield
    except OSError as error:
        reason, remedy = error.strerror or str(error), ""
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            remedy = "make it writable or "
        elif error.errno in (errno.ENOSPC, errno.EDQUOT):
            remedy = "free space there or "
        raise UserError(f"cannot write {path}: {reason}; {remedy}{elsewhere}") from error


@contextlib.contextmanager
def making(folder: Path, elsewhere: str = ELSEWHERE) -> Iterator[None]:
    """Make `folder` with its parents. At the end of the context those that are new and still empty are removed again.

    Raises:
        UserError: the folder cannot be made or is not writable.
    """
    new = [each for each in (folder, *folder.parents) if not each.exists()]
    try:
        with writing(folder, elsewhere):
            folder.mkdir(parents=True, exist_ok=True)
            if not os.access(folder, os.W_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        yield
    finally:
        with contextlib.suppress(OSError):  # rmdir of a folder that is not empty fails and ends the loop
            for each in new:
                each.rmdir()


def write_atomic(path: Path, write: Callable[[BinaryIO], Any], elsewhere: str = ELSEWHERE, durable: bool = True) -> None:
    """Call `write(file)` on a temporary file, fsync it and rename it to `path`: readers see the old content or all of the new.

    Args:
        elsewhere: the end of an error's message, which says how to choose another place.
        durable: False leaves out the fsync. Then a killed process still leaves no half-written file, but a power failure may.

    Raises:
        UserError: the folder cannot be written or the disk is full. The old content is kept and the temporary file removed.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with writing(path, elsewhere):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(temporary, "wb") as file:
                write(file)
                file.flush()
                if durable:
                    os.fsync(file.fileno())
            os.replace(temporary, path)
            if not durable:
                return
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)  # makes the rename itself survive a power failure
            finally:
                os.close(folder)
        finally:
            temporary.unlink(missing_ok=True)


def remove_temporary(folder: Path) -> None:
    """Remove the temporary files that killed processes left anywhere in the folder, which the caller has locked."""
    for path in folder.rglob(".*.[0-9]*.tmp"):
        path.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    text = json.dumps(value, indent=1, default=str) + "\n"
    write_atomic(path, lambda file: file.write(text.encode()))


def write_csv(path: Path, table: pd.DataFrame) -> None:
    write_atomic(path, lambda file: table.to_csv(file, index=False))


def write_parquet(path: Path, table: pd.DataFrame) -> None:
    write_atomic(path, lambda file: table.to_parquet(file, index=False))


def read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
        if not isinstance(content, dict):
            raise ValueError("it holds no mapping")
        return content
    except FileNotFoundError as error:
        raise UserError(f"{path.parent} is no run folder: it has no {path.name}") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}; move it away to start afresh") from error


@contextlib.contextmanager
def locked(folder: Path, name: str, patience: float = 0.0, waiting: Callable[[], None] = lambda: None) -> Iterator[bool]:
    """Lock the existing `folder` for this process until the context ends or the process dies, whatever it dies of.

    The lock is an flock on the file LOCK in the folder, in which the holder writes who it is. The kernel frees it when the
    process dies. Where the file cannot be made or the file system has no locks, nothing is locked, and the context gives False.

    Args:
        name: how the user named the folder (output, DEST), for the message.
        patience: seconds to wait for a process that has locked the folder.
        waiting: called several times a second while this process waits; it may raise to end that.

    Raises:
        UserError: another process has locked the folder, or there is no such folder.
    """
    try:
        os.scandir(folder).close()
    except OSError as error:
        raise UserError(f"{name} must be a folder that can be read, got {folder} ({error.strerror})") from error
    path, deadline = folder / LOCK, time.monotonic() + patience
    descriptor = _lock(path)
    while descriptor is None:
        if time.monotonic() >= deadline:
            holder = ""
            with contextlib.suppress(OSError):
                holder = f" ({path.read_text().strip()})"
            raise UserError(f"another run is at work in {folder}{holder}: wait for its end or stop it")
        waiting()
        time.sleep(0.2)
        descriptor = _lock(path)
    try:
        yield descriptor != NO_LOCK
    finally:
        if descriptor != NO_LOCK:
            with contextlib.suppress(OSError):
                path.unlink()
            os.close(descriptor)


def _lock(path: Path) -> int | None:
    """The descriptor of the file at `path`, made and locked by this process, or NO_LOCK; None if another one has the lock."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError:  # a folder that cannot be written
        return NO_LOCK
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except OSError:  # a file system without locks
        os.close(descriptor)
        with contextlib.suppress(OSError):
            path.unlink()
        return NO_LOCK
    try:
        # The process that held the lock may have removed the file since it was opened here.
        if os.path.samestat(os.fstat(descriptor), os.stat(path)):
            started = datetime.now(UTC).isoformat(timespec="seconds")
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"host {socket.gethostname()}, pid {os.getpid()}, since {started}\n".encode(), 0)
            return descriptor
    except FileNotFoundError:
        pass
    except OSError:  # a full disk
        return descriptor
    os.close(descriptor)
    return None
