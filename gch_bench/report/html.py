"""The report as one HTML page: the verdict in words, tables that can be sorted, figures, and what every number comes from.

Its template is page/page.html; page_parts.py has what it shares with other pages.
"""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd
from matplotlib.figure import Figure

from gch_bench.metrics import METRICS
from gch_bench.report.compatibility import Overview
from gch_bench.report.page_parts import Entry, Origin, PageTable, json_columns, rendered
from gch_bench.report.render import BETTER, MISSING, WORSE, Column, Row, Table, legend
from gch_bench.report.study import MEAN, ROWS, Report, Run, Setting
from gch_bench.report.svg import embed
from gch_bench.results.records import CLEAN
from gch_bench.results.runfacts import differences

WARNING = "WARNING"  # how a note begins that must not be overlooked
MOST_ROWS = 6000  # of the page's full table
OWN = ("temperature", "folder", "command")  # facts that are shown for each run, also if all runs share them


def page_table(table: Table, shared: Sequence[str] = ()) -> PageTable:
    """A table of the report for the page, without the notes in `shared`, which the page shows once for all tables.

    A section becomes a part of its rows' heads, so that sorting cannot lose it.
    """
    rows = [
        [Entry(f"{row.section}, {row.label}" if row.section else row.label), *(_number(row, each) for each in table.columns)]
        for row in table.rows
    ]
    columns = [table.first, *(column.header for column in table.columns)]
    return PageTable(table.title, columns, rows, [note for note in table.notes if note not in shared])


def _number(row: Row, column: Column) -> Entry:
    """A number of a table; a column of values and differences is sorted by the values."""
    parts = ("value", "difference") if column.shows == "both" else (column.shows,)
    if column.key not in row.numbers:
        return Entry(MISSING if "value" in parts else "", math.nan)
    number = row.numbers[column.key]
    first, *others = [text for part in parts if (text := number.text(part))] or [""]
    verdict = number.verdict if first and "difference" in parts else None
    return Entry(
        f"{first} †" if verdict == WORSE else first, float(number.facts[parts[0]]), verdict == BETTER, " ".join(others)
    )


def page(
    report: Report,
    tables: Sequence[Table],
    figures: Mapping[str, Figure],
    origin: Origin,
    data: str = "",
    compatibility: Overview | None = None,
) -> str:
    """The text of the page, which works from disk.

    Args:
        data: the name of a file beside the page that holds all rows of `report.rows`; empty: there is none.
        compatibility: what mode=compatibility found of the network; None: the page has no section on it.
    """
    shared = [note for note in (tables[0].notes if tables else ()) if all(note in table.notes for table in tables)]
    rows, left_out = full_table(report.rows)
    return rendered(
        "page.html",
        "Reliability of internal noise under shift",
        origin,
        "verdict",
        report=report,
        warnings=[note.removeprefix(f"{WARNING}: ") for note in report.notes if note.startswith(WARNING)],
        notes=[note for note in report.notes if not note.startswith(WARNING)],
        tables=[page_table(table, shared) for table in tables],
        signs=[*shared, *dict.fromkeys(sentence for table in tables for sentence in legend(table, "bold"))],
        figures=embed(figures),
        compatibility=compatibility,
        settings=[setting_provenance(setting) for setting in report.settings],
        metrics=metric_table(report.rows),
        columns=ROWS,
        rows=rows,
        left_out=left_out,
        data=data,
    )


class Provenance(NamedTuple):
    """Where the numbers of a setting come from: the facts that all its runs share, and a table of the others."""

    name: str
    shared: dict[str, str]  # name -> value as text
    runs: PageTable


