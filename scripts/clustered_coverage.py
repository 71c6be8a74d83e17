"""How often the intervals and p values of report/clustered.py err: python scripts/clustered_coverage.py --output FILE.md

Made-up networks as in results/late_stage_photos: mechanisms at three strengths with two seeds, five at the middle strength.
Both quantities have effects of strength, mechanism, mechanism at a strength, and the second also of the seed and of chance.
The effects of mechanism and of mechanism at a strength have the given correlation between the quantities. The true rank
correlation is that of 5,000 mechanisms.
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from measure import machine, positive, write_report

from gch_bench.report.clustered import Association, association, p_value, rows_of

SEEDS = {0: range(2), 1: range(5), 2: range(2)}  # strength -> seeds
HOW = ("all", "given strength", "within strength")
HEAD = (
    "| correlation | of the mechanisms' effects | effect of a strength | true | interval covers | width | p <= .05 |",
    "|---|---|---|---|---|---|---|",
)


def made(mechanisms: int, shared: float, strength: float, rng: np.random.Generator) -> pd.DataFrame:
    """Networks: columns cluster, key (strength), seed, x, y."""
    by_seed = 0.3 * rng.normal(size=5)
    rows = []
    for cluster in range(mechanisms):
        one = rng.normal(size=4)
        other = shared * one + np.sqrt(1 - shared**2) * rng.normal(size=4)
        for key, seeds in SEEDS.items():
            x, y = (strength * key + each[0] + 0.5 * each[1 + key] for each in (one, other))
            rows += [(cluster, key, seed, x, y + by_seed[seed] + 0.5 * rng.normal()) for seed in seeds]
    return pd.DataFrame(rows, columns=["cluster", "key", "seed", "x", "y"])


def true_correlation(table: pd.DataFrame, how: str) -> float:
    means = table.groupby(["cluster", "key"], as_index=False)[["x", "y"]].mean()
    ranks = (means.groupby("key") if how == HOW[2] else means)[["x", "y"]].rank(pct=True)
    if how != HOW[0]:
        ranks = ranks - np.stack([np.poly1d(np.polyfit(means["key"], ranks[each], 1))(means["key"]) for each in ranks], axis=1)
    return float(ranks.corr().iloc[0, 1])


def measured(table: pd.DataFrame, how: str, seed: int) -> tuple[Association, float]:
    """The correlation of the means over seeds, and its p."""
    rows = rows_of(table["cluster"], table["seed"], table["key"], average=True)._replace(within=how == HOW[2])
    given = table["x"], table["y"], rows, table["key"] if how == HOW[1] else None, seed
    return association(*given), p_value(*given)


def lines(mechanisms: int, trials: int) -> list[str]:
    made_lines = [f"{mechanisms} mechanisms, {trials} trials; {machine(torch.device('cpu'))}.", "", *HEAD]
    for shared in (0.0, 0.6):
        for strength in (0.0, 1.0):
            many, rng = made(5_000, shared, strength, np.random.default_rng(0)), np.random.default_rng(1)
            tables = [made(mechanisms, shared, strength, rng) for _ in range(trials)]
            for how in HOW:
                true = true_correlation(many, how)
                found = [measured(table, how, trial) for trial, table in enumerate(tables)]
                covers = np.mean([each.low <= true <= each.high for each, _ in found])
                width, rejected = np.mean([(each.high - each.low, p <= 0.05) for each, p in found], axis=0)
                made_lines.append(
                    f"| {how} | {shared} | {strength} | {true:.2f} | {covers:.1%} | {width:.2f} | {rejected:.1%} |"
                )
    return made_lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mechanisms", type=positive, default=11)
    parser.add_argument("--trials", type=positive, default=400)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    found = lines(options.mechanisms, options.trials)
    print("\n".join(found))
    if options.output:
        write_report(options.output, "Rank correlations over mechanisms: how often they err", found)


if __name__ == "__main__":
    main()
