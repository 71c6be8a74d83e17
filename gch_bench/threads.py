"""Threads that run torch side by side, one torch thread each: for work that comes in many independent pieces on a CPU."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from threading import Barrier
from typing import TypeVar

import torch

Piece = TypeVar("Piece")
Result = TypeVar("Result")


@contextmanager
def torch_threads(count: int | None) -> Iterator[None]:
    """Within the context torch computes with this many CPU threads (None: as it does anyway), afterwards as before."""
    before = torch.get_num_threads()
    try:
        if count is not None:
            torch.set_num_threads(count)
        yield
    finally:
        torch.set_num_threads(before)


def pool() -> ThreadPoolExecutor:
    """As many threads as torch may use, kept from call to call. Threads of the process that start while a first call makes them
    see one torch thread."""
    return _pool(torch.get_num_threads(), os.getpid())


@lru_cache(maxsize=1)
def _pool(threads: int, process: int) -> ThreadPoolExecutor:
    """A forked process has none of its parent's threads and makes its own."""
    made, together = ThreadPoolExecutor(threads, initializer=_take_one_torch_thread), Barrier(threads)
    for _ in made.map(lambda _: together.wait(), range(threads)):  # all of them start now
        pass
    torch.set_num_threads(threads)  # they have set that of threads still to come as well
    return made


def _take_one_torch_thread() -> None:
    torch.set_num_threads(1)
    torch.get_num_threads()  # torch's first look at a thread gives it the number set last by any thread: now, not later


def few_at_a_time(function: Callable[[Piece], Result], pieces: Iterable[Piece]) -> Iterator[Result]:
    """``function`` of every piece, in order; no more pieces than threads are taken ahead, so they may be large."""
    threads = torch.get_num_threads()
    if threads == 1:
        yield from map(function, pieces)
        return
    running: deque[Future[Result]] = deque()
    for piece in pieces:
        running.append(pool().submit(function, piece))
        if len(running) > threads:
            yield running.popleft().result()
    while running:
        yield running.popleft().result()
