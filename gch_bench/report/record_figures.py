"""Figures from the records of single images: reliability diagrams and accuracy over coverage.

Legend: N images, B bins of the reliability diagram, K rows: every image once in each cell and seed.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

from gch_bench.calibration import NUM_BINS, bin_index, calibration_bins
from gch_bench.metrics import CLEAN
from gch_bench.report import figure_style as style
from gch_bench.report.study import MEAN, RAW, Group, Setting
from gch_bench.results.records import CELL_CLEAN

Floats = NDArray[np.float64]
FEWEST = 10  # images in a bin that a reliability diagram shows
PANELS = 4  # reliability diagrams beside each other
COVERAGES = np.linspace(0.01, 1, 100)
# part -> its name in a figure, colour, marker and line style
PARTS = {CLEAN: ("clean", "#0072B2", "o", "-"), MEAN: ("shift", "#D55E00", "s", "--")}


class Reliability(NamedTuple):
    """The bins of a reliability diagram, each (B,); empty bins have NaN apart from their count."""

    count: Floats  # type: ignore[assignment]  # shadows tuple.count, as in metrics.py
    confidence: Floats
    accuracy: Floats
    low: Floats  # 95% band of the accuracy
    high: Floats
    images: Floats  # number of different images


def records(setting: Setting, group: Group, part: str, temperature: str = RAW) -> Iterator[pd.DataFrame]:
    """The records of a group's clean cells, or of all corrupted cells that the mean is over, one for each seed and cell.

    Nothing where a run lacks a record, as all do after temperature scaling without logits.
    """
    cells = [CELL_CLEAN] if part == CLEAN else setting.cells
    sources = [run.cells if temperature == RAW else run.calibrated for run in group.runs.values()]
    if all(source is not None and cell in source for source in sources for cell in cells):
        yield from (source[cell] for source in sources if source is not None for cell in cells)


def reliability(cells: Sequence[pd.DataFrame]) -> Reliability:
    """The bins of `calibration_bins` over the rows of all cells together, with a band in which the images are the units.

    The cells show the same N images in the same order. The rows of one image are correct or wrong together more often than by
    chance. So the variance of a bin's accuracy is that of a ratio of sums over images, sum_i (correct_i - accuracy rows_i)^2 /
    rows^2 (Cochran 1977, section 6.3), and the band is Wilson's interval for the number of independent rows that have this
    variance (Korn & Graubard 1998), at most all rows. If all rows are right, or all wrong, this number is that of the images.
    For a single cell it is Wilson's interval. The band says nothing about other training seeds.
    """
    num_images = len(cells[0])
    rows_NB, correct_NB = (np.zeros((num_images, NUM_BINS)) for _ in range(2))
    image_N, confidence_B = np.arange(num_images), np.zeros(NUM_BINS)
    for cell in cells:
        confidence_N = cell["confidence"].to_numpy(np.float64)
        correct_N = cell["prediction"].to_numpy() == cell["label"].to_numpy()
        bin_N, bins = bin_index(confidence_N), calibration_bins(confidence_N, correct_N)
        rows_NB[image_N, bin_N] += 1
        correct_NB[image_N, bin_N] += correct_N
        confidence_B += np.nan_to_num(bins.count * bins.mean_confidence)
    count_B = rows_NB.sum(axis=0)
    images_B = (rows_NB > 0).sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):  # empty bins
        accuracy_B = correct_NB.sum(axis=0) / count_B
        variance_B = np.square(correct_NB - np.nan_to_num(accuracy_B) * rows_NB).sum(axis=0) / count_B**2
        equal_B = np.minimum(accuracy_B * (1 - accuracy_B) / variance_B, count_B)
        effective_B = np.where(variance_B > 0, equal_B, images_B)
        low_B, high_B = wilson(accuracy_B, effective_B)
        return Reliability(count_B, confidence_B / count_B, accuracy_B, low_B, high_B, images_B)


def wilson(share: Floats, count: Floats) -> tuple[Floats, Floats]:
    """Bounds of Wilson's 95% interval of a share among `count` independent rows, a number that need not be whole."""
    middle = (share + style.Z**2 / (2 * count)) / (1 + style.Z**2 / count)
    half = style.Z / (1 + style.Z**2 / count) * np.sqrt(share * (1 - share) / count + style.Z**2 / (4 * count**2))
    return np.clip(middle - half, 0, 1), np.clip(middle + half, 0, 1)


