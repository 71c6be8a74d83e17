"""summary.csv: one row per cell, derived from the records."""

from pathlib import Path

import pandas as pd

from gch_bench.files import write_csv
from gch_bench.metrics import summarize
from gch_bench.results.records import Cell, read_record


def write_summary(folder: Path, cells: list[Cell], num_classes: int) -> pd.DataFrame:
    """summary.csv from the records of `cells`: corruption, severity and the columns of `metrics.summarize`."""
    rows = [{**cell._asdict(), **summarize(read_record(folder, cell), num_classes)} for cell in cells]
    summary = pd.DataFrame(rows)
    write_csv(folder / "summary.csv", summary)
    return summary
