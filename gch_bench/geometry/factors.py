"""A row of a table per factor: its spectrum and chart, each number beside that of Gaussian matrices of the same shape.

Definitions: docs/geometry.md.
"""

import functools
import math
from typing import Any, NamedTuple

import pandas as pd
import torch
from torch import Tensor

from gch_bench.config.diagnosis import SpectralConfig
from gch_bench.geometry.chains import Factor
from gch_bench.results.geometry import ADEQUATE, NOT_ADEQUATE, NOT_APPLICABLE
from gch_bench.spectral import gibbs, nulls, radial
from gch_bench.spectral.leading import leading
from gch_bench.spectral.linalg import Decomposition, decompose, is_large, numerical_rank, top_value
from gch_bench.spectral.power_law import power_law_tail, square_exponent

ETAS = (0.5, 0.9, 0.95, 0.99)
# A chart is adequate if it explains so much of the distance from a flat spectrum, and more than it does for every draw of a
# Gaussian matrix of the same shape; and so much of it, too, among the ranks behind the spikes, which any decaying family would
# explain. Flat spectra, and those of fewer ranks than LEAST, allow no verdict. Definition of this project.
ENOUGH = 0.9
LEAST = 8
# Up to this spectral norm of A - I the first-order formula of r is shown; its error is of the order of the norm's square.
NEAR_IDENTITY = 0.1


class Analysed(NamedTuple):
    """A factor, or one plain matrix of a branch, and what its spectrum shows."""

    name: str
    parts: Decomposition  # with all modes, or the leading ones of a large matrix
    radial: radial.Radial  # of the modes within the numerical rank
    energies: Tensor  # float64 (numerical rank,), on the CPU
    window: int  # modes that a truncation keeps: the effective rank of the chart
    group_size: int | None  # rows per group, if they come in groups such as heads
    classifier: bool  # whether the rows are classes


class GaussianNumbers(NamedTuple):
    """What spectra of Gaussian matrices of one shape show; float64 (draws,) each."""

    tops: Tensor  # s_1 / ||A||_F
    radials: Tensor  # r
    explained_shares: Tensor
    ranks: dict[float, Tensor]  # effective rank for every share in ETAS


def analysed(name: str, matrix: Tensor, like: Factor, eta: float, group_size: int | None = None) -> Analysed:
    """``matrix`` of the factor ``like``, decomposed.

    Raises:
        ValueError: if the matrix is zero or not finite.
    """
    try:
        parts = leading(matrix, like.dtype) if is_large(matrix) else decompose(matrix, like.dtype)
        rank = numerical_rank(parts.values, tuple(matrix.shape), like.dtype)  # type: ignore[arg-type]
        radius = radial.radial_of_values(parts.values[:rank])
    except ValueError as error:
        raise ValueError(f"factor {name}: {error}") from error
    window = gibbs.effective_rank(gibbs.chart(radius.fit.exponent, radius.fit.size), eta)
    energies = gibbs.energies(parts.values[:rank]).cpu()
    return Analysed(name, parts, radius, energies, window, group_size, like.classifier)


def factor_row(here: Analysed, options: SpectralConfig) -> dict[str, Any]:
    """The columns of factors.csv for one factor."""
    matrix, fit = here.parts.matrix, here.radial.fit
    low, high = gibbs.rank_window(fit.exponent, options.exponent_uncertainty, fit.size, options.eta)
    fitted = gibbs.chart(fit.exponent, fit.size)
    return {
        "name": here.name,
        "rows": matrix.shape[0],
        "columns": matrix.shape[1],
        **spectrum_columns(here.radial, here.parts.values, here.energies, (matrix.shape[0], matrix.shape[1], 1)),
        "square_exponent": fit.exponent if matrix.shape[0] == matrix.shape[1] else square_exponent(matrix),
        "chart_radial": here.radial.chart,
        "residual": here.radial.residual,
        **{f"chart_rank_{eta * 100:.0f}": gibbs.effective_rank(fitted, eta) for eta in ETAS},
        "window_low": low,
        "window_high": high,
        "tail_share": max(1 - float(here.energies[: here.window].sum()), 0.0),
        # The integral bounds the chart's own tail only for exponents >= 0.
        "chart_tail_bound": float(fitted[0]) * gibbs.tail_bound(fit.exponent, here.window, fit.size)
        if fit.exponent >= 0
        else math.nan,
        **_near_identity(matrix),
    }