@style.styled
def reliability_diagrams(setting: Setting, rows: pd.DataFrame, temperature: str = RAW) -> Figure | None:
    """Accuracy over confidence for each mechanism, clean and under shift, above the histogram of the confidences.

    None if no group has records at this temperature.
    """
    found = []
    for group in style.drawn_groups(setting, rows):
        parts = {part: list(records(setting, group, part, temperature)) for part in PARTS}
        if any(parts.values()):
            found.append((group, {part: reliability(cells) for part, cells in parts.items() if cells}))
    if not found:
        return None
    look, (lines, columns) = style.looks(setting, rows), style.grid(len(found), PANELS)
    width = style.COLUMN if columns <= 2 else style.DOUBLE
    side = (width - 0.65) / columns
    figure = Figure(figsize=(width, lines * (min(side, 2.2) + 0.95) + 0.35), layout="constrained")
    axes = figure.subplots(2 * lines, columns, squeeze=False, sharex=True, height_ratios=[1, 0.32] * lines)
    for number in range(lines * columns):
        top, bottom = (axes[2 * (number // columns) + i, number % columns] for i in (0, 1))
        if number >= len(found):
            top.axis("off")
            bottom.axis("off")
            continue
        group, curves = found[number]
        _diagram(top, bottom, curves)
        top.set_title(style.wrapped(look[group.mechanism].name, side))
        if number % columns:
            top.tick_params(labelleft=False)
            bottom.tick_params(labelleft=False)
        else:
            top.set_ylabel("accuracy (%)")
            bottom.set_ylabel("rows (%)")
        bottom.tick_params(labelbottom=number + columns >= len(found))
    figure.supxlabel("confidence (%)", fontsize=style.TYPE)
    style.legend(figure, [axes[0, 0]], 3)
    groups = [group for group, _ in found]
    what = "before temperature scaling" if temperature == RAW else "after temperature scaling"
    figure.set_label(
        f"Reliability diagrams {what}: accuracy over confidence in {NUM_BINS} bins of equal width, on clean images and over the"
        f" rows of all {len(setting.cells)} corrupted cells and all seeds together; below, the share of the rows in each bin."
        f" Bins of fewer than {FEWEST} images are in the histogram alone. Below the diagonal the network is overconfident."
        " Bands: 95%, with images as the units; they say nothing about other training seeds."
        f"{style.left_out(setting, rows)}{style.names_in_words(groups, look)}"
    )
    return figure


def _diagram(top: Axes, bottom: Axes, curves: dict[str, Reliability]) -> None:
    """The reliability diagram of one mechanism and its histogram, each with a line for each part."""
    top.plot([0, 100], [0, 100], color="0.6", lw=0.6, label="calibrated")
    edges = np.linspace(0, 100, NUM_BINS + 1)
    for part, bins in curves.items():
        name, color, marker, line = PARTS[part]
        shown = bins.images >= FEWEST
        confidence, accuracy, low, high = (100 * values[shown] for values in bins[1:5])
        top.fill_between(confidence, low, high, color=color, alpha=0.2, lw=0)
        top.plot(confidence, accuracy, color=color, marker=marker, ls=line, ms=2.2, label=name, clip_on=not shown.any())
        bottom.stairs(100 * bins.count / bins.count.sum(), edges, color=color, ls=line, lw=1)
    top.set(xlim=(0, 100), ylim=(0, 100), xticks=(0, 50, 100), yticks=(0, 50, 100))
    bottom.set(ylim=(0, 100), yticks=(0, 100))


def selective_accuracy(confidence: ArrayLike, correct: ArrayLike) -> Floats:
    """The accuracy (N,) of the k most confident rows, k = 1..N; rows of equal confidence count as in the AURC of metrics.py."""
    correct_N = np.asarray(correct, dtype=np.float64)
    _, block_N, count = np.unique(-np.asarray(confidence, dtype=np.float64), return_inverse=True, return_counts=True)
    right_N = np.repeat(np.bincount(block_N, weights=correct_N) / count, count)
    accuracy_N: Floats = np.cumsum(right_N) / np.arange(1, len(right_N) + 1)
    return accuracy_N


def mean_selective_accuracy(cells: Sequence[pd.DataFrame]) -> Floats:
    """`selective_accuracy` at COVERAGES (each rounded up to whole images), averaged over the cells."""
    curves = []
    for cell in cells:
        curve_N = selective_accuracy(cell["confidence"], cell["prediction"].to_numpy() == cell["label"].to_numpy())
        curves.append(curve_N[np.ceil(COVERAGES * len(curve_N) - 1e-9).astype(int) - 1])
    mean: Floats = np.mean(curves, axis=0)
    return mean


@style.styled
def accuracy_coverage(setting: Setting, rows: pd.DataFrame) -> Figure:
    """Selective accuracy over coverage, a line for each mechanism, on clean images and under shift."""
    parts = [CLEAN, MEAN] if setting.cells else [CLEAN]
    groups, look = style.drawn_groups(setting, rows), style.looks(setting, rows)
    names = [look[group.mechanism].name for group in groups]
    columns = style.legend_columns(names, style.COLUMN)
    figure = Figure(figsize=(style.COLUMN, 1.9 + 0.15 * -(-len(names) // columns)), layout="constrained")
    axes = figure.subplots(1, len(parts), squeeze=False)[0]
    for axis, part in zip(axes, parts, strict=True):
        for group in groups:
            own, found = look[group.mechanism], list(records(setting, group, part))
            if not found:  # no run of the group has all cells
                continue
            accuracy = mean_selective_accuracy(found)
            marks = {"marker": own.marker, "ms": 2.5, "markevery": (len(COVERAGES) // 10, len(COVERAGES) // 5)}
            axis.plot(100 * COVERAGES, 100 * accuracy, color=own.color, ls=own.line, label=own.name, **marks)
        axis.set(title=PARTS[part][0], xlim=(0, 101), xticks=(0, 50, 100))
    axes[0].set_ylabel("accuracy of the covered\nimages (%), higher is better")
    figure.supxlabel("coverage, most confident images first (%)", fontsize=style.TYPE)
    style.legend(figure, [axes[0]], columns)
    figure.set_label(
        "Accuracy of the most confident images over their share (coverage), averaged over"
        f" {'corrupted cells and ' if setting.cells else ''}seeds. At full coverage it is top-1; the mean over all coverages is"
        f" 1 - AURC.{style.left_out(setting, rows)}{style.names_in_words(groups, look)}"
    )
    return figure
