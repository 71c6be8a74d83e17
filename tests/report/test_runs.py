"""Finding, reading and sorting runs: what may be compared, and what is left out with a reason."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from made_report import NONE, made_group, noise

from gch_bench.errors import UserError
from gch_bench.files import write_json
from gch_bench.metrics import SHOWN
from gch_bench.noise import make_mechanism
from gch_bench.report.networks import left_out, networks_table, read_setting, title
from gch_bench.report.runs import find_folders, means, mechanism_label, read_run, read_runs, settings_of, shared_cells
from gch_bench.report.study import Run, Setting
from gch_bench.results.records import CELL_CLEAN, Cell, write_record
from gch_bench.results.runfacts import RunFacts

CELLS = [CELL_CLEAN, *(Cell(name, severity) for name in ("brightness", "contrast") for severity in (1, 2))]


def make_run(name: str, draws: int = 0, seed: int = 0, cells: list[Cell] = CELLS, gamma: float = 1.0, **changed: Any) -> Run:
    """A run whose identity is that of `name` with `seed`; `changed` are further parts of its identity and configuration."""
    rng, rows = np.random.default_rng(draws), {}
    labels = np.arange(60) % 3
    for cell in cells:
        prediction = np.where(rng.random(60) < 0.7, labels, rng.integers(0, 3, 60))
        numbers = {key: rng.random(60) for key in ("confidence", "nll", "brier", "entropy")}
        rows[cell] = pd.DataFrame({"id": np.arange(60), "label": labels, "prediction": prediction, "top5": True, **numbers})
    law = None if name == "none" else "samplewise"
    noise = {"name": name, "law": law, "gamma": gamma if law else None, "stages": ["L4"]}
    shared = {"model": {"name": "resnet18"}, "recipe": {"lr": 0.1}, "inputs": {"weights": None}, **changed}
    facts = RunFacts(
        status="finished", started="", command="train.py", processes=1, device="cpu", commit="c", versions={}, hardware={},
        protocol_id="p", protocol={"data": "digits", "source": "generated", "noise_at_test": "off"}, mechanism=name, stages=[],
        warnings=[], data={"num_classes": 3}, parameters=1, config={"noise": noise, "seed": seed, **shared},
        identity={"schema": 1, "noise": noise, "seed": seed, **shared}, weights=f"w{draws}",
    )  # fmt: skip
    return Run(Path("runs") / f"{name}-{draws}", facts, rows, {})


def save(run: Run, folder: Path) -> Path:
    """The run as a folder on disk."""
    write_json(folder / "run.json", {"format": 2, **run.facts.__dict__})
    for cell, rows in run.cells.items():
        write_record(folder, cell, rows, {"protocol": "p", "weights": str(run.facts.weights)})
    return folder


def test_patterns(tmp_path: Path) -> None:
    for name in ("b", "a"):
        save(make_run("none"), tmp_path / name)
    (tmp_path / "no_run").mkdir()
    (tmp_path / "file.log").touch()
    write_json(tmp_path / "diagnosis" / "run.json", {"kind": "diagnosis"})
    assert find_folders([f"{tmp_path}/*"]) == [tmp_path / "a", tmp_path / "b"]
    assert find_folders([f"{tmp_path}/b", f"{tmp_path}/*"]) == [tmp_path / "b", tmp_path / "a"], "each once"
    save(make_run("none"), tmp_path / "sweep" / "c")
    for patterns, message in (
        ([], r"must be a list of run folders, got \[\]"),
        ([f"{tmp_path}/z*"], r"which matches none \(they hold run.json\)$"),
        ([f"{tmp_path}/d*"], r"matches none \(they hold run.json\)$"),
        ([f"{tmp_path}/s*"], r"there is one at .*/sweep/c$"),
    ):
        with pytest.raises(UserError, match=message) as error:
            find_folders(patterns)
        assert "\n" not in str(error.value)


def test_a_run_comes_back_from_its_folder(tmp_path: Path) -> None:
    run = make_run("gch", 1)
    back = read_run(save(run, tmp_path / "run"))
    assert back.cells.keys() == run.cells.keys()
    np.testing.assert_allclose(back.cells[CELLS[2]]["nll"], run.cells[CELLS[2]]["nll"], rtol=1e-6)


@pytest.mark.parametrize("how", ["unfinished", "damaged", "no clean", "newer", "no json", "empty"])
def test_broken_runs_are_left_out_with_a_line(tmp_path: Path, how: str) -> None:
    good, bad = save(make_run("none"), tmp_path / "good"), save(make_run("gch", 1), tmp_path / "bad")
    facts = json.loads((bad / "run.json").read_text())
    record = bad / "records" / "contrast-2.parquet"
    if how == "unfinished":
        write_json(bad / "run.json", {**facts, "status": "running"})
    elif how == "damaged":
        record.write_bytes(record.read_bytes()[:500])
    elif how == "empty":
        record.write_bytes(b"")
    elif how == "no clean":
        (bad / "records" / "clean-0.parquet").unlink()
    elif how == "newer":
        write_json(bad / "run.json", {**facts, "format": 99})
    else:
        (bad / "run.json").write_text("{")
    found = read_runs([good, bad])
    assert [run.folder for run in found.runs] == [good]
    assert len(found.refused) == 1
    assert str(bad) in found.refused[0]
    assert "\n" not in found.refused[0]
    with pytest.raises(UserError):
        read_runs([bad])


def test_groups_and_baseline() -> None:
    runs = [make_run("gch", 1), make_run("none", 0), make_run("gch", 2, seed=1), make_run("gch", 3, gamma=2.0)]
    (setting,), refused = settings_of(runs, "none")
    assert setting.name == "digits resnet18"
    assert [group.mechanism for group in setting.groups] == ["none", "gch gamma=1 L4", "gch gamma=2 L4"], "baseline first"
    assert setting.baseline is setting.groups[0]
    assert sorted(setting.groups[1].runs) == [0, 1]
    assert setting.cells == CELLS[1:]
    assert len(refused) == 1
    assert "gch gamma=1 L4 with seed 1 is left out of the differences, because none has no run with that seed" in refused[0]


def test_settings_are_named_by_what_can_be_read() -> None:
    trained, other = make_run("none"), make_run("none", recipe={"lr": 0.2})
    digests = {"weights": "820d096859cb5b49", "images": "f65c6408e5b86b2b"}
    evaluated = make_run("none", inputs=digests)
    identity = {name: value for name, value in evaluated.facts.identity.items() if name != "recipe"}
    facts = replace(evaluated.facts, identity=identity, origin=trained.facts.identity)
    evaluated = evaluated._replace(facts=facts)
    names = [setting.name for setting in settings_of([trained, other, evaluated], "none")[0]]
    flipped = make_run("none", recipe={"lr": 0.1, "augment": {"hflip": 0.5}})
    two = [setting.name for setting in settings_of([trained, flipped], "none")[0]]
    assert two == ["digits resnet18 recipe.augment.hflip=None", "digits resnet18 recipe.augment.hflip=0.5"]
    assert names == ["digits resnet18 recipe.lr=0.1 (1)", "digits resnet18 recipe.lr=0.2", "digits resnet18 recipe.lr=0.1 (3)"]
    assert settings_of([trained], "none")[0][0].name == "digits resnet18"


def test_the_baseline_may_be_a_label() -> None:
    runs = [make_run("none", 0), make_run("gch", 1), make_run("gch", 2, gamma=2.0)]
    (setting,), _ = settings_of(runs, "gch gamma=2 L4")
    assert setting.baseline is not None
    assert setting.baseline.runs[0] is runs[2]
    with pytest.raises(UserError, match="baseline must name one mechanism, got gch, which is 'gch gamma=1 L4', 'gch gamma=2"):
        settings_of(runs, "gch")


def test_mechanisms_with_one_label_are_told_apart() -> None:
    one, two, three = make_run("gch", 0), make_run("gch", 1), make_run("gch", 2, seed=1)
    for run, boundary in ((one, None), (two, "inside"), (three, "outside")):
        run.facts.config["noise"] |= {"kernel": "dirichlet_green", "boundary": boundary, "per_channel": None}
    three.facts.config["noise"]["per_channel"] = False
    (setting,), _ = settings_of([one, two, three], "none")
    names = ["gch gamma=1 L4 boundary=inside", "gch gamma=1 L4 boundary=outside"]
    assert sorted(group.mechanism for group in setting.groups) == names
    assert next(group.runs for group in setting.groups if group.mechanism == names[1]) == {0: one, 1: three}, "null is outside"
    assert mechanism_label({"name": "gch", "law": "x", "stages": ["L3", "L4"], "p": 0.5, "eval": True, "mc_samples": 10}) == (
        "gch p=0.5 L3+L4 MC 10"
    )


def test_runs_of_an_older_version_are_the_same_mechanism() -> None:
    """Their run.json lacks fields that are null today, and has the former name of a law; evaluating them works, too."""
    old, new = make_run("additive", 0), make_run("additive", 1, seed=1)
    shared = {"kernel": "white", "match_variance": True, "gamma": None, "sigma": 0.1}
    old.facts.config["noise"] |= {**shared, "law": "additive"}
    new.facts.config["noise"] |= {**shared, "law": "gaussian", "injection": None, "channel_rms": None}
    (setting,), _ = settings_of([old, new], "none")
    assert [group.runs for group in setting.groups] == [{0: old, 1: new}]
    mechanisms = [make_mechanism(law, "white", {"sigma": 0.1}) for law in ("additive", "gaussian")]
    assert repr(mechanisms[0]) == repr(mechanisms[1])


def test_runs_that_differ_in_more_than_noise_are_not_compared() -> None:
    """Their numbers are shown in a setting of their own, and a line says what differs."""
    runs = [make_run("none", 0), make_run("gch", 1), make_run("gch", 2, recipe={"lr": 0.2})]
    (first, second), refused = settings_of(runs, "none")
    assert [group.mechanism for group in second.groups] == ["gch gamma=1 L4"]
    assert second.baseline is None
    assert (first.name, second.name) == ("digits resnet18 recipe.lr=0.1", "digits resnet18 recipe.lr=0.2")
    assert refused == [
        "digits resnet18 recipe.lr=0.2: no difference from none is computed, because no run has noise=none, and that of"
        " digits resnet18 recipe.lr=0.1 differs in more than noise (recipe.lr: 0.2 | 0.1)"
    ]


def test_another_protocol_is_another_setting_but_noise_at_test_time_is_not() -> None:
    one, two, three = make_run("none", 0), make_run("gch", 1), make_run("gch", 2, gamma=2.0)
    two.facts.protocol["precision"] = "bf16"
    three.facts.protocol["noise_at_test"] = "on-T10"
    settings, _ = settings_of([one, two, three], "none")
    assert [len(setting.groups) for setting in settings] == [2, 1]


def test_evaluations_of_runs_share_a_setting_if_their_trainings_do() -> None:
    """An evaluation's identity holds the digest of its weights, which says nothing; that of the run that made them does."""
    runs = [make_run(name, draws, recipe=None, inputs={"weights": f"w{draws}"}) for draws, name in enumerate(("none", "gch"))]
    assert len(settings_of(runs, "none")[0]) == 2, "of unknown origin"
    for run in runs:
        run.facts.origin = {"schema": 1, "noise": run.facts.identity["noise"], "seed": 0, "recipe": {"lr": 0.1}}
    assert len(settings_of(runs, "none")[0]) == 1
    assert runs[1].facts.origin is not None
    runs[1].facts.origin["recipe"] = {"lr": 0.2}
    assert len(settings_of(runs, "none")[0]) == 2


