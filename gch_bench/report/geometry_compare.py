"""Runs side by side: how the geometry of their weights goes with their reliability, and how uncertain that is for few runs."""

from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from gch_bench.errors import UserError
from gch_bench.metrics import METRICS
from gch_bench.report.runs import means, shared_cells
from gch_bench.report.statistics import rank_correlation
from gch_bench.report.study import Run
from gch_bench.results.geometry import STATIC, ChainReport
from gch_bench.results.records import CELL_CLEAN

FEW = 10  # with fewer runs than this, a rank correlation is a hint at most
GEOMETRY = {
    "drift": "exponent drift (equal d)",
    "displacement": "drift in rho",
    "last_stage_rank_90": "R.90 of L4",
    "certified_share": "certified share",
    "mean_residual": "mean |chart residual|",
}
RELIABILITY = {f"shift_{key}": f"{METRICS[key].title} under shift" for key in ("ece", "nll")}


class Comparison(NamedTuple):
    """A table with a row per run, the rank correlations, their figure, and the console table (title, columns, rows, notes).

    The figure is None for fewer than two runs, or if the runs share no corrupted cell.
    """

    table: pd.DataFrame
    correlations: pd.DataFrame
    figure: Figure | None
    console: tuple[str, list[str], list[list[str]], list[str]]


def compare(
    runs: list[Run],
    reports: list[tuple[str, list[ChainReport]]],
    stages: dict[str, str | None],
    digests: dict[str, str],
    seed: int = 0,
) -> Comparison:
    """Compare the geometry of each run's first chain of static weights with the reliability that the run's records show.

    Args:
        runs: the runs, in the order of ``reports``.
        reports: for each run its label and the reports on its chains.
        stages: label -> the module that is stage L4, or None if the network has no stages; then the last factor stands for it.
        digests: label -> digest of the run's weights, by which runs of the same weights are recognised.
        seed: of the bootstrap resamples.

    Raises:
        UserError: if no chain fits the weights of a run.
    """
    cells = shared_cells(runs)
    rows = []
    for run, (label, own) in zip(runs, reports, strict=True):
        static = [report for report in own if report.kind == STATIC]
        if not static:
            raise UserError(f"{run.folder} has no chain to compare: give chain=NAME or chain=FILE.yaml")
        summary = static[0].summary
        row = {
            "run": label,
            "noise": run.facts.config["noise"]["name"],
            "seed": run.facts.config["seed"],
            "chain": static[0].chain,
            "drift": summary.get("drift", float("nan")),
            "displacement": summary.get("displacement", float("nan")),
            "last_stage_rank_90": stage_rank(static[0], stages[label]),
            "certified_share": summary.get("certified_share", float("nan")),
            "mean_residual": summary["mean_residual"],
            "clean_ece": means(run, [CELL_CLEAN])["ece"],
        }
        if cells:
            shifted = means(run, cells)
            row |= {"shift_ece": shifted["ece"], "shift_nll": shifted["nll"]}
        rows.append(row)
    table = pd.DataFrame(rows)
    correlations = _correlations(table, seed) if cells else pd.DataFrame()
    notes = _notes(table, correlations, cells, {run.facts.protocol_id for run in runs})
    for digest in {digest for digest in digests.values() if list(digests.values()).count(digest) > 1}:
        same = ", ".join(label for label, own in digests.items() if own == digest)
        notes.insert(1, f"WARNING: {same} have the same weights: as rows of a correlation they are one run")
    figure = _figure(table, correlations) if cells and len(table) > 1 else None
    return Comparison(table, correlations, figure, ("Geometry and reliability", *_text(table), notes))


def stage_rank(report: ChainReport, stage: str | None) -> float:
    """Mean R_.90 of the chain's factors inside the module ``stage``; that of the last factor if there is none inside."""
    names = report.factors["name"]
    inside = names.map(lambda name: stage is not None and (name == stage or name.startswith(f"{stage}.")))
    chosen = report.factors[inside] if inside.any() else report.factors.tail(1)
    return float(chosen["rank_90"].mean())


def _correlations(table: pd.DataFrame, seed: int) -> pd.DataFrame:
    rows = []
    for one in GEOMETRY:
        for other in RELIABILITY:
            found = rank_correlation(table[one].to_numpy(float), table[other].to_numpy(float), seed=seed)
            rows.append({"geometry": one, "reliability": other, **found._asdict()})
    return pd.DataFrame(rows)


def _text(table: pd.DataFrame) -> tuple[list[str], list[list[str]]]:
    known = {"clean_ece": "clean ECE", **RELIABILITY}
    names = {**GEOMETRY, **{name: text for name, text in known.items() if name in table}}
    rows = [
        [str(row["run"]), str(row["noise"]), str(row["seed"]), *(f"{row[name]:.4g}" for name in names)]
        for row in table.to_dict("records")
    ]
    return ["run", "noise", "seed", *names.values()], rows


def _notes(table: pd.DataFrame, correlations: pd.DataFrame, cells: list, protocols: set[str]) -> list[str]:
    shift = f"shift: mean over {len(cells)} corrupted cells" if cells else "no corrupted cell that all runs have"
    notes = [f"static weights, chain {table['chain'].iloc[0]}; {shift}; ECE as a fraction"]
    if table["chain"].nunique() > 1:
        notes.append(f"WARNING: the chains differ ({', '.join(sorted(set(table['chain'])))}) and are not comparable")
    if len(protocols) > 1:
        notes.append(f"WARNING: the runs follow DIFFERENT PROTOCOLS and are not comparable: {', '.join(sorted(protocols))}")
    if len(table) == 1:
        notes.append("one run: nothing to correlate, give several")
    elif len(table) < FEW:
        notes.append(
            f"WARNING: n = {len(table)} is small: correlations are hints at most, and intervals of so few rows are too narrow"
        )
    for row in correlations.to_dict("records"):
        if np.isfinite(row["estimate"]):
            notes.append(
                f"rank correlation of {GEOMETRY[row['geometry']]} and {RELIABILITY[row['reliability']]}: {row['estimate']:+.2f}"
                f" [{row['low']:+.2f}, {row['high']:+.2f}], n = {len(table)} (Spearman, 95% percentile interval over runs)"
            )
    return notes


def _figure(table: pd.DataFrame, correlations: pd.DataFrame) -> Figure:
    figure = Figure(figsize=(3.1 * len(GEOMETRY), 2.8 * len(RELIABILITY)), layout="constrained")
    axes = figure.subplots(len(RELIABILITY), len(GEOMETRY), squeeze=False)
    kinds = list(dict.fromkeys(table["noise"]))
    for i, (other, other_text) in enumerate(RELIABILITY.items()):
        for j, (one, one_text) in enumerate(GEOMETRY.items()):
            axis = axes[i, j]
            for number, kind in enumerate(kinds):
                own = table[table["noise"] == kind]
                axis.scatter(own[one], own[other], s=28, color=f"C{number}", label=kind)
            found = correlations[(correlations["geometry"] == one) & (correlations["reliability"] == other)].iloc[0]
            if np.isfinite(found["estimate"]):
                axis.set_title(f"rho {found['estimate']:+.2f} [{found['low']:+.2f}, {found['high']:+.2f}]", fontsize=8)
            axis.set_xlabel(one_text if i == len(RELIABILITY) - 1 else "")
            axis.set_ylabel(other_text if j == 0 else "")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=len(kinds), frameon=False)
    few = ", FEW: hints at most" if len(table) < FEW else ""
    figure.suptitle(f"Geometry and reliability, n = {len(table)} runs{few}")
    return figure
