"""All figures of a report, from its table of results and its records. The functions return figures; `save` writes the files.

A function gets a setting and the rows of the table that belong to it, and returns None where there is nothing to draw.
"""

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from gch_bench.files import slug
from gch_bench.metrics import CLEAN, METRICS
from gch_bench.report import figure_style as style
from gch_bench.report.figure_style import pick, save
from gch_bench.report.record_figures import accuracy_coverage, reliability_diagrams
from gch_bench.report.study import CALIBRATED, MEAN, RAW, Group, Report, Setting
from gch_bench.report.sweep_figures import depth, strength

__all__ = ["all_figures", "difference_map", "forest", "over_severities", "save", "setting_figures"]
FOREST = ("nll", "top1", "ce2_debiased", "aurc")
SHOWN = ("nll", "top1")  # metrics with a figure over severities and a map of differences
PANELS = 5  # corruptions beside each other
MAPS = 6  # maps of differences beside each other
DIVERGING = LinearSegmentedColormap.from_list("better to worse", ["#2F8FCB", "#FFFFFF", style.WORSE])


def all_figures(report: Report) -> dict[str, Figure]:
    """Name -> figure. With several settings the name begins with the setting's."""
    figures: dict[str, Figure] = {}
    for setting in report.settings:
        rows = report.rows[report.rows["setting"] == setting.name]
        prefix = f"{slug(setting.name)}-" if len(report.settings) > 1 else ""
        figures |= {f"{prefix}{name}": figure for name, figure in setting_figures(setting, rows).items()}
    return figures


def setting_figures(setting: Setting, rows: pd.DataFrame) -> dict[str, Figure]:
    """Name -> figure of one setting, the most telling first. A figure without data is absent."""
    makers: dict[str, Callable[[], Figure | None]] = {
        "forest": lambda: forest(setting, rows),
        "reliability": lambda: reliability_diagrams(setting, rows),
        "reliability-after-t": lambda: reliability_diagrams(setting, rows, CALIBRATED),
        "accuracy-coverage": lambda: accuracy_coverage(setting, rows),
        **{f"severity-{key}": lambda key=key: over_severities(setting, rows, key) for key in SHOWN},  # type: ignore[misc]
        **{f"differences-{key}": lambda key=key: difference_map(setting, rows, key) for key in SHOWN},  # type: ignore[misc]
        "strength": lambda: strength(setting, rows),
        "depth": lambda: depth(setting, rows),
    }
    made = {name: make() for name, make in makers.items()}
    return {name: figure for name, figure in made.items() if figure is not None}


def compared(setting: Setting) -> list[Group]:
    """The groups that have a difference from the baseline."""
    own = setting.baseline.mechanism if setting.baseline else None
    return [group for group in style.singles(setting) if own is not None and group.mechanism != own]


@style.styled
def forest(setting: Setting, rows: pd.DataFrame) -> Figure | None:
    """Differences from the baseline under shift with their 95% intervals: a line per mechanism, a panel per metric.

    Filled markers are differences with p < .05 after Holm's correction. Those after temperature scaling lie below the raw ones.
    """
    part, groups, look = MEAN if setting.cells else CLEAN, compared(setting), style.looks(setting, rows)
    metrics = [key for key in FOREST if key in METRICS and not pick(rows, key, part)["difference"].dropna().empty]
    if not groups or not metrics:
        return None
    both = style.has_temperature(rows)
    names = [style.wrapped(look[group.mechanism].name, 1.6) for group in groups]
    each = max(0.3 if both else 0.2, style.height(names))
    figure = Figure(figsize=(style.DOUBLE, 1.05 + each * len(groups)), layout="constrained")
    axes = figure.subplots(1, len(metrics), sharey=True, squeeze=False)[0]
    for axis, metric in zip(axes, metrics, strict=True):
        _intervals(axis, groups, pick(rows, metric, part), metric, ("o", style.BETTER, 0.14 if both else 0.0, RAW))
        if both:
            _intervals(axis, groups, pick(rows, metric, part, None, CALIBRATED), metric, ("s", style.WORSE, -0.14, CALIBRATED))
        axis.axvline(0, color="0.5", lw=0.6)
        axis.set_xlabel(style.axis_label(metric, part))
        axis.tick_params(left=False)
        axis.spines["left"].set_visible(False)
        axis.locator_params(axis="x", nbins=4)
    axes[0].set_yticks(range(len(groups)), names)
    axes[0].set_ylim(len(groups) - 0.5, -0.5)
    style.legend(figure, axes, 4, "lower")
    assert setting.baseline is not None
    base = look[setting.baseline.mechanism].name
    figure.suptitle(f"difference from {base}{' under shift' if part == MEAN else ' on clean images'}")
    figure.set_label(
        f"Differences from {base} {'under shift' if part == MEAN else 'on clean images'} with 95% intervals"
        f"{', before and after temperature scaling' if both else ''}. Filled: p < .05 after Holm's"
        f" correction over the mechanisms.{style.names_in_words(groups, look)}"
    )
    return figure


