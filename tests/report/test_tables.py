"""The tables of a report against the rows that they are made of."""

import math
from io import StringIO
from typing import Any

import numpy as np
import pandas as pd
import pytest
from reports import DROPBLOCK, GCH, NONE, Mechanism, expected_value, holm, make_report, make_setting

from gch_bench.errors import FieldError
from gch_bench.metrics import METRICS
from gch_bench.report import tables as tables_module
from gch_bench.report.render import BETTER, WORSE, Number, Row, Table, csv
from gch_bench.report.study import CALIBRATED, RAW, ROWS, Report
from gch_bench.report.tables import TABLES, tables
from gch_bench.results.summary import ALEXNET, ALEXNET_CLEAN


def table_of(report: Report, name: str) -> Table:
    (table,) = tables(report, name)
    return table


def cells(table: Table, row: Row) -> dict[str, str]:
    """Heading -> what the column shows of its number: the value, or what else the column is for."""
    shown = {column.header: column.shows.replace("both", "value") for column in table.columns}
    return {
        column.header: row.numbers[column.key].text(shown[column.header]) if column.key in row.numbers else "none"
        for column in table.columns
    }


def number(**facts: Any) -> Number:
    return Number(METRICS[facts.pop("metric")], {**dict.fromkeys(ROWS, math.nan), "kind": "single", **facts})


IMAGENET: dict[str, Any] = {
    "corruptions": list(ALEXNET),
    "severities": range(1, 6),
    "data": {"imagenet_1k": True},
    "config": {"model": {"name": "resnet50.a1_in1k"}, "data": {"name": "imagenet"}},
}


@pytest.mark.parametrize("name", TABLES)
def test_every_number_is_one_of_the_rows(name: str) -> None:
    """All columns of all numbers of all tables, by way of the CSV file."""
    report = make_report()
    keys = ["setting", "mechanism", "kind", "corruption", "severity", "metric", "temperature"]
    table = pd.read_csv(StringIO(csv(table_of(report, name))), dtype={"severity": "Int64"})
    table = table[table["metric"].isin(METRICS)]
    both = table.merge(report.rows, on=keys, suffixes=("", "_expected"))
    assert len(both) == len(table) > 0
    for column in set(ROWS) - set(keys) - {"noise", "stages"}:
        np.testing.assert_allclose(both[column].astype(float), both[f"{column}_expected"].astype(float), rtol=1e-12)


def test_clean() -> None:
    table = table_of(make_report(), "clean")
    assert [row.label for row in table.rows] == [each.label for each in (NONE, GCH, DROPBLOCK)]
    shown = cells(table, table.rows[1])
    nll = expected_value("nll", "clean", 0, RAW, GCH.effect)
    top1 = expected_value("top1", "clean", 0, RAW, GCH.effect)
    assert shown["NLL"] == f"{nll:.4f} ± 0.0030"
    assert shown["NLL after T"] == f"{nll - 0.05:.4f} ± 0.0030"
    assert shown["top-1 %"] == f"{100 * top1:.2f} ± 0.30"
    assert "top-1 % after T" not in shown, "a temperature does not change it"
    text = " ".join(table.notes)
    for part in (
        "in percent",
        "360 images in each cell, 3 seeds",
        "protocol generated-digits_64px",
        "baseline: none",
        "temperature",
    ):
        assert part in text
    assert "shift" not in text


def test_the_baseline_comes_first_and_has_no_difference() -> None:
    table = table_of(make_report(make_setting([GCH, DROPBLOCK, NONE])), "shift")
    assert [row.label for row in table.rows] == ["none", GCH.label, DROPBLOCK.label]
    assert all(each.text("difference") == "" and each.verdict is None for each in table.rows[0].numbers.values())


def test_shift_shows_the_mean_over_corruptions() -> None:
    table = table_of(make_report(), "shift")
    wanted = [METRICS[key].header for key in tables_module.LONG if key in METRICS]
    assert [column.header for column in table.columns if CALIBRATED not in column.header] == wanted
    assert cells(table, table.rows[0])["NLL"].startswith(f"{expected_value('nll', 'mean', None, RAW, 0):.4f}")
    assert "shift: mean over severities 1, 2, then over fog, gaussian_noise" in table.notes
    report = make_report(make_setting(corruptions=()))
    assert table_of(report, "shift").rows == table_of(report, "shift").columns == [], "nothing was corrupted"


