"""Times the statistics of a report at ImageNet's size: python scripts/bench_report.py [--images 50000 --cells 75] (make bench)

Two mechanisms with three seeds each, records of 75 corrupted cells and the clean one, 1,000 resamples; all metrics, every cell,
and every mean over cells, raw and again with the numbers after a temperature. Temperature scaling itself is timed on one cell
with 1,000 classes. The records are made up. The goal is 60 s on two cores.
"""

import argparse
import resource
import time
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.special import log_softmax

from gch_bench.corruptions.parameters import ALEXNET_ERROR_PERCENT
from gch_bench.files import write_atomic
from gch_bench.metrics import EXTRA, sample_atoms
from gch_bench.provenance import provenance
from gch_bench.report.rows import rows_of
from gch_bench.report.statistics import metrics_with_interval
from gch_bench.report.study import Group, Run, Setting
from gch_bench.report.temperature import scaled
from gch_bench.results.records import CELL_CLEAN, COLUMNS, Cell
from gch_bench.results.runfacts import RunFacts

GOAL = 60.0
FURTHER = 4  # corrupted cells that temperature scaling is timed on


def run(seed: int, cells: list[Cell], images: int) -> Run:
    """A run whose records are drawn at random."""
    rng, ids, label = np.random.default_rng(seed), np.arange(images), np.arange(images) % 1000
    rows = {}
    for cell in cells:
        confidence = rng.beta(2, 1, images).astype(np.float32)
        correct = rng.random(images) < confidence
        rows[cell] = pd.DataFrame({
            "id": ids, "label": label, "prediction": np.where(correct, label, (label + 1) % 1000), "confidence": confidence,
            "nll": rng.exponential(1, images).astype(np.float32), "brier": rng.random(images).astype(np.float32),
            "top5": correct, "entropy": rng.random(images).astype(np.float32),
        })  # fmt: skip
    facts = RunFacts(
        status="finished", started="", command="", processes=1, device="cpu", commit=None, versions={}, hardware={},
        protocol_id="", protocol={}, mechanism="", stages=[], warnings=[], data={"num_classes": 1000}, parameters=0,
        config={}, identity={},
    )  # fmt: skip
    return Run(Path(str(seed)), facts, rows, {})


def with_scaled(of: Run) -> Run:
    """The run with its own records a second time as those after a temperature, which are as large and as slow."""
    slopes = {cell: dict.fromkeys(metrics_with_interval(COLUMNS), 0.0) for cell in of.cells}
    return of._replace(temperature=1.0, calibrated=of.cells, slopes=slopes, influence_N=np.zeros(len(of.cells[CELL_CLEAN])))


def seconds_of_scaling(images: int, corrupted: int, classes: int = 1000) -> float:
    """Seconds for the temperature of a run with a clean cell and some corrupted ones, all of the same logits."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(images, classes)).astype(np.float16)
    labels = rng.integers(0, classes, images)
    logits[np.arange(images), labels] += 3
    atoms = sample_atoms(log_softmax(logits.astype(np.float32), axis=1), labels)
    frame = pd.DataFrame({"id": np.arange(images), "label": labels, **atoms._asdict()})
    begun = time.perf_counter()
    scaled(lambda _: logits, dict.fromkeys([CELL_CLEAN, *(Cell("fog", 1 + i) for i in range(corrupted))], frame))
    return time.perf_counter() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path("results/bench_report.md"))
    arguments = parser.parse_args()
    names = [name for name in ALEXNET_ERROR_PERCENT if name not in EXTRA]
    cells = [Cell(name, severity) for name in names for severity in range(1, 6)]
    groups = []
    for number, name in enumerate(("none", "gch")):
        noise = {"name": name, "law": None if name == "none" else "samplewise", "stages": ["L4"]}
        runs = {seed: run(2 * seed + number, [CELL_CLEAN, *cells], arguments.images) for seed in range(arguments.seeds)}
        groups.append(Group(name, noise, runs))
    setting = Setting("made up", groups, groups[0], cells)
    begun = time.perf_counter()
    raw = rows_of(setting)
    raw_seconds = time.perf_counter() - begun
    both = [group._replace(runs={seed: with_scaled(each) for seed, each in group.runs.items()}) for group in groups]
    begun = time.perf_counter()
    rows = rows_of(setting._replace(groups=both, baseline=both[0]))
    seconds = time.perf_counter() - begun
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    fit, more = (seconds_of_scaling(arguments.images, corrupted) for corrupted in (0, FURTHER))
    hardware = (facts := provenance())["hardware"]
    met = "met" if raw_seconds <= GOAL else "NOT met"
    size = f"2 mechanisms x {arguments.seeds} seeds x {1 + len(cells)} cells x {arguments.images} images"
    text = f"""# Time of a report's statistics

`python scripts/bench_report.py --images {arguments.images} --seeds {arguments.seeds}`, commit {facts["commit"]},
{hardware["processor"]}, {hardware["cores"]} cores.

{size}, 1,000 resamples, records that are already read; peak memory {memory:.1f} GiB, of which the records take the larger part.

| | seconds |
|---|---|
| raw estimators, {len(raw)} rows of results | {raw_seconds:.1f} (goal: at most {GOAL:.0f}; {met}) |
| raw and after a temperature, {len(rows)} rows of results | {seconds:.1f} |
| temperature of one run: its fit, and its clean cell, {arguments.images} images x 1,000 classes | {fit:.1f} |
| the same, each further cell | {(more - fit) / FURTHER:.1f} |
"""
    write_atomic(arguments.output, lambda file: file.write(text.encode()))
    print(text)


if __name__ == "__main__":
    main()
