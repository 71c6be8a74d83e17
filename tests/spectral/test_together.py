"""Blocks differentiated together against autograd's dense Jacobian, and the cases in which they compose or must not."""

from collections.abc import Callable
from functools import partial
from itertools import pairwise

import pytest
import timm
import torch
from timm.models.mlp_mixer import MlpMixer
from torch import Tensor, nn

from gch_bench.spectral.composition import chain_composition, composition_defect, product_with
from gch_bench.spectral.jacobian import CHANNELS_FIRST, CHANNELS_LAST, TOKEN, _calls, chain_jacobian, network_jacobians


def lively(network: nn.Module) -> nn.Module:
    """Double precision, eval mode, norms and linear layers that are not trivial (some start with dead branches)."""
    generator = torch.Generator().manual_seed(0)
    for value in network.state_dict().values():
        if value.ndim == 1 and value.is_floating_point():
            value.uniform_(0.5, 1.5, generator=generator)
        elif value.ndim == 2:
            value.normal_(0, value.shape[1] ** -0.5, generator=generator)
    return network.double().eval()


VIT = {"depth": 3, "embed_dim": 8, "num_heads": 2, "img_size": 48}
SWIN = {"img_size": 32, "patch_size": 4, "window_size": 4, "embed_dim": 4, "depths": (1, 1), "num_heads": (1, 2)}
MAXVIT = {"img_size": 64, "embed_dim": (32, 32), "stem_width": 8, "depths": (1, 1)}
NETWORKS: dict[str, tuple[str, dict, int, list[str], str]] = {
    "resnet": ("resnet18", {"channels": [2, 4, 4, 4]}, 64, ["layer2.1", "layer3.0", "layer4.0"], CHANNELS_FIRST),
    "convnext": (
        "convnext_atto",
        {"depths": (1, 1, 1, 1), "dims": (4, 4, 6, 6)},
        64,
        ["stages.1.blocks.0", "stages.2.downsample", "stages.2.blocks.0"],
        CHANNELS_FIRST,
    ),
    "efficientnet": ("test_efficientnet", {}, 48, ["blocks.1.0", "blocks.2.0", "blocks.3.0"], CHANNELS_FIRST),
    "vit": ("vit_tiny_patch16_224", VIT, 48, ["blocks.0", "blocks.1", "blocks.2"], TOKEN),
    "mixer": ("mixer", {"img_size": 48, "num_blocks": 3, "embed_dim": 8}, 48, ["blocks.0", "blocks.1"], TOKEN),
    "swin": (
        "swin_tiny_patch4_window7_224",
        SWIN,
        32,
        ["layers.0.blocks.0", "layers.1.downsample", "layers.1.blocks.0"],
        CHANNELS_LAST,
    ),
    "maxvit": ("maxvit_rmlp_pico_rw_256", MAXVIT, 64, ["stages.0.blocks.0", "stages.1.blocks.0"], CHANNELS_FIRST),
}


