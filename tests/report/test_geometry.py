"""The report of the geometry in words: headline, verdicts, headers that are explained before they are used."""

import csv as csv_module
import io
import math
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from geometry_tables import a_chain, a_facts
from pages import EVIL

from gch_bench.report import text_table
from gch_bench.report.geometry import MEASURED_NOTE, STATIC_NOTE, console_tables, logged_metrics, markdown
from gch_bench.report.geometry_headline import COLUMNS, facts, headline
from gch_bench.report.geometry_quantities import SECTIONS, plain
from gch_bench.report.geometry_words import TAIL, short_verdict, verdict
from gch_bench.results.geometry import ALIGNED, BRANCH, MEASURED, ChainReport, headline_interfaces

TRAINED, CHANCE, ALONE = a_chain(6), a_chain(6, trained=False, seed=1), a_chain(1)
REPORTS = [("trained", TRAINED), ("random initialisation", CHANCE), ("one factor", ALONE)]


def with_columns(**columns: object) -> ChainReport:
    """A chain in branch form alone, with these columns of its interfaces set."""
    report = a_chain(6)
    report.interfaces = report.interfaces[report.interfaces["form"] == BRANCH].assign(**columns)
    report.summary |= {name: float(report.interfaces[name].median()) for name in columns if name in report.summary}
    return report


def test_the_headline_has_a_row_per_network_and_one_of_chance() -> None:
    table = headline(REPORTS)
    assert [row[0] for row in table.rows] == ["trained", "random initialisation", "one factor", "by chance"]
    assert all(len(row) == len(table.columns) == len(COLUMNS) + 2 for row in table.rows)
    row = dict(zip(table.columns, table.rows[0], strict=True))
    gain = headline_interfaces(TRAINED.interfaces)["energy_gain"].median()
    assert re.fullmatch(rf"{gain:.2f} \[\d\.\d\d, \d\.\d\d\]", row["energy gain"])
    assert row["z"].startswith("+1")
    assert row["aligned / opposed"] == "5 (5) / 0 (0) of 5"
    assert row["R.95 / rotated"] == "88% / 86%"
    assert row["spikes"] == "2.0"
    assert row["chart"] == "2 of 6"
    assert dict(zip(table.columns, table.rows[2], strict=True))["aligned / opposed"] == "-"


def test_numbers_of_the_headline_are_those_of_branch_interfaces() -> None:
    own = facts(TRAINED)
    branches = TRAINED.interfaces[TRAINED.interfaces["form"] == BRANCH]
    assert own["interfaces"] == 5
    assert own["aligned"] == sum(value >= 97.5 for value in branches["energy_gain_percentile"])
    assert own["slack_ratio_null"] == pytest.approx(branches["slack_ratio_null"].median())
    assert own["chart_adequate"] == sum(name == "adequate" for name in TRAINED.factors["chart"])


def test_forms_of_the_headline(tmp_path: Path) -> None:
    table = headline([(EVIL, TRAINED), *REPORTS])
    paths = text_table.write(table, tmp_path)
    assert [path.name for path in paths] == [f"geometry_headline.{kind}" for kind in ("csv", "md", "tex")]
    rows = list(csv_module.DictReader(io.StringIO(paths[0].read_text())))
    assert rows[0]["subject"] == EVIL
    assert float(rows[1]["energy_gain"]) == pytest.approx(TRAINED.summary["energy_gain"])
    tex = paths[2].read_text()
    cells = [line for line in tex.splitlines() if line.endswith(r" \\")]
    assert len(cells) == 6  # heads, four networks, chance
    assert all(line.count(" & ") == len(table.columns) - 1 for line in cells)
    assert r"\toprule" in tex
    assert not any(re.search(r"(?<!\\)%", line) for line in [*cells, tex.splitlines()[-2]]), "a % begins a comment"


