"""What all pages of this program share: their tables, where they come from, and the template, style and script in page/.

A page is a single file that needs no network. All that comes from users is escaped by the templates, and the page's own policy
lets no script run but its own.
"""

import base64
import hashlib
import math
import shlex
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.resources import files
from typing import Any, NamedTuple

import jinja2
import pandas as pd
from markupsafe import Markup

from gch_bench.provenance import provenance
from gch_bench.report.render import markdown_text

DIGITS = 5  # significant digits of the numbers in a page's full table


class Entry(NamedTuple):
    """A cell of a table: its text, the number that its column is sorted by (None: sorted by the text), whether the text is
    bold, and a second line under it."""

    text: str
    number: float | None = None
    bold: bool = False
    second: str = ""


class PageTable(NamedTuple):
    """A table of the page; the first column heads the rows."""

    title: str
    columns: list[str]
    rows: list[list[Entry]]
    notes: list[str]

    @property
    def head_width(self) -> int:
        """The number of characters of the longest head of a row."""
        return max((len(row[0].text) for row in self.rows), default=0)

    @property
    def lines(self) -> list[list[str]]:
        """The heads of the columns and the rows as plain text."""
        return [self.columns, *([each.text for each in row] for row in self.rows)]

    def markdown(self) -> str:
        """The table in the Markdown of GitHub, without title and notes."""
        head, *rows = ["| " + " | ".join(map(markdown_text, line)) + " |" for line in self.lines]
        return "\n".join([head, "| " + " | ".join(["---"] * len(self.columns)) + " |", *rows]) + "\n"


class Origin(NamedTuple):
    """What made the page."""

    date: str
    commit: str
    command: str


def this_command() -> Origin:
    """The command that is running now."""
    return Origin(now(), provenance()["commit"] or "unknown: not a git checkout", shlex.join(sys.argv))


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")


def rendered(template: str, title: str, origin: Origin, first: str, **values: Any) -> str:
    """The text of a page from one of the templates in page/.

    Args:
        first: the id of the page's first section.
        values: what the template shows besides.
    """
    script, policy = _script()
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("gch_bench.report", "page"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":")}  # by default the keys are sorted: the columns
    shared = {"policy": policy, "style": Markup(_resource("page.css")), "script": Markup(script)}
    return environment.get_template(template).render(title=title, origin=origin, first=first, **shared, **values)


def json_columns(rows: pd.DataFrame, columns: Sequence[str]) -> dict[str, Any]:
    """A table by column in plain JSON values, for the page's script."""
    return {name: _column(rows[name]) for name in columns}


def _column(values: pd.Series) -> dict[str, Any]:
    """A column of texts as distinct texts and places in them, one of numbers as numbers; null where a value is missing."""
    if pd.api.types.is_numeric_dtype(values):
        return {"numbers": [_rounded(value) for value in values]}
    places, texts = pd.factorize(values.astype(str))
    return {"texts": [str(text) for text in texts], "places": places.tolist()}


def _rounded(value: Any) -> float | int | None:
    if pd.isna(value) or math.isinf(value):
        return None
    short = float(f"{value:.{DIGITS}g}")
    return int(short) if short.is_integer() else short


def _resource(name: str) -> str:
    return files("gch_bench.report").joinpath("page", name).read_text(encoding="utf-8")


def _script() -> tuple[str, str]:
    """The page's script, and the policy that lets it run and nothing else, nor anything from a network."""
    script = _resource("page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    allowed = f"script-src 'sha256-{digest}'; style-src 'unsafe-inline'; img-src data:"
    return script, f"default-src 'none'; {allowed}; base-uri 'none'; form-action 'none'"
