"""Mechanisms as layers: identity in eval mode, injection, dtypes, gradients, the presets and their bad input."""

import math

import pytest
import torch
from conftest import REPOSITORY, configuration
from timm.layers.drop import DropBlock2d

from gch_bench.config.run import NoiseConfig
from gch_bench.noise import Additive, DirichletGreen, Gaussian, GaussianChaosNoise, HardMask, Mechanism, White
from gch_bench.noise.draws import KeyedDraws, image_keys
from gch_bench.noise.dropout import DropBlock
from gch_bench.noise.kernels import KERNELS
from gch_bench.noise.mechanism import PLACES
from gch_bench.noise.table import LAWS, make_mechanism, option_defaults

PRESETS = sorted(path.stem for path in (REPOSITORY / "configs" / "noise").glob("*.yaml"))
NOISY = [name for name in PRESETS if name not in ("none", "dropkey")]  # those with a gate; dropkey acts in an attention
ON_OUTPUTS = [name for name in NOISY if name not in ("droppath", "patch_dropout")]


def preset(name: str) -> NoiseConfig:
    return configuration(f"noise={name}").noise


def build(name: str) -> Mechanism:
    config = preset(name)
    assert config.law is not None
    return make_mechanism(config.law, config.kernel, config.options, config.injection)


def test_presets_are_the_ones_promised() -> None:
    promised = (
        "none gch gch_inside massive_gch gch_wick lognormal_iid dropout spatial_dropout dropblock dropblock_channel hard_mask"
        " additive additive_green droppath dropkey patch_dropout gaussian_dropout noisy_features"
    )
    assert set(PRESETS) == set(promised.split())
    assert {preset(name).law for name in NOISY} == set(LAWS)
    assert {build(name).place for name in (*NOISY, "dropkey")} == set(PLACES)
    assert all(preset(name).name == name for name in PRESETS)


@pytest.mark.parametrize("name", NOISY)
def test_every_preset_is_a_layer_like_dropout(name: str) -> None:
    torch.manual_seed(0)
    noise, features = build(name), torch.rand(64, 6, 8, 8) + 0.5
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

    Sample-wise gates: the mean over sites, exactly."""
    torch.manual_seed(1)
    noise = build(name).train()
    pooled = noise(torch.full((6400, 1, 4, 4), 2.0)).mean((1, 2, 3)).double()
    assert abs(float(pooled.mean()) - 2) < max(5 * float(pooled.std()) / math.sqrt(6400), 1e-6)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("law", LAWS)
def test_option_defaults_make_the_mechanism_that_no_options_make(law: str, kernel: str) -> None:
    defaults = option_defaults(law, kernel)
    given = {name: value for name, value in defaults.items() if value is not None}
    injection = given.pop("injection")
    assert injection == LAWS[law].injections[0]
    if not LAWS[law].takes_kernel:
        kernel = ""
    assert repr(make_mechanism(law, kernel, given, injection)) == repr(make_mechanism(law, kernel, {}))
    assert {*LAWS[law].options} <= set(defaults)


def test_unknown_laws_and_kernels_have_no_defaults() -> None:
    assert option_defaults(None, "white") == option_defaults("wick", "unknown") == {}


STRENGTHS = zip(LAWS, ("gamma", "gamma", "sigma", "p", "p", "p", "p", "p"), strict=True)


@pytest.mark.parametrize(("law", "strength"), [*STRENGTHS])
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
    assert str(build("dropblock")) == "DropBlock(p=0.1, block_size=3)"
    assert str(build("dropblock_channel")) == "DropBlock(p=0.1, block_size=3, per_channel)"


LIBRARY = {"bernoulli": torch.nn.Dropout(0.3), "bernoulli_channel": torch.nn.Dropout2d(0.3)}


@pytest.mark.parametrize("law", LIBRARY)
@pytest.mark.parametrize("keyed", [False, True])
def test_dropout_is_the_libraries_own_in_distribution(law: str, keyed: bool) -> None:
    """The same two values, the same patterns within a channel, and drop rates that differ by at most 5 standard errors."""
    torch.manual_seed(3)
    features = torch.full((4000, 3, 4, 4), 2.0)
    draws = KeyedDraws(image_keys(torch.arange(len(features)), 1)) if keyed else None
    ours = make_mechanism(law, "", {"p": 0.3}).apply_noise(features, draws)
    theirs = LIBRARY[law].train()(features)
    torch.testing.assert_close(ours.unique(), theirs.unique())
    whole = [(out == 0).all((2, 3)) | (out != 0).all((2, 3)) for out in (ours, theirs)]  # the channel is kept or dropped
    assert [bool(out.all()) for out in whole] == [law == "bernoulli_channel"] * 2
    rates = [(out == 0).double().mean((2, 3)).flatten() for out in (ours, theirs)]
    error = (sum(rate.var() for rate in rates) / rates[0].numel()) ** 0.5
    assert abs(float(rates[0].mean() - rates[1].mean())) < 5 * error
    assert abs(float(rates[0].mean()) - 0.3) < 5 * error


@pytest.mark.parametrize(("height", "width", "block"), [(7, 7, 3), (4, 4, 3), (6, 5, 4), (5, 3, 7), (1, 1, 3), (3, 8, 2)])
@pytest.mark.parametrize("per_channel", [False, True])
def test_dropblock_is_timms_in_distribution(height: int, width: int, block: int, per_channel: bool) -> None:
    """Each site's drop rate and each pair's, against timm's, within 5.5 standard errors; the scale is the expected share's."""
    torch.manual_seed(4)
    count, channels = 10_000, 2
    features = torch.ones(count, channels, height, width)
    ours = DropBlock(0.3, block, per_channel).train()(features)
    theirs = DropBlock2d(0.3, block_size=block, couple_channels=not per_channel).train()(features)
    joint = []
    for out in (ours, theirs):
        dropped = (out == 0).flatten(1).double()
        joint.append(dropped.T @ dropped / count)
    mean = (joint[0] + joint[1]) / 2
    assert ((joint[0] - joint[1]).abs() <= 5.5 * (mean * (1 - mean) * 2 / count).sqrt() + 1e-9).all()
    expected = make_mechanism("block", "", {"p": 0.3, "block_size": block}).expected(height, width)
    assert expected.drop_rate == pytest.approx(float((theirs == 0).double().mean()), abs=0.015)
    torch.testing.assert_close(ours.unique(), torch.tensor([0, 1 / (1 - expected.drop_rate)], dtype=torch.float32))


def test_dropblock_of_an_image_does_not_depend_on_the_batch() -> None:
    """timm's scale does: here it is that of the batch of one, whose share of kept sites differs from that of all."""
    features, keys_B = torch.ones(8, 2, 7, 7), image_keys(torch.arange(8), 5)
    together = DropBlock(0.5, 3).apply_noise(features, KeyedDraws(keys_B))
    for i in range(8):
        alone = DropBlock(0.5, 3).apply_noise(features[i : i + 1], KeyedDraws(keys_B[i : i + 1]))
        assert torch.equal(alone, together[i : i + 1])


