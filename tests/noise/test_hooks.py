"""Hooks on modules that a pass calls several times, and hooks inside attentions that have a mask of their own."""

import copy

import pytest
import timm
import torch
from torch import Tensor, nn

from gch_bench.apps.compatibility import bench
from gch_bench.apps.compatibility.bench import open_stage
from gch_bench.noise import inject, make_mechanism
from gch_bench.noise.draws import image_keys
from gch_bench.noise.dropout import KeyDropout
from gch_bench.noise.hooks import keyed_noise, stage_hooks
from gch_bench.noise.placement import random_images
from gch_bench.noise.stages import places_of


def mixer() -> nn.Module:
    """Its blocks call one drop_path for both of their branches."""
    torch.manual_seed(0)
    return timm.create_model("mixer_s32_224", img_size=64, num_classes=5)


def droppath(p: float = 0.5):
    return make_mechanism("bernoulli_sample", "", {"p": p})


def dropped(module: nn.Module) -> list[Tensor]:
    """A list that gets, in every call of the module from now on, which samples it sets to zero."""
    calls: list[Tensor] = []
    module.register_forward_hook(lambda module, inputs, output: calls.append((output == 0).flatten(1).all(1)))
    return calls


def test_both_calls_of_a_module_have_draws_of_their_own() -> None:
    model = mixer()
    inject(model, droppath(), ["blocks.0"], images=random_images(64, 64))
    assert [hook.calls for hook in stage_hooks(model)] == [2]
    calls = dropped(model.blocks[0].drop_path)
    with torch.no_grad(), keyed_noise(model.train(), image_keys(torch.arange(64), 3)):
        model(torch.randn(64, 3, 64, 64))
        model(torch.randn(64, 3, 64, 64))
    first, second, again_first, again_second = calls
    assert 0 < int((first & second).sum()) < int(first.sum()) < 64
    assert torch.equal(first, again_first), "every pass within the context draws the same"
    assert torch.equal(second, again_second)


def test_checkpointing_repeats_the_draws() -> None:
    """The gradients are those without checkpointing, which runs every block a second time in the backward pass."""
    plain = mixer()
    inject(plain, droppath(), ["blocks.0", "blocks.1"], images=random_images(64, 64))
    nn.init.normal_(plain.head.weight)
    saving = copy.deepcopy(plain)
    saving.set_grad_checkpointing()
    images, calls = torch.randn(8, 3, 64, 64), dropped(saving.blocks[1].drop_path)
    for model in (plain.train(), saving.train()):
        with keyed_noise(model, image_keys(torch.arange(8), 3)):
            model(images).square().sum().backward()
    assert len(calls) == 3, "torch ends the second run where the last branch has drawn its noise, before this test's hook"
    assert torch.equal(calls[0], calls[2])
    assert not torch.equal(calls[0], calls[1])
    for one, other in zip(plain.parameters(), saving.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, atol=1e-4, rtol=1e-4)


def test_calls_of_mode_compatibility_have_draws_of_their_own() -> None:
    """It attaches its hooks itself; a second pass with the same keys draws the same."""
    opened = open_stage(mixer(), "blocks.1", torch.randn(32, 3, 64, 64))
    places = places_of(opened.network, droppath(), "blocks.1")
    with torch.no_grad(), bench._attached(opened.network, droppath(), places):
        calls = dropped(opened.network.blocks[1].drop_path)
        for _ in range(2):
            bench._run(opened, at_output=False)
    assert not torch.equal(calls[0], calls[1])
    assert torch.equal(calls[0], calls[2])
    assert torch.equal(calls[1], calls[3])


class Masked(nn.Module):
    """An attention that is given a mask by position or by name, and its hook."""

    def __init__(self, p: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.model = timm.create_model("vit_tiny_patch16_224", img_size=64, depth=2, num_classes=5)
        if p:
            inject(self.model, KeyDropout(p), ["blocks.1"], images=random_images(64, 64))
        self.attention = self.model.blocks[1].attn.train()

    def run(self, tokens: Tensor, *inputs: Tensor, **named: Tensor) -> Tensor:
        with torch.no_grad(), keyed_noise(self.model, image_keys(torch.arange(len(tokens)), 1)):
            return self.attention(tokens, *inputs, **named)

    def dropped(self, tokens: Tensor) -> Tensor:
        (hook,) = stage_hooks(self.model)
        with keyed_noise(self.model, image_keys(torch.arange(len(tokens)), 1)):
            return hook.mechanism.attention_mask(tokens, 3, hook._draws(tokens.device)) < 0


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("by_name", [True, False])
def test_dropkey_honours_a_mask_of_booleans_or_numbers(by_name: bool, fused: bool) -> None:
    """Both masks exclude the last five keys; the result is the attention's own with all keys excluded."""
    noisy, tokens = Masked(0.4), torch.randn(6, 17, 192)
    noisy.attention.fused_attn = fused
    keep = (torch.arange(17) < 12).expand(6, 1, 17, 17)
    both = torch.zeros(6, 3, 17, 17).masked_fill(~keep | noisy.dropped(tokens), -torch.inf)
    assert not bool((both == -torch.inf).all(-1).any()), "every query has a key left"
    expected = Masked(0).run(tokens, both)
    numbers = torch.zeros(keep.shape).masked_fill(~keep, -torch.inf)
    masks = (keep, numbers, numbers.clamp_min(torch.finfo(torch.float32).min)) if fused else (numbers,)
    for mask in masks:
        found = noisy.run(tokens, attn_mask=mask) if by_name else noisy.run(tokens, mask)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("amp", [True, False])
@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float32])
def test_a_query_without_keys_sees_all_alike(kind: torch.dtype, amp: bool, fused: bool) -> None:
    """With p near one almost all queries lose all keys: their weights are 1 / N, and nothing is infinite, in any precision."""
    noisy, tokens = Masked(0.999999), torch.randn(2, 17, 192)
    noisy.attention.fused_attn = fused
    if not amp:
        noisy.attention.to(kind)
        tokens = tokens.to(kind)
    with torch.autocast("cpu", kind, enabled=amp and kind != torch.float32):
        assert bool(torch.isfinite(noisy.run(tokens)).all())
        assert bool(torch.isfinite(noisy.run(tokens, torch.zeros(17, 17, dtype=tokens.dtype))).all())
        found = noisy.run(tokens).float()
        values = noisy.attention.qkv(tokens)[..., 384:].float().mean(1, keepdim=True)
        expected = noisy.attention.proj(values.to(noisy.attention.proj.weight.dtype)).float()
    torch.testing.assert_close(found, expected.expand_as(found), atol=2e-2, rtol=2e-2)