@pytest.mark.parametrize(("noise", "seed"), [("gch", 0), ("none", 1)])
def test_weights_evaluated_as_another_mechanism_or_seed_are_left_out(noise: str, seed: int) -> None:
    """An evaluation by model.checkpoint= knows only the noise and seed of its command, not those of the training."""
    runs = [make_run("none", draws, recipe=None) for draws in (0, 1)]
    runs[0].facts.origin = {**runs[0].facts.identity, "recipe": {"lr": 0.1}}
    runs[1].facts.origin = {**make_run(noise, seed=seed).facts.identity, "recipe": {"lr": 0.1}}
    (setting,), refused = settings_of(runs, "none")
    assert setting.groups[0].runs == {0: runs[0]}
    assert refused[0].startswith(
        f"runs/none-1 is left out: it evaluates weights of a run with noise {noise} and seed {seed} as"
    )


def test_a_second_run_of_a_seed_is_left_out() -> None:
    one, two = make_run("gch", 0), make_run("gch", 1)
    (setting,), refused = settings_of([make_run("none", 5), one, two], "none")
    assert setting.groups[1].runs == {0: one}
    assert refused == [
        "runs/gch-1 is left out: runs/gch-0 is a run of gch gamma=1 L4 with seed 0, too; name only one of them in runs="
    ]


