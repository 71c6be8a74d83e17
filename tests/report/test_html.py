"""The page as text: what comes from users is escaped, nothing is fetched, its parts are in order, its colours are legible."""

import json
import re
from html.parser import HTMLParser
from importlib.resources import files

import markupsafe
import pandas as pd
import pytest
from pages import EVIL, ORIGIN, a_page, a_report
from reports import make_report

from gch_bench.metrics import METRICS
from gch_bench.report.html import Entry, full_table, metric_table, page, page_table, setting_provenance
from gch_bench.report.render import BETTER, WORSE
from gch_bench.report.study import ROWS
from gch_bench.report.tables import tables


class Elements(HTMLParser):
    """The start tags of a page with their attributes, and its text by the innermost open element."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data: str) -> None:
        self.texts.append((self.tags[-1][0] if self.tags else "", data))


@pytest.fixture(scope="module")
def text() -> str:
    return a_page()


def test_names_from_users_are_shown_and_not_obeyed(text: str) -> None:
    found = Elements(text)
    assert sum(tag == "script" for tag, _ in found.tags) == 2  # the page's own script, and the data of all results
    assert not [name for _, attributes in found.tags for name in attributes if name.startswith("on")]
    shown = [data for tag, data in found.texts if tag not in ("script", "style") and EVIL in data]
    for part in (
        "lowers mean corrupted NLL", "unfinished, so", "more than its noise", "images of", "a warning about", "train.py noise=",
        "report.py", "Reliability of", "torch",
    ):  # fmt: skip
        assert any(part in data for data in shown), part
    assert EVIL in shown  # as the head of a table's row


def test_nothing_is_fetched(text: str) -> None:
    targets = [attributes[name] for _, attributes in Elements(text).tags for name in ("src", "href") if attributes.get(name)]
    assert {target for target in targets if not target.startswith(("#", "data:"))} == {"all%20rows.csv"}
    assert "@import" not in text
    assert not re.search(r"url\((?!#)", text)


def test_references_inside_the_page_lead_to_one_element_each(text: str) -> None:
    tags = Elements(text).tags
    ids = [attributes["id"] for _, attributes in tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = {str(attributes.get("href"))[1:] for _, attributes in tags if str(attributes.get("href")).startswith("#")}
    assert {"verdict", "tables", "figures", "runs", "definitions", "rows"} <= targets <= set(ids)


def test_parts_are_in_order_and_semantic(text: str) -> None:
    found = Elements(text)
    count = [tag for tag, _ in found.tags].count
    assert count("h1") == count("main") == 1
    assert count("table") == count("caption") == 6  # three kinds of tables, runs, metrics, all results
    assert all(attributes.get("scope") in ("row", "col") for tag, attributes in found.tags if tag == "th")
    headings = [data for tag, data in found.texts if tag == "h2" and data.strip()]
    assert headings == ["Verdict", "Tables", "Figures", "Runs", "Definitions", "All results"]
    assert text.index("0.0533") < text.index("unfinished, so it is left out") < text.index("<table")


def test_a_long_command_is_folded() -> None:
    command = "report.py 'runs=[" + ",".join(f"runs/x/run-{number}" for number in range(60)) + "]'"
    for each, folded in (("report.py 'runs=[runs/x/*]'", 0), (command, 1)):
        text = page(a_report(), [], {}, ORIGIN._replace(command=each), "results.csv")
        assert f'<code class="command">{markupsafe.escape(each)}</code>' in text
        assert text.split("<nav")[0].count("<details>") == folded


def test_a_report_without_anything_is_still_a_page() -> None:
    report = make_report()._replace(settings=[], verdict=[], rows=pd.DataFrame(columns=list(ROWS)))
    text = a_page(report, names=["finegrained"], figures=0)
    assert "No run could be used" in text
    assert "No two mechanisms could be compared" in text
    assert "Nothing was left out or refused" in text


def test_cells_show_what_the_numbers_say() -> None:
    (table,) = tables(a_report(6), "clean")
    shown = page_table(table)
    assert shown.columns == [table.first, *(column.header for column in table.columns)]
    verdicts = set()
    for row, entries in zip(table.rows, shown.rows, strict=True):
        assert entries[0].text == row.label
        for column, entry in zip(table.columns, entries[1:], strict=True):
            number = row.numbers[column.key]
            assert entry.number == number.facts["value"]
            verdict = number.verdict if column.shows == "both" else None
            assert entry.bold == (verdict == BETTER)
            assert entry.text.endswith("†") == (verdict == WORSE)
            assert entry.text.removesuffix(" †") == number.text("value")
            assert entry.second == (number.text("difference") if column.shows == "both" else "")
            verdicts.add(number.verdict)
    assert verdicts == {BETTER, WORSE, None}


def test_a_section_stays_with_its_rows() -> None:
    (table,) = tables(a_report(4), "depth")
    shown = [row[0] for row in page_table(table).rows]
    assert shown == [Entry(", ".join(filter(None, (row.section, row.label)))) for row in table.rows]
    assert any("," in entry.text for entry in shown)


def test_notes_that_all_tables_have_are_shown_once(text: str) -> None:
    kinds = [table for name in ("clean", "shift", "cells") for table in tables(a_report(), name)]
    common = set.intersection(*(set(table.notes) for table in kinds))
    assert common
    assert not common.issuperset(kinds[1].notes)  # it also says what the mean is over
    for note in {note for table in kinds for note in table.notes}:
        expected = 1 if note in common else sum(note in table.notes for table in kinds)
        assert text.count(str(markupsafe.escape(note))) == expected, note


def test_facts_that_all_runs_share_are_shown_once() -> None:
    part = setting_provenance(a_report().settings[0])
    assert part.shared["versions"] == f"torch {EVIL}"
    assert not set(part.shared) & set(part.runs.columns)
    assert {"mechanism", "seed", "temperature", "folder", "command", "configuration: noise.gamma"} <= set(part.runs.columns)
    gamma = part.runs.columns.index("configuration: noise.gamma")
    assert [row[gamma].number for row in part.runs.rows] == [0.0] * 3 + [0.5] * 3 + [1.0] * 3
    assert sum("a warning about" in note for note in part.runs.notes) == 3


def test_the_table_of_metrics_says_which_differences_have_an_interval() -> None:
    lines = {row[2].text: [entry.text for entry in row] for row in metric_table(a_report().rows).rows}
    assert list(lines) == list(METRICS)
    assert lines["nll"] == ["NLL", METRICS["nll"].meaning, "nll", "lower is better", "95% interval"]
    assert lines["top1"][3:] == ["higher is better", "95% interval"]
    assert lines["ece"][4] == "no interval: none is known to be valid"


def values(table: dict, name: str) -> list:
    column = table[name]
    return column["numbers"] if "numbers" in column else [column["texts"][place] for place in column["places"]]


def test_the_full_table_holds_the_rows_or_says_what_is_left_out() -> None:
    rows = a_report().rows
    table, left_out = full_table(rows)
    assert left_out == ""
    for name in ROWS:
        expected = rows[name]
        shown = pd.Series(values(table, name), index=rows.index)
        if name in ("value", "difference"):
            pd.testing.assert_series_equal(shown.astype(float), expected, check_names=False, rtol=1e-4)
        elif name in ("setting", "mechanism", "corruption", "metric"):
            assert list(shown) == list(expected)
    means = rows[(rows["corruption"] == "clean") | rows["severity"].isna()]
    few = means[means["corruption"].isin(["clean", "mean"])]
    for chosen, words in ((means, "single severities"), (few, "single corruptions")):
        table, left_out = full_table(rows, most=len(chosen))
        assert left_out == words
        assert values(table, "corruption") == list(chosen["corruption"])
        assert values(table, "metric") == list(chosen["metric"])
    assert "NaN" not in json.dumps(table)


def luminance(color: str) -> float:
    """The relative luminance of an sRGB colour `#rrggbb` (WCAG 2.2)."""
    color = color if len(color) == 7 else "#" + "".join(2 * digit for digit in color[1:])
    parts = [int(color[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_text_has_the_contrast_of_level_aa_in_light_dark_and_print() -> None:
    style = files("gch_bench.report").joinpath("page", "page.css").read_text()
    themes = [dict(re.findall(r"--(\w+(?:-\w+)?): (#\w+)", block)) for block in re.findall(r":root \{([^}]*)\}", style)]
    assert len(themes) == 3
    for theme in themes:
        for ink in ("ink", "muted", "link"):
            for paper in ("paper", "panel", "alert"):
                low, high = sorted((luminance(theme[ink]), luminance(theme[paper])))
                assert (high + 0.05) / (low + 0.05) >= 4.5, (ink, paper, theme)
