"""The figures of the geometry: which there are, what they draw, and that they can be saved in every form."""

import math
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from geometry_tables import a_chain, a_picture
from matplotlib.figure import Figure

from gch_bench.report import figure_style as style
from gch_bench.report.figure_style import DOUBLE, save
from gch_bench.report.geometry_figures import alignment_profile, all_figures, null_deviation, profile, spectra
from gch_bench.report.geometry_interface_figures import certificates, margins
from gch_bench.report.geometry_maps import alignment, incidence

REPORT = a_chain(6)
OF_NETWORK = ("spectra", "margins", "certificates", "alignment", "incidence")


def test_which_figures_there_are() -> None:
    names = set(all_figures([("a", REPORT), ("b c", a_chain(1))]))
    over_depth = {"alignment_profile-residual", "profile-residual"}
    assert names == over_depth | {f"{name}-a-residual" for name in OF_NETWORK} | {"spectra-b-c-residual"}
    assert set(all_figures([("a", a_chain(1))])) == {"profile-residual", "spectra-a-residual"}
    assert all_figures([]) == {}


def test_figures_fit_a_page_have_captions_and_leave_settings_alone(tmp_path: Path) -> None:
    before = dict(matplotlib.rcParams)
    figures = all_figures([("net", a_chain(40))])
    for name, figure in figures.items():
        assert figure.get_size_inches()[0] <= DOUBLE, name
        assert figure.get_label(), name
    chosen = {name: figures[name] for name in ("profile-residual", "incidence-net-residual")}
    assert len(save(chosen, tmp_path, dpi=40)) == 6
    assert dict(matplotlib.rcParams) == before


def lines(figure: Figure | None, panel: int) -> list:
    assert figure is not None
    return list(figure.axes[panel].get_lines())


def test_no_line_joins_factors_of_different_rank() -> None:
    sizes = dict(zip(REPORT.factors["index"], REPORT.factors["numerical_rank"], strict=True))
    for panel in (0, 1):
        joined = [line for line in lines(profile([("net", REPORT)]), panel) if line.get_linestyle() != "None"]
        assert joined
        for line in joined:
            assert len({sizes[int(at)] for at in line.get_xdata()}) == 1


def test_markers_are_hollow_where_the_chart_is_not_adequate() -> None:
    points = [line for line in lines(profile([("net", REPORT)]), 0) if line.get_linestyle() == "None"]
    hollow = {int(at) for line in points if line.get_markerfacecolor() == "white" for at in line.get_xdata()}
    assert hollow == set(REPORT.factors.loc[REPORT.factors["chart"] != "adequate", "index"])


def test_points_are_filled_outside_the_null() -> None:
    table = REPORT.interfaces[REPORT.interfaces["form"] == "branch"]
    inside = set(table.loc[table["slack_ratio_percentile"].between(2.5, 97.5, inclusive="neither"), "index"])
    points = [line for line in lines(alignment_profile([("net", REPORT)]), 2) if line.get_linestyle() == "None"]
    hollow = {int(at) for line in points if line.get_markerfacecolor() == "white" for at in line.get_xdata()}
    assert hollow == inside


def test_what_has_no_null_or_no_chart_is_hollow_and_says_so() -> None:
    report = a_chain(4)
    nothing = dict.fromkeys(("slack_ratio", "slack_ratio_z", "slack_ratio_percentile"), math.nan)
    report.interfaces = report.interfaces.assign(**nothing, energy_gain_z=math.nan, energy_gain_percentile=math.nan)
    report.factors = report.factors.assign(chart="not applicable", explained_share=math.nan)
    points = [line for line in lines(alignment_profile([("net", report)]), 0) if line.get_linestyle() == "None"]
    assert {len(line.get_xdata()) for line in points if line.get_markerfacecolor() == "white"} == {3}
    titles = [axis.get_title() for axis in spectra("net", report).axes]
    assert all("not applicable" in title for title in titles)
    assert not any("nan" in title for title in titles)


def test_null_deviation_is_that_of_the_tables() -> None:
    table = REPORT.interfaces
    np.testing.assert_allclose(null_deviation(table, "energy_gain"), 0.06)
    np.testing.assert_allclose(null_deviation(table, "angle_excess"), 0.01)
    assert np.isnan(null_deviation(table.assign(slack_ratio_z=0.0), "slack_ratio")).all()


def test_bars_add_up_to_the_bound() -> None:
    figure = margins("net", REPORT)
    assert figure is not None
    table = REPORT.interfaces[REPORT.interfaces["form"] == "branch"]
    tops = np.max([[bar.get_y() + bar.get_height() for bar in bars] for bars in figure.axes[0].containers], axis=0)
    np.testing.assert_allclose(tops, table["budget"] + table["slack"] + table["residual_change"].abs())


def test_certified_shares_of_each_interface() -> None:
    figure = certificates("net", REPORT)
    assert figure is not None
    table = REPORT.certificates.query("form == 'branch' and matrix == 'physical'")
    drawn = [line.get_ydata() for line in figure.axes[0].get_lines() if line.get_color() == "0.65"]
    assert len(drawn) == table["index"].nunique()
    np.testing.assert_allclose(drawn[0], table[table["index"] == 0].sort_values("eta")["certified_share"])
    report = a_chain(4)
    report.certificates = report.certificates.iloc[:0]
    assert certificates("net", report) is None


@pytest.mark.parametrize("groups", [1, 2, 8, 40])
def test_maps_and_graphs_of_few_and_many_groups(groups: int) -> None:
    report = a_chain(2)
    report.pictures = [a_picture(0, "branch", "one -> two", groups)]
    assert alignment("net", report) is not None
    figure = incidence("net", report)
    if groups == 1:
        assert figure is None
        return
    edges = report.pictures[0].edges
    drawn = [line for line in lines(figure, 0) if len(line.get_xdata()) == 2]
    assert len(drawn) == int((edges >= 0).triu(1).sum())
    assert sum(line.get_linestyle() == "-" for line in drawn) == int((edges == 1).triu(1).sum())


def test_pictures_of_the_other_form_are_not_drawn() -> None:
    report = a_chain(2)
    report.pictures = [a_picture(0, "block", "one -> two")]
    assert alignment("net", report) is None
    assert incidence("net", report) is None


def test_spectra_without_the_gaussian_one() -> None:
    report = a_chain(1)
    report.spectra = report.spectra.drop(columns="energy_null")
    assert len(lines(spectra("net", report), 0)) == 2


def test_words_of_figures() -> None:
    assert style.spread(10, 3) == [0, 4, 9]
    assert style.spread(2, 6) == [0, 1]
    assert style.shown([0], 1, "factors") == ""
    assert style.shortened("layer1.0.conv1", 6) == "…conv1"
    assert style.shortened("conv1", 6) == "conv1"
