"""scripts/corruption_parity.py: its intervals against statsmodels and simulation, and its comparison of predictions."""

import itertools
from pathlib import Path

import corruption_parity
import numpy as np
import pytest
import torch
from corruption_parity import Interval, Row, compare, line, paired_difference, photographs, share
from PIL import Image
from scipy.stats import binomtest
from torch import Tensor

from gch_bench.errors import UserError


def pairs(both: int, gained: int, lost: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    """Two boolean arrays with these counts of pairs: true in both, in the second alone, in the first alone, in neither."""
    counts = (both, gained, lost, neither)
    first = np.repeat([True, False, True, False], counts)
    second = np.repeat([True, True, False, False], counts)
    return first, second


@pytest.mark.parametrize(("hits", "count"), [(0, 7), (3, 10), (50, 50)])
def test_a_share_has_wilsons_interval(hits: int, count: int) -> None:
    expected = binomtest(hits, count).proportion_ci(method="wilson")
    found = share(np.arange(count) < hits)
    assert found.estimate == hits / count
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))


def test_a_paired_difference_by_hand() -> None:
    # 100 pairs, 12 gained, 5 lost; with a half more of each kind: 12.5 and 5.5 of 102.
    found = paired_difference(*pairs(40, 12, 5, 43))
    middle = (12.5 - 5.5) / 102
    half = 1.959964 * (((12.5 + 5.5) / 102 - middle**2) / 102) ** 0.5
    assert found.estimate == pytest.approx(0.07)
    assert (found.low, found.high) == pytest.approx((middle - half, middle + half), abs=1e-6)


def test_a_paired_difference_where_no_pair_differs_has_a_width() -> None:
    found = paired_difference(*pairs(30, 0, 0, 20))
    assert found.estimate == 0
    assert -0.05 < found.low < 0 < found.high < 0.05


def test_a_paired_difference_turns_its_sign_with_the_order() -> None:
    first, second = pairs(10, 7, 2, 11)
    there, back = paired_difference(first, second), paired_difference(second, first)
    assert there == pytest.approx(Interval(-back.estimate, -back.high, -back.low))


@pytest.mark.parametrize("law", [(0.5, 0.1, 0.05, 0.35), (0.9, 0.02, 0.02, 0.06), (0.1, 0.4, 0.3, 0.2)])
def test_the_paired_interval_covers_the_truth_in_95_of_100_or_a_little_more(law: tuple[float, ...]) -> None:
    rng, true = np.random.default_rng(0), law[1] - law[2]
    intervals = [paired_difference(*pairs(*rng.multinomial(60, law))) for _ in range(1000)]
    assert 0.93 <= np.mean([each.low <= true <= each.high for each in intervals]) <= 0.995


def test_a_row_compares_the_right_predictions() -> None:
    clean, ours, theirs, again = np.array([[1, 2, 3, 4], [1, 2, 9, 4], [1, 8, 9, 7], [1, 2, 9, 5]])
    row = Row.of(clean, ours, theirs, again)
    assert [each.estimate for each in row] == [0.75, 0.25, -0.5, 0.5, 0.75, -0.25]
    assert line("fog", row).count("|") == 8


def mean_level(images: Tensor) -> Tensor:
    """Logits of 256 classes: the class is the mean grey level."""
    return torch.nn.functional.one_hot(images.double().mean((1, 2, 3)).long(), 256).double()


def test_predictions_are_compared_image_by_image(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def brighter(images: Tensor, name: str, severity: int, ids: Tensor, seed: int) -> Tensor:
        calls.append((name, severity, seed, ids.tolist()))
        return images + (ids[:, None, None, None] % 2).to(torch.uint8) * seed  # the odd images, by the seed

    monkeypatch.setattr(corruption_parity, "corrupt", brighter)
    monkeypatch.setattr(corruption_parity, "BATCH", 3)
    images = torch.arange(8, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 4, 5) * 9
    clean = mean_level(images).argmax(1).numpy()
    row = compare("fog", 2, images, clean, mean_level, lambda image, name, severity: image.astype(float) + 0.5, seed=1)
    assert [each.estimate for each in row] == [0.5, 1, 0.5, 0.5, 0.5, 0]
    assert calls == list(
        itertools.chain.from_iterable([("fog", 2, s, ids) for s in (1, 2)] for ids in ([0, 1, 2], [3, 4, 5], [6, 7]))
    )
    row = compare("contrast", 2, images, clean, mean_level, lambda image, name, severity: image, seed=1)
    assert row.seeds.estimate == 1
    assert len(calls) == 9


def test_photographs_are_spread_over_the_folder(tmp_path: Path) -> None:
    for number in range(6):
        (tmp_path / str(number % 2)).mkdir(exist_ok=True)
        Image.new("RGB", (300, 260), (10 * number, 0, 0)).save(tmp_path / str(number % 2) / f"{number}.PNG")
    (tmp_path / "notes.txt").write_text("not a photograph")
    found = photographs(tmp_path, 3)
    assert found.shape == (3, 3, 224, 224)
    assert found[:, 0, 0, 0].tolist() == [0, 40, 30]
    with pytest.raises(UserError, match="must hold at least 7 photographs"):
        photographs(tmp_path, 7)
