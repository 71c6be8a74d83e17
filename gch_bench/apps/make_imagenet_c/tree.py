"""The folder DEST of a corrupted data set, DEST/<corruption>/<severity>/<class>/<stem>.JPEG: what it is made from and holds.

manifest.json                    what the files are made from, and for each finished cell the number of its files and bytes and
                                 the SHA-256 of its list of checksums
<corruption>/<severity>.sha256   this list, one line per file; check it by cd DEST && sha256sum -c --quiet */*.sha256

A file is written under a temporary name and then renamed, so a file with its final name is whole. (After a power failure it may
be cut, which its size shows.) A cell is finished when the manifest holds its numbers. The files of an unfinished cell are kept,
and the next run adds the missing ones.
"""

import hashlib
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gch_bench.errors import UserError
from gch_bench.files import LOCK, write_atomic, writing
from gch_bench.results.records import Cell

MANIFEST = "manifest.json"
FORMAT = "gch-bench corrupted images, 1"
ELSEWHERE = "choose another DEST; the same command continues"
_CELL = re.compile(r"\w+/[1-5]")
_TEMPORARY = re.compile(r"\.(.+)\.\d+\.tmp")  # the temporary names of files.write_atomic


class Files(NamedTuple):
    """The digests and sizes of N files of one cell."""

    sha256_N32: np.ndarray  # uint8 (N, 32)
    sizes_N: np.ndarray  # int64 (N,), in bytes


