"""Runs side by side: rank correlations given clean accuracy, their tests, and the table, notes and figure of a comparison."""

import itertools
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_report import made_group
from scipy.stats import permutation_test, rankdata, spearmanr
from statsmodels.regression.linear_model import OLS
from statsmodels.stats.multitest import multipletests

from gch_bench.errors import UserError
from gch_bench.report import geometry_compare
from gch_bench.report.figure_style import save
from gch_bench.report.geometry_compare import CONTROL, GEOMETRY, RELIABILITY, compare, stage_rank
from gch_bench.report.geometry_correlations import EXACT, LEAST, correlations, q_values, rank_correlation, smallest_p
from gch_bench.results.geometry import MEASURED, STATIC, ChainReport
from gch_bench.results.records import Cell

CELLS = [Cell("gaussian_noise", 1), Cell("gaussian_noise", 3), Cell("contrast", 1), Cell("contrast", 3)]
NAN = math.nan


def columns(count: int, seed: int = 0) -> np.ndarray:
    """Three correlated columns (3, count)."""
    rng = np.random.default_rng(seed)
    third = rng.normal(size=count)
    return np.stack([rng.normal(size=count) + third, rng.normal(size=count) - third, third])


@settings(max_examples=25, deadline=None)
@given(st.integers(LEAST, 25), st.integers(0, 1000), st.booleans())
def test_correlations_by_their_formulas(count: int, seed: int, ties: bool) -> None:
    """The partial correlation is (r_xy - r_xz r_yz) / sqrt((1 - r_xz^2) (1 - r_yz^2)) of Spearman's correlations."""
    x, y, z = np.round(columns(count, seed)) if ties else columns(count, seed)
    found = rank_correlation(x, y, z)
    if min(map(np.ptp, (x, y, z))) == 0:
        return
    xy, xz, yz = (spearmanr(*pair).statistic for pair in ((x, y), (x, z), (y, z)))
    assert found.estimate == pytest.approx(xy, abs=1e-9)
    assert found.low <= found.high
    if max(abs(xz), abs(yz)) < 1 - 1e-9:
        expected = (xy - xz * yz) / math.sqrt((1 - xz**2) * (1 - yz**2))
        assert found.partial == pytest.approx(expected, abs=1e-9)
        assert 0 < found.p <= 1
    else:
        assert math.isnan(found.partial)
        assert math.isnan(found.p)


