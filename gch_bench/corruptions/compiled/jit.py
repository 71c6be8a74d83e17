"""Compile functions to machine code with Numba, and keep the code on disk for later processes.

A function is compiled when it is first called, which takes from a tenth of a second to a few seconds. The code is kept in the
user's cache folder (or in NUMBA_CACHE_DIR), below a name made from all that the code may depend on: Numba itself looks at a
function's own file only, and would go on using old code after a change in a function that is called or in a constant. Where
nothing can be kept, every process compiles for itself.

Numba releases Python's global lock (nogil), so threads run side by side. It neither reorders nor fuses operations on floats
(no fastmath), so that the result is the same on every processor.
"""

import contextlib
import hashlib
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO, Any, TypeVar

import numba
from numba.core.caching import FunctionCache

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

Function = TypeVar("Function", bound=Callable)
OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy"}
SOURCES = [file for folder in Path(__file__).parents[:2] for file in sorted(folder.glob("*.py"))]  # also of the constants


def cache_folder(sources: Iterable[Path]) -> str | None:
    """Where code that is compiled from the files ``sources`` is kept; None if this user has no cache folder."""
    of_code = {key for key in os.environ if key.startswith("NUMBA_")} - {"NUMBA_CACHE_DIR", "NUMBA_NUM_THREADS"}
    settings = [f"{key}={os.environ[key]}" for key in sorted(of_code)]  # bounds checks, ...
    digest = hashlib.sha256("\n".join([numba.__version__, *settings]).encode())
    for file in sources:
        digest.update(file.read_bytes())
    base = os.environ.get("NUMBA_CACHE_DIR") or os.environ.get("XDG_CACHE_HOME")
    if not base or not os.path.isabs(base):
        try:
            base = str(Path.home() / ".cache")
        except RuntimeError:  # neither HOME nor an entry in the list of users
            return None
    return os.path.join(base, "gch-bench", f"compiled-{digest.hexdigest()[:16]}")


CACHE = cache_folder(SOURCES)


def is_kept() -> bool:
    """Whether some code was compiled and kept before."""
    return CACHE is not None and any(Path(CACHE).rglob("*.nbc"))


class _Cache(FunctionCache):
    """Numba's cache of one function, which one process at a time writes, and which never makes a call fail."""

    def load_overload(self, *arguments: Any) -> Any:
        try:
            return super().load_overload(*arguments)
        except Exception:  # whatever pickle raises for a damaged file, after a crash of the machine say: start anew
            with contextlib.suppress(OSError):
                self.flush()
            return None

    def save_overload(self, *arguments: Any) -> None:
        """Without the lock, two processes that compile for different types could both write under the next free number.

        If another process has the lock, this code is not kept; a later process compiles it again.
        """
        with contextlib.suppress(OSError), open(os.path.join(self.cache_path, "lock"), "wb") as lock:  # a full disk, a quota
            _take(lock)
            super().save_overload(*arguments)


def _take(lock: IO[bytes]) -> None:
    """Lock an open file until it is closed. Raises OSError if another process has it."""
    if sys.platform == "win32":
        msvcrt.locking(lock.fileno(), msvcrt.LK_NBLCK, 1)
    else:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


def jit(function: Function) -> Function:
    """Decorate a function of numbers and NumPy arrays that is compiled by Numba."""
    compiled = numba.njit(**OPTIONS)(function)
    if CACHE is not None and compiled is not function:  # it is with NUMBA_DISABLE_JIT
        _keep(compiled, CACHE)
    return compiled


def _keep(compiled: Any, folder: str) -> None:
    """Keep the machine code of a function in a folder, if that can be written."""
    config: Any = numba.config
    before, config.CACHE_DIR = config.CACHE_DIR, folder
    try:
        cache = _Cache(compiled.py_func)
    except RuntimeError:
        return
    finally:
        config.CACHE_DIR = before
    if cache.cache_path.startswith(folder):  # Numba falls back on other folders, where old code would be taken for new
        compiled._cache = cache


def inline(function: Function) -> Function:
    """Decorate a small function that is copied into the compiled functions that call it."""
    return numba.njit(inline="always", **OPTIONS)(function)
