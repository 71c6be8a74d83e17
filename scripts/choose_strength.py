"""Each mechanism's best strength on the 4 extra corruptions: python scripts/choose_strength.py runs/matched_strength/full/*

Of each mechanism's strengths at the same stages it chooses the one with the lowest NLL, averaged over the 4 extra corruptions,
their severities and the seeds. It reads no other rows of the runs' summary.csv, so that the choice cannot depend on the 15
corruptions that are reported. With --variance V it chooses the strength whose gate variance is nearest to V instead, in the
logarithm; --best --variance V chooses both. A mechanism without strengths, such as none, is always chosen. The table goes to
stderr. To stdout goes one of:
  a list of the chosen ones among the runs, for evaluate.py checkpoints=LIST or report.py runs=LIST;
  with --among FOLDER ..., a list of the runs in these folders that have the chosen noises, of any seed;
  with --noise, the chosen noises, for train.py -m noise=NOISES
"""

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from gch_bench.apps.cli import reported
from gch_bench.checks import check
from gch_bench.config.overrides import written
from gch_bench.errors import UserError
from gch_bench.metrics import EXTRA
from gch_bench.report.runs import find_folders, setting_key
from gch_bench.results.runfacts import RunFacts, read_run_facts

MECHANISM = ["mechanism", "stages"]  # what strengths of one mechanism share


class Tuned(NamedTuple):
    """A run, its noise, and its NLL on the extra corruptions."""

    folder: Path
    mechanism: str  # its name
    stages: str  # L3+L4, where it acts; strengths are those of one mechanism at the same stages
    noise: str  # as the command line writes it
    variance: float  # of the gate, mean over the noisy stages; NaN where there is none
    seed: int
    cells: frozenset[tuple[str, int]]  # the extra corruptions and severities that it was evaluated at
    others: str  # all else that must not differ between runs, as JSON
    nll: float


def finished(folder: Path) -> RunFacts:
    """The facts of a finished run. Raises UserError where the folder holds none."""
    facts = read_run_facts(folder)
    if not facts.finished:
        raise UserError(f"{folder} must be a finished run: run its command again: {facts.command}")
    return facts


def as_override(noise: Mapping[str, Any]) -> str:
    """The noise of a run's identity as the command line writes it: {name: dropout, law: bernoulli, p: 0.1}."""
    return written({name: value for name, value in noise.items() if name != "draws"})


def read(folder: Path) -> Tuned:
    """Read a finished run. Raises UserError where it is none or has no row of each extra corruption."""
    facts = finished(folder)
    summary = pd.read_csv(folder / "summary.csv")
    rows = summary[summary["corruption"].isin(EXTRA)]
    missing = sorted(set(EXTRA) - set(rows["corruption"]))
    if missing:
        raise UserError(f"{folder} must be evaluated with corruptions=extra4 (or c19), it lacks {', '.join(missing)}")
    return Tuned(
        folder=folder,
        mechanism=facts.config["noise"]["name"],
        stages="+".join(facts.config["noise"]["stages"]),
        noise=as_override(facts.identity["noise"]),
        variance=facts.gate_variance,
        seed=facts.config["seed"],
        cells=frozenset(zip(rows["corruption"], rows["severity"], strict=True)),
        others=json.dumps(setting_key(facts), sort_keys=True),
        nll=float(rows.groupby("corruption")["nll"].mean().mean()),
    )


