"""Measures what corruptions cost: python scripts/bench_corruptions.py [--only fog snow] [--output FILE] (part of make bench)

On a CPU every corruption of the table is compared with the packages that compute the same corruptions and still run: on one
core, on two, and where several corruptions of the same images are wanted. Install these packages by `make peers`.

All that is compared runs in turn, severity by severity, so that a slow moment of the machine meets everyone, each for about
CALLS_SECONDS after a first call that is not counted. The time of a turn is its mean over the five severities. The report gives
the medians over the turns, of the times and of their ratios, and the range of a ratio, which says how noisy the machine was. On
CUDA every corruption is compared with the limit set by memory: each uint8 value is read once and written once.
"""

import argparse
import statistics
import sys
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from corruption_peers import DRAWS, PEERS, WITHIN_ONE, Likeness, Peer, likeness, load_all, photos_HW3
from corruption_tasks import (
    CPU,
    OURS,
    in_turn,
    one_at_a_time,
    our_tasks,
    peak_copies,
    peer_tasks,
    photographs,
    pillow_tasks,
    shared_tasks,
    two_processes,
)
from measure import machine, positive, seconds, write_report
from torch import Tensor

from gch_bench.corruptions import CORRUPTIONS, SEVERITIES
from gch_bench.errors import UserError
from gch_bench.memory import keep_freed_memory

BATCH = {"cpu": 64, "cuda": 256}
ROUNDS = {"cpu": 5, "cuda": 20}
GOAL_OF = {"imgcorr": 10.0, "imagecorruptions-imaug": 10.0}  # our speed divided by theirs, in geometric mean
GOAL_BEST = 6.0  # the same against the fastest peer at each corruption
GOAL_PILLOW = 1.05  # most of Pillow's time for jpeg_compression
GOAL_TWO = 1.8  # the speed of two threads divided by that of one
GOAL_CUDA, GOAL_CUDA_MEAN = 10_000, 50_000  # images/s
GOAL_COPIES = 12.0  # peak extra memory, in units of a float32 copy of the batch
JPEG, PILLOW, ONE = "jpeg_compression", "Pillow", "one"
MARK = {True: "yes", False: "NO"}

SETTING = """\
Libraries: {libraries}.
The whole process, peers included, keeps freed memory for reuse (gch_bench.memory), without which the peers are slower. Peers
take one image, and are timed without a conversion of what they return (corrupt-tta: floats). They draw from NumPy's global
state, seeded here, except in impulse_noise and glass_blur, where some have generators of their own."""

ONE_CORE = """
## One core
torch, OpenCV and Numba use one thread. Times are ms an image; a ratio is a peer's time divided by ours at batch {batch}.
"Agree": whether a peer's outputs agree with ours, in the order of the columns (figures below). Goals: ahead of every peer whose
outputs agree, and a batch of 1 no slower than the best peer; for {jpeg}, which the peers leave to Pillow, both
at most {pillow:g} times the time of Pillow alone. Memory: the growth of the process over one call, output included, in float32
copies of the batch.

| corruption | turns | ours, batch {batch} | batch of 1 | {names} | {ratios} | to the best | range | agree | ahead \
| batch of 1 | copies |
|---|---:|---:|---:|{columns}---:|---:|---|---|---|---:|"""

AGREEMENT = """
Outputs agree where, deterministic corruptions: at every severity at least {least:.0%} of the values of four photographs differ
by at most 1 level (given: the least share); random ones: at every severity the means of 20 features over {draws} draws of each
on one photograph (features: means, deviations, percentiles, distances, spectrum, as in scripts/verify_corruptions.py) differ by
at most 4 standard errors plus 1% of the value, or 0.02 of a log-power (given: how many are off, and the worst in these units).

| corruption | {names} |
|---|{columns}"""

TWO_CORES = """
## Two cores
Ours: one process, torch.set_num_threads(2) against 1. The ceiling is the machine's own: two independent processes of ours, each
with one thread and a batch of its own. Peers have no batches: their ways to use two cores are OpenCV's threads and two
processes, tried here with the fastest peer of each corruption. A ratio is the speed on two cores divided by that on one.

| corruption | turns | ours, ms, 1 thread | 2 threads | ratio | range | ceiling | peer | its OpenCV with 2 threads \
| two processes |
|---|---:|---:|---:|---:|---:|---:|---|---:|---:|"""

