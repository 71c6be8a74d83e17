"""Each mechanism's best strength on the 4 extra corruptions: python scripts/choose_strength.py runs/matched_strength/full/*

Of each mechanism's strengths it chooses the one with the lowest NLL, averaged over the 4 extra corruptions, their severities
and the seeds. It reads no other rows of the runs' summary.csv, so that the choice cannot depend on the 15 corruptions that are
reported. The table goes to stderr. The list of the chosen runs goes to stdout, for evaluate.py:
  python evaluate.py experiment=matched_strength corruptions=c15 checkpoints=LIST output=FOLDER
"""

import argparse
import json
import sys
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from gch_bench.apps.cli import reported
from gch_bench.errors import UserError
from gch_bench.metrics import EXTRA
from gch_bench.results.runfacts import read_run_facts


class Tuned(NamedTuple):
    """A run, its noise, and its NLL on the extra corruptions."""

    folder: Path
    mechanism: str
    noise: str  # the section `noise` of its configuration, as JSON
    seed: int
    cells: frozenset[tuple[str, int]]  # the extra corruptions and severities that it was evaluated at
    others: str  # all else that must not differ between runs, as JSON
    nll: float


def read(folder: Path) -> Tuned:
    """Read a finished run. Raises UserError where it is none or has no row of each extra corruption."""
    facts = read_run_facts(folder)
    if not facts.finished:
        raise UserError(f"{folder} must be a finished run: run its command again: {facts.command}")
    summary = pd.read_csv(folder / "summary.csv")
    rows = summary[summary["corruption"].isin(EXTRA)]
    missing = sorted(set(EXTRA) - set(rows["corruption"]))
    if missing:
        raise UserError(f"{folder} must be evaluated with corruptions=extra4 (or c19), it lacks {', '.join(missing)}")
    identity = {name: value for name, value in facts.identity.items() if name not in ("noise", "seed")}
    return Tuned(
        folder=folder,
        mechanism=facts.config["noise"]["name"],
        noise=json.dumps(facts.config["noise"], sort_keys=True),
        seed=facts.config["seed"],
        cells=frozenset(zip(rows["corruption"], rows["severity"], strict=True)),
        others=json.dumps([identity, facts.protocol_id], sort_keys=True),
        nll=float(rows.groupby("corruption")["nll"].mean().mean()),
    )


def choose(runs: list[Tuned]) -> pd.DataFrame:
    """One row for each strength: mechanism, noise, seeds, nll (mean over seeds), runs, chosen (once for each mechanism).

    Raises:
        UserError: runs that cannot be compared: of other settings, cells or seeds, or two of the same noise and seed.
    """
    for each in runs:
        if (each.others, each.cells) != (runs[0].others, runs[0].cells):
            raise UserError(f"runs must differ in noise and seed alone: {each.folder} and {runs[0].folder} differ in more")
    rows = []
    for (mechanism, noise), group in pd.DataFrame(runs).groupby(["mechanism", "noise"], sort=False):
        seeds = sorted(group["seed"])
        folders = group.sort_values("seed")["folder"].tolist()
        if len(set(seeds)) < len(seeds):
            raise UserError(f"each seed of a strength must be there once, got seeds {seeds} in {', '.join(map(str, folders))}")
        rows.append({"mechanism": mechanism, "noise": noise, "seeds": seeds, "nll": group["nll"].mean(), "runs": folders})
    table = pd.DataFrame(rows)
    for _, row in table.iterrows():
        if row["seeds"] != table["seeds"][0]:
            raise UserError(f"all strengths must have the seeds {table['seeds'][0]}, got {row['seeds']} for {row['runs'][0]}")
    table["chosen"] = table.index.isin(table.groupby("mechanism")["nll"].idxmin())
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="finished runs that were evaluated on the extra corruptions")
    with reported():
        table = choose([read(folder) for folder in parser.parse_args().runs])
    for _, row in table.sort_values(["mechanism", "nll"], kind="stable").iterrows():
        options = {name: value for name, value in json.loads(row["noise"]).items() if isinstance(value, float)}
        strength = " ".join(f"{name}={value:g}" for name, value in options.items())
        mark = "  <- chosen" if row["chosen"] else ""
        print(f"{row['mechanism']:16} {strength:24} NLL {row['nll']:.4f}, seeds {row['seeds']}{mark}", file=sys.stderr)
    print(f"[{','.join(str(folder) for folders in table.loc[table['chosen'], 'runs'] for folder in folders)}]")


if __name__ == "__main__":
    main()
