"""A user's mistake: one line that names what is wrong and what would be right, exit code 2, nothing half-written or lost."""

import errno
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch
from conftest import REPOSITORY, TINY, configuration, environment, signalled
from PIL import Image

from gch_bench.apps.run import train_and_evaluate
from gch_bench.corruptions import CORRUPTIONS, Corruption
from gch_bench.errors import UserError
from gch_bench.files import write_atomic

Refused = Callable[..., str]

WRONG = {  # overrides -> what the one line must say
    ("noise=gnoise",): ["noise", "'gnoise'", "gch_wick", "spatial_dropout"],
    ("model=resnet5000",): ["model", "'resnet5000'", "resnet50"],
    ("model.name=resnet5O",): ["'resnet5O'", "resnet50"],
    ("data=imagnet",): ["data", "'imagnet'", "imagenet", "digits"],
    ("recipe=fast",): ["recipe", "'fast'", "imagenet_90ep"],
    ("noise=gch", "noise.stages=[L5]", "model=resnet18_quarter"): ["'L5'", "L4 (layer4)", "L1 (layer1)"],
    ("noise=gch", "noise.stages=[]"): ["noise.stages", "non-empty"],
    ("noise=gch", "noise.gamma=-1"): ["noise.gamma", ">= 0", "-1"],
    ("noise=gch", "noise.gamma=nan"): ["noise.gamma", "finite", "nan"],
    ("noise=gch", "noise.gamma=strong"): ["noise.gamma", "float", "'strong'"],
    ("noise=gch", "noise.beta=0"): ["noise.beta", "> 0", "0"],
    ("noise=gch", "noise.boundary=around"): ["noise.boundary", "outside, inside", "'around'"],
    ("noise=gch", "noise.kernel=blue"): ["noise.kernel", "dirichlet_green", "'blue'"],
    ("noise=dropout", "noise.p=1"): ["noise.p", "[0, 1)", "1"],
    ("noise=dropblock", "noise.p=-0.1"): ["noise.p", "[0, 1)", "-0.1"],
    ("noise=hard_mask", "noise.p=1.5"): ["noise.p", "[0, 1)", "1.5"],
    ("noise=gch", "noise.mc_samples=8"): ["noise.mc_samples", "noise.eval=true"],
    ("noise=gch", "noise.gama=1"): ["'noise.gama'", "--help"],
    ("noise=gch", "+noise.gama=1"): ["noise.gama", "gamma"],
    ("noise=dropout", "noise.gamma=1"): [
        "noise.gamma has no meaning for law bernoulli, injection multiplicative, which take p"
    ],
    ("seed=-1",): ["seed", ">= 0", "-1"],
    ("recipe.epochs=0",): ["recipe.epochs", ">= 1", "0"],
    ("recipe.amp=fp8",): ["recipe.amp", "bf16", "'fp8'"],
    ("recipe.optimizer=sdg",): ["recipe.optimizer", "sdg"],
    ("recipe.schedule=cosin",): ["recipe.schedule", "cosin"],
    ("recipe.batch_size=100000",): ["1437", "100000"],
    ("recipe.augment.hflip=2",): ["hflip", "[0, 1]", "2"],
    ("recipe.augment.scale=0.5",): ["recipe.augment.scale", "list", "0.5"],
    ("corruptions.names=[fogg]",): ["'fogg'", "gaussian_noise"],
    ("corruptions.severities=[0,1]",): ["corruptions.severities", "1..5", "[0, 1]"],
    ("corruptions.parameters=imagenet",): ["corruptions.parameters", "imagenet_224"],
    ("corruptions=stored",): ["corruptions.root", "corruptions.root=/path"],
    ("corruptions=stored", "corruptions.root=/nowhere/at/all"): ["corruptions.root", "/nowhere/at/all"],
    ("corruptions.root=/c", "corruptions.jpeg_roundtrip=true"): ["jpeg_roundtrip", "generated", "corruptions.root=/c"],
    ("corruptions.root=/c", "corruptions.resize=true"): ["data.resize=PIXELS"],
    ("corruptions.resize=true",): ["corruptions.resize=true", "corruptions.root=/path"],
    ("corruptions=fog",): ["'fog'", "c15", "corruptions=[fog,snow]"],
    ("data=imagenet",): ["data.root", "data.root=/path"],
    ("data=imagenet", "data.root=/nowhere/at/all"): ["/nowhere/at/all", "data.root"],
    ("data=cifar10", "data.root=/tmp"): ["data.download=true"],
    ("model=custom", "model.factory=tinynet:missing"): ["model.factory", "missing"],
    ("model=custom", "model.factory=tinynet"): ["model.factory", "package.module:function"],
    ("model=custom", "model.factory=tinynet:tinynet", "+model.kwargs.depth=3"): ["model.kwargs", "depth"],
    ("model.kwargs={channels:[1,2]}",): ["model.kwargs", "channels"],
    ("output=/proc/nowhere/run",): ["cannot write", "/proc/nowhere/run", "output="],
}


