"""Distributes work over processes with one torch thread each. The processes end when the run ends, in whatever way it ends.

Each process has a pipe of its own to the main process. A queue shared by all would have a lock, and a process that is stopped
while it holds this lock would block the others.
"""

import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from typing import Any, TypeVar

import torch

from gch_bench.errors import UserError

Item = TypeVar("Item")
Result = TypeVar("Result")
STOPPING = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def in_processes(
    function: Callable[[Item], Iterator[Result]], items: Sequence[Item], workers: int
) -> Iterator[Iterator[Result]]:
    """Within the context, an iterator over the results that `function(item)` yields for every item, in no certain order.

    With one worker everything runs in this process. Enter the context before a progress bar starts, because that has a thread,
    and a process with threads should not be forked.

    Args:
        workers: number of processes; no more are started than there are items.

    Raises:
        UserError: a worker process was killed. Exceptions of `function` are raised again here.
    """
    workers = min(workers, len(items))
    if workers <= 1:
        yield (result for item in items for result in function(item))
        return
    pipes: dict[Connection, multiprocessing.Process] = {}
    try:
        # The new processes inherit this block, and lift it when they have handlers of their own.
        signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
        try:
            for _ in range(workers):
                ours, theirs = multiprocessing.Pipe()
                process = multiprocessing.Process(target=_work, args=(function, theirs), daemon=True)
                process.start()
                theirs.close()
                pipes[ours] = process
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
        yield _results(pipes, items)
    finally:
        for process in pipes.values():
            process.terminate()
        for process in pipes.values():
            process.join()


def _results(pipes: Iterable[Connection], items: Sequence[Any]) -> Iterator[Any]:
    """The results of all processes. A process gets its next item when it has finished one.

    Its messages are `(result,)` for every result, None at the end of an item, or an exception.
    """
    left = iter(items)
    busy = set(pipes)
    for pipe in busy:
        with _alive():
            pipe.send(next(left))
    while busy:
        for pipe in busy & set(wait(busy)):
            with _alive():
                message = pipe.recv()
            if isinstance(message, Exception):
                raise message
            if message is not None:
                yield message[0]
                continue
            item = next(left, None)
            if item is None:
                busy.remove(pipe)
                continue
            with _alive():
                pipe.send(item)


@contextmanager
def _alive() -> Iterator[None]:
    try:
        yield
    except (EOFError, OSError) as error:
        raise UserError(
            "a worker process was killed, perhaps for lack of memory: repeat the command with fewer workers"
        ) from error


def _work(function: Callable[[Any], Iterator[Any]], pipe: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C also reaches the main process, which then ends this one
    signal.signal(signal.SIGTERM, _leave)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
    threading.Thread(target=_leave_with, args=(multiprocessing.parent_process(),), daemon=True).start()
    torch.set_num_threads(1)
    try:
        while True:
            for result in function(pipe.recv()):
                pipe.send((result,))
            pipe.send(None)
    except Exception as error:
        if not isinstance(error, UserError):
            error.add_note(traceback.format_exc())  # the traceback itself is lost when the exception is pickled
        pipe.send(error)


def _leave(number: int, frame: object) -> None:
    """Exit through an exception, so that `finally` blocks run; a second SIGTERM does not interrupt them."""
    signal.signal(signal.SIGTERM, lambda number, frame: None)
    sys.exit()


def _leave_with(parent: Any) -> None:
    """Wait for the end of the main process and exit then, so that no worker outlives a main process that was killed."""
    parent.join()
    os._exit(1)