@pytest.mark.parametrize("law", [law for law, each in LAWS.items() if "per_channel" in each.options])
@pytest.mark.parametrize("per_channel", [False, True])
def test_shared_or_per_channel(law: str, per_channel: bool) -> None:
    torch.manual_seed(0)
    strength = {"p": 0.5, "block_size": 1} if law == "block" else {"p": 0.5} if law == "hard_mask" else {}
    kernel = "white" if LAWS[law].takes_kernel else ""
    noise = make_mechanism(law, kernel, {"per_channel": per_channel, **strength})
    out = noise.train()(torch.ones(2, 5, 4, 4))
    assert torch.equal(out[:, 0], out[:, 1]) != per_channel
    assert not torch.equal(out[0], out[1])


@pytest.mark.parametrize("name", NOISY)
def test_memory_layout_does_not_change_the_noise(name: str) -> None:
    features, keys_B = torch.rand(3, 4, 5, 6), image_keys(torch.arange(3), 2)
    plain = build(name).apply_noise(features, KeyedDraws(keys_B))
    last = build(name).apply_noise(features.contiguous(memory_format=torch.channels_last), KeyedDraws(keys_B))
    torch.testing.assert_close(last, plain)
    assert last.is_contiguous(memory_format=torch.channels_last)


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
    absolute = Additive(Gaussian(White(), sigma=0.2), relative=False).train()(features) - features
    torch.manual_seed(0)
    relative = Additive(Gaussian(White(), sigma=0.2)).train()(leaf)
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
    additive, features = Additive(Gaussian(White(), sigma=0.3)), torch.randn(2, 3, 7, 7).bfloat16()
    torch.manual_seed(0)
    field = additive.gate.kernel.sample(2, 7, 7)[:, None] * 0.3 * features.float().square().mean((1, 2, 3), keepdim=True).sqrt()
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
        (lambda: Additive(Gaussian(White(), sigma=-0.1)), r"sigma must be a finite number >= 0, got -0.1"),
        (lambda: make_mechanism("bernoulli", "", {"p": 1.0}), r"p must be a number in \[0, 1\), got 1.0"),
        (lambda: make_mechanism("block", "", {"p": 0.1, "block_size": 0}), r"block_size must be a whole number >= 1, got 0"),
        (
            lambda: make_mechanism("bernoulli", "", {"gamma": 1.0}),
            r"gamma has no meaning for law bernoulli, injection multiplicative, which take p",
        ),
        (
            lambda: make_mechanism("wick", "white", {"energy": 1.0}),
            "energy has no meaning for law wick with kernel white, injection multiplicative, which take beta",
        ),
        (lambda: make_mechanism("gauss", "white", {}), r"law must be one of samplewise, .*, got 'gauss'"),
        (lambda: DirichletGreen(energy=1.0, match_variance=True), r"energy has no effect with match_variance=true"),
        (
            lambda: make_mechanism("bernoulli", "white", {}),
            "kernel has no meaning for law bernoulli, which draws no field",
        ),
        (lambda: make_mechanism("wick", "white", {}, "added"), r"injection must be one of multiplicative, .*, got 'added'"),
        (
            lambda: make_mechanism("wick", "white", {"relative": True}),
            r"relative has no meaning for law wick .* multiplicative",
        ),
        (lambda: make_mechanism("gaussian", "white", {"p": 0.1, "sigma": 1.0}), r"p replaces sigma: give one of them"),
        (
            lambda: make_mechanism("gaussian", "white", {"relative": False, "channel_rms": True}),
            r"channel_rms needs relative=true, got relative=false",
        ),
        (
            lambda: make_mechanism("hard_mask", "white", {"per_channel": True}, "removal"),
            r"per_channel has no meaning for injection=removal",
        ),
        (lambda: make_mechanism("wick", "green", {}), r"kernel must be one of dirichlet_green, .*, got 'green'"),
    ],
)
def test_bad_input(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
