"""A table of a report as one data structure, and its forms: CSV, Markdown, LaTeX and plain text for the terminal."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import pandas as pd

from gch_bench.files import slug, write_atomic
from gch_bench.metrics import Metric
from gch_bench.report.study import CALIBRATED, ROWS

LEVEL = 0.05  # of the tests that bold numbers and daggers rest on
MISSING = "-"  # what stands in the place of a number that there is not
WIDTH = 100  # characters; a wider table is cut into several
LATEX_WIDTH = 140
LONG = 40  # lines of LaTeX; a table of more is cut
BETTER, WORSE = "better", "worse"


class Number(NamedTuple):
    """One number of a table with all that is known about it: a row of `ROWS`, or the same columns filled in for a number that
    is computed from several of them. Values that there are not are NaN."""

    metric: Metric  # how it is shown, and which direction is better
    facts: dict[str, Any]  # column of ROWS -> value

    @property
    def verdict(self) -> str | None:
        """BETTER or WORSE than the baseline where the corrected p value supports it; None elsewhere, always without an
        interval, and for ensembles, whose intervals know nothing of other trainings."""
        difference, low, high, p_holm = (float(self.facts[key]) for key in ("difference", "low", "high", "p_holm"))
        excludes_zero = low > 0 or high < 0  # False for NaN, too
        if self.facts["kind"] != "single" or self.metric.better is None or not (excludes_zero and p_holm < LEVEL):
            return None
        return BETTER if (difference > 0) == (self.metric.better == "higher") else WORSE

    def text(self, shows: str) -> str:
        """What a column of this kind (see Column) shows of the number, without any marking; "" where there is nothing."""
        if shows == "difference":
            return self._difference()
        value = float(self.facts[shows])
        if math.isnan(value):
            return MISSING if shows == "value" else ""
        if shows == "value":
            return self.metric.text(value) + (
                "" if math.isnan(self.facts["sd"]) else f" ± {self.metric.text(self.facts['sd'])}"
            )
        if shows == "detectable":
            return self.metric.text(value)
        return "<0.001" if value < 0.0005 else f"{value:.3f}"  # a p value

    def _difference(self) -> str:
        difference, low, high = (float(self.facts[key]) for key in ("difference", "low", "high"))
        if math.isnan(difference):
            return ""
        if math.isnan(low) or math.isnan(high):
            return self.metric.text(difference, "+")
        return self.metric.interval((difference, low, high))


class Column(NamedTuple):
    """A column of numbers.

    shows is a column of ROWS that the column shows: value (with ± sd), difference (with its interval), p_holm, sign_flip or
    detectable; or both: the value and, under it, the difference.
    """

    header: str
    key: str  # which of a row's numbers it shows
    shows: str = "both"


class Row(NamedTuple):
    """A line of a table. Neighbouring rows with the same section stand under one heading; "" is no heading."""

    label: str
    numbers: dict[str, Number]  # key of the column -> number
    section: str = ""


class Table(NamedTuple):
    """A table of a report. The name, and the setting where a report has several, make its file names and its LaTeX label."""

    name: str
    title: str
    first: str  # heading of the column of labels
    columns: list[Column]
    rows: list[Row]
    notes: list[str]  # sentences of the caption: what the numbers are of
    setting: str = ""

    @property
    def key(self) -> str:
        """The name of its files, without the suffix."""
        return slug(f"{self.name}-{self.setting}" if self.setting else self.name)


class TerminalTable(NamedTuple):
    """The arguments of `display.Display.table`."""

    title: str
    columns: list[str]
    rows: list[list[str]]
    notes: list[str]


def write(table: Table, folder: Path, latex_prefix: str = "") -> list[Path]:
    """Write the table as CSV, Markdown and LaTeX (see `latex`) to the folder, and return the paths.

    Raises:
        UserError: a file cannot be written.
    """
    forms = {"csv": csv(table), "md": markdown(table), "tex": latex(table, latex_prefix)}
    return write_texts({f"{table.key}.{suffix}": text for suffix, text in forms.items()}, folder)


def write_texts(texts: Mapping[str, str], folder: Path) -> list[Path]:
    """Write file name -> text to the folder, and return the paths.

    Raises:
        UserError: a file cannot be written.
    """
    for name, text in texts.items():
        write_atomic(folder / name, partial(_write_text, text))
    return [folder / name for name in texts]


def _write_text(text: str, file: BinaryIO) -> None:
    file.write(text.encode())


def csv(table: Table) -> str:
    """A line for each number of the table, with the columns of ROWS: fractions and nats, not rounded; empty where missing."""
    facts = [number.facts for row in table.rows for number in row.numbers.values()]
    whole = dict.fromkeys(("severity", "seeds", "images"), "Int64")
    return pd.DataFrame(facts, columns=list(ROWS)).astype(whole).to_csv(index=False)


def markdown(table: Table) -> str:
    """The table in the Markdown of GitHub, with the caption as a list under it."""
    lines = [[table.first, *(column.header for column in table.columns)]]
    cells = [[markdown_text(text) for text in lines[0]], ["---"] + ["---:"] * len(table.columns)]
    for section, rows in _sections(table, table.columns):
        if section:
            cells.append([f"*{markdown_text(section)}*", *[""] * len(table.columns)])
        for row in rows:
            numbers = [_cell(row, column, markdown_text, "**{}**".format, "{} †".format) for column in table.columns]
            cells.append([markdown_text(row.label), *("<br>".join(lines) for lines in numbers)])
    text = "\n".join("| " + " | ".join(line) + " |" for line in cells)
    notes = "".join(f"- {markdown_text(note)}\n" for note in [*table.notes, *legend(table, "bold")])
    return f"**{markdown_text(table.title)}**\n\n{text}\n\n{notes}"


def terminal(table: Table, width: int = WIDTH) -> list[TerminalTable]:
    """The table as plain text, cut by columns into tables that are at most `width` characters wide, as far as that is possible.

    All have the labels as their first column, and the last one has the notes. Rows and columns change places where that leaves
    fewer tables, at most two: this is so with few mechanisms and many metrics.
    """
    cut = _cut(_wrapped(_lines(table, table.columns)), width)
    parts = [_wrapped(_lines(table, [table.columns[i - 1] for i in part])) for part in cut]
    if not any(row.section for row in table.rows):
        turned = [list(line) for line in zip(*_lines(table, table.columns), strict=True)]
        turned[0][0] = ""
        cut = _cut(turned, width)
        if len(cut) < min(len(parts), 3):
            parts = [[[line[i] for i in (0, *part)] for line in turned] for part in cut]
    return _continued(table.title, parts, [*table.notes, *legend(table, "*")])


def terminal_lines(title: str, lines: list[list[str]], notes: list[str], width: int = WIDTH) -> list[TerminalTable]:
    """Lines of text, the first of them the heads of the columns, cut by columns as in `terminal`."""
    return _continued(title, [[[line[i] for i in (0, *part)] for line in lines] for part in _cut(lines, width)], notes)


def _continued(title: str, parts: Sequence[list[list[str]]], notes: list[str]) -> list[TerminalTable]:
    titles = [title] + [f"{title} (continued)"] * (len(parts) - 1)
    own: list[list[str]] = [[]] * (len(parts) - 1) + [notes]
    return [TerminalTable(name, part[0], part[1:], each) for name, part, each in zip(titles, parts, own, strict=True)]


def _cut(lines: Sequence[Sequence[str]], width: int) -> list[list[int]]:
    """The positions of the columns of each part of a table in the terminal, without the first column, which all parts have.

    In the terminal each column has a border and two spaces beside its widest line.
    """
    labels, *others = (
        3 + max(len(text) for cell in column for text in cell.split("\n")) for column in zip(*lines, strict=True)
    )
    parts: list[list[int]] = [[]]
    used = 1 + labels
    for i, own in enumerate(others, start=1):
        if parts[-1] and used + own > width:
            parts.append([])
            used = 1 + labels
        parts[-1].append(i)
        used += own
    return parts


def _wrapped(lines: list[list[str]]) -> list[list[str]]:
    """The lines with headings in two lines where they name the temperature."""
    return [[text.replace(f" {CALIBRATED}", f"\n{CALIBRATED}") for text in lines[0]], *lines[1:]]


def _lines(table: Table, columns: Sequence[Column]) -> list[list[str]]:
    """The header and the rows of some of the table's columns as plain text."""
    lines = [[table.first, *(column.header for column in columns)]]
    for section, rows in _sections(table, columns):
        if section:
            lines.append([section, *[""] * len(columns)])
        for row in rows:
            cells = [_cell(row, column, str, "{} *".format, "{} †".format) for column in columns]
            lines.append([f"  {row.label}" if section else row.label, *("\n".join(cell) for cell in cells)])
    return lines


