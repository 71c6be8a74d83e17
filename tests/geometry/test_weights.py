"""The table of single weights against NumPy."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from geometry_chains import gaussian

from gch_bench.config.diagnosis import SpectralConfig
from gch_bench.geometry.chains import Factor
from gch_bench.geometry.factors import analysed, factor_row
from gch_bench.geometry.weights import weight_table
from gch_bench.spectral import gibbs


def test_weights_pool_their_taps() -> None:
    conv = torch.randn(3, 2, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    taps = conv.flatten(2).permute(2, 0, 1)
    table = weight_table(iter([("conv", taps), ("dead", torch.zeros(1, 2, 2, dtype=torch.float64))]))
    assert isinstance(table, pd.DataFrame)
    values = np.concatenate([np.linalg.svd(conv[:, :, i, j].numpy(), compute_uv=False) for i in range(4) for j in range(5)])
    row = table.iloc[0]
    assert (row["taps"], row["rows"], row["columns"], row["numerical_rank"]) == (20, 3, 2, 40)
    assert row["exponent"] == pytest.approx(gibbs.fit_exponent(torch.from_numpy(values)).exponent)
    assert row["norm"] == pytest.approx(np.linalg.norm(conv.numpy()))
    assert row["top"] == pytest.approx(values.max())
    p = np.sort(values**2)[::-1] / (values**2).sum()
    assert row["rank_90"] == np.searchsorted(p.cumsum(), 0.9) + 1
    assert table.iloc[1]["norm"] == 0
    assert math.isnan(table.iloc[1]["exponent"])


def test_a_matrix_has_the_columns_of_a_factor() -> None:
    matrix = gaussian(20, 12, 0)
    row = weight_table([("fc", matrix[None])]).iloc[0]
    factor = factor_row(analysed("fc", matrix, Factor("fc", matrix, dtype=torch.float64), 0.95), SpectralConfig())
    common = set(row.index) & set(factor)
    assert {"exponent", "alpha", "radial_z", "spikes", "rank_95_null", "chart", "explained_share_null"} <= common
    for name in common:
        assert row[name] == (pytest.approx(factor[name], rel=1e-9) if isinstance(factor[name], float) else factor[name]), name


def test_taps_are_compared_with_as_many_gaussian_taps() -> None:
    """A convolution of Gaussian taps is not remarkable, although its pooled spectrum is not that of one matrix."""
    found = weight_table(
        [(str(seed), torch.stack([gaussian(16, 12, 9 * seed + tap) for tap in range(9)])) for seed in range(8)]
    )
    assert found["radial_z"].abs().max() < 4
    assert (found["spikes"] > 0).sum() <= 3
    assert (found["chart"] == "not adequate").all()


def test_rounding_is_not_part_of_the_spectrum() -> None:
    """One mode that is exactly zero before the weight is stored in single precision."""
    left, right = (torch.linalg.qr(gaussian(64, 64, seed)).Q for seed in (0, 1))
    values = torch.arange(1, 65, dtype=torch.float64) ** -0.5
    values[-1] = 0
    row = weight_table([("fc", ((left * values) @ right.mT).float()[None])]).iloc[0]
    assert row["numerical_rank"] == 63
    assert row["slope"] == pytest.approx(-1, abs=0.02)


def test_a_weight_that_is_not_finite_is_named() -> None:
    with pytest.raises(ValueError, match=r"^layer\.weight must be finite, got 1 NaN or infinite values$"):
        weight_table([("layer", torch.tensor([[[math.inf, 1.0]]]))])
