"""The section on compatibility: words of the summary, flagged rows, figures, pages, and the option of report.py."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from compatibility_tables import Tables, around, make_section, make_tables
from pages import EVIL, ORIGIN, a_report
from test_runs import make_run, save

from gch_bench.apps.report import report
from gch_bench.config.report import ReportConfig
from gch_bench.config.run import LoggerConfig
from gch_bench.errors import UserError
from gch_bench.files import write_json, write_parquet
from gch_bench.report.compatibility import Section, console_tables, flagged, markdown, overview, page, read
from gch_bench.report.compatibility_figures import all_figures
from gch_bench.report.compatibility_words import QUANTITIES, SECTIONS, SUMMARY, percent, summary_tables, telling_tables
from gch_bench.report.html import page as report_page
from gch_bench.results.compatibility import DISAGREES, NOT_APPLICABLE, OUTSIDE, Row, judged, mean_row


def words(tables: Tables) -> dict[str, dict[str, str]]:
    """Mechanism -> column of the summary -> cell, of the first stage."""
    table = summary_tables(tables["summary"], tables["measurements"])[0]
    return {row[0].text: dict(zip(table.columns[1:], (each.text for each in row[1:]), strict=True)) for row in table.rows}


THREE = {"gate": True, "mask": False, "inside": None}


def test_words_of_the_summary() -> None:
    found = words(make_tables(THREE))
    assert found["gate"] == {
        "positive": "yes", "mean one": "per sample; at a site -3.0%", "ranking stable": "yes: 3.0% lost",
        "gate variance": "0.40", "roughness": "0.81", "pooled bias": "0.00%", "pooled distortion": "0.21",
        "survives": "yes: 20%",
        "top class flips": "12%",
    }  # fmt: skip
    assert found["mask"]["positive"] == "no: 19% singular"
    assert found["mask"]["ranking stable"] == "no: 3.0% lost"
    assert found["mask"]["mean one"] == "on average; at a site -3.0%"
    assert found["mask"]["roughness"] == NOT_APPLICABLE
    inside = found["inside"]
    assert {name for name, text in inside.items() if text == NOT_APPLICABLE} == set(SUMMARY) - {"survives", "top class flips"}


@pytest.mark.parametrize(
    ("site", "expected"),
    [
        (mean_row("mean", "mean at a site", around(1.005, 0.1), None), "per sample; none seen at a site"),
        (mean_row("mean", "mean at a site", around(0.97, 0.01), None), "per sample; at a site -3.0%"),
        (mean_row("mean", "mean at a site", around(1.005, 0.1), 1.0), "per sample and at each site"),
        (mean_row("mean", "mean at a site", around(0.97, 1e-4), 1.0), "per sample; at a site -3.0%"),
        (mean_row("mean", "mean at a site", around(0.97, 0.1), 0.96), "per sample; at a site -3.0%"),
    ],
)
def test_a_bias_at_a_site_is_named_where_it_is_no_chance(site: Row, expected: str) -> None:
    tables = make_tables({"gate": True})
    rows = tables["measurements"]
    own = rows.index[rows["quantity"] == "mean at a site"][0]
    for key, value in site._asdict().items():
        rows.loc[own, key] = value
    tables["measurements"] = judged(rows)
    assert words(tables)["gate"]["mean one"] == expected


def test_noise_that_is_lost_and_too_few_pairs_are_told() -> None:
    tables = make_tables({"gate": True})
    tables["summary"] = tables["summary"].assign(survives=False, logit_change=3e-5)
    rows = tables["measurements"]
    tables["measurements"] = rows[~((rows["quantity"] == "order lost") & (rows["x"] > 0.1))]
    assert words(tables)["gate"]["survives"] == "no: 0.0030%, under 0.01%"
    assert words(tables)["gate"]["ranking stable"] == "3.0% lost"


@pytest.mark.parametrize(("share", "text"), [(0, "0%"), (0.0026, "0.26%"), (0.03, "3.0%"), (0.0996, "10%"), (1.5, "150%")])
def test_percent(share: float, text: str) -> None:
    assert percent(share) == text


def test_console_tables_are_narrow_and_have_notes_once() -> None:
    parts = list(console_tables(make_tables(THREE, ("L3", "L4"))))
    assert {part.columns[0] for part in parts} == {"mechanism"}
    assert [part.title.split()[2] for part in parts] == sorted(part.title.split()[2] for part in parts)
    assert max(sum(3 + len(cell) for cell in row) for part in parts for row in part.rows) < 100
    assert [bool(part.notes) for part in parts] == [False] * (len(parts) - 1) + [True]
    assert len([note for note in parts[-1].notes if note.split(":")[0] in SUMMARY]) == len(SUMMARY)


def test_flagged_rows_are_named_with_what_is_expected() -> None:
    tables = make_tables({"gate": True})
    (line,) = flagged(tables["measurements"])
    assert re.match(r"compared with theory: \d+ numbers. Outside .*: 0, where about \d+ .* DISAGREES .*: 0, which", line)
    rows = tables["measurements"].drop(columns="verdict")
    wrong = rows["quantity"].eq("variance") & rows["at"].eq("pair 1")
    rows.loc[wrong, "p_value"] = 1e-9
    rows.loc[rows["at"] == "pair 0", "p_value"] = 0.01
    table = judged(rows)
    counts, *lines = flagged(table)
    outside = int(table["verdict"].isin((OUTSIDE, DISAGREES)).sum())
    assert f"Outside their intervals of 95%: {outside}, where" in counts
    assert "below 0.01): 1, which" in counts
    assert len(lines) == 1
    assert re.match(
        r"DISAGREES: gate at L4, log-ratio: variance \(pair 1\) is 0\.8 \[0\.7\d*, 0\.8\d*\], theory 0\.8", lines[0]
    )
    text = page(make_section({**tables, "measurements": table}))
    assert "No number disagrees" not in text
    assert "‡" in " ".join(
        cell.text for each in telling_tables(judged(rows.assign(p_value=1e-9))) for row in each.rows for cell in row
    )


def test_figures_have_captions_and_exist_where_there_is_data() -> None:
    figures = all_figures(make_tables(THREE, ("L3", "L4")))
    kinds = {"log-ratio", "order", "decisions", "distortion-coherence"}
    assert set(figures) == {"survival", *(f"{kind}-{stage}" for kind in kinds for stage in ("L3", "L4"))}
    for name, figure in figures.items():
        assert len(figure.get_label()) > 100, name
        assert figure.get_size_inches()[0] in (3.3, 6.9), name
    masks = all_figures(make_tables({"mask": False}))
    assert set(masks) == {"survival", "order-L4", "decisions-L4", "distortion-coherence-L4"}
    assert set(all_figures(make_tables({"inside": None}))) == {"survival", "decisions-L4", "distortion-coherence-L4"}


def test_the_points_of_a_figure_are_the_measured_values() -> None:
    tables = make_tables({"gate": True})
    left, right = all_figures(tables)["log-ratio-L4"].axes
    drawn = next(line for line in left.lines if line.get_label() == "gate")
    rows = tables["measurements"]
    expected = rows[rows["quantity"] == "variance"]
    points = np.stack([expected["theory"], expected["measured"] / expected["theory"]], 1)
    np.testing.assert_allclose(drawn.get_xydata(), points)
    worm = next(line for line in right.lines if line.get_label() == "gate")
    np.testing.assert_allclose(worm.get_ydata(), 0, atol=1e-12)


class Elements(HTMLParser):
    """The elements of a page, and the texts outside script and style."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))


