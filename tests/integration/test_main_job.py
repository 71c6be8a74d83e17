"""The main job through its real entry points and code paths, on a tiny network."""

import json
import re
import signal
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import REPOSITORY, TINY, configuration, signalled
from hydra import compose, initialize_config_dir

from gch_bench.apps.cli import report_config, reported
from gch_bench.apps.report import report
from gch_bench.apps.run import train_and_evaluate
from gch_bench.errors import UserError
from gch_bench.metrics import summarize
from gch_bench.results.records import COLUMNS

CELLS = 1 + 4 * 3  # clean, and corruptions=quick: four corruptions at three severities


def run_tiny(folder: Path, *overrides: str, name: str = "train") -> dict:
    train_and_evaluate(configuration(*TINY, f"output={folder}", *overrides, name=name))
    return json.loads((folder / "run.json").read_text())


@pytest.fixture(scope="module")
def gch_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "gch"
    run_tiny(folder, "noise=gch", "logger=csv")
    return folder


def test_run_folder(gch_run: Path) -> None:
    facts = json.loads((gch_run / "run.json").read_text())
    summary = pd.read_csv(gch_run / "summary.csv")
    assert facts["status"] == "finished"
    assert re.fullmatch(r"[0-9a-f]{40}(-dirty)?", facts["commit"])
    (stage,) = facts["stages"]
    assert list(stage.items())[:4] == [("stage", "late"), ("module", "late"), ("height", 4), ("width", 4)]
    assert facts["config"]["noise"]["gamma"] == 1.0
    assert set(facts) >= {"protocol_id", "versions", "hardware", "data", "timings", "weights", "command"}
    assert list(summary)[:8] == ["corruption", "severity", "n", "top1", "top5", "nll", "brier", "ece"]
    assert len(summary) == CELLS
    assert tuple(summary.loc[0, ["corruption", "severity"]]) == ("clean", 0)
    assert (summary["n"] == 360).all()
    assert summary["top1"].between(0, 1).all()
    images = pd.read_csv(gch_run / "images.csv")
    labels = pd.read_parquet(gch_run / "records" / "clean-0.parquet")["label"]
    assert images["label"].tolist() == labels.tolist()
    assert images["name"].is_unique
    assert (gch_run / "checkpoints" / "last.pt").exists()
    assert not list(gch_run.rglob("*.tmp"))


def test_records_give_the_summary_again(gch_run: Path) -> None:
    summary = pd.read_csv(gch_run / "summary.csv").set_index(["corruption", "severity"])
    files = sorted((gch_run / "records").iterdir())
    assert [file.stem for file in files] == sorted(f"{name}-{severity}" for name, severity in summary.index)
    for file in files:
        rows = pd.read_parquet(file)
        name, severity = file.stem.rsplit("-", 1)
        assert list(rows) == COLUMNS
        assert rows["id"].tolist() == list(range(360))
        np.testing.assert_allclose(pd.Series(summarize(rows, 10)), summary.loc[(name, int(severity))], rtol=1e-12)


def test_accuracy_is_of_a_trained_network(gch_run: Path) -> None:
    clean = pd.read_parquet(gch_run / "records" / "clean-0.parquet")
    assert (clean["label"] == clean["prediction"]).mean() > 0.3, "ten classes: chance is 0.1"


def test_csv_logger_holds_the_summary(gch_run: Path) -> None:
    logged = pd.read_csv(gch_run / "metrics.csv").groupby("name")["value"].last()
    clean = pd.read_csv(gch_run / "summary.csv").iloc[0]
    assert logged["clean/ece"] == pytest.approx(clean["ece"], rel=1e-9)
    assert {"train/loss", "train/top1", "train/lr", "shift/mean/nll", "shift/gaussian_noise/3/top1"} <= set(logged.index)


def test_again_does_nothing_and_a_new_cell_only_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_tiny(tmp_path / "run", "recipe.epochs=1", "corruptions.names=[brightness]")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*") if path.is_file()}
    capsys.readouterr()
    run_tiny(tmp_path / "run", "recipe.epochs=1", "corruptions.names=[brightness]")
    assert "nothing left to do" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in before} == before
    run_tiny(tmp_path / "run", "recipe.epochs=1", "corruptions.names=[brightness,contrast]")
    records = tmp_path / "run" / "records"
    assert (records / "brightness-1.parquet").stat().st_mtime_ns == before[records / "brightness-1.parquet"]
    assert len(pd.read_csv(tmp_path / "run" / "summary.csv")) == 1 + 2 * 3


