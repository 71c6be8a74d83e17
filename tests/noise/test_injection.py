"""The axes law, kernel and injection: every combination works or is refused in one line; what each injection does."""

import itertools
import math

import pytest
import timm
import torch
from test_mechanism import build, preset
from timm.layers.drop import DropPath
from torch import Tensor, nn

from gch_bench.config.run import ModelConfig
from gch_bench.model.build import build as build_noisy
from gch_bench.model.trunk import first_noisy
from gch_bench.noise import Additive, Gaussian, White, inject, make_mechanism
from gch_bench.noise.draws import KeyedDraws, image_keys
from gch_bench.noise.dropout import KeyDropout
from gch_bench.noise.hooks import keyed_noise, stage_hooks
from gch_bench.noise.kernels import KERNELS
from gch_bench.noise.placement import NoiseDoesNothing, logit_change, random_images
from gch_bench.noise.stages import places_of
from gch_bench.noise.table import INJECTIONS, LAWS

STRONG = {"gamma": 1.0, "sigma": 0.5, "p": 0.5, "block_size": 2}


def strong(law: str, kernel: str, injection: str):
    return make_mechanism(
        law,
        kernel,
        {name: STRONG[name] for name in LAWS[law].options if name in STRONG and (law, name) != ("gaussian", "p")},
        injection,
    )


@pytest.mark.parametrize("injection", INJECTIONS)
@pytest.mark.parametrize("law", LAWS)
def test_every_combination_works_or_says_why_not(law: str, injection: str) -> None:
    features = torch.rand(64, 3, 6, 5) + 0.5
    for kernel in KERNELS if LAWS[law].takes_kernel else ("",):
        if injection not in LAWS[law].injections:
            with pytest.raises(
                ValueError, match=rf"^injection {injection} has no meaning for law {law}, which goes with"
            ) as error:
                strong(law, kernel, injection)
            assert "\n" not in str(error.value)
            continue
        mechanism = strong(law, kernel, injection)
        if injection == "attention":
            assert mechanism.place == "attention"
            continue
        torch.manual_seed(0)
        noisy = mechanism.train()(features)
        assert noisy.shape == features.shape
        assert not torch.equal(noisy, features)
        assert not mechanism.is_off
        assert mechanism.adds == (injection == "additive")
        assert mechanism.place == {"branch": "branch", "removal": "tokens"}.get(injection, "output")


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("law", [law for law, each in LAWS.items() if "additive" in each.injections])
def test_additive_injection_adds_the_gate_less_one(law: str, kernel: str) -> None:
    """F + r (xi - 1), with the gate that multiplicative injection draws from the same keys."""
    features, keys_B = torch.randn(5, 3, 4, 6), image_keys(torch.arange(5), 1)
    gate = strong(law, kernel, "multiplicative").draw(features, KeyedDraws(keys_B))
    rms = features.square().mean((1, 2, 3), keepdim=True).sqrt()
    added = strong(law, kernel, "additive").apply_noise(features, KeyedDraws(keys_B))
    torch.testing.assert_close(added, features + rms * (gate - 1), atol=1e-5, rtol=1e-5)