def ends(network: nn.Module, first: str, last: str, image: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """What block ``first`` receives, and the network's own function from there to the output of block ``last``."""
    kept: list[Tensor] = []
    handle = network.get_submodule(first).register_forward_pre_hook(lambda module, inputs: kept.append(inputs[0].clone()))
    with torch.no_grad():
        network(image)
    handle.remove()

    def function(values: Tensor) -> Tensor:
        found: list[Tensor] = []
        before = network.get_submodule(first).register_forward_pre_hook(lambda module, inputs: (values.clone(),))
        behind = network.get_submodule(last).register_forward_hook(lambda module, inputs, out: found.append(out.clone()))
        network(image)
        before.remove()
        behind.remove()
        return found[0]

    return kept[0], function


def reduced(function: Callable[[Tensor], Tensor], inputs: Tensor, layout: str, token: int) -> Tensor:
    """(C_out, C_in) from reverse mode, one output channel after the other."""
    start = inputs.clone().requires_grad_()
    output = function(start)
    axis = 1 if layout == CHANNELS_FIRST else output.ndim - 1
    channels = output[0, token] if layout == TOKEN else output.movedim(axis, 0).flatten(1).mean(1)
    rows = []
    for channel in channels:
        (slope,) = torch.autograd.grad(channel, start, retain_graph=True)
        rows.append(slope[0, token] if layout == TOKEN else slope.movedim(axis, 0).flatten(1).sum(1))
    return torch.stack(rows)


@pytest.mark.parametrize("family", NETWORKS)
def test_neighbours_and_chains_equal_reverse_mode_through_the_whole_network(family: str) -> None:
    name, options, size, blocks, layout = NETWORKS[family]
    torch.manual_seed(1)
    build = MlpMixer if family == "mixer" else partial(timm.create_model, name)
    network = lively(build(num_classes=3, **options))
    image = torch.randn(1, 3, size, size, dtype=torch.float64)
    token = 5 if family == "vit" else 4  # the middle one of 9 patches, behind the class token if there is one
    found = list(network_jacobians(network, blocks, image, chunk_bytes=2**20))
    assert [call.layout.kind for call in _calls(network, blocks, image, None)] == [layout] * len(blocks)
    assert found[0].together is None
    for before, here in pairwise(found):
        inputs, function = ends(network, before.name, here.name, image)
        torch.testing.assert_close(here.together, reduced(function, inputs, layout, token), rtol=1e-8, atol=1e-11)
        assert here.together is not None
        assert composition_defect(before.matrix, here.matrix, here.together) > 1e-6
    inputs, function = ends(network, blocks[0], blocks[-1], image)
    whole = chain_jacobian(network, blocks, image)
    torch.testing.assert_close(whole, reduced(function, inputs, layout, token), rtol=1e-8, atol=1e-11)


def test_parts_of_maxvit_differ_in_their_layout() -> None:
    network = timm.create_model("maxvit_rmlp_pico_rw_256", num_classes=2, **MAXVIT).eval()
    block = "stages.0.blocks.0"
    calls = _calls(network, [f"{block}.conv", f"{block}.attn_block"], torch.randn(1, 3, 64, 64), None)
    assert [call.layout.kind for call in calls] == [CHANNELS_FIRST, CHANNELS_LAST]
    assert not calls[1].follows  # a permutation lies between them


class Between(nn.Module):
    """Two blocks with something in between that is no block."""

    def __init__(self, between: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.second, self.between = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1), between

    def forward(self, image: Tensor) -> Tensor:
        return self.second(self.between(self.first(image)))


IMAGE = torch.randn(1, 3, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize(
    ("between", "gain"),
    [
        (lambda values: values, 1.0),
        (lambda values: 3 * values, 3.0),
        (lambda values: values.mul_(3), 3.0),  # in place: the very same tensor reaches the second block
        (nn.AvgPool2d(2), 1.0),
        (lambda values: values.flip(2), 1.0),
    ],
)
def test_pointwise_linear_blocks_compose_and_what_lies_between_counts(between: Callable[[Tensor], Tensor], gain: float) -> None:
    network = Between(between).double()
    first, second = network_jacobians(network, ["first", "second"], IMAGE)
    assert second.together is not None
    torch.testing.assert_close(second.together, gain * second.matrix @ first.matrix)
    torch.testing.assert_close(chain_jacobian(network, ["first", "second"], IMAGE), second.together)
    assert composition_defect(first.matrix, second.matrix, second.together) == pytest.approx(1 - 1 / gain)


def test_token_mlps_compose_and_attention_does_not() -> None:
    mlps = nn.Sequential(*[nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 4), nn.GELU()) for _ in range(3)]).double()
    tokens = torch.randn(1, 5, 4, dtype=torch.float64)
    found = list(network_jacobians(mlps, ["0", "1", "2"], tokens))
    for before, here in pairwise(found):
        assert here.together is not None
        assert composition_defect(before.matrix, here.matrix, here.together) < 1e-12
    product = None
    for each in found:
        product = product_with(product, each.matrix)
    assert product is not None
    compared = chain_composition(product, chain_jacobian(mlps, ["0", "1", "2"], tokens))
    assert compared.composition_defect < 1e-12
    assert abs(compared.log_top_difference) < 1e-12
    network = lively(timm.create_model("vit_tiny_patch16_224", num_classes=2, **VIT))
    first, second = network_jacobians(network, ["blocks.0", "blocks.1"], torch.randn(1, 3, 48, 48).double())
    assert second.together is not None
    assert composition_defect(first.matrix, second.matrix, second.together) > 1e-3


