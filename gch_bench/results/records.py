"""The run folder: run.json, summary.csv, images.csv, records/. Every file appears whole or not at all.

run.json      configuration, commit, versions, hardware, protocol id, data fingerprint, stages, warnings, timings
summary.csv   one row per cell, derived from the records; the clean row is `clean,0`; fractions, not percent
records/      one row per image: id, label, prediction, confidence, nll, brier, top5, entropy
images.csv    id, label and name of every evaluated image: which file an id is
checkpoints/  last.pt
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
    """Write one cell's rows (COLUMNS, sorted by id), with `facts` (protocol id, weights, ...) in the file's own metadata."""
    table = pa.Table.from_pandas(atoms[COLUMNS].sort_values("id"), preserve_index=False)
    facts = {"corruption": cell.corruption, "severity": str(cell.severity), **facts}
    table = table.replace_schema_metadata({**(table.schema.metadata or {}), **facts})
    write_atomic(folder / "records" / cell.file_name, lambda file: pq.write_table(table, file))


def record_facts(folder: Path, cell: Cell) -> dict[str, str] | None:
    """The facts stored with a cell's record; None if there is no readable one."""
    try:
        metadata = pq.read_metadata(folder / "records" / cell.file_name).metadata
    except (OSError, pa.ArrowInvalid):
        return None
    return {key.decode(): value.decode() for key, value in (metadata or {}).items() if key not in (b"pandas", b"ARROW:schema")}


def read_record(folder: Path, cell: Cell) -> pd.DataFrame:
    """One cell's rows, COLUMNS, sorted by id."""
    path = folder / "records" / cell.file_name
    try:
        return pd.read_parquet(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise UserError(f"{path} cannot be read: {error}") from error


def recorded_cells(folder: Path, facts: dict[str, str]) -> list[Cell]:
    """The cells recorded with exactly these facts: clean first, then by name and severity."""
    cells = []
    for path in (folder / "records").glob("*-[0-5].parquet"):
        name, severity = path.stem.rsplit("-", 1)
        found = record_facts(folder, Cell(name, int(severity)))
        if found is not None and facts.items() <= found.items():
            cells.append(Cell(name, int(severity)))
    return sorted(cells, key=lambda cell: (cell.corruption != CLEAN, cell))
