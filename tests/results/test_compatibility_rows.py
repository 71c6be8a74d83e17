"""Rows with intervals: they cover, a wrong theory is flagged, and a right one hardly ever."""

import math

import numpy as np
import pytest
from scipy import stats

from gch_bench.results.compatibility import (
    AGREES,
    DISAGREES,
    MEASURED,
    NOT_APPLICABLE,
    OUTSIDE,
    Row,
    frame,
    judged,
    mean_row,
    not_applicable,
    p_value,
    row,
)


def test_a_mean_is_scipys() -> None:
    values = np.random.default_rng(0).exponential(size=30)
    made = mean_row("s", "q", values, 1.5, at="here", x=2.0)
    wanted = stats.ttest_1samp(values, 1.5)
    interval = wanted.confidence_interval()
    assert (made.measured, made.low, made.high) == pytest.approx((values.mean(), interval.low, interval.high))
    assert made.p_value == pytest.approx(wanted.pvalue)
    assert (made.theory, made.n, made.at, made.x) == (1.5, 30, "here", 2.0)


def test_values_without_chance_are_compared_up_to_rounding() -> None:
    assert p_value(1.0 + 5e-5, 1.0, 0.0, 100) == 1
    assert p_value(1.001, 1.0, 0.0, 100) == 0
    assert math.isnan(mean_row("s", "q", [3.0, 3.0]).p_value), "without theory"


@pytest.mark.parametrize(("shift", "least", "most"), [(0.0, 0, 0), (0.5, 40, 60)])
def test_a_wrong_theory_is_flagged_and_a_right_one_is_not(shift: float, least: int, most: int) -> None:
    """60 comparisons of 100 values; half a standard deviation is 5 standard errors. About 3 of 60 lie outside in any case."""
    rng = np.random.default_rng(1)
    rows = [mean_row("s", f"{i}", rng.normal(size=100), shift) for i in range(60)]
    verdicts = judged(frame(rows))["verdict"].value_counts()
    assert least <= verdicts.get(DISAGREES, 0) <= most
    if not shift:
        assert verdicts.get(OUTSIDE, 0) <= 9
        assert verdicts[AGREES] >= 51


def test_rows_without_theory_or_number() -> None:
    table = judged(frame([row("s", "a", 1.0, 0.1, None, 10), not_applicable("s", "b", "why"), mean_row("s", "c", [1, 2], 1.5)]))
    assert list(table["verdict"]) == [MEASURED, NOT_APPLICABLE, AGREES]
    assert list(table.columns) == [*Row._fields, "verdict"]
    assert table["note"][1] == "why"
