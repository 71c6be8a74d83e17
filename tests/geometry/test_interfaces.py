"""Each column of interfaces.csv against NumPy, and what alignment made on purpose must show."""

import math

import numpy as np
import pytest
import torch
from geometry_chains import QUICK, gaussian, orthogonal, plain, power_law, report, residual, with_values
from torch import Tensor

from gch_bench.geometry.analysis import Options
from gch_bench.geometry.chains import Factor
from gch_bench.geometry.factors import analysed
from gch_bench.geometry.interfaces import Meeting, interface_row
from gch_bench.results.geometry import BLOCK, BRANCH
from gch_bench.spectral.transport import transport_of


def row_of(first: Tensor, second: Tensor, classifier: bool = False, seed: int = 0) -> dict:
    factors = Factor("a", first, dtype=torch.float64), Factor("b", second, dtype=torch.float64, classifier=classifier)
    one, other = (analysed(factor.name, factor.matrix, factor, 0.95) for factor in factors)
    meeting = Meeting(2, BLOCK, one, other)
    return interface_row(meeting, transport_of(one.parts, other.parts, one.window, other.window), seed)


def haar(size: int, generator: np.random.Generator) -> np.ndarray:
    q, r = np.linalg.qr(generator.standard_normal((size, size)))
    return q * np.sign(np.diag(r))


def window(values: np.ndarray) -> int:
    p = values**2 / (values**2).sum()
    return int(np.searchsorted(p.cumsum(), 0.5 - 1e-12)) + 1


def numbers(first: np.ndarray, second: np.ndarray) -> tuple[float, float, float]:
    """Energy gain, slack ratio and mean cos^2 of the principal angles, by their definitions."""
    both = second @ first
    gain = len(first) * np.linalg.norm(both) ** 2 / (np.linalg.norm(first) * np.linalg.norm(second)) ** 2
    left, s1, _ = np.linalg.svd(first)
    _, s2, right = np.linalg.svd(second)
    r = [math.log(s[0] * math.sqrt(len(s)) / np.linalg.norm(s)) for s in (s1, s2)]
    scale = math.sqrt(len(s1) * len(s2)) / (np.linalg.norm(s1) * np.linalg.norm(s2))
    slack = sum(r) - math.log(np.linalg.norm(both, 2) * scale)
    k1, k2 = window(s1), window(s2)
    cosines = np.linalg.svd(right[:k2] @ left[:, :k1], compute_uv=False)
    return gain, slack / sum(r), float((cosines**2).mean())


@pytest.mark.parametrize("shapes", [((12, 9), (10, 12)), ((10, 14), (10, 10)), ((8, 30), (40, 8))])
def test_every_column_against_numpy(shapes: tuple) -> None:
    first, second = gaussian(*shapes[0], 1), gaussian(*shapes[1], 2)
    row, a, b = row_of(first, second), first.numpy(), second.numpy()
    gain, slack, cosine = numbers(a, b)
    s1, s2 = np.linalg.svd(a, compute_uv=False), np.linalg.svd(b, compute_uv=False)
    r = [math.log(s[0] * math.sqrt(len(s)) / np.linalg.norm(s)) for s in (s1, s2)]
    expected = {
        "shared": shapes[0][0],
        "energy_gain": gain,
        "energy_gain_null": 1.0,
        "slack_ratio": slack,
        "mean_cosine_squared": cosine,
        "angle_window_first": window(s1),
        "angle_window_second": window(s2),
        "angle_null": max(window(s1), window(s2)) / shapes[0][0],
        "angle_excess": cosine - max(window(s1), window(s2)) / shapes[0][0],
        "budget": (1 - slack) * sum(r),
        "slack": slack * sum(r),
        "modes_first": min(shapes[0]),
        "modes_second": min(shapes[1]),
        "product_norm": np.linalg.norm(b @ a),
    }
    assert [row[name] for name in ("index", "form", "first", "second")] == [2, BLOCK, "a", "b"]
    assert {name: row[name] for name in expected} == pytest.approx(expected, rel=1e-8)
    u1, v1 = np.linalg.svd(a, full_matrices=False)[::2]
    u2, v2 = np.linalg.svd(b, full_matrices=False)[::2]
    k1, k2 = row["rank_first"], row["rank_second"]
    cut = ((u2[:, :k2] * s2[:k2]) @ v2[:k2]) @ ((u1[:, :k1] * s1[:k1]) @ v1[:k1])
    assert row["truncation_error"] == pytest.approx(np.linalg.norm(b @ a - cut))
    assert row["truncation_error"] <= row["truncation_bound"] * (1 + 1e-12)
    assert row["truncation_bound"] <= row["fitted_bound"] * (1 + 1e-12)