@pytest.mark.parametrize("inside", [False, True], ids=["its own page", "in the page of a report"])
def test_a_page_fetches_nothing_and_obeys_no_name(inside: bool) -> None:
    section = make_section(make_tables({EVIL: True, "mask": False}, ("L3", "L4")))
    if inside:
        figures = {"figure": next(iter(section.figures.values()))}
        text = report_page(a_report(), [], figures, ORIGIN, "rows.csv", overview(section, "compatibility"))
    else:
        text = page(section)
    tags = Elements(text).tags
    assert sum(tag == "script" for tag, _ in tags) == 2
    assert not [name for _, attributes in tags for name in attributes if name.startswith("on")]
    targets = [str(attributes[name]) for _, attributes in tags for name in ("src", "href") if attributes.get(name)]
    assert {target for target in targets if not target.startswith(("#", "data:"))} <= {"rows.csv"}
    ids = [attributes["id"] for _, attributes in tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {target[1:] for target in targets if target.startswith("#")} <= set(ids)
    assert ("compatibility" in ids) == inside
    assert "@import" not in text
    assert not re.search(r"url\((?!#)", text)
    assert len(text) < 3_000_000


def test_a_report_without_compatibility_has_no_such_section() -> None:
    text = report_page(a_report(), [], {}, ORIGIN)
    assert 'id="compatibility"' not in text
    assert "#compatibility" not in text


@pytest.mark.parametrize("mechanisms", [{"gate": True}, {"inside": None}, THREE], ids=["one", "nothing applies", "three"])
def test_both_forms_of_the_report_are_made(mechanisms: dict[str, bool | None]) -> None:
    section = make_section(make_tables(mechanisms))
    text = markdown(section)
    assert [line for line in text.splitlines() if line.startswith("## ")] == [
        f"## {name}" for name in ("Summary", "Comparison with theory", "Measurements", "Figures", "Definitions")
    ]
    assert "- WARNING: \\<script\\>" in text
    for name in section.figures:
        assert f"![{name}](figures/{name}.svg)" in text
    data = re.search(r'id="results-data">(.*?)</script>', page(section))
    assert data is not None
    assert len(json.loads(data[1])["measured"]["numbers"]) == len(section.tables["measurements"])


def test_empty_tables_are_still_a_report() -> None:
    tables = {name: table.iloc[:0] for name, table in make_tables({"gate": True}).items()}
    section = make_section(tables)
    assert not section.figures
    assert list(console_tables(tables)) == []
    assert "nothing here could be compared with theory" in markdown(section)
    assert "No mechanism could be measured" in page(section)


def test_every_quantity_belongs_to_a_section_and_is_explained_once() -> None:
    assert {each.section for each in QUANTITIES} == set(SECTIONS)
    assert len({(each.section, each.name) for each in QUANTITIES}) == len(QUANTITIES)
    assert all(each.meaning for each in QUANTITIES)


def written(section: Section, folder: Path) -> Path:
    for name, table in section.tables.items():
        write_parquet(folder / f"{name}.parquet", table)
    write_json(folder / "run.json", section.facts)
    return folder


def test_the_report_on_runs_shows_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = written(make_section(make_tables(THREE), figures=False), tmp_path / "compatibility")
    runs = [
        str(save(make_run(name, draws, data={"name": "digits"}), tmp_path / name)) for draws, name in enumerate(("none", "gch"))
    ]
    verdicts = []
    for number, given in enumerate((None, str(folder))):
        config = ReportConfig(LoggerConfig("none"), runs, f"{tmp_path / str(number)}", resamples=100, compatibility=given)
        report(config)
        verdicts.append(capsys.readouterr().out.partition("\nVerdict\n")[2].partition("\nwritten")[0])
        text = (tmp_path / str(number) / "report.html").read_text()
        assert ("per sample; at a site -3.0%" in text) == ('<h2 id="compatibility-title">' in text) == (given is not None)
    assert verdicts[0] == verdicts[1] != ""
    assert (tmp_path / "1" / "figures" / "compatibility-survival.svg").is_file()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "run.json").unlink(), "has no run.json"),
        (lambda folder: write_json(folder / "run.json", {"kind": "diagnosis"}), "holds another result"),
        (lambda folder: (folder / "images.parquet").unlink(), "images.parquet cannot be read"),
        (lambda folder: (folder / "summary.parquet").write_bytes(b"x" * 99), "summary.parquet cannot be read"),
        (lambda folder: write_parquet(folder / "summary.parquet", pd.DataFrame({"stage": []})), "has no column height"),
    ],
)
def test_another_folder_is_one_line(tmp_path: Path, change: Any, message: str) -> None:
    folder = written(make_section(make_tables({"gate": True}), figures=False), tmp_path)
    facts, tables = read(folder)
    assert facts["kind"] == "compatibility"
    assert set(tables) == {"summary", "measurements", "images"}
    change(folder)
    with pytest.raises(UserError, match=f"^compatibility must be .*{message}") as error:
        read(folder)
    assert "\n" not in str(error.value)
