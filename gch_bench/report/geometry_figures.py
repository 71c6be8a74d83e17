"""Figures of a diagnosis: quantities over depth in panels of the same kind. The functions return figures and write no file."""

from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from gch_bench.files import slug
from gch_bench.results.geometry import PHYSICAL, SOURCE, ChainReport

matplotlib.rcParams.update({"font.size": 8, "axes.spines.top": False, "axes.spines.right": False, "svg.fonttype": "none"})
WIDE = 10.0  # inches
PANELS = 6  # most spectra shown of a chain; they are spread over its depth
Reports = Sequence[tuple[str, ChainReport]]


def all_figures(reports: Reports) -> dict[str, Figure]:
    """Name -> figure: one profile per chain with all networks in it, and the other figures per network and chain."""
    figures = {}
    for chain in dict.fromkeys(report.chain for _, report in reports):
        figures[f"profile-{slug(chain)}"] = profile([(label, report) for label, report in reports if report.chain == chain])
    for label, report in reports:
        own = f"{slug(label)}-{slug(report.chain)}"
        figures[f"spectra-{own}"] = spectra(label, report)
        if len(report.interfaces):
            figures[f"interfaces-{own}"] = interfaces(label, report)
            figures[f"certificates-{own}"] = certificates(label, report)
            figures[f"alignment-{own}"] = alignment(label, report)
    return figures


def profile(reports: Reports) -> Figure:
    """Exponent and effective rank over depth, with the rank windows of the charts; ``reports`` are of the same chain."""
    figure = Figure(figsize=(WIDE, 5.6), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True)
    longest = max((report for _, report in reports), key=lambda report: len(report.factors)).factors
    for number, (label, report) in enumerate(reports):
        table, color = report.factors, f"C{number}"
        finite = np.isfinite(table["exponent"])
        top.plot(table["index"][finite], table["exponent"][finite], "o-", color=color, ms=3, label=label)
        bottom.plot(table["index"], table["rank_95"], "o-", color=color, ms=3, label=f"{label}: measured R.95")
        bottom.plot(table["index"], table["chart_rank_95"], "--", color=color, lw=1, label=f"{label}: chart R.95")
        bottom.fill_between(table["index"], table["window_low"], table["window_high"], color=color, alpha=0.15, lw=0)
    top.set_ylabel("exponent a (of energies)")
    bottom.set_ylabel("effective rank (band: window)")
    bottom.set_yscale("log")
    bottom.yaxis.set_major_formatter("{x:g}")
    bottom.yaxis.set_minor_formatter("{x:g}")
    _names(bottom, list(longest["name"]))
    for axis in (top, bottom):
        axis.legend(frameon=False, fontsize=7, ncols=1, loc="upper left", bbox_to_anchor=(1, 1))
    first = reports[0][1]
    figure.suptitle(f"{first.chain} ({first.kind})")
    return figure


