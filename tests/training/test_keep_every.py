"""recipe.keep_every: which epochs are kept, what their files hold, and that nothing else changes."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY, configuration
from training_jobs import make_job

from gch_bench.config.parse import identity_of
from gch_bench.errors import FieldError
from gch_bench.stopping import Stopped
from gch_bench.training import checkpoint, loop
from gch_bench.training.loop import train

SHORT = ("noise=none", "recipe.epochs=3", "recipe.batch_size=24", "recipe.ema_decay=0.5", "recipe.mixup=0.2")


def kept(folder: Path) -> dict[str, dict[str, torch.Tensor]]:
    """Name of each checkpoint -> its weights."""
    return {path.stem: checkpoint.read(path)["model"] for path in sorted((folder / "checkpoints").iterdir())}


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def trained(folder: Path, *overrides: str) -> dict[str, torch.Tensor]:
    return train(make_job(folder, *SHORT, *overrides), lambda progress: None, [], warn=print).state_dict()


def test_the_start_and_every_so_many_epochs_are_kept(tmp_path: Path) -> None:
    every = {}
    for number in (1, 2, 5):
        job = make_job(tmp_path / str(number), *SHORT, f"recipe.keep_every={number}")
        start = {name: value.clone() for name, value in job.model.state_dict().items()}
        train(job, lambda progress: None, [], warn=print)
        every[number] = kept(job.folder)
        assert equal(every[number]["epoch-0"], start), "before the first step"
    numbered = {number: [name for name in files if name.startswith("epoch")] for number, files in every.items()}
    assert numbered == {1: [f"epoch-{i}" for i in range(4)], 2: ["epoch-0", "epoch-2"], 5: ["epoch-0"]}
    assert equal(every[1]["epoch-3"], every[1]["last"])
    assert equal(every[1]["epoch-2"], every[1]["previous"])
    assert equal(every[1]["epoch-2"], every[2]["epoch-2"])
    assert not equal(every[1]["epoch-0"], every[1]["epoch-1"])
    positions = [checkpoint.read(tmp_path / "1" / "checkpoints" / f"epoch-{i}.pt")["position"] for i in range(4)]
    assert positions == [{"epoch": i, "step": 0} for i in range(4)]


def test_training_is_the_same_and_without_it_nothing_is_kept(tmp_path: Path) -> None:
    assert equal(trained(tmp_path / "plain"), trained(tmp_path / "kept", "recipe.keep_every=1"))
    assert set(kept(tmp_path / "plain")) == {"last", "previous"}


@pytest.mark.parametrize("steps", [2, 3, 6, 9])
def test_a_stopped_training_goes_on_keeping(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    """Stopped within an epoch of 3 steps, or in its last step, whose checkpoint is kept when the training goes on."""
    straight = trained(tmp_path / "straight", "recipe.keep_every=1")
    original, calls = loop._backward, iter(range(1, 100))

    def backward(*arguments: Any) -> torch.Tensor:
        if next(calls) == steps:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(*arguments)

    monkeypatch.setattr(loop, "_backward", backward)
    with pytest.raises(Stopped):
        trained(tmp_path / "stopped", "recipe.keep_every=1")
    position = checkpoint.read(tmp_path / "stopped" / "checkpoints" / "last.pt")["position"]
    assert position == {"epoch": steps // 3, "step": steps % 3}
    assert equal(trained(tmp_path / "stopped", "recipe.keep_every=1"), straight)
    whole, parts = kept(tmp_path / "straight"), kept(tmp_path / "stopped")
    for name in (f"epoch-{i}" for i in range(4)):
        assert equal(parts[name], whole[name]), name


def test_a_file_system_without_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: object, name: object) -> None:
        raise OSError("no hard links here")

    monkeypatch.setattr("os.link", refuse)
    trained(tmp_path, "recipe.keep_every=1", "recipe.epochs=1")
    files = kept(tmp_path)
    assert {"epoch-0", "epoch-1", "last"} <= set(files)
    assert equal(files["epoch-1"], files["last"])
    assert not list((tmp_path / "checkpoints").glob(".*"))


def test_not_part_of_a_runs_identity() -> None:
    one, other = (configuration(*TINY, *more) for more in ((), ("recipe.keep_every=2",)))
    assert other.recipe is not None
    assert other.recipe.keep_every == 2
    assert identity_of(one) == identity_of(other)


@pytest.mark.parametrize("value", [0, -1])
def test_less_than_every_epoch_is_refused(value: int) -> None:
    with pytest.raises(FieldError, match=rf"^recipe\.keep_every must be >= 1 or null, got {value}$"):
        configuration(*TINY, f"recipe.keep_every={value}")
