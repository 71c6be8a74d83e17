"""Measures what corruptions cost: python scripts/bench_corruptions.py [--only fog snow] [--output FILE] (part of make bench)

On a CPU every corruption of the table is applied to a batch, and compared with the functions of the wheel `imagecorruptions`,
which take one image at a time. Both run in turn, severity by severity, so that a slow moment of the machine meets both, each
for about CALLS_SECONDS after a first call that is not counted. The time of a turn is its mean over the five severities. The
report gives the medians over the turns, of the times and of their ratio, and the range of the ratio, which says how noisy the
machine was. On CUDA every corruption is compared with the limit set by memory: each uint8 value is read once and written once.
"""

import argparse
import ctypes
import math
import shlex
import statistics
import sys
import time
import types
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import skimage.data
import skimage.filters
import torch
from measure import machine, positive, seconds
from PIL import Image, ImageOps
from torch import Tensor

from gch_bench.corruptions import CORRUPTIONS, SEVERITIES, corrupt

BATCH = {"cpu": 64, "cuda": 256}
ROUNDS = {"cpu": 5, "cuda": 20}
CALLS_SECONDS = 0.1  # at each severity of a turn as many calls are timed as fit into this time, at least one
TURNS_SECONDS = 10.0  # a corruption that has taken so long gets no further turn, but it has at least two
SLOW_MS = 2.0  # where the reference takes more milliseconds per image, the goal is GOAL_SLOW
GOAL_SLOW, GOAL_ELSEWHERE, GOAL_MEAN = 3.0, 1.0, 8.0  # our speed divided by the reference's
GOAL_CUDA, GOAL_CUDA_MEAN = 10_000, 50_000  # images/s
GOAL_COPIES = 12.0  # peak extra memory, in units of a float32 copy of the batch
MARK = {True: "yes", False: "NO"}
CorruptOne = Callable[[np.ndarray, int, str], np.ndarray]

CPU_HEADER = f"""\
Goals (batch {BATCH["cpu"]}, 224 px, two threads): {GOAL_SLOW:g} times the reference's speed where it takes more than \
{SLOW_MS:g} ms an image, no slower elsewhere,
{GOAL_MEAN:g} times in geometric mean; peak extra memory at most {GOAL_COPIES:g} float32 copies of the batch.
Time: of calls one after the other. A call that follows idleness may take 10 ms longer (seen on a 2-core virtual machine), until
the system has put the threads on different cores.
Memory: growth of the process's resident set over one call, output and malloc's slack included; the largest of the severities.

Reference: {{packages}}.
It computes what the wheel computes, made to run with today's libraries. Where the wheel departs from the original generator
(hendrycks/robustness, make_imagenet_c.py) in a way that costs or saves time:
- motion_blur, snow: its own sum of shifted copies; the original goes through PNG and ImageMagick.
- elastic_transform: no random affine map, and displacements smoothed by a Gaussian of 0.01 of the side at every severity; the
  original's are 0.76 and 0.09 of the side wide at severities 1 and 2 (224 px).
- frost: enlarges the whole photograph by at least 1.1 before it crops.
- pixelate: enlarges with the nearest pixel; the original uses a box filter, with the same result.

| corruption | turns | images/s | ms an image | reference's | ratio | range | goal | met | float32 copies |
|---|---:|---:|---:|---:|---:|---:|---:|---|---:|"""

CUDA_HEADER = f"""\
Goals (batch {BATCH["cuda"]}, 224 px): {GOAL_CUDA:,} images/s each, {GOAL_CUDA_MEAN:,} in geometric mean; peak extra memory at
most {GOAL_COPIES:g} float32 copies of the batch.
Memory: torch.cuda.max_memory_allocated over one call, output included; the largest of the severities.
Limit: a uint8 batch read and written at the bandwidth of a device copy, {{bandwidth:.0f}} GB/s (read + write) measured here.

| corruption | turns | images/s | ms an image | range | limit, images/s | of the limit | goal | met | float32 copies |
|---|---:|---:|---:|---:|---:|---:|---:|---|---:|"""


class Task(NamedTuple):
    """A call and the number of images that it corrupts."""

    call: Callable[[], object]
    images: int


def load_reference() -> CorruptOne:
    """The wheel's `corrupt(image_HW3, severity, name)`, made to run with today's libraries."""
    # setuptools no longer has pkg_resources, with which the wheel finds its frost photographs.
    stub = types.ModuleType("pkg_resources")
    stub.resource_filename = lambda module, path: str(Path(sys.modules[module].__file__).parent / path)
    sys.modules["pkg_resources"] = stub
    # NumPy no longer has float_, which fog uses.
    np.float_ = np.float64
    import imagecorruptions.corruptions

    def gaussian(image: np.ndarray, *args: object, multichannel: bool = False, **options: object) -> np.ndarray:
        return skimage.filters.gaussian(image, *args, channel_axis=-1 if multichannel else None, **options)

    # scikit-image has replaced multichannel=, which gaussian_blur and glass_blur use, by channel_axis=.
    imagecorruptions.corruptions.gaussian = gaussian
    return imagecorruptions.corrupt


