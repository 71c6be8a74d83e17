"""Rank correlations over mechanisms: against SciPy and pandas, against permutations one by one, and how often they err."""

import itertools

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr

from gch_bench.report import clustered
from gch_bench.report.clustered import Rows, association, correlations, p_value, rows_of
from gch_bench.report.geometry_correlations import rank_correlation

STRENGTHS, SEEDS = 3, 2


def networks(mechanisms: int, shared: float, seed: int, noise: float = 0.3) -> tuple[pd.DataFrame, Rows]:
    """Networks whose mechanism and strength move both columns; `shared` is the correlation of the mechanisms' effects."""
    rng = np.random.default_rng(seed)
    rows = []
    for cluster in range(mechanisms):
        one = rng.normal()
        other = shared * one + np.sqrt(1 - shared**2) * rng.normal()
        for strength, number in itertools.product(range(STRENGTHS), range(SEEDS)):
            x, y = one + strength + noise * rng.normal(), other + strength + noise * rng.normal()
            rows.append((cluster, strength, number, x, y))
    table = pd.DataFrame(rows, columns=["cluster", "strength", "seed", "x", "y"])
    return table, rows_of(table["cluster"], table["seed"], table["strength"])


@pytest.fixture
def few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clustered, "RESAMPLES", 100)
    monkeypatch.setattr(clustered, "DRAWS", 299)


@pytest.mark.usefixtures("few_draws")
def test_estimates() -> None:
    table, rows = networks(6, 0.3, 0)
    table["x"] = table["x"].round()  # ties
    plain = association(table["x"], table["y"], rows)
    assert plain.estimate == pytest.approx(spearmanr(table["x"], table["y"]).statistic)
    assert (plain.n, plain.clusters) == (36, 6)
    given = association(table["x"], table["y"], rows, control=table["strength"])
    columns = [table[name].to_numpy() for name in ("x", "y", "strength")]
    assert given.estimate == pytest.approx(rank_correlation(*columns).partial)
    within = association(table["x"], table["y"], rows._replace(within=True))
    ranks = table.groupby("strength")[["x", "y"]].rank()
    assert within.estimate == pytest.approx(ranks.corr().iloc[0, 1])
    means = table.groupby(["cluster", "strength"])[["x", "y"]].mean()
    average = association(table["x"], table["y"], rows._replace(average=True))
    assert average.estimate == pytest.approx(spearmanr(means["x"], means["y"]).statistic)
    assert average.n == 18


@pytest.mark.parametrize("average", [False, True])
def test_a_resample_is_its_rows_repeated(average: bool) -> None:
    table, rows = networks(5, 0.5, 1)
    rows = rows._replace(average=average)
    columns = clustered._checked(rows, table["x"], table["y"], None)
    times_G, times_S = np.array([2, 0, 1, 1, 1]), np.array([2, 1])
    found = clustered._correlation(*clustered._drawn(columns, rows, times_G[None] * 1.0, times_S[None] * 1.0))
    parts = []
    for copy, cluster in enumerate(np.repeat(np.arange(5), times_G)):
        for seed in np.repeat(np.arange(SEEDS), times_S):
            parts.append(table[(table["cluster"] == cluster) & (table["seed"] == seed)].assign(copy=copy))
    drawn = pd.concat(parts)
    drawn = drawn.groupby(["copy", "strength"])[["x", "y"]].mean() if average else drawn
    assert found[0] == pytest.approx(spearmanr(drawn["x"], drawn["y"]).statistic)


@pytest.mark.usefixtures("few_draws")
def test_p_by_all_orders_of_the_mechanisms(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clustered, "DRAWS", 20_000)
    table, rows = networks(5, 0.6, 3)
    x, y = (table[name].to_numpy().reshape(5, -1) for name in ("x", "y"))
    observed, drawn = spearmanr(x.ravel(), y.ravel()).statistic, []
    for order in itertools.permutations(range(5)):
        drawn.append(spearmanr(x.ravel(), y[list(order)].ravel()).statistic)
    expected = np.mean(np.abs(drawn) >= abs(observed) - 1e-9)
    assert p_value(table["x"], table["y"], rows) == pytest.approx(expected, abs=0.01)


@pytest.mark.usefixtures("few_draws")
def test_a_planted_correlation_is_found() -> None:
    table, rows = networks(11, 0.95, 0)
    given = table["x"], table["y"], rows._replace(average=True, within=True)
    found = association(*given)
    assert p_value(*given) <= 0.01
    assert 0.3 < found.low < found.estimate < found.high < 1


@pytest.mark.usefixtures("few_draws")
def test_mechanisms_that_have_nothing_in_common_are_not_correlated_too_often() -> None:
    """Five rows per mechanism are not five facts: a test that takes them for independent rejects several times too often."""
    respecting, ignoring = [], []
    for seed in range(60):
        table, rows = networks(8, 0.0, seed, noise=0.1)
        respecting.append(p_value(table["x"], table["y"], rows, control=table["strength"]))
        columns = [table[name].to_numpy(np.float64) for name in ("x", "y", "strength")]
        ignoring.append(spearmanr(columns[0] - columns[2], columns[1] - columns[2]).pvalue)
    assert np.mean(np.array(respecting) <= 0.05) <= 0.12
    assert np.mean(np.array(ignoring) <= 0.05) >= 0.3