def test_default_folder_is_stable_and_separates_configurations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tiny = (*TINY, "recipe.epochs=1", "corruptions=none", "noise=gch")
    train_and_evaluate(configuration(*tiny))
    (first,) = Path("runs").iterdir()
    assert re.fullmatch(r"digits-tinynet_tinynet-gch-s0-[0-9a-f]{8}", first.name)
    for same in ("logger=csv", "evaluation.batch_size=32", "data.skip_bad=true", "threads=2"):
        train_and_evaluate(configuration(*tiny, same))
    train_and_evaluate(configuration(*tiny, "corruptions.names=[contrast]", "corruptions.severities=[3]"))  # one more cell
    assert list(Path("runs").iterdir()) == [first]
    for other in ("seed=1", "noise.gamma=2", "recipe.lr=0.02", "corruptions.jpeg_roundtrip=true"):
        train_and_evaluate(configuration(*tiny, other))
    assert len(list(Path("runs").iterdir())) == 5


@pytest.mark.parametrize("noise", ["none", "dropblock"])
def test_same_seed_same_weights(tmp_path: Path, noise: str) -> None:
    overrides = (f"noise={noise}", "recipe.epochs=1", "corruptions=none")
    first = run_tiny(tmp_path / "a", *overrides)
    second = run_tiny(tmp_path / "b", *overrides, "data.workers=2")
    other = run_tiny(tmp_path / "c", *overrides, "seed=1")
    assert first["weights"] == second["weights"] != other["weights"]


