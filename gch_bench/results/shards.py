"""Shards: the rows of some images in all cells, which an evaluation writes while it goes through the data set.

An evaluation reads each clean image once and makes all its corrupted versions, so it finishes images and not cells. What is
finished is kept in records/shards/, one Parquet file for a range of images, with one row group per cell. An evaluation that was
stopped goes on after the last complete shard. When all images are done, the shards are joined to the records, one per cell, and
removed.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gch_bench.errors import UserError
from gch_bench.files import write_atomic
from gch_bench.results.records import Cell, Rows, arrow_schema, arrow_table, write_record


class BadRow(NamedTuple):
    """An image of a cell that could not be read and has no row."""

    cell: Cell
    id: int
    path: str
    reason: str


Span = tuple[int, int]  # first position in the list of evaluated images, and the one after the last


class Shard(NamedTuple):
    """One file of shards: of which cells and images it holds what can be read."""

    path: Path
    spans: dict[Cell, list[Span]]
    groups: list[Cell]  # the cells that have rows, in the order of the file's row groups
    logits: frozenset[Cell]  # the cells whose logits it has
    bad: list[BadRow]


def write_shard(
    folder: Path, facts: dict[str, str], spans: dict[Cell, list[Span]], rows: dict[Cell, Rows], bad: Sequence[BadRow]
) -> None:
    """Write the rows of some images, by cell.

    Args:
        facts: what the rows were made with (protocol id, weights); a shard of other facts is not read again.
        spans: for each cell the positions in the list of evaluated images of which `rows` or `bad` has all.
        bad: the images among them that could not be read.

    Raises:
        UserError: the file cannot be written.
    """
    filled = {cell: each for cell, each in rows.items() if len(each.atoms)}
    contents = {
        "spans": [[*cell, *span] for cell, own in spans.items() for span in own],
        "groups": [[*cell] for cell in filled],
        "logits": [[*cell] for cell, each in filled.items() if each.logits is not None],
        "bad": [[*each.cell, each.id, each.path, each.reason] for each in bad],
    }
    classes = next((each.logits.shape[1] for each in filled.values() if each.logits is not None), None)
    schema = arrow_schema(classes).with_metadata({**facts, "shard": json.dumps(contents)})

    def write(file: object) -> None:
        with pq.ParquetWriter(file, schema) as writer:
            for each in filled.values():
                writer.write_table(arrow_table(each, classes), row_group_size=len(each.atoms))

    which = hashlib.sha256(json.dumps([contents["spans"], contents["logits"]]).encode()).hexdigest()[:8]
    start, stop = (choose(position for own in spans.values() for span in own for position in span) for choose in (min, max))
    write_atomic(_folder(folder) / f"{start:07d}-{stop:07d}-{which}.parquet", write, durable=False)


def shards(folder: Path, facts: dict[str, str]) -> list[Shard]:
    """The readable shards of a run folder that were made with these facts, in the order of their names."""
    found = []
    for path in sorted(_folder(folder).glob("*.parquet")):
        try:
            metadata = {key.decode(): value.decode() for key, value in (pq.read_metadata(path).metadata or {}).items()}
            contents = json.loads(metadata["shard"])
        except (OSError, pa.ArrowInvalid, KeyError, ValueError):
            continue  # its images are evaluated again
        if facts.items() <= metadata.items():
            groups, logits = ([Cell(*cell) for cell in contents[key]] for key in ("groups", "logits"))
            spans: dict[Cell, list[Span]] = {}
            for name, severity, start, stop in contents["spans"]:
                spans.setdefault(Cell(name, severity), []).append((start, stop))
            bad = [BadRow(Cell(*each[:2]), *each[2:]) for each in contents["bad"]]
            found.append(Shard(path, spans, groups, frozenset(logits), bad))
    return found


def done(folder: Path, facts: dict[str, str], cells: Sequence[Cell], images: int, logits: frozenset[Cell]) -> np.ndarray:
    """Which images of which cells the shards hold: bool (len(cells), images).

    Args:
        logits: the cells whose logits are wanted. A shard without them does not count there.
    """
    rows = {cell: number for number, cell in enumerate(cells)}
    held = np.zeros((len(cells), images), dtype=bool)
    for shard in shards(folder, facts):
        for cell, spans in shard.spans.items():
            if cell in rows and _has(shard, cell, logits):
                for start, stop in spans:
                    held[rows[cell], start:stop] = True
    return held


def join(
    folder: Path,
    cells: Sequence[Cell],
    images: int,
    facts: dict[str, str],
    more: dict[Cell, dict[str, str]],
    logits: frozenset[Cell],
) -> None:
    """Write the record of each cell from the shards.

    Two shards may hold the same image, for instance one with and one without logits. Their rows are equal, and one is taken.

    Args:
        images: the number of evaluated images.
        more: further facts of some cells' records.
        logits: the cells whose records hold logits.

    Raises:
        RuntimeError: rows are missing, which is a bug; rows are never padded to fit.
        UserError: a record cannot be written, or no image of a cell is readable; the records of other cells are written first.
    """
    found = shards(folder, facts)
    empty = []
    for cell in cells:
        own = [shard for shard in found if _has(shard, cell, logits)]
        parts = [_read(shard, cell, cell in logits) for shard in own if cell in shard.groups]
        if not parts:
            empty.append(f"{cell.corruption}-{cell.severity}")
            continue
        rows = Rows.joined(parts).unique()
        unreadable = {bad.id for shard in own for bad in shard.bad if bad.cell == cell}
        if len(rows.atoms) != images - len(unreadable):
            raise RuntimeError(
                f"{images} images ({len(unreadable)} skipped) must give as many rows, got {len(rows.atoms)} for {cell}"
            )
        write_record(folder, cell, rows.atoms, facts | more.get(cell, {}), rows.logits)
    if empty:
        raise UserError(f"no image of {', '.join(empty[:3])} is readable: check data.root and corruptions.root")


def bad_images(folder: Path, facts: dict[str, str]) -> list[tuple[str, str]]:
    """(path, reason) of each image that the shards left out because it could not be read."""
    return sorted({(bad.path, bad.reason) for shard in shards(folder, facts) for bad in shard.bad})


def clear(folder: Path) -> None:
    """Remove all shards, those of other facts, too."""
    for path in _folder(folder).glob("*"):
        path.unlink(missing_ok=True)
    if _folder(folder).is_dir():
        _folder(folder).rmdir()


def _has(shard: Shard, cell: Cell, logits: frozenset[Cell]) -> bool:
    """Whether the shard has what is wanted of the cell: its rows, and its logits if those are wanted."""
    return cell in shard.spans and (cell not in logits or cell in shard.logits or cell not in shard.groups)


def _read(shard: Shard, cell: Cell, logits: bool) -> Rows:
    try:
        return Rows.of_table(pq.ParquetFile(shard.path).read_row_group(shard.groups.index(cell)), logits)
    except (OSError, pa.ArrowInvalid) as error:
        raise UserError(f"{shard.path} cannot be read: {error}; delete it and run the command again") from error


def _folder(folder: Path) -> Path:
    return folder / "records" / "shards"