def _intervals(axis: Axes, groups: Sequence[Group], found: pd.DataFrame, metric: str, how: tuple[str, str, float, str]) -> None:
    """Differences with intervals at y = 0, 1, ...; `how` is marker, colour, shift upward and name."""
    marker, color, shift, name = how
    kinds = set()
    for number, group in enumerate(groups):
        if group.mechanism not in found.index:
            continue
        row = found.loc[[group.mechanism]].iloc[0]
        middle, low, high = (style.scale(metric) * float(row[key]) for key in ("difference", "low", "high"))
        sure = bool(row["p_holm"] < 0.05)
        if np.isfinite([low, high]).all():
            axis.plot([low, high], [number - shift] * 2, color=color, lw=1)
        label = f"{name}, {'p < .05 (Holm)' if sure else 'p >= .05'}"
        label = "_" + label if label in kinds else label  # matplotlib leaves names with _ out of the legend
        kinds.add(label)
        fill = color if sure else "white"
        axis.plot(middle, number - shift, marker=marker, color=color, mfc=fill, ms=4, ls="", label=label)


@style.styled
def over_severities(setting: Setting, rows: pd.DataFrame, metric: str) -> Figure | None:
    """The metric over severities 1..5, a panel per corruption, a line per mechanism. None with a single severity."""
    names = list(dict.fromkeys(cell.corruption for cell in setting.cells))
    if len({cell.severity for cell in setting.cells}) < 2 or metric not in set(rows["metric"]):
        return None
    groups, look = style.drawn_groups(setting, rows), style.looks(setting, rows)
    lines, columns = style.grid(len(names), PANELS)
    width = style.COLUMN if columns <= 2 else style.DOUBLE
    short = [look[group.mechanism].name for group in groups]
    in_legend = style.legend_columns(short, width)
    height = 1.15 * lines + 0.35 + 0.15 * -(-len(short) // in_legend)
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False, sharex=True).flat
    for number, (axis, name) in enumerate(zip(axes, names, strict=False)):
        found = _of_corruption(rows, metric, name)
        for group in groups:
            style.draw_line(axis, found[found["mechanism"] == group.mechanism], "severity", metric, look[group.mechanism])
        axis.set_title(name.replace("_", " "))
        axis.set_xticks(sorted(found["severity"].astype(int).unique()))
        axis.tick_params(labelbottom=number + columns >= len(names))
    for axis in list(axes)[len(names) :]:
        axis.axis("off")
    figure.supxlabel("severity", fontsize=style.TYPE)
    figure.supylabel(style.axis_label(metric).replace("\n", ", "), fontsize=style.TYPE)
    style.legend(figure, [figure.axes[0]], in_legend)
    figure.set_label(
        f"{METRICS[metric].title} ({style.direction(metric)}) over severity for each corruption. Each panel has its own scale."
        f" {style.seeds_in_words(rows)}{style.left_out(setting, rows)}{style.names_in_words(groups, look)}"
    )
    return figure


def _of_corruption(rows: pd.DataFrame, metric: str, corruption: str) -> pd.DataFrame:
    """The raw rows of one metric at each severity of a corruption."""
    own = rows[(rows["metric"] == metric) & (rows["temperature"] == RAW) & (rows["corruption"] == corruption)]
    return own[own["severity"].notna() & (own["kind"] == "single")].sort_values("severity")


