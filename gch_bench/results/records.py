"""The records of a run: one Parquet file per cell, with one row per image. What a run folder holds:

run.json      configuration, commit, versions, hardware, protocol id, data fingerprint, stages, warnings, timings
records/      CORRUPTION-SEVERITY.parquet: id, label, prediction, confidence, nll, brier, top5, entropy of every image
summary.csv   one row per cell, computed from the records; the clean row is `clean,0`; fractions, not percent
means.csv     one row per corruption, averaged over its severities, computed from the records
images.csv    id, label and name of every evaluated image, so that an id leads to its file
checkpoints/  last.pt, the last checkpoint of the training

Each of these files is written whole or not at all.
"""

from pathlib import Path
from typing import NamedTuple

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from gch_bench.errors import UserError
from gch_bench.files import write_atomic
from gch_bench.metrics import CLEAN

COLUMNS = ["id", "label", "prediction", "confidence", "nll", "brier", "top5", "entropy"]


class Cell(NamedTuple):
    """One evaluation: a corruption at a severity 1..5, or CELL_CLEAN."""

    corruption: str
    severity: int

    @property
    def file_name(self) -> str:
        return f"{self.corruption}-{self.severity}.parquet"


CELL_CLEAN = Cell(CLEAN, 0)


def write_record(folder: Path, cell: Cell, atoms: pd.DataFrame, facts: dict[str, str]) -> None:
    """Write the record of one cell.

    Args:
        atoms: one row per image with at least the columns COLUMNS.
        facts: what the record was made with (protocol id, weights, ...); kept in the metadata of the Parquet file.

    Raises:
        UserError: the file cannot be written.
    """
    table = pa.Table.from_pandas(atoms[COLUMNS].sort_values("id"), preserve_index=False)
    facts = {"corruption": cell.corruption, "severity": str(cell.severity), **facts}
    table = table.replace_schema_metadata({**(table.schema.metadata or {}), **facts})
    write_atomic(folder / "records" / cell.file_name, lambda file: pq.write_table(table, file))


def record_facts(folder: Path, cell: Cell) -> dict[str, str] | None:
    """The facts that are stored with a cell's record; None if the record is missing or cannot be read."""
    try:
        metadata = pq.read_metadata(folder / "records" / cell.file_name).metadata
    except (OSError, pa.ArrowInvalid):
        return None
    return {key.decode(): value.decode() for key, value in (metadata or {}).items() if key not in (b"pandas", b"ARROW:schema")}


def read_record(folder: Path, cell: Cell) -> pd.DataFrame:
    """The record of one cell: a table with the columns COLUMNS, sorted by id.

    Raises:
        UserError: the record is missing or cannot be read.
    """
    path = folder / "records" / cell.file_name
    try:
        return pd.read_parquet(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise UserError(f"{path} cannot be read: {error}") from error


def recorded_cells(folder: Path, facts: dict[str, str]) -> list[Cell]:
    """The cells whose records have these facts, among others: clean first, then in the order of name and severity."""
    cells = []
    for path in (folder / "records").glob("*-[0-5].parquet"):
        name, severity = path.stem.rsplit("-", 1)
        found = record_facts(folder, Cell(name, int(severity)))
        if found is not None and facts.items() <= found.items():
            cells.append(Cell(name, int(severity)))
    return sorted(cells, key=lambda cell: (cell.corruption != CLEAN, cell))