def test_rms_of_channels() -> None:
    features = torch.randn(4, 3, 8, 8) * torch.tensor([0.1, 1.0, 10.0]).view(1, 3, 1, 1)
    torch.manual_seed(0)
    noise = Additive(Gaussian(White(), 0.5, per_channel=True), channel_rms=True).apply_noise(features) - features
    torch.manual_seed(0)
    unit = 0.5 * White().sample(12, 8, 8).view(4, 3, 8, 8)
    torch.testing.assert_close(noise, unit * features.square().mean((2, 3), keepdim=True).sqrt(), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_gaussian_dropout_has_the_moments_of_dropout(p: float) -> None:
    """Mean 1 and variance p / (1-p), 5 standard errors of 10^6 values; every value has a draw of its own."""
    torch.manual_seed(0)
    gates = make_mechanism("gaussian", "white", {"p": p, "per_channel": True}, "multiplicative").apply_noise(
        torch.ones(2500, 8, 5, 10)
    )
    gates = gates.double()
    variance = p / (1 - p)
    assert abs(float(gates.mean()) - 1) < 5 * math.sqrt(variance / gates.numel())
    assert abs(float(gates.var()) - variance) < 5 * variance * math.sqrt(2 / gates.numel())
    assert preset("gaussian_dropout").options["per_channel"]
    assert not torch.equal(gates[:, 0], gates[:, 1])


def vit(blocks: int = 3, **options) -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model("vit_tiny_patch16_224", img_size=64, num_classes=5, depth=blocks, **options).eval()


def test_droppath_is_timms_in_distribution() -> None:
    """At one block, for many samples: a branch is dropped or scaled by 1 / (1-p) with all its tokens, class token included."""
    model, images = vit(1), random_images(64, 64)
    places = inject(model, make_mechanism("bernoulli_sample", "", {"p": 0.3}), ["blocks.0"], images=images)
    assert [place.module for place in places] == ["blocks.0.drop_path1", "blocks.0.drop_path2"]
    branch = torch.rand(4000, 17, 3) + 0.5
    torch.manual_seed(1)
    ours = model.blocks[0].drop_path1.train()(branch) / branch
    theirs = DropPath(0.3).train()(branch) / branch
    for ratio in (ours, theirs):
        torch.testing.assert_close(ratio, ratio[:, :1, :1].expand_as(ratio), atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(ratio.unique().sort().values[[0, -1]], torch.tensor([0, 1 / 0.7]), atol=1e-6, rtol=1e-6)
        assert abs(float((ratio[:, 0, 0] == 0).double().mean()) - 0.3) < 5 * math.sqrt(0.21 / 4000)


def test_droppath_reaches_every_family_and_adds_no_keys() -> None:
    """The branches inside the backbone's own last stage, for blocks that name them differently."""
    families = (("resnet18", "L4", 2), ("convnext_atto", "L4", 2), ("efficientnet_b0", "L3", 2), ("regnetx_002", "L4", 7))
    for name, stage, count in families:
        model = timm.create_model(name, num_classes=5).eval()
        keys = list(model.state_dict())
        places = inject(model, build("droppath"), [stage], images=random_images(64, 64))
        assert not any(module.training for module in model.modules()), "modules that are added are in the block's mode"
        assert len(places) == count, (name, places)
        assert list(model.state_dict()) == keys
        assert len(stage_hooks(model)) == count


def test_branches_of_a_stage_are_dropped_independently() -> None:
    model = timm.create_model("resnet18", num_classes=5, zero_init_last=False)
    inject(model, make_mechanism("bernoulli_sample", "", {"p": 0.5}), ["L4"], images=random_images(64, 64))
    seen: dict[str, Tensor] = {}
    for i in (0, 1):
        model.layer4[i].drop_path.register_forward_hook(
            lambda module, inputs, output, i=i: seen.update({f"{i}": (output == 0).flatten(1).all(1)})
        )
    with keyed_noise(model, image_keys(torch.arange(64), 3)):
        model.train()(torch.rand(64, 3, 32, 32))
    assert 0 < int((seen["0"] & seen["1"]).sum()) < int(seen["0"].sum()) < 64


def test_dropkey_is_a_masked_softmax() -> None:
    """Against the attention computed here, with the same mask: dropped keys get weight 0, the others' weights sum to one."""
    model = vit(2)
    attention = model.blocks[1].attn
    mechanism = KeyDropout(0.4)
    (place,) = inject(model, mechanism, ["L4"], images=random_images(64, 64))
    assert place.module == "blocks.1.attn"
    tokens, keys_B = torch.randn(6, 17, 192), image_keys(torch.arange(6), 1)
    hook = stage_hooks(model)[0]
    hook.keys_B = keys_B
    attention.train()
    noisy = attention(tokens)
    mask = mechanism.attention_mask(tokens, 3, hook._draws(tokens.device))
    assert 0.3 < float((mask < 0).double().mean()) < 0.5
    q, k, v = attention.qkv(tokens).reshape(6, 17, 3, 3, 64).permute(2, 0, 3, 1, 4)
    weights = (q @ k.mT / 8).masked_fill(mask < 0, -torch.inf).softmax(-1)
    expected = attention.proj((weights @ v).transpose(1, 2).reshape(6, 17, 192))
    torch.testing.assert_close(noisy, expected, atol=1e-5, rtol=1e-4)
    attention.eval()
    assert not torch.equal(attention(tokens), noisy), "off in eval mode"


def test_dropkey_is_refused_where_there_is_no_such_attention() -> None:
    with pytest.raises(ValueError, match=r"needs timm's Attention modules.*: stage L4 \(layer4\) of ResNet has none"):
        places_of(timm.create_model("resnet18"), build("dropkey"), "L4")


def test_the_trunk_is_not_shared_where_noise_is_inside_an_attention() -> None:
    model = vit(2)
    inject(model, build("dropkey"), ["L4"], test=True, images=random_images(64, 64))
    assert first_noisy(model, 64) is None


def test_patch_dropout_removes_tokens() -> None:
    """The class token stays first, the kept tokens keep their order, the number is the same in every sample."""
    model, images = vit(3), random_images(64, 64)
    inject(model, build("patch_dropout"), ["blocks.0"], test=True, images=images)
    seen = {}
    model.blocks[1].register_forward_pre_hook(lambda module, inputs: seen.update(after=inputs[0]))
    model.blocks[0].register_forward_hook(lambda module, inputs, output: seen.update(before=output), prepend=True)
    logits = model(images)
    before, after = seen["before"], seen["after"]
    assert logits.shape == (2, 5)
    assert after.shape == (2, 1 + 12, 192), "16 patches less a quarter"
    for i in range(2):
        kept = [int((before[i] == token).all(1).nonzero()) for token in after[i]]
        assert kept[0] == 0
        assert kept == sorted(set(kept))
    assert not torch.equal(after[0, :, 0], after[1, :, 0])


def test_the_gate_of_removal_is_what_a_pooling_sees() -> None:
    mechanism = build("patch_dropout")
    tokens, keys_B = torch.randn(3, 16, 8), image_keys(torch.arange(3), 2)
    grid = tokens.mT.unflatten(2, (4, 4))
    mask = mechanism.draw(grid, KeyedDraws(keys_B))
    remaining = mechanism.remaining(tokens, 0, mask.flatten(1))
    zeroed = mechanism.apply_noise(grid, KeyedDraws(keys_B))
    torch.testing.assert_close(remaining.mean(1), zeroed.mean((2, 3)))


def test_patch_dropout_is_refused_on_maps() -> None:
    with pytest.raises(ValueError, match=r"injection=removal removes tokens, and stage L4 \(layer4\) gives a map"):
        inject(timm.create_model("resnet18"), build("patch_dropout"), ["L4"], images=random_images(64, 64))


@pytest.mark.parametrize("name", ["droppath", "dropkey", "patch_dropout", "noisy_features", "gaussian_dropout"])
def test_new_presets_run_end_to_end_on_tokens(name: str) -> None:
    """Built from the configuration, they act in training, are off in evaluation, and depend on the image's key alone."""
    config = preset(name)
    noisy = build_noisy(ModelConfig("vit_tiny_patch16_224", kwargs={"depth": 2}), config, 5, 64)
    assert all(stage.logit_change > 1e-4 for stage in noisy.stages)
    network, images = noisy.network, torch.randn(8, 3, 64, 64)
    assert torch.equal(network.eval()(images), network(images))
    torch.nn.init.normal_(network.head.weight)
    keys_B = image_keys(torch.arange(8), 1)
    with torch.no_grad():
        with keyed_noise(network.train(), keys_B):
            together = network(images)
        with keyed_noise(network, keys_B[3:5]):
            part = network(images[3:5])
        clean = network.eval()(images)
    torch.testing.assert_close(part, together[3:5], atol=1e-4, rtol=1e-4)
    assert not torch.equal(together, clean)


def test_removal_at_two_stages_is_refused() -> None:
    model, images = vit(3), random_images(64, 64)
    with pytest.raises(ValueError, match=r"^injection=removal needs one stage: .* got blocks\.0, blocks\.1$"):
        inject(model, build("patch_dropout"), ["blocks.0", "blocks.1"], images=images)
    assert not stage_hooks(model)
    inject(model, build("patch_dropout"), ["blocks.0"], images=images)
    with pytest.raises(ValueError, match=r"needs one stage: .* got blocks\.1, blocks\.0$"):
        inject(model, build("patch_dropout"), ["blocks.1"], images=images)


@pytest.mark.parametrize("given", [True, False])
def test_removal_is_refused_where_the_network_needs_all_tokens(given: bool) -> None:
    """With images, and with those that `inject` chooses; also for a network that does not say which size it takes."""
    model = timm.create_model("mixer_s32_224", img_size=128, num_classes=5)
    if not given:
        model.stem.img_size = None
        model.pretrained_cfg = {}
    with pytest.raises(
        ValueError, match=r"^MlpMixer needs all its tokens: .* removes some after stage L2 \(blocks\.3\)"
    ) as error:
        inject(model, build("patch_dropout"), ["L2"], images=random_images(128, 128) if given else None)
    assert "\n" not in str(error.value)
    assert not stage_hooks(model)


def test_removal_is_refused_where_positions_are_rotated() -> None:
    model = timm.create_model("eva02_tiny_patch14_224", img_size=56, num_classes=5)
    with pytest.raises(ValueError, match=r"^Eva needs all its tokens"):
        inject(model, build("patch_dropout"), ["L2"], images=random_images(56, 56))


def test_removal_never_counts_the_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading a number from the mask would make the CPU wait for the GPU."""
    mechanism, tokens = build("patch_dropout"), torch.randn(3, 17, 8)
    mask = mechanism.draw(tokens[:, 1:].mT.unflatten(2, (4, 4)), KeyedDraws(image_keys(torch.arange(3), 2))).flatten(1)
    monkeypatch.setattr(Tensor, "__int__", lambda tensor: pytest.fail("a tensor was read"))
    assert mechanism.remaining(tokens, 1, mask).shape == (3, 13, 8)


def test_gates_on_branches_of_two_layouts_are_refused() -> None:
    """MaxViT's attentions give NHWC and its convolutions NCHW; noise of whole samples needs no layout."""
    model = timm.create_model("maxvit_nano_rw_256", img_size=64, num_classes=5)
    gates = make_mechanism("samplewise", "dirichlet_green", {}, "branch")
    with pytest.raises(ValueError, match=r"read as NCHW, .* stage L3 of MaxxVit have maps of 4x4 \(.*\) and 4x256") as error:
        inject(model, gates, ["L3"], images=random_images(64, 64))
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=r"maps of 4x256 \(stages\.2\.blocks\.0\.attn_block\.drop_path1\);"):
        inject(model, gates, ["stages.2.blocks.0.attn_block"], images=random_images(64, 64))
    assert not stage_hooks(model)
    inject(model, build("droppath"), ["L3"], images=random_images(64, 64))


def test_gates_on_branches_change_the_logits() -> None:
    model, images = timm.create_model("resnet18", num_classes=5), random_images(64, 64)
    assert logit_change(model, make_mechanism("samplewise", "dirichlet_green", {}, "branch"), ["L3"], images) > 1e-3


def test_a_refusal_names_all_branches() -> None:
    mechanism = make_mechanism("wick", "white", {"gamma": 1e-7}, "branch")
    with pytest.raises(NoiseDoesNothing, match=r"\(blocks\.0\.drop_path1, blocks\.0\.drop_path2\) does nothing"):
        inject(vit(1), mechanism, ["blocks.0"], images=random_images(64, 64))


def test_combinations_are_counted() -> None:
    """So that a new law or injection is looked at: the pairs that work."""
    pairs = [(law, injection) for law, injection in itertools.product(LAWS, INJECTIONS) if injection in LAWS[law].injections]
    assert len(pairs) == 20
