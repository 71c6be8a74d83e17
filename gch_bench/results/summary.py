"""Computes the tables of a run from its records: summary.csv with a row per cell, means.csv with a row per corruption.

Both are computed when a run finishes and whenever a finished run is started again, so that a new metric appears without any
forward pass.
"""

import contextlib
from pathlib import Path
from typing import Any

import pandas as pd

from gch_bench.corruptions.parameters import ALEXNET_CLEAN_ERROR_PERCENT, ALEXNET_ERROR_PERCENT
from gch_bench.files import write_csv
from gch_bench.metrics import (
    CLEAN,
    EXTRA,
    SHOWN,
    averaged,
    mean_corruption,
    mean_corruption_error,
    relative_mean_corruption_error,
    summarize,
)
from gch_bench.results.records import CELL_CLEAN, Cell, read_record

MEAN = "mean"  # the row of means.csv over all corruptions
# AlexNet's published top-1 errors as fractions, each the mean over the five severities of a corruption. A corruption error is
# relative to these, and is defined for ImageNet-1k alone.
ALEXNET = {name: percent / 100 for name, percent in ALEXNET_ERROR_PERCENT.items() if name not in EXTRA}
ALEXNET_CLEAN = ALEXNET_CLEAN_ERROR_PERCENT / 100


def write_summary(folder: Path, cells: list[Cell], num_classes: int, imagenet_1k: bool) -> pd.DataFrame:
    """Write summary.csv and means.csv from the records of `cells`. A file whose content would not change is not touched.

    Args:
        imagenet_1k: whether the classes are those of ImageNet-1k, so that corruption errors are defined.

    Returns:
        The table of summary.csv: corruption, severity and the columns of `metrics.summarize`.

    Raises:
        UserError: a record cannot be read or a file cannot be written.
    """
    rows = [{**cell._asdict(), **summarize(read_record(folder, cell), num_classes)} for cell in cells]
    summary = pd.DataFrame(rows)
    _write_if_changed(folder / "summary.csv", summary)
    _write_if_changed(folder / "means.csv", means(summary, imagenet_1k))
    return summary


def _write_if_changed(path: Path, table: pd.DataFrame) -> None:
    if not path.exists() or path.read_text() != table.to_csv(index=False):
        write_csv(path, table)


def rows_by_cell(summary: pd.DataFrame) -> dict[Cell, dict[str, Any]]:
    """Cell -> its row of summary.csv's table, as a dictionary."""
    return {Cell(row["corruption"], row["severity"]): row for row in summary.to_dict("records")}  # type: ignore[misc]


def means(summary: pd.DataFrame, imagenet_1k: bool) -> pd.DataFrame:
    """The table of means.csv: a row for clean, one for each corruption, averaged over its severities, and one for their mean.

    The corruptions are those of `metrics.averaged`. The row MEAN is left out where no corruption was evaluated, or where they
    were evaluated at different severities. The columns are corruption, the metrics of SHOWN, and with `imagenet_1k` also `ce`
    and `relative_ce`: the corruption errors of Hendrycks & Dietterich 2019 as fractions of AlexNet's (1 is AlexNet). In the row
    MEAN these are mCE and relative mCE. They are empty where they are not defined: with fewer than five severities, and in the
    row MEAN with fewer than the 15 corruptions.
    """
    cells = rows_by_cell(summary)
    clean = cells.pop(CELL_CLEAN)
    rows = [{"corruption": CLEAN, **{key: clean[key] for key in SHOWN}}]
    for name in averaged(name for name, _ in cells):
        own = {cell: row for cell, row in cells.items() if cell.corruption == name}
        rows.append({"corruption": name, **mean_corruption(own, SHOWN), **_corruption_errors(own, clean, [name], imagenet_1k)})
    with contextlib.suppress(ValueError):  # corruptions at different severities have no common mean
        mean = mean_corruption(cells, SHOWN)
        rows.append({"corruption": MEAN, **mean, **_corruption_errors(cells, clean, list(ALEXNET), imagenet_1k)})
    columns = ["corruption", *SHOWN, *(("ce", "relative_ce") if imagenet_1k else ())]
    return pd.DataFrame(rows, columns=columns)


def _corruption_errors(
    cells: dict[Cell, dict[str, Any]], clean: dict[str, Any], names: list[str], imagenet_1k: bool
) -> dict[str, float]:
    """`ce` and `relative_ce`, averaged over the corruptions `names`; {} where they are not defined."""
    if not imagenet_1k or not set(names) <= set(ALEXNET):
        return {}
    errors = {name: [1 - cells[cell]["top1"] for cell in sorted(cells) if cell.corruption == name] for name in names}
    if any(len(values) != 5 for values in errors.values()):
        return {}
    baseline = {name: ALEXNET[name] for name in names}
    return {
        "ce": mean_corruption_error(errors, baseline),
        "relative_ce": relative_mean_corruption_error(errors, 1 - clean["top1"], baseline, ALEXNET_CLEAN),
    }


def logged_metrics(summary: pd.DataFrame, imagenet_1k: bool) -> dict[str, float]:
    """The final metrics of a run under a logger's names: clean/top1, shift/<corruption>/<severity>/top1, shift/mean/mce, ..."""
    values: dict[str, float] = {}
    for cell, row in rows_by_cell(summary).items():
        prefix = f"shift/{cell.corruption}/{cell.severity}" if cell.severity > 0 else cell.corruption
        values |= {f"{prefix}/{key}": row[key] for key in SHOWN}
    table = means(summary, imagenet_1k).set_index("corruption")
    if MEAN in table.index:
        names = {**{key: key for key in SHOWN}, "ce": "mce", "relative_ce": "relative_mce"}
        mean = table.loc[MEAN].dropna().to_dict()
        values |= {f"shift/mean/{name}": float(mean[key]) for key, name in names.items() if key in mean}
    return values
