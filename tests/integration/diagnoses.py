"""Shared by the tests of diagnose.py: a small network, its weights in a file, and a call as on the command line."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import timm
import torch
from hydra import compose, initialize_config_dir

from gch_bench.apps.cli import diagnosis_config
from gch_bench.apps.diagnosis.run import diagnose

REPOSITORY = Path(__file__).parents[2]
SMALL = ("model.name=resnet18", "model.kwargs={channels: [4, 8, 8, 16]}", "logger=none", "threads=1")


def run(*overrides: str) -> None:
    with initialize_config_dir(str(REPOSITORY / "configs"), version_base="1.3"):
        diagnose(diagnosis_config(compose("diagnose", overrides=list(overrides))))


def resnet(path: Path, seed: int = 0, classes: int = 7) -> str:
    torch.manual_seed(seed)
    network = timm.create_model("resnet18", channels=[4, 8, 8, 16], num_classes=classes, zero_init_last=False)
    torch.save(network.state_dict(), path)
    return str(path)


def named_only(figures: Mapping[str, Any], folder: Path, kinds: tuple[str, ...]) -> None:
    """In place of `save`, for tests that do not look at figures, which take most of the time: empty files."""
    folder.mkdir()
    for name in figures:
        for kind in kinds:
            (folder / f"{name}.{kind}").touch()


def files_in(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def table(folder: Path, name: str) -> pd.DataFrame:
    return pd.read_csv(folder / f"{name}.csv")
