"""Ends a process whose group has lost a member, also where the process is busy by itself or hangs in a collective.

Rank 0 is connected with every other process by a socket of its own. A thread of each process sends a line over it every few
seconds. A process that is killed breaks its connection at once, and one whose host is gone or that was suspended falls silent;
both are lost. A process that fails says why before it leaves, and one that has done its work says so. Rank 0 passes on what it
hears. A process that learns of a loss has some seconds to end by itself; then its thread prints one line and ends it. One that
learns that another was stopped by a signal has longer, because the signal probably came to all of them, and each finishes its
step first.

The thread needs the interpreter only for moments, so that a process may be busy in one step for as long as it likes.
"""

import contextlib
import os
import selectors
import socket
import sys
import threading
import time
from typing import NamedTuple

# The lines that are sent. FAILED and STOPPED (by a signal) are followed by what happened.
BEAT, LEFT, FAILED, STOPPED = "beat", "left", "failed", "stopped"
TICK = 0.2  # seconds between two looks at whether this process is leaving
FAREWELL_SECONDS = 2.0  # for which a process that leaves waits until the others have heard of it


class _Peer(NamedTuple):
    """Another process, at the other end of `socket`."""

    rank: int
    socket: socket.socket
    heard: list[float]  # one number: when it was last heard
    buffer: bytearray  # the beginning of a line


class Heartbeat:
    """The thread of one process. `failure` tells what is known of the first loss; `leave` ends the thread."""

    def __init__(self, rank: int, peers: dict[int, socket.socket], silence: float, advice: str) -> None:
        """Start the thread.

        Args:
            peers: rank -> connected socket: on rank 0 of every other process, on the others of rank 0.
            silence: seconds without a sign of life after which a process is lost.
            advice: the end of the line that is printed.
        """
        self.rank, self.silence, self.advice = rank, silence, advice
        self._peers = {other: _Peer(other, each, [time.monotonic()], bytearray()) for other, each in peers.items()}
        self._failure: str | None = None
        self._patience = silence / 9  # seconds that this process has to end by itself after a loss
        self._lost, self._leaving = threading.Event(), threading.Event()
        self._farewell = LEFT
        self._ending = threading.Lock()  # held by whoever ends this process: its own work, or this thread
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        self._thread.start()

    def failure(self, patience: float = 1.0) -> str | None:
        """What happened to the first process that was lost, if that becomes known within `patience` seconds."""
        self._lost.wait(patience)
        return self._failure

    def leave(self, failure: str | None, stopped: bool = False) -> None:
        """Tell the others that this process leaves the group, with its error if it failed, and end the thread.

        Args:
            stopped: the failure is that a signal stopped this process.
        """
        self._ending.acquire()  # never released: from here on this thread alone decides how the process ends
        if failure is not None:
            word = STOPPED if stopped else FAILED
            self._farewell = f"{word} rank {self.rank} {word}: {' '.join(failure.split())}"
        self._leaving.set()
        self._thread.join()

    def _run(self) -> None:
        beat = -self.silence
        with selectors.DefaultSelector() as selector:
            for peer in self._peers.values():
                selector.register(peer.socket, selectors.EVENT_READ, peer)
            while not self._leaving.is_set():
                if time.monotonic() - beat >= self.silence / 9:
                    beat = time.monotonic()
                    self._say(BEAT)
                self._listen(selector)
                for peer in list(self._peers.values()):
                    if time.monotonic() - peer.heard[0] > self.silence:
                        self._lose(f"rank {peer.rank} gave no sign of life for {self.silence:g} s")
                if self._lost.is_set() and not self._leaving.wait(self._patience):
                    self._end()
            self._say(self._farewell)
            for peer in self._peers.values():
                with contextlib.suppress(OSError):
                    peer.socket.shutdown(socket.SHUT_WR)
            deadline = time.monotonic() + FAREWELL_SECONDS
            while self._peers and time.monotonic() < deadline:
                self._listen(selector)

    def _listen(self, selector: selectors.BaseSelector) -> None:
        for key, _ in selector.select(TICK):
            peer: _Peer = key.data
            try:
                received = peer.socket.recv(65536)
            except OSError:
                received = b""
            peer.heard[0] = time.monotonic()
            peer.buffer.extend(received)
            *lines, rest = bytes(peer.buffer).split(b"\n")
            peer.buffer[:] = rest
            said = [line.decode(errors="replace") for line in lines]
            failed = next((line for line in said if line.startswith((FAILED, STOPPED))), None)
            if not received or failed or LEFT in said:
                selector.unregister(peer.socket)
                peer.socket.close()
                del self._peers[peer.rank]
                if failed:
                    word, _, what = failed.partition(" ")
                    self._lose(what, word)
                elif LEFT not in said:
                    self._lose(f"rank {peer.rank} was killed, perhaps for lack of memory, or its connection broke")

    def _lose(self, what: str, word: str = FAILED) -> None:
        """Note the first loss, and pass it on."""
        if self._leaving.is_set() or self._lost.is_set():
            return
        self._failure = what
        self._patience = self.silence if word == STOPPED else self._patience
        self._say(f"{word} {what}")
        self._lost.set()

    def _say(self, line: str) -> None:
        for peer in self._peers.values():
            with contextlib.suppress(OSError):  # a connection that is broken is found when it is read
                peer.socket.sendall(f"{line}\n".encode())

    def _end(self) -> None:
        """Print the loss and end this process, unless it has begun to leave."""
        if self._ending.acquire(blocking=False):
            print(f"error: {lost_line(self.rank, self._failure, self.advice)}", file=sys.stderr, flush=True)
            os._exit(2)


def lost_line(rank: int, failure: str | None, advice: str) -> str:
    what = failure or "that process has printed why, or was killed, perhaps for lack of memory"
    return f"rank {rank} lost another process of this run: {what}; {advice}"