@pytest.mark.parametrize(
    ("metric", "difference", "low", "high", "p_holm", "verdict"),
    [
        ("top1", 0.02, 0.01, 0.03, 0.01, BETTER),
        ("top1", -0.02, -0.03, -0.01, 0.01, WORSE),
        ("nll", -0.02, -0.03, -0.01, 0.01, BETTER),
        ("nll", 0.02, 0.01, 0.03, 0.01, WORSE),
        ("nll", -0.02, -0.03, -0.01, 0.05, None),  # the uncorrected interval excludes 0, the corrected one does not
        ("nll", -0.02, -0.05, 0.01, 0.01, None),
        ("nll", -0.02, math.nan, math.nan, 0.01, None),  # without an interval nothing is marked, whatever p is
        ("nll", -0.02, -0.03, -0.01, math.nan, None),
        ("entropy", -0.02, -0.03, -0.01, 0.01, None),  # neither direction is better
    ],
)
def test_what_is_marked(metric: str, difference: float, low: float, high: float, p_holm: float, verdict: str | None) -> None:
    facts = {"metric": metric, "difference": difference, "low": low, "high": high, "p_holm": p_holm}
    assert number(**facts).verdict == verdict
    assert number(**facts, kind="ensemble").verdict is None, "the interval of an ensemble has no seeds in it"


def test_holm_changes_what_is_marked() -> None:
    """p = 0.03 is significant by itself, and not beside another comparison with 0.04."""
    first, second = GCH._replace(p=0.03), DROPBLOCK._replace(p=0.04)
    assert holm([0.03, 0.04]) == pytest.approx([0.06, 0.06])
    alone = table_of(make_report(make_setting([NONE, first])), "shift").rows[1]
    family = table_of(make_report(make_setting([NONE, first, second])), "shift").rows[1]
    marks = [{each.facts["metric"]: each.verdict for each in row.numbers.values()} for row in (alone, family)]
    assert (marks[0]["nll"], marks[0]["top1"], marks[0]["ece"]) == (BETTER, WORSE, None)
    assert set(marks[1].values()) == {None}
    assert "[" in next(each.text("difference") for each in family.numbers.values()), "the interval is still shown"


def test_a_metric_without_interval_shows_its_difference_alone() -> None:
    table = table_of(make_report(), "shift")
    (shown,) = [
        each for each in table.rows[1].numbers.values() if each.facts["metric"] == "ece" and each.facts["temperature"] == RAW
    ]
    assert shown.text("difference") == "-2.00"


def test_one_seed_has_no_deviation_and_says_so() -> None:
    table = table_of(make_report(make_setting(seeds=1)), "clean")
    assert not any("±" in text for row in table.rows for text in cells(table, row).values())
    text = " ".join(table.notes)
    assert "1 seed" in text
    assert f"ONE SEED ({GCH.label}, {DROPBLOCK.label}): its intervals are over images only" in text
    assert "over seeds" not in text
    assert "ONE SEED" not in " ".join(table_of(make_report(), "clean").notes)


def test_without_a_baseline_there_are_values_alone() -> None:
    report = make_report(make_setting([GCH, DROPBLOCK], baseline=None))
    for name in TABLES:
        table = table_of(report, name)
        assert not any(each.text("difference") for row in table.rows for each in row.numbers.values())
        assert "no difference from a baseline is known" in table.notes
        assert [column.shows for column in table.columns if column.shows not in ("both", "value")] == []


@pytest.mark.parametrize("name", TABLES)
def test_without_logits_and_with_one_mechanism(name: str) -> None:
    table = table_of(make_report(make_setting([NONE], logits=False)), name)
    assert table.rows
    assert not any(CALIBRATED in text for text in [*(column.header for column in table.columns), *table.notes])


