"""Measures what keeping freed memory gains and costs: python scripts/bench_memory.py [--images 256 --turns 5] (make bench)

Time: EfficientNet-Lite0 with its ImageNet weights evaluates crops of the photographs that ship with scikit-image and
scikit-learn, with memory=auto and with memory=system. Each evaluation runs in a process of its own, and the two settings take
turns, so that a slow moment of the machine meets both. The first batch is not counted. The logits must be equal, bit for
bit.
Bound: a small network takes 10,000 training steps on batches of changing sizes, while other blocks of random sizes and
lifetimes are allocated, which is the worst case for a heap that is never handed back. The resident memory is shown after every
1,000 steps.
"""

import argparse
import hashlib
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import machine, photographs, positive, write_report
from torch import Tensor, nn

from gch_bench.config.run import ModelConfig
from gch_bench.data.transforms import normalise
from gch_bench.evaluation.predict import Predictor, predict
from gch_bench.memory import USERS_OWN, keep_freed_memory
from gch_bench.model.build import build_network, normalisation
from gch_bench.results.records import CELL_CLEAN

GOAL_RATIO, GOAL_GROWTH = 1.5, 1.1
MARK = {True: "yes", False: "NO"}
MODEL, SIZE, BATCH = "tf_efficientnet_lite0", 224, 64
CHOICES = ("auto", "system")


def evaluate(count: int) -> dict[str, Any]:
    """Evaluate `count` photographs after a first batch that is not counted.

    Returns:
        seconds; faults, the number of page faults; peak, the peak resident MiB; digest, of the logits.
    """
    network, _ = build_network(ModelConfig(MODEL, pretrained=True), 1000, SIZE)
    predictor = Predictor(network.eval(), normalisation(network), "fp32")
    crops = [np.asarray(image).transpose(2, 0, 1) for image in photographs(count + BATCH, (SIZE, SIZE))]
    batches = torch.from_numpy(np.stack(crops)).split(BATCH)
    digest = hashlib.sha256()
    with torch.inference_mode():
        predict(predictor, normalise(batches[0], predictor.normalisation), CELL_CLEAN, torch.arange(BATCH))
        faults, begun = page_faults(), time.perf_counter()
        for images in batches[1:]:
            logits_BC = predict(predictor, normalise(images, predictor.normalisation), CELL_CLEAN, torch.arange(len(images)))
            digest.update(logits_BC.numpy().tobytes())
    return {
        "seconds": time.perf_counter() - begun,
        "faults": page_faults() - faults,
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10,
        "digest": digest.hexdigest(),
    }


