"""What all figures of a report share: their size and type, the look of each mechanism, axis labels, and how they are saved.

Figures are made for a column of 3.3 inches, or 6.9 inches for two columns, with no type below 7 points at that size. Colours
are those of Okabe and Ito, which colour-blind readers can tell apart; markers and line styles tell the lines apart in grey.
A figure's label (``figure.get_label()``) is its caption, which `save` also writes into the files as their description.
"""

import io
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import wraps
from pathlib import Path
from typing import Any, NamedTuple, ParamSpec, TypeVar

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from numpy.typing import NDArray

from gch_bench.files import write_atomic
from gch_bench.metrics import CLEAN, METRICS
from gch_bench.report.study import CALIBRATED, MEAN, RAW, Group, Setting

COLUMN, DOUBLE = 3.3, 6.9  # widths in inches
DPI = 300
Z = 1.959963984540054  # the 97.5% quantile of the normal distribution, for bands of 95%
MOST = 8  # most mechanisms whose lines are drawn into one figure
TYPE = 7  # points
CHARACTER = 0.056  # mean width of a character at that size, inches
LINE = 0.14  # height of a line of that type, inches
STYLE: Any = {
    "font.size": TYPE,
    "axes.titlesize": TYPE,
    "axes.labelsize": TYPE,
    "xtick.labelsize": TYPE,
    "ytick.labelsize": TYPE,
    "legend.fontsize": TYPE,
    "legend.frameon": False,
    "figure.titlesize": TYPE,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "lines.linewidth": 1.0,
    "lines.markersize": 3.5,
    "figure.autolayout": False,
    "figure.constrained_layout.use": False,
    "hatch.linewidth": 0.4,
    "pdf.fonttype": 42,  # TrueType, which journals ask for
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "gch-bench",  # otherwise each file has random ids
}
BASELINE = "#000000"
COLORS = ("#D55E00", "#0072B2", "#009E73", "#E69F00", "#CC79A7", "#56B4E9", "#8C6D1F")  # Okabe-Ito; its yellow darkened
MARKERS = ("s", "^", "D", "v", "X", "*", "<", ">", "P", "p", "h", "d")
LINES: tuple[Any, ...] = ("--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 1)))
BETTER, WORSE = "#0072B2", "#D55E00"

P = ParamSpec("P")
T = TypeVar("T")


class Look(NamedTuple):
    """How a mechanism is drawn: the arguments of `Axes.plot` and its name, which is as short as it can be in its setting."""

    color: str
    marker: str
    line: Any
    name: str


def styled(function: Callable[P, T]) -> Callable[P, T]:
    """The function under STYLE; matplotlib's settings elsewhere stay as they are."""

    @wraps(function)
    def inside(*args: P.args, **kwargs: P.kwargs) -> T:
        with matplotlib.rc_context(STYLE):
            return function(*args, **kwargs)

    return inside


@styled
def drawn(name: str, figure: Figure, kind: str, dpi: int = DPI) -> bytes:
    """The figure as a file of this kind (svg, png or pdf). Equal figures give equal bytes.

    The layout of a figure is computed once and then kept, because this takes longer than to draw it.
    """
    if figure.get_layout_engine() is not None:
        figure.draw_without_rendering()
        figure.set_layout_engine(None)
    file = io.BytesIO()
    figure.savefig(file, format=kind, dpi=dpi, metadata=_metadata(name, figure, kind))
    return file.getvalue()


def save(
    figures: Mapping[str, Figure], folder: Path, kinds: Sequence[str] = ("svg", "png", "pdf"), dpi: int = DPI
) -> list[Path]:
    """Write each figure as `folder/NAME.KIND`, whole or not at all, and return the paths. Equal figures give equal files.

    Raises:
        UserError: the folder cannot be written.
    """
    paths = []
    for name, figure in figures.items():
        for kind in kinds:
            paths.append(folder / f"{name}.{kind}")
            _write(paths[-1], drawn(name, figure, kind, dpi))
    return paths


def _write(path: Path, content: bytes) -> None:
    write_atomic(path, lambda file: file.write(content))


def _metadata(name: str, figure: Figure, kind: str) -> dict[str, Any]:
    caption = str(figure.get_label())
    if kind == "pdf":
        return {"Title": name, "Subject": caption, "CreationDate": None}
    return {"Title": name, "Description": caption} | ({"Date": None} if kind == "svg" else {})


def singles(setting: Setting) -> list[Group]:
    """The groups of single networks; ensembles are in the tables alone."""
    return [group for group in setting.groups if group.kind == "single"]


def drawn_groups(setting: Setting, rows: pd.DataFrame) -> list[Group]:
    """The groups that a figure with one line or panel for each shows, the baseline first: all, or those of the lowest NLL."""
    own = setting.baseline.mechanism if setting.baseline else None
    groups = sorted(singles(setting), key=lambda group: group.mechanism != own)
    if len(groups) <= MOST:
        return groups
    nll = pick(rows, "nll", MEAN if setting.cells else CLEAN)["value"]
    ranked = sorted(groups, key=lambda group: (group.mechanism != own, nll.get(group.mechanism, float("inf"))))
    return [group for group in groups if group in ranked[:MOST]]


def left_out(setting: Setting, rows: pd.DataFrame) -> str:
    """The sentence of a caption that says how many mechanisms are not shown; empty if all are."""
    shown, all_ = len(drawn_groups(setting, rows)), len(singles(setting))
    where = "under shift" if setting.cells else "on clean images"
    return f" {shown} of {all_} mechanisms, those of the lowest NLL {where}; the tables have all." if shown < all_ else ""


def looks(setting: Setting, rows: pd.DataFrame) -> dict[str, Look]:
    """Mechanism -> look, the same in all figures of a setting. The baseline is a solid black line with round markers."""
    names, drawn = short_names(setting.groups), [group.mechanism for group in drawn_groups(setting, rows)]
    own = setting.baseline.mechanism if setting.baseline else None
    others = [label for label in dict.fromkeys([*drawn, *names]) if label != own]
    found = {label: look_number(number, names[label]) for number, label in enumerate(others)}
    return found if own is None else found | {own: Look(BASELINE, "o", "-", names[own])}


def look_number(number: int, name: str) -> Look:
    """A look for the line `number`; up to 84 differ in colour, marker or line style."""
    color, marker, line = (cycle[number % len(cycle)] for cycle in (COLORS, MARKERS, LINES))
    return Look(color, marker, line, name)


def stage_word(group: Group) -> str:
    """The stages as the group's label has them, such as `L3+L4`; empty without noise."""
    return "+".join(group.noise["stages"]) if group.noise.get("law") else ""


def short_names(groups: Sequence[Group]) -> dict[str, str]:
    """Label -> the words of it that tell its mechanism from the others.

    Left out are options that all groups with the same noise share, and the stages if all noise is at the same ones.
    """
    words = {group.mechanism: group.mechanism.split() for group in groups}
    stages = {word for group in groups if (word := stage_word(group))}
    short = {}
    for group in groups:
        own = words[group.mechanism]
        shared = set.intersection(*(set(other) for other in words.values() if other[0] == own[0])) - stages
        shared |= stages if len(stages) == 1 else set()
        short[group.mechanism] = " ".join([own[0], *(word for word in own[1:] if word not in shared)])
    return short if len(set(short.values())) == len(short) else {label: label for label in words}


def names_in_words(groups: Iterable[Group], look: Mapping[str, Look]) -> str:
    """The sentence of a caption that gives the whole labels of the shortened names; empty if none is shortened."""
    pairs = [(look[group.mechanism].name, group.mechanism) for group in groups]
    words = "; ".join(f"{name}: {label}" for name, label in pairs if name != label)
    return f" In full: {words}." if words else ""


def pick(rows: pd.DataFrame, metric: str, corruption: str, severity: int | None = None, temperature: str = RAW) -> pd.DataFrame:
    """The rows of one metric and one part of the evaluation, by mechanism; without severity the mean over severities.

    Args:
        rows: the results of one setting, with the columns ROWS.
        metric: a key of METRICS.
        corruption: clean, mean, or the name of a corruption.
    """
    own = rows[(rows["metric"] == metric) & (rows["corruption"] == corruption) & (rows["temperature"] == temperature)]
    if severity is not None:
        own = own[own["severity"].eq(severity).fillna(False).astype(bool)]
    elif corruption != CLEAN:
        own = own[own["severity"].isna()]
    return own[own["kind"] == "single"].set_index("mechanism")


def scale(metric: str) -> float:
    """What a value of the metric is multiplied by to be shown: 100 for those in percent."""
    return 100.0 if METRICS[metric].percent else 1.0


def quantity(metric: str, part: str = "") -> str:
    """The metric in words with its unit, such as `shift NLL (nats)`; `part` is clean, mean or empty."""
    title = METRICS[metric].title
    unit = "%" if METRICS[metric].percent else "nats" if metric.split("_")[0] in ("nll", "entropy") else ""
    words = {MEAN: "shift "}.get(part, f"{part} " if part else "")
    return f"{words}{title}" + (f" ({unit})" if unit else "")


def direction(metric: str) -> str:
    """`lower is better`, `higher is better`, or nothing where neither is."""
    better = METRICS[metric].better
    return f"{better} is better" if better else ""


def axis_label(metric: str, part: str = "") -> str:
    """The label of an axis with values of the metric: quantity, unit and, on a second line, the better direction."""
    return "\n".join(filter(None, (quantity(metric, part), direction(metric))))


def log_axis(axes: Axes, name: str, most: float = 1000) -> None:
    """A logarithmic axis, "x" or "y", with labels 0.1, 0.2, 0.5, 1, ... or, over more than a factor `most`, powers of ten."""
    axes.set(**{f"{name}scale": "log"})
    axis = axes.xaxis if name == "x" else axes.yaxis
    low, high = sorted(axis.get_view_interval())
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < most * low else (1,)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())