class WithArguments(nn.Module):
    """Blocks that take more than the map, as vision transformers with rotary positions do."""

    class Block(nn.Module):
        def forward(self, values: Tensor, gain: Tensor, *, power: int) -> Tensor:
            return values * gain**power

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = self.Block(), self.Block()

    def forward(self, image: Tensor) -> Tensor:
        return self.second(self.first(image, torch.tensor(2.0), power=2), image.sum(), power=1)


def test_other_arguments_of_a_block_are_those_of_the_pass() -> None:
    image = torch.rand(1, 3, 2, 2, dtype=torch.float64)
    first, second = network_jacobians(WithArguments(), ["first", "second"], image)
    eye = torch.eye(3, dtype=torch.float64)
    torch.testing.assert_close(first.matrix, 4 * eye)
    torch.testing.assert_close(second.matrix, image.sum() * eye)
    torch.testing.assert_close(second.together, 4 * image.sum() * eye)


def test_a_block_that_works_in_place_is_measured_at_its_input_in_every_chunk() -> None:
    network = nn.Sequential(nn.Sequential(nn.Hardswish(inplace=True), nn.Conv2d(3, 3, 1)), nn.Conv2d(3, 3, 1)).double()
    whole, single = (list(network_jacobians(network, ["0", "1"], IMAGE, chunk_bytes=size)) for size in (2**30, 1))
    for one, other in zip(whole, single, strict=True):
        torch.testing.assert_close(one.matrix, other.matrix, rtol=1e-12, atol=1e-14)
    inputs, function = ends(network, "0", "1", IMAGE)
    torch.testing.assert_close(single[1].together, reduced(function, inputs, CHANNELS_FIRST, 0))


class Odd(nn.Module):
    """Calls `twice` two times, and `late` before `early`; `pair` gives two tensors and `split` makes a batch of windows."""

    def __init__(self) -> None:
        super().__init__()
        self.early, self.late, self.twice, self.window = (nn.Conv2d(3, 3, 1) for _ in range(4))
        self.pair = nn.Module()
        self.pair.forward = lambda values: (values, values)
        self.bare = nn.Module()
        self.bare.forward = lambda *, values: values

    def forward(self, image: Tensor) -> Tensor:
        image = self.twice(self.twice(self.early(self.late(image))))
        self.window(torch.cat([image, image]))
        self.bare(values=image)
        return self.pair(image)[0]


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        (["early", "nothing"], "block nothing is no module of Odd"),
        (["twice"], "block twice must be called once in a pass of Odd, got 2 calls"),
        (["early", "late"], "blocks must be in the order of Odd's forward: late is called before early ends"),
        (["", "early"], "blocks must be in the order of Odd's forward: early is called before  ends"),
        (["pair"], "block pair must give a tensor, got tuple"),
        (["window"], "block window must receive a batch of 1, got 2"),
        (["bare"], "block bare must receive a map, tokens or a vector, got NoneType"),
    ],
)
def test_blocks_that_make_no_chain_are_refused_by_name(blocks: list[str], message: str) -> None:
    network = Odd().train()
    for call in (lambda: list(network_jacobians(network, blocks, torch.randn(1, 3, 4, 4))),
                 lambda: chain_jacobian(network, blocks, torch.randn(1, 3, 4, 4))):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            call()
    assert network.training
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in network.modules())


def test_a_batch_and_an_empty_chain_are_refused() -> None:
    with pytest.raises(ValueError, match="image must be a batch of 1, got 2"):
        list(network_jacobians(Odd(), ["early"], torch.randn(2, 3, 4, 4)))
    with pytest.raises(ValueError, match="blocks must name at least one block"):
        chain_jacobian(Odd(), [], IMAGE)
    assert list(network_jacobians(Odd(), [], torch.randn(1, 3, 4, 4))) == []
