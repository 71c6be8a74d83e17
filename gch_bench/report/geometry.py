"""The diagnosis in words: console tables, the Markdown report, and the metrics for the logger."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd

from gch_bench.files import slug
from gch_bench.report.geometry_compare import Comparison
from gch_bench.report.geometry_headline import Reports, headline, rows_of
from gch_bench.report.geometry_jacobians import (
    CHAIN,
    COMPOSED,
    COMPOSED_CHAIN,
    COMPOSITION,
    OverImages,
    composition_sentence,
    wide,
)
from gch_bench.report.geometry_quantities import (
    CERTIFICATES,
    CHARTS,
    MARGINS,
    SECTIONS,
    SPECTRA,
    STRUCTURE,
    TURNED,
    WHOLE,
    Section,
)
from gch_bench.report.geometry_words import short_verdict, sides_over_images, verdict, verdict_over_images
from gch_bench.report.render import TerminalTable, markdown_text, terminal_lines
from gch_bench.report.text_table import markdown_rows
from gch_bench.results.geometry import BLOCK, BRANCH, PHYSICAL, SOURCE, STATIC, ChainReport

STATIC_NOTE = (
    "static weights are diagnostics only: budgets, slacks, residuals and certificates hold for these matrices, not for what the"
    " network computes with its nonlinearities; measured Jacobians (jacobian.images=N) verify the same chain at real inputs"
)
MEASURED_NOTE = (
    "measured at these images: the Jacobians of the blocks at real inputs. All statements hold for each block linearised"
    " there, and for no other input; products of blocks are off from the network's own Jacobian by the composition defect"
)
FORMS = {
    BRANCH: "branch to branch: what the branch of one block writes, and what that of the next one reads",
    BLOCK: "block to block: the factors of the chain, with their identity shortcuts, which dominate these numbers",
}
MATRICES = {PHYSICAL: "output channels x input channels", SOURCE: "output channels x source modes"}
FIGURES = ("spectra", "margins", "certificates", "alignment", "incidence")  # of one network's chain
OVER_DEPTH = ("alignment_profile", "profile")  # of a chain, with all networks
CONSOLE = ("energy gain", "aligned / opposed", "chart", "R.95 / rotated")  # columns in the terminal


def console_tables(reports: Reports) -> list[TerminalTable]:
    """[(title, columns, rows, notes)]: the headline's most telling columns; the notes are a line of verdict for each chain."""
    if not len(reports):
        return []
    table = headline(reports)
    shown = [table.columns.index(header) for header in CONSOLE]
    lines = [[" ".join(filter(None, row[:2])), *(row[at] for at in shown)] for row in (table.columns, *table.rows)]
    lines[0][0] = "network, chain"
    notes = [f"{name}: {text}" for name, text in _verdicts(reports, short_verdict, sides_over_images, " ")]
    if any(each.kind == STATIC for _, each in reports):
        notes.append(STATIC_NOTE)
    return terminal_lines(table.title, lines, notes)


def logged_metrics(reports: Reports) -> dict[str, float]:
    """<network>/<chain>/<quantity> -> value, for every number of the chains' summaries that is finite."""
    return {
        f"{slug(label)}/{slug(each.chain)}/{name}": value
        for label, each in reports
        for name, value in each.summary.items()
        if math.isfinite(value)
    }


