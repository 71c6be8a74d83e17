"""Patterns in `checkpoints` and `runs` of diagnose.py, and the epochs of the files."""

from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from hydra import compose, initialize_config_dir
from safetensors.torch import save_file

from gch_bench.apps.cli import diagnosis_config
from gch_bench.apps.diagnosis.subjects import one_network, subjects
from gch_bench.apps.diagnosis.weight_files import epoch_of, expanded
from gch_bench.apps.patterns import natural
from gch_bench.config.diagnosis import DiagnoseConfig
from gch_bench.errors import UserError

CONFIGS = str(Path(__file__).parents[2] / "configs")
SMALL = ("model.name=resnet18", "model.kwargs={channels: [4, 8, 8, 16]}", "logger=none", "threads=1")


def config(*overrides: str) -> DiagnoseConfig:
    with initialize_config_dir(CONFIGS, version_base="1.3"):
        return diagnosis_config(compose("diagnose", overrides=[*SMALL, *overrides]))


@pytest.fixture
def checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Writes the weights of a seed into a file of runs/x/checkpoints."""
    monkeypatch.chdir(tmp_path)
    folder = Path("runs/x/checkpoints")
    folder.mkdir(parents=True)

    def write(name: str, seed: int, **more: object) -> str:
        torch.manual_seed(seed)
        state = timm.create_model("resnet18", channels=[4, 8, 8, 16], num_classes=7).state_dict()
        torch.save({"model": state, **more} if more else state, folder / name)
        return str(folder / name)

    return write


def test_patterns_as_typed(checkpoint: Callable[..., str]) -> None:
    for seed, name in enumerate(("epoch-10.pt", "epoch-2.pt", "epoch-1.pt")):
        checkpoint(name, seed)
    checkpoint("last.pt", 0, config_hash="x", position={"epoch": 10, "step": 0})  # the same weights as epoch-10.pt
    checkpoint("previous.pt", 9)
    for other in ("notes.txt", ".last.pt.1.tmp", "log.json"):
        Path("runs/x/checkpoints", other).write_text("no weights")
    Path("runs/x/checkpoints/folder.pt").mkdir()
    found = list(subjects(config("checkpoints=[runs/x/checkpoints/*]")))
    assert [subject.label for subject in found] == ["epoch-1", "epoch-2", "epoch-10", "previous"]
    assert [subject.epoch for subject in found] == [1, 2, 10, None]
    assert [subject.warnings for subject in found][:2] == [[], []]
    assert found[2].warnings == ["runs/x/checkpoints/last.pt holds the same weights and was left out"]
    assert len({subject.digest for subject in found}) == 4


def test_files_by_name_stay(checkpoint: Callable[..., str]) -> None:
    paths = [checkpoint("b.pt", 0), checkpoint("a.pt", 0), checkpoint("c[1].pt", 1)]
    typed = config("checkpoints=['" + "','".join(paths) + "']")
    assert expanded(typed).config.checkpoints == paths  # no pattern: both files of the same weights, and a name with brackets
    assert expanded(typed).notes == {}
    both = expanded(config(f"checkpoints=[{paths[1]},runs/x/checkpoints/*]"))
    assert both.config.checkpoints == [paths[1], paths[2]]
    assert both.notes == {paths[1]: [f"{paths[0]} holds the same weights and was left out"]}
    assert expanded(both.config).config == both.config


def test_an_unreadable_match_is_left_to_its_loader(checkpoint: Callable[..., str]) -> None:
    checkpoint("epoch-1.pt", 0)
    for name in ("epoch-2.pt", "epoch-3.pt"):
        Path("runs/x/checkpoints", name).write_bytes(b"no checkpoint")
    assert len(expanded(config("checkpoints=[runs/x/checkpoints/*]")).config.checkpoints) == 3
    with pytest.raises(UserError, match=r"epoch-2.pt cannot be read"):
        list(subjects(config("checkpoints=[runs/x/checkpoints/*]")))


def test_patterns_that_match_nothing(checkpoint: Callable[..., str]) -> None:
    Path("runs/x/checkpoints/notes.txt").write_text("")
    with pytest.raises(UserError) as caught:
        list(subjects(config("checkpoints=[runs/x/checkpoints/*]")))
    assert (
        str(caught.value) == "checkpoints must match at least one file of weights, got runs/x/checkpoints/*, which matches none"
    )
    with pytest.raises(UserError) as caught:
        list(subjects(config("runs=[runs/*]")))
    assert str(caught.value) == "runs must match at least one run folder, got runs/*, which matches none"


def test_run_folders(checkpoint: Callable[..., str]) -> None:
    for name in ("b-2", "b-10", "a"):
        Path("runs", name).mkdir()
        Path("runs", name, "run.json").write_text("{}")
    found = expanded(config("runs=[runs/a,runs/*]")).config.runs
    assert found == ["runs/a", "runs/b-2", "runs/b-10"]


def test_one_network_counts_the_matches(checkpoint: Callable[..., str]) -> None:
    checkpoint("epoch-1.pt", 0)
    assert one_network(config("mode=compatibility", "checkpoints=[runs/x/checkpoints/*]")).epoch == 1
    checkpoint("epoch-2.pt", 1)
    with pytest.raises(UserError, match="looks at one network"):
        one_network(config("mode=compatibility", "checkpoints=[runs/x/checkpoints/*]"))


def test_natural_order() -> None:
    names = ["e10.pt", "e2.pt", "last.pt", "e2-b.pt", "1/e3.pt"]
    assert sorted(names, key=natural) == ["1/e3.pt", "e2-b.pt", "e2.pt", "e10.pt", "last.pt"]


@pytest.mark.parametrize(
    ("name", "epoch"),
    [
        ("epoch-12.pt", 12), ("model_ep3.pth", 3), ("checkpoint-7.pth.tar", 7), ("epoch=4-step=100.ckpt", 4), ("0005.pt", 5),
        ("last.pt", None), ("resnet50.pt", None), ("vit_base_16.pt", None), ("timepoint3.pt", None),
    ],
)  # fmt: skip
def test_the_epoch_in_a_name(tmp_path: Path, name: str, epoch: int | None) -> None:
    torch.save({"weight": torch.ones(2)}, tmp_path / name)
    assert epoch_of(str(tmp_path / name)) == epoch


def test_the_epoch_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "epoch-99.pt"
    torch.save({"position": {"epoch": 3, "step": 5}, "model": {}}, path)
    assert epoch_of(str(path)) == 3
    torch.save({"epoch": 8, "state_dict": {}}, path)
    assert epoch_of(str(path)) == 8
    torch.save({"epoch": 6, "state_dict": {}}, path, _use_new_zipfile_serialization=False)  # cannot be mapped: the name
    assert epoch_of(str(path)) == 99
    save_file({"weight": torch.ones(2)}, tmp_path / "epoch-4.safetensors")
    assert epoch_of(str(tmp_path / "epoch-4.safetensors")) == 4