class Tree:
    """One folder DEST, which the caller has locked. Nothing is written before `begin`; `scan` removes half-written files."""

    def __init__(self, folder: Path) -> None:
        """Read the manifest, if there is one. Raises UserError if it cannot be read or has another format."""
        self.folder = folder
        self.manifest: dict[str, Any] = {}
        path = folder / MANIFEST
        if not os.path.lexists(path):
            return
        try:
            manifest = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise UserError(f"{path} cannot be read ({error}): restore it or choose another DEST") from error
        cells = manifest.get("cells", {}) if isinstance(manifest, dict) else ()
        if not isinstance(cells, dict) or manifest.get("format") != FORMAT or not all(map(_CELL.fullmatch, cells)):
            raise UserError(f"{path} must be of the format {FORMAT!r}, which it is not: choose another DEST")
        self.manifest = manifest

    @property
    def cells(self) -> list[Cell]:
        """The cells that the manifest names: those that are finished, and those that a run has begun."""
        return [Cell(name, int(severity)) for name, severity in (key.split("/") for key in self.manifest.get("cells", {}))]

    def path(self, cell: Cell, name: str) -> Path:
        return self.folder / cell.corruption / str(cell.severity) / name

    def checksums(self, cell: Cell) -> Path:
        return self.folder / cell.corruption / f"{cell.severity}.sha256"

    def check(self, identity: dict[str, Any]) -> None:
        """Raise UserError if the files here are made from anything else than `identity` (see generate.Source)."""
        theirs = self.manifest.get("identity", identity)
        for fact, value in identity.items():
            if theirs.get(fact) != value:
                was = theirs.get(fact)
                raise UserError(
                    f"{self.folder} was made with {fact} {was}, got {value}: choose another DEST or the same {fact}"
                )

    def scan(self, names: Sequence[str]) -> dict[Cell, np.ndarray]:
        """Cell -> the sizes of its files in bytes, int64 (N,), 0 where a file is missing, for every cell in `self.cells`.

        Half-written files are removed.

        Args:
            names: the N images' names, <class>/<stem>.JPEG.

        Raises:
            UserError: DEST holds a file that does not belong to it. Nothing is removed then.
        """
        numbers = {name: i for i, name in enumerate(names)}
        sizes = {_key(cell): np.zeros(len(names), dtype=np.int64) for cell in self.cells}
        own = {MANIFEST, LOCK, *(f"{key}.sha256" for key in sizes)}
        half_written = []
        for root, _, files in os.walk(self.folder, followlinks=True):
            place = os.path.relpath(root, self.folder)
            for file in files:
                temporary = _TEMPORARY.fullmatch(file)
                path = os.path.normpath(os.path.join(place, temporary[1] if temporary else file))
                parts = path.split(os.sep, 2)
                key, name = "/".join(parts[:2]), "".join(parts[2:])
                if path not in own and (key not in sizes or name not in numbers):
                    raise UserError(
                        f"DEST must hold nothing but what this script made, got {os.path.join(root, file)}:"
                        " choose an empty or new DEST, or move that away"
                    )
                if temporary:
                    half_written.append(os.path.join(root, file))
                elif path not in own:
                    sizes[key][numbers[name]] = os.stat(os.path.join(root, file)).st_size
        for path in half_written:
            with writing(Path(path), ELSEWHERE):
                Path(path).unlink(missing_ok=True)
        return {cell: sizes[_key(cell)] for cell in self.cells}

    def finished(self, cell: Cell) -> bool:
        """Whether the manifest has an entry for the cell that fits the cell's list of checksums on disk."""
        entry = self._entry(cell)
        return bool(entry) and entry["sha256"] == file_digest(self.checksums(cell))

    def complete(self, cell: Cell, sizes_N: np.ndarray) -> bool:
        """Whether the cell is finished and its files, of `sizes_N` bytes, have the number and total size of the manifest."""
        entry = self._entry(cell)
        return self.finished(cell) and entry == {**entry, **_counts(sizes_N)}

    def _entry(self, cell: Cell) -> dict[str, Any]:
        return self.manifest.get("cells", {}).get(_key(cell)) or {}

    def begin(self, identity: dict[str, Any], cells: Sequence[Cell], session: dict[str, Any]) -> None:
        """Write a manifest that names these cells as begun. `session` holds the facts of the run that makes them."""
        old = self.manifest
        self.manifest = {
            "format": FORMAT,
            "identity": identity,
            "cells": {**old.get("cells", {}), **{_key(cell): None for cell in cells}},
            "sessions": [*old.get("sessions", []), session],
        }
        self._write_manifest()

    def finish(self, cells: dict[Cell, Files], names: Sequence[str], session: dict[str, Any]) -> None:
        """Write the lists of checksums of finished cells, and the manifest. `session` is added to the facts given to `begin`.

        Raises:
            UserError: a file differs from the checksum that an earlier run wrote.
        """
        for cell, (sha256_N32, sizes_N) in cells.items():
            text = "".join(
                f"{digest.tobytes().hex()}  {_key(cell)}/{name}\n" for digest, name in zip(sha256_N32, names, strict=True)
            ).encode("utf-8", "surrogateescape")
            self._refuse_change(cell, text)
            write_atomic(self.checksums(cell), lambda file, text=text: file.write(text), ELSEWHERE)  # type: ignore[misc]
            self.manifest["cells"][_key(cell)] = {**_counts(sizes_N), "sha256": hashlib.sha256(text).hexdigest()}
        self.manifest["sessions"][-1] |= session
        self._write_manifest()

    def _refuse_change(self, cell: Cell, text: bytes) -> None:
        path = self.checksums(cell)
        if not path.exists():
            return
        for was, now in zip(path.read_bytes().splitlines(), text.splitlines(), strict=False):
            if was != now:
                raise UserError(
                    f"{self.folder / os.fsdecode(now[66:])} differs from its checksum in {path}: it is damaged, or other"
                    f" library versions made it; delete it to make it again, or {path} to accept it"
                )

    def _write_manifest(self) -> None:
        text = json.dumps({**self.manifest, "cells": dict(sorted(self.manifest["cells"].items()))}, indent=1) + "\n"
        write_atomic(self.folder / MANIFEST, lambda file: file.write(text.encode()), ELSEWHERE)

    def names(self, cell: Cell) -> list[str]:
        """The images' names, <class>/<stem>.JPEG, read from a finished cell's list of checksums."""
        return [os.fsdecode(line[66:]).split("/", 2)[2] for line in self.checksums(cell).read_bytes().splitlines()]

    def compare(self, cell: Cell, start: int, stop: int) -> tuple[int, str | None]:
        """Compare lines start to stop - 1 of a finished cell's list of checksums with the files.

        Returns:
            The number of these lines, and in words the first file that differs or is missing, None if there is none.
        """
        lines = self.checksums(cell).read_bytes().splitlines()[start:stop]
        for line in lines:
            path = self.folder / os.fsdecode(line[66:])
            digest = file_digest(path)
            if digest != line[:64].decode():
                return len(lines), f"{path} {'does not match its checksum' if digest else 'is missing'}"
        return len(lines), None


def file_digest(path: Path) -> str | None:
    """The SHA-256 of a file in hex; None if there is no such file. Raises UserError if it cannot be read."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error


def whole_jpeg(path: Path) -> bytes | None:
    """The content of a JPEG file; None if it lacks the first or the last marker of a JPEG or cannot be read."""
    try:
        data = path.read_bytes()
    except OSError:
        return None
    return data if data.startswith(b"\xff\xd8") and data.endswith(b"\xff\xd9") else None


def _counts(sizes_N: np.ndarray) -> dict[str, int]:
    return {"files": int((sizes_N > 0).sum()), "bytes": int(sizes_N.sum())}


def _key(cell: Cell) -> str:
    return f"{cell.corruption}/{cell.severity}"
