"""The four forms of a table: what they show, and that each can be read again."""

import re
from collections.abc import Iterator
from io import StringIO
from pathlib import Path

import pandas as pd
import pytest
from reports import DROPBLOCK, GCH, NONE, Mechanism, make_report, make_setting

from gch_bench.display import Display
from gch_bench.errors import UserError
from gch_bench.report.render import LONG, Table, csv, latex, legend, markdown, terminal, write
from gch_bench.report.study import ROWS
from gch_bench.report.tables import TABLES, tables

NASTY = r"[x_y] 50% *#1* {a} \b ~^ $2 p<q & r|s"  # every character that one of the forms treats in its own way
TWELVE = [NONE, *(GCH._replace(label=f"gch gamma={i} beta=1 L4", p=0.001) for i in range(10)), DROPBLOCK]


def make_table(name: str, *mechanisms: Mechanism, **options: object) -> Table:
    return tables(make_report(make_setting(mechanisms or (NONE, GCH, DROPBLOCK), **options)), name)[0]  # type: ignore[arg-type]


def columns_of(line: str) -> int:
    """The number of cells of a line of a LaTeX table."""
    merged = re.match(r"\\multicolumn{(\d+)}", line)
    return int(merged[1]) if merged else len(re.findall(r"(?<!\\)&", line)) + 1


def tabulars(text: str) -> Iterator[tuple[str, list[str]]]:
    """The layout and the lines of each tabular."""
    for layout, body in re.findall(r"\\begin{tabular}{(\w+)}\n(.*?)\\end{tabular}", text, flags=re.DOTALL):
        yield layout, body.splitlines()


def check_latex(text: str) -> None:
    """Raise unless braces and environments are balanced, special characters escaped, and all rows as wide as their table."""
    assert all(ord(character) < 128 for character in text)
    depth, bare = 0, re.sub(r"\\.", "", text)
    for character in bare:
        depth += {"{": 1, "}": -1}.get(character, 0)
        assert depth >= 0
    assert depth == 0
    open_environments: list[str] = []
    for kind, name in re.findall(r"\\(begin|end){(\w+)}", text):
        if kind == "begin":
            open_environments.append(name)
        else:
            assert open_environments.pop() == name
    assert open_environments == []
    content = "\n".join(line for line in bare.splitlines() if not line.startswith("%") and not line.endswith("{!}{%"))
    assert not re.findall(r"[%#_~|\"]", content)
    assert re.sub(r"\$[^$\n]{0,12}\$", "", content).count("$") == 0
    assert re.findall(r"\\(\w+)rule", text) == ["top", "mid", "bottom"] * len(list(tabulars(text)))
    for layout, lines in tabulars(text):
        rows = [line for line in lines if not re.fullmatch(r"\\(\w+rule|addlinespace)", line)]
        assert len(rows) > 1
        for row in rows:
            assert row.endswith(r" \\")
            assert columns_of(row) == len(layout)


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("label", [GCH.label, NASTY])
def test_latex_is_well_formed(name: str, label: str) -> None:
    table = make_table(name, NONE, GCH._replace(label=label))
    text = latex(table._replace(title=f"{table.title}, {label}"))
    check_latex(text)
    assert text.count(r"\caption{") == text.count(r"\begin{table}")
    assert text.count(r"\label{tab:") == 1


def test_latex_of_a_long_table_is_cut_between_rows() -> None:
    table = make_table("cells", *TWELVE)
    text = latex(table)
    check_latex(text)
    bodies = list(tabulars(text))
    assert text.count(r"\begin{table}[p]") > 1
    assert all(len(lines) <= LONG + 5 for _, lines in bodies)
    assert text.count(r"\addtocounter{table}{-1}") == text.count(r"\begin{table}") - 1
    per_part = {layout: 0 for layout, _ in bodies}
    first = "gch gamma=3 beta=1 L4 & "
    for layout, lines in bodies:
        per_part[layout] += sum(line.startswith(first) for line in lines)
        assert not lines[3].startswith(" &"), "no part begins with the second line of a row"
    assert all(count % 4 == 0 and count > 0 for count in per_part.values()), "a row for each of the four cells"


def test_latex_of_many_rows_without_sections_is_cut_between_rows() -> None:
    many = [GCH._replace(label=f"gch gamma={i} beta=1 L4", p=0.001) for i in range(50)]
    text = latex(make_table("clean", NONE, *many))
    check_latex(text)
    bodies = [lines for _, lines in tabulars(text)]
    assert len(bodies) > 2
    assert all(len(lines) <= LONG + 5 and lines[3].startswith(("gch", "none")) for lines in bodies)
    assert sum(line.startswith("gch gamma=7 beta=1 L4 & ") for lines in bodies for line in lines) == len(bodies) // 3


