"""Mechanisms as layers: identity in eval mode, injection, dtypes, gradients, the presets and their bad input."""

import math

import pytest
import torch
from conftest import REPOSITORY, configuration
from timm.layers.drop import DropBlock2d

from gch_bench.config.run import NoiseConfig
from gch_bench.noise import Additive, DirichletGreen, GaussianChaosNoise, HardMask, Mechanism, White, make_mechanism
from gch_bench.noise.mechanism import LAWS, LayerNoise

PRESETS = sorted(path.stem for path in (REPOSITORY / "configs" / "noise").glob("*.yaml"))
NOISY = [name for name in PRESETS if name != "none"]


def preset(name: str) -> NoiseConfig:
    return configuration(f"noise={name}").noise


def build(name: str) -> Mechanism:
    config = preset(name)
    assert config.law is not None
    return make_mechanism(config.law, config.kernel, config.options)


def test_presets_are_the_ones_promised() -> None:
    promised = (
        "none gch gch_wick lognormal_iid dropout spatial_dropout dropblock dropblock_channel hard_mask additive additive_green"
    )
    assert set(PRESETS) == set(promised.split())
    assert {preset(name).law for name in NOISY} == set(LAWS)
    assert all(preset(name).name == name for name in PRESETS)


@pytest.mark.parametrize("name", NOISY)
def test_every_preset_is_a_layer_like_dropout(name: str) -> None:
    torch.manual_seed(0)
    noise, features = build(name), torch.rand(4, 6, 8, 8) + 0.5
    assert torch.equal(noise.eval()(features), features)
    assert not torch.equal(noise.apply_noise(features), features), "noise at test time does not ask for the mode"
    noise.train()
    first, second = noise(features), noise(features)
    assert first.shape == features.shape
    assert not torch.equal(first, second)
    assert noise(features[:0]).shape == (0, 6, 8, 8), "an empty batch"
    assert not list(noise.state_dict())
    assert "\n" not in str(noise)


@pytest.mark.parametrize("name", NOISY)
def test_mean_of_the_output_is_the_input(name: str) -> None:
    """Mean-one gates and zero-mean noise leave the expected feature: 5 standard errors over 6,400 draws of a 4x4 map.

    Sample-wise gates: the mean over sites, exactly. DropBlock: the mean over the batch, by its own rescaling."""
    torch.manual_seed(1)
    noise = build(name).train()
    pooled = noise(torch.full((6400, 1, 4, 4), 2.0)).mean((1, 2, 3)).double()
    assert abs(float(pooled.mean()) - 2) < max(5 * float(pooled.std()) / math.sqrt(6400), 1e-6)


@pytest.mark.parametrize(("law", "strength"), [*zip(LAWS, ("gamma", "gamma", "p", "sigma", "p", "p", "p"), strict=True)])
def test_strength_zero_is_declared(law: str, strength: str) -> None:
    """Strength 0 is the identity, as asked for; a mechanism made without options is not off."""
    features = torch.rand(4, 3, 4, 4)
    off = make_mechanism(law, "dirichlet_green", {strength: 0.0}).train()
    assert off.is_off
    torch.testing.assert_close(off(features), features)
    assert not make_mechanism(law, "dirichlet_green", {}).is_off


def test_presets_of_dropblock_differ_in_one_option() -> None:
    coupled, independent = (preset(name).options for name in ("dropblock", "dropblock_channel"))
    assert coupled | {"per_channel": True} == independent
    assert "per_channel" not in coupled
    assert str(build("dropblock")) == "DropBlock2d(p=0.1, block_size=3)"
    assert str(build("dropblock_channel")) == "DropBlock2d(p=0.1, block_size=3, per_channel)"


def test_dropout_and_dropblock_are_the_libraries_own() -> None:
    features = torch.rand(4, 6, 8, 8)
    layers = (torch.nn.Dropout(0.3), torch.nn.Dropout2d(0.3), DropBlock2d(0.3, block_size=3))
    for law, layer in zip(("bernoulli", "bernoulli_channel", "block"), layers, strict=True):
        noise = make_mechanism(law, "", {"p": 0.3, **({"block_size": 3} if law == "block" else {})}).train()
        assert isinstance(noise, LayerNoise)
        assert type(noise.layer) is type(layer)
        torch.manual_seed(3)
        ours = noise(features)
        torch.manual_seed(3)
        assert torch.equal(ours, layer.train()(features))


@pytest.mark.parametrize("law", [law for law, (_, options, _) in LAWS.items() if "per_channel" in options])
@pytest.mark.parametrize("per_channel", [False, True])
def test_shared_or_per_channel(law: str, per_channel: bool) -> None:
    torch.manual_seed(0)
    strength = {"p": 0.5, "block_size": 1} if law == "block" else {"p": 0.5} if law == "hard_mask" else {}
    noise = make_mechanism(law, "white", {"per_channel": per_channel, **strength})
    out = noise.train()(torch.ones(2, 5, 4, 4))
    assert torch.equal(out[:, 0], out[:, 1]) != per_channel
    assert not torch.equal(out[0], out[1])


