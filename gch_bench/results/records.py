"""The records of a run: one Parquet file per cell, with one row per image. What a run folder holds:

run.json      configuration, commit, versions, hardware, protocol id, data fingerprint, stages, warnings, timings
records/      CORRUPTION-SEVERITY.parquet: id, label, prediction, confidence, nll, brier, top5, entropy of every image, and with
              records.logits=true its logits; shards/ while an evaluation is at work, see results/shards.py
summary.csv   one row per cell, computed from the records; the clean row is `clean,0`; fractions, not percent
means.csv     one row per corruption, averaged over its severities, computed from the records
images.csv    id, label and name of every evaluated image, so that an id leads to its file
checkpoints/  last.pt, the last checkpoint of the training, and previous.pt, the one before it

Each of these files is written whole or not at all.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from gch_bench.errors import UserError
from gch_bench.files import write_atomic
from gch_bench.metrics import CLEAN, CLEAN_TIMM

TYPES = {
    "id": pa.int64(), "label": pa.int64(), "prediction": pa.int64(), "confidence": pa.float32(), "nll": pa.float32(),
    "brier": pa.float32(), "top5": pa.bool_(), "entropy": pa.float32(),
}  # fmt: skip
COLUMNS = list(TYPES)
LAST_CHECKPOINT = Path("checkpoints") / "last.pt"


class Cell(NamedTuple):
    """One evaluation: a corruption at a severity 1..5, or CELL_CLEAN."""

    corruption: str
    severity: int

    @property
    def file_name(self) -> str:
        return f"{self.corruption}-{self.severity}.parquet"


CELL_CLEAN = Cell(CLEAN, 0)
CELL_CLEAN_TIMM = Cell(CLEAN_TIMM, 0)


class Rows(NamedTuple):
    """Rows of one cell: `atoms`, a table with the columns COLUMNS, and `logits`, float16 (rows, C), or None."""

    atoms: pd.DataFrame
    logits: np.ndarray | None = None

    @classmethod
    def joined(cls, parts: Sequence["Rows"]) -> "Rows":
        """All rows of the parts, sorted by id."""
        empty = pd.DataFrame({name: [] for name in COLUMNS})
        atoms = pd.concat([part.atoms for part in parts], ignore_index=True) if parts else empty
        order = np.argsort(atoms["id"].to_numpy(), kind="stable")
        logits = [part.logits for part in parts if part.logits is not None]
        return cls(atoms.iloc[order].reset_index(drop=True), np.concatenate(logits)[order] if logits else None)

    def unique(self) -> "Rows":
        """The rows without those whose id an earlier row has."""
        first = ~self.atoms["id"].duplicated().to_numpy()
        return Rows(self.atoms[first].reset_index(drop=True), None if self.logits is None else self.logits[first])

    @classmethod
    def of_table(cls, table: pa.Table, logits: bool) -> "Rows":
        """The inverse of `arrow_table`; without `logits` that column is left out."""
        values = None
        if logits:
            column = table.column("logits").combine_chunks()
            values = column.flatten().to_numpy().reshape(len(table), -1) if len(table) else None
        return cls(table.select(COLUMNS).to_pandas(), values)


def arrow_schema(classes: int | None) -> pa.Schema:
    """The columns of a record; with `classes` also `logits`, lists of so many float16 numbers."""
    more = {} if classes is None else {"logits": pa.list_(pa.float16(), classes)}
    return pa.schema({**TYPES, **more})


def arrow_table(rows: Rows, classes: int | None = None) -> pa.Table:
    """The rows as an Arrow table of `arrow_schema(classes)`. Rows without logits have nulls there."""
    schema = arrow_schema(classes)
    columns = [pa.array(rows.atoms[name].to_numpy(), type=kind) for name, kind in TYPES.items()]
    if classes is not None and rows.logits is None:
        columns.append(pa.nulls(len(rows.atoms), schema.field("logits").type))
    elif rows.logits is not None:
        columns.append(pa.FixedSizeListArray.from_arrays(pa.array(rows.logits.reshape(-1), type=pa.float16()), classes))
    return pa.Table.from_arrays(columns, schema=schema)


def write_record(
    folder: Path, cell: Cell, atoms: pd.DataFrame, facts: dict[str, str], logits: np.ndarray | None = None
) -> None:
    """Write the record of one cell.

    Args:
        atoms: one row per image with at least the columns COLUMNS.
        facts: what the record was made with (protocol id, weights, ...); kept in the metadata of the Parquet file.
        logits: float16 (rows, C), in the order of `atoms`.

    Raises:
        UserError: the file cannot be written.
    """
    table = arrow_table(Rows.joined([Rows(atoms, logits)]), None if logits is None else logits.shape[1])
    facts = {"corruption": cell.corruption, "severity": str(cell.severity), **facts}
    if logits is not None:
        facts["logits"] = str(logits.shape[1])
    table = table.replace_schema_metadata(facts)
    write_atomic(folder / "records" / cell.file_name, lambda file: pq.write_table(table, file))


def record_facts(folder: Path, cell: Cell) -> dict[str, str] | None:
    """The facts that are stored with a cell's record; None if the record is missing or cannot be read."""
    try:
        metadata = pq.read_metadata(folder / "records" / cell.file_name).metadata
    except (OSError, pa.ArrowInvalid):
        return None
    return {key.decode(): value.decode() for key, value in (metadata or {}).items() if key != b"ARROW:schema"}


def read_record(folder: Path, cell: Cell) -> pd.DataFrame:
    """The record of one cell: a table with the columns COLUMNS, sorted by id.

    Raises:
        UserError: the record is missing or cannot be read.
    """
    path = folder / "records" / cell.file_name
    try:
        return pd.read_parquet(path, columns=COLUMNS)
    except (OSError, pa.ArrowInvalid) as error:
        raise UserError(f"{path} cannot be read: {error}") from error


def has_logits(folder: Path, cell: Cell) -> bool:
    """Whether the record of a cell holds logits; False if it is missing or cannot be read."""
    return "logits" in (record_facts(folder, cell) or {})


def read_logits(folder: Path, cell: Cell) -> np.ndarray:
    """The logits of one cell: float16 (N, C), one row per image in the order of `read_record`.

    They are the network's own outputs, rounded to float16, for the classes that are scored. With T noisy passes they are the
    log of the mean softmax, whose softmax is that mean.

    Raises:
        UserError: the record is missing, cannot be read or holds no logits.
    """
    path = folder / "records" / cell.file_name
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    if "logits" not in table.column_names:
        raise UserError(f"{path} holds no logits: evaluate with records.logits=true")
    logits = Rows.of_table(table, True).logits
    assert logits is not None
    return logits


def recorded_cells(folder: Path, facts: dict[str, str]) -> list[Cell]:
    """The cells whose records have these facts, among others: clean first, then in the order of name and severity."""
    cells = []
    for path in (folder / "records").glob("*-[0-5].parquet"):
        name, severity = path.stem.rsplit("-", 1)
        found = record_facts(folder, Cell(name, int(severity)))
        if found is not None and facts.items() <= found.items():
            cells.append(Cell(name, int(severity)))
    return sorted(cells, key=lambda cell: (cell.corruption != CLEAN, cell))
