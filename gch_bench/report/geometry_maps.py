"""Figures of single interfaces: alignment matrices sorted by groups, and the graph of groups that share their supports."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import LogLocator, NullLocator

from gch_bench.report import figure_style as style
from gch_bench.report.figure_style import COLUMN, DOUBLE
from gch_bench.report.geometry_headline import interfaces_of
from gch_bench.results.geometry import PHYSICAL, ChainReport, Picture

MAPS, GRAPHS = 3, 6  # most interfaces in a figure; they are spread over the depth
NAMED = 24  # with more groups their numbers are left out
LINED = 32  # with more groups the lines between them are left out
WIDEST = 3.0  # points, of an edge
RANGE = 100.0  # of the colours: largest over smallest


def _pictures(report: ChainReport) -> list[Picture]:
    """The pictures of the physical matrices, one per interface: of its branch form where there is one."""
    meetings = interfaces_of(report)
    forms = dict(zip(meetings["index"], meetings["form"], strict=True)) if len(meetings) else {}
    own = [each for each in report.pictures if each.matrix == PHYSICAL and each.form == forms.get(each.interface)]
    return sorted(own, key=lambda each: each.interface)


@style.styled
def alignment(label: str, report: ChainReport) -> Figure | None:
    """Alignment matrices sorted by groups, beside the energy of their groups. None if there is no picture."""
    found = _pictures(report)
    if not found:
        return None
    chosen = style.spread(len(found), MAPS)
    figure = Figure(figsize=(DOUBLE, 2.3 * len(chosen)), layout="constrained")
    axes = figure.subplots(len(chosen), 2, squeeze=False, width_ratios=(1.6, 1))
    for (left, right), at in zip(axes, chosen, strict=True):
        _map(figure, left, found[at])
        _blocks(figure, right, found[at])
    figure.set_label(
        f"{label}, {report.chain} ({report.kind}): Physical Alignment"
        f" Matrices{style.shown(chosen, len(found), 'interfaces')}. Left: |M|, root mean square in cells; rows are sorted"
        " by group and then by norm, columns by the group that dominates them, and then by their norm in it. Right: mean"
        " square of M in each group's rows and the columns that a group dominates, over that of all of M. The diagonal is"
        " bright by construction, because columns are sorted by what dominates them: groups are separate where the rest is"
        " dark. Grey: no column is dominated by that group."
    )
    return figure


def _map(figure: Figure, axis: Axes, picture: Picture) -> None:
    energy = picture.energy.numpy()
    top = float(np.quantile(energy, 0.999)) or float(energy.max())
    image = axis.imshow(
        np.maximum(energy, top / RANGE),
        norm=LogNorm(top / RANGE, top),
        cmap="viridis",
        aspect="auto",
        interpolation="nearest",
        extent=(0, energy.shape[1], energy.shape[0], 0),
    )
    if len(picture.sizes) <= LINED:
        axis.hlines(picture.row_ends[:-1].numpy(), 0, energy.shape[1], color="white", lw=0.5)
        axis.vlines(picture.column_ends[:-1].numpy(), 0, energy.shape[0], color="white", lw=0.5)
    axis.set(xticks=[], yticks=[])
    axis.set_title(style.shortened(picture.title, 70))
    axis.set_xlabel(f"{picture.columns} input channels by dominant group")
    axis.set_ylabel(f"{int(picture.sizes.sum())} output channels\nby group")
    _scale(figure, axis, image, "|M|")


def _scale(figure: Figure, axis: Axes, image: AxesImage, words: str) -> None:
    bar = figure.colorbar(image, ax=axis, pad=0.02)
    bar.set_label(words)
    bar.ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    bar.ax.yaxis.set_major_formatter("{x:g}")
    bar.ax.yaxis.set_minor_locator(NullLocator())


def _blocks(figure: Figure, axis: Axes, picture: Picture) -> None:
    values = picture.blocks.numpy()
    count = len(values)
    low, high = (float(each) for each in np.nanquantile(values[values > 0], (0, 1)))
    low = max(min(low, 0.5), high / RANGE)
    shown = np.ma.masked_invalid(np.where(np.isnan(values), np.nan, np.maximum(values, low)))
    image = axis.imshow(shown, norm=LogNorm(low, max(high, 2 * low)), cmap="viridis", aspect="equal", interpolation="nearest")
    step = -(-count // 12)
    axis.set_xticks(range(0, count, step), [str(at + 1) for at in range(0, count, step)])
    axis.set_yticks(range(0, count, step), [str(at + 1) for at in range(0, count, step)])
    axis.set(xlabel="columns dominated by group", ylabel="rows of group", facecolor="0.85")
    _scale(figure, axis, image, "energy / mean")


@style.styled
def incidence(label: str, report: ChainReport) -> Figure | None:
    """The groups of each interface on a circle, joined where they share enough of their supports. None without pictures."""
    found = [picture for picture in _pictures(report) if len(picture.sizes) > 1]
    if not found:
        return None
    chosen = style.spread(len(found), GRAPHS)
    lines, columns = style.grid(len(chosen), 3)
    width = max(COLUMN, DOUBLE * columns / 3)
    figure = Figure(figsize=(width, lines * 2.35 + 0.25), layout="constrained")
    axes = list(figure.subplots(lines, columns, squeeze=False).flat)
    for axis in axes[len(chosen) :]:
        axis.set_visible(False)
    for axis, at in zip(axes, chosen, strict=False):
        _graph(axis, found[at])
    axes[0].plot([], [], "-", color="black", lw=1.5, label="certainly an edge")
    axes[0].plot([], [], "--", color="0.45", lw=1.0, label="undecided")
    style.legend(figure, axes[:1], 2)
    figure.set_label(
        f"{label}, {report.chain} ({report.kind}): groups of output"
        f" channels{style.shown(chosen, len(found), 'interfaces')}, joined where the supports that they share are strong"
        " enough. Width: overlap strength; solid: certain whatever the truncation changes, dashed: undecided. Area of a"
        " node: channels of the group. Hubs: input channels in several supports."
    )
    return figure


def _graph(axis: Axes, picture: Picture) -> None:
    count = len(picture.sizes)
    angle = np.pi / 2 - 2 * np.pi * np.arange(count) / count
    x, y = np.cos(angle), np.sin(angle)
    edges, strengths = picture.edges.numpy(), picture.strengths.numpy()
    drawn = [(g, h) for g in range(count) for h in range(g + 1, count) if edges[g, h] >= 0]
    strongest = max((float(strengths[pair]) for pair in drawn), default=0.0) or 1.0
    for g, h in sorted(drawn, key=lambda pair: edges[pair]):
        certain = edges[g, h] == 1
        width = max(WIDEST * float(strengths[g, h]) / strongest, 0.3)
        look: dict[str, Any] = (
            {"color": "black", "ls": "-", "alpha": 0.75} if certain else {"color": "0.45", "ls": (0, (3, 2)), "alpha": 0.9}
        )
        axis.plot(x[[g, h]], y[[g, h]], lw=width, zorder=1, solid_capstyle="round", **look)
    area = (90 if count <= NAMED else 20) * picture.sizes.numpy() / picture.sizes.double().mean().item()
    axis.scatter(x, y, s=area, color="white", edgecolor="black", lw=0.8, zorder=2)
    if count <= NAMED:
        for at in range(count):
            axis.text(1.27 * x[at], 1.27 * y[at], str(at + 1), ha="center", va="center")
    axis.set(xlim=(-1.45, 1.45), ylim=(-1.45, 1.45), aspect="equal")
    axis.axis("off")
    certain, open_ = (sum(edges[pair] == kind for pair in drawn) for kind in (1, 0))
    axis.set_title(
        f"{style.shortened(picture.title, 36)}\n{certain} edges, {open_} undecided of {count * (count - 1) // 2}\n"
        f"{picture.hubs} of {picture.columns} channels are hubs"
    )