def latex(table: Table, prefix: str = "") -> str:
    """The table in LaTeX, for \\input in a document that loads the packages booktabs and graphicx.

    Its label is tab:KEY, or tab:PREFIX-KEY, so that a document may hold the tables of several reports.

    A wide table is cut by columns, and shrunk to the width of the line if it still is wider. If it then has more than LONG
    lines, it becomes several tables with the same number, each on a page. The notes stand under the last one.
    """
    floats: list[list[list[str]]] = [[]]  # the tabulars of each float, as lines
    for part in _cut(_lines(table, table.columns), LATEX_WIDTH):
        for tabular in _tabulars(table, [table.columns[i - 1] for i in part]):
            if floats[-1] and sum(map(len, floats[-1])) + len(tabular) > LONG:
                floats.append([])
            floats[-1].append(tabular)
    place, after = ("[p]", [r"\clearpage"]) if len(floats) > 1 else ("[t]", [])
    label = f"tab:{prefix}-{table.key}" if prefix else f"tab:{table.key}"
    lines = [r"% needs \usepackage{booktabs,graphicx}"]
    for i, tabulars in enumerate(floats):
        title = latex_text(table.title)
        caption = (
            rf"\addtocounter{{table}}{{-1}}\caption{{{title}, continued.}}" if i else rf"\caption{{{title}.}}\label{{{label}}}"
        )
        lines += [rf"\begin{{table}}{place}", r"\centering\footnotesize", caption]
        lines += [line for tabular in tabulars for line in tabular]
        if i == len(floats) - 1:
            notes = " ".join(f"{note[:1].upper()}{note[1:]}." for note in [*table.notes, *legend(table, "bold")])
            lines.append(rf"\parbox{{\linewidth}}{{\scriptsize {latex_text(notes)}}}")
        lines += [r"\end{table}", *after]
    return "\n".join(lines) + "\n"


