"""Figures of sweeps: metrics over the strength of a mechanism and over the stage of its noise."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gch_bench.metrics import CLEAN, METRICS
from gch_bench.report import figure_style as style
from gch_bench.report.figure_style import Look, pick
from gch_bench.report.render import WORSE, Number
from gch_bench.report.study import MEAN, Group, Setting

PANELS = ((CLEAN, "top1"), (MEAN, "nll"))  # part and metric of each panel
GATE_VARIANCE = "gate variance"
Families = dict[str, list[Group]]


@style.styled
def strength(setting: Setting, rows: pd.DataFrame) -> Figure | None:
    """Metrics over the strength of the noise, a line per mechanism and stages. None where no mechanism has two strengths.

    The axis is the option that was varied, if it is one option of one mechanism, else the realised gate variance, which
    mechanisms share. Crosses mark the failure regime: what is worse than the baseline by the rule of the tables.
    """
    families = _families(setting, drop="strength")
    axis_name = (_varied(next(iter(families.values()))) if len(families) == 1 else None) or GATE_VARIANCE
    found = {group.mechanism: _strength(group, axis_name) for groups in families.values() for group in groups}
    positions = {mechanism: value for mechanism, value in found.items() if value is not None}
    families = _placed(families, positions)
    if not families:
        return None
    label = GATE_VARIANCE + " (realised)" if axis_name == GATE_VARIANCE else axis_name
    figure = _panels(setting, rows, families, positions, f"strength: {label}")
    if figure is None:
        return None
    for axis in figure.axes:
        values = [positions[group.mechanism] for groups in families.values() for group in groups]
        if min(values) > 0 and max(values) > 5 * min(values):
            axis.set_xscale("log")
            axis.xaxis.set_major_formatter("{x:g}")
            if axis_name != GATE_VARIANCE:
                axis.set_xticks(sorted(set(values)), minor=False)
                axis.set_xticks([], minor=True)
    figure.set_label(f"Metrics over strength ({label}). {_caption(setting, rows, families)}")
    return figure


@style.styled
def depth(setting: Setting, rows: pd.DataFrame) -> Figure | None:
    """Metrics over the stage of the noise, a line per mechanism. None where no mechanism was tried at two stages.

    A mechanism that has one strength at each stage, such as strengths matched to the stages' maps, is one line without a
    strength; else there is a line for each strength.
    """
    by_stage = {
        name: groups
        for name, groups in _families(setting, drop="both").items()
        if len({style.stage_word(group) for group in groups}) == len(groups)
    }
    one_strength = [group.mechanism for groups in by_stage.values() for group in groups]
    families = by_stage | {
        name: groups for name, groups in _families(setting, drop="stages").items() if groups[0].mechanism not in one_strength
    }
    words = {group.mechanism: style.stage_word(group) for groups in families.values() for group in groups}
    stages = sorted(set(words.values()), key=lambda word: ("+" in word, word))
    positions = {mechanism: float(stages.index(word)) for mechanism, word in words.items()}
    families = _placed(families, positions)
    if not families:
        return None
    figure = _panels(setting, rows, families, positions, "stage of the noise")
    if figure is None:
        return None
    for axis in figure.axes:
        axis.set_xticks(range(len(stages)), stages)
        axis.set_xlim(-0.3, len(stages) - 0.7)
    figure.set_label(f"Metrics over the stage of the noise, L1 early to L4 late. {_caption(setting, rows, families)}")
    return figure


def _families(setting: Setting, drop: str) -> Families:
    """Groups with noise whose labels differ in their numbers alone (drop="strength"), in their stages alone, or in both."""
    families: Families = {}
    for group in style.singles(setting):
        stage = style.stage_word(group)
        if not stage:
            continue
        kept = group.mechanism.split()
        if drop in ("strength", "both"):
            kept = [word for word in kept if not _is_number(word.partition("=")[2])]
        if drop in ("stages", "both"):
            kept = [word for word in kept if word != stage]
        families.setdefault(" ".join(kept), []).append(group)
    return {name: groups for name, groups in families.items() if len(groups) > 1}


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _placed(families: Families, positions: Mapping[str, float]) -> Families:
    """The families that have at least two groups with a position, each in the order of the positions."""
    placed = {name: [group for group in groups if group.mechanism in positions] for name, groups in families.items()}
    return {
        name: sorted(groups, key=lambda group: positions[group.mechanism]) for name, groups in placed.items() if len(groups) > 1
    }


def _varied(groups: Sequence[Group]) -> str | None:
    """The one option in which these groups' labels differ, such as gamma, if it is one."""
    options = [dict(word.split("=", 1) for word in group.mechanism.split() if "=" in word) for group in groups]
    names = [name for name in options[0] if len({own.get(name) for own in options}) > 1]
    return names[0] if len(names) == 1 else None


