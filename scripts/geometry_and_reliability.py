"""Does the geometry of a network's weights go with its reliability?

  python scripts/geometry_and_reliability.py RUN ... --first blocks.4.2 --levels 0.1 0.3 0.9 --output OUT

RUN: evaluated runs that differ in noise and seed alone, with the checkpoints that they were made from. Of each network the
headline quantities of diagnose.py are measured on the static chain from the factor --first on (what lies in a frozen trunk is
the same in all networks), once: OUT/geometry.csv keeps them, so that a stopped command continues, until --first or the
code that measures them changes. Then come rank correlations with NLL and calibration under shift, given clean accuracy
(correlations.csv, tables.md), and figures: of single networks, and of means over the seeds of a mechanism at a strength and
stage, in which what seeds alone do is averaged out. Networks without noise are in the table, not in the correlations, because
no other mechanism has their strength. --levels: as in theory_beside_measurement.py.
"""

import argparse
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from correlation_report import figure, level_of, pair_lines, rows_at, write
from matplotlib.figure import Figure
from measure import machine

from gch_bench import files, geometry, spectral
from gch_bench.apps.cli import reported
from gch_bench.apps.diagnosis.subjects import run_subject
from gch_bench.errors import UserError
from gch_bench.geometry import chains
from gch_bench.geometry.analysis import analyse
from gch_bench.noise.stages import feature_stages
from gch_bench.report.clustered import correlations
from gch_bench.report.geometry_compare import GEOMETRY, LAST_STAGE_RANK, stage_rank
from gch_bench.report.geometry_correlations import q_values
from gch_bench.report.networks import CONTROL, left_out, networks_table, read_setting, title
from gch_bench.results.geometry import ChainReport

MEASURED = "geometry.csv"
PANELS = 4  # quantities in the figure
EFFECTS = ("nll", "ece", "smece", "ece_after_T")  # columns of SHIFT that are tested
COMPARED = {"networks": False, "means over seeds": True}  # -> the `average` of rows_at; q is over the tests of both


def chain_report(folder: Path, first: str | None) -> tuple[ChainReport, str | None]:
    """The report on the static chain of a run's network from the factor `first` on, and the module that is stage L4.

    Raises:
        UserError: no chain fits the weights, or it has no such factor.
    """
    subject = run_subject(folder, folder.name)
    fitting = chains.find_chains(subject.weights)
    if not fitting or subject.network is None:
        raise UserError(f"{folder} has weights that no built-in chain fits")
    chain = chains.for_network(fitting[0], subject.network)
    factors = list(chains.chain_factors(subject.weights, chain, torch.device("cpu"), subject.head_dim))
    names = [factor.name for factor in factors]
    if first and first not in names:
        raise UserError(f"--first must be a factor of chain {chain.name}, got {first}: choose one of {', '.join(names)}")
    kept = factors[names.index(first) :] if first else factors
    return analyse(kept, chain.name, chain.description), feature_stages(subject.network).get("L4")


