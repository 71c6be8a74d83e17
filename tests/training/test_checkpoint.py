"""A checkpoint holds everything: what is restored goes on exactly as what was saved."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import configuration
from tinynet import tinynet
from torch import nn

from gch_bench.distributed import World
from gch_bench.errors import UserError
from gch_bench.rng import seed_of
from gch_bench.training import checkpoint, optim
from gch_bench.training.checkpoint import Position

ALONE = World(0, 1, torch.device("cpu"))


def make(seed: int) -> tuple[nn.Module, optim.Optimisation]:
    torch.manual_seed(seed)
    model = tinynet(4)
    recipe = configuration("recipe.ema_decay=0.5", "recipe.mixup=0.3").recipe
    assert recipe is not None
    return model, optim.create(recipe, model, 4, steps_per_epoch=3, device=ALONE.device)


def step(model: nn.Module, optimisation: optim.Optimisation, update: int) -> None:
    model(torch.randn(6, 3, 32, 32)).square().mean().backward()
    optimisation.optimizer.step()
    optimisation.optimizer.zero_grad()
    optimisation.scheduler.step_update(update)
    assert optimisation.ema is not None
    optimisation.ema.update(model, step=update)


def state_of(model: nn.Module, optimisation: optim.Optimisation) -> dict[str, torch.Tensor]:
    assert optimisation.ema is not None
    rate = {"lr": torch.tensor(optimisation.optimizer.param_groups[0]["lr"])}
    return {**model.state_dict(prefix="model."), **optimisation.ema.module.state_dict(prefix="ema."), **rate}


def test_restored_training_goes_on_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    model, optimisation = make(0)
    step(model, optimisation, 1)
    checkpoint.save(path, model, optimisation, Position(0, 1), "hash", 4, ALONE)
    step(model, optimisation, 2)
    other, other_optimisation = make(1)
    content = checkpoint.read(path)
    assert checkpoint.restore(content, other, other_optimisation, ALONE, seed=0) == Position(0, 1)
    step(other, other_optimisation, 2)
    expected = state_of(model, optimisation)
    for name, value in state_of(other, other_optimisation).items():
        assert torch.equal(value, expected[name]), name
    assert (content["config_hash"], content["num_classes"]) == ("hash", 4)


def test_another_number_of_processes_draws_anew(tmp_path: Path) -> None:
    """Neither the draws of the first steps nor those of the checkpoint's processes; others on each rank and at each step."""

    def restored(position: Position, world: World) -> list[float]:
        model, optimisation = make(0)
        checkpoint.seed_all(seed_of(5, "training", 0))
        checkpoint.save(tmp_path / "last.pt", model, optimisation, position, "hash", 4, ALONE)
        checkpoint.seed_all(seed_of(5, "training", world.rank))  # as a training starts, before it looks for a checkpoint
        checkpoint.restore(checkpoint.read(tmp_path / "last.pt"), model, optimisation, world, seed=5)
        return [torch.rand(()).item(), float(np.random.rand()), random.random()]

    starts = []
    for rank in range(3):
        checkpoint.seed_all(seed_of(5, "training", rank))
        starts.append([torch.rand(()).item(), float(np.random.rand()), random.random()])
    worlds = [World(rank, size, ALONE.device) for size in (2, 3) for rank in range(size)]
    positions = [Position(0, 1), Position(1, 0)]
    draws = [restored(position, world) for position in positions for world in worlds]
    for place in range(3):
        assert len({each[place] for each in starts + draws}) == len(starts) + len(draws)
    assert restored(positions[0], worlds[1]) == draws[1], "the same continuation draws the same"
    assert restored(positions[0], ALONE) == starts[0], "as many processes go on where they were"


def test_unreadable_checkpoints(tmp_path: Path) -> None:
    for name, content in (("cut.pt", b"PK\x03\x04 cut"), ("empty.pt", b"")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match="truncated or foreign"):
            checkpoint.read(tmp_path / name)
    torch.save({"model": {}}, tmp_path / "foreign.pt")
    with pytest.raises(UserError, match="not a checkpoint of this program"):
        checkpoint.read(tmp_path / "foreign.pt")


def test_a_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "last.pt"
    model, optimisation = make(0)
    checkpoint.save(path, model, optimisation, Position(0, 1), "hash", 4, ALONE)
    before = path.read_bytes()

    def full(content: object, file: object) -> None:
        file.write(b"half")  # type: ignore[attr-defined]
        raise RuntimeError("unexpected pos 64 vs 0")  # what torch says when the disk is full

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(UserError, match="cannot write"):
        checkpoint.save(path, model, optimisation, Position(0, 2), "hash", 4, ALONE)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("links", [True, False])
def test_two_are_kept_and_a_damaged_newest_falls_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool) -> None:
    """previous.pt is what last.pt was. A flipped bit or a missing end of last.pt is noticed; then last.pt is whole again."""
    if not links:

        def refuse(source: object, name: object) -> None:
            raise OSError("no hard links here")

        monkeypatch.setattr("os.link", refuse)
    path, warnings = tmp_path / "last.pt", list[str]()
    model, optimisation = make(0)
    assert checkpoint.newest(path, ALONE, warnings.append) is None
    for number in (1, 2, 3):
        checkpoint.save(path, model, optimisation, Position(0, number), "hash", 4, ALONE)
        content = checkpoint.newest(path, ALONE, warnings.append)
        assert content is not None
        assert content["position"]["step"] == number
    assert not warnings
    assert {each.name for each in tmp_path.iterdir()} == {"last.pt", "previous.pt"}
    assert checkpoint.read(checkpoint.previous_of(path))["position"]["step"] == 2
    whole = path.read_bytes()
    middle = whole.index(model.state_dict()["early.0.weight"].numpy().tobytes()) + 5  # a byte of a weight
    for damaged in (whole[:middle], whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :], b"", None):
        path.unlink()
        if damaged is not None:
            path.write_bytes(damaged)
        content = checkpoint.newest(path, ALONE, warnings.append)
        assert content is not None
        assert content["position"]["step"] == 2
        assert f"{path}" in warnings[-1]
        assert "training went on from previous.pt, epoch 1, step 3" in warnings[-1]
        assert checkpoint.read(path)["position"]["step"] == 2, "the damaged one is replaced"
    assert len(warnings) == 4
    path.unlink()
    path.write_bytes(whole[:middle])
    checkpoint.previous_of(path).write_bytes(b"")
    with pytest.raises(UserError, match=r"last.pt cannot be read.*previous.pt cannot be read"):
        checkpoint.newest(path, ALONE, warnings.append)