def photographs(size: int, batch: int) -> Tensor:
    """uint8 (batch, 3, size, size): the central squares of four photographs, resized; image i shows photograph i mod 4."""
    data = skimage.data
    loaded = [Image.fromarray(photo()) for photo in (data.astronaut, data.chelsea, data.coffee, data.rocket)]
    photos_4HW3 = np.stack([ImageOps.fit(photo, (size, size), Image.Resampling.BICUBIC) for photo in loaded])
    return torch.from_numpy(photos_4HW3).permute(0, 3, 1, 2)[torch.arange(batch) % len(loaded)].contiguous()


def our_tasks(name: str, images: Tensor) -> list[Task]:
    """One task per severity. Each runs once on a few images first, so that libraries are loaded and tables are computed."""
    ids = torch.arange(len(images))
    for severity in SEVERITIES:
        corrupt(images[:4], name, severity, ids[:4])
    return [Task(partial(corrupt, images, name, severity, ids), len(images)) for severity in SEVERITIES]


def reference_tasks(corrupt_one: CorruptOne, name: str, images: list[np.ndarray]) -> list[Task]:
    """One task per severity. The time of a first image, which is not counted, decides how many images the task has."""
    tasks = []
    for severity in SEVERITIES:
        first = seconds(partial(corrupt_one, images[0], severity, name), torch.device("cpu"))
        some = images[: max(int(CALLS_SECONDS / first), 1)]
        tasks.append(Task(lambda some=some, level=severity: [corrupt_one(image, level, name) for image in some], len(some)))
    return tasks


def peak_copies(tasks: list[Task], images: Tensor) -> float:
    """The largest peak of extra memory among the tasks, in units of a float32 copy of the batch."""
    return max(peak_bytes(task.call, images.device) for task in tasks) / (4 * images.numel())


def peak_bytes(call: Callable[[], object], device: torch.device) -> float:
    """The peak of the memory during a call, in bytes above the memory before it.

    On CUDA it is the memory of torch's allocator, else the resident set of the process, which includes what C libraries take.
    The latter needs Linux with glibc; elsewhere the result is NaN.
    """
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    try:
        ctypes.CDLL(None).malloc_trim(0)  # memory that was freed but that malloc keeps would hide new use
        Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM, the peak of VmRSS
    except (AttributeError, OSError, TypeError):
        return math.nan
    before = _resident("VmRSS")
    call()
    return _resident("VmHWM") - before


def _resident(field: str) -> int:
    return 1024 * int(Path("/proc/self/status").read_text().split(f"{field}:")[1].split()[0])


def milliseconds(task: Task, device: torch.device) -> float:
    """Milliseconds per image, over as many calls as fit into CALLS_SECONDS, after a first call that is not counted."""
    calls = max(int(CALLS_SECONDS / seconds(task.call, device)), 1)
    return 1000 * seconds(lambda: [task.call() for _ in range(calls)], device) / (calls * task.images)


def in_turn(columns: list[list[Task]], rounds: int, device: torch.device) -> list[list[float]]:
    """For every column of tasks the milliseconds per image in each turn, averaged over the severities.

    Within a turn the columns take turns at each severity.
    """
    turns: list[list[float]] = [[] for _ in columns]
    begun = time.perf_counter()
    while len(turns[0]) < rounds and (len(turns[0]) < 2 or time.perf_counter() - begun < TURNS_SECONDS):
        times = [[milliseconds(task, device) for task in row] for row in zip(*columns, strict=True)]
        for turn, column in zip(turns, zip(*times, strict=True), strict=True):
            turn.append(statistics.mean(column))
    return turns


