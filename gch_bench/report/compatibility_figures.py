"""The figures on the compatibility of noise with a network: measured numbers beside theory, order, decisions, distortion."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy import stats

from gch_bench.files import slug
from gch_bench.report import figure_style as style
from gch_bench.report.figure_style import COLUMN, DOUBLE, Look

PANELS = 4  # panels beside each other
LIMIT = 4.2  # of the axis of margins in standard deviations; what lies beyond is drawn at it
POOLED, LOGITS = "#0072B2", "#D55E00"
STAGE_COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#8C6D1F")
Tables = Mapping[str, pd.DataFrame]


def all_figures(tables: Tables) -> dict[str, Figure]:
    """Name -> figure: one over all stages, and the others for each stage. A figure without data is absent."""
    summary, measurements, images = (tables[name] for name in ("summary", "measurements", "images"))
    look = looks(summary)
    made: dict[str, Figure | None] = {"survival": survival(measurements, look)}
    for stage in dict.fromkeys(summary["stage"]) if len(summary) else ():
        rows, points = (table[table["stage"] == stage] for table in (measurements, images))
        makers: dict[str, Callable[[], Figure | None]] = {
            "log-ratio": lambda rows=rows: log_ratio(rows, look),  # type: ignore[misc]
            "order": lambda rows=rows: order(rows, look),  # type: ignore[misc]
            "decisions": lambda rows=rows: decisions(rows, look),  # type: ignore[misc]
            "coherence": lambda rows=rows, points=points: distortion(rows, points, look, "coherence"),  # type: ignore[misc]
            "positivity": lambda rows=rows, points=points: distortion(rows, points, look, "positivity"),  # type: ignore[misc]
        }
        for name, make in makers.items():
            figure = make()
            if figure is not None:
                figure.set_label(f"{stage}: {figure.get_label()}")
            made[f"{'distortion-' * (name in ('coherence', 'positivity'))}{name}-{slug(stage)}"] = figure
    return {name: figure for name, figure in made.items() if figure is not None}


def looks(summary: pd.DataFrame) -> dict[str, Look]:
    """Mechanism -> look, the same in all figures."""
    names = dict.fromkeys(map(str, summary["mechanism"])) if len(summary) else {}
    return {name: style.look_number(number, name) for number, name in enumerate(names)}


def _drawn(rows: pd.DataFrame, section: str, quantity: str) -> pd.DataFrame:
    own = rows[(rows["section"] == section) & (rows["quantity"] == quantity)]
    return own[own["measured"].notna()]


def _points(axis: Axes, x: NDArray[np.float64], rows: pd.DataFrame, look: Look, minus: NDArray[np.float64] | float = 0) -> None:
    """Measured values with their intervals, less `minus`, as hollow markers, so that equal points can be seen."""
    middle, low, high = (rows[name].to_numpy(np.float64) - minus for name in ("measured", "low", "high"))
    axis.vlines(x, low, high, color=look.color, lw=0.8)
    axis.plot(x, middle, ls="", marker=look.marker, color=look.color, mfc="white", mew=0.8, label=look.name)


def _names(figure: Figure, axes: Sequence[Axes]) -> None:
    """The legend below the panels."""
    names = {name for axis in axes for name in axis.get_legend_handles_labels()[1]}
    style.legend(figure, axes, style.legend_columns(names, figure.get_size_inches()[0]), "lower")


def _legend_height(names: Sequence[str], width: float) -> float:
    return style.LINE * -(-len(names) // style.legend_columns(names, width)) + 0.1


def _present(rows: pd.DataFrame, look: Mapping[str, Look]) -> list[str]:
    return [name for name in look if (rows["mechanism"] == name).any()]


@style.styled
def log_ratio(rows: pd.DataFrame, look: Mapping[str, Look]) -> Figure | None:
    """Variances of log-ratios against theory, and how far the quantiles of one lie from those of its normal law."""
    variance, quantiles = _drawn(rows, "log-ratio", "variance"), _drawn(rows, "log-ratio", "quantile")
    names = _present(variance, look)
    if not names:
        return None
    figure = Figure(figsize=(DOUBLE, 2.6 + _legend_height(names, DOUBLE)), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.axhline(1, color="0.5", lw=0.8, zorder=0)
    for name in names:
        own = variance[variance["mechanism"] == name]
        theory = own["theory"].to_numpy(np.float64)
        over = own.assign(**{each: own[each] / theory for each in ("measured", "low", "high")})
        _points(left, theory, over, look[name])
    left.set(xlabel="variance of the log-ratio, theory", ylabel="measured / theory")
    sizes = quantiles["n"].to_numpy()
    if len(sizes):
        _null_band(right, int(sizes.min()))
    for name in names:
        own = quantiles[quantiles["mechanism"] == name].sort_values("x")
        x = own["x"].to_numpy(np.float64)
        right.plot(x, own["measured"].to_numpy(np.float64) - x, color=look[name].color, ls=look[name].line, label=name)
    right.set(xlabel="quantile of N(0, 1)", ylabel="measured quantile - that of N(0, 1)")
    _names(figure, [left])
    count = int(variance["n"].iloc[0])
    pair = f" of the pair {quantiles['at'].iloc[0]}" if len(quantiles) else ""
    figure.set_label(
        f"log-ratios of the gates at two sites, {count} draws. Left: measured variance of pairs of sites over theory, with"
        " intervals of 95%. Right: quantile-quantile plot of the standardised log-ratio"
        f"{pair}, less the diagonal; the band holds each quantile of 95% of normal samples of that size."
    )
    return figure


def _null_band(axis: Axes, size: int) -> None:
    """Where 95% of each quantile of a normal sample lie, less the quantile itself."""
    levels = np.linspace(0.02, 0.98, 97)
    low, high = (stats.norm.ppf(np.clip(stats.binom.ppf(q, size, levels) / size, 1e-9, 1 - 1e-9)) for q in (0.025, 0.975))
    x = stats.norm.ppf(levels)
    axis.fill_between(x, low - x, high - x, color="0.85", lw=0)
    axis.axhline(0, color="0.5", lw=0.8)


@style.styled
def order(rows: pd.DataFrame, look: Mapping[str, Look]) -> Figure | None:
    """The share of pairs of sites whose order is lost over their margin: laws with a margin in units of s, and others."""
    lost = _drawn(rows, "ranking", "order lost")
    standard = lost["at"].str.startswith("margin / s").astype(bool)
    parts = [part for part in (lost[standard], lost[~standard]) if len(part)]
    if not parts:
        return None
    width = DOUBLE if len(parts) == 2 else COLUMN
    names = _present(lost, look)
    figure = Figure(figsize=(width, 3.2 + _legend_height(names, width)), layout="constrained")
    axes = figure.subplots(2, len(parts), squeeze=False, sharex="col", height_ratios=(3, 2))
    for (top, bottom), part in zip(axes.T, parts, strict=True):
        (_standard_margin if part is parts[0] and standard.any() else _log_margin)(top, part, look)
        _residuals(bottom, part, look)
    axes[0, 0].set_ylabel("share of orders lost")
    axes[1, 0].set_ylabel("measured - theory")
    _names(figure, list(axes[0]))
    curve = "the curve is Phi(-margin / s), with s from theory" if standard.any() else ""
    flat = "lines are theory; markers without a line have none" if not standard.all() else ""
    figure.set_label(
        "pairs of sites of a channel whose order the noise destroys, over their margin"
        f" ({'; '.join(filter(None, (curve, flat)))})."
        " Points: means of bins of the margin, with intervals of 95% over images and passes"
        f" (n up to {int(lost['n'].max())}). Below: measured less theory of the bin, shifted sideways to be seen."
        f" {lost['excluded'].max():.0%} of the pairs have a value that is not positive, and are left out."
    )
    return figure


def _standard_margin(axis: Axes, lost: pd.DataFrame, look: Mapping[str, Look]) -> None:
    u = np.linspace(0, LIMIT, 200)
    axis.plot(u, stats.norm.cdf(-u), color="0.5", lw=0.8, zorder=0)
    for name in _present(lost, look):
        own = lost[lost["mechanism"] == name]
        _points(axis, own["x"].clip(upper=LIMIT).to_numpy(np.float64), own, look[name])
    axis.set(title="laws with a Gaussian margin", xlim=(-0.12, LIMIT + 0.2))


def _log_margin(axis: Axes, lost: pd.DataFrame, look: Mapping[str, Look]) -> None:
    for name in _present(lost, look):
        own = lost[lost["mechanism"] == name].sort_values("x")
        axis.plot(own["x"], own["theory"], color=look[name].color, ls=look[name].line, lw=0.8)
        _points(axis, own["x"].to_numpy(np.float64), own, look[name])
    axis.set_title("other laws")
    axis.set_ylim(0, 1.3 * float(lost["high"].max()) or 1)


def _residuals(axis: Axes, lost: pd.DataFrame, look: Mapping[str, Look]) -> None:
    standard = bool(lost["at"].str.startswith("margin / s").all())
    lost = lost.assign(x=lost["x"].clip(upper=LIMIT)) if standard else lost
    names = _present(lost[lost["theory"].notna()], look)
    step = 0.008 * (float(lost["x"].max()) or 1)
    middle = lost.groupby("at")["x"].mean()  # of all mechanisms, so that those of a bin stand beside each other
    axis.axhline(0, color="0.5", lw=0.8)
    for number, name in enumerate(names):
        own = lost[(lost["mechanism"] == name) & lost["theory"].notna()]
        shifted = own["at"].map(middle).to_numpy(np.float64) + step * (number - (len(names) - 1) / 2)
        _points(axis, shifted, own, look[name], own["theory"].to_numpy(np.float64))
    axis.set_xlabel(f"margin / s (larger ones: at {LIMIT:g})" if standard else "log-margin")


def _titles(names: Sequence[str], second: Sequence[str]) -> list[str]:
    """The titles of small multiples: names, which are wrapped, and a second line under each, which may be empty."""
    inches = COLUMN - 0.5 if len(names) == 1 else (DOUBLE - 0.8) / PANELS
    return ["\n".join(filter(None, [style.wrapped(name, inches), under])) for name, under in zip(names, second, strict=True)]


def _grid(titles: Sequence[str], height: float) -> tuple[Figure, list[Axes]]:
    """Small multiples with shared axes; one panel is a column wide. `height` is that of all that is not a panel, in inches."""
    count = len(titles)
    lines, columns = style.grid(count, PANELS)
    width = COLUMN if columns == 1 else DOUBLE
    tall = (1.9, 1.6, 1.3, 1.0)[columns - 1] + style.height(titles)
    figure = Figure(figsize=(width, tall * lines + height), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False, sharex=True, sharey=True)
    for number, axis in enumerate(axes.flat):
        axis.set_visible(number < count)
        axis.tick_params(labelbottom=number + columns >= count)
        axis.set_title(titles[number] if number < count else "")
    return figure, list(axes.flat)[:count]


@style.styled
def decisions(rows: pd.DataFrame, look: Mapping[str, Look]) -> Figure | None:
    """How often the top class flips over the clean logit margin, a panel per mechanism with the others in grey."""
    flips = _drawn(rows, "ranking", "top class flips")
    groups, names = flips[flips["x"].notna()].sort_values("x"), _present(flips, look)
    if groups.empty:
        return None
    whole = flips[flips["x"].isna()].set_index("mechanism")["measured"]
    figure, axes = _grid(_titles(names, [f"flips {whole[name]:.1%}" if name in whole else "" for name in names]), 0.45)
    for axis, name in zip(axes, names, strict=True):
        grey = [_broken_line(groups[groups["mechanism"] == other]) for other in names if other != name]
        if grey:
            axis.plot(*np.concatenate(grey, axis=1), color="0.85", lw=0.6, zorder=0)
        own = groups[groups["mechanism"] == name]
        axis.fill_between(own["x"], own["low"].clip(0), own["high"].clip(upper=1), color=look[name].color, alpha=0.18, lw=0)
        axis.plot(own["x"], own["measured"], color=look[name].color, marker=look[name].marker)
    if (groups["x"] > 0).all():
        style.log_axis(axes[0], "x")
    top = max(0.1, float(groups["high"].clip(upper=1).max()))
    axes[0].set_ylim(-0.03 * top, 1.03 * top)
    figure.supxlabel("logit margin between the two largest logits without noise", fontsize=style.TYPE)
    figure.supylabel("share of top classes that flip", fontsize=style.TYPE)
    alone = "" if len(names) == 1 else " Grey: the other mechanisms."
    figure.set_label(
        f"how often noise changes the top class. Points: fifths of the images by logit margin ({int(groups['n'].max())} images"
        " each at most); bands: 95% intervals over images, of no width where no image flips; in the title the share over all"
        f" images.{alone}"
    )
    return figure


def _broken_line(rows: pd.DataFrame) -> NDArray[np.float64]:
    """The points of a line (2, n + 1) with a gap behind it, so that one path of a file can hold many lines."""
    return np.vstack([rows[["x", "measured"]].to_numpy(np.float64), [np.nan, np.nan]]).T


def _correlations(rows: pd.DataFrame, fact: str) -> str:
    """The rank correlations of the distortions of one mechanism with a fact, in words."""
    words = {"pooled feature": "pooled", "logits": "logits"}
    measured = rows.set_index("quantity")["measured"]
    found = {word: measured.get(f"distortion of the {kind} and {fact}", np.nan) for kind, word in words.items()}
    return ", ".join(f"{word} {value:+.2f}" for word, value in found.items() if not np.isnan(value))


@style.styled
def distortion(rows: pd.DataFrame, images: pd.DataFrame, look: Mapping[str, Look], fact: str) -> Figure | None:
    """Distortion of pooled feature and logits of each image over one fact of its map, a panel per mechanism."""
    names = _present(images, look)
    if not names or not np.ptp(images[fact].to_numpy(np.float64)) > 0:
        return None
    kinds = {"pooled_distortion": ("pooled feature", POOLED, "o"), "logit_distortion": ("logits", LOGITS, "^")}
    figure, axes = _grid(_titles(names, [_correlations(rows[rows["mechanism"] == name], fact) for name in names]), 0.6)
    for axis, name in zip(axes, names, strict=True):
        own = images[images["mechanism"] == name]
        for column, (kind, color, marker) in kinds.items():
            values = own[column].to_numpy(np.float64) if column in own else np.full(len(own), np.nan)
            used = values > 0
            if not used.any():
                continue
            shown: dict[str, Any] = {"marker": marker, "ms": 2, "ls": "", "mew": 0, "alpha": 0.6, "rasterized": True}
            axis.plot(own[fact].to_numpy(np.float64)[used], values[used], color=color, label=kind, **shown)
    style.log_axis(axes[0], "y", most=20)
    figure.supxlabel({"coherence": "spatial coherence", "positivity": "positivity"}[fact] + " of the map", fontsize=style.TYPE)
    figure.supylabel("relative distortion", fontsize=style.TYPE)
    style.legend(figure, axes, 2)
    count = int(images.groupby("mechanism").size().max())
    meaning = {
        "coherence": "squared norm of the mean feature vector over the mean squared norm, 1 for equal sites",
        "positivity": "share of sum |F| at positive values",
    }
    figure.set_label(
        f"relative distortion of each image over the {fact} of its clean map ({meaning[fact]}); {count} images, root of the"
        " mean square over passes. In the titles: rank correlations over images; images whose distortion is 0 are left out."
    )
    return figure


@style.styled
def survival(measurements: pd.DataFrame, look: Mapping[str, Look]) -> Figure | None:
    """How much of the noise reaches the logits, by mechanism and stage."""
    titles = {
        "relative change of the logits": "relative change of the logits",
        "surviving share": "change of the logits /\nchange of the stage's map",
    }
    change = _drawn(measurements, "norm", "relative change of the logits")
    names, stages = _present(change, look), list(dict.fromkeys(change["stage"]))
    if not names:
        return None
    labels = [style.wrapped(name, 1.8) for name in names]
    each = max(0.2, 0.075 * len(stages), style.height(labels) + 0.04)
    figure = Figure(figsize=(DOUBLE, 0.9 + each * len(names)), layout="constrained")
    if _drawn(measurements, "norm", "surviving share").empty:
        del titles["surviving share"]
    axes = figure.subplots(1, len(titles), sharey=True, squeeze=False)[0]
    for axis, (quantity, title) in zip(axes, titles.items(), strict=True):
        for number, stage in enumerate(stages):
            own = _drawn(measurements[measurements["stage"] == stage], "norm", quantity)
            y = own["mechanism"].map(names.index).to_numpy(np.float64) + 0.22 * (number - (len(stages) - 1) / 2)
            color, marker = STAGE_COLORS[number % len(STAGE_COLORS)], style.MARKERS[number % len(style.MARKERS)]
            axis.hlines(y, own["low"].clip(lower=1e-12), own["high"], color=color, lw=0.8)
            axis.plot(own["measured"], y, ls="", marker=marker, color=color, label=stage)
        axis.set_xlabel(title)
        style.log_axis(axis, "x")
        axis.grid(axis="y", color="0.9", lw=0.5)
        axis.set_axisbelow(True)
    axes[0].set_yticks(range(len(names)), labels)
    axes[0].set_ylim(len(names) - 0.5, -0.5)
    if len(stages) > 1:
        style.legend(figure, axes, 8, "lower")
    figure.set_label(
        "How much of the noise reaches the logits, by the stage it acts at. Left: relative change of the logits; right: the"
        " same over the relative change of the stage's own map, absent for noise that acts inside the stage. Roots of mean"
        f" squares, with 95% intervals over {int(change['n'].max())} images."
    )
    return figure
