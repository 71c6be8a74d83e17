"""A trunk that is computed once, and tails that are run on it, give what plain forward passes give."""

import copy
import functools
from collections import OrderedDict
from collections.abc import Callable

import pytest
import timm
import torch
from conftest import needs_lite
from tinynet import TinyNet, tinynet
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from gch_bench.model.trunk import Trunk, check_trunk, find_trunk, first_noisy, noise_off, run_tail, trunk_digest, trunk_outputs
from gch_bench.noise import Gaussian, GaussianChaosNoise, inject
from gch_bench.noise.hooks import keyed_noise
from gch_bench.noise.injection import Additive
from gch_bench.noise.kernels import White
from gch_bench.noise.placement import perturbed
from gch_bench.noise.stages import find_stage

SWIN = {"img_size": 64, "window_size": 2, "embed_dim": 24, "depths": (1, 1, 2, 1), "num_heads": (1, 2, 3, 4)}
FAMILIES: dict[str, dict] = {
    "resnet18": {},
    "tf_efficientnet_lite0": {},
    "mobilenetv3_small_050": {},
    "convnext_atto": {},
    "vit_tiny_patch16_224": {"img_size": 64, "depth": 4},
    "eva02_tiny_patch14_224": {"img_size": 56, "depth": 4},  # its rotary position embedding is computed between the modules
    "swin_tiny_patch4_window7_224": SWIN,
    "densenet121": {"block_config": (2, 2, 2, 2)},
    "cait_xxs24_224": {"img_size": 64, "depth": 4},
    "mobilevit_xxs": {},
    "hrnet_w18_small": {},  # its stage L3 gives a list of maps
}


@functools.cache
def backbone(model: str) -> nn.Module:
    """A network of random weights without zeros in eval mode. Leave it as it is."""
    torch.manual_seed(0)
    network = timm.create_model(model, num_classes=5, **FAMILIES[model]).eval()
    network.load_state_dict(perturbed(network), strict=False)
    return network


def images(model: str, count: int = 3) -> Tensor:
    size = FAMILIES[model].get("img_size", 64)
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def trunk_of(network: nn.Module, stage: str, size: int) -> Trunk:
    trunk = find_trunk(network, find_stage(network, stage), size)
    assert trunk is not None
    return trunk


@pytest.mark.parametrize("stage", ["L3", "L4"])
@pytest.mark.parametrize("model", FAMILIES)
def test_trunk_and_tail_give_the_logits_of_a_plain_pass(model: str, stage: str) -> None:
    """Bit for bit, twice from the same features (the tail does not write into them), in inference mode and under autocast."""
    network, inputs = backbone(model), images(model)
    trunk = trunk_of(network, stage, inputs.shape[-1])
    for autocast in (False, True):
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            plain = network(inputs)
            assert plain.std(0).min() > 0, "the logits differ from image to image"
            features = trunk_outputs(network, trunk, inputs)
            for _ in range(2):
                assert torch.equal(run_tail(network, trunk, features, inputs), plain)
            assert check_trunk(network, trunk, inputs, repeats=3)


@pytest.mark.parametrize("stage", ["L3", "L4"])
@pytest.mark.parametrize("model", FAMILIES)
def test_only_what_the_tail_reads_is_kept(model: str, stage: str) -> None:
    """Written down from the architectures: the tail reads the stage alone, except after a norm beside a residual path."""
    network, inputs = backbone(model), images(model)
    trunk = trunk_of(network, stage, inputs.shape[-1])
    beside = {"vit_tiny_patch16_224": {"blocks.2"}, "cait_xxs24_224": {"blocks_token_only.0"}}.get(model, set())
    assert trunk.kept == {trunk.stage} | (beside if stage == "L4" else set())
    assert not trunk.keeps_inputs
    with torch.inference_mode():
        outputs = {call.module: tree_leaves(call.output) for call in trunk_outputs(network, trunk, inputs)}
    assert trunk.kept == {name for name, values in outputs.items() if any(isinstance(value, Tensor) for value in values)}


def test_repeats_are_rows_of_single_tails() -> None:
    network, inputs = backbone("resnet18"), images("resnet18")
    trunk = trunk_of(network, "L3", 64)
    with torch.inference_mode():
        features = trunk_outputs(network, trunk, inputs)
        rows = run_tail(network, trunk, features, inputs, repeats=3)
        torch.testing.assert_close(rows, run_tail(network, trunk, features, inputs).repeat(3, 1))


