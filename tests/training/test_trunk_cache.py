"""recipe.trunk_cache: the same trained weights bit for bit, without computing the trunk again."""

import copy
import itertools
import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import TINY, configuration
from PIL import Image
from torch import Tensor, nn

from gch_bench import files
from gch_bench.apps.run import train_and_evaluate
from gch_bench.errors import UserError
from gch_bench.model.trunk import find_trunk
from gch_bench.training import loop, setup, trunk_cache
from gch_bench.training.checkpoint import read
from gch_bench.training.trunk_cache import TrunkCache

FROZEN = (*TINY, "recipe.epochs=2", "recipe.batch_size=256", "corruptions=none", "recipe.freeze=early", "noise=gch")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Weights to freeze: those of random initialisation are the same for a seed, and other seeds must not share a cache."""
    folder = tmp_path_factory.mktemp("source")
    train_and_evaluate(
        configuration(*TINY, "recipe.epochs=1", "recipe.batch_size=256", "corruptions=none", "noise=none", f"output={folder}")
    )
    return f"model.checkpoint={folder / 'checkpoints' / 'last.pt'}"


def trained(folder: Path, *options: str) -> dict[str, torch.Tensor]:
    train_and_evaluate(configuration(*FROZEN, f"output={folder}", *options))
    weights: dict[str, torch.Tensor] = read(folder / "checkpoints" / "last.pt")["model"]
    return weights


def test_cached_training_is_bitwise_equal_and_computes_the_trunk_once(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = trained(tmp_path / "plain", source)
    cache = f"recipe.trunk_cache={tmp_path / 'cache'}"
    first = trained(tmp_path / "first", source, cache)
    written = sorted((tmp_path / "cache").glob("*/epoch-*.pt"))
    assert [file.name for file in written] == ["epoch-0.pt", "epoch-1.pt"]

    def never(*_: object) -> None:
        raise AssertionError("the trunk was computed again")

    monkeypatch.setattr(trunk_cache, "trunk_outputs", never)
    second = trained(tmp_path / "second", source, cache)
    other = trained(tmp_path / "other", source, cache, "noise.gamma=0.3")  # another noise reads the same files
    assert all(torch.equal(plain[name], first[name]) and torch.equal(plain[name], second[name]) for name in plain)
    assert any(not torch.equal(plain[name], other[name]) for name in plain), "the noise behind the trunk acts"


@pytest.mark.parametrize("stage", ["making", "training"])
def test_a_stopped_training_continues_with_the_same_weights(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    """Stopped while the file of the second epoch is made, or in the second step of the second epoch."""
    cache, several = f"recipe.trunk_cache={tmp_path / 'cache'}", ("recipe.batch_size=64", "recipe.grad_accumulation=2")
    plain = trained(tmp_path / "plain", source, *several)
    steps_and_batches = {"training": (loop, "_update"), "making": (trunk_cache, "trunk_outputs")}
    module, name = steps_and_batches[stage]
    original, count = getattr(module, name), 0

    def stopping(*arguments: object) -> object:
        nonlocal count
        count += 1
        if count == 2 + (22 if stage == "training" else 45):
            os.kill(os.getpid(), signal.SIGTERM)
        return original(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(module, name, stopping)
        with pytest.raises(SystemExit):
            trained(tmp_path / "run", source, cache, *several)
    made = [file.name for file in (tmp_path / "cache").glob("*/epoch-*.pt")]
    assert sorted(made) == ["epoch-0.pt", "epoch-1.pt"][: 1 if stage == "making" else 2]
    continued = trained(tmp_path / "run", source, cache, *several)
    assert all(torch.equal(plain[name], continued[name]) for name in plain)


def test_a_signal_ends_the_wait_for_another_process(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = f"recipe.trunk_cache={tmp_path / 'cache'}"
    plain = trained(tmp_path / "first", source, cache)
    (file,) = (tmp_path / "cache").glob("*/epoch-1.pt")
    file.unlink()
    sent: list[int] = []

    def sleep(seconds: float) -> None:  # once, as a later signal finds no one who waits
        if not sent:
            sent.append(signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch, files.locked(file.parent, "cache"):  # another process makes the second epoch's file
        patch.setattr(files, "time", SimpleNamespace(sleep=sleep, monotonic=time.monotonic))
        patch.setattr(trunk_cache, "PATIENCE", 2.0)
        with pytest.raises(SystemExit) as ended:
            trained(tmp_path / "run", source, cache)
    assert ended.value.code == 128 + signal.SIGTERM
    continued = trained(tmp_path / "run", source, cache)
    assert all(torch.equal(plain[name], continued[name]) for name in plain)


@pytest.mark.parametrize("other", ["seed=5", "recipe.batch_size=128", "recipe.augment.hflip=0.1"])
def test_other_batches_have_files_of_their_own(source: str, tmp_path: Path, other: str) -> None:
    cache = f"recipe.trunk_cache={tmp_path / 'cache'}"
    trained(tmp_path / "first", source, cache, "recipe.epochs=1")
    trained(tmp_path / "second", source, cache, "recipe.epochs=1", other)
    assert len(list((tmp_path / "cache").iterdir())) == 2


def photographs(root: Path, value: int) -> str:
    """Grey images of one value, 4 of each of 10 classes; the override that trains on them."""
    for split, number in itertools.product(("train", "val"), range(40)):
        folder = root / split / f"class{number % 10}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32), (value,) * 3).save(folder / f"{number}.png")
    return f"data.root={root}"


def test_other_pixels_or_libraries_have_files_of_their_own(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    options = (
        source,
        "data=folder",
        "recipe=digits",
        "recipe.epochs=1",
        "recipe.batch_size=8",
        f"recipe.trunk_cache={tmp_path / 'cache'}",
    )
    for number, value in enumerate((50, 200)):  # the same names and labels
        trained(tmp_path / f"run{number}", *options, photographs(tmp_path / f"images{number}", value))
    assert len(list((tmp_path / "cache").iterdir())) == 2
    trained(tmp_path / "run2", *options, "data.root=images1")  # the same folder by another name
    assert len(list((tmp_path / "cache").iterdir())) == 2
    monkeypatch.setattr(setup, "versions", lambda packages: dict.fromkeys(packages, "another"))
    trained(tmp_path / "run3", *options, "data.root=images1")
    assert len(list((tmp_path / "cache").iterdir())) == 3


def test_of_several_processes_one_makes_a_file(tmp_path: Path) -> None:
    """They are threads here, of which each locks the folder for itself, as a process does."""
    network = nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten(), nn.Linear(2 * 6 * 6, 2)).eval()
    trunk = find_trunk(network, "0", 8)
    assert trunk is not None
    caches = [TrunkCache(tmp_path, copy.deepcopy(network), trunk, "batches", 8) for _ in range(3)]
    caches[0].folder.mkdir()
    left_over = caches[0].folder / ".epoch-0.pt.1.tmp"
    left_over.touch()
    makers: list[int] = []
    together = threading.Barrier(len(caches))

    def work(number: int) -> list[int]:
        def images() -> Iterator[tuple[Tensor, Tensor, Tensor]]:
            makers.append(number)
            time.sleep(0.5)  # the others come meanwhile
            yield torch.zeros(2, 3, 8, 8), torch.tensor([0, 1]), torch.tensor([number, 7])

        together.wait()
        (batch,) = caches[number].epoch(0, images(), 0)
        return batch.ids.tolist()

    with ThreadPoolExecutor(len(caches)) as pool:
        found = list(pool.map(work, range(len(caches))))
    assert len(makers) == 1
    assert found == len(caches) * [[makers[0], 7]], "all read what one has made"
    assert [path.name for path in caches[0].folder.iterdir()] == ["epoch-0.pt"]


def test_a_damaged_file_is_named(source: str, tmp_path: Path) -> None:
    cache = f"recipe.trunk_cache={tmp_path / 'cache'}"
    trained(tmp_path / "first", source, cache, "recipe.epochs=1")
    (file,) = (tmp_path / "cache").glob("*/epoch-0.pt")
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"recipe\.trunk_cache: .*epoch-0\.pt cannot be read.*: delete it"):
        trained(tmp_path / "second", source, cache, "recipe.epochs=1")


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (("recipe.freeze=null",), "recipe.trunk_cache must be null without recipe.freeze=STAGE, got 'somewhere'"),
        (("recipe.mixup=0.2",), "recipe.trunk_cache must be null with recipe.mixup, which it cannot do, got 'somewhere'"),
        (("recipe.amp=bf16",), "recipe.trunk_cache must be null with recipe.amp, which it cannot do, got 'somewhere'"),
        (("data.skip_bad=true",), "recipe.trunk_cache must be null with data.skip_bad=true, got 'somewhere'"),
    ],
)
def test_what_it_cannot_do_is_refused(source: str, tmp_path: Path, options: tuple[str, ...], problem: str) -> None:
    with pytest.raises(UserError) as caught:
        trained(tmp_path / "run", source, "recipe.trunk_cache=somewhere", *options)
    assert str(caught.value) == problem