def _tabulars(table: Table, columns: Sequence[Column]) -> list[list[str]]:
    """Some columns of the table as LaTeX: one tabular or, with more than LONG lines, several."""
    names = [latex_text(text) for text in [table.first, *(column.header for column in columns)]]
    head = [r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%"]
    head += [rf"\begin{{tabular}}{{l{'r' * len(columns)}}}", r"\toprule", " & ".join(names) + r" \\", r"\midrule"]
    foot = [r"\bottomrule", r"\end{tabular}}\par\medskip"]
    return [[*head, *body, *foot] for body in _bodies(table, columns)]


def _bodies(table: Table, columns: Sequence[Column]) -> list[list[str]]:
    """The rows of each tabular: cut between sections where possible, and never within a row."""
    bodies: list[list[str]] = [[]]
    for section, rows in _sections(table, columns):
        heading = [rf"\multicolumn{{{len(columns) + 1}}}{{l}}{{\textit{{{latex_text(section)}}}}} \\"] if section else []
        blocks = [_latex_row(row, columns) for row in rows]
        if bodies[-1] and len(bodies[-1]) + 2 + sum(map(len, blocks)) > LONG:
            bodies.append([])
        if bodies[-1] and section:
            bodies[-1].append(r"\addlinespace")
        bodies[-1] += heading
        for block in blocks:
            if len(bodies[-1]) + len(block) > LONG:
                bodies.append([*heading])
            bodies[-1] += block
    return bodies


def _latex_row(row: Row, columns: Sequence[Column]) -> list[str]:
    """One line, or two where a cell has a difference under its value."""
    cells = [_cell(row, column, latex_number, r"\textbf{{{}}}".format, r"{}$^\dagger$".format) for column in columns]
    lines = [[latex_text(row.label), *(cell[0] if cell else "" for cell in cells)]]
    if any(len(cell) > 1 for cell in cells):
        lines.append(["", *(rf"{{\scriptsize {cell[1]}}}" if len(cell) > 1 else "" for cell in cells)])
    return [" & ".join(line) + r" \\" for line in lines]


def legend(table: Table, better: str) -> list[str]:
    """Sentences on the signs that the table's cells hold, and on no others.

    Args:
        better: how a number that is better than the baseline is marked.
    """
    shown = [
        (row.numbers[column.key], column.shows) for row in table.rows for column in table.columns if column.key in row.numbers
    ]
    values = [number.text("value") for number, shows in shown if shows in ("both", "value")]
    compared = [number for number, shows in shown if shows in ("both", "difference")]
    differences = [text for number in compared if (text := number.text("difference"))]
    sentences = ["±: standard deviation over seeds"] if any("±" in text for text in values) else []
    if any("[" in text for text in differences):
        sentences.append("a signed number with [ ]: difference from the baseline and its 95% interval")
    if any("[" not in text for text in differences):
        sentences.append("a difference without [ ] is of a metric for which no valid interval is known, and is never marked")
    if any(not math.isnan(number.facts["p_holm"]) for number in compared):
        sentences.append(
            f"{better}: better than the baseline, †: worse, both with p < {LEVEL} after Holm's correction over the mechanisms"
            " of the setting, for each metric by itself"
        )
    return sentences


def _sections(table: Table, columns: Sequence[Column]) -> Iterator[tuple[str, list[Row]]]:
    """The sections in their order, each with its neighbouring rows. Those with nothing in these columns are left out."""
    for section, rows in groupby(table.rows, key=lambda row: row.section):
        found = list(rows)
        shown = [line for row in found for column in columns for line in _cell(row, column, str, str, str)]
        if any(line != MISSING for line in shown):
            yield section, found


def _texts(number: Number, shows: str) -> list[str]:
    """The lines of a cell, without those that are empty."""
    lines = [number.text(part) for part in (("value", "difference") if shows == "both" else (shows,))]
    return [line for line in lines if line]


def _cell(
    row: Row, column: Column, escape: Callable[[str], str], better: Callable[[str], str], worse: Callable[[str], str]
) -> list[str]:
    """The lines of a cell, the first one marked if the difference from the baseline is shown and deserves it."""
    if column.key not in row.numbers:
        return [escape(MISSING)] if column.shows in ("both", "value") else []
    number = row.numbers[column.key]
    lines = [escape(text) for text in _texts(number, column.shows)]
    if lines and column.shows in ("both", "difference") and number.verdict:
        lines[0] = (better if number.verdict == BETTER else worse)(lines[0])
    return lines


def markdown_text(text: str) -> str:
    return "".join(f"\\{character}" if character in r"\`*_<>|~" else character for character in text)


# [ and * are wrapped because \\ takes them for its own argument where they begin a line.
_LATEX = {
    **{character: f"\\{character}" for character in "%&#$_{}"},
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": "$<$", ">": "$>$", "[": "{[}",
    "*": "{*}", "±": r"$\pm$", "†": r"$^\dagger$", "|": r"\textbar{}", '"': "''",
}  # fmt: skip


def latex_text(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in text)


def latex_number(text: str) -> str:
    """A number of a table: as other text, with a true minus sign, and a dash where there is none."""
    return "--" if text == MISSING else latex_text(text).replace("-", "$-$")
