"""Figures of the interfaces of one network's chain: the decomposition of what happens to the tops, and certified shares."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from gch_bench.report import figure_style as style
from gch_bench.report.figure_style import COLUMN, DOUBLE
from gch_bench.report.geometry_headline import interfaces_of
from gch_bench.results.geometry import PHYSICAL, SOURCE, ChainReport

PARTS = (  # column of interfaces.csv, name, colour, hatch: dark, middle and light, so that they are told apart in grey
    ("budget", "budget 2g", "#004C7F", ""),
    ("slack", "slack", "#8FC1E3", ""),
    ("residual_change", "|change of e|", "#F5DDA9", "////"),
)
SHARES = {"certified_share": "blocks certified", "energy_certified_share": "energy in certified blocks"}
WORDS = {PHYSICAL: "input channels", SOURCE: "source modes"}
WANTED = 0.95  # share of decided blocks that defines the certified rank
LAST = 1e-4  # shares of the energy nearer to 1 than this are drawn at 1 - LAST
TICKS = (0.5, 0.8, 0.9, 0.95, 0.99, 0.999)


@style.styled
def margins(label: str, report: ChainReport) -> Figure | None:
    """The decomposition r1 + r2 = 2g + slack at each interface, with the changes of e and rho. None without any."""
    table = interfaces_of(report)
    if not len(table):
        return None
    figure = Figure(figsize=(DOUBLE if len(table) > 12 else COLUMN, 2.4), layout="constrained")
    axis = figure.subplots()
    at = table["index"].to_numpy(np.float64)
    heights = {name: np.nan_to_num(table[name].to_numpy(np.float64)) for name, *_ in PARTS}
    heights["residual_change"] = np.abs(heights["residual_change"])
    bottoms = {"budget": 0.0, "slack": heights["budget"], "residual_change": heights["budget"] + heights["slack"]}
    for order, (name, words, color, hatch) in enumerate(PARTS):  # a budget below 0 lies before the slack that begins there
        looks: dict[str, Any] = {"color": color, "hatch": hatch, "edgecolor": "0.25", "lw": 0.3, "zorder": 3 - order}
        axis.bar(at, heights[name], 0.78, bottoms[name], label=words, **looks)
    axis.plot(at, table["displacement"], "D", color="black", mfc="white", ms=3, mew=0.8, zorder=4, label="|change of rho|")
    axis.axhline(0, color="black", lw=0.6, zorder=4)
    axis.xaxis.set_major_locator(MaxNLocator(12, integer=True))
    axis.set(xlabel="interface", ylabel="nats")
    style.legend(figure, [axis], 4 if figure.get_size_inches()[0] > COLUMN else 2)
    figure.set_label(
        f"{label}, {report.chain} ({report.kind}): what the top radii r1 + r2 of two factors become in their product, 2g,"
        " and what is lost, the slack; on top the change of the charts' residual e. Their sum bounds the change of the"
        " chart's top radius rho by construction, and is no evidence of anything."
    )
    return figure


@style.styled
def certificates(label: str, report: ChainReport) -> Figure | None:
    """Certified shares over the share of energy that the windows hold, a line per interface. None without certificates."""
    table, meetings = report.certificates, interfaces_of(report)
    if not len(table) or not len(meetings):
        return None
    forms = dict(zip(meetings["index"], meetings["form"], strict=True))
    table = table[table["form"] == table["index"].map(forms)]
    matrices = [matrix for matrix in WORDS if (table["matrix"] == matrix).any()]
    figure = Figure(figsize=(DOUBLE, 1.9 * len(matrices) + 0.6), layout="constrained")
    axes = figure.subplots(len(matrices), 2, sharex=True, sharey=True, squeeze=False)
    for row, matrix in zip(axes, matrices, strict=True):
        for axis, (share, words) in zip(row, SHARES.items(), strict=True):
            _shares(axis, table[table["matrix"] == matrix], share)
            axis.set_title(f"{words}, {WORDS[matrix]}")
        if f"{matrix}_certified_eta" in meetings:
            eta = meetings[f"{matrix}_certified_eta"].dropna().to_numpy(np.float64)
            row[0].plot(_place(eta), np.full(len(eta), WANTED), "v", color=style.WORSE, mew=0, alpha=0.8, label="k*", zorder=4)
        row[0].set_ylabel("share")
    axes[0, 0].set_ylim(-0.02, 1.05)
    for axis in axes[-1]:
        axis.set_xlabel("energy that the windows hold (eta)")
        ticks = [tick for tick in TICKS if tick <= float(table["eta"].max())]
        axis.set_xticks(_place(np.array(ticks)), [f"{tick:g}" for tick in ticks])
    style.legend(figure, list(axes.flat), 4)
    figure.set_label(
        f"{label}, {report.chain} ({report.kind}): share of the blocks of the alignment matrices whose status the"
        " truncation to windows cannot change, over the share of each factor's energy that the windows hold;"
        f" {len(meetings)} interfaces. Left: of all blocks; right: weighted by energy. k*: the smallest windows at which"
        " 95% of the blocks are decided. These are proofs about the matrices and have no null."
    )
    return figure


def _place(eta: np.ndarray) -> np.ndarray:
    """The place of a share of energy on an axis that stretches what is near 1."""
    return -np.log10(np.maximum(1 - eta, LAST))


def _shares(axis: Axes, table: pd.DataFrame, name: str) -> None:
    lines = table.pivot_table(index="eta", columns="index", values=name)
    at = _place(lines.index.to_numpy(np.float64))
    axis.axhline(WANTED, color="0.3", lw=0.8, ls="--", label="95%")
    for number, index in enumerate(lines):
        axis.plot(at, lines[index], color="0.65", lw=0.6, label="" if number else "an interface")
    axis.plot(at, lines.median(axis=1), color="black", lw=1.8, label="median")
