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
    share_row,
    untested,
    variance_row,
)


def test_a_mean_is_scipys() -> None:
    values = np.random.default_rng(0).exponential(size=30)
    made = mean_row("s", "q", values, 1.5, at="here", x=2.0)
    wanted = stats.ttest_1samp(values, 1.5)
    interval = wanted.confidence_interval()
    assert (made.measured, made.low, made.high) == pytest.approx((values.mean(), interval.low, interval.high))
    assert made.p_value == pytest.approx(wanted.pvalue)
    assert (made.theory, made.n, made.at, made.x) == (1.5, 30, "here", 2.0)


def test_values_that_differ_by_rounding_alone_agree() -> None:
    assert p_value(1.0 + 5e-6, 1.0, 0.0, 100) == p_value(1e-10, 0.0, 1e-12, 100) == 1
    assert p_value(2e-4, 1e-4, 1e-7, 4096) < 1e-100, "small numbers are compared by their size"
    assert p_value(1.5, 1.0, 0.0, 100) < 1e-14
    assert math.isnan(p_value(math.nan, 1.0, 0.0, 100))
    assert math.isnan(mean_row("s", "q", [3.0, 3.0]).p_value), "without theory"


def test_a_rare_event_that_was_not_seen_is_no_contradiction() -> None:
    """4,096 draws without an event of probability 0.001 happen in 1.7% of all cases, of one of 0.1 never."""
    assert mean_row("s", "q", np.zeros(4096), 0.001).p_value == pytest.approx((1 - 0.001) ** 4096, rel=0.01)
    assert mean_row("s", "q", np.zeros(4096), 0.1).p_value < 1e-100
    assert mean_row("s", "q", np.zeros(4096), 0.1, least_error=0.2).p_value > 0.5, "the error that theory knows"


def test_variances_of_normal_values() -> None:
    """The test is exact: p-values below 0.01 occur in 1% of the samples; the interval covers in 95%."""
    rng = np.random.default_rng(2)
    rows = [variance_row("s", "q", rng.normal(scale=2.0, size=50), 4.0) for _ in range(2000)]
    small = np.mean([each.p_value < 0.01 for each in rows])
    covered = np.mean([each.low <= 4.0 <= each.high for each in rows])
    assert abs(small - 0.01) < 4 * math.sqrt(0.01 * 0.99 / 2000)
    assert abs(covered - 0.95) < 4 * math.sqrt(0.95 * 0.05 / 2000)
    values = rng.normal(size=30)
    assert variance_row("s", "q", values, 1.0).measured == pytest.approx(values.var(ddof=1))
    assert math.isnan(variance_row("s", "q", [math.nan, 1.0, 2.0], 4.0).p_value)


def test_shares_of_few_images() -> None:
    """0 of 10 says at most 31%, the limit of Clopper and Pearson."""
    none, some = share_row("s", "q", np.zeros(10)), share_row("s", "q", [0, 0, 0, 0, 1])
    assert (none.low, none.high) == pytest.approx((0, stats.binomtest(0, 10).proportion_ci().high))
    assert 0 <= some.low < some.measured < some.high <= 1
    assert share_row("s", "q", np.ones(10)).low == pytest.approx(stats.binomtest(10, 10).proportion_ci().low)


def test_a_row_without_test_says_why() -> None:
    made = untested(mean_row("s", "q", [1.0, 2.0, 3.0], 9.0, note="first"), "second")
    assert (made.theory, made.note) == (9.0, "first; second")
    assert list(judged(frame([made]))["verdict"]) == [MEASURED]


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
