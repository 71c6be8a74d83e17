"""Rank correlations of networks that are not independent: those of one mechanism, and those of one training seed, go together.

Intervals come from a bootstrap that draws whole mechanisms and, independently of them, training seeds with replacement. The
interval is the estimate +- t times the bootstrap's standard deviation, on the scale of Fisher's z and with the number of
mechanisms less one as degrees of freedom. The p value is that of a permutation of whole mechanisms: the rows of one mechanism
get the residuals of another mechanism's rows of the same strength, stage and seed. Only mechanisms that have the same
strengths, stages and seeds change places, so that every order has all rows. How often both err was simulated:
results/theory_beside_measurement/coverage.md.

Legend: N rows, C conditions, G clusters (mechanisms), S seeds, K keys, R resamples or permutations.
"""

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.stats import t

from gch_bench.report.geometry_correlations import q_values

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

RESAMPLES = 1_000
DRAWS = 9_999  # permutations
FEWEST = 5  # clusters below which there is no interval, and clusters that can change places below which there is no p
_TAIL = 0.025  # on each side of an interval of 95%
_LARGEST = 0.999  # correlations beyond it count as this one on the scale of z, where 1 is infinite
_NONE = 1e-9  # a share of the variance below which nothing but rounding is left


class Rows(NamedTuple):
    """What belongs to each of N rows besides its quantities, as numbers from 0 on, and what is compared."""

    cluster: Ints  # (N,): the mechanism
    seed: Ints  # (N,)
    key: Ints  # (N,): strength and stage, which rows of several mechanisms share
    condition: Ints  # (N,): cluster and key; rows of one condition differ in the seed alone
    average: bool = False  # the means over the seeds of each condition are compared; else each row by itself
    within: bool = False  # ranks are taken, and compared, within the rows of one key alone


class Association(NamedTuple):
    """A rank correlation. The interval is nan for fewer than FEWEST clusters, and all is for columns that do not vary."""

    n: int  # rows, or conditions
    clusters: int
    estimate: float
    low: float
    high: float


def correlations(
    table: pd.DataFrame, pairs: Sequence[Sequence[str]], rows: Rows, control: str | None = None, seed: int = 0
) -> pd.DataFrame:
    """A row per pair of columns of `table`, the first of one list and the second of the other: rho over all rows, `within` of
    ranks among the rows of one key, and with a control `given`, the same given the control; each with its interval. p is that
    of the last of these, and q is p after Benjamini and Hochberg.

    Rows in which the first column is nan are left out, such as mechanisms that have no such quantity.
    """
    records = []
    for one, other in itertools.product(*pairs):
        present = table[one].notna().to_numpy()
        x, y = table.loc[present, one], table.loc[present, other]
        given = None if control is None else table.loc[present, control]
        plain = rows_of(rows.cluster[present], rows.seed[present], rows.key[present], rows.average)
        within = plain._replace(within=True)
        ways = {"rho": association(x, y, plain, seed=seed), "within": association(x, y, within, seed=seed)}
        if given is not None:
            ways["given"] = association(x, y, within, given, seed)
        record = {"first": one, "second": other, "n": ways["rho"].n, "clusters": ways["rho"].clusters}
        for name, each in ways.items():
            record |= {name: each.estimate, f"{name}_low": each.low, f"{name}_high": each.high}
        records.append(record | {"p": p_value(x, y, within, given, seed)})
    whole = pd.DataFrame(records)
    return whole.assign(q=q_values(whole["p"].to_numpy(np.float64)))


class _Columns(NamedTuple):
    """Two quantities and a control, each (N,), and the strata."""

    first: Floats
    second: Floats
    control: Floats
    stratum: Ints


def rows_of(cluster: ArrayLike, seed: ArrayLike, key: ArrayLike, average: bool = False) -> Rows:
    """Rows from labels, each (N,).

    Raises:
        ValueError: two rows have the same cluster, seed and key.
    """
    of, number, at = (np.unique(np.asarray(each), return_inverse=True)[1].reshape(-1) for each in (cluster, seed, key))
    if len(np.unique([of, number, at], axis=1).T) < len(of):
        raise ValueError("two rows have the same cluster, seed and key, of which each may be there once")
    condition = np.unique([of, at], axis=1, return_inverse=True)[1].reshape(-1)
    return Rows(of, number, at, condition, average)


