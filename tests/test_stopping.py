"""Signals are noted instead of ending the process; a handler that was there before gets the signal at the end."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from gch_bench import stopping
from gch_bench.stopping import Stopped, stop_requests


@pytest.fixture
def restored() -> Iterator[None]:
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
    before = {number: signal.getsignal(number) for number in numbers}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_without_an_earlier_handler(number: signal.Signals, tmp_path: Path, restored: None) -> None:
    before = signal.getsignal(number)
    with stop_requests() as requests:
        assert requests == []
        signal.raise_signal(number)
        assert requests == [number]
        signal.raise_signal(signal.SIGTERM)  # SLURM may send a second one
    assert signal.getsignal(number) == before
    stopped = Stopped(number, tmp_path)
    assert str(stopped) == f"stopped by {number.name}; the same command continues it ({tmp_path})"
    with pytest.raises(SystemExit) as ended:
        stopped.end()
    assert ended.value.code == 128 + number


def test_a_second_ctrl_c_ends_at_once(restored: None) -> None:
    with stop_requests() as requests:
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert requests == [signal.SIGTERM]


def test_a_signal_that_comes_again_much_later_ends_at_once(restored: None, monkeypatch: pytest.MonkeyPatch) -> None:
    with stop_requests():
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        monkeypatch.setattr(stopping, "PATIENCE", 0.0)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2])
def test_an_earlier_handler_gets_the_signal_at_the_end(number: signal.Signals, tmp_path: Path, restored: None) -> None:
    """As submitit's, which logs SIGTERM, and on SIGUSR2 requeues the job and exits."""
    got: list[int] = []
    signal.signal(number, lambda number, frame: got.append(number))
    with stop_requests() as requests:
        signal.raise_signal(number)
    assert (requests, got) == ([number], [])
    with pytest.raises(SystemExit) as ended:
        Stopped(number, tmp_path).end()
    assert (ended.value.code, got) == (128 + number, [number])


def test_a_signal_that_nobody_handles_is_left_alone(restored: None) -> None:
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    with stop_requests() as requests:
        signal.raise_signal(signal.SIGUSR2)
    assert requests == []
