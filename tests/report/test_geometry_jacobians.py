"""What the report says of measured Jacobians: one row for all images, and whether they compose."""

import numpy as np
import pandas as pd
import pytest
from geometry_tables import a_chain, a_facts

from gch_bench.geometry.measured import COLUMNS, over_images
from gch_bench.report import text_table
from gch_bench.report.geometry import MEASURED_NOTE, console_tables, markdown
from gch_bench.report.geometry_headline import facts, headline, rows_of
from gch_bench.report.geometry_jacobians import COMPOSED, COMPOSED_CHAIN, wide
from gch_bench.report.geometry_words import verdict, verdict_over_images
from gch_bench.results.geometry import MEASURED, ChainReport


def measured(seed: int, trained: bool = True) -> ChainReport:
    report = a_chain(5, trained, branches=False, seed=seed, kind=MEASURED)
    report.chain = f"jacobian digits-{seed}"
    return report


THREE = [measured(0), measured(1), measured(2, trained=False)]
REPORTS = [("net", a_chain(5)), *(("net", report) for report in THREE), ("other", measured(3))]


def over(defect: float = 0.25, images: int = 3) -> pd.DataFrame:
    """over_images.csv of two interfaces and the chain."""
    rows = []
    for index, first, second in ((0, "one", "two"), (1, "two", "three")):
        numbers = {
            "composition_defect": (defect * (index + 1), 0.05), "composition_defect_null": (1.3, 0.02),
            "composition_defect_other_image": (0.6, 0.1), "log_top_together": (1.2, 0.1), "log_top_product": (0.9, 0.2),
        }  # fmt: skip
        rows += [("composition", index, None, None, first, second, name, *each, images) for name, each in numbers.items()]
    numbers = {"composition_defect": (1.01, 0.01), "composition_defect_null": (1.02, 0.02), "log_top_normalised": (0.3, 0.3)}
    rows += [("chain", np.nan, None, None, None, None, name, *each, images) for name, each in numbers.items()]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def test_one_row_for_all_images() -> None:
    table = headline(REPORTS)
    assert [row[:2] for row in table.rows] == [
        ["net", "residual"], ["net", "jacobian, 3 images"], ["other", "jacobian, 1 image"], ["by chance", ""],
    ]  # fmt: skip
    row = dict(zip(table.columns, table.rows[1], strict=True))
    gains = [report.summary["energy_gain"] for report in THREE]
    assert row["energy gain"] == f"{np.mean(gains):.2f}±{np.std(gains, ddof=1):.2f}"
    assert row["aligned / opposed"] == "2.7 (2.7) / 0 (0) of 4"
    assert row["chart"] == "1.3 of 5"
    assert row["R.95 / rotated"] == "88±0% / 86%"
    assert "±" not in "".join(table.rows[0] + table.rows[2])
    assert table.numbers["images"].tolist() == [0, 3, 1]
    assert table.numbers["energy_gain_sd"][1] == pytest.approx(np.std(gains, ddof=1))
    assert table.numbers["energy_gain_sd"].isna().tolist() == [True, False, True]
    assert r"$\pm$" in text_table.latex(table)
    assert console_tables(REPORTS)[0].rows[1][0] == "net jacobian, 3 images"


def test_the_means_are_those_of_over_images() -> None:
    table = over_images(THREE).query("table == 'summary'").set_index("quantity")
    row = rows_of(REPORTS)[1]
    for name in ("energy_gain", "spikes", "certified_rank", "mean_square_exponent"):
        assert row.mean[name] == pytest.approx(table["mean"][name])
        assert row.sd[name] == pytest.approx(table["sd"][name])
    assert row.mean["aligned"] == pytest.approx(np.mean([facts(report)["aligned"] for report in THREE]))


def test_the_headline_is_no_wider_than_two_columns() -> None:
    """As many characters as fit into both columns of a paper if LaTeX shrinks the smallest common type by less than half."""
    table = headline(REPORTS)
    widest = [max(map(len, column)) for column in zip(table.columns, *table.rows, strict=True)]
    assert sum(widest) <= 160


def test_composition_is_part_of_the_report() -> None:
    text = markdown(a_facts(), REPORTS, None, {}, {"net": over(), "other": pd.DataFrame()})
    at = text.index("## Measured Jacobians: do they compose?")
    assert text.index("## Verdicts") < at < text.index("## net: residual")
    own = text[at : text.index("## net: residual")]
    assert "### net" in own
    assert "### other" not in own
    assert "off by 38% of the true one (median over 2 interfaces; largest 50%)" in own
    assert "The product of all blocks is off by 101%; rotations: 102%." in own
    assert "| one | two | 0.25 ± 0.05 | 1.3 ± 0.02 | 0.6 ± 0.1 | 1.2 ± 0.1 | 0.9 ± 0.2 |" in own
    assert "| 1.01 ± 0.01 | 1.02 ± 0.02 | 0.3 ± 0.3 |" in own
    assert "do they compose" not in markdown(a_facts(), REPORTS, None, {}, {"net": pd.DataFrame()})
    for section in (COMPOSED, COMPOSED_CHAIN):
        for each in section.quantities:
            heading = each.header.replace("_", r"\_")
            assert text.index(f"- **{heading}** (") < at
    assert "products of blocks are off from the network's own Jacobian by the composition defect" in text
    assert "nan" not in text


def test_jacobians_that_compose_up_to_rounding() -> None:
    text = markdown(a_facts(), REPORTS, None, {}, {"net": over(1e-16)})
    assert "| one | two | 0 | 1.3 ± 0.02 |" in text
    assert "off by 0% of the true one" in text


def test_wide_tables() -> None:
    table = wide(over(), "composition")
    assert table[["first", "second"]].to_numpy().tolist() == [["one", "two"], ["two", "three"]]
    assert table["composition_defect"].tolist() == [0.25, 0.5]
    assert table["composition_defect_sd"].tolist() == [0.05, 0.05]
    assert len(wide(over(), "chain")) == 1
    assert wide(pd.DataFrame(), "chain").empty
    assert wide(over(), "factors").empty


def test_the_verdict_over_images() -> None:
    text = verdict_over_images(THREE)
    assert "aligned beyond chance at 2 of 3 images, alignment indistinguishable from chance at 1 of 3 images" in text
    assert text.endswith("products of blocks are off by the composition defect.")
    report = markdown(a_facts(), REPORTS, None, {})
    assert report.count("**net, jacobian, 3 images.** Neighbouring") == 1
    assert f"**other, jacobian, 1 image.** {verdict(REPORTS[-1][1])}" in report.replace("\\", "")
    notes = console_tables(REPORTS)[-1].notes
    assert notes[1].startswith("net jacobian, 3 images: aligned beyond chance at 2 of 3 images")
    assert [note.split(":")[0] for note in notes[:3]] == ["net residual", "net jacobian, 3 images", "other jacobian, 1 image"]
    assert MEASURED_NOTE[1:30] in report