def draw_line(axis: Axes, points: pd.DataFrame, x: str, metric: str, look: Look, **options: Any) -> None:
    """The values over the column `x` as a line with its band (see `half_band`)."""
    at, value = points[x].to_numpy(np.float64), scale(metric) * points["value"].to_numpy(np.float64)
    half = scale(metric) * half_band(points)
    axis.plot(at, value, color=look.color, marker=look.marker, ls=look.line, ms=2.5, label=look.name, **options)
    if np.isfinite(half).any():
        axis.fill_between(at, value - half, value + half, color=look.color, alpha=0.18, lw=0)


def half_band(points: pd.DataFrame) -> NDArray[np.float64]:
    """Half of each row's band: the standard deviation over seeds, or with one seed half of the 95% interval over images."""
    return points["sd"].fillna(Z * points["se_images"]).to_numpy(np.float64)


def wrapped(text: str, inches: float) -> str:
    """The text in lines that are at most so long, broken between words."""
    return "\n".join(textwrap.wrap(text, max(int(inches / CHARACTER), 6), break_long_words=False, break_on_hyphens=False))


def height(texts: Iterable[str]) -> float:
    """The height in inches of the tallest of these texts."""
    return LINE * max(text.count("\n") + 1 for text in texts)


def grid(count: int, most: int) -> tuple[int, int]:
    """Lines and columns of so many panels, with at most `most` columns and lines as equal as possible."""
    lines = -(-count // most)
    return lines, -(-count // lines)


def legend(figure: Figure, axes: Sequence[Axes], columns: int, place: str = "upper") -> None:
    """The legend of these axes above (or, with "lower", below) all panels of the figure; each name appears once."""
    found: dict[str, Any] = {}
    for axis in axes:
        for handle, name in zip(*axis.get_legend_handles_labels(), strict=True):
            found.setdefault(name, handle)
    at: Any = f"outside {place} center"
    figure.legend(list(found.values()), list(found), loc=at, ncols=max(1, min(columns, len(found))), handlelength=2.6)


def legend_columns(names: Iterable[str], width: float) -> int:
    """How many columns of these names fit into a legend of that width in inches."""
    longest = max((len(name) for name in names), default=1)
    return max(1, int(width / (longest * CHARACTER + 0.55)))


def seeds_in_words(rows: pd.DataFrame) -> str:
    """The sentence of a caption that says what the bands are."""
    seeds = rows.loc[rows["kind"] == "single", "seeds"]
    most, least = int(seeds.max()), int(seeds.min())
    if most == 1:
        return (
            "One seed. Bands: 95% intervals over images (normal approximation, too narrow where a share is near 0 or 100%);"
            " they say nothing about other trainings."
        )
    one = ", or with one seed the 95% interval over images" if least == 1 else ""
    bands = f"Bands: plus and minus one standard deviation over seeds{one}."
    if most == least:
        return f"Mean over {most} seeds. {bands}"
    return f"Values: mean over the {least} to {most} seeds that each mechanism has. Differences: at equal seeds. {bands}"


def has_temperature(rows: pd.DataFrame) -> bool:
    return bool((rows["temperature"] == CALIBRATED).any())


def spread(count: int, most: int) -> list[int]:
    """At most `most` of the numbers 0..count - 1, evenly spread, the first and the last among them."""
    return sorted({round(i) for i in np.linspace(0, count - 1, min(most, count))})


def shown(chosen: Sequence[int], count: int, what: str) -> str:
    """The part of a caption that says how many of the panels there could be are drawn; empty if all are."""
    return f" of {len(chosen)} of {count} {what}, spread over the depth; the tables have all" if len(chosen) < count else ""


def shortened(text: str, most: int) -> str:
    """The text, or its end behind an ellipsis if it has more than `most` characters: names of modules differ in their ends."""
    return text if len(text) <= most else f"…{text[1 - most :]}"