def report_cpu(names: list[str], images: Tensor, rounds: int) -> Iterator[str]:
    packages = [f"{package} {version(package)}" for package in ("imagecorruptions", "numpy", "scipy", "scikit-image", "pillow")]
    yield CPU_HEADER.format(packages=", ".join(packages) + f", cv2 {cv2.__version__}")
    corrupt_one = load_reference()
    images_HW3 = list(images.permute(0, 2, 3, 1).contiguous().numpy())
    ratio_of, copies_of = {}, {}
    for name in names:
        ours = our_tasks(name, images)
        copies_of[name] = peak_copies(ours, images)
        try:
            theirs = reference_tasks(corrupt_one, name, images_HW3)
        except Exception as error:  # an old wheel may raise anything with new libraries
            (turns,) = in_turn([ours], rounds, images.device)
            ms, reason = statistics.median(turns), f"{type(error).__name__}: {error}".splitlines()[0]
            result = f"cannot run: {reason} | | | |"
        else:
            turns, their_turns = in_turn([ours, theirs], rounds, images.device)
            ratios = [their / our for our, their in zip(turns, their_turns, strict=True)]
            ms, their_ms, ratio_of[name] = (statistics.median(values) for values in (turns, their_turns, ratios))
            goal = GOAL_SLOW if their_ms > SLOW_MS else GOAL_ELSEWHERE
            ratio = f"{ratio_of[name]:.2f} | {min(ratios):.2f}..{max(ratios):.2f}"
            result = f"{their_ms:.3f} | {ratio} | {goal:g} | {MARK[ratio_of[name] >= goal]}"
        yield f"| {name} | {len(turns)} | {1000 / ms:.0f} | {ms:.3f} | {result} | {copies_of[name]:.1f} |"
    yield from summary("ratio to the reference", ratio_of, GOAL_MEAN, copies_of)


def report_cuda(names: list[str], images: Tensor, rounds: int) -> Iterator[str]:
    block = torch.empty(1 << 30, dtype=torch.uint8, device=images.device)
    copy_seconds = [seconds(block.clone, images.device) for _ in range(rounds + 1)][1:]
    bandwidth = 2 * block.numel() / statistics.median(copy_seconds)  # each byte is read and written
    del block
    limit = bandwidth / (2 * images[0].numel())
    yield CUDA_HEADER.format(bandwidth=bandwidth / 1e9)
    rate_of, copies_of = {}, {}
    for name in names:
        ours = our_tasks(name, images)
        copies_of[name] = peak_copies(ours, images)
        (turns,) = in_turn([ours], rounds, images.device)
        rate_of[name] = rate = 1000 / statistics.median(turns)
        spread = f"{min(turns):.4f}..{max(turns):.4f}"
        yield (f"| {name} | {len(turns)} | {rate:,.0f} | {1000 / rate:.4f} | {spread} | {limit:,.0f} | {rate / limit:.1%} |"
               f" {GOAL_CUDA:,} | {MARK[rate >= GOAL_CUDA]} | {copies_of[name]:.1f} |")  # fmt: skip
    yield from summary("images/s", rate_of, GOAL_CUDA_MEAN, copies_of)


def summary(what: str, value_of: dict[str, float], goal: float, copies_of: dict[str, float]) -> Iterator[str]:
    if value_of:
        mean = statistics.geometric_mean(value_of.values())
        yield f"\nGeometric mean, {what}: {mean:,.2f} over {len(value_of)} corruptions (goal {goal:,g}: {MARK[mean >= goal]})."
    if left_out := [name for name in copies_of if name not in value_of]:
        yield f"\nLeft out of it, as the reference cannot run: {', '.join(left_out)}."
    name, most = max(copies_of.items(), key=lambda item: item[1])
    yield f"\nPeak extra memory: at most {most:.1f} copies, {name} (goal {GOAL_COPIES:g}: {MARK[most <= GOAL_COPIES]})."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=positive, help="default: 64 on a CPU, 256 on CUDA")
    parser.add_argument("--size", type=positive, default=224)
    parser.add_argument("--threads", type=positive, default=2)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--only", nargs="+", choices=tuple(CORRUPTIONS), metavar="NAME", help=", ".join(CORRUPTIONS))
    parser.add_argument("--rounds", type=positive, help="turns at most; default: 5 on a CPU, 20 on CUDA")
    parser.add_argument("--output", type=Path, help="also write the report to this Markdown file")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no CUDA device")
    batch, rounds = options.batch or BATCH[options.device], options.rounds or ROUNDS[options.device]
    torch.set_num_threads(options.threads)
    cv2.setNumThreads(options.threads)
    np.random.seed(0)  # the reference draws from NumPy's global generator
    device = torch.device(options.device)
    images = photographs(options.size, batch).to(device)
    report = report_cuda if device.type == "cuda" else report_cpu
    lines = [f"{options.size} px, batch {batch}, medians of up to {rounds} turns; {machine(device)}.\n"]
    print(lines[0])
    for line in report(options.only or list(CORRUPTIONS), images, rounds):
        print(line, flush=True)
        lines.append(line)
    if options.output:
        command = shlex.join(["python", "scripts/bench_corruptions.py", *sys.argv[1:]])
        options.output.write_text("\n".join(["# What corruptions cost", "", f"`{command}`, as it came.", "", *lines, ""]))


if __name__ == "__main__":
    main()