def test_a_network_that_differs_after_the_stage_shares_the_trunk() -> None:
    """The features of one network serve the other, and the trunk is not computed for it."""
    first, inputs = backbone("tf_efficientnet_lite0"), images("tf_efficientnet_lite0")
    second = copy.deepcopy(first)
    trunk = trunk_of(first, "L3", 64)
    with torch.no_grad():
        for name, parameter in second.named_parameters():
            if name not in trunk.parameters:
                parameter.add_(0.1 * torch.randn_like(parameter))
        assert trunk_digest(second, trunk_of(second, "L3", 64)) == trunk_digest(first, trunk)
        calls: list[nn.Module] = []
        for name in ("blocks.0.0.conv_dw", "blocks.4.0.conv_pw", "blocks.5.0.conv_pw"):
            second.get_submodule(name).register_forward_hook(lambda module, inputs, output: calls.append(module))
        features = trunk_outputs(first, trunk, inputs)
        shared = run_tail(second, trunk, features, inputs)
        assert calls == [second.blocks[5][0].conv_pw]
        assert torch.equal(shared, second(inputs))
        assert not torch.equal(shared, first(inputs))


def change_weight(network: nn.Module) -> None:
    network.blocks[1].mlp.fc1.weight.data[0, 0] += 1e-6


def change_network_parameter(network: nn.Module) -> None:
    network.pos_embed.data[0, 0, 0] += 1e-6


def change_heads(network: nn.Module) -> None:
    network.blocks[0].attn.num_heads = 1  # neither a tensor nor in the module's repr


def change_glue(network: nn.Module) -> None:
    network.no_embed_class = True


@pytest.mark.parametrize("change", [change_weight, change_network_parameter, change_heads, change_glue])
def test_another_trunk_has_another_digest(change: Callable[[nn.Module], None]) -> None:
    network = backbone("vit_tiny_patch16_224")
    trunk = trunk_of(network, "L3", 64)
    other = copy.deepcopy(network)
    assert trunk_digest(other, trunk) == trunk_digest(network, trunk)
    change(other)
    assert trunk_digest(other, trunk) != trunk_digest(network, trunk)


def test_buffers_count_in_the_trunk_only() -> None:
    network = tinynet(5).eval()
    trunk = trunk_of(network, "early", 32)
    digest = trunk_digest(network, trunk)
    network.late[1].running_mean += 1
    assert trunk_digest(network, trunk) == digest
    network.early[1].running_mean += 1
    assert trunk_digest(network, trunk) != digest


def test_noise_is_drawn_as_in_a_plain_pass() -> None:
    """From the global generator, and from seeds per image, of which the repetitions have their own."""
    network, inputs = copy.deepcopy(backbone("resnet18")), images("resnet18")
    inject(network, GaussianChaosNoise(), ["L3"], test=True)
    trunk = trunk_of(network, "L3", 64)
    with torch.inference_mode():
        torch.manual_seed(3)
        plain = network(inputs)
        torch.manual_seed(3)
        features = trunk_outputs(network, trunk, inputs)
        assert torch.equal(run_tail(network, trunk, features, inputs), plain)
        with noise_off(network):
            assert not torch.equal(network(inputs), plain)
        with keyed_noise(network, torch.tensor([1, 2, 3])):
            first = network(inputs)
        with keyed_noise(network, torch.tensor([4, 5, 6])):
            second = network(inputs)
        with keyed_noise(network, torch.tensor([1, 2, 3, 4, 5, 6])):
            torch.testing.assert_close(run_tail(network, trunk, features, inputs, 2), torch.cat([first, second]))


def test_noise_inside_the_trunk_is_refused() -> None:
    network, inputs = copy.deepcopy(backbone("resnet18")), images("resnet18")
    inject(network, GaussianChaosNoise(), ["L2"], test=True)
    trunk = trunk_of(network, "L3", 64)
    with pytest.raises(ValueError, match="noise at layer2 acts before the end of layer3: take an earlier trunk"):
        trunk_outputs(network, trunk, inputs)
    assert check_trunk(network, trunk, inputs), "this compares without the noise"


