"""checkpoints=[...]: which network each entry means, and what cannot be told."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import TINY, configuration
from PIL import Image

from gch_bench.apps.networks import configurations, frozen_stage
from gch_bench.apps.report import build
from gch_bench.apps.run import train_and_evaluate
from gch_bench.config.report import ReportConfig
from gch_bench.config.run import LoggerConfig
from gch_bench.display import Display
from gch_bench.results.records import CELL_CLEAN, Cell, read_logits, read_record
from gch_bench.results.runfacts import read_run_facts

Refused = Callable[..., str]
QUICK = (*TINY, "recipe.epochs=1", "corruptions.names=[contrast]", "corruptions.severities=[2]")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two trained runs: a without noise, b with gch and another seed."""
    folder = tmp_path_factory.mktemp("runs")
    train_and_evaluate(configuration(*QUICK, "corruptions=none", f"output={folder / 'a'}"))
    train_and_evaluate(configuration(*QUICK, "corruptions=none", "noise=gch", "seed=3", f"output={folder / 'b'}"))
    return folder


def entries(*names: object) -> str:
    return f"checkpoints=[{','.join(str(name) for name in names)}]"


def test_each_entry_means_a_network(runs: Path, tmp_path: Path) -> None:
    shutil.copy(runs / "a" / "checkpoints" / "last.pt", tmp_path / "weights.pt")
    listed = entries(runs / "b", runs / "a" / "checkpoints" / "last.pt", tmp_path / "weights.pt", "timm:resnet50.tv_in1k")
    made = configurations(configuration(*QUICK, listed, "noise.eval=true", "noise.mc_samples=4", name="evaluate"))
    assert [each.model.name for each in made] == ["custom", "custom", "custom", "resnet50.tv_in1k"]
    assert [each.model.pretrained for each in made] == [False, False, False, True]
    assert [each.noise.name for each in made] == ["gch", "none", "none", "none"]
    assert [each.seed for each in made] == [3, 0, 0, 0]
    assert (made[0].noise.eval, made[0].noise.mc_samples) == (True, 4)
    assert [f"checkpoints=[{','.join(part for each in made for part in each.checkpoints)}]"] == [listed]
    assert made[1].model.checkpoint == str(runs / "a" / "checkpoints" / "last.pt")
    assert frozen_stage(made[0]) is None


@pytest.mark.parametrize("name", ["efficientnet_lite1", "tf_efficientnet_lite1", "tf_efficientnet_lite1.in1k"])
def test_the_names_of_a_packaged_network_need_no_download(name: str) -> None:
    (made,) = configurations(configuration(*QUICK, entries(f"timm:{name}"), name="evaluate"))
    assert (made.model.name, made.model.pretrained) == ("tf_efficientnet_lite1", True)
    (other,) = configurations(configuration(*QUICK, entries("timm:efficientnet_lite0.ra_in1k"), name="evaluate"))
    assert other.model.name == "efficientnet_lite0.ra_in1k", "timm's other network keeps its full name"


