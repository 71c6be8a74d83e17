"""Keyed draws against the reference generator's published numbers, another implementation, and their distributions."""

import numpy as np
import pytest
import torch
from scipy import stats

from gch_bench.noise.draws import CPU_BLOCK, Draws, GlobalDraws, KeyedDraws, derived_keys, image_keys, stream
from gch_bench.rng import seed_of

WORD = 2**64
VIGNA = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821]


def splitmix64(key: int, count: int) -> list[int]:
    """Vigna's C code, which keeps a state, in Python's unbounded integers."""
    state, numbers = key % WORD, []
    for _ in range(count):
        state = (state + 0x9E3779B97F4A7C15) % WORD
        z = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) % WORD
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % WORD
        numbers.append(z ^ (z >> 31))
    return numbers


def unsigned(numbers: torch.Tensor) -> list[int]:
    return [number % WORD for number in numbers.tolist()]


def keys(count: int, *names: int | str) -> torch.Tensor:
    return image_keys(torch.arange(count), "test", *names)


def test_stream_is_the_reference() -> None:
    assert unsigned(stream(torch.tensor([1234567]), 0, 5)[0]) == VIGNA == splitmix64(1234567, 5)
    extreme = torch.tensor([0, -1, 2**63 - 1, -(2**63)])
    for key, row in zip(extreme.tolist(), stream(extreme, 0, 50), strict=True):
        assert unsigned(row) == splitmix64(key, 50)
    assert torch.equal(stream(extreme, 0, 50)[:, 20:], stream(extreme, 20, 30))


def test_image_keys_are_numbers_of_one_stream() -> None:
    ids = torch.tensor([3, 0, 7, 3])
    numbers = splitmix64(seed_of(5, "training noise", 2), 8)
    assert unsigned(image_keys(ids, 5, "training noise", 2)) == [numbers[i] for i in ids.tolist()]
    assert ids.tolist() == [3, 0, 7, 3], "the ids are left alone"
    every = torch.cat([image_keys(torch.arange(50_000), seed) for seed in (0, 1)])
    every = torch.cat([every, derived_keys(every, "stage", "L4"), derived_keys(every, "stage", "L3")])
    assert len(every.unique()) == 300_000


def test_numbers_follow_from_the_stream() -> None:
    """Uniform and normal numbers by the formulas of the docstrings, in float64 from the unbounded integers."""
    row, *_ = splitmix64(int(keys(1)[0]), 3), None
    halves = [half for number in row for half in (number % 2**32, number // 2**32)]
    signed = [half - 2**32 if half >= 2**31 else half for half in halves]
    expected = [(half // 2**9 + 2**22 + 0.5) / 2**23 for half in signed]
    uniform = KeyedDraws(keys(1)).uniform((1, 5))
    assert uniform[0].tolist() == expected[:5], "exactly"
    normal = []
    for low, high in zip(signed[::2], halves[1::2], strict=True):
        radius = np.sqrt(-2 * np.log((high % 2**31 + 0.5) / 2**31))
        normal += [radius * np.cos(np.pi * low / 2**31), radius * np.sin(np.pi * low / 2**31)]
    np.testing.assert_allclose(KeyedDraws(keys(1)).normal((1, 6))[0], normal, rtol=1e-5, atol=1e-6)


def test_extreme_integers_stay_inside_the_open_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    extreme = torch.tensor([[0, -1, 2**63 - 1, -(2**63), 2**31 - 1, 2**31, 2**32 - 1, 2**32]])
    monkeypatch.setattr("gch_bench.noise.draws.stream", lambda keys_B, start, count: extreme.clone())
    uniform = KeyedDraws(torch.tensor([0])).uniform((1, 16))
    assert uniform.min() == 2**-24
    assert uniform.max() == 1 - 2**-24
    normal = KeyedDraws(torch.tensor([0])).normal((1, 16))
    assert torch.isfinite(normal).all()
    assert normal.abs().max() == pytest.approx(np.sqrt(64 * np.log(2)))


@pytest.mark.parametrize("draws", [KeyedDraws(keys(4)), GlobalDraws(torch.device("cpu"))], ids=["keyed", "global"])
def test_distributions(draws: Draws) -> None:
    """Kolmogorov-Smirnov, and the first four moments within 5 standard errors: in all, along a row and across rows."""
    torch.manual_seed(0)
    count = 4 * 150_000
    uniform, normal = (draw((4, 150, 1000)).double() for draw in (draws.uniform, draws.normal))
    for values, law in ((uniform, "uniform"), (normal, "norm")):
        assert stats.kstest(values.flatten().numpy(), law).pvalue > 1e-4
        for row in values.flatten(1):
            assert stats.kstest(row.numpy(), law).pvalue > 1e-4
    for power, mean, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs(float((normal**power).mean()) - mean) < 5 * (variance / count) ** 0.5
    assert abs(float(uniform.mean()) - 0.5) < 5 * (1 / 12 / count) ** 0.5


def test_neighbours_are_independent() -> None:
    """Correlations of the numbers, of their squares and of the bits: between images, places, calls, stages and epochs."""
    count, ids = 200_000, torch.arange(200_000)
    first = KeyedDraws(image_keys(ids, 0, 0))
    columns = {
        "places": first.normal((count, 4)),
        "next call": first.normal((count, 2)),
        "stage": KeyedDraws(derived_keys(image_keys(ids, 0, 0), "stage", "L4")).normal((count, 2)),
        "epoch": KeyedDraws(image_keys(ids, 0, 1)).normal((count, 2)),
        "next image": KeyedDraws(image_keys(ids + 1, 0, 0)).normal((count, 2)),
    }
    table = torch.cat(list(columns.values()), 1)
    for values in (table, table.square(), (table > 0).double()):
        correlation = np.corrcoef(values.double().numpy(), rowvar=False) - np.eye(table.shape[1])
        assert np.abs(correlation).max() < 5 / np.sqrt(count)


@pytest.mark.parametrize("columns", [1, 7, CPU_BLOCK // 2 + 3])
def test_rows_depend_on_their_key_alone(columns: int) -> None:
    """The same bits in a batch of any size and order, also where a large draw is made in several blocks."""
    whole = KeyedDraws(keys(6))
    together = [whole.normal((6, 3)), whole.uniform((6, columns)), whole.normal((6, columns))]
    for rows in ([2], [5, 1], [3, 2, 1, 0]):
        part = KeyedDraws(keys(6)[rows])
        sizes = (3, columns, columns)
        alone = [draw((len(rows), size)) for draw, size in zip((part.normal, part.uniform, part.normal), sizes, strict=True)]
        for some, every in zip(alone, together, strict=True):
            assert torch.equal(some, every[rows])


def test_shapes() -> None:
    for draws in (KeyedDraws(keys(3)), GlobalDraws(torch.device("cpu"))):
        for draw in (draws.uniform, draws.normal):
            assert draw((3, 2, 5, 1)).shape == (3, 2, 5, 1)
            assert draw((3, 0, 4)).shape == (3, 0, 4)
            assert draw((3, 2)).dtype == torch.float32
    assert KeyedDraws(keys(0)).normal((0, 4)).shape == (0, 4)
    with pytest.raises(ValueError, match=r"one key per image \(4\), got 3"):
        KeyedDraws(keys(3)).normal((4, 2))