SHARED = """
## Several corruptions of the same images
`corrupt` cell by cell against `corrupt_all`, batch {batch}, one thread, ms an image and cell. A ratio is the first's time
divided by the second's.

| cells | turns | corrupt | corrupt_all | ratio | range |
|---|---:|---:|---:|---:|---:|"""

CUDA = f"""\
Goals (batch {BATCH["cuda"]}, 224 px): {GOAL_CUDA:,} images/s each, {GOAL_CUDA_MEAN:,} in geometric mean; peak extra memory at
most {GOAL_COPIES:g} float32 copies of the batch.
Memory: torch.cuda.max_memory_allocated over one call, output included; the largest of the severities.
Limit: a uint8 batch read and written at the bandwidth of a device copy, {{bandwidth:.0f}} GB/s (read + write) measured here.

| corruption | turns | images/s | ms an image | range | limit, images/s | of the limit | goal | met | float32 copies |
|---|---:|---:|---:|---:|---:|---:|---:|---|---:|"""


class OneCore(NamedTuple):
    """What was measured of one corruption on one core."""

    turns: dict[str, list[float]]  # ms an image in each turn: of OURS at the full batch, of ONE, of each peer, of PILLOW
    alike: dict[str, Likeness]  # of each peer
    copies: float  # peak memory

    def ratio(self, key: str, to: str = OURS) -> float:
        return ratio(self.turns[key], self.turns[to])

    @property
    def best(self) -> str:
        """The fastest peer."""
        return min(self.alike, key=lambda peer: statistics.median(self.turns[peer]))

    @property
    def agreeing(self) -> list[float]:
        """Our speed divided by that of each peer whose outputs agree."""
        return [self.ratio(peer) for peer, each in self.alike.items() if each.agree]

    @property
    def ahead(self) -> bool:
        if PILLOW in self.turns:
            return self.ratio(OURS, to=PILLOW) <= GOAL_PILLOW
        return all(each >= 1 for each in self.agreeing or map(self.ratio, self.alike))  # of all peers where none agrees

    @property
    def one_is_quick(self) -> bool:
        if PILLOW in self.turns:
            return self.ratio(ONE, to=PILLOW) <= GOAL_PILLOW
        return self.ratio(self.best, to=ONE) >= 1


def measure_one_core(name: str, images: Tensor, rounds: int, peers: list[Peer]) -> OneCore:
    photos = photos_HW3(images)
    alike = likeness([peer.corrupt for peer in peers], name, images[:4])
    tasks = {OURS: our_tasks(name, images), ONE: one_at_a_time(name, images)}
    tasks |= {peer.name: peer_tasks(peer.corrupt, name, photos) for peer in peers}
    if name == JPEG:
        tasks[PILLOW] = pillow_tasks(photos)
    turns = in_turn(tasks, rounds, CPU)
    return OneCore(turns, {peer.name: each for peer, each in zip(peers, alike, strict=True)}, peak_copies(tasks[OURS], images))


def ratio(turns: list[float], to: list[float]) -> float:
    """The median over the turns of the one time divided by the other."""
    return statistics.median(ratios(turns, to))


def ratios(turns: list[float], to: list[float]) -> list[float]:
    return [a / b for a, b in zip(turns, to, strict=True)]


def spread(values: list[float]) -> str:
    return f"{min(values):.2f}..{max(values):.2f}"


def line(cells: list[object]) -> str:
    return f"| {' | '.join(str(cell) for cell in cells)} |"


def report_cpu(names: list[str], images: Tensor, rounds: int, peers: list[Peer], folder: Path) -> Iterator[str]:
    libraries = [f"{package} {version(package)}" for package in ("numba", "numpy", "scipy", "scikit-image", "pillow")]
    yield SETTING.format(libraries=", ".join([*libraries, f"cv2 {cv2.__version__}", *(f"{p.name} {p.version}" for p in peers)]))
    labels = [peer.name for peer in peers]
    yield ONE_CORE.format(
        batch=len(images), jpeg=JPEG, pillow=GOAL_PILLOW, names=" | ".join(labels), columns=2 * len(peers) * "---:|",
        ratios=" | ".join(f"to {label}" for label in labels),
    )  # fmt: skip
    found = {}
    for name in names:
        found[name] = measure_one_core(name, images, rounds, peers)
        yield one_core_line(name, found[name])
    yield from one_core_goals(found)
    yield AGREEMENT.format(least=WITHIN_ONE, draws=DRAWS, names=" | ".join(labels), columns=len(peers) * "---|")
    for name, each in found.items():
        yield line([name, *(f"{'yes' if peer.agree else 'no'}: {peer.figure}" for peer in each.alike.values())])
    by_name = {peer.name: peer for peer in peers}
    yield from two_cores({name: by_name[each.best] for name, each in found.items()}, images, rounds, folder)
    yield from shared_work(names, images, rounds)


