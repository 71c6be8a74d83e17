"""How the geometry of a network changes while it is trained: the chains' headline quantities over epochs."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gch_bench.report.figure_style import DOUBLE, LINE, Look, legend, legend_columns, look_number, styled

# Entry of a chain's summary -> heading, and the value that it has by chance (None: that depends on the matrices).
QUANTITIES: dict[str, tuple[str, float | None]] = {
    "energy_gain": ("energy gain", 1.0),
    "angle_excess": ("angle excess", 0.0),
    "slack_excess": ("slack excess", 0.0),
    "mean_exponent": ("mean exponent", None),
    "spikes": ("spikes", 0.0),
    "certified_rank": ("certified rank / d", None),
}
SCORES = {"energy_gain": "energy_gain_z", "angle_excess": "angle_excess_z", "slack_excess": "slack_ratio_z"}
CHANCE = 2.0  # a quantity whose |z| is below this may be chance: its marker is open
_COLUMNS = ("chain", "label", "epoch")

Summaries = Sequence[tuple[str, int | None, Mapping[str, float]]]


def trajectories(chains: Mapping[str, Summaries]) -> tuple[pd.DataFrame, Figure | None]:
    """The headline quantities over epochs, of the chains in several checkpoints of one training.

    Args:
        chains: name -> for each checkpoint its label, its epoch, and the chain's summary; in any order. Where an epoch is None,
            the number of the checkpoint in the order given, from 0, takes its place for all.

    Returns:
        A table with the columns chain, label, epoch, the QUANTITIES and their SCORES (nan where a summary lacks one), by epoch,
        and the figure of `figure`, with a line for each chain.
    """
    names = [name for key in QUANTITIES for name in (key, SCORES.get(key)) if name]
    numbered = any(epoch is None for summaries in chains.values() for _, epoch, _ in summaries)
    rows = []
    for chain, summaries in chains.items():
        for number, (label, epoch, summary) in enumerate(summaries):
            values = {name: float(summary.get(name, math.nan)) for name in names}
            rows.append({"chain": chain, "label": label, "epoch": number if numbered else epoch, **values})
    table = pd.DataFrame(rows, columns=[*_COLUMNS, *names])
    order = {chain: number for number, chain in enumerate(chains)}
    table = table.sort_values(["chain", "epoch"], key=lambda own: own.map(order) if own.name == "chain" else own, kind="stable")
    table = table.reset_index(drop=True)
    return table, figure(table, "checkpoint" if numbered else "epoch")


@styled
def figure(table: pd.DataFrame, over: str = "epoch") -> Figure | None:
    """A panel per quantity with a line per chain, and a dashed grey line at the value by chance. A marker is open where the
    quantity's z is between -CHANCE and CHANCE, and filled elsewhere. None if no chain has two epochs, or all is nan."""
    shown = [key for key in QUANTITIES if np.isfinite(table[key].to_numpy(np.float64)).any()]
    if not shown or table.groupby("chain")["epoch"].nunique().max() < 2:
        return None
    looks = {chain: look_number(number, str(chain)) for number, chain in enumerate(dict.fromkeys(table["chain"]))}
    columns = min(3, len(shown))
    lines = -(-len(shown) // columns)
    names = [look.name for look in looks.values()]
    width, across = DOUBLE * columns / 3, legend_columns([*names, "by chance"], DOUBLE * columns / 3)
    tall = 1.6 * lines + 0.3 + LINE * -(-(len(names) + 1) // across)
    drawn = Figure(figsize=(width, tall), layout="constrained")
    panels = list(drawn.subplots(lines, columns, squeeze=False, sharex=True).flat)
    for axis, key in zip(panels, shown, strict=False):
        for chain, own in table.groupby("chain", sort=False):
            _line(axis, own, key, looks[chain])
        chance = QUANTITIES[key][1]
        if chance is not None:
            axis.axhline(chance, color="0.6", ls="--", lw=0.8, zorder=0, label="by chance")
        axis.set_title(QUANTITIES[key][0])
        axis.xaxis.get_major_locator().set_params(integer=True)
    for axis in panels[len(shown) :]:
        axis.set_axis_off()
    for number in range(len(shown)):
        if number + columns >= len(shown):  # the lowest panel of its column
            panels[number].set_xlabel(over)
            panels[number].tick_params(labelbottom=True)
    legend(drawn, panels[: len(shown)], across, "lower")
    drawn.set_label(
        f"Geometry over training. Dashed: the value by chance. Open markers: |z| < {CHANCE:g} against the null of random"
        " rotations; quantities without a z have filled ones."
    )
    return drawn


def _line(axis: Axes, own: pd.DataFrame, key: str, look: Look) -> None:
    at, values = own["epoch"].to_numpy(np.float64), own[key].to_numpy(np.float64)
    axis.plot(at, values, color=look.color, ls=look.line, marker=look.marker, label=look.name)
    score = SCORES.get(key)
    if score is not None:
        chance = np.abs(own[score].to_numpy(np.float64)) < CHANCE
        axis.plot(at[chance], values[chance], look.marker, color=look.color, mfc="white")
