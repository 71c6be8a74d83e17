"""Measures how often the intervals of a report hold the truth: python scripts/interval_coverage.py [--trials 300]

Images: two networks with correlated confidences and errors on the same images, P(correct) = confidence (1 - overconfidence), in
four scenarios of overconfidence and with several numbers of images. `paired_differences` must cover between 90 and 98%. The
percentile bootstrap of the plain ECE is shown beside it: it is what a report must not print.
Seeds: differences with a spread over seeds, over images, and of both, for which the MOVER interval is compared with the
percentiles' normal counterpart, the bootstrap of seeds and then images.
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import norm

from gch_bench.calibration import bin_index
from gch_bench.files import write_atomic
from gch_bench.metrics import summarize
from gch_bench.provenance import provenance
from gch_bench.report.statistics import combine, draw_counts, metrics_with_interval, paired_differences

SCENARIOS = ((0.3, 0.0), (0.3, 0.1), (0.3, 0.2), (0.0, 0.0))
COLUMNS = ("id", "label", "prediction", "confidence", "nll", "brier")
LOW, HIGH = 0.90, 0.98


def networks(rng: np.random.Generator, num_images: int, overconfidence: tuple[float, float]) -> list[pd.DataFrame]:
    """The records of two networks on the same images; NLL and Brier score are those of two classes."""
    ease_N, chance_N, shared_N = rng.normal(size=num_images), rng.random(num_images), rng.random(num_images) < 0.7
    cells = []
    for amount in overconfidence:
        logit_N = 1.2 + 1.3 * (np.sqrt(0.7) * ease_N + np.sqrt(0.3) * rng.normal(size=num_images))
        confidence_N = 0.1 + 0.9 / (1 + np.exp(-logit_N))
        correct_N = np.where(shared_N, chance_N, rng.random(num_images)) < confidence_N * (1 - amount)
        of_label_N = np.where(correct_N, confidence_N, 1 - confidence_N)
        values = (
            np.arange(num_images),
            0,
            np.where(correct_N, 0, 1),
            confidence_N,
            -np.log(of_label_N),
            2 * (1 - of_label_N) ** 2,
        )
        cells.append(pd.DataFrame(dict(zip(COLUMNS, values, strict=True))))
    return cells


def plain_ece_interval(first: pd.DataFrame, second: pd.DataFrame, seed: int) -> tuple[float, float]:
    """The percentile interval of the difference of the plain ECE over resampled images."""
    counts_RN, resampled = draw_counts(len(first), 200, seed), []
    for cell in (first, second):
        gap_NB = np.zeros((len(cell), 15))
        gap_NB[np.arange(len(cell)), bin_index(cell["confidence"])] = cell["confidence"] - (cell["prediction"] == cell["label"])
        resampled.append(np.abs(counts_RN @ gap_NB).sum(axis=1) / len(cell))
    low, high = np.quantile(resampled[1] - resampled[0], [0.025, 0.975])
    return float(low), float(high)


def images_table(sizes: list[int], trials: int) -> pd.DataFrame:
    """The share of trials whose interval holds the truth, per scenario, number of images and metric."""
    rows = []
    for overconfidence in SCENARIOS:
        large = networks(np.random.default_rng(99), 4_000_000, overconfidence)
        many = [summarize(cell.assign(top5=0.0, entropy=0.0), 2) for cell in large]
        same = overconfidence[0] == overconfidence[1]
        truth = {key: 0.0 if same else many[1][key] - many[0][key] for key in many[0]}
        for size in sizes:
            rng = np.random.default_rng(size)
            hits = dict.fromkeys([*metrics_with_interval(COLUMNS), "plain ECE, percentiles"], 0)
            for trial in range(trials):
                first, second = networks(rng, size, overconfidence)
                for key, found in paired_differences([first], [second], 1000, seed=trial).items():
                    hits[key] += found.low <= truth[key] <= found.high
                low, high = plain_ece_interval(first, second, trial)
                hits["plain ECE, percentiles"] += low <= truth["ece"] <= high
            covered = {key: f"{100 * count / trials:.1f}" for key, count in hits.items()}
            rows.append({"overconfidence": "{:g}, {:g}".format(*overconfidence), "images": size, **covered})
            print(rows[-1], flush=True)
    return pd.DataFrame(rows)


def seeds_table(trials: int) -> pd.DataFrame:
    """Coverage and median half width of the interval over seeds and images, and of a bootstrap of seeds and then images."""
    rng, rows = np.random.default_rng(0), []
    for seeds in (2, 3, 5, 10):
        for seed_sd, shared_sd, own_sd in ((0.0, 1.0, 0.5), (0.5, 1.0, 0.5), (2.0, 1.0, 0.5), (0.0, 0.3, 1.0), (2.0, 0.3, 1.0)):
            # A seed's difference: its own deviation, an error of the images that all seeds share, and one that they do not.
            estimate_SX = seed_sd * rng.normal(size=(seeds, trials)) + shared_sd * rng.normal(size=trials)
            estimate_SX += own_sd * rng.normal(size=(seeds, trials))
            images = shared_sd**2 + own_sd**2 / seeds
            found = combine(estimate_SX, np.full(trials, images))
            bootstrap = norm.isf(0.025) * np.sqrt(images + estimate_SX.var(axis=0) / seeds)
            half = found.high - found.estimate
            rows.append({
                "seeds": seeds, "sd over seeds": seed_sd, "sd over images, shared": shared_sd, "not shared": own_sd,
                "covered %": f"{100 * (np.abs(found.estimate) <= half).mean():.1f}",
                "bootstrap covers %": f"{100 * (np.abs(found.estimate) <= bootstrap).mean():.1f}",
                "half width / bootstrap's": f"{np.median(half / bootstrap):.2f}",
            })  # fmt: skip
    return pd.DataFrame(rows)


def markdown(table: pd.DataFrame) -> str:
    lines = [list(table.columns), ["---"] * len(table.columns), *table.astype(str).to_numpy().tolist()]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=300)
    parser.add_argument("--images", type=int, nargs="+", default=[360, 2000, 10000])
    parser.add_argument("--output", type=Path, default=Path("results/interval_coverage.md"))
    arguments = parser.parse_args()
    images = images_table(arguments.images, arguments.trials)
    numbers = images[metrics_with_interval(COLUMNS)].astype(float)
    low, high = numbers.min().min(), numbers.max().max()
    facts = provenance()
    within = "within" if low >= 100 * LOW and high <= 100 * HIGH else "NOT within"
    error = 100 * (0.95 * 0.05 / arguments.trials) ** 0.5
    text = f"""# Coverage of 95% intervals

`python scripts/interval_coverage.py --trials {arguments.trials}`, commit {facts["commit"]},
{facts["hardware"]["processor"]}.

## Over images
Two networks on the same images, P(correct) = confidence (1 - overconfidence); the share in percent of {arguments.trials} trials
whose interval holds the true difference. The standard error of such a share is {error:.1f} points. Over these metrics and
scenarios: {low:.1f} to {high:.1f}%, {within} {100 * LOW:.0f} to {100 * HIGH:.0f}%. The last column is what no report
prints.

{markdown(images)}

## Over seeds and images
The true difference is 0; standard deviations in the same unit, 20,000 trials. "Bootstrap" is the normal interval with the
variance of a bootstrap that draws seeds and then images. The interval is on the safe side where seeds do not differ at all.

{markdown(seeds_table(20_000))}
"""
    write_atomic(arguments.output, lambda file: file.write(text.encode()))
    print(text)


if __name__ == "__main__":
    main()