def at_stages(shared: float, seed: int, average: bool) -> tuple[pd.DataFrame, Rows]:
    """Eleven mechanisms at one stage, two of them at two more, where both columns are far larger."""
    table, _ = networks(11, shared, seed)
    stage = table.pop("strength")
    table[["x", "y"]] += 3 * stage.to_numpy()[:, None]
    there = (stage == 0) | (table["cluster"] < 2)
    table, stage = table[there].reset_index(drop=True), stage[there].reset_index(drop=True)
    return table, rows_of(table["cluster"], table["seed"], stage, average)._replace(within=True)


@pytest.mark.usefixtures("few_draws")
@pytest.mark.parametrize("average", [False, True])
def test_mechanisms_with_other_stages_change_places_with_none(average: bool) -> None:
    """A stage that moves both quantities is no link between them, and a link is found beside it."""
    without, linked = (
        [p_value(table["x"], table["y"], rows) for table, rows in (at_stages(shared, seed, average) for seed in range(60))]
        for shared in (0.0, 0.95)
    )
    assert np.mean(np.array(without) <= 0.05) <= 0.12
    assert np.mean(np.array(linked) <= 0.05) >= 0.9


@pytest.mark.usefixtures("few_draws")
def test_p_by_all_orders_of_mechanisms_with_the_same_strengths(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clustered, "DRAWS", 20_000)
    table, _ = networks(5, 0.6, 3)
    table = table[(table["cluster"] > 1) | (table["strength"] == 0)].reset_index(drop=True)
    rows = rows_of(table["cluster"], table["seed"], table["strength"])
    ranks = [table[name].rank().to_numpy() for name in ("x", "y")]
    of = [np.flatnonzero(table["cluster"] == cluster) for cluster in range(5)]
    drawn = []
    for first, second in itertools.product(itertools.permutations((0, 1)), itertools.permutations((2, 3, 4))):
        order = np.concatenate([of[cluster] for cluster in (*first, *second)])
        drawn.append(abs(np.corrcoef(ranks[0], ranks[1][order])[0, 1]))
    expected = np.mean(np.array(drawn) >= drawn[0] - 1e-9)
    assert 0 < expected < 1
    assert p_value(table["x"], table["y"], rows) == pytest.approx(expected, abs=0.01)


@pytest.mark.usefixtures("few_draws")
def test_too_few_mechanisms() -> None:
    few, rows = networks(4, 0.9, 0)
    found = association(few["x"], few["y"], rows)
    assert np.isfinite(found.estimate)
    assert np.isnan([found.low, found.high, p_value(few["x"], few["y"], rows)]).all()
    table, rows = networks(6, 0.9, 0)
    assert np.isfinite(p_value(table["x"], table["y"], rows))
    table = table.drop(index=[0, 7]).reset_index(drop=True)  # two of six lack a row each, and can change places with none
    rows = rows_of(table["cluster"], table["seed"], table["strength"])
    assert np.isnan(p_value(table["x"], table["y"], rows))
    table, rows = networks(5, 0.9, 0)
    assert np.isnan(association(np.ones(30), table["y"], rows).estimate)
    assert np.isnan(p_value(np.ones(30), table["y"], rows))


def test_bad_input() -> None:
    table, rows = networks(5, 0.0, 0)
    with pytest.raises(ValueError, match="30 finite numbers"):
        association(table["x"][:3], table["y"], rows)
    with pytest.raises(ValueError, match="not finite"):
        association(table["x"] * np.nan, table["y"], rows)
    with pytest.raises(ValueError, match="same cluster, seed and key"):
        rows_of([0, 0], [1, 1], ["a", "a"])


@pytest.mark.usefixtures("few_draws")
def test_all_pairs_with_false_discovery_control() -> None:
    table, rows = networks(8, 0.9, 0)
    table["other"] = np.random.default_rng(0).normal(size=len(table))
    found = correlations(table, (["x", "other"], ["y"]), rows)
    assert found["first"].tolist() == ["x", "other"]
    low, high = sorted(found["p"])
    assert sorted(found["q"]) == pytest.approx([min(2 * low, high), high])
    within = rows._replace(within=True)
    assert found["p"][0] == p_value(table["x"], table["y"], within)
    assert found["within"][0] == pytest.approx(association(table["x"], table["y"], within).estimate)
    means = association(table["x"], table["y"], rows._replace(average=True))
    averaged = correlations(table, (["x"], ["y"]), rows._replace(average=True), "other")
    assert averaged["rho"][0] == pytest.approx(means.estimate)
    average = within._replace(average=True)
    assert averaged["given"][0] == pytest.approx(association(table["x"], table["y"], average, table["other"]).estimate)
    assert averaged["p"][0] == p_value(table["x"], table["y"], average, table["other"])