@pytest.mark.parametrize(("overrides", "said"), WRONG.items(), ids=[" ".join(overrides) for overrides in WRONG])
def test_one_line_names_it(overrides: tuple[str, ...], said: list[str], refused: Refused, tmp_path: Path) -> None:
    tiny = [item for item in TINY if item.split("=")[0] not in ("model", "model.factory", "noise.stages")]
    if not any(item.startswith("recipe=") for item in overrides):
        overrides = (*tiny, *overrides)
    if not any(item.startswith("output=") for item in overrides):
        overrides = (*overrides, f"output={tmp_path / 'run'}")
    message = refused(*overrides)
    assert all(part in message for part in said), message
    assert not (tmp_path / "run").exists(), "nothing is written"


def test_as_typed(cli) -> None:
    """The same through the real command line: errors of composing and errors inside the job."""
    for argument, said in (
        ("noise=[gch,none]", "one choice"),
        ("data=imagenet", "data.root"),
        ("runs/a", "NAME=VALUE"),
        ("=3", "=3"),
    ):
        done = cli("train.py", argument)
        assert done.returncode == 2
        assert len(done.stderr.splitlines()) == 1, done.stderr
        assert said in done.stderr


def test_a_corruption_that_cannot_be_made_stops_before_training(
    tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without_photographs(*arguments: object) -> None:
        raise ValueError("frost needs photographs: pip install them")

    monkeypatch.setitem(CORRUPTIONS, "frost", Corruption(without_photographs, without_photographs, group="weather"))
    frost = (*TINY, "corruptions.names=[fog,frost]", "recipe.epochs=1", f"output={tmp_path / 'run'}")
    message = refused(*frost)
    assert "corruption frost of 32x32 images cannot be made: frost needs photographs: pip install them" in message
    assert not (tmp_path / "run").exists(), "nothing is written"
    monkeypatch.undo()
    train_and_evaluate(configuration(*frost))
    monkeypatch.setitem(CORRUPTIONS, "frost", Corruption(without_photographs, without_photographs, group="weather"))
    train_and_evaluate(configuration(*frost))  # recorded cells need nothing
    train_and_evaluate(configuration(*frost, "corruptions.names=[fog,contrast,frost]"))


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """An ImageFolder tree of two classes of 16x16 PNGs: 8 train and 4 val images a class."""
    for split, count in (("train", 8), ("val", 4)):
        for number, name in enumerate(("cat", "dog")):
            folder = tmp_path / "tree" / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                Image.new("RGB", (16, 16), (100 * number + i, 10 * i, 7)).save(folder / f"{i}.png")
    return tmp_path / "tree"


def folder_run(tree: Path, *more: str) -> list[str]:
    own = [
        "data=folder",
        f"data.root={tree}",
        "data.size=null",
        "data.workers=0",
        "recipe=digits",
        "recipe.batch_size=4",
        "recipe.epochs=1",
    ]
    return [*TINY, *own, f"output={tree.parent / 'run'}", *more]


def test_folder_classes_and_size_are_read(tree: Path) -> None:
    train_and_evaluate(configuration(*folder_run(tree, "corruptions=none")))
    facts = json.loads((tree.parent / "run" / "run.json").read_text())
    assert (facts["data"]["num_classes"], facts["protocol"]["size"], facts["protocol"]["num_images"]) == (2, 16, 8)


def test_class_mismatch(tree: Path, refused: Refused) -> None:
    (tree / "val" / "dog").rename(tree / "val" / "wolf")
    message = refused(*folder_run(tree))
    assert "dog" in message
    assert "wolf" in message


def test_empty_root(tmp_path: Path, refused: Refused) -> None:
    (tmp_path / "tree").mkdir()
    assert "data.root must hold val/CLASS/* images" in refused(*folder_run(tmp_path / "tree"))


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_image(tree: Path, refused: Refused, split: str, workers: int) -> None:
    bad = tree / split / "cat" / "2.png"
    bad.write_bytes(bad.read_bytes()[:40])
    message = refused(*folder_run(tree, f"data.workers={workers}"))
    assert str(bad) in message
    assert "data.skip_bad=true" in message
    train_and_evaluate(
        configuration(*folder_run(tree, f"data.workers={workers}", "data.skip_bad=true", f"output={tree.parent / 'b'}"))
    )
    facts = json.loads((tree.parent / "b" / "run.json").read_text())
    assert facts["skipped"][split]["count"] == 1
    assert facts["skipped"][split]["images"][0]["path"] == str(bad)


def test_checkpoints(tmp_path: Path, refused: Refused) -> None:
    train_and_evaluate(configuration(*TINY, "corruptions=none", "recipe.epochs=1", f"output={tmp_path / 'run'}"))
    good = tmp_path / "run" / "checkpoints" / "last.pt"
    cut = tmp_path / "cut.pt"
    cut.write_bytes(good.read_bytes()[:2000])
    evaluation = [item for item in TINY if not item.startswith("model")]
    said = {
        ("model=resnet18_quarter", f"model.checkpoint={good}"): ["another architecture", "ResNet"],
        ("model=custom", "model.factory=tinynet:tinynet", f"model.checkpoint={cut}"): ["cannot be read", "truncated", str(cut)],
        ("model=custom", "model.factory=tinynet:tinynet", f"model.checkpoint={tmp_path / 'no.pt'}"): ["no such file"],
        ("model=custom", "model.factory=tinynet:tinynet"): ["model.checkpoint=FILE"],
    }
    for overrides, parts in said.items():
        message = refused(*evaluation, *overrides, f"output={tmp_path / 'e'}", name="evaluate")
        assert all(part in message for part in parts), message
    state = torch.load(good, weights_only=True)["model"]
    state["head.weight"], state["head.bias"] = state["head.weight"][:7], state["head.bias"][:7]
    torch.save({"state_dict": {f"module.{key}": value for key, value in state.items()}}, tmp_path / "seven.pt")
    message = refused(*TINY, f"model.checkpoint={tmp_path / 'seven.pt'}", f"output={tmp_path / 'e'}")
    assert "7 classes" in message
    assert "10" in message
    assert "model.reset_head=true" in message
    assert not (tmp_path / "e").exists()
    good.write_bytes(good.read_bytes()[:2000])
    message = refused(*TINY, "corruptions=quick", "recipe.epochs=1", f"output={tmp_path / 'run'}")
    assert str(good) in message


def test_run_folders_are_protected(tmp_path: Path, refused: Refused) -> None:
    train_and_evaluate(configuration(*TINY, "corruptions=none", "recipe.epochs=1", f"output={tmp_path / 'run'}"))
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    message = refused(*TINY, "corruptions=none", "recipe.epochs=1", "recipe.lr=0.5", f"output={tmp_path / 'run'}")
    assert "recipe.lr" in message
    assert "resume" in refused(*TINY, "corruptions=none", "recipe.epochs=1", f"output={tmp_path / 'run'}", "resume=never")
    assert {path: path.read_bytes() for path in before} == before


def test_non_finite_loss_keeps_the_last_good_checkpoint(tmp_path: Path, refused: Refused) -> None:
    message = refused(*TINY, "model.factory=tinynet:broken", "recipe.epochs=5", f"output={tmp_path / 'run'}")
    checkpoint = tmp_path / "run" / "checkpoints" / "last.pt"
    assert "not finite at epoch 3" in message
    assert str(checkpoint) in message
    content = torch.load(checkpoint, weights_only=True)
    assert content["position"] == {"epoch": 2, "step": 0}
    assert all(torch.isfinite(value).all() for value in content["model"].values())


def test_full_disk(tmp_path: Path) -> None:
    """A file-size limit makes the kernel refuse the write in the middle of a file, as a full disk does."""
    folder = tmp_path / "run"
    train_and_evaluate(configuration(*TINY, "corruptions=none", "recipe.epochs=1", f"output={folder}"))
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    done = subprocess.run(
        [sys.executable, str(REPOSITORY / "train.py"), *TINY, "recipe.epochs=1", f"output={folder}"],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=200,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000)),
    )
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert "cannot write" in done.stderr
    assert not list(folder.rglob("*.tmp"))
    kept = {path: content for path, content in before.items() if path.name != "run.json"}
    assert {path: path.read_bytes() for path in kept} == kept
    json.loads((folder / "run.json").read_text())