def setting_provenance(setting: Setting) -> Provenance:
    """The provenance of the runs of a setting, each fact once if all runs share it."""
    named = [
        (group.mechanism, seed, run) for group in setting.groups if group.kind == "single" for seed, run in group.runs.items()
    ]
    configs = [run.facts.config for _, _, run in named]
    configured = sorted({name for config in configs for name in differences(configs[0], config)} - {"seed", "output"})
    facts = [run_facts(run, configured) for _, _, run in named]
    apart = [name for name in (facts[0] if facts else ()) if name in OWN or any(each[name] != facts[0][name] for each in facts)]
    rows = [
        [Entry(mechanism), Entry(str(seed), seed), *(_entry(each[name]) for name in apart)]
        for (mechanism, seed, _), each in zip(named, facts, strict=True)
    ]
    notes = [
        f"{WARNING}: {mechanism}, seed {seed}: {warning}" for mechanism, seed, run in named for warning in run.facts.warnings
    ]
    shared = {name: _plain(value) for name, value in (facts[0] if facts else {}).items() if name not in apart}
    return Provenance(setting.name, shared, PageTable(f"Runs of {setting.name}", ["mechanism", "seed", *apart], rows, notes))


def _entry(value: Any) -> Entry:
    number = value if isinstance(value, int | float) and not isinstance(value, bool) else None
    return Entry(_plain(value), number)


def run_facts(run: Run, configured: Sequence[str]) -> dict[str, Any]:
    """The provenance of a run in words and numbers, and the fields of its configuration that are named in `configured`."""
    facts = run.facts
    versions = ", ".join(f"{name} {version}" for name, version in facts.versions.items())
    hardware = ", ".join(f"{name} {_plain(value)}" for name, value in facts.hardware.items())
    return {
        "temperature": "none fitted" if run.temperature is None else round(run.temperature, 4),
        "folder": str(run.folder),
        "command": facts.command,
        "commit": facts.commit or "unknown",
        "started": facts.started,
        "machine": f"{facts.device}, {facts.processes} process(es); {hardware}",
        "versions": versions,
        "data": str(facts.data.get("description", facts.data.get("name", ""))),
        "protocol": facts.protocol_id,
        "parameters": facts.parameters,
        "mechanism": facts.mechanism,
        "digest of the weights": facts.weights or "unknown",
        "corrupted cells": sum(cell.severity > 0 for cell in run.cells),
        **{f"configuration: {name}": _dotted(facts.config, name) for name in configured},
    }


def _dotted(config: Mapping[str, Any], name: str) -> Any:
    value: Any = config
    for part in name.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def metric_table(rows: pd.DataFrame) -> PageTable:
    """Of each metric its name, unit and meaning, which values are better, and whether differences have intervals."""
    better = {"higher": "higher is better", "lower": "lower is better", None: "neither is better by itself"}
    present = set(rows["metric"])
    compared = set(rows.loc[rows["difference"].notna(), "metric"])
    bounded = set(rows.loc[rows["low"].notna(), "metric"])
    lines = [
        (metric.header, metric.meaning, key, better[metric.better], _interval(key, compared, bounded))
        for key, metric in METRICS.items()
        if key in present
    ]
    columns = ["metric", "meaning", "key in all results", "direction", "difference"]
    return PageTable("Metrics", columns, [[Entry(text) for text in line] for line in lines], [])


def _interval(key: str, compared: set[str], bounded: set[str]) -> str:
    if key in bounded:
        return "95% interval"
    return "no interval: none is known to be valid" if key in compared else "no difference here"


def full_table(rows: pd.DataFrame, most: int = MOST_ROWS) -> tuple[dict[str, Any], str]:
    """The table of results by column in plain JSON values, and in words which rows are left out, or nothing.

    If there are more than `most` rows, those of clean images and of means over severities are chosen; if these, too, are more,
    those of clean images and of the mean over corruptions.
    """
    clean, whole = rows["corruption"] == CLEAN, rows["severity"].isna()
    chosen, left_out = rows, ""
    if len(chosen) > most:
        chosen, left_out = rows[clean | whole], "single severities"
    if len(chosen) > most:
        chosen, left_out = rows[clean | (whole & (rows["corruption"] == MEAN))], "single corruptions"
    return json_columns(chosen, list(ROWS)), left_out
