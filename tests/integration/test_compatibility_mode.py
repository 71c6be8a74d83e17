"""diagnose.py mode=compatibility end to end, the tutorial of docs/compatibility.md as typed, and what is refused."""

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import REPOSITORY, configuration
from hydra import compose, initialize_config_dir

from gch_bench.apps.cli import argument, diagnosis_config, reported
from gch_bench.apps.diagnosis.modes import MODES
from gch_bench.apps.run import train_and_evaluate
from gch_bench.noise.placement import MINIMUM_CHANGE
from gch_bench.results.compatibility import DISAGREES

TINY = (
    "mode=compatibility", "model=custom", "model.factory=tinynet:tinynet", "num_classes=10", "size=32", "stages=[late]",
    "compatibility.images=16", "compatibility.passes=2", "compatibility.gates=512", "logger=none", "threads=1",
)  # fmt: skip
TUTORIAL = (REPOSITORY / "docs" / "compatibility.md").read_text()


def run(*overrides: str) -> None:
    with initialize_config_dir(str(REPOSITORY / "configs"), version_base="1.3"):
        config = diagnosis_config(compose("diagnose", overrides=list(overrides)))
        MODES[config.mode](config)


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """The one line of a refusal; nothing is written."""
    monkeypatch.chdir(tmp_path)

    def call(*overrides: str) -> str:
        with pytest.raises(SystemExit) as stopped, reported():
            run(*overrides)
        lines = capsys.readouterr().err.splitlines()
        assert stopped.value.code == 2
        assert len(lines) == 1, lines
        assert not list(tmp_path.glob("**/run.json"))
        return lines[0]

    return call


def test_tables_and_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    run(*TINY, "mechanisms=[gch,{name: gch, gamma: 2.0},additive,dropkey]", f"output={out}")
    printed = capsys.readouterr().out
    assert "random weights of seed 0" in printed
    assert "WARNING: dropkey was left out at late: noise on attentions needs" in printed
    summary, rows, images = (pd.read_parquet(out / f"{name}.parquet") for name in ("summary", "measurements", "images"))
    assert list(summary["mechanism"]) == ["gch gamma=1.0", "gch gamma=2.0", "additive"]
    assert (summary["survives"] == (summary["logit_change"] >= MINIMUM_CHANGE)).all()
    assert summary["map_distortion"][1] > summary["map_distortion"][0] > summary["map_distortion"][2]
    assert len(images) == 3 * 16
    assert not (rows["verdict"] == DISAGREES).any()
    assert set(rows["section"]) == {"log-ratio", "roughness", "mean", "ranking", "distortion", "norm"}
    facts = json.loads((out / "run.json").read_text())
    assert (facts["kind"], facts["network"]["size"], len(facts["mechanisms"])) == ("compatibility", 32, 4)
    assert {path.name for path in out.iterdir()} >= {"report.md", "report.html", "summary.csv", "figures"}
    run(*TINY, "mechanisms=[gch,{name: gch, gamma: 2.0},additive,dropkey]", f"output={out}")
    again = pd.read_parquet(out / "measurements.parquet")
    pd.testing.assert_frame_equal(rows, again)


def test_numbers_do_not_depend_on_the_other_mechanisms(tmp_path: Path) -> None:
    run(*TINY, "mechanisms=[gch,dropout]", f"output={tmp_path / 'two'}")
    run(*TINY, "noise=dropout", f"output={tmp_path / 'one'}")
    two, one = (pd.read_parquet(tmp_path / name / "summary.parquet") for name in ("two", "one"))
    pd.testing.assert_frame_equal(two[two["mechanism"] == "dropout"].reset_index(drop=True), one)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["noise=none"], "noise=none has no law that mode=compatibility could look at: give a mechanism such as noise=gch"),
        (["mechanisms=[gch,gch]"], "noise must name each mechanism once, got gch twice with the same options"),
        (["noise=gch", "noise.gamma=-1"], "noise=gch: noise.gamma must be a finite number >= 0, got -1"),
        (
            ["noise=dropout", "noise.injection=additive"],
            "noise=dropout: noise.injection additive has no meaning",
        ),
        (["noise=dropkey"], "dropkey was left out at late: noise on attentions needs timm's Attention modules"),
        (["noise=gch", "stages=[L9]"], "stages: unknown stage 'L9' of TinyNet: choose one of"),
        (
            ["noise=gch", "compatibility.images=361"],
            "compatibility.images must be at most 360, the validation images of digits",
        ),
        (["noise=gch", "compatibility.images=2"], "compatibility.images must be >= 8, got 2"),
        (["noise=gch", "compatibility.passes=1"], "compatibility.passes must be >= 2, got 1"),
        (["noise=gch", "source=x.safetensors"], "mode=compatibility looks at one network: give checkpoint=FILE"),
        (["noise=gch", "checkpoint=gone.pt"], "checkpoint=gone.pt: no such file"),
        (["noise=gch", "mode=compat"], "mode must be one of geometry, describe, match, compatibility, got 'compat'"),
        (
            ["mechanisms=[gch,dropout]", "noise.p=0.3"],
            "options of noise have no effect beside noise=[gch,dropout]",
        ),
        (["noise=gch", "noise.stages=[early]"], "noise.stages and stages say the same: give one of them"),
        (["noise=gch", "grid=[4,4]"], "grid is for mode=describe and match: leave it out with mode=compatibility"),
        (["noise=gch", "reference=dropout"], "reference is for mode=match: leave it out with mode=compatibility"),
        (["noise=gch", "mode=match", "stages=[late,early]"], "stages must be one stage for mode=match, got ['late', 'early']"),
        (["mechanisms=[gch]", "mode=geometry"], "noise=[gch] goes with mode=describe, match or compatibility"),
    ],
)
def test_refusals(overrides: list[str], message: str, refused: Callable[..., str]) -> None:
    assert message in refused(*TINY, *overrides)