def one_core_line(name: str, found: OneCore) -> str:
    return line([
        name, len(found.turns[OURS]),
        *(f"{statistics.median(turns):.3f}" for key, turns in found.turns.items() if key != PILLOW),
        *(f"{found.ratio(peer):.2f}" for peer in found.alike),
        f"{found.ratio(found.best):.2f}", spread(ratios(found.turns[found.best], found.turns[OURS])),
        "/".join("yes" if each.agree else "no" for each in found.alike.values()),
        MARK[found.ahead], MARK[found.one_is_quick], f"{found.copies:.1f}",
    ])  # fmt: skip


def one_core_goals(found: Mapping[str, OneCore]) -> Iterator[str]:
    if JPEG in found:
        jpeg = found[JPEG]
        times = f"ours takes {jpeg.ratio(OURS, to=PILLOW):.2f} times that, a batch of 1 {jpeg.ratio(ONE, to=PILLOW):.2f} times"
        yield f"\n{JPEG}, Pillow alone: {statistics.median(jpeg.turns[PILLOW]):.3f} ms an image; {times}."
    for peer in next(iter(found.values())).alike:
        yield mean_line(f"ratio to {peer}", {name: each.ratio(peer) for name, each in found.items()}, GOAL_OF.get(peer))
    yield mean_line("ratio to best", {name: each.ratio(each.best) for name, each in found.items()}, GOAL_BEST)
    agreeing = {name: min(each.agreeing) for name, each in found.items() if each.agreeing}
    yield mean_line("ratio to the best whose outputs agree", agreeing)
    ahead = {name: each.ahead for name, each in found.items()}
    yield f"\nAhead of every peer whose outputs agree: {everywhere(ahead)}."
    quick = {name: each.one_is_quick for name, each in found.items()}
    yield f"\nA batch of 1 no slower than the best peer: {everywhere(quick)}."
    yield memory_line({name: each.copies for name, each in found.items()})


def two_cores(best_of: Mapping[str, Peer], images: Tensor, rounds: int, folder: Path) -> Iterator[str]:
    """One thread and two of ours, and of the fastest peer of each corruption."""
    yield TWO_CORES
    gains: dict[str, dict[str, float]] = {"two threads": {}, "the ceiling": {}}
    with two_processes(folder, images) as processes:
        for name, peer in best_of.items():
            photos = photos_HW3(images)
            turns = in_turn(
                {
                    OURS: our_tasks(name, images), "two threads": our_tasks(name, images, threads=2),
                    "the ceiling": processes.tasks(OURS, name),
                    "peer": peer_tasks(peer.corrupt, name, photos), "OpenCV": peer_tasks(peer.corrupt, name, photos, threads=2),
                    "processes": processes.tasks(peer.name, name),
                },
                rounds, CPU,
            )  # fmt: skip
            for key, values in gains.items():
                values[name] = ratio(turns[OURS], turns[key])
            yield line([
                name, len(turns[OURS]), *(f"{statistics.median(turns[key]):.3f}" for key in (OURS, "two threads")),
                f"{gains['two threads'][name]:.2f}", spread(ratios(turns[OURS], turns["two threads"])),
                f"{gains['the ceiling'][name]:.2f}", peer.name,
                *(f"{ratio(turns['peer'], turns[key]):.2f}" for key in ("OpenCV", "processes")),
            ])  # fmt: skip
    yield mean_line("two threads against one", gains["two threads"], GOAL_TWO)
    yield mean_line("two processes of one thread against one, the ceiling", gains["the ceiling"])


