"""Runs side by side: how the geometry of their weights goes with their reliability, and how uncertain that is for few runs."""

import json
import math
from collections import Counter
from collections.abc import Hashable, Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from gch_bench.errors import UserError
from gch_bench.metrics import METRICS
from gch_bench.report.figure_style import DOUBLE, look_number, styled
from gch_bench.report.geometry_correlations import EXACT, correlations, smallest_p
from gch_bench.report.runs import means, mechanism_label, setting_key, shared_cells
from gch_bench.report.study import Run
from gch_bench.results.geometry import STATIC, ChainReport
from gch_bench.results.records import CELL_CLEAN, Cell

FEW = 10  # with fewer runs than this, a rank correlation is a hint at most
LEVEL = 0.05  # of the false discovery rate that the notes speak of
PANELS = 4  # quantities in the figure
LAST_STAGE_RANK = "last_stage_rank_90"
# Column -> heading. All but LAST_STAGE_RANK are entries of a chain's summary. None is a z, which grows with a network's width.
GEOMETRY = {
    "mean_log_gain": "mean log gain",
    "angle_excess": "angle excess",
    "slack_excess": "slack excess",
    "spikes": "spikes",
    "mean_square_exponent": "square exponent",
    "mean_explained_share": "explained share",
    "certified_rank": "certified rank",
    "displacement": "drift in rho",
    LAST_STAGE_RANK: "R.90 of L4",
}
RELIABILITY = {f"shift_{key}": f"{METRICS[key].title} under shift" for key in ("ece", "nll")}
CONTROL = "clean_top1"
OTHERS = {CONTROL: "clean top-1", "clean_ece": "clean ECE"}
PAIR_COLUMNS = ["geometry", "reliability", "n", "rho", "95%", "rho | clean top-1", "95%", "p", "q"]


class Comparison(NamedTuple):
    """What is known of the runs side by side.

    The figure is None for fewer than two different runs, or if the runs share no corrupted cell. The console table has the
    correlations, or without any the runs.
    """

    table: pd.DataFrame  # a row per run
    # A row per pair of quantities, see geometry_correlations.correlations; without intervals, p and q if runs share a noise.
    correlations: pd.DataFrame
    figure: Figure | None
    console: tuple[str, list[str], list[list[str]], list[str]]  # title, columns, rows, notes
    runs: tuple[list[str], list[list[str]]]  # columns and rows of the runs' table, in words


def compare(
    runs: list[Run],
    reports: list[tuple[str, list[ChainReport]]],
    stages: dict[str, str | None],
    digests: dict[str, str],
    seed: int = 0,
) -> Comparison:
    """Compare the geometry of each run's first chain of static weights with the reliability that the run's records show.

    A quantity that a chain's summary lacks is nan.

    Args:
        runs: the runs, in the order of ``reports``.
        reports: for each run its label and the reports on its chains.
        stages: label -> the module that is stage L4, or None if the network has no stages.
        digests: label -> digest of the run's weights. Of runs of the same weights the first alone counts in correlations.
        seed: of the bootstrap resamples and permutations.

    Raises:
        UserError: if no chain fits the weights of a run.
    """
    cells = shared_cells(runs)
    rows: list[dict[str, Any]] = []
    notes: list[str] = []
    for run, (label, own) in zip(runs, reports, strict=True):
        static = next((report for report in own if report.kind == STATIC), None)
        if static is None:
            raise UserError(f"{run.folder} has no chain to compare: give chain=NAME or chain=FILE.yaml")
        rows.append(_row(run, label, static, stages[label], cells))
        if math.isnan(rows[-1][LAST_STAGE_RANK]):
            where = f"lies inside {stages[label]}" if stages[label] else "is of a stage L4, which the network does not have"
            notes.append(f"{label}: no factor of chain {static.chain} {where}; {GEOMETRY[LAST_STAGE_RANK]} is left empty")
    table = pd.DataFrame(rows)
    distinct, same = _distinct(table, digests)
    found = correlations(distinct, list(GEOMETRY), list(RELIABILITY), CONTROL, seed) if cells else pd.DataFrame()
    shared = [] if found.empty else _shared_noises([runs[row] for row in distinct.index])
    if shared:  # what treats runs as independent
        found = found.assign(**dict.fromkeys(("low", "high", "partial_low", "partial_high", "p", "q"), math.nan))
    title, shown = "Geometry and reliability", _runs_text(table)
    console = shown if found.empty or len(distinct) < 2 else (PAIR_COLUMNS, _pairs_text(found))
    protocols = {run.facts.protocol_id for run in runs}
    lines = [
        *_table_notes(table, cells, protocols),
        *same,
        *_count_notes(len(distinct), found, shared),
        *notes,
    ]
    figure = _figure(distinct, found) if cells and len(distinct) > 1 else None
    return Comparison(table, found, figure, (title, *console, lines), shown)