def test_stop_and_resume_is_the_same_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Stopped in the middle of training, then continued: the same weights as a run that was never stopped.

    The loader processes get the signal, too, as SLURM sends it, and leave stopping to the main process.
    """
    overrides = [
        *TINY,
        "noise=gch",
        "recipe.epochs=8",
        "recipe.mixup=0.2",
        "recipe.ema_decay=0.9",
        "corruptions=none",
        "recipe.batch_size=16",
        "data.workers=2",
    ]
    checkpoint = tmp_path / "stopped" / "checkpoints" / "last.pt"
    code, errors = signalled([*overrides, f"output={tmp_path / 'stopped'}"], checkpoint, signal.SIGUSR1)
    assert code == 128 + signal.SIGUSR1, errors
    assert len(errors.splitlines()) == 1, errors
    assert errors.startswith("stopped by SIGUSR1")
    position = torch.load(checkpoint, weights_only=True)["position"]
    assert 1 <= position["epoch"] < 8
    settings = [item for item in overrides if item not in TINY]
    continued = run_tiny(tmp_path / "stopped", *settings)
    place = f"continuing from epoch {position['epoch'] + 1}, step {position['step'] + 1} ({checkpoint})"
    assert place in capsys.readouterr().out.splitlines()
    straight = run_tiny(tmp_path / "straight", *settings)
    assert "continuing from" not in capsys.readouterr().out
    assert continued["weights"] == straight["weights"]
    assert len(continued["sessions"]) == 2


def test_every_switch_of_the_loop(tmp_path: Path) -> None:
    facts = run_tiny(
        tmp_path / "run",
        "noise=gch_wick",
        "recipe.mixup=0.2",
        "recipe.cutmix=1.0",
        "recipe.label_smoothing=0.1",
        "recipe.ema_decay=0.9",
        "recipe.grad_accumulation=2",
        "recipe.grad_clip=1.0",
        "recipe.amp=bf16",
        "recipe.channels_last=true",
        "recipe.augment.auto_augment=rand-m5-mstd0.5",
        "recipe.augment.random_erasing=0.2",
        "recipe.optimizer=sgd",
        "recipe.schedule=multistep",
        "recipe.milestones=[1]",
        "evaluation.precision=bf16",
        "recipe.epochs=3",
    )
    state = torch.load(tmp_path / "run" / "checkpoints" / "last.pt", weights_only=True)
    assert facts["protocol"]["precision"] == "bf16"
    assert state["optimizer"]["param_groups"][0]["lr"] == pytest.approx(0.001), "0.01 divided by 10 at epoch 1"
    assert not torch.equal(state["model"]["head.weight"], state["model_ema"]["head.weight"])


def test_compile(tmp_path: Path) -> None:
    facts = run_tiny(tmp_path / "run", "noise=gch", "recipe.compile=true", "recipe.epochs=1", "corruptions=none")
    assert facts["status"] == "finished"


@pytest.mark.parametrize("recipe", ["imagenet_90ep", "finetune", "cifar10"])
def test_recipes(tmp_path: Path, recipe: str) -> None:
    facts = run_tiny(tmp_path / "run", f"recipe={recipe}", "recipe.epochs=1", "recipe.batch_size=128", "corruptions=none")
    assert facts["config"]["recipe"]["name"] == recipe


def test_two_processes(tmp_path: Path, cli) -> None:
    """DDP under torchrun: trains, and every image has exactly one row although 360 images do not divide evenly in 2 x 7."""
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
    done = cli("train.py", *TINY, "noise=gch", f"output={tmp_path / 'run'}", "evaluation.batch_size=7", launcher=launcher)
    assert done.returncode == 0, done.stderr
    facts = json.loads((tmp_path / "run" / "run.json").read_text())
    assert facts["processes"] == 2
    assert done.stdout.count("protocol:") == 1, "only rank 0 prints"
    assert pd.read_parquet(tmp_path / "run" / "records" / "pixelate-3.parquet")["id"].tolist() == list(range(360))
    alone = tmp_path / "alone"
    weights = tmp_path / "run" / "checkpoints" / "last.pt"
    run_tiny(alone, "noise=gch", f"model.checkpoint={weights}", name="evaluate")
    assert_same_records(tmp_path / "run", alone)


def assert_same_records(first: Path, second: Path) -> None:
    for file in (first / "records").iterdir():
        one, two = pd.read_parquet(file), pd.read_parquet(second / "records" / file.name)
        pd.testing.assert_frame_equal(one[["id", "label"]], two[["id", "label"]])
        np.testing.assert_allclose(one["nll"], two["nll"], atol=2e-5)  # float32 sums in another order
        np.testing.assert_allclose(one["confidence"], two["confidence"], atol=1e-5)


@pytest.mark.parametrize("noise", ["gch", "dropout", "dropblock", "additive_green"])
def test_noise_at_test_time_is_independent_of_batches(gch_run: Path, tmp_path: Path, noise: str) -> None:
    weights = gch_run / "checkpoints" / "last.pt"
    common = (
        f"noise={noise}",
        "noise.eval=true",
        "noise.mc_samples=3",
        f"model.checkpoint={weights}",
        "corruptions.names=[gaussian_noise]",
    )
    facts = run_tiny(tmp_path / "a", *common, "evaluation.batch_size=64", name="evaluate")
    run_tiny(tmp_path / "b", *common, "evaluation.batch_size=23", "data.workers=2", name="evaluate")
    assert facts["protocol"]["noise_at_test"] == "on-T3"
    assert_same_records(tmp_path / "a", tmp_path / "b")
    quiet = pd.read_parquet(gch_run / "records" / "clean-0.parquet")
    noisy = pd.read_parquet(tmp_path / "a" / "records" / "clean-0.parquet")
    assert not np.allclose(quiet["confidence"], noisy["confidence"], atol=1e-4)


def test_noise_on_one_site_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"noise=gch .*stage pool \(pool\) does nothing.* 1x1 map it is the IDENTITY"):
        run_tiny(tmp_path / "run", "noise=gch", "noise.stages=[pool]", "recipe.epochs=1", "corruptions=none")
    assert not (tmp_path / "run").exists()


def test_the_measured_noise_is_shown_and_recorded(gch_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    facts = run_tiny(tmp_path / "run", "noise=dropblock", "recipe.epochs=1", "corruptions=none")
    (stage,) = facts["stages"]
    assert stage["logit_change"] > 1e-4
    assert stage["drop_rate"] > stage["nominal_drop_rate"] == 0.1
    assert f"changes the logits by {100 * stage['logit_change']:.2g}%" in capsys.readouterr().out


def test_parameters_at_another_size_are_in_the_protocol(tmp_path: Path) -> None:
    facts = run_tiny(tmp_path / "run", "data.size=40", "recipe.epochs=1", "corruptions=none")
    assert facts["protocol"]["parameters"] == "cifar_32@40"
    assert "-40px-cifar_32@40-" in facts["protocol_id"]


def test_own_checkpoint_is_a_plain_state_dict(gch_run: Path, tmp_path: Path) -> None:
    facts = run_tiny(
        tmp_path / "run",
        "recipe=finetune",
        f"model.checkpoint={gch_run / 'checkpoints' / 'last.pt'}",
        "recipe.epochs=1",
        "corruptions=none",
    )
    assert facts["status"] == "finished"


def test_report(gch_run: Path, tmp_path: Path, cli) -> None:
    run_tiny(tmp_path / "none", "noise=none")
    folder = tmp_path / "report"
    (folder / "figures").mkdir(parents=True)
    (folder / "figures" / "old.svg").touch()
    words = [f"runs=[{tmp_path / 'none'},{gch_run}]", f"output={folder}"]
    foreign = cli("report.py", *words)
    assert (foreign.returncode, len(foreign.stderr.splitlines())) == (2, 1), "the figures of something else"
    assert (folder / "figures" / "old.svg").exists()
    (folder / "results.csv").touch()
    done = cli("report.py", *words)
    assert done.returncode == 0, done.stderr
    assert not (folder / "figures" / "old.svg").exists(), "those of an earlier report"
    rows = pd.read_csv(folder / "results.csv")
    first, second = (pd.read_csv(each / "summary.csv").iloc[0] for each in (tmp_path / "none", gch_run))
    clean = rows[(rows["corruption"] == "clean") & (rows["metric"] == "top1")].set_index("noise")
    assert clean.loc["none", "value"] == pytest.approx(first["top1"], rel=1e-6)
    assert clean.loc["gch", "difference"] == pytest.approx(second["top1"] - first["top1"], rel=1e-5, abs=1e-7)
    assert clean.loc["gch", "low"] <= clean.loc["gch", "difference"] <= clean.loc["gch", "high"]
    assert f"{100 * first['top1']:.2f}" in done.stdout
    assert "Verdict" in done.stdout
    assert (folder / "report.html").read_text().startswith("<!")
    assert {"mechanisms.csv", "mechanisms.md", "mechanisms.tex"} <= {path.name for path in (folder / "tables").iterdir()}
    assert {"forest.svg", "forest.png", "forest.pdf"} <= {path.name for path in (folder / "figures").iterdir()}


@pytest.mark.parametrize(
    "wrong",
    ["output=RUN", "output=table.md", "table=unknown", "baseline=", "runs=[]", "runs=[nowhere/*]", "latex_prefix=a_b"],
)
def test_what_a_report_refuses(wrong: str, gch_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(gch_run.rglob("*"))
    words = [f"runs=[{gch_run}]", wrong.replace("RUN", str(gch_run))]
    with initialize_config_dir(str(REPOSITORY / "configs"), version_base="1.3"):
        config = compose("report", overrides=words)
    with pytest.raises(SystemExit) as stopped, reported():
        report(report_config(config))
    assert (stopped.value.code, len(capsys.readouterr().err.splitlines())) == (2, 1)
    assert sorted(gch_run.rglob("*")) == before


def test_help_lists_every_group_and_choice(cli) -> None:
    done = cli("train.py", "--help")
    assert done.returncode == 0
    for group in ("model", "noise", "data", "corruptions", "recipe", "logger"):
        choices = sorted(file.stem for file in (REPOSITORY / "configs" / group).glob("*.yaml"))
        assert f"{group}: {', '.join(choices)}" in done.stdout


def test_local_settings_give_roots(tmp_path: Path) -> None:
    """configs/local/default.yaml: data roots by name, found without typing them."""
    configs = tmp_path / "configs"
    subprocess.run(["cp", "-r", str(REPOSITORY / "configs"), str(configs)], check=True)
    (configs / "local").mkdir(exist_ok=True)
    (configs / "local" / "default.yaml").write_text("# @package _global_\nroots: {imagenet: /data/in1k, imagenet_c: /data/c}\n")
    with initialize_config_dir(str(configs), version_base="1.3"):
        config = compose("train", overrides=["data=imagenet", "corruptions=stored"])
    assert (config.data.root, config.corruptions.root) == ("/data/in1k", "/data/c")