def test_depth_has_a_section_for_each_mechanism_and_a_row_for_each_stage() -> None:
    weak, strong = (Mechanism(f"gch gamma={gamma} beta=1", "gch", "") for gamma in (1, 2))
    order = [(strong, "L4"), (weak, "L3+L4"), (weak, "L1"), (weak, "L4")]
    gates = [each._replace(label=f"{each.label} {stages}", stages=stages) for each, stages in order]
    ensemble = NONE._replace(label="none ensemble", kind="ensemble")
    table = table_of(make_report(make_setting([NONE, *gates, ensemble])), "depth")
    assert [(row.section, row.label) for row in table.rows] == [
        ("", "none"), ("gch gamma=2 beta=1", "L4"), *(("gch gamma=1 beta=1", stages) for stages in ("L1", "L3+L4", "L4"))
    ]  # fmt: skip
    assert [column.header for column in table.columns][:2] == ["clean NLL", "clean NLL after T"]


def test_strength_is_sorted_by_the_realised_variance_of_the_gate() -> None:
    gates = [GCH._replace(label=f"gch gamma={g} L4", gate_variance=v) for g, v in (("3", 1.5), ("0.5", 0.0625), ("10", 9.0))]
    early = GCH._replace(label="gch gamma=1 L1", stages="L1", gate_variance=5.0)
    table = table_of(make_report(make_setting([NONE, *gates, early, DROPBLOCK])), "strength")
    assert [row.label for row in table.rows] == [
        "none", DROPBLOCK.label, "gch gamma=1 L1", "gch gamma=0.5 L4", "gch gamma=3 L4", "gch gamma=10 L4"
    ]  # fmt: skip
    assert [row.section for row in table.rows[:4]] == ["", "dropblock at L4", "gch at L1", "gch at L4"]
    assert cells(table, table.rows[3])["gate variance"] == "0.0625"
    assert "gate_variance" not in table.rows[0].numbers


def test_mechanisms_side_by_side() -> None:
    table = table_of(make_report(), "mechanisms")
    rows = {(row.section, row.label): cells(table, row) for row in table.rows}
    shown = rows["shift NLL", GCH.label]
    value = expected_value("nll", "mean", None, RAW, GCH.effect)
    assert shown == {
        "value": f"{value:.4f} ± 0.0030", "difference": "-0.0200 [-0.0380, -0.0020]", "p Holm": "0.002",
        "after T": f"{value - 0.05:.4f} ± 0.0030", "difference after T": "-0.0200 [-0.0380, -0.0020]", "p after T": "0.002",
        "p sign flip (better)": "0.125", "detectable": "0.0150",
    }  # fmt: skip
    assert rows["shift top-1 %", GCH.label]["after T"] == "none"
    assert rows["clean ECE %", GCH.label]["difference"] == "-2.00"
    assert rows["clean ECE %", GCH.label]["p Holm"] == ""


def test_ensembles_are_told_from_single_networks() -> None:
    ensemble = GCH._replace(kind="ensemble")
    table = table_of(make_report(make_setting([NONE, GCH, ensemble])), "clean")
    assert [row.label for row in table.rows] == ["none", GCH.label, f"{GCH.label}, ensemble"]
    assert any(note.startswith("ensemble: the mean of the softmax outputs") for note in table.notes)
    assert "360 images in each cell, 3 seeds" in table.notes
    assert "ONE SEED" not in " ".join(table.notes), "an ensemble is of all seeds"


def test_an_ensemble_is_compared_with_the_ensemble_of_the_baseline() -> None:
    many = [each._replace(kind="ensemble", effect=each.effect + 0.05) for each in (NONE, GCH)]
    table = table_of(make_report(make_setting([NONE, GCH, *many], **IMAGENET)), "shift")
    shown = [cells(table, row)["mCE (baseline) %"] for row in table.rows]
    assert shown[0] == shown[2] == "100.00"
    assert float(shown[1]) > 100
    assert float(shown[3]) > 100


def test_cells() -> None:
    table = table_of(make_report(), "cells")
    assert list(dict.fromkeys(row.section for row in table.rows)) == ["fog 1", "fog 2", "gaussian_noise 1", "gaussian_noise 2"]
    assert len(table.rows) == 4 * 3
    shown = cells(table, table.rows[4])  # fog 2, gch
    assert shown["NLL"].startswith(f"{expected_value('nll', 'fog', 2, RAW, GCH.effect):.4f}")
    assert list(shown) == ["top-1 %", "NLL", "NLL after T", "ECE %", "ECE % after T"]