def association(
    first: ArrayLike, second: ArrayLike, rows: Rows, control: ArrayLike | None = None, seed: int = 0
) -> Association:
    """Spearman's correlation of two columns (N,), with an interval of 95% that respects mechanisms and seeds.

    Args:
        control: (N,): the correlation is that of the residuals of the ranks after a regression on the ranks of this column.
        seed: of the resamples.

    Raises:
        ValueError: a column has another length, or is not finite.
    """
    columns = _checked(rows, first, second, control)
    clusters, seeds = int(rows.cluster.max()) + 1, int(rows.seed.max()) + 1
    values, weight_1N = _once(columns, rows)
    estimate = float(_correlation(values, weight_1N)[0])
    found = Association(weight_1N.shape[1], clusters, estimate, math.nan, math.nan)
    if clusters < FEWEST or math.isnan(estimate):
        return found
    rng = np.random.default_rng(seed)
    times = [rng.multinomial(count, np.full(count, 1 / count), RESAMPLES).astype(np.float64) for count in (clusters, seeds)]
    drawn_R = _correlation(*_drawn(columns, rows, *times))
    half = float(t.isf(_TAIL, clusters - 1)) * float(np.nanstd(_z(drawn_R), ddof=1))
    low, high = (math.tanh(float(_z(estimate)) + sign * half) for sign in (-1, 1))
    return found._replace(low=low, high=high)


def p_value(first: ArrayLike, second: ArrayLike, rows: Rows, control: ArrayLike | None = None, seed: int = 0) -> float:
    """Two-sided p of an `association` by permuting whole clusters that have the same keys (and seeds, without `average`); nan
    if fewer than FEWEST can change places.

    Source: Freedman and Lane 1983, A nonstochastic interpretation of reported significance levels. The residuals of `second`
    are permuted and regressed on the control anew.

    Args:
        seed: of the permutations.

    Raises:
        ValueError: a column has another length, or is not finite.
    """
    values, once_1N = _once(_checked(rows, first, second, control), rows)
    places_GK = _places(rows)
    kind_G = np.unique(places_GK >= 0, axis=0, return_inverse=True)[1].reshape(-1)
    if (np.bincount(kind_G)[kind_G] > 1).sum() < FEWEST:
        return math.nan
    given_1N = _ranks(values.control, values.stratum, once_1N)
    left, right = (_residuals(_ranks(each, values.stratum, once_1N), given_1N, once_1N)[0] for each in values[:2])
    # The order as it is counts among the draws, so that p is never 0.
    orders_RG = np.vstack([np.arange(len(kind_G)), _orders(kind_G, np.random.default_rng(seed))])
    own_N = places_GK[places_GK >= 0]
    other_RN = places_GK[orders_RG][:, places_GK >= 0]
    every_1N = np.ones((1, len(own_N)))
    given_RN = np.broadcast_to(given_1N[:, own_N], other_RN.shape)
    one_1N, two_RN = left[None, own_N], _residuals(right[other_RN], given_RN, every_1N)
    squares_R = _product(one_1N, one_1N, every_1N) * _product(two_RN, two_RN, every_1N)
    drawn_R = np.abs(_quotient(_product(one_1N, two_RN, every_1N), squares_R))
    return math.nan if math.isnan(drawn_R[0]) else float((np.nan_to_num(drawn_R) >= drawn_R[0] - 1e-9).mean())


def _orders(kind_G: Ints, rng: np.random.Generator) -> Ints:
    """(DRAWS, G): random orders in which each cluster is replaced by one of its kind."""
    by_kind = np.argsort(kind_G, kind="stable")
    orders_RG = np.empty((DRAWS, len(kind_G)), dtype=np.int64)
    orders_RG[:, by_kind] = np.argsort(kind_G + rng.random((DRAWS, len(kind_G))), axis=1)
    return orders_RG


def _checked(rows: Rows, first: ArrayLike, second: ArrayLike, control: ArrayLike | None) -> _Columns:
    none = np.zeros(len(rows.cluster))
    columns = [np.asarray(none if each is None else each, dtype=np.float64) for each in (first, second, control)]
    for column in columns:
        if column.shape != none.shape or not np.isfinite(column).all():
            raise ValueError(f"columns must be {len(none)} finite numbers, got {column.shape} or some that are not finite")
    return _Columns(columns[0], columns[1], columns[2], rows.key if rows.within else np.zeros_like(rows.key))