def spectrum_columns(radius: radial.Radial, values: Tensor, energies: Tensor, shape: tuple[int, int, int]) -> dict[str, Any]:
    """What factors.csv and weights.csv both say of a spectrum: its chart, tops and ranks, beside Gaussian matrices.

    Args:
        radius, energies: of the modes within the numerical rank.
        values: all singular values, descending.
        shape: rows, columns, and the number of taps (matrices whose values are taken together).
    """
    fit = radius.fit
    chance = gaussian_numbers(*_of_rank(shape, fit.size))
    share = nulls.compared(fit.explained_share, chance.explained_shares)
    above = nulls.compared(radius.radial, chance.radials)
    found = spikes(values, chance)
    rest = gibbs.fit_rest(energies, found)
    tail = power_law_tail(values.square())
    return {
        "norm": radius.norm,
        "top": float(values[0]),
        "numerical_rank": fit.size,
        "exponent": fit.exponent,
        "slope": fit.slope,
        "r_squared": fit.r_squared,
        "kl": fit.kl,
        "fisher": fit.fisher,
        "explained_share": fit.explained_share,
        "explained_share_null": share.mean,
        "rest_exponent": rest.exponent,
        "rest_share": rest.explained_share,
        "chart": _chart_verdict(fit, rest, float(chance.explained_shares.max())),
        "spikes": found,
        "alpha": tail.alpha,
        "alpha_of_chart": 1 + 1 / fit.exponent if fit.exponent > 1e-6 else math.inf,
        "radial": radius.radial,
        "radial_null": above.mean,
        "radial_z": above.z,
        **{f"rank_{eta * 100:.0f}": gibbs.effective_rank(energies, eta) for eta in ETAS},
        "rank_95_null": float(chance.ranks[0.95].mean()),
    }


def _of_rank(shape: tuple[int, int, int], rank: int) -> tuple[int, int, int]:
    """The shape of the Gaussian matrices to compare with: of as many ranks, where the spectrum has fewer than its shape."""
    rows, columns, taps = shape
    return (max(rows, columns), rank, 1) if taps == 1 and rank < min(rows, columns) else shape


def spikes(values: Tensor, chance: GaussianNumbers) -> int:
    """How many of the singular ``values`` (d,) exceed the largest one of all draws of a Gaussian matrix, both over ||A||_F."""
    return int((values.cpu() / float(torch.linalg.vector_norm(values)) > chance.tops.max()).sum())


def _chart_verdict(fit: gibbs.GibbsFit, rest: gibbs.RestFit, best: float) -> str:
    if fit.size < LEAST or math.isnan(fit.explained_share):
        return NOT_APPLICABLE
    whole = fit.explained_share >= ENOUGH and fit.explained_share > best
    return ADEQUATE if whole and rest.explained_share >= ENOUGH else NOT_ADEQUATE


@functools.lru_cache(maxsize=256)
def gaussian_numbers(rows: int, columns: int, taps: int = 1) -> GaussianNumbers:
    """What the spectra of Gaussian matrices (rows, columns) show, those of ``taps`` matrices taken together."""
    spectra = nulls.gaussian_spectra(rows, columns, taps)
    radii = [radial.radial_of_values(values) for values in spectra]
    ranks = {eta: [gibbs.effective_rank(values.square(), eta) for values in spectra] for eta in ETAS}
    return GaussianNumbers(
        tops=spectra[:, 0],
        radials=torch.tensor([each.radial for each in radii], dtype=torch.float64),
        explained_shares=torch.tensor([each.fit.explained_share for each in radii], dtype=torch.float64).nan_to_num(0.0),
        ranks={eta: torch.tensor(each, dtype=torch.float64) for eta, each in ranks.items()},
    )


def _near_identity(matrix: Tensor) -> dict[str, Any]:
    """How far a factor A (d, d) is from the identity, the verdict, and its r to first order in A - I where it is near.

    ||A - I||_2 is nan, and not computed, where ||A - I||_F / sqrt(d) <= ||A - I||_2 rules out that it is small.
    """
    row = {"identity_distance": math.nan, "identity_norm": math.nan, "near_identity": "no", "near_identity_radial": math.nan}
    if matrix.shape[0] != matrix.shape[1]:
        return row | {"near_identity": "not square"}
    direction = matrix - torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
    row["identity_distance"] = distance = float(torch.linalg.vector_norm(direction)) / math.sqrt(len(matrix))
    if distance > NEAR_IDENTITY:
        return row
    row["identity_norm"] = spectral = top_value(direction)
    if spectral <= NEAR_IDENTITY:
        row |= {"near_identity": "yes", "near_identity_radial": radial.near_identity_radial(direction, 1.0)}
    return row


def plain_spikes(here: Analysed) -> int:
    """The spikes of one plain matrix, such as what a branch reads."""
    matrix, fit = here.parts.matrix, here.radial.fit
    return spikes(here.parts.values, gaussian_numbers(*_of_rank((matrix.shape[0], matrix.shape[1], 1), fit.size)))


def spectrum_rows(index: int, here: Analysed) -> pd.DataFrame:
    """The rows of spectra.parquet for one factor: all singular values, the energies of those within the numerical
    rank, and the mean energies of Gaussian matrices of the same shape."""
    values, kept = here.parts.values.cpu(), len(here.energies)
    energy = torch.cat([here.energies, torch.zeros(len(values) - kept, dtype=torch.float64)])
    rows, columns = here.parts.matrix.shape
    chance = torch.zeros(len(values), dtype=torch.float64)
    chance[:kept] = nulls.gaussian_spectra(*_of_rank((rows, columns, 1), kept)).square().mean(0)
    numbers = {"value": values.numpy(), "energy": energy.numpy(), "energy_null": chance.numpy()}
    return pd.DataFrame({"index": index, "rank": range(1, len(values) + 1), **numbers})