def test_corruption_errors() -> None:
    table = table_of(make_report(make_setting(**IMAGENET)), "shift")

    def errors(effect: float) -> np.ndarray:
        return np.array([[1 - expected_value("top1", name, s, RAW, effect) for s in range(1, 6)] for name in ALEXNET]).mean(1)

    alexnet = np.array(list(ALEXNET.values()))
    clean = 1 - expected_value("top1", "clean", 0, RAW, GCH.effect)
    clean_baseline = 1 - expected_value("top1", "clean", 0, RAW, 0)
    shown = cells(table, table.rows[1])
    own, baseline = errors(GCH.effect), errors(0)
    assert shown["mCE (AlexNet) %"] == f"{100 * np.mean(own / alexnet):.2f}"
    assert shown["relative mCE (AlexNet) %"] == f"{100 * np.mean((own - clean) / (alexnet - ALEXNET_CLEAN)):.2f}"
    assert shown["mCE (baseline) %"] == f"{100 * np.mean(own / baseline):.2f}"
    assert shown["relative mCE (baseline) %"] == f"{100 * np.mean((own - clean) / (baseline - clean_baseline)):.2f}"
    assert (
        cells(table, table.rows[0])["mCE (baseline) %"] == cells(table, table.rows[0])["relative mCE (baseline) %"] == "100.00"
    )
    assert "the 15 corruptions of ImageNet-C" in " ".join(table.notes)


def test_a_corruption_that_does_not_hurt_the_baseline_leaves_its_relative_error_undefined() -> None:
    report = make_report(make_setting(**IMAGENET))
    report.rows.loc[(report.rows["corruption"] == "fog") & (report.rows["metric"] == "top1"), "value"] = 0.99
    headers = [column.header for column in table_of(report, "shift").columns]
    assert "relative mCE (baseline) %" not in headers
    assert {"mCE (baseline) %", "relative mCE (AlexNet) %"} < set(headers)


@pytest.mark.parametrize("change", [{"data": {}}, {"corruptions": list(ALEXNET)[:14]}, {"severities": (1, 2, 3, 4)}])
def test_corruption_errors_and_published_numbers_need_the_whole_of_imagenet_c(change: dict[str, Any]) -> None:
    table = table_of(make_report(make_setting(**{**IMAGENET, **change})), "shift")
    headers = " ".join(column.header for column in table.columns)
    assert "mCE" not in headers
    assert ("published" in headers) == ("data" in change)  # published numbers ask for the name of the data set


def test_published_numbers_have_a_column_and_a_source() -> None:
    early = GCH._replace(label="gch gamma=1 beta=1 L1", stages="L1")
    table = table_of(make_report(make_setting([NONE, GCH, early, DROPBLOCK], **IMAGENET)), "shift")
    shown = [cells(table, row)["ECE, published %"] for row in table.rows]
    assert shown == ["10.50", "5.60", "none", "none"]
    assert any(note.startswith("published: Table 7") and "ResNet-50 on ImageNet-C" in note for note in table.notes)
    for config in (
        {"model": {"name": "resnet18"}, "data": {"name": "imagenet"}},
        {"model": {"name": "resnet50"}, "data": {"name": "pets"}},
    ):
        other = table_of(make_report(make_setting(**{**IMAGENET, "config": config})), "shift")
        assert not any("published" in text for text in [*(column.header for column in other.columns), *other.notes])
    assert not any("published" in column.header for column in table_of(make_report(make_setting(**IMAGENET)), "clean").columns)


def test_several_settings() -> None:
    report = make_report(make_setting(), make_setting([NONE, GCH], name="pets resnet50", seeds=1))
    made = tables(report, "clean")
    assert [(table.title, table.key) for table in made] == [
        ("Clean images, digits resnet18", "clean-digits-resnet18"), ("Clean images, pets resnet50", "clean-pets-resnet50")
    ]  # fmt: skip
    assert [len(table.rows) for table in made] == [3, 2]
    both = table_of(report, "finegrained")
    assert [row.section for row in both.rows] == ["digits resnet18"] * 3 + ["pets resnet50"] * 2
    assert both.key == "finegrained"
    assert "1 to 3 seeds" in " ".join(both.notes)


def test_an_unknown_table_is_refused() -> None:
    with pytest.raises(FieldError, match=r"table must be one of mechanisms, clean, shift, .*, got 'clear'"):
        tables(make_report(), "clear")