def _z(correlation: ArrayLike) -> Floats:
    return np.arctanh(np.clip(correlation, -_LARGEST, _LARGEST))


def _once(columns: _Columns, rows: Rows) -> tuple[_Columns, Floats]:
    """What `_drawn` gives where each cluster and each seed is drawn once."""
    return _drawn(columns, rows, np.ones((1, int(rows.cluster.max()) + 1)), np.ones((1, int(rows.seed.max()) + 1)))


def _drawn(columns: _Columns, rows: Rows, times_RG: Floats, times_RS: Floats) -> tuple[_Columns, Floats]:
    """Columns (R, N) or (1, N), with how often each row is drawn (R, N); of `average` with C conditions in place of N rows.

    A condition that has none of the seeds that are drawn gets the mean of all seeds that it has.
    """
    weight_RN = times_RS[:, rows.seed]
    if not rows.average:
        one, two, given = (column[None] for column in columns[:3])
        return _Columns(one, two, given, columns.stratum), weight_RN * times_RG[:, rows.cluster]
    member_NC = np.equal.outer(rows.condition, np.arange(rows.condition.max() + 1)).astype(np.float64)
    weight_RN = np.where((weight_RN @ member_NC)[:, rows.condition] > 0, weight_RN, 1.0)
    total_RC = weight_RN @ member_NC
    one, two, given = ((weight_RN * column) @ member_NC / total_RC for column in columns[:3])
    at = np.unique(rows.condition, return_index=True)[1]
    return _Columns(one, two, given, columns.stratum[at]), times_RG[:, rows.cluster[at]]


def _correlation(values: _Columns, weight_RN: Floats) -> Floats:
    """(R,): correlations of the residuals of the ranks, of rows that are there so many times; nan where one is all zero."""
    given_RN = _ranks(values.control, values.stratum, weight_RN)
    left, right = (_residuals(_ranks(each, values.stratum, weight_RN), given_RN, weight_RN) for each in values[:2])
    return _quotient(_product(left, right, weight_RN), _product(left, left, weight_RN) * _product(right, right, weight_RN))


def _ranks(values: Floats, stratum: Ints, weight_RN: Floats) -> Floats:
    """Ranks within each stratum as shares of it, less 1/2, of rows that are there so many times; ties share their mean rank."""
    same_NN = np.equal.outer(stratum, stratum)
    before = (values[:, :, None] > values[:, None, :]) + 0.5 * (values[:, :, None] == values[:, None, :])
    return np.einsum("rij,rj->ri", before * same_NN, weight_RN) / np.maximum(weight_RN @ same_NN, 1e-12) - 0.5


def _product(one: Floats, two: Floats, weight_RN: Floats) -> Floats:
    summed: Floats = (one * two * weight_RN).sum(axis=1)
    return summed


def _residuals(ranks_RN: Floats, given_RN: Floats, weight_RN: Floats) -> Floats:
    """What is left of centred values after a regression on centred ones; zero where that is nothing but rounding."""
    squares, own = _product(given_RN, given_RN, weight_RN), _product(ranks_RN, ranks_RN, weight_RN)
    slope = np.divide(_product(ranks_RN, given_RN, weight_RN), squares, out=np.zeros_like(squares), where=squares > _NONE)
    left = ranks_RN - slope[:, None] * given_RN
    return np.where((_product(left, left, weight_RN) > _NONE * own)[:, None], left, 0.0)


def _quotient(product_R: Floats, squares_R: Floats) -> Floats:
    there = squares_R > 1e-18
    return np.divide(product_R, np.sqrt(np.where(there, squares_R, 1)), out=np.full(len(product_R), np.nan), where=there)


def _places(rows: Rows) -> Ints:
    """(G, K): the condition, or without `average` the row, of a cluster at each key (and seed); -1 where it has none."""
    cluster, key = rows.cluster, rows.key
    if rows.average:
        at = np.unique(rows.condition, return_index=True)[1]
        cluster, key = cluster[at], key[at]
    else:
        key = key * (int(rows.seed.max()) + 1) + rows.seed
    places_GK = np.full((int(cluster.max()) + 1, int(key.max()) + 1), -1)
    places_GK[cluster, key] = np.arange(len(cluster))
    return places_GK
