"""Each column of factors.csv against NumPy, and what the spectra of known matrices must show."""

import math

import numpy as np
import pytest
import torch
from geometry_chains import gaussian, orthogonal, power_law, with_values

from gch_bench.config.diagnosis import SpectralConfig
from gch_bench.geometry.chains import Factor
from gch_bench.geometry.factors import analysed, factor_row, gaussian_numbers, spectrum_rows

LEAST = 1e-12


def row_of(matrix: torch.Tensor, dtype: torch.dtype = torch.float64, **options) -> dict:
    factor = Factor("f", matrix, dtype=dtype)
    config = SpectralConfig(**options)
    return factor_row(analysed("f", matrix, factor, config.eta), config)


def chart_by_hand(p: np.ndarray) -> tuple[float, np.ndarray]:
    """The exponent with E_a[log i] = sum p_i log i, by bisection, and its chart."""
    logs = np.log(np.arange(1, len(p) + 1))
    low, high = 0.0, 100.0
    for _ in range(200):
        a = (low + high) / 2
        q = np.exp(-a * logs)
        q /= q.sum()
        low, high = (a, high) if q @ logs > p @ logs else (low, a)
    return a, q


def rank(p: np.ndarray, eta: float) -> int:
    return int(np.searchsorted(np.cumsum(p), eta - LEAST)) + 1


@pytest.mark.parametrize("shape", [(12, 9), (10, 10), (9, 30)])
def test_every_column_against_numpy(shape: tuple[int, int]) -> None:
    matrix = gaussian(*shape, 3)
    row = row_of(matrix)
    values = np.linalg.svd(matrix.numpy(), compute_uv=False)
    p, d = values**2 / (values**2).sum(), len(values)
    a, q = chart_by_hand(p)
    logs, log_p = np.log(np.arange(1, d + 1)), np.log(p)
    slope, _ = np.polyfit(logs, log_p, 1)
    kl = float((p * np.log(p / q)).sum())
    r, rho = math.log(values[0] / math.sqrt((values**2).sum() / d)), math.log(d * q[0]) / 2
    expected = {
        "rows": shape[0],
        "columns": shape[1],
        "norm": np.linalg.norm(matrix.numpy()),
        "top": values[0],
        "numerical_rank": d,
        "exponent": a,
        "slope": slope,
        "r_squared": np.corrcoef(logs, log_p)[0, 1] ** 2,
        "kl": kl,
        "fisher": q @ logs**2 - (q @ logs) ** 2,
        "explained_share": 1 - kl / float((p * np.log(p * d)).sum()),
        "alpha_of_chart": 1 + 1 / a,
        "radial": r,
        "chart_radial": rho,
        "residual": r - rho,
        "rank_50": rank(p, 0.5),
        "rank_90": rank(p, 0.9),
        "rank_95": rank(p, 0.95),
        "rank_99": rank(p, 0.99),
        "chart_rank_50": rank(q, 0.5),
        "chart_rank_99": rank(q, 0.99),
        "tail_share": 1 - p[: rank(q, 0.95)].sum(),
    }
    assert {name: row[name] for name in expected} == pytest.approx(expected, rel=1e-8, abs=1e-12)
    assert row["window_low"] <= row["chart_rank_95"] <= row["window_high"]
    assert q[rank(q, 0.95) :].sum() <= row["chart_tail_bound"]


def test_the_null_is_what_gaussian_matrices_of_the_shape_show() -> None:
    """Beside dense Gaussian matrices, which are drawn and decomposed here."""
    generator = np.random.default_rng(0)
    dense = [np.linalg.svd(generator.standard_normal((40, 24)), compute_uv=False) for _ in range(400)]
    r = [math.log(values[0] / math.sqrt((values**2).mean())) for values in dense]
    ranks = [rank(values**2 / (values**2).sum(), 0.95) for values in dense]
    row = row_of(gaussian(40, 24, 5))
    assert row["radial_null"] == pytest.approx(np.mean(r), abs=4 * np.std(r) / math.sqrt(20))
    assert row["rank_95_null"] == pytest.approx(np.mean(ranks), abs=4 * np.std(ranks) / math.sqrt(20))
    numbers = gaussian_numbers(40, 24)
    expected = (row["radial"] - float(numbers.radials.mean())) / float(numbers.radials.std())
    assert row["radial_z"] == pytest.approx(expected)
    assert row["explained_share_null"] == pytest.approx(float(numbers.explained_shares.mean()))
    assert abs(row["radial_z"]) < 4


def test_one_zero_mode_in_single_precision_does_not_bend_the_line() -> None:
    """Rounding makes 1e-8 of a singular value of zero; a line fitted through it falls like i^-3.9 instead of i^-1."""
    values = torch.arange(1, 65, dtype=torch.float64) ** -0.5
    values[-1] = 0
    stored = with_values(values, 64, 64).float()
    kept = row_of(stored.double(), torch.float32)
    assert kept["numerical_rank"] == 63
    assert kept["slope"] == pytest.approx(-1, abs=0.02)
    assert kept["exponent"] == pytest.approx(1, abs=0.01)
    assert kept["chart"] == "adequate"
    bent = row_of(stored.double(), torch.float64)
    assert bent["numerical_rank"] == 64
    assert bent["slope"] < -1.5
    assert (spectrum_rows(0, analysed("f", stored.double(), Factor("f", stored), 0.95))["energy"] == 0).sum() == 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_not_cut_to_nothing(dtype: torch.dtype) -> None:
    """max(m, n) eps s_1 would be 2 s_1 for 512 columns of bfloat16; a Gaussian matrix keeps nearly all of its modes."""
    stored = gaussian(48, 512, 0).to(dtype).double()
    assert row_of(stored, dtype)["numerical_rank"] == 48
    deficient = with_values([1.0] * 24, 48, 512).to(dtype).double()
    assert row_of(deficient, dtype)["numerical_rank"] == 24