def code_digest() -> str:
    """12 digits of the SHA-256 of the code and the chains that measure the geometry."""
    found = (path for module in (geometry, spectral) for path in Path(module.__path__[0]).rglob("*"))
    sources = sorted(path for path in found if path.suffix in (".py", ".yaml"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:12]


def geometry_of(networks: pd.DataFrame, first: str | None, cache: Path) -> pd.DataFrame:
    """Columns weights and GEOMETRY, a row per network; what `cache` has from the same first factor and code is not measured
    again."""
    how = {"start": first or "", "code": code_digest()}
    rows: list[dict[Any, Any]] = []
    if cache.is_file():  # a digest may look like a number
        as_text = dict.fromkeys(["weights", *how], str)
        known = pd.read_csv(cache, dtype=as_text, keep_default_na=False, na_values=["nan"]).to_dict("records")
        rows = [row for row in known if how.items() <= row.items()]
    for number, (weights, folder) in enumerate(zip(networks["weights"], networks["folder"], strict=True), 1):
        if any(row["weights"] == weights for row in rows):
            continue
        report, stage = chain_report(Path(folder), first)
        numbers = {name: report.summary.get(name, np.nan) for name in GEOMETRY} | {LAST_STAGE_RANK: stage_rank(report, stage)}
        rows.append({"weights": weights, **how, "chain": report.chain, **numbers})
        files.write_atomic(cache, lambda file: file.write(pd.DataFrame(rows).to_csv(index=False, na_rep="nan").encode()))
        print(f"measured {number} of {len(networks)}: {folder}", flush=True)
    return pd.DataFrame(rows).drop(columns=list(how))


def both_ways(noisy: pd.DataFrame, columns: Sequence[Sequence[str]]) -> pd.DataFrame:
    """`clustered.correlations` of the networks and of the means, by the column `compared`."""
    rows = {name: rows_at(noisy, average) for name, average in COMPARED.items()}
    ways = [correlations(noisy, columns, each, CONTROL).assign(compared=name) for name, each in rows.items()]
    found = pd.concat(ways, ignore_index=True)
    return found.assign(q=q_values(found["p"].to_numpy(np.float64)))


def lines(networks: pd.DataFrame, found: pd.DataFrame, effects: Sequence[str], notes: Sequence[str]) -> list[str]:
    constant = [GEOMETRY[name] for name in GEOMETRY if name not in set(found["first"])]
    without = int((networks["noise"] == "none").sum())
    tests = int(found["p"].notna().sum())
    titles = {name: title(name) for name in effects}
    return [
        f"{len(networks)} networks, of which {without} without noise are not in the correlations;"
        f" {machine(torch.device('cpu'))}.",
        *(
            line
            for name, own in found.groupby("compared", sort=False)
            for line in ("", f"## {name}", "", *pair_lines(own, GEOMETRY, titles, tests, "clean top-1"))
        ),
        *(["", f"The same in all networks, or not defined: {', '.join(constant)}."] if constant else []),
        *([""] if notes else []),
        *(f"- {note}" for note in notes),
    ]


def drawn(points: pd.DataFrame, found: pd.DataFrame, marker: str) -> Figure:
    """Panels of the quantities with the smallest p of these correlations."""
    best = found.groupby("first", sort=False)["p"].min().fillna(1).nsmallest(PANELS).index
    made = figure(points, found, {name: GEOMETRY[name] for name in best}, {name: title(name) for name in ("nll", "smece")})
    made.set_label(f"Reliability under shift over the geometric quantities with the smallest p, a marker per {marker}.")
    return made


def study(options: argparse.Namespace) -> None:
    setting, notes = read_setting(options.runs)
    networks = networks_table(setting)
    notes += left_out(networks)
    networks = networks.drop_duplicates("weights", ignore_index=True)
    noisy = networks["noise"] != "none"
    networks = networks.assign(level=level_of(networks[noisy], options.levels))
    rows_at(networks[noisy], average=False)  # refuses levels before anything is measured
    options.output.mkdir(parents=True, exist_ok=True)
    networks = networks.merge(geometry_of(networks, options.first, options.output / MEASURED), on="weights")
    noisy = networks[networks["noise"] != "none"].reset_index(drop=True)
    effects = [name for name in EFFECTS if name in networks]
    varying = [name for name in GEOMETRY if noisy[name].notna().all() and noisy[name].nunique() > 1]
    found = both_ways(noisy, (varying, effects))
    single, means = (found[found["compared"] == name] for name in COMPARED)
    points = networks.groupby(["noise", "mechanism", "stage"], sort=False, as_index=False).mean(numeric_only=True)
    figures = {
        "figure": drawn(networks, single, "network"),
        "figure_means": drawn(points, means, "mechanism at a strength and stage"),
    }
    tables = {"table": networks.drop(columns="folder"), "correlations": found}
    write(options.output, "Geometry and reliability", lines(networks, found, effects, notes), tables, figures)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", help="folders of evaluated runs, or patterns")
    parser.add_argument("--first", help="the chain's factor from which on it is measured; default: its first")
    parser.add_argument("--levels", nargs="+", type=float, default=[], help="gate variances at which mechanisms were matched")
    parser.add_argument("--output", type=Path, required=True, help="folder of the results")
    with reported():
        study(parser.parse_args())


if __name__ == "__main__":
    main()