def test_no_space_for_a_checkpoint(tmp_path: Path, refused: Refused) -> None:
    """One line; the checkpoint before is kept, and with space again the run goes on from it and finishes."""
    options = (*TINY, "corruptions=none", "recipe.epochs=10", f"output={tmp_path / 'run'}")
    last, before = tmp_path / "run" / "checkpoints" / "last.pt", resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill() -> None:
        while not last.exists():
            time.sleep(0.002)
        resource.setrlimit(resource.RLIMIT_FSIZE, (last.stat().st_size - 1000, before[1]))  # all other files are smaller

    filling = threading.Thread(target=fill)
    filling.start()
    try:
        message = refused(*options)
    finally:
        filling.join()
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert message.startswith(f"error: cannot write {last}")
    assert 1 <= torch.load(last, weights_only=True)["position"]["epoch"] < 10
    assert not list(tmp_path.rglob("*.tmp"))
    train_and_evaluate(configuration(*options))
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "finished"


@pytest.mark.parametrize("workers", [0, 2])
def test_a_root_that_disappears_in_training(tree: Path, refused: Refused, workers: int) -> None:
    """One line; the checkpoint is kept, and with the root there again the run goes on from it and finishes."""
    options = folder_run(tree, "corruptions=none", "recipe.epochs=20", f"data.workers={workers}")
    last, away = tree.parent / "run" / "checkpoints" / "last.pt", tree.with_name("away")

    def disappear() -> None:
        while not last.exists():
            time.sleep(0.002)
        tree.rename(away)

    disappearing = threading.Thread(target=disappear)
    disappearing.start()
    message = refused(*options)
    disappearing.join()
    assert str(tree) in message
    position = torch.load(last, weights_only=True)["position"]
    assert 1 <= position["epoch"] < 20
    away.rename(tree)
    train_and_evaluate(configuration(*options))
    facts = json.loads((tree.parent / "run" / "run.json").read_text())
    assert (facts["status"], len(facts["sessions"]), facts["skipped"]) == ("finished", 2, {})


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_atomic_write_keeps_the_old_content(tmp_path: Path, number: int) -> None:
    path = tmp_path / "file"
    write_atomic(path, lambda file: file.write(b"old"))

    def fail(file: object) -> None:
        file.write(b"half")  # type: ignore[attr-defined]
        raise OSError(number, os.strerror(number))

    with pytest.raises(UserError, match=os.strerror(number)):
        write_atomic(path, fail)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_ctrl_c_during_evaluation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 130, and the shard that was finished is kept whole. The same command says how much that is."""
    overrides = [*TINY, "corruptions=c15", "recipe.epochs=1", f"output={tmp_path / 'run'}", "evaluation.batch_size=8"]
    shards = tmp_path / "run" / "records" / "shards"
    code, errors = signalled(overrides, shards, signal.SIGINT)
    assert code == 130
    assert "Traceback" not in errors
    (shard,) = shards.iterdir()
    assert len(pd.read_parquet(shard)) == 76 * 256
    assert not (shards.parent / "clean-0.parquet").exists(), "the cells are joined at the end"
    train_and_evaluate(configuration(*overrides))
    assert "256 of 360 images are already evaluated" in capsys.readouterr().out.splitlines()
    assert (shards.parent / "clean-0.parquet").exists()
