"""The section on the compatibility of noise with a network: a summary, what disagrees with theory, figures, and definitions."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import pandas as pd
from matplotlib.figure import Figure

from gch_bench.results.compatibility import AGREES, DISAGREES, OUTSIDE


class Section(NamedTuple):
    """What diagnose.py mode=compatibility found."""

    facts: dict[str, Any]  # run.json
    tables: Mapping[str, pd.DataFrame]  # summary, measurements, images
    figures: Mapping[str, Figure]


def console_tables(tables: Mapping[str, pd.DataFrame]) -> Iterator[tuple[str, list[str], list[list[str]], list[str]]]:
    """(title, columns, rows, notes) of the summary, one table for each stage."""
    for stage, part in tables["summary"].groupby("stage", sort=False):
        rows = [[str(value) for value in line] for line in part.drop(columns=["stage", "module"]).itertuples(index=False)]
        yield f"Compatibility at {stage}", list(part.columns.drop(["stage", "module"])), rows, []


def flagged(measurements: pd.DataFrame) -> Iterator[str]:
    """How many numbers agree with theory, and a line for each that does not."""
    counts = measurements["verdict"].value_counts()
    compared = int(sum(counts.get(word, 0) for word in (AGREES, OUTSIDE, DISAGREES)))
    yield (
        f"{compared} numbers were compared with theory: {counts.get(OUTSIDE, 0)} lie outside their intervals of 95%,"
        f" {counts.get(DISAGREES, 0)} disagree"
    )


def markdown(section: Section) -> str:
    return "# Compatibility"


def page(section: Section) -> str:
    return "<!doctype html>"