def spectra(label: str, report: ChainReport) -> Figure:
    """Energies over ranks, on logarithmic axes, with the fitted chart."""
    chosen = _spread(len(report.factors))
    figure = Figure(figsize=(WIDE, 2.4 * -(-len(chosen) // 3) + 0.5), layout="constrained")
    axes = figure.subplots(-(-len(chosen) // 3), 3, squeeze=False).flat
    for axis, at in zip(axes, chosen, strict=False):
        factor = report.factors.iloc[at]
        own = report.spectra[report.spectra["index"] == factor["index"]]
        rank = own["rank"].to_numpy()
        axis.loglog(rank, own["energy"], ".", ms=3, label="measured")
        if np.isfinite(factor["exponent"]):
            chart = rank ** -factor["exponent"]
            axis.loglog(rank, chart / chart.sum(), "k--", lw=1, label=f"chart, a = {factor['exponent']:.3f}")
        positive = own["energy"][own["energy"] > 0]
        axis.set_ylim(max(positive.min(), positive.max() * 1e-8) / 2, positive.max() * 3)
        axis.xaxis.set_major_formatter("{x:g}")
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.set_title(f"{factor['name']}, KL {factor['kl']:.3f}", fontsize=8)
        axis.legend(frameon=False, fontsize=7, loc="lower left")
    for axis in list(axes):
        axis.axis("off")
    figure.supxlabel("rank i")
    figure.supylabel("energy p_i")
    figure.suptitle(f"{label}: {report.chain} ({report.kind}){_shown(chosen, len(report.factors), 'factors')}")
    return figure


def interfaces(label: str, report: ChainReport) -> Figure:
    """The three terms of the margin inequality at every interface, beside the change of rho that their sum bounds."""
    table = report.interfaces
    figure = Figure(figsize=(WIDE, 3.6), layout="constrained")
    axis = figure.subplots()
    at, width = np.arange(len(table)), 0.27
    parts = (("budget 2g", table["budget"]), ("slack", table["slack"]), ("|change of e|", table["residual_change"].abs()))
    for number, (name, values) in enumerate(parts):
        finite = values.where(np.isfinite(values), 0)
        axis.bar(at + (number - 1) * width, finite, width, label=name, color=f"C{number}")
    axis.plot(at, table["displacement"], "kD", ms=4, label="|change of rho| (bounded by their sum)")
    axis.axhline(0, color="black", lw=0.6)
    return _finished(figure, axis, label, report, "margin inequality per interface", "nats")


def certificates(label: str, report: ChainReport) -> Figure:
    """Truncation error and bound against the certificate's radius: certified where the error is below the radius."""
    table = report.interfaces
    figure = Figure(figsize=(WIDE, 3.6), layout="constrained")
    axis = figure.subplots()
    at = np.arange(len(table))
    axis.plot(at, table["truncation_bound"], "v", color="0.6", ms=5, label="bound of the truncation error")
    # A window with all modes leaves an error of rounding alone; a logarithmic axis needs a floor for it.
    floor = table["truncation_bound"][table["truncation_bound"] > 0].min() / 1e3
    axis.plot(at, table["truncation_error"].clip(lower=floor), "ko", ms=4, label="truncation error (or less)")
    for form, shift, color, name in ((PHYSICAL, -0.12, "C0", "input channels"), (SOURCE, 0.12, "C1", "source modes")):
        radius = table[f"{form}_radius"]
        good = table[f"{form}_certified"] != "no"
        for mask, marker, word in ((good, "P", "certified"), (~good, "x", "not certified")):
            positive = mask & (radius > 0)
            if positive.any():
                axis.plot(at[positive] + shift, radius[positive], marker, color=color, label=f"radius, {name}: {word}")
    axis.set_yscale("log")
    return _finished(figure, axis, label, report, "certificates", "Frobenius norm")


def _finished(figure: Figure, axis: Axes, label: str, report: ChainReport, what: str, unit: str) -> Figure:
    """``figure``, after its interfaces' names, unit, legend and title are added."""
    table = report.interfaces
    axis.set_ylabel(unit)
    figure.legend(loc="outside lower center", frameon=False, ncols=4, fontsize=7)
    _names(axis, [f"{one} - {two}" for one, two in zip(table["first"], table["second"], strict=True)])
    figure.suptitle(f"{label}: {report.chain} ({report.kind}), {what}")
    return figure


def alignment(label: str, report: ChainReport) -> Figure:
    """Physical Alignment Matrices M (root mean square of |M| in cells of a grid) above their block norms in units of tau."""
    at = _spread(len(report.pictures), 4)
    chosen = [report.pictures[i] for i in at]
    figure = Figure(figsize=(WIDE, 5.4), layout="constrained")
    axes = figure.subplots(2, len(chosen), squeeze=False)
    for column, picture in enumerate(chosen):
        energy = picture.energy.numpy()
        top = max(float(energy.max()), 1e-300)
        image = axes[0, column].imshow(
            np.maximum(energy, top * 1e-3),
            norm=LogNorm(top * 1e-3, top),
            cmap="viridis",
            aspect="auto",
            interpolation="nearest",
        )
        axes[0, column].set_title(picture.title, fontsize=8)
        figure.colorbar(image, ax=axes[0, column], fraction=0.05)
        norms = picture.norms.numpy() / picture.tau
        image = axes[1, column].imshow(norms, vmin=0, vmax=2, cmap="RdBu_r", aspect="auto", interpolation="nearest")
        figure.colorbar(image, ax=axes[1, column], fraction=0.05)
        axes[1, column].set_xlabel("input channels,\nlargest block norm first")
    axes[0, 0].set_ylabel("output channels\n|M|, RMS of a cell")
    axes[1, 0].set_ylabel("groups of output channels\nblock norm / tau (red: active)")
    shown = _shown(at, len(report.pictures), "interfaces")
    figure.suptitle(f"{label}: {report.chain} ({report.kind}), alignment of interfaces{shown}")
    return figure


def _spread(count: int, most: int = PANELS) -> list[int]:
    """At most ``most`` of the numbers 0..count - 1, evenly spread, the first and the last among them."""
    return sorted({round(i) for i in np.linspace(0, count - 1, min(most, count))})


def _shown(chosen: list[int], count: int, what: str) -> str:
    return f": {len(chosen)} of {count} {what}, the tables have all" if len(chosen) < count else ""


def _names(axis: Axes, names: list[str]) -> None:
    step = -(-len(names) // 40)
    axis.set_xticks(
        range(0, len(names), step),
        names[::step],
        rotation=45 if len(names) > 6 else 0,
        ha="right" if len(names) > 6 else "center",
    )