def test_a_network_in_training_is_refused() -> None:
    network = tinynet(5)
    with pytest.raises(ValueError, match=r"in eval mode only, call network.eval\(\) first"):
        trunk_outputs(network, trunk_of(network, "early", 32), torch.zeros(2, 3, 32, 32))


def test_the_first_noisy_stage_is_the_first_to_run() -> None:
    network = tinynet(5)
    assert first_noisy(network, 32) is None
    inject(network, Additive(Gaussian(White())), ["late"], train=True, test=False)
    assert first_noisy(network, 32) is None, "it acts in training only"
    reverse = ReverseOrder(5)
    inject(reverse, Additive(Gaussian(White())), ["a", "b"], test=True, images=torch.randn(2, 3, 32, 32))
    assert first_noisy(reverse, 32) == "b"


class ReverseOrder(nn.Module):
    """Calls its modules in another order than that of their registration."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.head, self.a, self.b = nn.Linear(4, classes), nn.Conv2d(4, 4, 3), nn.Conv2d(3, 4, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.a(self.b(inputs)).mean((2, 3)))


class Awkward(nn.Module):
    """One activation before and after the stage; a skip around the stage; a tail that reads the images and writes in place."""

    def __init__(self) -> None:
        super().__init__()
        self.act = nn.ReLU(inplace=True)
        self.early, self.stage, self.late = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
        self.spare = nn.Linear(1, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        skip = self.early(inputs)
        stage = self.stage(self.act(skip * 2))
        late = self.late(self.act(stage.add_(1)))
        late += skip
        return late.mean((2, 3)) + inputs.mean((1, 2, 3))[:, None]


def test_what_backbones_do_not_do() -> None:
    torch.manual_seed(0)
    network, inputs = Awkward().eval(), torch.randn(2, 3, 8, 8)
    trunk = trunk_of(network, "stage", 8)
    assert trunk.kept == {"early", "stage"}
    assert trunk.keeps_inputs
    with torch.inference_mode():
        features = trunk_outputs(network, trunk, inputs)
        for _ in range(2):
            assert torch.equal(run_tail(network, trunk, features, inputs), network(inputs))
        assert check_trunk(network, trunk, inputs, repeats=3)
        assert not check_trunk(network, trunk._replace(kept=frozenset({"stage"})), inputs), "a stand-in would be used"
        assert not check_trunk(network, trunk._replace(keeps_inputs=False), inputs)
    assert find_trunk(network, "spare", 8) is None


def snapshot(network: nn.Module) -> list:
    """All that the functions might leave behind, module by module."""
    return [
        (name, module.training, set(vars(module)), list(module._forward_hooks), list(module._forward_pre_hooks))
        for name, module in network.named_modules()
    ] + [parameter.requires_grad for parameter in network.parameters()]


class Failing(TinyNet):
    def forward(self, inputs: Tensor) -> Tensor:
        logits = super().forward(inputs)
        if len(inputs) == 7:
            raise RuntimeError("seven")
        return logits


def test_the_network_is_left_as_it_was() -> None:
    network = Failing(OrderedDict(tinynet(5).named_children())).eval()
    inject(network, Additive(Gaussian(White())), ["early", "late"], test=True)
    network.late[1].train()  # modes that differ from module to module
    network.early[0].weight.requires_grad_(False)
    before = snapshot(network)
    states = {name: value.clone() for name, value in network.state_dict().items()}
    trunk = trunk_of(network, "early", 32)
    assert first_noisy(network, 32) == "early"
    assert snapshot(network) == before
    assert all(torch.equal(value, states[name]) for name, value in network.state_dict().items())
    inputs = torch.randn(7, 3, 32, 32)
    features = trunk_outputs(network, trunk, inputs)
    with pytest.raises(RuntimeError, match="seven"):
        run_tail(network, trunk, features, inputs)
    with pytest.raises(RuntimeError, match="seven"):
        check_trunk(network, trunk, inputs)
    with pytest.raises(RuntimeError):
        trunk_outputs(network, trunk, inputs[:, :2])
    assert snapshot(network) == before


@needs_lite
@pytest.mark.parametrize("stage", ["L3", "L4"])
def test_trained_weights(lite0: nn.Module, stage: str) -> None:
    trunk = trunk_of(lite0, stage, 224)
    inputs = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert check_trunk(lite0, trunk, inputs, repeats=2)
