"""How often the intervals and p values of report/clustered.py err: python scripts/clustered_coverage.py --output FILE.md

Made-up networks in three designs: full, each mechanism at three strengths with two seeds, five at the middle one; sparse, as in
results/late_stage_photos, each at the middle strength and most at one more, with five seeds; and stages, as in
results/cifar10_scratch, each at one stage and two of them at two more, with three seeds. Both quantities have effects of
strength (or stage), mechanism, mechanism at a strength, and the second also of the seed and of chance. The effects of mechanism
and of mechanism at a strength have the given correlation between the quantities. The true rank correlation is that of 5,000
mechanisms.

"All" and "within" are about means over the seeds of a mechanism at a strength; "within" and "networks" about ranks among the
means, or the networks, of one strength. That the other strength of the sparse design is the best one of its mechanism is not
imitated.
"""

import argparse
import itertools
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from measure import machine, positive, write_report

from gch_bench.report.clustered import association, p_value, rows_of

# For each mechanism in turn the number of seeds at its strengths (or stages).
DESIGNS = {
    "full": [{0: 2, 1: 5, 2: 2}],
    "sparse": [{1: 5}] + 2 * [{1: 5, 2: 5}] + 8 * [{0: 5, 1: 5}],
    "stages": 2 * [{0: 3, 1: 3, 2: 3}] + 9 * [{0: 3}],
}
HOW = ("all", "within", "networks")
HEAD = (
    "| design | correlation | of the mechanisms' effects | effect of a strength | true | interval covers | width | p <= .05 |",
    "|---|---|---|---|---|---|---|---|",
)


def made(design: str, mechanisms: int, shared: float, strength: float, rng: np.random.Generator) -> pd.DataFrame:
    """Networks: columns cluster, key (strength), seed, x, y."""
    kinds = DESIGNS[design]
    by_seed = 0.3 * rng.normal(size=5)
    rows = []
    for cluster in range(mechanisms):
        one = rng.normal(size=4)
        other = shared * one + np.sqrt(1 - shared**2) * rng.normal(size=4)
        for key, seeds in kinds[cluster % len(kinds)].items():
            x, y = (strength * key + each[0] + 0.5 * each[1 + key] for each in (one, other))
            rows += [(cluster, key, seed, x, y + by_seed[seed] + 0.5 * rng.normal()) for seed in range(seeds)]
    return pd.DataFrame(rows, columns=["cluster", "key", "seed", "x", "y"])


def true_correlation(table: pd.DataFrame, how: str) -> float:
    values = table if how == HOW[2] else table.groupby(["cluster", "key"], as_index=False)[["x", "y"]].mean()
    ranks = (values if how == HOW[0] else values.groupby("key"))[["x", "y"]].rank(pct=True)
    return float(ranks.corr().iloc[0, 1])


def measured(table: pd.DataFrame, how: str, true: float, seed: int) -> tuple[float, float, float]:
    """Whether the interval covers, its width, and whether p <= .05."""
    rows = rows_of(table["cluster"], table["seed"], table["key"], average=how != HOW[2])._replace(within=how != HOW[0])
    found = association(table["x"], table["y"], rows, seed=seed)
    rejected = np.nan if how == HOW[0] else float(p_value(table["x"], table["y"], rows, seed=seed) <= 0.05)
    return float(found.low <= true <= found.high), found.high - found.low, rejected


def lines(design: str, mechanisms: int, trials: int) -> list[str]:
    """Rows of the table of a design."""
    found_lines = []
    for shared, strength in itertools.product((0.0, 0.6, 0.9), (0.0, 2.0)):
        many, rng = made(design, 5_000, shared, strength, np.random.default_rng(0)), np.random.default_rng(1)
        tables = [made(design, mechanisms, shared, strength, rng) for _ in range(trials)]
        for how in HOW:
            true = true_correlation(many, how)
            found = [measured(table, how, true, trial) for trial, table in enumerate(tables)]
            covers, width, rejected = np.mean(found, axis=0)
            p = "" if np.isnan(rejected) else f"{rejected:.1%}"
            numbers = f"{shared} | {strength} | {true:.2f} | {covers:.1%} | {width:.2f} | {p}"
            found_lines.append(f"| {design} | {how} | {numbers} |")
    return found_lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--designs", nargs="+", choices=DESIGNS, default=list(DESIGNS))
    parser.add_argument("--mechanisms", type=positive, default=11)
    parser.add_argument("--trials", type=positive, default=400)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    rows = [row for design in options.designs for row in lines(design, options.mechanisms, options.trials)]
    head = f"{options.mechanisms} mechanisms, {options.trials} trials; {machine(torch.device('cpu'))}."
    found = [head, "", *HEAD, *rows]
    print("\n".join(found))
    if options.output:
        write_report(options.output, "Rank correlations over mechanisms: how often they err", found)


if __name__ == "__main__":
    main()
