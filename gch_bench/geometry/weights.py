"""The table of single weights: the spectrum of each, its chart and tail, beside Gaussian matrices of the same shape."""

from collections.abc import Iterable
from typing import Any

import pandas as pd
from torch import Tensor

from gch_bench.geometry.factors import spectrum_columns
from gch_bench.spectral import gibbs, radial
from gch_bench.spectral.linalg import finite64, gram_values, numerical_rank
from gch_bench.threads import few_at_a_time


def weight_table(weights: Iterable[tuple[str, Tensor]]) -> pd.DataFrame:
    """A row per weight, given as (name, (taps, rows, columns)): the spectrum of all its taps' singular values together.

    Several weights are analysed at a time, because most are too small to keep more than one core busy.

    Raises:
        ValueError: if a weight is not finite.
    """
    return pd.DataFrame(few_at_a_time(_weight_row, weights))


def _weight_row(weight: tuple[str, Tensor]) -> dict[str, Any]:
    name, taps = weight
    shape = (taps.shape[1], taps.shape[2], taps.shape[0])
    values = gram_values(finite64(taps, f"{name}.weight")).flatten().sort(descending=True).values
    row: dict[str, Any] = {"name": name, "taps": shape[2], "rows": shape[0], "columns": shape[1], "norm": 0.0}
    if float(values[0]) == 0:
        return row
    kept = values[: numerical_rank(values, shape[:2], taps.dtype, shape[2])]
    return row | spectrum_columns(radial.radial_of_values(kept), values, gibbs.energies(kept).cpu(), shape)
