"""ResNet-18 for small images: timm's network but for its stem, with L1..L4 where they are said to be."""

from collections.abc import Sequence

import pytest
import timm
import torch
from conftest import configuration

from gch_bench.config.run import NoiseConfig
from gch_bench.errors import UserError
from gch_bench.geometry.chains import find_chains
from gch_bench.model.build import build, build_network
from gch_bench.model.cifar_resnet import resnet18_cifar
from gch_bench.noise.stages import stage_modules


@pytest.mark.parametrize(("model", "sides"), [("resnet18_cifar", (32, 16, 8, 4)), ("resnet18_cifar_eighth", (16, 8, 4, 4))])
def test_stages(model: str, sides: Sequence[int]) -> None:
    """The maps are measured by a forward pass; feature_info must say the same."""
    noise = NoiseConfig("dropout", "bernoulli", p=0.5, stages=["L1", "L2", "L3", "L4"])
    built = build(configuration(f"model={model}").model, noise, 10, 32)
    assert [(stage.height, stage.width) for stage in built.stages] == [(side, side) for side in sides]
    assert [32 // stage["reduction"] for stage in built.network.feature_info[1:]] == list(sides)
    assert [chain.name for chain in find_chains(built.network.state_dict())] == ["resnet"]


def test_it_is_timms_network_but_for_the_stem() -> None:
    """With timm's weights in both, and the same map given to the first stage, the logits are timm's."""
    torch.manual_seed(0)
    ours, theirs = resnet18_cifar(10), timm.create_model("resnet18", num_classes=10)
    state = {name: weight for name, weight in theirs.state_dict().items() if name != "conv1.weight"}
    missing, unexpected = ours.load_state_dict(state, strict=False)
    assert (missing, unexpected) == (["conv1.weight"], [])
    assert ours.conv1.weight.shape == (64, 3, 3, 3)
    assert stage_modules(ours) == stage_modules(theirs)
    ours.eval(), theirs.eval()
    map_BCHW = torch.randn(2, 64, 8, 8)
    for name in ("layer1", "layer2", "layer3", "layer4"):
        assert torch.equal(getattr(ours, name)(map_BCHW), getattr(theirs, name)(map_BCHW))
        map_BCHW = getattr(theirs, name)(map_BCHW)
    assert torch.equal(ours.forward_head(map_BCHW), theirs.forward_head(map_BCHW))


def test_the_stem_is_one_convolution() -> None:
    network = resnet18_cifar(10, (4, 6, 8, 10)).eval()
    seen = []
    network.layer1.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    images = torch.randn(2, 3, 32, 32)
    network(images)
    expected = network.bn1(torch.nn.functional.conv2d(images, network.conv1.weight, padding=1)).relu()
    torch.testing.assert_close(seen[0], expected)
    assert not hasattr(network.layer1[0], "downsample") or network.layer1[0].downsample is None


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"channels": [4, 4, 4]}, r"channels must be four even numbers, got \[4, 4, 4\]"),
        ({"channels": [3, 4, 4, 4]}, r"channels must be four even numbers"),
        ({"stem_stride": 3}, "stem_stride must be 1, 2 or 4, got 3"),
        ({"stem_stride": 2, "output_stride": 2}, r"output_stride must be 2, 4 or 8 times stem_stride \(2\), got 2"),
    ],
)
def test_arguments_out_of_range(kwargs: dict, message: str) -> None:
    model = configuration("model=resnet18_cifar", f"model.kwargs={kwargs}".replace("'", "").replace(" ", "")).model
    with pytest.raises(UserError, match=message):
        build_network(model, 10, 32)
