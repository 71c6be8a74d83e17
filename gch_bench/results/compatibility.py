"""The results of diagnose.py mode=compatibility: one row per measured number, with its interval and what theory says of it."""

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy import stats

FAMILY = 0.01  # level of the test that flags a row, corrected for the number of rows that are compared with theory
ROUNDING = 1e-5  # how far a value may lie from theory by rounding alone, relative to the larger of the two
SMALLEST = 1e-9  # the same where theory is 0

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


def mean_row(
    section: str, quantity: str, values: ArrayLike, theory: float | None = None, least_error: float = 0.0, **facts: Any
) -> Row:
    """The mean of independent values (n,) with its interval by the t distribution, and the test of `theory` for it.

    Args:
        least_error: the standard error that theory knows, which the test uses where that of the values is smaller.
    """
    values = np.asarray(values, dtype=np.float64)
    error = float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan
    made = row(section, quantity, float(values.mean()), error, theory, len(values), **facts)
    if math.isnan(made.p_value) or not error < least_error:
        return made
    return made._replace(p_value=p_value(made.measured, made.theory, least_error, len(values)))


def share_row(section: str, quantity: str, shares: ArrayLike, **facts: Any) -> Row:
    """The mean of the shares (n,) of n images. Where all are 0, or all 1, the interval is that of Clopper and Pearson."""
    made = mean_row(section, quantity, shares, **facts)
    low, high = max(made.low, 0.0), min(made.high, 1.0)
    beyond = 1 - 0.025 ** (1 / made.n)
    if made.measured == 0:
        high = beyond
    elif made.measured == 1:
        low = 1 - beyond
    return made._replace(low=low, high=high)


def variance_row(section: str, quantity: str, values: ArrayLike, theory: float, **facts: Any) -> Row:
    """The variance of normal values (n,), with the interval and the test by the chi-squared distribution."""
    values = np.asarray(values, dtype=np.float64)
    n, measured = len(values), float(values.var(ddof=1))
    low, high = ((n - 1) * measured / float(stats.chi2.ppf(level, n - 1)) for level in (0.975, 0.025))
    made = Row(section, quantity, measured=measured, low=low, high=high, theory=theory, n=n, **facts)
    if math.isnan(measured):
        return made
    if abs(measured - theory) <= max(ROUNDING * max(measured, theory), SMALLEST):
        return made._replace(p_value=1.0)
    ratio = (n - 1) * measured / theory if theory > 0 else math.inf
    return made._replace(p_value=2 * min(float(stats.chi2.cdf(ratio, n - 1)), float(stats.chi2.sf(ratio, n - 1))))


def untested(made: Row, why: str) -> Row:
    """The row with theory beside it, but no test, and the reason for that."""
    return made._replace(p_value=math.nan, note="; ".join(filter(None, (made.note, why))))


def row(section: str, quantity: str, measured: float, error: float, theory: float | None, n: int, **facts: Any) -> Row:
    """A value with its standard error, as a row with interval and test (t distribution with n - 1 degrees of freedom)."""
    half = error * float(stats.t.ppf(0.975, max(n - 1, 1)))
    made = Row(section, quantity, measured=measured, low=measured - half, high=measured + half, n=n, **facts)
    if theory is None or math.isnan(theory):
        return made
    return made._replace(theory=theory, p_value=p_value(measured, theory, error, n))


def p_value(measured: float, theory: float, error: float, n: int) -> float:
    """Two-sided, by the t distribution; 1 where the two differ by rounding alone, and NaN where nothing was measured.

    n equal values (error 0) may be those of a rare event that was never seen: p is then exp(-n times the relative difference),
    the probability of not seeing an event with that probability.
    """
    if math.isnan(measured):
        return math.nan
    difference, size = abs(measured - theory), max(abs(measured), abs(theory))
    if difference <= max(ROUNDING * size, SMALLEST):
        return 1.0
    if not error > 0:
        return math.exp(-n * difference / max(size, 1.0))
    return 2 * float(stats.t.sf(difference / error, max(n - 1, 1)))


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