def test_distances_of_the_spectra() -> None:
    first, second = gaussian(12, 10, 0), gaussian(10, 12, 1)
    row = row_of(first, second)
    p, q = (np.linalg.svd(each.numpy(), compute_uv=False) ** 2 for each in (first, second))
    p, q = p / p.sum(), q / q.sum()
    hellinger = ((np.sqrt(p) - np.sqrt(q)) ** 2).sum() / 2
    assert row["hellinger_squared"] == pytest.approx(hellinger)
    assert row["bures_squared"] == pytest.approx(((np.sqrt(10 * p) - np.sqrt(10 * q)) ** 2).sum())
    assert row["spectrum_kl"] == pytest.approx((p * np.log(p / q)).sum())
    unequal = row_of(first, gaussian(5, 12, 1))
    assert all(math.isnan(unequal[name]) for name in ("bures_squared", "spectrum_kl", "exponent_change"))
    assert 0 < unequal["hellinger_squared"] < 1


def test_nulls_against_dense_rotations() -> None:
    """Mean and standard deviation of each number if a Haar-random rotation stands between the two factors."""
    generator = np.random.default_rng(0)
    first, second = power_law(16, 12, 1.5, 0), power_law(14, 16, 1.0, 5)
    drawn = np.array([numbers(haar(16, generator) @ first.numpy(), second.numpy()) for _ in range(600)])
    row = row_of(first, second)
    mean, sd = drawn.mean(0), drawn.std(0)
    for at, name in enumerate(("energy_gain", "slack_ratio")):
        few = 4 * sd[at] * math.sqrt(1 / 600 + (1 / 79 if name == "slack_ratio" else 0))
        assert row[f"{name}_null"] == pytest.approx(mean[at], abs=few)
        z = (row[name] - row[f"{name}_null"]) / row[f"{name}_z"]
        assert z == pytest.approx(sd[at], rel=0.1 if name == "energy_gain" else 0.35)
        assert row[f"{name}_percentile"] == pytest.approx(100 * (drawn[:, at] < row[name]).mean(), abs=20)
    assert row["angle_null"] == pytest.approx(mean[2], abs=4 * sd[2] / math.sqrt(600))
    assert row["angle_excess"] / row["angle_excess_z"] == pytest.approx(sd[2], rel=0.1)


def test_the_null_of_permuted_channels_knows_large_channels() -> None:
    """Rotations find factors aligned whose large channels meet; and so do permutations, for which large would meet small."""
    sizes = torch.linspace(0.2, 3, 40, dtype=torch.float64)
    scaled = row_of(sizes[:, None] * gaussian(40, 40, 0), gaussian(40, 40, 1) * sizes)
    assert scaled["energy_gain_z"] > 5
    assert scaled["energy_gain_percentile"] == 100
    assert scaled["energy_gain_permuted"] == pytest.approx(1, abs=0.05)
    assert scaled["energy_gain_permuted_z"] > 5, "each large channel meets a large one"
    left = orthogonal(40, 40, 2)
    turned = left * torch.arange(1, 41, dtype=torch.float64) ** -0.5
    assert row_of(turned @ orthogonal(40, 40, 3), turned.mT)["energy_gain_permuted_z"] > 5
    generator = np.random.default_rng(0)
    a, b = gaussian(6, 5, 0).numpy(), gaussian(4, 6, 1).numpy()
    gains = []
    for _ in range(4000):
        order = generator.permutation(6)
        gains.append(6 * np.linalg.norm(b @ a[order]) ** 2 / (np.linalg.norm(a) * np.linalg.norm(b)) ** 2)
    null = row_of(torch.from_numpy(a), torch.from_numpy(b))["energy_gain_permuted"]
    assert null == pytest.approx(np.mean(gains), abs=4 * np.std(gains) / math.sqrt(4000))


def test_windows_before_a_classifier() -> None:
    """Classes tell apart one direction fewer than there are; no window is longer than the spectra."""
    first = gaussian(20, 20, 0)
    row = row_of(first, gaussian(5, 20, 1), classifier=True)
    assert (row["angle_window_first"], row["angle_window_second"]) == (4, 4)
    assert row["angle_null"] == pytest.approx(4 / 20)
    assert row_of(first, gaussian(1, 20, 1), classifier=True)["angle_window_first"] == 1
    many = row_of(first, gaussian(50, 20, 1), classifier=True)
    assert many["angle_window_second"] < 10, "with more classes than half the directions R_.50 counts"
    low = with_values([1.0, 1.0], 20, 20)
    assert row_of(low, gaussian(9, 20, 1), classifier=True)["angle_window_first"] == 2
    assert row_of(first, gaussian(5, 20, 1))["angle_window_second"] != 4