def _row(run: Run, label: str, report: ChainReport, stage: str | None, cells: list[Cell]) -> dict[str, Any]:
    clean = means(run, [CELL_CLEAN])
    row = {
        "run": label,
        "noise": run.facts.config["noise"]["name"],
        "seed": run.facts.config["seed"],
        "chain": report.chain,
        **{name: report.summary.get(name, math.nan) for name in GEOMETRY},
        LAST_STAGE_RANK: stage_rank(report, stage),
        "clean_top1": clean["top1"],
        "clean_ece": clean["ece"],
    }
    if cells:
        shifted = means(run, cells)
        row |= {f"shift_{key}": shifted[key] for key in ("ece", "nll")}
    return row


def stage_rank(report: ChainReport, stage: str | None) -> float:
    """Mean R_.90 of the chain's factors inside the module ``stage``; nan if there is none inside, or ``stage`` is None."""
    if stage is None:
        return math.nan
    inside = report.factors["name"].map(lambda name: name == stage or name.startswith(f"{stage}."))
    return float(report.factors.loc[inside.astype(bool), "rank_90"].mean())


def _distinct(table: pd.DataFrame, digests: dict[str, str]) -> tuple[pd.DataFrame, list[str]]:
    """The rows without those whose weights an earlier row has, and a warning for each such group of runs."""
    weights = table["run"].map(digests)
    warnings = [
        f"WARNING: {', '.join(own)} have the same weights: in correlations they are one run, of which {own.iloc[0]} counts"
        for _, own in table["run"].groupby(weights, sort=False)
        if len(own) > 1
    ]
    return table[~weights.duplicated()], warnings


def _runs_text(table: pd.DataFrame) -> tuple[list[str], list[list[str]]]:
    names = {**GEOMETRY, **OTHERS, **{name: text for name, text in RELIABILITY.items() if name in table}}
    rows = [
        [str(row["run"]), str(row["noise"]), str(row["seed"]), *(_number(row[name], ".4g") for name in names)]
        for row in table.to_dict("records")
    ]
    return ["run", "noise", "seed", *names.values()], rows


def _pairs_text(found: pd.DataFrame) -> list[list[str]]:
    def cells(row: Mapping[Hashable, Any], value: str, low: str, high: str) -> list[str]:
        bounds = f"[{row[low]:+.2f}, {row[high]:+.2f}]" if math.isfinite(row[low]) else ""
        return [_number(row[value], "+.2f"), bounds]

    return [
        [
            GEOMETRY[row["geometry"]],
            RELIABILITY[row["reliability"]],
            str(row["n"]),
            *cells(row, "estimate", "low", "high"),
            *cells(row, "partial", "partial_low", "partial_high"),
            _number(row["p"], ".2g"),
            _number(row["q"], ".2g"),
        ]
        for row in found.to_dict("records")
    ]


def _number(value: float, form: str) -> str:
    return format(value, form) if math.isfinite(value) else ""


def _table_notes(table: pd.DataFrame, cells: list[Cell], protocols: set[str]) -> list[str]:
    shift = f"shift: mean over {len(cells)} corrupted cells" if cells else "no corrupted cell that all runs have"
    notes = [f"static weights, chain {table['chain'].iloc[0]}; {shift}; ECE and top-1 as fractions"]
    if table["chain"].nunique() > 1:
        notes.append(f"WARNING: the chains differ ({', '.join(sorted(set(table['chain'])))}) and are not comparable")
    if len(protocols) > 1:
        notes.append(f"WARNING: the runs follow DIFFERENT PROTOCOLS and are not comparable: {', '.join(sorted(protocols))}")
    return notes


