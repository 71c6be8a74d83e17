"""The run folder: run.json, summary.csv, images.csv, records/. Every file appears whole or not at all.

run.json      configuration, commit, versions, hardware, protocol id, data fingerprint, stages, warnings, timings
summary.csv   one row per cell, derived from the records; the clean row is `clean,0`; fractions, not percent
records/      one row per image: id, label, prediction, confidence, nll, brier, top5, entropy
images.csv    id, label and name of every evaluated image: which file an id is
checkpoints/  last.pt
"""

import contextlib
import errno
import json
import os
import platform
import re
import subprocess
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from gch_bench.errors import UserError
from gch_bench.metrics import CLEAN, summarize

COLUMNS = ["id", "label", "prediction", "confidence", "nll", "brier", "top5", "entropy"]


class Cell(NamedTuple):
    """One evaluation: a corruption at a severity 1..5, or CELL_CLEAN."""

    corruption: str
    severity: int

    @property
    def file_name(self) -> str:
        return f"{self.corruption}-{self.severity}.parquet"


CELL_CLEAN = Cell(CLEAN, 0)


def slug(name: str) -> str:
    """A name for files and loggers."""
    return re.sub(r"[^\w.]+", "-", name).strip("-")


ADVICE = "free space there or choose another folder with output="


@contextlib.contextmanager
def writing(path: Path, advice: str = ADVICE) -> Iterator[None]:
    """Turn a failure to write `path` (no permission, full disk) into one line; `advice` is for a full disk."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            advice = advice.replace("free space there", "make it writable")
        elif error.errno not in (errno.ENOSPC, errno.EDQUOT):
            advice = advice.replace("free space there or ", "")
        raise UserError(f"cannot write {path}: {reason}; {advice}") from error


@contextlib.contextmanager
def making(folder: Path, advice: str = ADVICE) -> Iterator[None]:
    """`folder`, made with its parents and writable; those of them that are new and empty in the end are removed again.

    Raises:
        UserError: it cannot be made, or not be written.
    """
    new = [each for each in (folder, *folder.parents) if not each.exists()]
    try:
        with writing(folder, advice):
            folder.mkdir(parents=True, exist_ok=True)
            if not os.access(folder, os.W_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        yield
    finally:
        with contextlib.suppress(OSError):  # one that is not empty ends it
            for each in new:
                each.rmdir()


def write_atomic(path: Path, write: Callable[[BinaryIO], Any], advice: str = ADVICE, durable: bool = True) -> None:
    """Call `write(file)` on a temporary file, fsync, rename to `path`: readers see the old content or all of the new.

    With `durable=False` there is no fsync: a kill leaves no half file either, a power failure may.

    Raises:
        UserError: the folder cannot be written or the disk is full. The old content is kept, the temporary file removed.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with writing(path, advice):
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
                os.fsync(folder)  # the rename itself must survive a crash
            finally:
                os.close(folder)
        finally:
            temporary.unlink(missing_ok=True)


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


def write_summary(folder: Path, cells: list[Cell], num_classes: int) -> pd.DataFrame:
    """summary.csv from the records of `cells`: corruption, severity and the columns of `metrics.summarize`."""
    rows = [{**cell._asdict(), **summarize(read_record(folder, cell), num_classes)} for cell in cells]
    summary = pd.DataFrame(rows)
    write_csv(folder / "summary.csv", summary)
    return summary


def provenance() -> dict[str, Any]:
    """Commit, versions and hardware of this process."""
    import torch

    packages = ("torch", "torchvision", "timm", "numpy", "pandas", "pyarrow", "pillow", "hydra-core")
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    return {
        "commit": _commit(),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
        "hardware": {
            "machine": platform.machine(),
            "processor": _processor(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "gpus": gpus,
        },
    }


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor()


def _commit() -> str | None:
    """The commit of the code, with -dirty when tracked files differ from it; None outside a git checkout."""
    try:
        here = Path(__file__).parent
        described = subprocess.run(
            ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            capture_output=True, text=True, check=True, timeout=20,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return described.stdout.strip()
