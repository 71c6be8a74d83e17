"""Times the statistics of a report at ImageNet's size: python scripts/bench_report.py [--images 50000 --cells 75] (make bench)

Two mechanisms with three seeds each, records of 75 corrupted cells and the clean one, 1,000 resamples; all metrics, every cell,
and every mean over cells. The records are made up. The goal is 60 s on two cores.
"""

import argparse
import resource
import time
from pathlib import Path

import numpy as np
import pandas as pd

from gch_bench.corruptions.parameters import ALEXNET_ERROR_PERCENT
from gch_bench.files import write_atomic
from gch_bench.metrics import EXTRA
from gch_bench.provenance import provenance
from gch_bench.report.rows import rows_of
from gch_bench.report.study import Group, Run, Setting
from gch_bench.results.records import CELL_CLEAN, Cell
from gch_bench.results.runfacts import RunFacts

GOAL = 60.0


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
    begun = time.perf_counter()
    rows = rows_of(Setting("made up", groups, groups[0], cells))
    taken = time.perf_counter() - begun
    facts = provenance()
    size = f"2 mechanisms x {arguments.seeds} seeds x {1 + len(cells)} cells x {arguments.images} images"
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    met = "met" if taken <= GOAL else "NOT met"
    text = f"""# Time of a report's statistics

`python scripts/bench_report.py --images {arguments.images} --seeds {arguments.seeds}`, commit {facts["commit"]},
{facts["hardware"]["processor"]}.

{size}, 1,000 resamples, {len(rows)} rows of results:
**{taken:.1f} s** (goal: at most {GOAL:.0f} s on two cores; {met}), peak memory {memory:.1f} GiB,
of which the records take the larger part. Reading the records and temperature scaling are not in it.
"""
    write_atomic(arguments.output, lambda file: file.write(text.encode()))
    print(text)


if __name__ == "__main__":
    main()
