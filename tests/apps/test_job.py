"""What a job asks of its network, of its noise and of timm's preparation."""

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY, configuration

from gch_bench.apps.job import Loaded, _scored, _timm_cell, prepare
from gch_bench.config.run import ModelConfig, NoiseConfig
from gch_bench.data.images import ArrayImages
from gch_bench.data.sets import DataSource
from gch_bench.data.transforms import EvalTransform, timm_preparation
from gch_bench.distributed import World
from gch_bench.model.build import build
from gch_bench.results.records import CELL_CLEAN

ALONE = World(0, 1, torch.device("cpu"))
IDS = (6, 10, 12)  # the classes of `source` among ImageNet's


def source(name: str) -> DataSource:
    """A data set of three of ImageNet's classes and images of 64 pixels."""
    images = ArrayImages(["a"], np.zeros(1, dtype=np.int64), np.zeros((1, 64, 64), dtype=np.uint8))
    return DataSource(name, "", ["a", "b", "c"], EvalTransform(64), None, images, "0" * 16, None, "none", IDS)


@pytest.mark.parametrize(
    ("data", "pretrained", "entry_point", "expected"),
    [
        ("imagenet_a", False, "evaluate", IDS),
        ("imagenet_a", True, "evaluate", IDS),
        ("imagenet", True, "evaluate", IDS),
        ("imagenet", False, "evaluate", None),
        ("imagenet", True, "train", None),
    ],
)
def test_which_outputs_are_scored(data: str, pretrained: bool, entry_point: str, expected: tuple[int, ...] | None) -> None:
    """A network that was trained on some of ImageNet's classes has outputs for these alone."""
    config = configuration(f"model.pretrained={pretrained}", name=entry_point)
    assert _scored(config, source(data)) == expected


@pytest.mark.parametrize(("name", "takes_it"), [("resnet18", True), ("vit_tiny_patch16_224", False)])
def test_timms_preparation_needs_a_network_that_takes_its_size(name: str, takes_it: bool) -> None:
    """A vision transformer that was built for 64 pixels takes no others."""
    noisy = build(ModelConfig(name), NoiseConfig("none"), 1000, 64)
    config = configuration(f"model.name={name}", "model.pretrained=true", name="evaluate")
    own = timm_preparation(name)
    assert own.size > 64
    assert _timm_cell(config, source("imagenet"), noisy) == (own if takes_it else None)


def test_noise_at_test_time_is_drawn_from_the_seed(tmp_path: Path) -> None:
    options = ("noise=gch", "noise.eval=true", "noise.mc_samples=4", "seed=3", f"output={tmp_path}")
    job = prepare(configuration(*TINY, *options), ALONE, Loaded(ALONE))
    predictor = job.task(job.noisy.network, "weights", [CELL_CLEAN], [CELL_CLEAN]).predictor
    assert (predictor.noise_seed, predictor.noise_passes) == (3, 4)