def test_a_pattern_means_the_runs_and_weights_that_match(
    runs: Path, tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in (10, 2):
        shutil.copytree(runs / "a", tmp_path / f"run-{number}")
    shutil.copy(runs / "a" / "checkpoints" / "last.pt", tmp_path / "run-3.pt")
    (tmp_path / "run-notes.txt").write_text("neither a run nor weights")
    (tmp_path / "run-empty").mkdir()
    made = configurations(configuration(*QUICK, entries(tmp_path / "run-*", runs / "b"), "output=out", name="evaluate"))
    assert [each.output for each in made] == ["out/run-2", "out/run-3.pt", "out/run-10", "out/b"]
    line = refused(*QUICK, entries(tmp_path / "run-n*"), f"output={tmp_path / 'out'}", name="evaluate")
    assert "checkpoints must match at least one run folder or file of weights" in line
    again = configurations(configuration(*QUICK, entries(runs / "a", runs / "*"), name="evaluate"))
    assert [each.checkpoints for each in again] == [[str(runs / "a")], [str(runs / "b")]], "each network once"
    monkeypatch.chdir(runs)
    again = configurations(configuration(*QUICK, entries("./a", "*", runs / "*"), name="evaluate"))
    assert [each.checkpoints for each in again] == [["./a"], ["b"]], "in whatever words it is named"


def test_networks_of_the_same_name_get_folders_of_their_own(runs: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        shutil.copy(runs / name / "checkpoints" / "last.pt", tmp_path / name / "model.pt")
    listed = entries(tmp_path / "a" / "model.pt", tmp_path / "b" / "model.pt", runs / "a")
    made = configurations(configuration(*QUICK, listed, "output=out", name="evaluate"))
    assert [each.output for each in made] == ["out/a-model.pt", "out/b-model.pt", "out/a"]


def test_parents_are_added_until_the_names_differ(tmp_path: Path, runs: Path) -> None:
    for name in ("exp1", "exp2"):
        (tmp_path / name / "checkpoints").mkdir(parents=True)
        shutil.copy(runs / "a" / "checkpoints" / "last.pt", tmp_path / name / "checkpoints" / "last.pt")
    listed = entries(*(tmp_path / name / "checkpoints" / "last.pt" for name in ("exp1", "exp2")))
    made = configurations(configuration(*QUICK, listed, "output=out", name="evaluate"))
    assert [each.output for each in made] == ["out/exp1-checkpoints-last.pt", "out/exp2-checkpoints-last.pt"]


def test_one_pass_gives_the_records_of_runs_alone(runs: Path, tmp_path: Path) -> None:
    options = (*QUICK, "records.logits=true", "records.logits_cells=[contrast]")
    train_and_evaluate(configuration(*options, entries(runs / "a", runs / "b"), f"output={tmp_path / 'all'}", name="evaluate"))
    for name in ("a", "b"):
        alone, together = tmp_path / name, tmp_path / "all" / name
        train_and_evaluate(configuration(*options, entries(runs / name), f"output={tmp_path}", name="evaluate"))
        for cell in (CELL_CLEAN, Cell("contrast", 2)):
            assert (alone / "records" / cell.file_name).read_bytes() == (together / "records" / cell.file_name).read_bytes()
        pd.testing.assert_frame_equal(read_record(alone, CELL_CLEAN), read_record(runs / name, CELL_CLEAN), check_exact=True)
        assert read_logits(together, Cell("contrast", 2)).shape == (360, 10)
        assert (alone / "summary.csv").read_bytes() == (together / "summary.csv").read_bytes()


def test_logits_that_are_wanted_later_are_made_later(runs: Path, tmp_path: Path) -> None:
    options = (*QUICK, entries(runs / "a"), f"output={tmp_path}")
    train_and_evaluate(configuration(*options, name="evaluate"))
    before = read_record(tmp_path / "a", CELL_CLEAN)
    train_and_evaluate(configuration(*options, "records.logits=true", name="evaluate"))
    assert read_logits(tmp_path / "a", CELL_CLEAN).shape == (360, 10)
    assert read_record(tmp_path / "a", CELL_CLEAN).equals(before)


@pytest.mark.parametrize(
    ("listed", "message"),
    [
        (entries("nowhere"), "checkpoints must name run folders, files of weights or timm:NAME, got nowhere (no such file"),
        (entries("timm:nonsense"), "unknown model 'nonsense'"),
        (entries("RUNS/a", "RUNS/a"), "checkpoints must name each network once, got RUNS/a twice"),
        (entries("RUNS/a", "RUNS/b/../a"), "got RUNS/a and RUNS/b/../a, which are the same"),
        (entries("RUNS/a", "RUNS/a/checkpoints/last.pt"), "checkpoints must name different networks"),
        (entries("RUNS"), "a folder without checkpoints/last.pt"),
        (
            entries("weights.txt"),
            "error: checkpoints: weights.txt cannot be read, it is truncated or no state dict of tensors\n",
        ),
        (entries("other.pt"), "checkpoints: other.pt holds another architecture"),
    ],
)
def test_entries_that_cannot_be_told(
    runs: Path, tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch, listed: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights.txt").write_text("no weights")
    torch.save({"layer.weight": torch.zeros(2)}, "other.pt")
    line = refused(*QUICK, listed.replace("RUNS", str(runs)), f"output={tmp_path / 'out'}", name="evaluate")
    assert message.replace("RUNS", str(runs)) in line + "\n"
    assert not (tmp_path / "out").exists()


def test_networks_of_other_classes_are_refused_before_the_pass(runs: Path, tmp_path: Path, refused: Refused) -> None:
    for name in ("cat", "dog"):
        (tmp_path / "data" / "val" / name).mkdir(parents=True)
        Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(tmp_path / "data" / "val" / name / "0.png")
    line = refused(
        *QUICK,
        "data=folder",
        f"data.root={tmp_path / 'data'}",
        entries(runs / "a"),
        f"output={tmp_path / 'out'}",
        name="evaluate",
    )
    assert f"checkpoints: {runs / 'a'} has 10 classes and the data 2: choose the data it was trained on" in line
    assert "reset_head" not in line, "evaluate.py would not train the new classifier"
    assert "for data=timm also data.num_classes=10" in line
    assert not (tmp_path / "out").exists()


def test_train_takes_no_list(refused: Refused) -> None:
    assert "checkpoints must be left out with train.py" in refused(*QUICK, entries("a"))


def test_a_recalibrated_run_gives_the_network_that_it_recorded(tmp_path: Path) -> None:
    options = (*QUICK, "corruptions=none", "noise=gch", "noise.stages=[early]", "recipe.ema_decay=0.9")
    train_and_evaluate(configuration(*options, "recipe.recalibrate_bn=true", f"output={tmp_path / 'run'}"))
    listed = entries(tmp_path / "run")
    train_and_evaluate(configuration(*QUICK, "corruptions=none", listed, f"output={tmp_path / 'again'}", name="evaluate"))
    first, second = read_run_facts(tmp_path / "run"), read_run_facts(tmp_path / "again" / "run")
    assert second.weights == first.weights
    assert not [text for text in second.warnings if "holds other weights" in text]
    records = [read_record(folder, CELL_CLEAN) for folder in (tmp_path / "run", tmp_path / "again" / "run")]
    pd.testing.assert_frame_equal(*records, check_exact=True)


def test_each_run_says_which_weights_it_has(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = (*QUICK, "corruptions=none", entries(runs / "a", runs / "b"), "noise.eval=true", f"output={tmp_path}")
    train_and_evaluate(configuration(*options, name="evaluate"))
    printed = capsys.readouterr().out
    without = [read_run_facts(tmp_path / name).warnings for name in ("a", "b")]
    assert without == [[f"{runs / 'a'} has no noise: noise.eval has no effect on it"], []]
    report = build(
        ReportConfig(LoggerConfig("none"), [str(tmp_path / name) for name in ("a", "b")], resamples=100), Display(main=True)
    )
    for name in ("a", "b"):
        assert f"weights:  {runs / name}\n" in printed, "before the pass"
        assert f"weights: {runs / name}\n" in printed, "below the table"
        assert any(f"{tmp_path / name}, weights {runs / name}, commit" in note for note in report.notes)


def test_noise_that_is_off_is_said_to_be(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number, on in enumerate(("false", "true")):
        options = (*QUICK, "corruptions=none", entries(runs / "b"), f"noise.eval={on}", f"output={tmp_path / on}")
        train_and_evaluate(configuration(*options, name="evaluate"))
        assert ("off: evaluated without it" in capsys.readouterr().out) == (number == 0)


def test_other_weights_and_another_image_size_are_told(runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs / "a", tmp_path / "a")
    shutil.copy(runs / "b" / "checkpoints" / "last.pt", tmp_path / "a" / "checkpoints" / "last.pt")
    options = (*QUICK, "corruptions=none", "data.size=24", entries(tmp_path / "a"), f"output={tmp_path / 'out'}")
    train_and_evaluate(configuration(*options, name="evaluate"))
    warnings = read_run_facts(tmp_path / "out" / "a").warnings
    assert any("was trained on images of 32 pixels" in text and "on 24 pixels" in text for text in warnings)
    assert any("holds other weights" in text and "than its run was evaluated with" in text for text in warnings)


def test_an_unfinished_run_is_refused(runs: Path, tmp_path: Path, refused: Refused) -> None:
    shutil.copytree(runs / "a", tmp_path / "a")
    facts = json.loads((tmp_path / "a" / "run.json").read_text())
    (tmp_path / "a" / "run.json").write_text(json.dumps(facts | {"status": "running", "weights": None}))
    line = refused(*QUICK, entries(tmp_path / "a"), f"output={tmp_path / 'out'}", name="evaluate")
    assert "checkpoints must name finished runs" in line
    assert not (tmp_path / "out").exists()