def test_branch_rows_are_of_what_is_written_and_read() -> None:
    chain = residual(3)
    table = report(chain).interfaces
    assert table[["index", "form"]].to_numpy().tolist() == [[0, BLOCK], [0, BRANCH], [1, BLOCK], [1, BRANCH]]
    for i in range(2):
        block, branch = table[table["index"] == i].to_dict("records")
        write, read = chain[i].write, chain[i + 1].read
        assert write is not None
        assert read is not None
        gain, slack, cosine = numbers(write.numpy(), read.numpy())
        assert (branch["energy_gain"], branch["slack_ratio"]) == (pytest.approx(gain), pytest.approx(slack))
        assert branch["mean_cosine_squared"] == pytest.approx(cosine)
        assert branch["product_norm"] == pytest.approx(float((read @ write).norm()))
        assert (branch["first"], branch["second"], branch["shared"]) == (f"block.{i}", f"block.{i + 1}", 8)
        assert block["product_norm"] == pytest.approx(float((chain[i + 1].matrix @ chain[i].matrix).norm()))
        assert block["energy_gain"] == pytest.approx(numbers(chain[i].matrix.numpy(), chain[i + 1].matrix.numpy())[0])


def test_plain_matrices_and_dead_branches_have_no_branch_row() -> None:
    assert set(report(plain()).interfaces["form"]) == {BLOCK}
    chain = residual(3)
    for end in ("read", "write"):
        dead = list(chain)
        dead[1] = dead[1]._replace(matrix=torch.eye(8, dtype=torch.float64), **{end: torch.zeros_like(getattr(dead[1], end))})
        forms = report(dead).interfaces.groupby("index")["form"].apply(list).to_dict()
        # the block is the identity, which its neighbours' branches write to and read from
        assert forms == {0: [BLOCK, BRANCH], 1: [BLOCK, BRANCH]}
        alone = [each._replace(write=torch.zeros_like(each.write)) for each in chain if each.write is not None]
        assert set(report(alone).interfaces["form"]) == {BLOCK}


def test_a_block_behind_a_plain_matrix() -> None:
    """A classifier is read by itself: its branch row has what the last branch writes."""
    chain = [*residual(2), Factor("head", gaussian(5, 8, 9), classifier=True)]
    row = report(chain).interfaces.query("index == 1 and form == 'branch'").iloc[0]
    assert chain[1].write is not None
    assert row["product_norm"] == pytest.approx(float((chain[2].matrix @ chain[1].write).norm()))
    assert (row["second"], row["angle_window_second"]) == ("head", 4)


def test_alignment_on_purpose_is_found_and_chance_is_not() -> None:
    """The whole of it: W1 of each block reads what the block before writes; the identity shortcuts hide it from the blocks."""
    random = report(residual(5, 24, 48)).interfaces.query("form == 'branch'")
    assert random["energy_gain_z"].abs().max() < 3.5
    assert abs(random["energy_gain_z"].mean()) < 2
    assert random["angle_excess_z"].abs().max() < 3.5
    assert (random["energy_gain_percentile"] >= 97.5).sum() <= 1
    made = report(residual(5, 24, 48, aligned=0.3))
    found = made.interfaces.query("form == 'branch'")
    assert (found["energy_gain_z"] > 5).all()
    assert (found["energy_gain_percentile"] == 100).all()
    assert (found["slack_ratio_percentile"] < 2.5).all()
    assert made.summary["aligned_share"] == 1


def test_a_product_of_zero_is_refused() -> None:
    one, other = torch.diag(torch.tensor([1.0, 0.0])), torch.diag(torch.tensor([0.0, 1.0]))
    with pytest.raises(ValueError, match=r"^interface a -> b: the product of its factors is zero, it carries nothing$"):
        report([Factor("a", one), Factor("b", other)])


def test_the_seed_is_of_the_rotations_alone() -> None:
    one, other = report(plain(), QUICK).interfaces, report(plain(), Options(*QUICK[:2], seed=1)).interfaces
    drawn = {name for name in one if one[name].dtype == float and not one[name].equals(other[name])}
    assert "slack_ratio_null" in drawn
    assert all(name.endswith(("_null", "_z", "_percentile")) or name == "energy_gain_permuted" for name in drawn), drawn
    assert report(plain(), QUICK).interfaces.equals(one)
