"""Work handed out to processes of one torch thread each, which end with the run however it ends.

Plain pipes, one a process: nothing is shared that a process could take with it when it is stopped in the middle.
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
    """Within the context, the results of `function(item)` for every item, in no certain order.

    One worker is this process. Enter before a progress bar, which has a thread: the others may be forked.

    Raises:
        UserError: a worker was killed. What the function raises.
    """
    workers = min(workers, len(items))
    if workers <= 1:
        yield (result for item in items for result in function(item))
        return
    pipes: dict[Connection, multiprocessing.Process] = {}
    try:
        signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)  # until the new process has its own handlers
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
    """Every process gets an item whenever it has finished one; its messages are (result,), None at an item's end, an error."""
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
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the main process too, which then ends this one
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
            error.add_note(traceback.format_exc())  # the main process knows only where it raised it again
        pipe.send(error)


def _leave(number: int, frame: object) -> None:
    """Tidy up, as for any exception, and exit."""
    signal.signal(signal.SIGTERM, lambda number, frame: None)
    sys.exit()


def _leave_with(parent: Any) -> None:
    """Exit when the main process was killed."""
    parent.join()
    os._exit(1)