def _count_notes(count: int, found: pd.DataFrame, shared: list[str]) -> list[str]:
    """What so many different runs allow to conclude. `shared`: the notes if some share a noise."""
    if count == 1:
        return ["one run: nothing to correlate, give several"]
    if found.empty:
        return []
    orders = "all orders" if count <= EXACT else "random orders"
    notes = shared or [
        "rho: Spearman, 95% percentile interval over runs; rho | clean top-1: the same given the clean accuracy, 95% interval"
        f" by Fisher's z; p: of the latter, by permuted residuals (Freedman-Lane, {orders}); q: p after Benjamini-Hochberg over"
        " all pairs"
    ]
    if count < FEW:
        notes.append(f"WARNING: n = {count} is small: correlations are hints at most")
    if shared:
        return notes
    tests, least = int(np.isfinite(found["p"]).sum()), smallest_p(count)
    if not tests:
        return [*notes, f"WARNING: n = {count} allows no correlation given the clean accuracy: there are no p and no q"]
    needed = math.ceil(tests * least / LEVEL - 1e-9)
    if needed > tests:
        notes.append(f"WARNING: with n = {count} the smallest p is {least:.2g}: no q can reach {LEVEL:g}")
    elif needed > 1:
        notes.append(
            f"WARNING: with n = {count} the smallest p is {least:.2g}: a q of {LEVEL:g} needs at least {needed} of the {tests}"
            " pairs at that p"
        )
    return notes


def _shared_noises(runs: list[Run]) -> list[str]:
    """Notes if some runs differ in the seed alone."""
    counts = Counter(
        (mechanism_label(run.facts.config["noise"]), json.dumps(setting_key(run.facts), sort_keys=True)) for run in runs
    )
    several = [f"{noise}: {count}" for (noise, _), count in counts.items() if count > 1]
    if not several:
        return []
    return [
        "rho: Spearman; rho | clean top-1: the same given the clean accuracy",
        f"runs of the same noise ({', '.join(several)}) are not independent: intervals, p and q, which would treat them as if"
        " they were, are left out; scripts/geometry_and_reliability.py has those that respect noises and seeds",
    ]


def best_quantities(found: pd.DataFrame) -> list[str]:
    """At most PANELS geometric quantities, those with the smallest p of a pair, or without p with the largest correlation."""
    ranked = found.assign(size=-found["estimate"].abs()).groupby("geometry", sort=False)[["p", "size"]].min()
    ranked = ranked[ranked["size"].notna()].sort_values(["p", "size"], kind="stable", na_position="last")
    return [name for name in GEOMETRY if name in ranked.index[:PANELS]]


@styled
def _figure(table: pd.DataFrame, found: pd.DataFrame) -> Figure | None:
    """Reliability over the quantities that go with it most clearly; the titles have the correlations given clean accuracy."""
    chosen = best_quantities(found)
    if not chosen:
        return None
    figure = Figure(figsize=(max(DOUBLE * len(chosen) / PANELS, DOUBLE / 2), 3.9), layout="constrained")
    axes = figure.subplots(len(RELIABILITY), len(chosen), squeeze=False, sharey="row", sharex="col")
    kinds = list(dict.fromkeys(table["noise"]))
    pairs = {(row["geometry"], row["reliability"]): row for row in found.to_dict("records")}
    for i, (other, other_text) in enumerate(RELIABILITY.items()):
        for j, one in enumerate(chosen):
            axis = axes[i, j]
            for number, kind in enumerate(kinds):
                own, look = table[table["noise"] == kind], look_number(number, kind)
                axis.plot(own[one], own[other], look.marker, color=look.color, ms=4, label=kind)
            pair = pairs[one, other]
            first = f"{pair['partial']:+.2f} given top-1" if math.isfinite(pair["partial"]) else f"{pair['estimate']:+.2f}"
            axis.set_title(first + (f", q {pair['q']:.2g}" if math.isfinite(pair["q"]) else ""))
            axis.locator_params(axis="x", nbins=4)
            axis.set_xlabel(GEOMETRY[one] if i == len(RELIABILITY) - 1 else "")
            axis.set_ylabel(other_text if j == 0 else "")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=min(len(kinds), 6), frameon=False)
    few = ", FEW: hints at most" if len(table) < FEW else ""
    left = len(found["geometry"].unique()) - len(chosen)
    first = "smallest p" if found["p"].notna().any() else "largest correlation"
    rest = f", the {len(chosen)} of {left + len(chosen)} quantities with the {first}" if left else ""
    figure.suptitle(f"Geometry and reliability, n = {len(table)} runs{few}{rest}; rank correlations")
    return figure
