"""Figures of a diagnosis: over the depth of a chain with all networks, and of each network. The functions write no file.

A figure's label is its caption. Colours are the networks'; what a point says is told by its filling, also in grey.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, NullLocator
from numpy.typing import NDArray

from gch_bench.files import slug
from gch_bench.report import figure_style as style
from gch_bench.report.figure_style import COLUMN, DOUBLE, Look
from gch_bench.report.geometry_headline import Reports, column, interfaces_of
from gch_bench.report.geometry_interface_figures import certificates, margins
from gch_bench.report.geometry_maps import alignment, incidence
from gch_bench.results.geometry import ADEQUATE, ALIGNED, ChainReport

PANELS = 6  # most spectra shown of a chain; they are spread over its depth
MANY = 16  # with more factors or interfaces a figure over depth is two columns wide
ALIGNMENTS = {  # column of interfaces.csv -> label of the axis
    "energy_gain": "energy gain",
    "angle_excess": "angle excess",
    "slack_ratio": "slack ratio",
}
Numbers = NDArray[np.float64]


def all_figures(reports: Reports) -> dict[str, Figure]:
    """Name -> figure: those over depth per chain with all networks, the others per network and chain."""
    figures: dict[str, Figure | None] = {}
    for chain in dict.fromkeys(report.chain for _, report in reports):
        own = [(label, report) for label, report in reports if report.chain == chain]
        figures[f"alignment_profile-{slug(chain)}"] = alignment_profile(own)
        figures[f"profile-{slug(chain)}"] = profile(own)
    makers: dict[str, Callable[[str, ChainReport], Figure | None]] = {
        "spectra": spectra,
        "margins": margins,
        "certificates": certificates,
        "alignment": alignment,
        "incidence": incidence,
    }
    for label, report in reports:
        for name, make in makers.items():
            figures[f"{name}-{slug(label)}-{slug(report.chain)}"] = make(label, report)
    return {name: figure for name, figure in figures.items() if figure is not None}


def _looks(reports: Reports) -> list[Look]:
    return [style.look_number(number, label) for number, (label, _) in enumerate(reports)]


def _over_depth(count: int, panels: Sequence[float], names: Sequence[str]) -> tuple[Figure, list[Axes]]:
    """Panels of these heights in inches under each other, for so many factors, with room for a legend of the names."""
    width = DOUBLE if count > MANY else COLUMN
    legend = style.LINE * -(-len(names) // style.legend_columns(names, width)) + 0.1
    figure = Figure(figsize=(width, sum(panels) + 0.35 + legend), layout="constrained")
    axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False, height_ratios=panels)[:, 0]
    axes[-1].xaxis.set_major_locator(MaxNLocator(8, integer=True))
    return figure, list(axes)


@style.styled
def alignment_profile(reports: Reports) -> Figure | None:
    """How neighbours are turned to each other, over depth; ``reports`` are of the same chain. None without interfaces."""
    tables = [interfaces_of(report) for _, report in reports]
    if not any(map(len, tables)):
        return None
    looks = _looks(reports)
    figure, axes = _over_depth(max(map(len, tables)), [1.15] * 3, [look.name for look in looks])
    for axis, (name, label) in zip(axes, ALIGNMENTS.items(), strict=True):
        for look, table in zip(looks, tables, strict=True):
            if len(table):
                _null_band(axis, table, name, look)
                _tested_points(axis, table, name, look)
        axis.set_ylabel(label)
    _ratio_axis(axes[0])
    axes[-1].set_xlabel("interface")
    style.legend(figure, axes[:1], style.legend_columns([look.name for look in looks], figure.get_size_inches()[0]))
    figure.set_label(
        f"{reports[0][1].chain} ({reports[0][1].kind}): how neighbouring factors are turned to each other, over depth."
        " Dotted lines and grey bands: mean and 95% (normal approximation) of the null, which is a random rotation between"
        " the two factors. Filled: outside 95% of the rotations; hollow: not, or the null has no spread. Above: energy of the"
        " product over its mean under rotations; middle: mean cos^2 of the angles between leading directions, less its mean"
        " under rotations; below: share of both top radii that the product loses, which is small where the top directions meet."
    )
    return figure


def _ratio_axis(axis: Axes) -> None:
    """A logarithmic axis of y with plain numbers, also where it covers less than a decade."""
    axis.set_yscale("log")
    low, high = axis.get_ylim()
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)) if high > 10 * low else MaxNLocator(4, steps=[1, 2, 5, 10]))
    axis.yaxis.set_major_formatter("{x:g}")
    axis.yaxis.set_minor_formatter(NullFormatter())
    axis.yaxis.set_minor_locator(NullLocator())


def _null_band(axis: Axes, table: pd.DataFrame, name: str, look: Look) -> None:
    at = table["index"].to_numpy(np.float64)
    mean = np.zeros(len(table)) if name == "angle_excess" else column(table, f"{name}_null").to_numpy(np.float64)
    half = style.Z * null_deviation(table, name)
    axis.plot(at, mean, ":", color=look.color, lw=0.8, zorder=1)
    if np.isfinite(half).any():
        axis.fill_between(at, mean - half, mean + half, color="0.5", alpha=0.18, lw=0, zorder=0)


def null_deviation(table: pd.DataFrame, name: str) -> Numbers:
    """The null's standard deviation at each interface: (value - mean) / z; nan where z is 0 or missing."""
    value, z = (column(table, each).to_numpy(np.float64) for each in (name, f"{name}_z"))
    mean = 0.0 if name == "angle_excess" else column(table, f"{name}_null").to_numpy(np.float64)
    return np.where(z != 0, (value - mean) / np.where(z == 0, 1, z), np.nan)


