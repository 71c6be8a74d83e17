"""recipe.freeze: what lies up to a stage stays exactly as it was, what lies after it is trained."""

from pathlib import Path

import pytest
import timm
import torch
from conftest import TINY, configuration
from torch import nn

from gch_bench.apps.run import train_and_evaluate
from gch_bench.errors import UserError
from gch_bench.noise import GaussianChaosNoise, inject
from gch_bench.training.freeze import NOTHING, freeze, hold_still

# What is trained after a stage, written down from each architecture's paper and not from the code: prefixes of parameters.
TRAINED = {
    ("resnet18", "L3"): ("layer4.", "fc."),
    ("resnet18", "L4"): ("fc.",),
    ("resnet18", "layer3.0"): ("layer3.1.", "layer4.", "fc."),
    ("tf_efficientnet_lite0", "L3"): ("blocks.5.", "blocks.6.", "conv_head.", "bn2.", "classifier."),
    ("convnext_atto", "L3"): ("stages.3.", "head."),
    ("vit_tiny_patch16_224", "L3"): ("blocks.9.", "blocks.10.", "blocks.11.", "norm.", "head."),
    ("mobilenetv3_small_100", "blocks.4"): ("blocks.5.", "conv_head.", "classifier."),
}


@pytest.mark.parametrize(("model", "stage"), TRAINED)
def test_only_what_lies_after_the_stage_is_trained(model: str, stage: str) -> None:
    size = 224 if model.startswith("vit") else 64
    network = timm.create_model(model, num_classes=5)
    freeze(network, stage, size)
    trained = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    expected = {name for name, _ in network.named_parameters() if name.startswith(TRAINED[model, stage])}
    assert trained == expected
    assert network.training, "the trial forward pass leaves the mode as it was"


def test_frozen_part_neither_moves_nor_drops(tmp_path: Path) -> None:
    """A step of training: statistics and weights before the stage are bit for bit the same, those after it are not."""
    torch.manual_seed(0)
    network = nn.Sequential()
    for name, module in (
        ("conv", nn.Conv2d(3, 4, 3)), ("norm", nn.BatchNorm2d(4)), ("drop", nn.Dropout(0.5)), ("stage", nn.Conv2d(4, 4, 3)),
        ("late", nn.BatchNorm2d(4)), ("pool", nn.AdaptiveAvgPool2d(1)), ("flat", nn.Flatten()), ("head", nn.Linear(4, 2)),
    ):  # fmt: skip
        network.add_module(name, module)
    frozen = freeze(network, "stage", 16)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    network.train()
    hold_still(network, frozen)
    seen: list[torch.Tensor] = []
    network.stage.register_forward_hook(lambda module, inputs, output: seen.append(output))
    images = torch.randn(8, 3, 16, 16)
    optimizer = torch.optim.SGD(network.parameters(), 0.1, weight_decay=0.1)
    for _ in range(2):
        network(images).square().sum().backward()
        optimizer.step()
    assert torch.equal(seen[0], seen[1]), "dropout before the stage is off"
    assert not seen[0].requires_grad, "the frozen part builds no graph"
    moved = {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}
    after = {f"late.{name}" for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")}
    assert moved == after | {"head.weight", "head.bias"}
    assert all(parameter.grad is None for name, parameter in network.named_parameters() if name not in moved)


def test_a_whole_training_leaves_the_frozen_part(tmp_path: Path) -> None:
    """Through the real job, with EMA and noise behind the frozen part: the checkpoint still holds the starting weights."""
    options = (*TINY, "noise=gch", "recipe.epochs=1", "recipe.batch_size=256", "corruptions=none", "recipe.ema_decay=0.5")
    train_and_evaluate(configuration(*options, f"output={tmp_path / 'source'}", "noise=none"))
    source = tmp_path / "source" / "checkpoints" / "last.pt"
    train_and_evaluate(
        configuration(*options, f"model.checkpoint={source}", "recipe.freeze=early", f"output={tmp_path / 'run'}")
    )
    given = torch.load(source, weights_only=True)["model_ema"]
    after = torch.load(tmp_path / "run" / "checkpoints" / "last.pt", weights_only=True)
    for part in ("model", "model_ema"):
        same = {name for name, value in after[part].items() if torch.equal(value, given[name])}
        assert same == {name for name in given if name.startswith("early.")}


def test_noise_behind_the_frozen_part_acts() -> None:
    network = timm.create_model("resnet18", num_classes=5)
    inject(network, GaussianChaosNoise(), ["L4"])
    frozen = freeze(network, "L3", 64)
    network.train()
    hold_still(network, frozen)
    images = torch.randn(4, 3, 64, 64)
    assert not torch.allclose(network(images), network(images)), "the images and batch statistics are the same"


@pytest.mark.parametrize(
    ("stage", "noise", "message"),
    [
        ("L5", [], r"recipe.freeze=L5: unknown stage 'L5' of ResNet: choose one of L1 \(layer1\)"),
        ("fc", [], "recipe.freeze=fc leaves no parameter to train: choose an earlier stage"),
        ("L3", ["L2"], "recipe.freeze=L3 keeps layer2 in eval mode, where the noise at stage L2 does not act"),
        ("L3", ["L3"], "recipe.freeze=L3 keeps layer3 in eval mode, where the noise at stage L3 does not act"),
        ("spare", [], "recipe.freeze=spare: spare is never called by the network's forward"),
    ],
)
def test_what_cannot_be_frozen(stage: str, noise: list[str], message: str) -> None:
    network = timm.create_model("resnet18", num_classes=5)
    network.spare = nn.Linear(2, 2)
    if stage == "fc":
        del network.spare
    if noise:
        inject(network, GaussianChaosNoise(), noise)
    with pytest.raises(UserError, match=message):
        freeze(network, stage, 64)
    assert all(parameter.requires_grad for parameter in network.parameters()), "nothing was frozen halfway"


def test_nothing_is_frozen_by_default() -> None:
    network = timm.create_model("resnet18", num_classes=5)
    assert freeze(network, None, 64) == NOTHING
    assert all(parameter.requires_grad for parameter in network.parameters())
    recipe = configuration().recipe
    assert recipe is not None
    assert recipe.freeze is None