def test_another_folder_is_refused(tmp_path: Path, refused: Callable[..., str], capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    assert "already holds something else (thesis.txt)" in refused(*TINY, "noise=gch", "output=mine")
    run(*TINY, "noise=gch", "output=done")
    capsys.readouterr()
    with pytest.raises(SystemExit), reported():
        run(*TINY, "noise=dropout", "output=done")
    assert "holds another compatibility (it differs in noise" in capsys.readouterr().err


def test_the_stages_of_the_noise_are_those_that_are_looked_at(tmp_path: Path) -> None:
    """noise.stages, as train.py has it, does what stages does; gates at two stages are drawn independently."""
    options = [each for each in TINY if not each.startswith("stages")]
    run(*options, "noise=gch", "noise.stages=[early,late]", "data.size=32", f"output={tmp_path / 'out'}")
    rows = pd.read_parquet(tmp_path / "out" / "measurements.parquet")
    assert list(rows["stage"].unique()) == ["early", "late"]
    run(*TINY, "noise=gch", "seed=1", f"output={tmp_path / 'other'}")
    other = pd.read_parquet(tmp_path / "other" / "measurements.parquet")
    roughness = [each.query("quantity == 'per site' and stage == 'late'")["measured"].iloc[0] for each in (rows, other)]
    assert roughness[0] != roughness[1], "another seed draws other gates"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TUTORIAL, re.DOTALL)


def test_the_tutorial(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """All commands of docs/compatibility.md in order, and its Python; the training is one epoch long and not five."""
    monkeypatch.chdir(tmp_path)
    commands = [shlex.split(line.replace("recipe.epochs=5", "recipe.epochs=1")) for line in blocks("bash")]
    assert [command[:2] for command in commands] == [["python", "train.py"], *[["python", "diagnose.py"]] * 4]
    for command in commands:
        overrides = [argument(text, noise_list=True) for text in (*command[2:], "threads=1")]
        capsys.readouterr()
        if command[1] == "train.py":
            train_and_evaluate(configuration(*overrides))
        else:
            run(*overrides)
        printed = capsys.readouterr().out
        if "mode=describe" in command and "grid=[4,4]" not in command:
            assert "map: 4x4, stage L4 (layer4)" in printed
            assert [line.split()[-2] for line in printed.splitlines() if re.match(r"│ D[1245]", line)] == ["exactly"] * 4
            assert re.search(r"D3 .* per sample", printed)
        if "mode=match" in command:
            assert "noise=dropout noise.p=0.224 " in printed
            assert "noise=dropblock noise.p=0.0918 " in printed
    summary = pd.read_parquet(tmp_path / "runs" / "tutorial-compatibility" / "summary.parquet").query("stage == 'L4'")
    by_name = summary.set_index("mechanism")
    assert np.ptp(by_name.loc[["gch", "dropout", "dropblock"], "gate_variance"]) < 0.02, "matched in step 3"
    assert by_name.loc["gch", "clear_order_lost"] < 0.05 < 0.15 < by_name.loc["dropout", "clear_order_lost"]
    assert by_name.loc["gch", "pooled_distortion"] < by_name.loc["dropblock", "pooled_distortion"]
    assert by_name["survives"].all()
    (snippet,) = blocks("python")
    (tmp_path / "snippet.py").write_text(snippet)
    printed = subprocess.run([sys.executable, "snippet.py"], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert "('D3', 'per sample')" in printed
    assert re.search(r"tensor\(0\.\d+, dtype=torch\.float64\)", printed)
