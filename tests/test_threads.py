"""Work in pieces, side by side: the same results in order, few pieces ahead, the caller's threads as they were."""

import os
import threading
from collections.abc import Iterator

import pytest
import torch

from gch_bench.threads import few_at_a_time, pool


@pytest.fixture(params=[1, 2, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def test_results_come_in_order_and_few_pieces_are_taken_ahead(threads: int) -> None:
    taken, ahead = [], []

    def pieces() -> Iterator[int]:
        for i in range(20):
            taken.append(i)
            yield i

    for done, result in enumerate(few_at_a_time(lambda i: i * i, pieces())):
        assert result == done * done
        ahead.append(len(taken) - done)
    assert len(ahead) == 20
    assert max(ahead) <= threads + 1
    assert torch.get_num_threads() == threads


def test_each_thread_has_one_torch_thread_and_the_caller_keeps_its_own(threads: int) -> None:
    assert set(pool().map(lambda _: torch.get_num_threads(), range(8))) == {1}
    assert torch.get_num_threads() == threads
    seen: list[int] = []
    new = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
    new.start()
    new.join()
    assert seen == [threads]


def test_an_exception_reaches_the_caller(threads: int) -> None:
    def broken(i: int) -> int:
        raise ValueError(f"piece {i}")

    with pytest.raises(ValueError, match="piece 0"):
        list(few_at_a_time(broken, range(3)))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_makes_its_own_threads() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert list(pool().map(abs, [-1])) == [1]
        child = os.fork()
        if child == 0:
            os._exit(0 if list(pool().map(abs, [-3, -4])) == [3, 4] else 1)
        assert os.waitpid(child, 0)[1] == 0
    finally:
        torch.set_num_threads(before)
