"""Running statistics without noise, and how far noise moves them, compared with variances computed directly."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import TINY, configuration
from torch import nn
from training_jobs import ALONE, make_job

from gch_bench.apps.run import train_and_evaluate
from gch_bench.errors import UserError
from gch_bench.noise import GaussianChaosNoise, inject
from gch_bench.noise.hooks import stage_hooks
from gch_bench.training.batchnorm import inflation, recalibrate, reestimate
from gch_bench.training.freeze import NOTHING, freeze
from gch_bench.training.loop import train


def network(gamma: float = 1.0, noise: bool = True) -> nn.Sequential:
    """Noise at the output of `stage`, a BatchNorm before it and one behind it."""
    torch.manual_seed(0)
    layers = nn.Sequential()
    for name, module in (
        ("first", nn.BatchNorm2d(3)), ("drop", nn.Dropout(0.5)), ("stage", nn.Conv2d(3, 4, 1)), ("second", nn.BatchNorm2d(4)),
        ("pool", nn.AdaptiveAvgPool2d(1)), ("flat", nn.Flatten()), ("head", nn.Linear(4, 2)),
    ):  # fmt: skip
        layers.add_module(name, module)
    if noise:
        inject(layers, GaussianChaosNoise(gamma), ["stage"], train=True, test=True)
    return layers


def batches() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(6, 3, 7, 7, generator=generator) + shift for shift in (0.0, 2.0, 5.0)]


def test_statistics_are_plain_averages_without_noise() -> None:
    model = network().train()
    model(batches()[0])  # noisy statistics
    state = torch.get_rng_state()
    recalibrate(model, NOTHING, batches(), ALONE, limit=2)
    seen = batches()[:2]
    means = torch.stack([images.mean((0, 2, 3)) for images in seen])
    variances = torch.stack([images.var((0, 2, 3)) for images in seen])
    torch.testing.assert_close(model.first.running_mean, means.mean(0))
    torch.testing.assert_close(model.first.running_var, variances.mean(0))
    quiet = [  # the second layer's inputs, by hand: normalised by the batch's own statistics, no dropout, no noise
        model.stage.forward(nn.functional.batch_norm(images, None, None, model.first.weight, model.first.bias, True))
        for images in seen
    ]
    torch.testing.assert_close(model.second.running_var, torch.stack([x.var((0, 2, 3)) for x in quiet]).mean(0))
    assert all(module.training for module in model.modules()), "the mode is kept"
    assert model.first.momentum == 0.1
    assert [(hook.train, hook.test) for hook in stage_hooks(model)] == [(True, True)]
    assert torch.equal(torch.get_rng_state(), state), "nothing was drawn"


def test_frozen_statistics_stay() -> None:
    model = network(noise=False)
    frozen = freeze(model, "stage", 7)
    before = model.first.running_var.clone()
    recalibrate(model, frozen, batches(), ALONE)
    assert torch.equal(model.first.running_var, before)
    assert not torch.equal(model.second.running_var, torch.ones(4))


@pytest.mark.parametrize("gamma", [0.0, 1.0, 2.0])
def test_inflation_is_the_ratio_of_input_variances(gamma: float) -> None:
    model = network(gamma)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    images = batches()[0]
    ratios = inflation(model, NOTHING, images, seed=3)
    assert list(ratios) == ["first", "second"]
    assert ratios["first"] == 1, "it lies before the noise"
    inputs: list[torch.Tensor] = []
    model.second.register_forward_pre_hook(lambda module, given: inputs.append(given[0].var((0, 2, 3))))
    for noise in (False, True):  # another estimate: the layer's input variances themselves, under other draws, many times
        for _ in range(200 if noise else 1):
            reestimate(model, {"first": model.first}, [images], noise)
    clean, *noisy = inputs
    expected = float((torch.stack(noisy).mean(0) / clean).mean())
    assert ratios["second"] == pytest.approx(expected, rel=0.25)
    assert (ratios["second"] == 1) == (gamma == 0)
    model.load_state_dict(before)
    inflation(model, NOTHING, images, seed=3)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items()), "the network is as it was"


NOISY = ("noise=gch", "noise.stages=[early]", "recipe.batch_size=32", "recipe.epochs=1")


def test_warning_names_stage_layer_and_factor(tmp_path: Path) -> None:
    options = (*TINY, "noise=gch", "recipe.epochs=1", "recipe.batch_size=256", "corruptions=none")

    def warnings(name: str, *more: str) -> list[str]:
        train_and_evaluate(configuration(*options, f"output={tmp_path / name}", *more))
        return json.loads((tmp_path / name / "run.json").read_text())["warnings"]

    (warning,) = warnings("early", "noise.stages=[early]")
    for part in ("noise at early (early)", "before BatchNorm", "late.1 records x1.", "1 of 2", "recipe.recalibrate_bn=true"):
        assert part in warning
    assert not warnings("late"), "no BatchNorm behind the last stage"
    assert not warnings("again", "noise.stages=[early]", "recipe.recalibrate_bn=true"), "something is done about it"
    assert not warnings("without", "noise=none")


@pytest.mark.parametrize("ema", ["null", "0.5"])
def test_recalibrated_training_is_deterministic_and_only_moves_statistics(tmp_path: Path, ema: str) -> None:
    """The evaluated weights are those of the plain training; the statistics are those of its network without noise."""
    ends = []
    for number, switch in enumerate((False, True, True)):
        options = (*NOISY, f"recipe.ema_decay={ema}", f"recipe.recalibrate_bn={str(switch).lower()}")
        job = make_job(tmp_path / str(number), *options)
        trained = train(job, lambda progress: None, [], warn=print)
        assert (trained is job.model) == (ema == "null")
        ends.append(({name: value.clone() for name, value in trained.state_dict().items()}, job, trained))
    (plain, _, _), (first, job, trained), (second, _, _) = ends
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    moved = {name for name, value in first.items() if not torch.equal(value, plain[name])}
    statistics = {f"{layer}.{value}" for layer in ("early.1", "late.1") for value in ("running_mean", "running_var")}
    assert statistics <= moved <= statistics | {f"{layer}.num_batches_tracked" for layer in ("early.1", "late.1")}
    inputs: list[torch.Tensor] = []
    trained.train().get_submodule("late.1").register_forward_pre_hook(
        lambda module, given: inputs.append(given[0].var((0, 2, 3)))
    )
    for hook in stage_hooks(trained):
        hook.train = False
    with torch.no_grad():
        for batch in job.loader.epoch(1):  # one epoch more than was trained
            trained(batch.images)
    torch.testing.assert_close(torch.stack(inputs).mean(0), first["late.1.running_var"])


def test_recalibration_is_part_of_a_runs_identity(tmp_path: Path, refused: Callable[..., str]) -> None:
    options = (*TINY, "recipe.epochs=1", "recipe.batch_size=256", "corruptions=none", f"output={tmp_path / 'run'}")
    train_and_evaluate(configuration(*options))
    assert "recipe.recalibrate_bn" in refused(*options, "recipe.recalibrate_bn=true")
    with pytest.raises(UserError):
        train_and_evaluate(configuration(*options, "recipe.freeze=early"))