def lines_of_tables(text: str) -> list[tuple[int, list[str]]]:
    """(number of the line, headers) of each table."""
    lines = text.splitlines()
    found = [at for at, line in enumerate(lines) if at + 1 < len(lines) and lines[at + 1].startswith("| ---")]
    return [(at, [cell.strip().replace("\\", "") for cell in re.split(r"(?<!\\)\|", lines[at])[1:-1]]) for at in found]


def test_every_header_is_explained_before_it_is_used() -> None:
    text = markdown(a_facts(), REPORTS, None, {})
    explained: dict[str, int] = {}
    for at, line in enumerate(text.splitlines()):
        if match := re.match(r"- (?:\*\*)?(.+?)(?:\*\* \(|: )", line):
            explained.setdefault(match[1].replace("\\", ""), at)
    tables = lines_of_tables(text)[1:]  # the first one says which weights were looked at
    assert len(tables) > 10
    for at, headers in tables:
        for header in headers:
            if header not in ("network", "chain"):
                assert explained.get(header, at) < at, header


def test_every_quantity_has_its_chance_or_a_reason() -> None:
    for section in SECTIONS:
        for each in section.quantities:
            assert each.chance or each.header in ("factor", "from", "to")
            assert each.meaning


def test_the_report_has_both_forms_of_interfaces_branches_first() -> None:
    text = markdown(a_facts(), REPORTS, None, {"margins-trained-residual": "what is *lost*"})
    assert text.index("branch to branch") < text.index("block to block")
    assert "![margins-trained-residual](figures/margins-trained-residual.svg)\n\nwhat is \\*lost\\*\n" in text
    assert "WARNING: net: a \\| warning" in text
    assert "nan" not in text
    assert "bounded by their sum" not in text
    for _, headers in lines_of_tables(text):
        assert len(headers) > 1


def test_tables_without_certificates_and_columns_are_reported_as_far_as_they_go() -> None:
    report = a_chain(4)
    kept = [name for name in report.interfaces if not str(name).startswith(("physical", "source"))]
    report.interfaces = report.interfaces[kept]
    report.summary = {name: value for name, value in report.summary.items() if "certified" not in name}
    text = markdown(a_facts(), [("net", report)], None, {})
    assert "Of output channels x input channels" not in text
    assert "certified to keep" not in text
    assert markdown(a_facts(), [], None, {}).count("##") == 0


def test_the_verdict_on_aligned_factors() -> None:
    text = verdict(TRAINED)
    assert "Neighbouring branches are aligned: at 5 of 5 interfaces (by chance 2.5% of them)" in text
    assert "adequate for 2 of 6 factors; exponents of the others describe nothing" in text
    assert "with the ranks that hold 95% of the energy 88% (after a random rotation 86%)" in text
    assert "the strict all-or-nothing certificate holds at 0 of 5;" in text
    assert "5 of the 5 aligned ones also exceed what permutations of the shared channels give" in text
    assert "2.0 singular values per single matrix of the branches stand above" in text
    assert short_verdict(TRAINED).startswith("aligned beyond chance; power law adequate for 2 of 6")


def test_the_verdict_says_what_chance_explains() -> None:
    text = verdict(CHANCE)
    assert "indistinguishable from that under a random rotation" in text
    assert "are aligned" not in text
    assert "adequate for none of the 6 factors" in text
    assert "No singular value of a single matrix of the branches stands above" in text


