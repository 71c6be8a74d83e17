"""A pool of threads that run torch operations side by side on a CPU, for work that consists of many independent pieces.

Torch itself may use several threads for one operation. In the threads of the pool it uses one, because the pool keeps all cores
busy already.
"""

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
    """Within the context torch uses ``count`` CPU threads (None: no change); afterwards as many as before."""
    before = torch.get_num_threads()
    try:
        if count is not None:
            torch.set_num_threads(count)
        yield
    finally:
        torch.set_num_threads(before)


def pool() -> ThreadPoolExecutor:
    """The pool of as many threads as torch may use here; it is made by the first call and kept.

    Other threads of the process that start just while the pool is made see one torch thread.
    """
    return _pool(torch.get_num_threads(), os.getpid())


@lru_cache(maxsize=1)
def _pool(threads: int, process: int) -> ThreadPoolExecutor:
    """``process`` is a key of the cache because a forked process has none of its parent's threads and must make its own."""
    made, together = ThreadPoolExecutor(threads, initializer=_take_one_torch_thread), Barrier(threads)
    for _ in made.map(lambda _: together.wait(), range(threads)):  # makes all threads start now
        pass
    torch.set_num_threads(threads)  # the pool's threads have also set the number for threads that start later
    return made


def _take_one_torch_thread() -> None:
    torch.set_num_threads(1)
    torch.get_num_threads()  # torch fixes a thread's number at its first use, to the one that any thread set last: fix it now


def few_at_a_time(function: Callable[[Piece], Result], pieces: Iterable[Piece]) -> Iterator[Result]:
    """Apply ``function`` to every piece in threads, and yield the results in order.

    Only about as many pieces as there are threads are taken ahead of the result that is yielded, so pieces may be large.
    """
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
