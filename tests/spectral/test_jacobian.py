"""Measured block Jacobians against autograd's dense Jacobian and finite differences."""

from collections.abc import Callable

import pytest
import timm
import torch
from torch import Tensor, nn

from gch_bench.geometry.chains import chain_blocks, find_chains
from gch_bench.spectral.jacobian import CHANNELS_FIRST, CHANNELS_LAST, TOKEN, Layout, block_jacobian, network_jacobians


def lively(network: nn.Module) -> nn.Module:
    """Double precision, eval mode, norms that are not trivial (some backbones start with dead branches)."""
    generator = torch.Generator().manual_seed(0)
    for value in network.state_dict().values():
        if value.ndim == 1 and value.is_floating_point():
            value.uniform_(0.5, 1.5, generator=generator)
    return network.double().eval()


def received(network: nn.Module, name: str, image: Tensor) -> Tensor:
    kept: list[Tensor] = []
    handle = network.get_submodule(name).register_forward_pre_hook(lambda module, inputs: kept.append(inputs[0].clone()))
    with torch.no_grad():
        network(image)
    handle.remove()
    return kept[0]


def dense(block: Callable[[Tensor], Tensor], inputs: Tensor) -> Tensor:
    """(outputs..., inputs...) without the batch axes, by reverse mode."""
    jacobian = torch.autograd.functional.jacobian(block, inputs)
    return jacobian.squeeze(0).squeeze(inputs.ndim - 1)


CNNS = {
    "resnet18": {"channels": [4, 6, 8, 8]},
    "resnet26": {"channels": [2, 2, 4, 4]},
    "convnext_atto": {"depths": (1, 1, 1, 1), "dims": (4, 4, 6, 6)},
}


@pytest.mark.parametrize("name", CNNS)
def test_convolutional_blocks_equal_dense_jacobians_summed_over_sites(name: str) -> None:
    network = lively(timm.create_model(name, num_classes=3, **CNNS[name]))
    (chain,) = find_chains(network.state_dict())
    blocks = chain_blocks(network.state_dict(), chain)
    image = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    found = list(network_jacobians(network, blocks, image, chunk_bytes=2**16))
    assert [each.name for each in found] == blocks
    for name, matrix, _ in found[2:]:  # later maps are small enough for a dense Jacobian
        full = dense(network.get_submodule(name), received(network, name, image))  # (C, H, W, c, h, w)
        torch.testing.assert_close(matrix, full.sum((4, 5)).mean((1, 2)), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("token", [None, 0, 3])
def test_transformer_blocks_equal_dense_jacobians_at_a_token(token: int | None) -> None:
    options = {"depth": 2, "embed_dim": 8, "num_heads": 2, "num_classes": 3, "img_size": 48}
    network = lively(timm.create_model("vit_tiny_patch16_224", **options))
    image = torch.randn(1, 3, 48, 48, dtype=torch.float64)
    at = 5 if token is None else token  # one class token and nine patches: the middle patch is token 5
    for name, matrix, _ in network_jacobians(network, ["blocks.0", "blocks.1"], image, token):
        full = dense(network.get_submodule(name), received(network, name, image))  # (N, C, n, c)
        torch.testing.assert_close(matrix, full[at, :, at], rtol=1e-9, atol=1e-12)


def test_static_chain_and_jacobian_agree_on_a_linear_network() -> None:
    """One-by-one convolutions have no borders and no nonlinearity: both chains are the weights themselves."""
    network = nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), nn.Conv2d(4, 2, 1)).double()
    found = list(network_jacobians(network, ["0", "1"], torch.randn(1, 3, 5, 5, dtype=torch.float64)))
    for (_, matrix, _), layer in zip(found, network, strict=True):
        torch.testing.assert_close(matrix, layer.weight.detach().flatten(1))


def test_channels_last_and_vectors() -> None:
    layer = nn.Sequential(nn.Linear(3, 4), nn.Tanh()).double()
    grid, row = torch.randn(1, 2, 5, 3, dtype=torch.float64), torch.randn(1, 3, dtype=torch.float64)
    expected = dense(layer, grid).sum((3, 4)).mean((0, 1))
    torch.testing.assert_close(block_jacobian(layer, grid, Layout(CHANNELS_LAST)), expected)
    torch.testing.assert_close(block_jacobian(layer, row, Layout(CHANNELS_LAST)), dense(layer, row))


@pytest.mark.parametrize("chunk", [1, 1000, 2**30])
def test_chunks_change_nothing(chunk: int) -> None:
    block = nn.Conv2d(5, 4, 3, padding=1).double()
    inputs = torch.randn(1, 5, 6, 6, dtype=torch.float64)
    whole = block_jacobian(block, inputs, Layout(CHANNELS_FIRST))
    assert torch.equal(block_jacobian(block, inputs, Layout(CHANNELS_FIRST), chunk), whole)


def test_finite_differences() -> None:
    block = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.GELU()).double()
    inputs, step = torch.randn(1, 2, 4, 4, dtype=torch.float64), 1e-6
    found = block_jacobian(block, inputs, Layout(CHANNELS_FIRST))
    for channel in range(2):
        moved = torch.zeros_like(inputs)
        moved[:, channel] = step
        with torch.no_grad():
            column = (block(inputs + moved) - block(inputs - moved)).mean((0, 2, 3)) / (2 * step)
        torch.testing.assert_close(found[:, channel], column, rtol=1e-6, atol=1e-8)


def test_the_network_keeps_its_mode_and_weights() -> None:
    network = timm.create_model("resnet18", channels=[4, 4, 4, 4], num_classes=2).train()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    list(network_jacobians(network, ["layer4.1"], torch.randn(1, 3, 64, 64)))
    assert network.training
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert not any(module._forward_pre_hooks for module in network.modules())


class Unused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = nn.Conv2d(3, 2, 1), nn.Conv2d(3, 2, 1)

    def forward(self, image: Tensor) -> Tensor:
        return self.used(image)


def test_what_cannot_be_measured_is_refused_in_one_line() -> None:
    image = torch.randn(1, 3, 4, 4)
    with pytest.raises(ValueError, match=r"block unused is never called by Unused's forward"):
        list(network_jacobians(Unused(), ["used", "unused"], image))
    with pytest.raises(ValueError, match="batch of 1, got 2"):
        block_jacobian(nn.Conv2d(3, 2, 1), torch.randn(2, 3, 4, 4), Layout(CHANNELS_FIRST))
    with pytest.raises(ValueError, match="must keep the layout"):
        block_jacobian(nn.Flatten(), image, Layout(CHANNELS_FIRST))
    with pytest.raises(ValueError, match="must keep the layout"):
        block_jacobian(lambda tokens: tokens[:, :2], torch.randn(1, 4, 3), Layout(TOKEN))
    vit = timm.create_model("vit_tiny_patch16_224", depth=1, embed_dim=8, num_heads=2, num_classes=2, img_size=32)
    with pytest.raises(ValueError, match=r"token must be in 0..4, got 9"):
        list(network_jacobians(vit, ["blocks.0"], torch.randn(1, 3, 32, 32), token=9))
