"""What theory_beside_measurement.py and geometry_and_reliability.py share: levels of strength, a table of rank correlations,
a figure, and how all of it is written."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from measure import write_report

from gch_bench import files
from gch_bench.errors import UserError
from gch_bench.report.clustered import DRAWS, RESAMPLES, Rows, rows_of
from gch_bench.report.figure_style import DOUBLE, look_number, save, styled
from gch_bench.report.text_table import markdown_rows


def level_of(networks: pd.DataFrame, levels: Sequence[float]) -> pd.Series:
    """Which of the levels is nearest, in the logarithm, to the gate variance of each network; without
    levels, the gate variance rounded to one digit.

    Args:
        networks: columns mechanism and gate_variance.

    Raises:
        UserError: a mechanism has no gate variance.
    """
    variance = networks["gate_variance"]
    if (missing := variance.isna()).any():
        lacking = ", ".join(dict.fromkeys(networks.loc[missing, "mechanism"]))
        raise UserError(
            f"mechanisms must have a gate variance to be compared at equal strength, {lacking} has none: leave it out"
        )
    if not levels:
        return variance.map("{:.0e}".format).astype(float)
    distance = np.abs(np.log(np.divide.outer(variance.to_numpy(), np.array(levels))))
    return pd.Series(np.array(levels)[distance.argmin(axis=1)], index=networks.index)


def rows_at(networks: pd.DataFrame, average: bool) -> Rows:
    """The rows of networks with columns noise, seed, stage and level, of which the last two make a key.

    Raises:
        UserError: two networks of a mechanism and seed have the same level at the same stage.
    """
    try:
        key = networks["stage"] + " " + networks["level"].map("{:g}".format)
        return rows_of(networks["noise"], networks["seed"], key, average)
    except ValueError as error:
        raise UserError(f"--levels must tell the strengths of each mechanism apart: {error}") from error


def pair_lines(
    found: pd.DataFrame, firsts: Mapping[str, str], seconds: Mapping[str, str], tests: int, control: str | None = None
) -> list[str]:
    """The table of `clustered.correlations` in Markdown, with what its columns are; q is over `tests` tests."""

    def cells(row: Mapping[str, float], name: str) -> str:
        if not math.isfinite(row[name]):
            return ""
        low, high = row[f"{name}_low"], row[f"{name}_high"]
        return f"{row[name]:+.2f}" + (f" [{low:+.2f}, {high:+.2f}]" if math.isfinite(low) else "")

    ways = {"rho": "rho", "within": "within strength and stage"} | ({"given": f"and given {control}"} if control else {})
    table = [
        [firsts[row["first"]], seconds[row["second"]], *(cells(row, name) for name in ways),
         *(f"{row[name]:.2g}" if math.isfinite(row[name]) else "" for name in ("p", "q"))]
        for row in found.to_dict("records")
    ]  # fmt: skip
    given = f" Given {control}: of what is left of these ranks after a regression on those of {control}." if control else ""
    return [
        *markdown_rows(["", "", *ways.values(), "p", "q"], table, 2),
        "",
        f"Spearman's correlations over {found['n'].max()} points of {found['clusters'].max()} mechanisms, with intervals of 95%"
        f" that resample mechanisms and seeds ({RESAMPLES} times). Within: of ranks among the points of one strength and stage."
        f"{given} p: of the last column before it, by {DRAWS} orders of whole mechanisms that have the same strengths, stages"
        f" and seeds; q: p after Benjamini and Hochberg over {tests} tests.",
    ]


@styled
def figure(
    table: pd.DataFrame, found: pd.DataFrame, firsts: Mapping[str, str], seconds: Mapping[str, str], word: str = ""
) -> Figure:
    """Panels of each second over each first quantity, titled rho; that of the last column before p; q. A marker per point, its
    size by the level of strength, open where its stage is not the one of most points.

    `word` stands before the names of the second ones where they are differences, from 0.
    """
    made = Figure(figsize=(DOUBLE, 1.75 * len(seconds) + 0.9), layout="constrained")
    axes = made.subplots(len(seconds), len(firsts), squeeze=False, sharey="row", sharex="col")
    kinds = list(dict.fromkeys(table["noise"]))
    pairs = {(row["first"], row["second"]): row for row in found.to_dict("records")}
    sizes = (4 + 26 * table["level"].rank(pct=True)).fillna(12) if table["level"].nunique() > 1 else 16 + 0 * table["nll"]
    filled = table["stage"].isin(["", table.loc[table["stage"] != "", "stage"].mode()[0]])
    last = "given" if "given" in found else "within"
    for i, (other, other_text) in enumerate(seconds.items()):
        for j, (one, one_text) in enumerate(firsts.items()):
            axis, pair = axes[i, j], pairs[one, other]
            for number, kind in enumerate(kinds):
                look = look_number(number, kind)
                for part, face in ((filled, look.color), (~filled, "none")):
                    own = part & (table["noise"] == kind)
                    axis.scatter(table[one][own], table[other][own], s=sizes[own], marker=look.marker, linewidths=0.6,
                                 facecolors=face, edgecolors=look.color, label=kind if part is filled else None)  # fmt: skip
            if word:
                axis.axhline(0, color="0.8", lw=0.6, zorder=0)
            q = f", q {pair['q']:.2g}" if math.isfinite(pair["q"]) else ""
            axis.set_title(f"{pair['rho']:+.2f}; {pair[last]:+.2f} {last}{q}")
            axis.locator_params(axis="x", nbins=4)
            axis.set_xlabel(one_text if i == len(seconds) - 1 else "")
            axis.set_ylabel(f"{word} {other_text}".strip() if j == 0 else "")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    made.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    return made


def write(
    folder: Path, heading: str, text: Sequence[str], tables: Mapping[str, pd.DataFrame], figures: Mapping[str, Figure]
) -> None:
    """Write tables.md with the text, which is also printed, NAME.csv of each table and NAME.svg of each figure."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, table in tables.items():
        files.write_csv(folder / f"{name}.csv", table)
    save(figures, folder, ("svg",))
    write_report(folder / "tables.md", heading, list(text))
    print("\n".join(text))