def strengths(runs: list[Tuned]) -> pd.DataFrame:
    """One row for each strength: mechanism, stages, noise, variance and nll (means over seeds), seeds, runs.

    Raises:
        UserError: runs that cannot be compared: of other settings, cells or seeds, or two of the same noise and seed.
    """
    for each in runs:
        if (each.others, each.cells) != (runs[0].others, runs[0].cells):
            raise UserError(f"runs must differ in noise and seed alone: {each.folder} and {runs[0].folder} differ in more")
    rows = []
    for names, group in pd.DataFrame(runs).groupby([*MECHANISM, "noise"], sort=False):
        seeds = sorted(group["seed"])
        folders = group.sort_values("seed")["folder"].tolist()
        if len(set(seeds)) < len(seeds):
            raise UserError(f"each seed of a strength must be there once, got seeds {seeds} in {', '.join(map(str, folders))}")
        means = {name: group[name].mean() for name in ("variance", "nll")}
        rows.append({**dict(zip((*MECHANISM, "noise"), names, strict=True)), **means, "seeds": seeds, "runs": folders})
    table = pd.DataFrame(rows)
    for _, row in table.iterrows():
        if row["seeds"] != table["seeds"][0]:
            raise UserError(f"all strengths must have the seeds {table['seeds'][0]}, got {row['seeds']} for {row['runs'][0]}")
    return table


def best(table: pd.DataFrame) -> pd.Series:
    """Whether each row of `strengths` has its mechanism's lowest NLL. One row of each mechanism has."""
    return pd.Series(table.index.isin(table.groupby(MECHANISM)["nll"].idxmin()), table.index)


def matched(table: pd.DataFrame, variance: float) -> pd.Series:
    """Whether each row of `strengths` has the gate variance of its mechanism that is nearest to `variance` in the logarithm.

    Raises:
        UserError: a mechanism has several strengths of which one has no gate variance.
    """
    check(variance > 0, "--variance", "> 0", variance)
    alone = table.groupby(MECHANISM)["noise"].transform("size") == 1
    distance = np.log(table["variance"] / variance).abs().mask(alone, 0.0)
    if distance.isna().any():
        unknown = table.loc[distance.isna().idxmax(), "noise"]
        raise UserError(f"--variance needs mechanisms that have a gate variance, {unknown} has none: choose with --best alone")
    return pd.Series(table.index.isin(distance.groupby([table[name] for name in MECHANISM]).idxmin()), table.index)


def among(folders: list[Path], noises: list[str]) -> list[Path]:
    """The folders whose runs have one of the noises. Raises UserError where a noise has no run, or a run is not finished."""
    found = {folder: as_override(read_run_facts(folder).identity["noise"]) for folder in folders}
    lacking = [noise for noise in noises if noise not in found.values()]
    if lacking:
        raise UserError(f"--among must name a run of each chosen noise, {lacking[0]} has none: train or evaluate it first")
    chosen = [folder for folder, noise in found.items() if noise in noises]
    for folder in chosen:
        finished(folder)
    return chosen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "runs", nargs="+", help="finished runs that were evaluated on the extra corruptions, or patterns of them"
    )
    parser.add_argument("--best", action="store_true", help="choose the lowest NLL; the default without --variance")
    parser.add_argument("--variance", type=float, metavar="V", help="choose the gate variance nearest to V")
    output = parser.add_mutually_exclusive_group()
    output.add_argument("--noise", action="store_true", help="print the chosen noises for train.py -m noise=NOISES")
    output.add_argument("--among", nargs="+", metavar="FOLDER", help="list these folders' runs of the chosen noises")
    options = parser.parse_args()
    with reported():
        table = strengths([read(folder) for folder in find_folders(options.runs)])
        marks = {"best": best(table)} if options.best or options.variance is None else {}
        if options.variance is not None:
            marks[f"variance {options.variance:g}"] = matched(table, options.variance)
        chosen = table[np.logical_or.reduce(list(marks.values()))]
        noises = chosen["noise"].tolist()
        folders = [folder for runs in chosen["runs"] for folder in runs]
        if options.among:
            folders = among(find_folders(options.among), noises)
    for index, row in table.sort_values([*MECHANISM, "nll"], kind="stable").iterrows():
        why = ", ".join(name for name, mark in marks.items() if mark[index])
        numbers = f"gate variance {row['variance']:.3g}, NLL {row['nll']:.4f}, seeds {row['seeds']}"
        print(f"{row['noise']}: {numbers}{f'  <- chosen: {why}' if why else ''}", file=sys.stderr)
    print(",".join(noises) if options.noise else f"[{','.join(map(str, folders))}]")


if __name__ == "__main__":
    main()
