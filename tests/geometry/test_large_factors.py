"""The tables of a chain whose factors count as large, against those of the same chain analysed with all modes."""

import resource
from collections.abc import Iterator

import numpy as np
import pandas as pd
import pytest
import torch

from gch_bench.geometry.analysis import analyse
from gch_bench.geometry.chains import Factor
from gch_bench.report.geometry_figures import all_figures
from gch_bench.results.geometry import BRANCH, ChainReport
from gch_bench.spectral import linalg

WIDTH, HIDDEN = 72, 150
LEFT_OUT = ("physical_", "source_mode_", "truncation_error")
# What rests on products in float32: everything of an interface but its factors' spectra.
SINGLE = 1e-4


def factors(exponent: float, dtype: torch.dtype = torch.float32) -> Iterator[Factor]:
    generator = torch.Generator().manual_seed(0)
    for i in range(4):
        sizes = torch.arange(1, WIDTH + 1) ** -exponent
        read = (torch.randn(HIDDEN, WIDTH, generator=generator) * sizes).double()
        write = (0.02 * torch.randn(WIDTH, HIDDEN, generator=generator)).double()
        whole = torch.eye(WIDTH, dtype=torch.float64) + write @ read
        yield Factor(f"layers.{i}", whole, read=read, write=write, dtype=dtype)


def both(monkeypatch: pytest.MonkeyPatch, exponent: float, **options) -> tuple[ChainReport, ChainReport]:
    exact = analyse(factors(exponent, **options), "test", "a chain")
    monkeypatch.setattr(linalg, "LARGE", 20)
    return exact, analyse(factors(exponent, **options), "test", "a chain")


@pytest.mark.parametrize("exponent", [0.0, 0.4, 1.2])  # the first has a slowly decaying spectrum
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_every_number_is_that_of_all_modes_or_left_out(
    monkeypatch: pytest.MonkeyPatch, exponent: float, dtype: torch.dtype
) -> None:
    exact, large = both(monkeypatch, exponent, dtype=dtype)
    pd.testing.assert_frame_equal(large.factors, exact.factors, rtol=1e-7, atol=1e-9)
    pd.testing.assert_frame_equal(large.spectra, exact.spectra, rtol=1e-7, atol=1e-12)
    assert set(large.interfaces) == set(exact.interfaces)
    assert set(large.interfaces["form"]) == {"block", BRANCH}
    for name in exact.interfaces:
        found, expected = large.interfaces[name], exact.interfaces[name]
        if name.startswith(LEFT_OUT):
            assert found.isna().all(), name
        elif expected.dtype.kind == "f":
            np.testing.assert_allclose(found, expected, rtol=SINGLE, atol=SINGLE, err_msg=name)
        else:
            assert list(found) == list(expected), name
    assert large.interfaces["mean_cosine_squared"].notna().all()
    for name, value in exact.summary.items():
        left_out = name in (
            "certified_share", "energy_certified_share", "strict_share", "certified_rank", "certified_95",
            "certified_95_rotated",
        )  # fmt: skip
        expected = np.nan if left_out else value
        assert large.summary[name] == pytest.approx(expected, rel=SINGLE, abs=SINGLE, nan_ok=True), name


def test_the_angles_of_more_modes_than_are_known_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linalg, "LARGE", 20)
    generator = torch.Generator().manual_seed(0)
    matrices = [torch.randn(rows, 60, dtype=torch.float64, generator=generator) for rows in (60, 30)]
    made = analyse([Factor("a", matrices[0]), Factor("head", matrices[1], classifier=True)], "test", "a chain")
    (row,) = made.interfaces.to_dict("records")
    assert row["angle_window_first"] == 29
    assert np.isnan(row["mean_cosine_squared"])
    assert np.isnan(row["angle_excess_z"])
    assert row["energy_gain"] > 0


def test_a_chain_of_small_and_large_factors_and_its_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linalg, "LARGE", 30)
    generator = torch.Generator().manual_seed(0)
    shapes = [(50, 40), (25, 50), (24, 25)]
    chain = [Factor(f"f{i}", torch.randn(shape, dtype=torch.float64, generator=generator)) for i, shape in enumerate(shapes)]
    made = analyse(chain, "test", "a chain")
    assert list(made.interfaces["physical_certified_share"].isna()) == [True, False]
    strict = made.interfaces["physical_certified"].iloc[1] != "no"
    assert made.summary["strict_share"] == float(strict)
    for each in (made, both(monkeypatch, 0.4)[1]):
        figures = all_figures([("network", each)])
        assert "alignment_profile" in " ".join(figures).replace("-", "_")
        assert figures


def test_products_that_carry_nothing_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linalg, "LARGE", 20)
    one, two = torch.zeros(40, 40, dtype=torch.float64), torch.zeros(40, 40, dtype=torch.float64)
    one[:20], two[:, 20:] = 1 + torch.rand(20, 40).double(), 1 + torch.rand(40, 20).double()
    with pytest.raises(ValueError, match="the product of its factors is zero, it carries nothing"):
        analyse([Factor("a", one), Factor("b", two)], "test", "a chain")


def test_products_of_large_matrices_are_not_kept_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """A branch that is 40 times wider than the stream: a product of two of its matrices would have 200 MB."""
    monkeypatch.setattr(linalg, "LARGE", 100)
    generator = torch.Generator().manual_seed(0)
    ends = [
        [torch.randn(shape, dtype=torch.float64, generator=generator) for shape in ((5000, 120), (120, 5000))] for _ in "ab"
    ]
    chain = [Factor(str(i), write @ read / 5000, read=read, write=write) for i, (read, write) in enumerate(ends)]
    analyse([chain[0]], "test", "a chain")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    analyse(chain, "test", "a chain")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * 2**10
