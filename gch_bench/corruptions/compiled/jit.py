"""Compile functions to machine code with Numba, and keep the code on disk for later processes.

A function is compiled when it is first called, which takes from a tenth of a second to a few seconds. The code is kept in the
user's cache folder, below a name made from the sources of this folder: Numba itself looks at a function's own file only, and
would go on using old code after a change in a file that the function calls.

Numba releases Python's global lock (nogil), so threads run side by side. It neither reorders nor fuses operations on floats
(no fastmath), so that the result is the same on every processor.
"""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numba

Function = TypeVar("Function", bound=Callable)
OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy"}


def _cache_folder() -> str:
    digest = hashlib.sha256(numba.__version__.encode())
    for path in [*sorted(Path(__file__).parent.glob("*.py")), *sorted(Path(__file__).parents[1].glob("*.py"))]:
        digest.update(path.read_bytes())
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return str(Path(base) / "gch-bench" / f"compiled-{digest.hexdigest()[:16]}")


CACHE = _cache_folder()


def jit(function: Function) -> Function:
    """Decorate a function of numbers and NumPy arrays that is compiled by Numba."""
    config: Any = numba.config
    before, config.CACHE_DIR = config.CACHE_DIR, config.CACHE_DIR or CACHE
    try:
        return numba.njit(cache=True, **OPTIONS)(function)
    except RuntimeError:  # no folder can be written: every process compiles for itself
        return numba.njit(**OPTIONS)(function)
    finally:
        config.CACHE_DIR = before


def inline(function: Function) -> Function:
    """Decorate a small function that is copied into the compiled functions that call it."""
    return numba.njit(inline="always", **OPTIONS)(function)