def freedman_lane(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> float:
    """The test as its paper has it: permuted residuals are added to the fit; the statistic is that of the full regression."""
    x, y, z = map(rankdata, (x, y, z))
    full, reduced = np.column_stack([np.ones(len(x)), z, x]), np.column_stack([np.ones(len(x)), z])
    fit = OLS(y, reduced).fit()
    found = []
    for order in itertools.permutations(range(len(x))):
        made = fit.fittedvalues + fit.resid[list(order)]
        left, right = OLS(made, reduced).fit().ssr, OLS(made, full).fit().ssr
        found.append(1 - right / left if left > 1e-9 else 0.0)  # the squared partial correlation, t^2 / (t^2 + n - 3)
    return float(np.mean(np.array(found) >= found[0] - 1e-9))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_exact_p(seed: int) -> None:
    x, y, z = columns(5, seed)
    assert rank_correlation(x, y, z).p == pytest.approx(freedman_lane(x, y, z), abs=1e-12)


def test_p_without_a_control_is_that_of_the_permutation_test() -> None:
    """A constant control explains nothing: all is as without it."""
    for count in (6, 12):
        x, y, _ = columns(count)
        found = rank_correlation(x, y, np.ones(count))
        assert found.partial == pytest.approx(found.estimate)
        expected = permutation_test(
            (x,), lambda own, y=y: spearmanr(own, y).statistic, permutation_type="pairings", n_resamples=2000, rng=0
        ).pvalue
        assert found.p == pytest.approx(expected, abs=0.02 if count > EXACT else 1e-3)


def test_a_correlation_that_accuracy_explains() -> None:
    rng = np.random.default_rng(0)
    z = rng.normal(size=40)
    x, y = z + 0.2 * rng.normal(size=40), z + 0.2 * rng.normal(size=40)
    found = rank_correlation(x, y, z)
    assert found.estimate > 0.8
    assert found.low > 0.6
    assert abs(found.partial) < 0.35
    assert found.partial_low < 0 < found.partial_high
    assert found.p > 0.05


def test_the_partial_interval() -> None:
    """Fisher's z with the variance (1 + r^2/2) / (n - 3 - 1)."""
    x, y, z = columns(12)
    found = rank_correlation(x, y, z)
    half = 1.959964 * math.sqrt((1 + found.partial**2 / 2) / 8)
    assert found.partial_low == pytest.approx(math.tanh(math.atanh(found.partial) - half), abs=1e-6)
    assert found.partial_high == pytest.approx(math.tanh(math.atanh(found.partial) + half), abs=1e-6)
    narrow = rank_correlation(x, y, z, level=0.5)
    assert found.partial_low < narrow.partial_low < narrow.partial_high < found.partial_high
    assert found.low < narrow.low < narrow.high < found.high


def test_what_has_no_correlation() -> None:
    x, y, z = columns(8)
    assert rank_correlation(x[:2], y[:2], z[:2]) == pytest.approx((2, *[NAN] * 7), nan_ok=True)
    assert rank_correlation(np.ones(8), y, z) == pytest.approx((8, *[NAN] * 7), nan_ok=True)
    few = rank_correlation(x[:4], y[:4], z[:4])
    assert math.isfinite(few.estimate)
    assert math.isnan(few.partial)
    assert math.isnan(few.p)
    determined = rank_correlation(x, y, -3 * x)  # the control has all that the ranks of x know
    assert math.isfinite(determined.estimate)
    assert math.isnan(determined.partial)
    with_gaps = rank_correlation(np.r_[x, NAN, 1.0, 2.0], np.r_[y, 1.0, math.inf, 2.0], np.r_[z, 1.0, 2.0, NAN])
    assert with_gaps == rank_correlation(x, y, z)
    with pytest.raises(ValueError, match="columns must have the same length, got 8, 7 and 8"):
        rank_correlation(x, y[:7], z)


def test_false_discovery_rates() -> None:
    p = np.array([0.01, NAN, 0.04, 0.03, 0.5])
    expected = multipletests(p[[0, 2, 3, 4]], method="fdr_bh")[1]
    assert q_values(p)[[0, 2, 3, 4]] == pytest.approx(expected)
    assert math.isnan(q_values(p)[1])
    assert np.isnan(q_values(np.full(3, NAN))).all()
    x, y, z = columns(12)
    found = correlations(pd.DataFrame({"a": x, "b": -z, "c": np.ones(12), "r": y, "z": z}), ["a", "b", "c"], ["r"], "z")
    assert list(found["geometry"]) == ["a", "b", "c"]
    assert found["q"][0] == found["p"][0]  # only one of the three pairs has a test
    assert found["q"][1:].isna().all()


def test_the_smallest_p() -> None:
    assert math.isnan(smallest_p(4))
    assert smallest_p(5) == pytest.approx(1 / 120)
    assert smallest_p(20) == 1e-4
    x = np.arange(7.0)
    found = rank_correlation(x, x + 0.01 * x**2, np.array([3.0, 1, 2, 7, 4, 6, 5]))
    assert found.p <= 4 * smallest_p(7)


def test_false_positives_are_rare() -> None:
    rng = np.random.default_rng(1)
    p = [rank_correlation(*rng.normal(size=(3, 6))).p for _ in range(150)]
    assert np.mean(np.array(p) <= 0.05) < 0.12


def report(summary: dict[str, float], kind: str = STATIC, names: tuple[str, ...] = ("layer3.0", "layer4.0", "layer4.1")):
    factors = pd.DataFrame({"name": list(names), "rank_90": [5.0, 10.0, 20.0][: len(names)]})
    return ChainReport("resnet", kind, "", factors=factors, summary=summary)


def made_runs(
    count: int, seed: int = 0, stage: str | None = "layer4", weights: list[str] | None = None, noises: int | None = None
):
    """The arguments of `compare` for runs of so many noises, by default one for each run, whose summaries lack `spikes`."""
    rng = np.random.default_rng(seed)
    of = [number % (noises or count) for number in range(count)]
    groups = [
        made_group({"name": f"noise-{one}", "law": "x", "stages": ["L4"]}, CELLS, of.count(one), False) for one in set(of)
    ]
    left = [list(group.runs.values()) for group in groups]
    runs = [left[one].pop(0) for one in of]
    names = [f"run-{i}" for i in range(count)]
    kept = [name for name in GEOMETRY if name not in ("spikes", "last_stage_rank_90")]
    reports = [
        (name, [report({}, MEASURED), report(dict(zip(kept, rng.normal(size=len(kept)), strict=True)))]) for name in names
    ]
    digests = dict(zip(names, weights or names, strict=True))
    return runs, reports, dict.fromkeys(names, stage), digests


def test_a_comparison(tmp_path: Path) -> None:
    runs, reports, stages, digests = made_runs(12)
    found = compare(runs, reports, stages, digests)
    assert list(found.table["run"]) == list(digests)
    assert list(found.table["mean_log_gain"]) == [own[1].summary["mean_log_gain"] for _, own in reports]
    assert not any(name.endswith("_z") for name in GEOMETRY)  # they grow with the width of the network
    assert found.table["spikes"].isna().all()
    assert (found.table["last_stage_rank_90"] == 15).all()
    assert found.table[CONTROL].between(0, 1).all()
    pairs = found.correlations
    assert list(pairs) == ["geometry", "reliability", "n", "estimate", "low", "high", "partial", "partial_low", "partial_high",
                           "p", "q"]  # fmt: skip
    assert len(pairs) == len(GEOMETRY) * len(RELIABILITY)
    own = pairs[(pairs["geometry"] == "displacement") & (pairs["reliability"] == "shift_nll")].iloc[0]
    one, other, control = (found.table[name].to_numpy() for name in ("displacement", "shift_nll", CONTROL))
    assert own["estimate"] == pytest.approx(spearmanr(one, other).statistic)
    assert own["p"] == rank_correlation(one, other, control).p
    assert own["n"] == 12
    assert pairs.set_index("geometry").loc[["spikes", "last_stage_rank_90"], "p"].isna().all()  # missing; constant
    tested = pairs["p"].notna()
    assert pairs["q"][tested].to_numpy() == pytest.approx(multipletests(pairs["p"][tested], method="fdr_bh")[1])
    _, columns_, rows, notes = found.console
    assert len(columns_) == len(rows[0]) == 9
    assert len(rows) == len(pairs)
    assert not [note for note in notes if "WARNING" in note]
    assert found.runs[1][0][0] == "run-0"
    assert len(found.runs[0]) == len(found.runs[1][0])
    assert found.figure is not None
    assert compare(runs, reports, stages, digests).correlations.equals(pairs)
    save({"comparison": found.figure}, tmp_path, ("png",), dpi=100)
    assert (tmp_path / "comparison.png").stat().st_size > 10_000


def test_the_figure_shows_the_clearest_quantities() -> None:
    found = compare(*made_runs(12))
    assert found.figure is not None
    panels = found.figure.axes
    assert len(panels) == geometry_compare.PANELS * len(RELIABILITY)
    smallest = found.correlations.groupby("geometry")["p"].min().nsmallest(geometry_compare.PANELS)
    assert {axis.get_xlabel() for axis in panels} - {""} == {GEOMETRY[name] for name in smallest.index}
    assert all(" given top-1, q " in axis.get_title() for axis in panels)
    texts = [text for axis in panels for text in (axis.title, axis.xaxis.label, *axis.get_xticklabels())]
    assert min(text.get_fontsize() for text in texts) >= 6


def test_runs_of_the_same_weights_count_once() -> None:
    runs, reports, stages, digests = made_runs(6, weights=["a", "b", "a", "c", "d", "e"])
    found = compare(runs, reports, stages, digests)
    assert len(found.table) == 6
    assert set(found.correlations["n"]) == {5, 0}  # 0: `spikes`, which no summary has
    notes = "\n".join(found.console[3])
    assert "WARNING: run-0, run-2 have the same weights: in correlations they are one run, of which run-0 counts" in notes
    assert "WARNING: n = 5 is small" in notes
    assert "with n = 5 the smallest p is 0.0083: a q of 0.05 needs at least 3 of the 14 pairs at that p" in notes
    without = [i for i in range(6) if i != 2]
    kept = [list(digests)[i] for i in without]
    other = compare(
        [runs[i] for i in without], [reports[i] for i in without], {k: stages[k] for k in kept}, {k: k for k in kept}
    )
    assert other.correlations.equals(found.correlations)


def test_runs_of_the_same_noise_have_no_p() -> None:
    """It would be too small: 37% of p <= 0.05 for unrelated quantities of 4 noises with 3 seeds each that go together."""
    found, other = compare(*made_runs(12, noises=4)), compare(*made_runs(12))
    assert found.correlations[["low", "high", "partial_low", "partial_high", "p", "q"]].isna().all(axis=None)
    assert found.correlations["partial"].notna().any()
    assert other.correlations[["low", "high", "partial_low", "partial_high", "p", "q"]].notna().any().all()
    (note,) = (note for note in found.console[3] if "not independent" in note)
    assert "runs of the same noise (noise-0 L4: 3, noise-1 L4: 3, noise-2 L4: 3, noise-3 L4: 3) are not independent" in note
    assert found.figure is not None
    assert all(axis.get_title().endswith(" given top-1") for axis in found.figure.axes)
    assert "largest correlation" in str(found.figure.get_suptitle())
    assert "not independent" not in "\n".join(other.console[3])
    runs, *rest = made_runs(12, noises=4)
    for number, run in enumerate(runs):  # three strengths of each noise, with one seed
        run.facts.config |= {"noise": {**run.facts.config["noise"], "gamma": number // 4 + 1.0}, "seed": 0}
    assert compare(runs, *rest).correlations["p"].notna().any()
    assert compare(*made_runs(4, noises=2)).correlations["low"].isna().all()


def test_few_runs() -> None:
    notes = "\n".join(compare(*made_runs(4)).console[3])
    assert "n = 4 allows no correlation given the clean accuracy: there are no p and no q" in notes
    one = compare(*made_runs(1))
    assert one.figure is None
    assert "one run: nothing to correlate, give several" in one.console[3]
    assert one.console[1:3] == one.runs
    twice = compare(*made_runs(2, weights=["a", "a"]))
    assert twice.figure is None
    assert "one run: nothing to correlate, give several" in twice.console[3]
    assert compare(*made_runs(3)).figure is not None


def test_no_shared_corruption() -> None:
    runs, reports, stages, digests = made_runs(2)
    runs = [run._replace(cells={cell: table for cell, table in run.cells.items() if cell not in CELLS}) for run in runs]
    found = compare(runs, reports, stages, digests)
    assert found.correlations.empty
    assert found.figure is None
    assert "no corrupted cell that all runs have" in found.console[3][0]


def test_the_rank_of_the_last_stage() -> None:
    own = report({})
    assert stage_rank(own, "layer4") == 15
    assert stage_rank(own, "layer4.1") == 20
    assert math.isnan(stage_rank(own, "layer"))
    assert math.isnan(stage_rank(own, None))
    for stage, words in ((None, "is of a stage L4, which the network does not have"), ("blocks.6", "lies inside blocks.6")):
        found = compare(*made_runs(2, stage=stage))
        assert found.table["last_stage_rank_90"].isna().all()
        assert f"run-0: no factor of chain resnet {words}; R.90 of L4 is left empty" in found.console[3]


def test_a_run_without_a_chain() -> None:
    runs, reports, stages, digests = made_runs(2)
    reports[1] = (reports[1][0], [report({}, MEASURED)])
    with pytest.raises(UserError, match=f"{runs[1].folder} has no chain to compare: give chain=NAME or chain=FILE.yaml"):
        compare(runs, reports, stages, digests)


def test_different_chains_and_protocols() -> None:
    runs, reports, stages, digests = made_runs(2)
    reports[1][1][1].chain = "other"
    runs[1].facts.protocol_id = "another"
    notes = "\n".join(compare(runs, reports, stages, digests).console[3])
    assert "WARNING: the chains differ (other, resnet) and are not comparable" in notes
    assert "DIFFERENT PROTOCOLS and are not comparable: another, made up" in notes