def _tested_points(axis: Axes, table: pd.DataFrame, name: str, look: Look) -> None:
    """The values as a thin line; its points are filled where the value lies outside 95% of the null."""
    at, value = table["index"].to_numpy(np.float64), column(table, name).to_numpy(np.float64)
    percentile = column(table, f"{name}_percentile").to_numpy(np.float64)
    outside = (percentile >= ALIGNED) | (percentile <= 100 - ALIGNED)
    axis.plot(at, value, color=look.color, lw=0.5, zorder=2)
    _points(axis, at, value, outside, look)


def _points(axis: Axes, at: Numbers, value: Numbers, filled: NDArray[np.bool_], look: Look) -> None:
    """Filled and hollow points; the filled ones are the legend's."""
    shown: dict[str, Any] = {"ls": "", "marker": look.marker, "color": look.color, "mew": 0.8, "zorder": 3}
    axis.plot(at[~filled], value[~filled], mfc="white", **shown)
    axis.plot(at[filled], value[filled], label=look.name, **shown)


@style.styled
def profile(reports: Reports) -> Figure:
    """Exponent, effective rank and number of ranks over depth; ``reports`` are of the same chain."""
    looks = _looks(reports)
    names = [*(look.name for look in looks), "Gaussian"]
    count = max(len(report.factors) for _, report in reports)
    figure, axes = _over_depth(count, [1.4, 1.2, 0.6], names)
    top, middle, bottom = axes
    for look, (_, report) in zip(looks, reports, strict=True):
        table = report.factors
        ranks = table["numerical_rank"].to_numpy(np.float64)
        adequate = (table["chart"] == ADEQUATE).to_numpy()
        for part in _runs(ranks):
            own = table.iloc[part]
            top.plot(own["index"], own["exponent"], color=look.color, lw=0.7)
            middle.plot(own["index"], own["rank_95"] / ranks[part], color=look.color, lw=0.7)
            if "rank_95_null" in own:
                middle.plot(own["index"], own["rank_95_null"] / ranks[part], color="0.6", lw=2, zorder=0, label="Gaussian")
        at = table["index"].to_numpy(np.float64)
        _points(top, at, table["exponent"].to_numpy(np.float64), adequate, look)
        middle.plot(at, table["rank_95"] / ranks, ls="", marker=look.marker, color=look.color, label=look.name)
        bottom.plot(at, ranks, ls="", marker="_", color=look.color, mew=1, ms=4)
    if "rank_95_null" in reports[0][1].factors:  # single factors leave no line, so the null is marked, too
        _gaussian_marks(middle, reports)
    top.set_ylabel("exponent a")
    middle.set_ylabel("R.95 / d")
    middle.set_ylim(0, 1.05)
    bottom.set_ylabel("d")
    _ticks_at_sizes(bottom, [report.factors["numerical_rank"] for _, report in reports])
    bottom.set_xlabel("factor")
    style.legend(figure, [middle], style.legend_columns(names, figure.get_size_inches()[0]))
    figure.set_label(
        f"{reports[0][1].chain} ({reports[0][1].kind}): the spectra over depth. Above: exponent of the energies; hollow"
        " where the power law is not adequate, or does not apply, and the exponent therefore describes nothing. Middle:"
        " share of the ranks that hold 95% of the energy, grey for a Gaussian matrix of the same shape. Below: number of"
        " ranks d. Lines join neighbours of equal d alone, because exponents of different d are not comparable."
    )
    return figure


