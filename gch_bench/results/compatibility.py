"""The results of diagnose.py mode=compatibility: one row per measured number, with its interval and what theory says of it."""

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy import stats

Z = float(stats.norm.ppf(0.975))
FAMILY = 0.01  # level of the test that flags a row, corrected for the number of rows that are compared with theory
EXACT = 1e-4  # how far a value that has no chance in it may lie from theory, relative to max(1, |theory|): float32 and more

AGREES, OUTSIDE, DISAGREES = "agrees", "outside its interval", "DISAGREES"
MEASURED, NOT_APPLICABLE = "measured", "not applicable"


class Row(NamedTuple):
    """One number. Where theory says nothing, `theory` and `p_value` are NaN; where nothing can be measured, `measured` is."""

    section: str  # one of the six questions, see docs/compatibility.md
    quantity: str
    at: str = ""  # where: a pair of sites, a bin, a layer
    x: float = math.nan  # the same as a number, for the axis of a figure
    measured: float = math.nan
    low: float = math.nan  # interval of 95% of the measured value
    high: float = math.nan
    theory: float = math.nan
    p_value: float = math.nan  # of the difference from theory, two-sided; for the most deviant of many values, corrected
    n: int = 0  # how many independent draws, or images, it rests on
    excluded: float = 0.0  # share of the values that the statement is not about
    note: str = ""  # what the number rests on, or why a statement does not apply


def mean_row(section: str, quantity: str, values: ArrayLike, theory: float | None = None, **facts: Any) -> Row:
    """The mean of independent values (n,) with its interval by the t distribution, and the test of `theory` for it."""
    values = np.asarray(values, dtype=np.float64)
    error = float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan
    return row(section, quantity, float(values.mean()), error, theory, len(values), **facts)


def row(section: str, quantity: str, measured: float, error: float, theory: float | None, n: int, **facts: Any) -> Row:
    """A value with its standard error, as a row with interval and test (t distribution with n - 1 degrees of freedom)."""
    half = error * float(stats.t.ppf(0.975, max(n - 1, 1)))
    made = Row(section, quantity, measured=measured, low=measured - half, high=measured + half, n=n, **facts)
    if theory is None or math.isnan(theory):
        return made
    return made._replace(theory=theory, p_value=p_value(measured, theory, error, n))


def p_value(measured: float, theory: float, error: float, n: int) -> float:
    """Two-sided; a value without chance is compared up to EXACT."""
    if abs(measured - theory) <= EXACT * max(1.0, abs(theory)):
        return 1.0
    if not error > 0:
        return 0.0
    return 2 * float(stats.t.sf(abs(measured - theory) / error, max(n - 1, 1)))


def not_applicable(section: str, quantity: str, why: str) -> Row:
    return Row(section, quantity, note=why)


def frame(rows: Iterable[Row]) -> pd.DataFrame:
    return pd.DataFrame(list(rows), columns=list(Row._fields))


def judged(table: pd.DataFrame) -> pd.DataFrame:
    """The table with the column `verdict`.

    A row that is compared with theory agrees if theory lies in its interval of 95%. About one in twenty true statements does
    not; a row is flagged (DISAGREES) if its p-value times the number of rows compared is below FAMILY.
    """
    compared = int(table["p_value"].notna().sum())
    verdict = np.where(table["measured"].isna(), NOT_APPLICABLE, MEASURED).astype(object)
    p = table["p_value"].to_numpy(np.float64)
    verdict[p >= 0.05] = AGREES
    verdict[p < 0.05] = OUTSIDE
    verdict[p * compared < FAMILY] = DISAGREES
    return table.assign(verdict=verdict)