def _strength(group: Group, name: str) -> float | None:
    """The option `name` of a group's noise, or its gate variance as measured in its runs, the mean over its stages."""
    if name != GATE_VARIANCE:
        value = group.noise.get(name)
        return None if value is None else float(value)
    measured = [stage.get("gate_variance") for run in group.runs.values() for stage in run.facts.stages]
    return float(np.mean(measured)) if measured and None not in measured else None  # type: ignore[arg-type]


def _panels(
    setting: Setting, rows: pd.DataFrame, families: Families, positions: Mapping[str, float], xlabel: str
) -> Figure | None:
    """A panel per part and metric with a line per family, and the baseline as a horizontal line with its band."""
    panels = [(part, metric) for part, metric in PANELS if not pick(rows, metric, part).empty]
    if not panels:
        return None
    lines = _family_looks(setting, families)
    failure = f"worse than {_baseline_name(setting)}"
    names = [failure, *(look.name for look in lines.values())]
    columns = style.legend_columns(names, style.COLUMN)
    height = 1.75 + 0.15 * -(-len(names) // columns)
    figure = Figure(figsize=(style.COLUMN, height), layout="constrained")
    for axis, (part, metric) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        found = pick(rows, metric, part)
        if setting.baseline is not None and setting.baseline.mechanism in found.index:
            _level(axis, found.loc[[setting.baseline.mechanism]], metric, _baseline_name(setting))
        for name, groups in families.items():
            there = [group.mechanism for group in groups if group.mechanism in found.index]
            points = found.loc[there].assign(at=[positions[mechanism] for mechanism in there])
            style.draw_line(axis, points, "at", metric, lines[name])
            worse = points[[Number(METRICS[metric], dict(row)).verdict == WORSE for _, row in points.iterrows()]]
            if len(worse):
                value = style.scale(metric) * worse["value"]
                axis.plot(worse["at"], value, ls="", marker="x", ms=7, color=style.BASELINE, label=failure)
        axis.set_title(style.axis_label(metric, part))
    figure.supxlabel(xlabel, fontsize=style.TYPE)
    style.legend(figure, figure.axes, columns)
    return figure


def _family_looks(setting: Setting, families: Families) -> dict[str, Look]:
    """Family -> look, whose name consists of the words that the short names of all its groups share."""
    short = style.short_names(setting.groups)
    names = {}
    for family, groups in families.items():
        words = [short[group.mechanism].split() for group in groups]
        names[family] = " ".join(word for word in words[0] if all(word in other for other in words))
    if len(set(names.values())) < len(names):
        names = {family: family for family in families}
    return {family: style.look_number(number, name) for number, (family, name) in enumerate(names.items())}


def _baseline_name(setting: Setting) -> str:
    return style.short_names(setting.groups)[setting.baseline.mechanism] if setting.baseline else ""


def _level(axis: Axes, points: pd.DataFrame, metric: str, name: str) -> None:
    """The baseline's value as a horizontal line with its band (see `figure_style.half_band`)."""
    value, half = style.scale(metric) * points["value"].iloc[0], style.scale(metric) * style.half_band(points)[0]
    axis.axhline(value, color=style.BASELINE, lw=0.8, label=name)
    if np.isfinite(half):
        axis.axhspan(value - half, value + half, color=style.BASELINE, alpha=0.12, lw=0)


def _caption(setting: Setting, rows: pd.DataFrame, families: Families) -> str:
    groups = [group for own in families.values() for group in own]
    level = ""
    if setting.baseline is not None:
        level = f" Horizontal line: {setting.baseline.mechanism}. Crosses: worse than it, with p < .05 after Holm's correction."
    return f"{style.seeds_in_words(rows)}{level} Mechanisms: {'; '.join(group.mechanism for group in groups)}."