def test_the_verdict_on_factors_that_avoid_each_other_and_on_unclear_ones() -> None:
    away = with_columns(energy_gain=0.5, energy_gain_z=-8.0, energy_gain_percentile=0.0)
    assert "avoid each other: at 5 of 5 interfaces" in verdict(away)
    assert short_verdict(away).startswith("aligned less than by chance")
    unclear = with_columns(energy_gain=1.1, energy_gain_z=2.5, energy_gain_percentile=96.0)
    assert "this is no clear result" in verdict(unclear)
    one_of_five = with_columns(
        energy_gain=[1.0, 1.0, 1.0, 1.0, 1.2], energy_gain_z=[0.1, 0.0, -0.1, 0.3, 2.3],
        energy_gain_percentile=[55.0, 50.0, 45.0, 60.0, 99.0],
    )  # fmt: skip
    assert "it exceeds that of 97.5% of rotations at 1 of 5 interfaces" in verdict(one_of_five)
    mixed = with_columns(
        energy_gain=[0.5, 0.6, 1.0, 1.4, 1.2], energy_gain_z=[-9.0, -8.0, 0.1, 9.0, 8.0],
        energy_gain_percentile=[0.0, 0.0, 50.0, 100.0, 100.0],
    )  # fmt: skip
    assert "more energy passes than under 97.5% of random rotations at 2 of 5 interfaces" in verdict(mixed)
    assert "less at 2, median energy gain 1.00" in verdict(mixed)
    assert "at some interfaces" in short_verdict(mixed)
    assert headline([("net", mixed)]).rows[0][4] == "2 (2) / 2 (0) of 5"


def test_what_has_no_null_is_said_and_never_nan() -> None:
    nothing = {f"energy_gain{end}": math.nan for end in ("_z", "_percentile", "_permuted_z")}
    nothing |= {f"{name}{end}": math.nan for name in ("slack_ratio", "angle_excess") for end in ("", "_z", "_percentile")}
    flat = with_columns(energy_gain=1.0, **nothing)
    flat.factors = flat.factors.assign(chart="not applicable", exponent=0.0, explained_share=math.nan, rest_share=math.nan)
    text = verdict(flat)
    assert "Whether neighbouring branches are aligned is not defined: at every interface a spectrum is flat" in text
    assert "What the product loses of the largest gains is not defined: every spectrum here is flat." in text
    assert "The angles between leading directions are not defined" in text
    assert "The power-law chart applies to no factor" in text
    assert short_verdict(flat) == "alignment not defined, no null has a spread; 88% of the blocks certified at R.95"
    assert headline([("net", flat)]).rows[0][4:7] == ["-", "-", "-"]
    for each in (text, short_verdict(flat), markdown(a_facts(), [("net", flat)], None, {})):
        assert "nan" not in each


def test_interfaces_without_a_null_are_not_counted() -> None:
    z, percentile = [9.0, 8.0, math.nan, math.nan, 8.0], [100.0, 100.0, math.nan, math.nan, 100.0]
    some = with_columns(energy_gain_z=z, energy_gain_percentile=percentile, energy_gain_permuted_z=[3.0, 1.0, 9.0, 9.0, -3.0])
    assert "are aligned: at 3 of 3 interfaces" in verdict(some)
    assert "; at 2 more the null has no spread." in verdict(some)
    assert "1 of the 3 aligned ones also exceed" in verdict(some)
    assert headline([("net", some)]).rows[0][4] == "3 (1) / 0 (0) of 3"


def test_charts_that_do_not_apply_are_not_counted() -> None:
    report = a_chain(6)
    report.factors.loc[report.factors.index[-2:], "chart"] = "not applicable"
    assert "adequate for 2 of 4 factors" in verdict(report)
    assert "; 2 more are flat or have fewer than 8 ranks." in verdict(report)
    assert headline([("net", report)]).rows[0][8] == "2 of 4"


def test_branches_that_are_zero_at_initialisation() -> None:
    report = a_chain(4, branches=False)
    assert "zero at initialisation" not in verdict(report)
    report.factors["identity_distance"] = [0.0, 1.2, 0.0, 1.4]
    assert verdict(report).startswith("Its branches are zero at initialisation, so these are its shortcuts alone. Neighbouring")
    assert short_verdict(report).startswith("branches zero at initialisation: aligned")
    with_branches = a_chain(4)
    with_branches.factors["identity_distance"] = 0.0
    assert "zero at initialisation" not in verdict(with_branches)


