"""From records to the numbers that are shown: summary.csv with a row per cell, means.csv with a row per corruption.

Both are derived from the records whenever a run is started or finished, so a metric that is new appears without a forward pass.
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
# AlexNet's published top-1 errors, means over five severities: what a corruption error is relative to, for ImageNet-1k alone.
ALEXNET = {name: percent / 100 for name, percent in ALEXNET_ERROR_PERCENT.items() if name not in EXTRA}
ALEXNET_CLEAN = ALEXNET_CLEAN_ERROR_PERCENT / 100


def write_summary(folder: Path, cells: list[Cell], num_classes: int, imagenet_1k: bool) -> pd.DataFrame:
    """summary.csv and means.csv from the records of `cells`; files that say the same already are left as they are.

    Returns:
        summary.csv's table: corruption, severity and the columns of `metrics.summarize`.
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
    """summary.csv's table as a row per cell."""
    return {Cell(row["corruption"], row["severity"]): row for row in summary.to_dict("records")}  # type: ignore[misc]


def means(summary: pd.DataFrame, imagenet_1k: bool) -> pd.DataFrame:
    """A row for clean, one per averaged corruption (mean over its severities), and MEAN over those corruptions if there is one.

    Columns: corruption, the shown metrics, and with `imagenet_1k` `ce` and `relative_ce`, the corruption errors of Hendrycks &
    Dietterich 2019 as fractions of AlexNet's (1 is AlexNet); in the row MEAN they are mCE and relative mCE. They are left empty
    where they are not defined: fewer than five severities, or for the mean fewer than the 15 corruptions.
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
    """`ce` and `relative_ce` of the corruptions `names`, {} where they are not defined."""
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
    """What a logger is given: clean/top1, shift/<corruption>/<severity>/top1, shift/mean/top1, shift/mean/mce, ..."""
    values: dict[str, float] = {}
    for cell, row in rows_by_cell(summary).items():
        prefix = CLEAN if cell == CELL_CLEAN else f"shift/{cell.corruption}/{cell.severity}"
        values |= {f"{prefix}/{key}": row[key] for key in SHOWN}
    table = means(summary, imagenet_1k).set_index("corruption")
    if MEAN in table.index:
        names = {**{key: key for key in SHOWN}, "ce": "mce", "relative_ce": "relative_mce"}
        mean = table.loc[MEAN].dropna().to_dict()
        values |= {f"shift/mean/{name}": float(mean[key]) for key, name in names.items() if key in mean}
    return values
