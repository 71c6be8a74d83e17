"""Networks one by one and beside the baseline, and the two scripts that correlate them, on made-up records."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from made_report import NONE, made_group, noise
from scipy.stats import false_discovery_control

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

import geometry_and_reliability
import theory_beside_measurement
from correlation_report import level_of, rows_at
from theory_beside_measurement import HEADLINE, STRENGTH

from gch_bench.errors import UserError
from gch_bench.report import clustered
from gch_bench.report.geometry_compare import GEOMETRY
from gch_bench.report.networks import CONTROL, SHIFT, against_baseline, networks_table, read_setting
from gch_bench.report.runs import means
from gch_bench.report.study import Setting
from gch_bench.results.records import CELL_CLEAN, Cell

CELLS = [Cell("fog", 1), Cell("contrast", 1)]
KINDS = ("gch", "dropout", "dropblock", "additive", "hard_mask", "wick")


def made_setting(seeds: int = 2) -> Setting:
    noises = [NONE, *(noise(kind, p=p) | {"law": f"law of {kind}"} for kind in KINDS for p in (0.2, 0.6))]
    groups = [made_group(own, CELLS, seeds, logits=False) for own in noises]
    return Setting("made up", groups, groups[0], CELLS)


def test_the_numbers_of_a_network() -> None:
    setting = made_setting()
    table = networks_table(setting)
    assert len(table) == 2 * (1 + 2 * len(KINDS))
    assert not any("after_T" in name for name in table)  # there are no logits
    group = setting.groups[3]
    own = table[(table["mechanism"] == group.mechanism) & (table["seed"] == 1)].iloc[0]
    expected = means(group.runs[1], CELLS)
    for name in ("nll", "ece", "top1"):
        assert own[name] == pytest.approx(expected[name])
    assert own[CONTROL] == pytest.approx(means(group.runs[1], [CELL_CLEAN])["top1"])
    assert own["gate_variance"] == pytest.approx(group.noise["p"] / 2)


def test_differences_are_taken_at_equal_seed() -> None:
    setting = made_setting()
    del setting.groups[0].runs[0]
    table = networks_table(setting)
    found = against_baseline(table)
    assert set(found["seed"]) == {1}
    assert set(found["noise"]) == set(KINDS)
    base = table[table["noise"] == "none"].iloc[0]
    whole = table[table["seed"] == 1].set_index("mechanism")
    for name in (CONTROL, *(name for name in SHIFT if name in table)):
        assert found.set_index("mechanism")[name].to_numpy() == pytest.approx(
            whole.loc[found["mechanism"], name].to_numpy() - base[name]
        )


def test_the_level_of_a_network() -> None:
    networks = pd.DataFrame({"gate_variance": [0.0993, 0.333, 0.9, 0.17, 0.18], "mechanism": [*"abcde"]}, index=[3, 1, 4, 5, 6])
    found = level_of(networks, [0.1, 0.3, 0.9])  # in the logarithm 0.1 and 0.3 meet at 0.173
    pd.testing.assert_series_equal(found, pd.Series([0.1, 0.3, 0.9, 0.1, 0.3], networks.index), check_names=False)
    assert level_of(networks, []).tolist() == [0.1, 0.3, 0.9, 0.2, 0.2]
    with pytest.raises(UserError, match="must have a gate variance to be compared at equal strength, c has none"):
        level_of(networks.assign(gate_variance=[1.0, 1.0, np.nan, 1.0, 1.0]), [0.3])


def test_the_rows_of_networks() -> None:
    networks = pd.DataFrame({"noise": [*"aab"], "seed": 0, "stage": "L4", "level": [0.1, 0.3, 0.3]})
    rows = rows_at(networks, average=True)
    assert (rows.cluster.tolist(), rows.key.tolist(), rows.average) == ([0, 0, 1], [0, 1, 1], True)
    with pytest.raises(UserError, match="--levels must tell the strengths of each mechanism apart"):
        rows_at(networks.assign(level=0.3), average=True)


def test_runs_that_are_no_study(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="matches none"):
        read_setting([f"{tmp_path}/*"])


def compatibility_folder(folder: Path, setting: Setting, numbers: dict[str, dict[str, float]]) -> Path:
    """What diagnose.py mode=compatibility writes, with these numbers of each mechanism."""
    groups = setting.groups[1:]
    facts = {
        "kind": "compatibility",
        "mechanisms": {group.mechanism: "" for group in groups},
        "config": {"mechanisms": [{**group.noise, "mass": None, "eval": True} for group in groups]},
    }
    where = {"stage": "L4", "module": "bn2", "height": 4, "width": 4, "survives": True}
    rows = [{**where, "mechanism": group.mechanism, **numbers[group.mechanism]} for group in groups]
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps(facts))
    pd.DataFrame(rows).to_parquet(folder / "summary.parquet")
    names = ["stage", "mechanism", "section", "quantity", "measured", "verdict", "coherence", "positivity", "logit_distortion"]
    for name in ("measurements", "images"):
        pd.DataFrame(columns=names).to_parquet(folder / f"{name}.parquet")
    return folder


@pytest.fixture
def study(monkeypatch: pytest.MonkeyPatch) -> Setting:
    setting = made_setting()
    for script in (theory_beside_measurement, geometry_and_reliability):
        monkeypatch.setattr(script, "read_setting", lambda patterns: (setting, ["a note"]))
        monkeypatch.setattr(script, "machine", lambda device: "a machine")
    monkeypatch.setattr(clustered, "RESAMPLES", 100)
    monkeypatch.setattr(clustered, "DRAWS", 719)
    return setting


def test_theory_beside_measurement_finds_what_was_planted(study: Setting, tmp_path: Path) -> None:
    effects = against_baseline(networks_table(study)).groupby("mechanism")["nll"].mean()
    rng = np.random.default_rng(0)
    numbers: dict[str, dict[str, float]] = {}
    for group in study.groups[1:]:
        own = dict.fromkeys(HEADLINE, 0.0) | {STRENGTH: group.noise["p"], "clear_order_lost": float(rng.normal())}
        own |= {"pooled_distortion": float(effects[group.mechanism]), "singular_share": 0.5}
        if group.noise["name"] == "additive":  # it has no ratio of gates
            own["singular_share"] = np.nan
        numbers[group.mechanism] = own
    folder = compatibility_folder(tmp_path / "measured", study, numbers)
    options: dict[str, Any] = {"runs": ["RUN"], "noises": False, "levels": [0.2, 0.6], "output": tmp_path / "out"}
    theory_beside_measurement.study(argparse.Namespace(compatibility=[folder], **options))
    found = pd.read_csv(tmp_path / "out" / "correlations.csv").set_index(["first", "second"])
    planted = found.loc[("pooled_distortion", "nll")]
    assert planted["rho"] == pytest.approx(1)
    assert planted["p"] < 0.02
    singular = found.loc[("singular_share", "nll")]
    assert np.isnan(singular["rho"])  # the same for all
    assert singular["n"] == 2 * (len(KINDS) - 1)
    assert np.isnan(found.loc[(STRENGTH, "nll"), ["within", "p", "q"]].to_numpy(np.float64)).all()
    assert found.loc[("clear_order_lost", "nll"), "p"] > 0.05
    assert found.loc[("pooled_distortion", "nll"), "n"] == 2 * len(KINDS)
    points = pd.read_csv(tmp_path / "out" / "table.csv")
    assert len(points) == 2 * len(KINDS)
    assert points["nll"].to_numpy() == pytest.approx(effects[points["mechanism"]].to_numpy())
    text = (tmp_path / "out" / "tables.md").read_text()
    assert "a note" in text
    assert (tmp_path / "out" / "figure.svg").is_file()
    del numbers[study.groups[1].mechanism]
    study.groups.pop(2)
    short = compatibility_folder(tmp_path / "short", study._replace(groups=[study.groups[0], *study.groups[2:]]), numbers)
    with pytest.raises(UserError, match=r"lacks gch p=0\.2"):
        theory_beside_measurement.study(argparse.Namespace(compatibility=[short], **options))


def test_strengths_that_levels_do_not_tell_apart(study: Setting, tmp_path: Path) -> None:
    numbers = {group.mechanism: dict.fromkeys(HEADLINE, 0.0) | {STRENGTH: group.noise["p"]} for group in study.groups[1:]}
    folder = compatibility_folder(tmp_path / "measured", study, numbers)
    options = argparse.Namespace(runs=["RUN"], noises=False, levels=[0.2], output=tmp_path / "out", compatibility=[folder])
    with pytest.raises(UserError, match="--levels"):
        theory_beside_measurement.study(options)


def test_geometry_and_reliability_measures_each_network_once(
    study: Setting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    networks = networks_table(study)
    networks = networks.assign(weights=[f"{number:03d}" for number in range(len(networks))])
    monkeypatch.setattr(geometry_and_reliability, "networks_table", lambda setting: networks)
    measured = []

    class Report:
        chain = "made up"

        def __init__(self) -> None:
            at = (len(measured) - 1) % len(networks)
            self.summary = dict.fromkeys(GEOMETRY, 1.0) | {"spikes": networks["nll"][at], "angle_excess": at % 7}

    def report(folder: Path, first: str | None) -> tuple[Report, str]:
        measured.append(folder)
        return Report(), "layer4"

    monkeypatch.setattr(geometry_and_reliability, "chain_report", report)
    monkeypatch.setattr(geometry_and_reliability, "stage_rank", lambda report, stage: 1.0)
    cache = tmp_path / "out" / geometry_and_reliability.MEASURED
    cache.parent.mkdir()
    for _ in range(2):
        geometry_and_reliability.geometry_of(networks, "blocks.4.2", cache)
    assert len(measured) == len(networks)
    monkeypatch.setattr(geometry_and_reliability, "code_digest", lambda: "another")
    options = argparse.Namespace(runs=["RUN"], first="blocks.4.2", levels=[0.1, 0.3], output=tmp_path / "out")
    geometry_and_reliability.study(options)
    geometry_and_reliability.geometry_of(networks, "blocks.4.2", cache)
    assert len(measured) == 2 * len(networks)
    both = pd.read_csv(tmp_path / "out" / "correlations.csv").set_index(["first", "second"])
    assert set(both.reset_index()["first"]) == {"spikes", "angle_excess"}  # the others are the same in all networks
    for compared, n in (("networks", 4 * len(KINDS)), ("means over seeds", 2 * len(KINDS))):
        found = both[both["compared"] == compared]
        assert found.loc[("spikes", "nll"), "given"] == pytest.approx(1)
        assert found.loc[("spikes", "nll"), "n"] == n
    assert both["q"].tolist() == pytest.approx(false_discovery_control(both["p"]).tolist()), "over the tests of both"
    assert "certified rank" in (tmp_path / "out" / "tables.md").read_text()


def test_geometry_and_reliability_refuses_noise_without_gate_variance(study: Setting, tmp_path: Path) -> None:
    (run, *_) = study.groups[-1].runs.values()
    run.facts.stages[0]["gate_variance"], run.facts.weights = None, "its digest"
    options = argparse.Namespace(runs=["RUN"], first=None, levels=[0.1, 0.3], output=tmp_path / "out")
    with pytest.raises(UserError, match=r"wick p=0\.6 L4 has none: leave it out"):
        geometry_and_reliability.study(options)