def shared_work(names: list[str], images: Tensor, rounds: int) -> Iterator[str]:
    """What `corrupt_all` saves: for the five severities of each corruption, and for all cells of those that are averaged."""
    yield SHARED.format(batch=len(images))
    averaged = [name for name in names if CORRUPTIONS[name].group != "extra"]
    groups = {f"{name}, {len(SEVERITIES)} severities": [name] for name in names}
    if averaged:
        groups[f"all {len(averaged) * len(SEVERITIES)} cells of {len(averaged)} corruptions"] = averaged
    for label, members in groups.items():
        cells = [(name, severity) for name in members for severity in SEVERITIES]
        turns = in_turn(shared_tasks(cells, images), rounds, CPU)
        one_by_one, together = turns.values()
        yield line([
            label, len(together), *(f"{statistics.median(each):.3f}" for each in turns.values()),
            f"{ratio(one_by_one, together):.2f}", spread(ratios(one_by_one, together)),
        ])  # fmt: skip


def report_cuda(names: list[str], images: Tensor, rounds: int) -> Iterator[str]:
    block = torch.empty(1 << 30, dtype=torch.uint8, device=images.device)
    copy_seconds = [seconds(block.clone, images.device) for _ in range(rounds + 1)][1:]
    bandwidth = 2 * block.numel() / statistics.median(copy_seconds)  # each byte is read and written
    del block
    limit = bandwidth / (2 * images[0].numel())
    yield CUDA.format(bandwidth=bandwidth / 1e9)
    rate_of, copies_of = {}, {}
    for name in names:
        tasks = our_tasks(name, images)
        copies_of[name] = peak_copies(tasks, images)
        turns = in_turn({OURS: tasks}, rounds, images.device)[OURS]
        rate_of[name] = rate = 1000 / statistics.median(turns)
        yield line([
            name, len(turns), f"{rate:,.0f}", f"{1000 / rate:.4f}", f"{min(turns):.4f}..{max(turns):.4f}", f"{limit:,.0f}",
            f"{rate / limit:.1%}", f"{GOAL_CUDA:,}", MARK[rate >= GOAL_CUDA], f"{copies_of[name]:.1f}",
        ])  # fmt: skip
    yield mean_line("images/s", rate_of, GOAL_CUDA_MEAN)
    yield memory_line(copies_of)


def mean_line(what: str, value_of: Mapping[str, float], goal: float | None = None) -> str:
    if not value_of:
        return f"\nGeometric mean, {what}: none."
    mean = statistics.geometric_mean(value_of.values())
    met = "" if goal is None else f" (goal {goal:,g}: {MARK[mean >= goal]})"
    return f"\nGeometric mean, {what}: {mean:,.2f} over {len(value_of)} corruptions{met}."


def everywhere(met: Mapping[str, bool]) -> str:
    missed = [name for name, each in met.items() if not each]
    return f"NO: {', '.join(missed)}" if missed else "yes"


def memory_line(copies_of: Mapping[str, float]) -> str:
    name, most = max(copies_of.items(), key=lambda item: item[1])
    return f"\nPeak extra memory: at most {most:.1f} copies, {name} (goal {GOAL_COPIES:g}: {MARK[most <= GOAL_COPIES]})."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=positive, help="default: 64 on a CPU, 256 on CUDA")
    parser.add_argument("--size", type=positive, default=224)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--only", nargs="+", choices=tuple(CORRUPTIONS), metavar="NAME", help=", ".join(CORRUPTIONS))
    parser.add_argument("--rounds", type=positive, help="turns at most; default: 5 on a CPU, 20 on CUDA")
    parser.add_argument("--peers", type=Path, default=PEERS, help="where `make peers` has installed the peers (CPU only)")
    parser.add_argument("--output", type=Path, help="also write the report to this Markdown file")
    options = parser.parse_args()
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no CUDA device")
    batch, rounds, names = (
        options.batch or BATCH[device.type],
        options.rounds or ROUNDS[device.type],
        options.only or list(CORRUPTIONS),
    )
    keep_freed_memory()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    np.random.seed(0)  # peers draw from NumPy's global generator
    images = photographs(options.size, batch).to(device)
    if device.type == "cuda":
        report = report_cuda(names, images, rounds)
    else:
        try:
            peers = load_all(options.peers)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)
        report = report_cpu(names, images, rounds, peers, options.peers)
    lines = [f"{options.size} px, batch {batch}, medians of up to {rounds} turns; {machine(device)}.\n"]
    print(lines[0])
    for text in report:
        print(text, flush=True)
        lines.append(text)
    if options.output:
        write_report(options.output, "What corruptions cost", lines)


if __name__ == "__main__":
    main()