def _ticks_at_sizes(axis: Axes, sizes: Sequence[pd.Series]) -> None:
    """A logarithmic axis of y with ticks at some of the sizes that there are, none closer to another than a factor of 1.8."""
    axis.set_yscale("log")
    ticks: list[float] = []
    for size in sorted({float(size) for each in sizes for size in each}, reverse=True):
        if not ticks or ticks[-1] > 1.8 * size:
            ticks.append(size)
    ticks = [ticks[at] for at in style.spread(len(ticks), 4)]
    axis.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.yaxis.set_minor_locator(NullLocator())
    axis.margins(y=0.2)


def _gaussian_marks(axis: Axes, reports: Reports) -> None:
    for _, report in reports:
        table = report.factors
        values = table["rank_95_null"] / table["numerical_rank"]
        axis.plot(table["index"], values, ls="", marker="_", color="0.6", mew=2, ms=5, zorder=0, label="Gaussian")


def _runs(values: Numbers) -> Iterator[slice]:
    """The runs of equal neighbours."""
    ends = [*(np.flatnonzero(np.diff(values)) + 1).tolist(), len(values)]
    for start, end in zip([0, *ends], ends, strict=False):
        yield slice(start, end)


@style.styled
def spectra(label: str, report: ChainReport) -> Figure:
    """Energies over ranks, on logarithmic axes, with the chart and the spectrum of Gaussian matrices of the same shape."""
    chosen = style.spread(len(report.factors), PANELS)
    lines, columns = style.grid(len(chosen), 3)
    width = COLUMN if columns == 1 else DOUBLE
    figure = Figure(figsize=(width, 1.75 * lines + 0.5), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False).flat
    for axis, at in zip(axes, chosen, strict=False):
        factor = report.factors.iloc[at]
        own = report.spectra[report.spectra["index"] == factor["index"]]
        _spectrum(axis, own, factor)
    for axis in list(axes)[len(chosen) :]:
        axis.set_visible(False)
    figure.supxlabel("rank i", fontsize=style.TYPE)
    figure.supylabel("energy p", fontsize=style.TYPE)
    style.legend(figure, list(figure.axes), 3)
    figure.set_label(
        f"{label}, {report.chain} ({report.kind}): energies of the singular"
        f" values{style.shown(chosen, len(report.factors), 'factors')}. Dashed: the power-law chart; grey: mean of Gaussian"
        " matrices of the same shape. In the titles: exponent a, share of the distance from a flat spectrum that the chart"
        " explains, in brackets that for Gaussian matrices, and the number of singular values above the largest of theirs."
    )
    return figure


def _spectrum(axis: Axes, own: pd.DataFrame, factor: Any) -> None:
    rank, energy = (own[name].to_numpy(np.float64) for name in ("rank", "energy"))
    if "energy_null" in own:
        axis.plot(rank, own["energy_null"], color="0.6", lw=2, label="Gaussian")
    axis.plot(rank, energy, ".", ms=4, mew=0, color=style.COLORS[1], label="measured")
    chart = rank[: int(factor["numerical_rank"])] ** -factor["exponent"]
    if np.isfinite(factor["exponent"]):
        axis.plot(rank[: len(chart)], chart / chart.sum(), "--", color="black", lw=0.8, label="chart")
    axis.set(xscale="log", yscale="log")
    positive = energy[energy > 0]
    axis.set_ylim(max(positive.min(), positive.max() * 1e-6) / 2, positive.max() * 3)
    style.log_axis(axis, "x", most=20)
    verdict = "" if factor["chart"] == ADEQUATE else f", {factor['chart']}"
    shares = [factor[name] for name in ("explained_share", "explained_share_null")]
    share, null = ("-" if np.isnan(value) else f"{value:.0%}" for value in shares)
    spikes = f"{factor['spikes']:.0f} spike{'' if factor['spikes'] == 1 else 's'}"
    name = style.shortened(str(factor["name"]), 34)
    axis.set_title(f"{name}\na = {factor['exponent']:.2f}: {share} ({null}){verdict}\n{spikes}")
