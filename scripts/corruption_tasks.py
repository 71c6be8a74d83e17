"""What bench_corruptions.py times: tasks, each a call that corrupts some images, and how their times are taken in turn."""

import ctypes
import io
import math
import multiprocessing
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import lru_cache, partial
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import skimage.data
import torch
from corruption_peers import CorruptOne, load, photos_HW3
from measure import seconds
from PIL import Image, ImageOps
from torch import Tensor

from gch_bench.corruptions import PARAMETER_SETS, SEVERITIES, corrupt, corrupt_all
from gch_bench.threads import torch_threads

CALLS_SECONDS = 0.05  # at each severity of a turn as many calls are timed as fit into this time, at least one
TURNS_SECONDS = 10.0  # a corruption that has taken so long gets no further turn, but it has at least two
OURS = "ours"
CPU = torch.device("cpu")


class Task(NamedTuple):
    """A call and the number of images that it corrupts."""

    call: Callable[[], object]
    images: int


def photographs(size: int, batch: int) -> Tensor:
    """uint8 (batch, 3, size, size): the central squares of four photographs, resized; image i shows photograph i mod 4."""
    data = skimage.data
    loaded = [Image.fromarray(photo()) for photo in (data.astronaut, data.chelsea, data.coffee, data.rocket)]
    photos_4HW3 = np.stack([ImageOps.fit(photo, (size, size), Image.Resampling.BICUBIC) for photo in loaded])
    return torch.from_numpy(photos_4HW3).permute(0, 3, 1, 2)[torch.arange(batch) % len(loaded)].contiguous()


# ---- tasks: one per severity ----


def our_tasks(name: str, images: Tensor, threads: int = 1) -> list[Task]:
    """Our `corrupt` of the whole batch. Each runs once on a few images first, so that code and tables are there."""
    ids = torch.arange(len(images))

    def call(severity: int) -> None:
        with torch_threads(threads):
            corrupt(images, name, severity, ids)

    for severity in SEVERITIES:
        corrupt(images[:4], name, severity, ids[:4])
    return [Task(partial(call, severity), len(images)) for severity in SEVERITIES]


def one_at_a_time(name: str, images: Tensor) -> list[Task]:
    """Our `corrupt` of some images, called with a batch of one each time."""
    return peer_tasks(lambda image, name, severity: corrupt(image, name, severity, torch.zeros(1, dtype=torch.int64)),
                      name, images.split(1))  # fmt: skip


def peer_tasks(corrupt_one: CorruptOne, name: str, images: Sequence, threads: int = 1) -> list[Task]:
    """A function that takes one image at a time, with this many threads of OpenCV.

    The time of a second image, which is not counted, decides how many images a task has; the first one may load code.
    """

    def call(severity: int, some: Sequence) -> None:
        cv2.setNumThreads(threads)
        for image in some:
            corrupt_one(image, name, severity)
        cv2.setNumThreads(1)

    tasks = []
    for severity in SEVERITIES:
        first = [seconds(partial(call, severity, images[:1]), CPU) for _ in range(2)][1]
        some = images[: max(int(CALLS_SECONDS / first), 1)]
        tasks.append(Task(partial(call, severity, some), len(some)))
    return tasks


def pillow_tasks(images: Sequence[np.ndarray]) -> list[Task]:
    """Pillow alone, as for the corruption jpeg_compression: an array is encoded, decoded and made an array again."""

    def encode_and_decode(image: np.ndarray, name: str, severity: int) -> np.ndarray:
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=PARAMETER_SETS["imagenet_224"].levels[name][severity - 1])
        return np.asarray(Image.open(file))

    return peer_tasks(encode_and_decode, "jpeg_compression", images)


def shared_tasks(cells: list[tuple[str, int]], images: Tensor) -> dict[str, list[Task]]:
    """`corrupt` of one cell after the other, and `corrupt_all` of all of them; results are dropped as they come."""
    ids = torch.arange(len(images))

    def one_by_one() -> None:
        for cell in cells:
            corrupt(images, *cell, ids)

    def all_together() -> None:
        deque(corrupt_all(images, cells, ids), maxlen=0)

    count = len(cells) * len(images)
    return {"one by one": [Task(one_by_one, count)], "all": [Task(all_together, count)]}


# ---- two processes ----


class Processes(NamedTuple):
    """Two processes with one thread each, which corrupt photographs of their own."""

    pools: list[ProcessPoolExecutor]
    folder: Path  # of the peers
    size: int  # of the photographs
    batch: int

    def tasks(self, who: str, name: str) -> list[Task]:
        """The corruption by ``who`` (OURS or a peer's name) in both processes at once.

        A task has so many batches or images that telling the processes what to do takes no part of it worth mentioning.
        """

        def call(severity: int, count: int) -> None:
            work = (who, name, severity, count, self.folder, self.size, self.batch)
            for running in [pool.submit(_repeat, *work) for pool in self.pools]:
                running.result()

        tasks = []
        for severity in SEVERITIES:
            first = [seconds(partial(call, severity, 1), CPU) for _ in range(2)][1]
            count = max(int(CALLS_SECONDS / first), 1)
            tasks.append(Task(partial(call, severity, count), 2 * count * (self.batch if who == OURS else 1)))
        return tasks


@contextmanager
def two_processes(folder: Path, images: Tensor) -> Iterator[Processes]:
    context = multiprocessing.get_context("spawn")
    pools = [ProcessPoolExecutor(1, context, _start) for _ in range(2)]
    try:
        yield Processes(pools, folder, images.shape[-1], len(images))
    finally:
        for pool in pools:
            pool.shutdown()


def _start() -> None:
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    np.random.seed(0)


def _repeat(who: str, name: str, severity: int, count: int, folder: Path, size: int, batch: int) -> None:
    """Corrupt ``count`` batches by ours, or as many single images by a peer."""
    images = _photographs(size, batch)
    if who == OURS:
        for _ in range(count):
            corrupt(images, name, severity, torch.arange(len(images)))
        return
    peer, photos = _peer(folder, who), photos_HW3(images[:4])
    for number in range(count):
        peer(photos[number % len(photos)], name, severity)


_photographs = lru_cache(maxsize=1)(photographs)


@lru_cache
def _peer(folder: Path, name: str) -> CorruptOne:
    return load(folder, name).corrupt


# ---- times and memory ----


def milliseconds(task: Task, device: torch.device) -> float:
    """Milliseconds per image, over as many calls as fit into CALLS_SECONDS, after a first call that is not counted."""
    calls = max(int(CALLS_SECONDS / seconds(task.call, device)), 1)
    return 1000 * seconds(lambda: [task.call() for _ in range(calls)], device) / (calls * task.images)


def in_turn(columns: dict[str, list[Task]], rounds: int, device: torch.device) -> dict[str, list[float]]:
    """For every column of tasks the milliseconds per image in each turn, averaged over the tasks, one per severity.

    Within a turn the columns take turns at each severity.
    """
    turns: dict[str, list[float]] = {key: [] for key in columns}
    begun, done = time.perf_counter(), 0
    while done < rounds and (done < 2 or time.perf_counter() - begun < TURNS_SECONDS):
        times = [[milliseconds(task, device) for task in row] for row in zip(*columns.values(), strict=True)]
        for turn, column in zip(turns.values(), zip(*times, strict=True), strict=True):
            turn.append(statistics.mean(column))
        done += 1
    return turns


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