def markdown(
    facts: dict[str, Any],
    reports: Reports,
    comparison: Comparison | None,
    figures: Mapping[str, str],
    over_images: OverImages | None = None,
) -> str:
    """The text of report.md: what was measured, how to read it, the headline, a verdict per chain, tables and figures.

    Args:
        facts: as in run.json.
        figures: name -> caption of those that there are; each is the file figures/NAME.svg.
        over_images: network -> its over_images.csv, empty where no Jacobians were measured.
    """
    lines, composed = [*_about(facts)], _composition(over_images or {})
    if len(reports):
        table = headline(reports)
        lines += _how_to_read(reports, table.notes, bool(composed))
        lines += ["", "## Headline", "", *markdown_rows(table.columns, table.rows, table.heads), ""]
        lines += ["The same as LaTeX and CSV: geometry_headline.tex, geometry_headline.csv.", "", "## Verdicts"]
        lines += [
            line
            for name, text in _verdicts(reports, verdict, verdict_over_images, ", ")
            for line in ("", f"**{_text(name)}.** {_text(text)}")
        ]
    lines += composed
    if comparison is not None:
        lines += ["", "## Geometry and reliability", "", *markdown_rows(*comparison.runs), ""]
        lines += [*markdown_rows(*comparison.console[1:3]), ""]
        lines += [f"- {_text(note)}" for note in comparison.console[3]]
        lines += _pictures(["comparison"], figures)
    lines += ["", "## Over epochs", *_pictures(["trajectory"], figures)] if "trajectory" in figures else []
    for chain in dict.fromkeys(each.chain for _, each in reports):
        own = _pictures([f"{kind}-{slug(chain)}" for kind in OVER_DEPTH], figures)
        lines += ["", f"## {_text(chain)}: over depth", *own] if own else []
    for label, report in reports:
        lines += _chain(label, report, figures)
    return "\n".join(lines) + "\n"


def _about(facts: dict[str, Any]) -> list[str]:
    """What made the report, and the weights that it is about."""
    hardware = facts["hardware"]
    machine = f"{', '.join(hardware['gpus']) or hardware['processor']}, {hardware['threads']} threads"
    rows = [[each["label"], each["weights"], each["origin"]] for each in facts["subjects"]]
    lines = ["# Geometry", "", f"`{facts['command']}`", ""]
    lines += [
        f"commit {facts['commit']}; torch {facts['versions']['torch']}; {machine}. In float64, rotations in float32.",
        "",
    ]
    lines += markdown_rows(["network", "weights", "from"], rows, heads=3)
    warnings = [f"- WARNING: {_text(s['label'])}: {_text(warning)}" for s in facts["subjects"] for warning in s["warnings"]]
    return [*lines, "", *warnings] if warnings else lines


def _verdicts(
    reports: Reports, of_one: Callable[[ChainReport], str], of_images: Callable[[Sequence[ChainReport]], str], between: str
) -> list[tuple[str, str]]:
    """(network and chain, words): for each chain of weights, and for the Jacobians of a network at all images together."""
    found: list[tuple[str, str]] = []
    for row in rows_of(reports):
        own = [
            each
            for label, each in reports
            if label == row.label and (each.kind != STATIC if row.images else each.chain == row.chain)
        ]
        found.append((f"{row.label}{between}{row.chain}", of_images(own) if row.images > 1 else of_one(own[0])))
    return found


def _composition(over_images: OverImages) -> list[str]:
    """The section on whether measured Jacobians compose; empty where none of two neighbouring blocks were measured."""
    lines: list[str] = []
    for label, table in over_images.items():
        interfaces, chain = wide(table, COMPOSITION), wide(table, CHAIN)
        if len(interfaces):
            lines += ["", f"### {_text(label)}", "", _text(composition_sentence(interfaces, chain)), ""]
            lines += [*_table(COMPOSED, interfaces), "", *_table(COMPOSED_CHAIN, chain)]
    return ["", "## Measured Jacobians: do they compose?", *lines] if lines else []