def page_faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def resident_mib() -> float:
    """The resident memory of this process now, in MiB (Linux)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def grow(batches: int) -> list[float]:
    """Train a small network for `batches` steps on batches of changing sizes.

    Large and small blocks of random sizes and lifetimes are allocated between the steps, which fragments a heap.

    Returns:
        The resident memory in MiB after every tenth of the steps.
    """
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2), nn.BatchNorm2d(16), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10),
    )  # fmt: skip
    optimizer = torch.optim.AdamW(network.parameters())
    draws = np.random.default_rng(0)
    images_of_size = {side: torch.randn(32, 3, side, side) for side in (24, 32, 48, 64)}
    resident: list[float] = []
    large: deque[Tensor] = deque(maxlen=8)  # blocks of up to 4 MiB, of which the last eight live
    small: list[np.ndarray] = []  # small blocks that live for many steps, as the rows of an evaluated cell do
    for batch in range(1, batches + 1):
        images = images_of_size[int(draws.choice([24, 32, 48, 64]))][: int(draws.choice([5, 16, 32]))]
        logits = network(images)
        large.append(torch.ones(int(draws.integers(1, 2**20))))
        optimizer.zero_grad(set_to_none=True)
        nn.functional.cross_entropy(logits, torch.zeros(len(images), dtype=torch.long)).backward()
        optimizer.step()
        small.append(logits.detach().numpy().copy())
        if batch % (batches // 10) == 0:
            small.clear()
            resident.append(resident_mib())
    return resident


def in_new_process(part: str, memory: str, count: int, threads: int) -> Any:
    """The result of `part`, "evaluate" or "grow", with the argument `count`, in a process of its own.

    `memory` is the choice of the configuration field of this name. Environment variables that tune the allocator are removed.
    """
    command = [sys.executable, __file__, "--part", part, "--memory", memory, "--count", str(count), "--threads", str(threads)]
    clean = {name: value for name, value in os.environ.items() if name not in USERS_OWN}
    run = subprocess.run(command, env=clean, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(run.stdout)


def time_table(images: int, turns: int, threads: int) -> Iterator[str]:
    found: dict[str, list[dict[str, Any]]] = {memory: [] for memory in CHOICES}
    for turn in range(turns):
        for memory in CHOICES if turn % 2 else CHOICES[::-1]:
            found[memory].append(in_new_process("evaluate", memory, images, threads))
    for memory, runs in found.items():
        middle = {key: statistics.median(run[key] for run in runs) for key in ("seconds", "faults", "peak")}
        spread = f"{min(run['seconds'] for run in runs):.2f}..{max(run['seconds'] for run in runs):.2f}"
        yield (f"| {images} photographs, memory={memory} | {middle['seconds']:.2f} s ({spread}),"
               f" {middle['faults']:,.0f} page faults, peak {middle['peak']:,.0f} MiB | | |")  # fmt: skip
    ratios = [theirs["seconds"] / ours["seconds"] for ours, theirs in zip(found["auto"], found["system"], strict=True)]
    ratio = statistics.median(ratios)
    yield (f"| time with memory=system, of that with memory=auto | {ratio:.2f} ({min(ratios):.2f}..{max(ratios):.2f} in {turns}"
           f" turns) | >= {GOAL_RATIO:g} | {MARK[ratio >= GOAL_RATIO]} |")  # fmt: skip
    equal = len({run["digest"] for runs in found.values() for run in runs}) == 1
    yield f"| logits equal, bit for bit | {MARK[equal]} | yes | {MARK[equal]} |"


def growth_table(batches: int) -> Iterator[str]:
    resident = {memory: in_new_process("grow", memory, batches, threads=1) for memory in CHOICES}
    for memory, mib in resident.items():
        listed = ", ".join(f"{value:.0f}" for value in mib)
        yield f"| resident MiB after every {batches // 10:,} batches, memory={memory} | {listed} | | |"
    growth = resident["auto"][-1] / resident["auto"][1]
    met = MARK[growth <= GOAL_GROWTH]
    yield f"| memory=auto: the last of them, of the second | {growth:.2f} | <= {GOAL_GROWTH:g} | {met} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=positive, default=256)
    parser.add_argument("--turns", type=positive, default=5)
    parser.add_argument("--batches", type=positive, default=10_000, help="of the training steps whose memory is watched, >= 10")
    parser.add_argument("--threads", type=positive, default=2)
    parser.add_argument("--output", type=Path, help="also write the report to this Markdown file")
    for name in ("--part", "--memory"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    parser.add_argument("--count", type=positive, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.batches < 10:
        parser.error("--batches must be at least 10")
    torch.set_num_threads(options.threads)
    if options.part:
        keep_freed_memory(options.memory)
        print(json.dumps({"evaluate": evaluate, "grow": grow}[options.part](options.count)))
        return
    libc = os.confstr("CS_GNU_LIBC_VERSION") if hasattr(os, "confstr") else "no glibc"
    lines = [f"{MODEL}, {SIZE} px, batch {BATCH}; {machine(torch.device('cpu'))}; {libc}; timm {version('timm')}.", "",
             "| what | measured | goal | met |", "|---|---|---|---|"]  # fmt: skip
    print("\n".join(lines))
    for part in (
        time_table(options.images, options.turns, options.threads),
        growth_table(options.batches),
    ):
        for line in part:
            print(line, flush=True)
            lines.append(line)
    if options.output:
        write_report(options.output, "What keeping freed memory brings", lines)


if __name__ == "__main__":
    main()