@pytest.mark.parametrize("how", ["ids", "labels", "fewer in a cell", "stored"])
def test_other_images_are_left_out(how: str) -> None:
    runs = [make_run("gch", 2, gamma=2.0), make_run("none", 0), make_run("gch", 1)]  # the odd one comes first
    if how == "ids":
        for cell in CELLS:
            runs[0].cells[cell]["id"] += 1
    elif how == "labels":
        for cell in CELLS:
            runs[0].cells[cell]["label"] = 0
    elif how == "fewer in a cell":
        runs[0].cells[CELLS[-1]] = runs[0].cells[CELLS[-1]][:40]
    else:
        for run, fingerprint in zip(runs, "baa", strict=True):
            run.images.update(dict.fromkeys(CELLS[1:], fingerprint))
    (setting,), refused = settings_of(runs, "none")
    assert [group.mechanism for group in setting.groups] == ["none", "gch gamma=1 L4"]
    assert len(refused) == 1
    assert refused[0].startswith("runs/gch-2 is left out: ")


def test_missing_cells_are_named() -> None:
    runs = [make_run("none", 0), make_run("gch", 1), make_run("gch", 2, gamma=2.0, cells=CELLS[:3])]
    (setting,), refused = settings_of(runs, "none")
    assert setting.cells == CELLS[1:], "those of most runs"
    assert refused[0].startswith("runs/gch-2 has no record of 2 of the 4 corrupted cells (contrast-1, contrast-2): it is left")