def _how_to_read(reports: Reports, notes: Sequence[str], composed: bool) -> list[str]:
    """All headers of the tables below: what they mean, the columns of the CSV files, and what they are by chance."""
    kinds = {each.kind for _, each in reports}
    lines = ["", "## How to read this", ""]
    lines += [
        "Every number stands beside what it is by chance, or its reason for having no such number is given here. Chance"
        " is, at an interface, a Haar-random rotation between the two factors, which keeps both spectra; and for a"
        " spectrum, Gaussian matrices of the same shape. z: distance from the mean of the null in its standard deviations; it"
        " is missing where the null has no spread, and grows with the number of channels, so that it is no size of an effect."
        " Definitions: docs/geometry.md.",
        "",
    ]
    static = {kind == STATIC for kind in kinds}
    lines += [f"- {_text(_sentence(note))}" for note, which in ((STATIC_NOTE, True), (MEASURED_NOTE, False)) if which in static]
    lines += ["", "### Headline (geometry_headline.csv)", "", *(f"- {_text(note)}." for note in notes)]
    between = any(len(each.interfaces) for _, each in reports)
    sections = SECTIONS if between else (SPECTRA, CHARTS)
    for section in (COMPOSED, COMPOSED_CHAIN, *sections) if composed else sections:
        lines += ["", f"### {section.title}: {section.file}", ""]
        for each in section.quantities:
            chance = f" {_text(_chance(each.chance))}." if each.chance else ""
            lines.append(f"- **{_text(each.header)}** ({_code(each.name)}): {_text(each.meaning)}.{chance}")
    return lines


def _chance(text: str) -> str:
    return text.replace("none:", "No null:", 1) if text.startswith("none:") else f"By chance: {text}"


def _chain(label: str, report: ChainReport, figures: Mapping[str, str]) -> list[str]:
    note = STATIC_NOTE if report.kind == STATIC else MEASURED_NOTE
    lines = ["", f"## {_text(label)}: {_text(report.chain)} ({report.kind})", ""]
    lines += [f"{_text(report.description)}. {_text(_sentence(note))}", ""]
    lines += [f"{_text(verdict(report))}", ""] if report.kind != STATIC else []
    if len(report.interfaces):
        lines += [*_table(WHOLE, pd.DataFrame([report.summary])), ""]
    lines += [*_table(SPECTRA, report.factors), "", *_table(CHARTS, report.factors)]
    for form in (BRANCH, BLOCK) if len(report.interfaces) else ():
        table = report.interfaces[report.interfaces["form"] == form]
        if len(table):
            lines += ["", f"### Interfaces, {FORMS[form]}", "", *_table(TURNED, table), "", *_table(MARGINS, table)]
            for matrix, words in MATRICES.items():
                if f"{matrix}_certified_share" in table:
                    own = _of_matrix(table, matrix)
                    lines += ["", f"Of {words}:", "", *_table(STRUCTURE, own), "", *_table(CERTIFICATES, own)]
    own_name = f"{slug(label)}-{slug(report.chain)}"
    return lines + _pictures([f"{kind}-{own_name}" for kind in FIGURES], figures)


def _of_matrix(table: pd.DataFrame, matrix: str) -> pd.DataFrame:
    """The rows with the columns of one matrix under their plain names."""
    own = {name: name.removeprefix(f"{matrix}_") for name in map(str, table) if name.startswith(f"{matrix}_")}
    return table[["first", "second", *own]].rename(columns=own)


def _table(section: Section, table: pd.DataFrame) -> list[str]:
    """The table of a section under its title; a column without any letter or digit is left out."""
    rows = [[each.text(row) for each in section.quantities] for row in table.to_dict("records")]  # type: ignore[arg-type]
    used = [at for at in range(len(section.quantities)) if any(re.search(r"\w", row[at]) for row in rows)]
    headers = [section.quantities[at].header for at in used]
    heads = sum(section.quantities[at].chance == "" for at in used)
    return [f"**{section.title}**", "", *markdown_rows(headers, [[row[at] for at in used] for row in rows], heads)]


def _sentence(note: str) -> str:
    return f"{note[0].upper()}{note[1:]}."


def _text(text: str) -> str:
    return markdown_text(text)


def _code(names: str) -> str:
    return ", ".join(f"`{name}`" for name in names.split(", "))


def _pictures(wanted: Sequence[str], figures: Mapping[str, str]) -> list[str]:
    found = [(name, figures[name]) for name in wanted if name in figures]
    return [line for name, caption in found for line in ("", f"![{name}](figures/{name}.svg)", "", _text(caption))]
