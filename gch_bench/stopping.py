"""Stopping on request: a signal is noted, the caller stops between two steps, writes what it must, and then ends the process.

The signals are SIGTERM, SIGINT (Ctrl-C) and SIGUSR1; SIGUSR2 too, where somebody has installed a handler for it. submitit
installs one that requeues its SLURM job. Such an earlier handler gets the signal after the checkpoint, in `Stopped.end`.
"""

import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import NoReturn

PATIENCE = 20.0  # seconds for the step that is at work; SLURM and others may send several signals within a moment
NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


class Stopped(Exception):
    """Raised after one of the signals, when the work has stopped between two steps and everything is written."""

    def __init__(self, number: int, path: Path) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}; the same command continues it ({path})")
        self.number = number

    def end(self) -> NoReturn:
        """End this process: give the signal to the handler that was there before, then exit with code 128 + its number."""
        handler = _earlier(self.number)
        if callable(handler):
            handler(self.number, None)
        sys.exit(128 + self.number)


@contextmanager
def stop_requests() -> Iterator[list[int]]:
    """Within the context the numbers of the signals are appended to the yielded list instead of ending the process.

    The caller must look at the list between two steps and raise Stopped. A second Ctrl-C raises KeyboardInterrupt at once, and
    so does any signal that comes PATIENCE seconds after the first one or later, because a step may never end (for instance
    while it waits for a file server that is gone).
    """
    requests: list[int] = []
    first = 0.0

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal first
        if requests and (number == signal.SIGINT or time.monotonic() - first >= PATIENCE):
            raise KeyboardInterrupt
        first = first if requests else time.monotonic()
        requests.append(number)

    caught = [number for number in NUMBERS if number != signal.SIGUSR2 or callable(_earlier(number))]
    before = {number: signal.signal(number, note) for number in caught}
    try:
        yield requests
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _earlier(number: int) -> object:
    """The handler that this process has for the signal; None where it is Python's own or the system's default."""
    handler = signal.getsignal(number)
    return None if handler in (signal.SIG_DFL, signal.SIG_IGN, signal.default_int_handler) else handler