def test_runs_on_clean_images_alone_do_not_hide_the_corrupted_ones_of_others() -> None:
    runs = [make_run("none", 0), make_run("gch", 1, cells=CELLS[:1]), make_run("gch", 2, gamma=2.0, cells=CELLS[:1])]
    (setting,), refused = settings_of(runs, "none")
    assert setting.cells == CELLS[1:]
    assert [line.split(" ", 1)[0] for line in refused] == ["runs/gch-1", "runs/gch-2"]


def test_means_over_shared_cells() -> None:
    runs = [make_run("none", 0), make_run("gch", 1, cells=[*CELLS[:4], Cell("spatter", 1)])]
    cells = shared_cells(runs)
    assert cells == [CELLS[1], CELLS[3]], "severities that all shared corruptions have, without the extra ones"
    expected = np.mean([(runs[0].cells[cell]["label"] == runs[0].cells[cell]["prediction"]).mean() for cell in cells])
    assert means(runs[0], cells)["top1"] == pytest.approx(expected)
    assert set(SHOWN) <= set(means(runs[0], [CELL_CLEAN]))


def test_runs_of_several_settings_are_no_study(tmp_path: Path) -> None:
    for lr in (0.1, 0.2):
        save(make_run("none", recipe={"lr": lr}), tmp_path / f"{lr}")
    with pytest.raises(UserError, match=r"got 2 settings: .*recipe\.lr=0\.1; .*recipe\.lr=0\.2"):
        read_setting([f"{tmp_path}/*"])


def test_columns_that_a_table_of_networks_lacks_are_named() -> None:
    baseline, own = (made_group(each, CELLS[1:], 2, logits=True) for each in (NONE, noise("gch", p=0.3)))
    setting = Setting("made up", [baseline, own], baseline, CELLS[1:])
    assert left_out(networks_table(setting)) == []
    own.runs[1] = own.runs[1]._replace(calibrated=None)  # too few errors for a temperature
    table = networks_table(setting)
    (line,) = left_out(table)
    assert "smece_after_T" not in table
    assert line.startswith(f"Left out: {title('nll_after_T')}, ")


def test_reading_leaves_the_folder_as_it_is(tmp_path: Path) -> None:
    folder = save(make_run("none"), tmp_path / "run")
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    read_run(folder)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    shutil.rmtree(folder)
    with pytest.raises(UserError):
        read_run(folder)