def test_latex_escapes_and_marks() -> None:
    text = latex(make_table("clean", NONE, GCH._replace(label=NASTY)))
    assert (
        r"{[}x\_y] 50\% {*}\#1{*} \{a\} \textbackslash{}b \textasciitilde{}\textasciicircum{} \$2 p$<$q \& r\textbar{}s &"
        in text
    )
    assert r"\textbf{0.1100 $\pm$ 0.0030}" in text  # NLL

    assert r"$^\dagger$" in text
    assert r"{\scriptsize $-$0.0200 {[}$-$0.0380, $-$0.0020]}" in text
    assert "\\textbf" not in latex(make_table("clean", NONE, GCH._replace(p=0.06)))


@pytest.mark.parametrize("name", TABLES)
def test_csv_round_trip(name: str) -> None:
    """Reading the file gives the numbers of the table, not rounded, in their order."""
    table = make_table(name)
    read = pd.read_csv(StringIO(csv(table)))
    assert list(read.columns) == list(ROWS)
    facts = [each.facts for row in table.rows for each in row.numbers.values()]
    for column in ("value", "sd", "difference", "low", "high", "p_holm", "detectable", "sign_flip"):
        pd.testing.assert_series_equal(read[column], pd.Series([each[column] for each in facts], name=column, dtype=float))
    assert list(read["metric"]) == [each["metric"] for each in facts]
    assert not re.search(r"[±†*%]|\*\*", csv(table))


def test_markdown() -> None:
    table = make_table("clean", NONE, GCH._replace(label=NASTY))
    text = markdown(table)
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + len(table.rows)
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {len(table.columns) + 2}
    assert r"| [x\_y] 50% \*#1\* {a} \\b \~^ $2 p\<q & r\|s |" in text
    assert "**0.1100 ± 0.0030**<br>-0.0200 [-0.0380, -0.0020]" in text
    assert "†<br>-2.00 [-3.80, -0.20]" in text
    assert "- bold: better than the baseline" in text
    assert "| *shift NLL* |  |" in markdown(make_table("mechanisms"))


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("mechanisms", [(NONE, GCH), TWELVE], ids=["two", "twelve"])
def test_the_terminal_shows_everything_in_100_columns(
    name: str, mechanisms: list[Mechanism], capsys: pytest.CaptureFixture[str]
) -> None:
    table = make_table(name, *mechanisms)
    parts = terminal(table)
    for part in parts:
        Display(main=True).table(part.title, part.columns, part.rows, [])
    printed = capsys.readouterr().out
    assert max(len(line) for line in printed.splitlines()) <= 100
    cells = {text for part in parts for row in part.rows for cell in row for text in cell.split("\n")}
    for row in table.rows:
        for column in table.columns:
            if column.key in row.numbers and column.shows in ("both", "value"):
                shown = row.numbers[column.key].text("value")
                assert cells & {shown, f"{shown} *", f"{shown} †"}
    assert [bool(part.notes) for part in parts] == [False] * (len(parts) - 1) + [True]
    assert any(note.startswith("*: better than the baseline") for note in parts[-1].notes)


def test_few_mechanisms_become_columns() -> None:
    (few,) = terminal(make_table("shift", NONE, GCH))
    assert few.columns == ["", "none", GCH.label]
    assert few.rows[1][0] == "NLL"
    many = terminal(make_table("shift", *TWELVE))
    assert many[0].columns[:3] == ["mechanism", "top-1 %", "NLL"]
    assert [len(part.rows) for part in many] == [12] * len(many)


def test_sections_without_numbers_are_left_out_of_a_part() -> None:
    after = next(part for part in terminal(make_table("mechanisms")) if "difference\nafter T" in part.columns)
    sections = [row[0] for row in after.rows if not row[0].startswith(" ")]
    assert "clean NLL" in sections
    assert not any("top-1" in section for section in sections)


def test_the_legend_explains_what_is_there_and_nothing_else() -> None:
    assert len(legend(make_table("clean"), "bold")) == 4
    (one,) = legend(make_table("clean", NONE), "bold")
    assert one.startswith("±")
    assert legend(make_table("clean", NONE, seeds=1), "bold") == []
    assert not any("without [ ]" in note for note in legend(make_table("strength", NONE), "bold"))


def test_files(tmp_path: Path) -> None:
    table = make_table("shift")
    paths = write(table, tmp_path / "tables")
    assert [path.name for path in paths] == ["shift.csv", "shift.md", "shift.tex"]
    assert [path.read_text() for path in paths] == [csv(table), markdown(table), latex(table)]
    assert r"\label{tab:shift}" in paths[2].read_text()
    assert r"\label{tab:photos-shift}" in write(table, tmp_path / "tables", latex_prefix="photos")[2].read_text()
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(UserError, match="cannot"):
        write(table, blocked)
