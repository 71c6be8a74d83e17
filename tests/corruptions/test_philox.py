"""The random draws of the corruptions: Philox by its published answers, both implementations by a third one, and their laws."""

import numpy as np
import pytest
import torch
from corruption_references import DEVICES, Draws, philox
from scipy import stats

from gch_bench.corruptions.batched import draws as batched_draws
from gch_bench.corruptions.compiled import draws as compiled_draws
from gch_bench.corruptions.draws import image_keys

KEYS = image_keys([0, 1, 2**40], 0, "fog", 3)
KINDS = ("words", "uniform", "signed", "normal")


@pytest.mark.parametrize(
    ("counter", "key", "answer"),
    [
        ([0] * 4, [0] * 2, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
def test_the_tests_own_philox_gives_the_published_answers(counter: list, key: list, answer: str) -> None:
    """kat_vectors of Random123, the authors' library."""
    assert " ".join(f"{word:08x}" for word in philox(counter, key)) == answer


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stream", [0, 3])
@pytest.mark.parametrize("count", [1, 1003])
@pytest.mark.parametrize("device", DEVICES)
def test_both_implementations_draw_what_the_definition_says(kind: str, stream: int, count: int, device: str) -> None:
    batch = getattr(batched_draws, kind)(torch.tensor(KEYS, device=device), stream, count).cpu().numpy()
    assert batch.shape == (len(KEYS), count)
    for key, row in zip(KEYS, batch, strict=True):
        expected = getattr(Draws(key), kind)(stream, count)
        alone = getattr(compiled_draws, kind)(key, stream, count)
        if kind == "normal":
            np.testing.assert_allclose(row, expected, rtol=1e-6, atol=1e-7)
            np.testing.assert_allclose(alone, expected, rtol=1e-6, atol=1e-6)
        else:
            assert np.array_equal(row, expected)
            assert np.array_equal(alone, expected)


@pytest.mark.parametrize("n", [1, 5, 64])
def test_whole_numbers_below_n(n: int) -> None:
    expected = np.stack([Draws(key).below(2, 1003, n) for key in KEYS])
    assert np.array_equal(batched_draws.below(torch.tensor(KEYS), 2, 1003, n).numpy(), expected)
    words = compiled_draws.words(KEYS[0], 2, 1003)
    assert [compiled_draws.to_below(word, n) for word in words[:50]] == expected[0, :50].tolist()
    assert set(expected.ravel()) == set(range(n))


def test_normal_quantiles_in_the_far_tails() -> None:
    """Words that no short stream contains: the smallest, the largest and those at the joints of the formula."""
    p = np.array([2.0**-33, 1e-9, 0.0749, 0.0751, 0.5, 0.9249, 0.9251, 1 - 2.0**-33])
    middle = np.abs(p - 0.5) <= 0.425
    tails = [compiled_draws._tail(min(value, 1 - value)) for value in p[~middle]]
    np.testing.assert_allclose(tails, np.abs(stats.norm.ppf(p[~middle])), rtol=1e-6)


@pytest.mark.parametrize(
    ("kind", "law"), [("uniform", stats.uniform()), ("signed", stats.uniform(-1, 2)), ("normal", stats.norm())]
)
def test_draws_follow_their_law_and_streams_are_uncorrelated(kind: str, law: stats.rv_continuous) -> None:
    drawn = [getattr(compiled_draws, kind)(key, stream, 100_000).astype(float) for key in KEYS[:2] for stream in (0, 1)]
    for one in drawn:
        assert stats.kstest(one, law.cdf).pvalue > 1e-4
    correlations = np.corrcoef([*drawn, drawn[0][np.arange(100_000) - 1]])
    assert np.abs(correlations[~np.eye(5, dtype=bool)]).max() < 5 / 100_000**0.5


def test_keys_differ_by_seed_corruption_severity_and_image() -> None:
    base = (3, 0, "fog", 3)
    others = [(4, 0, "fog", 3), (3, 1, "fog", 3), (3, 0, "snow", 3), (3, 0, "fog", 4)]
    keys = [image_keys([id_], *rest)[0] for id_, *rest in (base, *others)]
    assert len(set(keys)) == 5
    assert all(0 <= key < 2**63 for key in keys)
