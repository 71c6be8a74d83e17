"""A table whose cells are texts, with the numbers behind them, and its forms: CSV, Markdown and LaTeX."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from gch_bench.report.render import latex_number, latex_text, markdown_text, write_texts


class TextTable(NamedTuple):
    """A table; ``heads`` of its columns, from the left, are texts, and the others are numbers."""

    name: str  # of its files, and of its LaTeX label
    title: str
    columns: list[str]
    rows: list[list[str]]
    notes: list[str]  # sentences of the caption
    numbers: pd.DataFrame  # what the CSV file holds: not rounded
    heads: int = 1


def csv(table: TextTable) -> str:
    return table.numbers.to_csv(index=False)


def markdown(table: TextTable) -> str:
    """The table in the Markdown of GitHub, with title and notes."""
    rows = markdown_rows(table.columns, table.rows, table.heads)
    notes = [f"- {markdown_text(note)}" for note in table.notes]
    return "\n".join([f"**{markdown_text(table.title)}**", "", *rows, "", *notes]) + "\n"


def markdown_rows(columns: Sequence[str], rows: Sequence[Sequence[str]], heads: int = 1) -> list[str]:
    """The lines of a table alone; the first ``heads`` columns stand to the left, the others to the right."""
    rule = ["---"] * heads + ["---:"] * (len(columns) - heads)
    lines = [[markdown_text(cell) for cell in columns], rule, *([markdown_text(cell) for cell in row] for row in rows)]
    return ["| " + " | ".join(line) + " |" for line in lines]


def latex(table: TextTable) -> str:
    """The table in LaTeX, for \\input in a document that loads the packages booktabs and graphicx.

    It is as wide as the text, so that it spans both columns of a paper that has two, and it shrinks where it is wider.
    """
    lines = [
        r"% needs \usepackage{booktabs,graphicx}",
        r"\begin{table*}[t]",
        r"\centering\footnotesize",
        rf"\caption{{{latex_text(table.title)}.}}\label{{tab:{table.name}}}",
        r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
        rf"\begin{{tabular}}{{{'l' * table.heads}{'r' * (len(table.columns) - table.heads)}}}",
        r"\toprule",
        " & ".join(latex_text(text) for text in table.columns) + r" \\",
        r"\midrule",
    ]
    for row in table.rows:
        cells = [(latex_text if at < table.heads else latex_number)(text) for at, text in enumerate(row)]
        lines.append(" & ".join(cells) + r" \\")
    notes = " ".join(f"{note}." for note in table.notes)
    lines += [r"\bottomrule", r"\end{tabular}}\par\medskip"]
    lines += [rf"\parbox{{\linewidth}}{{\scriptsize {latex_text(notes)}}}", r"\end{table*}"]
    return "\n".join(lines) + "\n"


FORMATS: dict[str, Callable[[TextTable], str]] = {"csv": csv, "md": markdown, "tex": latex}


def write(table: TextTable, folder: Path) -> list[Path]:
    """Write the table as ``folder/NAME.csv``, ``.md`` and ``.tex``, and return the paths.

    Raises:
        UserError: a file cannot be written.
    """
    return write_texts({f"{table.name}.{suffix}": form(table) for suffix, form in FORMATS.items()}, folder)
