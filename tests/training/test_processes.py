"""The number of processes does not change a training, except where the program says so; synchronised BatchNorm."""

from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from conftest import TINY, configuration
from tinynet import groupnorm, tinynet
from torch import nn
from training_jobs import BATCHNORM_CASES, EQUAL_CASES, equal_weights, make_job

from gch_bench.errors import UserError
from gch_bench.noise import GaussianChaosNoise, inject
from gch_bench.noise.hooks import stage_hooks
from gch_bench.training.freeze import NOTHING, freeze
from gch_bench.training.processes import process_dependence, synchronise


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, torch.Tensor]]:
    return equal_weights(tmp_path_factory.mktemp("alone"))


@pytest.mark.parametrize("processes", [2, 3])
def test_weights_are_those_of_one_process(
    processes: int, tmp_path: Path, cli: Callable, alone: dict[str, dict[str, torch.Tensor]]
) -> None:
    """With internal noise, gradient accumulation, averaging and a frozen part, to 1e-5 in every weight; the noise itself
    matters much more. With BatchNorm at least all processes end with the same network, and so does a resumed training."""
    launcher = ("-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}")
    done = cli("tests/training/training_jobs.py", str(tmp_path), launcher=launcher, timeout=120)
    assert done.returncode == 0, done.stderr
    first, *others = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(processes))
    assert set(alone) == set(EQUAL_CASES) == set(first) - {*BATCHNORM_CASES, "straight", "resumed"}
    for case, weights in alone.items():
        for name, value in weights.items():
            torch.testing.assert_close(first[case][name], value, rtol=0, atol=1e-5, msg=f"{case} {name}")
    assert max(float((alone["gch"][name] - alone["dropblock"][name]).abs().max()) for name in alone["gch"]) > 1e-3
    for case, weights in first.items():
        for name, value in weights.items():
            assert all(torch.equal(other[case][name], value) for other in others), f"{case} {name}"
    for name, value in first["straight"].items():  # DDP's first step may sum three processes' gradients in another order
        torch.testing.assert_close(first["resumed"][name], value, rtol=0, atol=0 if processes == 2 else 1e-6, msg=name)
    assert torch.equal(first["recalibrated"]["early.1.running_var"], torch.ones(8)), "frozen: as it was before the first step"
    assert not torch.equal(first["recalibrated"]["late.1.running_var"], torch.ones(16))


def test_what_depends_on_the_number_of_processes() -> None:
    recipe = configuration(*TINY).recipe
    assert recipe is not None
    mixing = configuration(*TINY, "recipe.cutmix=0.5").recipe
    synchronised = configuration(*TINY, "recipe.sync_bn=true").recipe
    assert process_dependence(groupnorm(4), recipe, NOTHING) == []
    (reason,) = process_dependence(groupnorm(4), mixing, NOTHING)
    assert "cutmix" in reason
    (reason,) = process_dependence(tinynet(4), recipe, NOTHING)
    assert "BatchNorm" in reason
    assert process_dependence(tinynet(4), synchronised, NOTHING) == []
    network = tinynet(4)
    assert process_dependence(network, recipe, freeze(network, "late", 32)) == [], "frozen BatchNorm normalises over nothing"
    for rate, expected in ((0.0, 0), (0.2, 1)):
        for option in ("drop_rate", "drop_path_rate"):
            model = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=4, **{option: rate})
            assert len(process_dependence(model, recipe, NOTHING)) == expected


@pytest.mark.parametrize(("name", "module"), [("resnet18", "bn1"), ("efficientnet_b0", "bn2")])
def test_synchronised_batchnorm_keeps_the_network_and_its_noise(name: str, module: str) -> None:
    """timm's layer with an activation inside, too. In eval mode the layers compute the same as before."""
    torch.manual_seed(0)
    model, images = timm.create_model(name, num_classes=4), torch.randn(2, 3, 64, 64)
    inject(model, GaussianChaosNoise(), [module], images=images)
    model(images)  # running statistics that are not those of the start
    keys, parameters, expected = list(model.state_dict()), list(model.parameters()), model.eval()(images)
    hooks = stage_hooks(model)
    synchronise(model)
    assert isinstance(model.get_submodule(module), nn.SyncBatchNorm)
    assert not any(type(each) is nn.BatchNorm2d for each in model.modules())
    assert stage_hooks(model) == hooks
    assert list(model.state_dict()) == keys
    assert all(one is other for one, other in zip(model.parameters(), parameters, strict=True)), "the optimiser's own"
    assert torch.equal(model(images), expected)
    hooks[0].test = True
    assert not torch.allclose(model(images), expected)


def test_synchronised_batchnorm_is_refused_on_a_cpu(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="sync_bn=true needs GPUs"):
        make_job(tmp_path, "recipe.sync_bn=true")