def test_spikes() -> None:
    """One planted direction is one spike; in pure Gaussian matrices a spike is rare (1 of 21 by exchangeability)."""
    noise = gaussian(60, 40, 0)
    planted = 30 * orthogonal(60, 1, 1) @ orthogonal(40, 1, 2).mT  # twice the edge sqrt 60 + sqrt 40 = 14
    assert row_of(noise + planted)["spikes"] == 1
    found = [row_of(gaussian(60, 40, seed))["spikes"] for seed in range(30)]
    assert sum(spikes > 0 for spikes in found) <= 5
    second = 25 * orthogonal(60, 1, 3) @ orthogonal(40, 1, 4).mT
    assert row_of(noise + planted + second)["spikes"] == 2


def test_verdicts_on_the_chart() -> None:
    for exponent in (0.5, 1.0, 2.0):
        row = row_of(power_law(40, 30, exponent))
        assert (row["chart"], row["exponent"]) == ("adequate", pytest.approx(exponent))
        assert row["explained_share"] == pytest.approx(1)
    for seed in range(10):
        assert row_of(gaussian(40, 30, seed))["chart"] == "not adequate"
    flat = row_of(orthogonal(10, 10, 0))
    assert (flat["chart"], flat["exponent"], flat["alpha_of_chart"]) == ("not applicable", pytest.approx(0, abs=1e-6), math.inf)
    assert math.isnan(flat["explained_share"])
    halves = row_of(with_values([1.0] * 10 + [0.1] * 10, 20, 20))
    assert halves["chart"] == "not adequate"
    two = row_of(gaussian(2, 9, 0))  # two energies lie on some chart, as those of every Gaussian matrix do
    assert (two["explained_share"], two["chart"]) == (pytest.approx(1), "not applicable")
    spiked = row_of(gaussian(60, 60, 0) + 60 * orthogonal(60, 1, 1) @ orthogonal(60, 1, 2).mT)
    assert spiked["explained_share"] > 0.8, "one large mode looks like a power law"
    assert (spiked["spikes"], spiked["chart"]) == (1, "not adequate")
    assert spiked["rest_share"] < 0.8


def test_near_the_identity() -> None:
    """The first-order formula against the exact coordinate, and the two distances against NumPy."""
    eye = np.eye(12)
    near = torch.from_numpy(eye) + 1e-3 * gaussian(12, 12, 0)
    row = row_of(near)
    assert row["near_identity"] == "yes"
    assert row["near_identity_radial"] == pytest.approx(row["radial"], abs=2e-5)
    assert row["identity_distance"] == pytest.approx(np.linalg.norm(near.numpy() - eye) / math.sqrt(12))
    assert row["identity_norm"] == pytest.approx(np.linalg.norm(near.numpy() - eye, 2))
    one_direction = torch.eye(400, dtype=torch.float64)
    one_direction[0, 0] = 2.0  # near in Frobenius norm, not in spectral norm
    row = row_of(one_direction)
    assert (row["near_identity"], row["identity_norm"]) == ("no", pytest.approx(1))
    assert math.isnan(row["near_identity_radial"])
    far = row_of(gaussian(12, 12, 0))
    assert far["near_identity"] == "no"
    assert math.isnan(far["identity_norm"])
    wide = row_of(gaussian(10, 12, 0))
    assert wide["near_identity"] == "not square"
    assert math.isnan(wide["identity_distance"])


def test_one_mode() -> None:
    """A row of numbers has one rank, of which there is nothing to explain."""
    row = row_of(gaussian(1, 7, 0))
    assert (row["exponent"], row["radial"], row["rank_99"], row["spikes"]) == (0, 0, 1, 0)
    assert row["chart"] == "not applicable"


def test_the_gaussian_null_has_the_rank_of_the_factor() -> None:
    """Products of low rank are not set against matrices of full rank."""
    for rank in (8, 12):
        z = [
            row_of((gaussian(40, rank, seed) @ gaussian(rank, 40, 99 - seed)).float().double())["radial_z"] for seed in range(4)
        ]
        assert max(map(abs, z)) < 25  # against matrices of rank 40 it is below -35


@pytest.mark.parametrize(
    ("bad", "said"), [(torch.zeros(3, 4), "singular_values must have a positive one"), (torch.eye(2) * math.nan, "be finite")]
)
def test_bad_factors_are_named_in_one_line(bad: torch.Tensor, said: str) -> None:
    with pytest.raises(ValueError, match=f"^factor f: .*{said}[^\n]*$"):
        analysed("f", bad, Factor("f", bad), 0.95)