@style.styled
def difference_map(setting: Setting, rows: pd.DataFrame, metric: str) -> Figure | None:
    """Differences from the baseline, corruption x severity, a map per mechanism. Blue is always the better side.

    A cell whose 95% interval, not corrected for the number of cells, includes 0 is hatched; the others carry the sign of their
    difference, which is legible in grey.
    """
    names = list(dict.fromkeys(cell.corruption for cell in setting.cells))
    severities = sorted({cell.severity for cell in setting.cells})
    groups, look = compared(setting), style.looks(setting, rows)
    better = METRICS[metric].better
    found = {group.mechanism: difference_grid(setting, rows, metric, group.mechanism) for group in groups}
    sizes = [np.abs(grid[0][np.isfinite(grid[0])]) for grid in found.values()]
    largest = float(np.quantile(np.concatenate(sizes), 0.95)) if sizes and any(map(len, sizes)) else 0.0
    if largest == 0 or better is None:
        return None
    lines, columns = style.grid(len(groups), MAPS)
    width = style.COLUMN if columns <= 2 else style.DOUBLE
    titles = [style.wrapped(look[group.mechanism].name, (width - 1.4) / columns) for group in groups]
    figure = Figure(figsize=(width, lines * (0.15 * len(names) + 0.21 + style.height(titles)) + 0.75), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False, sharex=True, sharey=True)
    colors = DIVERGING if better == "lower" else DIVERGING.reversed()
    for number, (axis, group) in enumerate(zip(axes.flat, groups, strict=False)):
        values, low, high = found[group.mechanism]
        image = axis.imshow(values, cmap=colors, vmin=-largest, vmax=largest, aspect="auto", interpolation="nearest")
        _mark_cells(axis, values, low, high)
        axis.set_title(titles[number])
        axis.set_xticks(range(len(severities)), severities)
        axis.set_yticks(range(len(names)), [name.replace("_", " ") for name in names])
        axis.tick_params(length=0, labelbottom=True)
        if number + columns >= len(groups):
            axis.set_xlabel("severity")
        axis.spines[:].set_visible(False)
    for axis in axes.flat[len(groups) :]:
        axis.axis("off")
    assert setting.baseline is not None
    base = look[setting.baseline.mechanism].name
    bar = figure.colorbar(image, ax=axes, location="bottom", aspect=40, shrink=0.8, pad=0.02, extend="both")
    bar.outline.set_visible(False)
    sides = ("better", "worse") if better == "lower" else ("worse", "better")
    bar.set_label(f"{sides[0]}  <  {style.quantity(metric)} - {base}  >  {sides[1]}")
    figure.set_label(
        f"Differences of {METRICS[metric].title} from {base} for each corruption and severity; blue is better, orange is worse."
        " Hatched: the 95% interval, which is not corrected for the number of cells, includes 0; + and -: the sign of a"
        " difference whose interval does not."
        " The colours end at the 95% quantile of the differences' size."
        f"{style.names_in_words(groups, look)}"
    )
    return figure


def difference_grid(setting: Setting, rows: pd.DataFrame, metric: str, mechanism: str) -> tuple[np.ndarray, ...]:
    """Difference, low and high of one mechanism as shown, each (corruptions, severities), in the order of the cells."""
    names = list(dict.fromkeys(cell.corruption for cell in setting.cells))
    severities = sorted({cell.severity for cell in setting.cells})
    grids = tuple(np.full((len(names), len(severities)), np.nan) for _ in range(3))
    for line, name in enumerate(names):
        own = _of_corruption(rows, metric, name)
        for _, row in own[own["mechanism"] == mechanism].iterrows():
            if row["severity"] in severities:
                for grid, key in zip(grids, ("difference", "low", "high"), strict=True):
                    grid[line, severities.index(row["severity"])] = style.scale(metric) * row[key]
    return grids


def _mark_cells(axis: Axes, values: np.ndarray, low: np.ndarray, high: np.ndarray) -> None:
    for line, column in np.argwhere(np.isfinite(low) & np.isfinite(high)):
        if low[line, column] <= 0 <= high[line, column]:
            axis.add_patch(Rectangle((column - 0.5, line - 0.5), 1, 1, fill=False, hatch="////", ec="0.65", lw=0))
        else:
            sign = "+" if values[line, column] > 0 else "\N{MINUS SIGN}"
            axis.text(column, line, sign, ha="center", va="center_baseline", color="black")