def test_the_chance_of_a_tail() -> None:
    """By 79 exchangeable draws: the value is among the two largest of 80 numbers."""
    ranks = np.arange(80)  # of the value among its draws, all equally likely
    assert np.mean(100 * ranks / 79 >= ALIGNED) == TAIL
    assert np.mean(100 * ranks / 79 <= 100 - ALIGNED) == TAIL


def test_tables_without_the_newest_columns() -> None:
    report = a_chain(4)
    new = ("rest_share", "rest_exponent", "spikes_read", "spikes_write", "energy_gain_permuted", "energy_gain_permuted_z",
           "physical_masks_certified")  # fmt: skip
    report.factors = report.factors.drop(columns=[name for name in new if name in report.factors])
    report.interfaces = report.interfaces.drop(columns=[name for name in new if name in report.interfaces])
    kept = ("interfaces", "energy_gain", "energy_gain_z", "slack_ratio", "spikes", "certified_share")
    report.summary = {name: report.summary[name] for name in kept}
    row = headline([("net", report)]).rows[0]
    assert re.fullmatch(r"\d\.\d\d", row[2])
    assert (row[4], row[9]) == ("3 / 0 of 3", "-")
    assert "permutations" not in verdict(report)
    assert "values per factor stand above" in verdict(report)
    assert "nan" not in markdown(a_facts(), [("net", report)], None, {})


def test_one_factor_and_measured_chains() -> None:
    assert verdict(ALONE).startswith("The chain is one factor, so there is no interface to look at.")
    measured = a_chain(3, kind=MEASURED)
    assert "hold for each block linearised at these images; products of blocks are off by the composition" in verdict(measured)
    text = markdown(a_facts(), [("net", measured)], None, {})
    assert MEASURED_NOTE[1:30] in text
    assert STATIC_NOTE[1:30] not in text


def test_console_and_logged_numbers() -> None:
    tables = console_tables(REPORTS)
    assert tables[0].rows[0][0] == "trained residual"
    assert tables[-1].notes[0] == f"trained residual: {short_verdict(TRAINED)}"
    assert tables[-1].notes[-1] == STATIC_NOTE
    assert all(sum(len(cell) + 3 for cell in row) <= 100 for table in tables for row in [table.columns, *table.rows])
    assert console_tables([]) == []
    logged = logged_metrics([("a net/x", TRAINED)])
    assert logged["a-net-x/residual/energy_gain"] == TRAINED.summary["energy_gain"]
    assert "a-net-x/residual/drift" not in logged  # nan


def test_no_column_of_a_table_is_lost() -> None:
    """The made-up results have every column, so that every header must stand in a table, with its number."""
    text = markdown(a_facts(), [("net", a_chain(3))], None, {})
    found = {header for _, headers in lines_of_tables(text) for header in headers}
    for section in SECTIONS:
        assert not {each.header for each in section.quantities} - found, section.title
    row = next(line for line in text.splitlines() if "8 contiguous" in line)
    assert "| 8 contiguous | 0.3 | 40% | 30% [13%, 44%] | 28% | 30% | 9 | 4 | 20/30/14 |" in row
    row = next(line for line in text.splitlines() if "84% (91%)" in line)
    assert "| 70%, 80%, 55%, 60% |" in row
    assert row.endswith("| no | 0.99 |")
    assert "1.01 (+" in text
    assert re.search(r"\| \d \(3, 1\) \|", text)


def test_numbers_in_cells() -> None:
    cases = {0.12345: "0.123", 1234.5: "1234", 8.06e15: "8.06e+15", -1e-16: "0", math.nan: "-", math.inf: "inf", "x": "x"}
    assert {value: plain(value) for value in cases} == cases


def test_headline_interfaces_takes_the_branch_form_where_there_is_one() -> None:
    table = pd.DataFrame({"index": [0, 0, 1], "form": ["block", "branch", "block"]})
    assert headline_interfaces(table)["form"].tolist() == ["branch", "block"]
