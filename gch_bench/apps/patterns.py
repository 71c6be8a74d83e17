"""Patterns in `checkpoints` and `runs`, such as runs/x/checkpoints/*."""

import glob
import os
import re
from collections.abc import Callable

from gch_bench.errors import UserError

SUFFIXES = (".pt", ".pth", ".pth.tar", ".bin", ".ckpt", ".safetensors")  # of files of weights


def is_weights(path: str) -> bool:
    return path.endswith(SUFFIXES) and os.path.isfile(path)


def is_run(path: str) -> bool:
    return os.path.isfile(os.path.join(path, "run.json"))


def matches(name: str, entries: list[str], kind: str, fits: Callable[[str], bool]) -> list[str]:
    """The entries, each pattern replaced by the paths that match it and fit, in natural order of their names.

    A match that is listed already, in whatever words, is left out.

    Args:
        name: the field's name, for messages.
        kind: what the paths must be, in words.

    Raises:
        UserError: a pattern matches nothing of the kind.
    """
    found: list[str] = []
    listed = {resolved(entry) for entry in entries if not _is_pattern(entry)}
    for entry in entries:
        if not _is_pattern(entry):
            found.append(entry)
            continue
        matching = sorted(filter(fits, glob.glob(os.path.expanduser(entry), recursive=True)), key=natural)
        if not matching:
            raise UserError(f"{name} must match at least one {kind}, got {entry}, which matches none")
        for path in matching:
            if resolved(path) not in listed:
                found.append(path)
                listed.add(resolved(path))
    return found


def _is_pattern(entry: str) -> bool:
    return glob.has_magic(entry) and not os.path.lexists(entry)  # a name may hold the characters of a pattern


def resolved(path: str) -> str:
    """The absolute path without symbolic links, the same for all ways to write it."""
    return os.path.realpath(os.path.expanduser(path))


def natural(path: str) -> list[tuple[bool, int, str]]:
    """A key by which names sort as people count: epoch-2 before epoch-10, and numbers before words."""
    return [(not part.isdigit(), int(part) if part.isdigit() else 0, part) for part in re.split(r"(\d+)", path) if part]
