"""The section on the compatibility of noise with a network: a summary, what disagrees with theory, figures, and definitions."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from matplotlib.figure import Figure

from gch_bench.errors import UserError
from gch_bench.files import read_json
from gch_bench.report.compatibility_words import (
    MARKS_NOTE,
    SUMMARY_NOTES,
    definitions,
    disagreements,
    interval,
    summary_tables,
    telling_tables,
)
from gch_bench.report.page_parts import Origin, PageTable, json_columns, now, rendered
from gch_bench.report.render import TerminalTable, markdown_text, terminal_lines
from gch_bench.report.svg import Embedded, embed
from gch_bench.results.compatibility import AGREES, DISAGREES, FAMILY, OUTSIDE

KIND = "compatibility"  # as run.json names it
TITLE = "Compatibility of noise with a network"
NEEDED = {  # table -> columns without which it is no result of mode=compatibility
    "summary": {"stage", "mechanism", "module", "height", "width", "survives"},
    "measurements": {"stage", "mechanism", "section", "quantity", "measured", "verdict"},
    "images": {"stage", "mechanism", "coherence", "positivity", "logit_distortion"},
}
COLUMNS = (  # of the table of all measurements on the page
    "stage", "mechanism", "section", "quantity", "at", "measured", "low", "high", "theory", "p_value", "n", "excluded",
    "verdict", "note",
)  # fmt: skip


class Section(NamedTuple):
    """What diagnose.py mode=compatibility found."""

    facts: dict[str, Any]  # run.json
    tables: Mapping[str, pd.DataFrame]  # summary, measurements, images
    figures: Mapping[str, Figure]


class Overview(NamedTuple):
    """The part of the results that is shown on the page of a report, too."""

    command: str
    facts: dict[str, str]  # of what: network, images, mechanisms in words
    warnings: list[str]
    tables: list[PageTable]  # the summary
    notes: list[str]  # on its columns
    flagged: list[str]
    figures: list[Embedded]


def read(folder: Path) -> tuple[dict[str, Any], dict[str, pd.DataFrame]]:
    """The facts and the tables in the folder of a finished diagnose.py mode=compatibility.

    Raises:
        UserError: the folder holds no such result.
    """
    wanted = "compatibility must be the folder of a diagnose.py mode=compatibility"
    if not (folder / "run.json").is_file():
        raise UserError(f"{wanted}, got {folder}, which has no run.json")
    facts = read_json(folder / "run.json")
    if facts.get("kind") != KIND:
        raise UserError(f"{wanted}, got {folder}, which holds another result")
    tables = {}
    for name, needed in NEEDED.items():
        path = folder / f"{name}.parquet"
        try:
            tables[name] = pd.read_parquet(path)
        except (OSError, ValueError) as error:  # pyarrow's errors are ValueErrors
            raise UserError(f"{wanted}, but {path} cannot be read: {' '.join(str(error).split())}") from error
        if missing := needed - set(tables[name].columns):
            raise UserError(f"{wanted}, but {path} has no column {min(missing)}")
    return facts, tables


def console_tables(tables: Mapping[str, pd.DataFrame]) -> Iterator[TerminalTable]:
    """The summary, one table for each stage, cut by columns where it is wide; the last one has the notes."""
    found = summary_tables(tables["summary"], tables["measurements"])
    for table in found:
        notes = SUMMARY_NOTES if table is found[-1] else []
        yield from terminal_lines(f"Compatibility at {table.title}", table.lines, notes)


def flagged(measurements: pd.DataFrame) -> Iterator[str]:
    """How many numbers agree with theory, how many would not by chance, and a line for each that disagrees."""
    counts = measurements["verdict"].value_counts()
    outside, wrong = int(counts.get(OUTSIDE, 0)), int(counts.get(DISAGREES, 0))
    compared = int(counts.get(AGREES, 0)) + outside + wrong
    by_chance = round(0.05 * int((measurements["p_value"].notna() & (measurements["low"] < measurements["high"])).sum()))
    if not compared:
        yield "nothing here could be compared with theory"
        return
    yield (
        f"compared with theory: {compared} numbers. Outside their intervals of 95%: {outside + wrong}, where about {by_chance}"
        f" would be if theory were right everywhere. {DISAGREES} (p times {compared} below {FAMILY:g}): {wrong}, which would be"
        f" 0 in about {1 - FAMILY:.0%} of such reports"
    )
    for row in measurements[measurements["verdict"] == DISAGREES].to_dict("records"):
        at = f" ({row['at']})" if row["at"] else ""
        yield (
            f"{DISAGREES}: {row['mechanism']} at {row['stage']}, {row['section']}: {row['quantity']}{at} is {interval(row)},"
            f" theory {row['theory']:.3g}"
        )


def markdown(section: Section) -> str:
    """The report as Markdown, for the file report.md."""
    facts, tables = section.facts, section.tables
    lines = [f"# {TITLE}", "", f"    {facts.get('command', '')}", ""]
    lines += [f"- {name}: {markdown_text(value)}" for name, value in _about(facts).items()]
    lines += ["", "## Summary", ""]
    lines += [f"- WARNING: {markdown_text(warning)}" for warning in facts.get("warnings", [])]
    for table in summary_tables(tables["summary"], tables["measurements"]):
        lines += _markdown_table(table)
    lines += ["", *(f"- {markdown_text(note)}" for note in SUMMARY_NOTES)]
    lines += ["", "## Comparison with theory", ""]
    lines += [f"- {markdown_text(line)}" for line in flagged(tables["measurements"])]
    lines += ["", "## Measurements", "", f"All are in measurements.csv. {MARKS_NOTE[0].upper()}{MARKS_NOTE[1:]}."]
    for table in telling_tables(tables["measurements"]):
        lines += _markdown_table(table)
    if section.figures:
        lines += ["", "## Figures"]
    for name, figure in section.figures.items():
        lines += ["", f"![{name}](figures/{name}.svg)", "", markdown_text(str(figure.get_label()))]
    lines += ["", "## Definitions", "", definitions().markdown()]
    return "\n".join(lines)


def _markdown_table(table: PageTable) -> list[str]:
    return ["", f"### {markdown_text(table.title)}", "", table.markdown().rstrip()]


def _about(facts: Mapping[str, Any]) -> dict[str, str]:
    """What the numbers are of, in words."""
    network = facts.get("network", {})
    described = f"{network.get('label', 'unknown')}: {network.get('origin', 'unknown')} (weights {network.get('weights')})"
    mechanisms = {f"mechanism {name}": str(words) for name, words in facts.get("mechanisms", {}).items()}
    return {"network": described, "images": str(facts.get("images", "unknown")), **mechanisms}


def overview(section: Section, prefix: str = "figure") -> Overview:
    """What the page of a report shows of it, too.

    Args:
        prefix: how the ids of its figures begin.
    """
    facts, tables = section.facts, section.tables
    return Overview(
        command=str(facts.get("command", "")),
        facts=_about(facts),
        warnings=[str(warning) for warning in facts.get("warnings", [])],
        tables=summary_tables(tables["summary"], tables["measurements"]),
        notes=SUMMARY_NOTES,
        flagged=list(flagged(tables["measurements"])),
        figures=embed(section.figures, prefix=prefix),
    )


def page(section: Section) -> str:
    """The report as one HTML page, which works from disk."""
    facts, measurements = section.facts, section.tables["measurements"]
    origin = Origin(now(), str(facts.get("commit") or "unknown: not a git checkout"), str(facts.get("command", "")))
    made_from = {name: _text(facts[name]) for name in ("identity", "versions", "hardware", "options") if name in facts}
    return rendered(
        "compatibility.html",
        TITLE,
        origin,
        "summary",
        compatibility=overview(section),
        disagreements=disagreements(measurements),
        telling=telling_tables(measurements),
        rows=json_columns(measurements, [name for name in COLUMNS if name in measurements]),
        definitions=definitions(),
        origin_facts={**_about(facts), **made_from},
    )


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