@pytest.mark.parametrize("noise", [GaussianChaosNoise(), HardMask(DirichletGreen())], ids=str)
def test_gradient_is_the_gate(noise: Mechanism) -> None:
    features = torch.ones(2, 3, 4, 4, requires_grad=True)
    out = noise.train()(features)
    out.sum().backward()
    torch.testing.assert_close(features.grad, out.detach())


def test_additive_relative_is_in_units_of_the_rms() -> None:
    features = torch.randn(3, 4, 5, 5, dtype=torch.float64) * torch.tensor([0.1, 1.0, 30.0]).view(3, 1, 1, 1)
    leaf = features.clone().requires_grad_()
    torch.manual_seed(0)
    absolute = Additive(White(), sigma=0.2, relative=False).train()(features) - features
    torch.manual_seed(0)
    relative = Additive(White(), sigma=0.2).train()(leaf)
    rms = features.square().mean((1, 2, 3), keepdim=True).sqrt()
    torch.testing.assert_close(relative.detach() - features, absolute * rms, atol=1e-9, rtol=1e-6)
    relative.sum().backward()
    assert torch.equal(leaf.grad, torch.ones_like(leaf)), "the RMS is a constant to the gradient"


def test_field_is_fp32_inside_autocast_and_cast_once() -> None:
    noise = GaussianChaosNoise()
    features = torch.ones(2, 3, 7, 7, dtype=torch.bfloat16)
    torch.manual_seed(0)
    plain = noise.gate(2, 7, 7)
    torch.manual_seed(0)
    with torch.autocast("cpu", torch.bfloat16):
        out = noise.train()(features)
    assert plain.dtype == torch.float32
    assert out.dtype == torch.bfloat16
    assert torch.equal(out[:, 0], plain.bfloat16())
    additive, features = Additive(White(), sigma=0.3), torch.randn(2, 3, 7, 7).bfloat16()
    torch.manual_seed(0)
    field = additive.gate(2, 7, 7)[:, None] * features.float().square().mean((1, 2, 3), keepdim=True).sqrt()
    torch.manual_seed(0)
    assert torch.equal(additive.train()(features), features + field.bfloat16())


def test_gate_of_the_public_layer() -> None:
    noise = GaussianChaosNoise(gamma=0.5, beta=2.0, boundary="inside", normalization="wick")
    generator = torch.Generator().manual_seed(0)
    gate = noise.gate(3, 5, 6, generator)
    assert gate.shape == (3, 5, 6)
    assert noise.kernel == DirichletGreen(beta=2.0, boundary="inside")
    assert torch.equal(gate, noise.gate(3, 5, 6, generator=torch.Generator().manual_seed(0)))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GaussianChaosNoise(gamma=-1), r"gamma must be a finite number >= 0, got -1"),
        (lambda: GaussianChaosNoise(gamma=math.inf), r"gamma must be a finite number >= 0, got inf"),
        (lambda: GaussianChaosNoise(beta=-2), r"beta must be a finite number > 0, got -2"),
        (lambda: GaussianChaosNoise(boundary="both"), r"boundary must be one of outside, inside, got 'both'"),
        (lambda: GaussianChaosNoise(normalization="l2"), r"normalization must be one of samplewise, wick, got 'l2'"),
        (lambda: HardMask(White(), p=1), r"p must be a number in \[0, 1\), got 1"),
        (lambda: Additive(White(), sigma=-0.1), r"sigma must be a finite number >= 0, got -0.1"),
        (lambda: make_mechanism("bernoulli", "", {"p": 1.0}), r"p must be a number in \[0, 1\), got 1.0"),
        (lambda: make_mechanism("block", "", {"p": 0.1, "block_size": 0}), r"block_size must be a whole number >= 1, got 0"),
        (lambda: make_mechanism("bernoulli", "", {"gamma": 1.0}), r"gamma has no meaning for law bernoulli, which takes p"),
        (
            lambda: make_mechanism("wick", "white", {"energy": 1.0}),
            "energy has no meaning for law wick with kernel white, which takes beta",
        ),
        (lambda: make_mechanism("gauss", "white", {}), r"law must be one of samplewise, .*, got 'gauss'"),
        (lambda: DirichletGreen(energy=1.0, match_variance=True), r"energy has no effect with match_variance=true"),
        (lambda: make_mechanism("wick", "green", {}), r"kernel must be one of dirichlet_green, .*, got 'green'"),
    ],
)
def test_bad_input(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
