"""Does the noise reach the logits? Every family, the measuring itself against a network worked out by hand, and refusals."""

import copy

import pytest
import timm
import torch
from test_inject import BACKBONES, Ramp, make, times
from torch import Tensor, nn

from gch_bench.noise import Additive, DirichletGreen, Gaussian, GaussianChaosNoise, HardMask, PeriodicGreen, inject
from gch_bench.noise.draws import Draws
from gch_bench.noise.hooks import Placement, stage_hooks
from gch_bench.noise.placement import MINIMUM_CHANGE, NoiseDoesNothing, Probe, logit_change, perturbed
from gch_bench.noise.stages import feature_stages


def gate_by_hand(model: nn.Module, images: Tensor, module: str, layout: str, grid: tuple[int, int]) -> float:
    """The relative change of the logits under one fixed random gate, by this test's own hook and perturbed weights."""
    generator = torch.Generator().manual_seed(5)
    model = copy.deepcopy(model).train()  # BatchNorm on the batch; no backbone of the table drops anything by default
    gate = (0.6 * torch.randn(len(images), *grid, generator=generator)).exp()
    gate = gate / gate.mean((1, 2), keepdim=True)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
        clean = model(images)
        model.get_submodule(module).register_forward_hook(lambda m, i, output: times(output, gate, layout))
        return float((model(images) - clean).norm() / clean.norm())


@pytest.mark.parametrize("name", BACKBONES)
def test_a_gate_acts_at_l4_of_every_family(name: str) -> None:
    """Measured by the code, and by hand; the stages that do not act are refused, and the message names those that do."""
    _, _, stages, acting, layout, grid = BACKBONES[name]
    model, images = make(name)
    assert logit_change(model, GaussianChaosNoise(), ["L4"], images) > 10 * MINIMUM_CHANGE
    assert gate_by_hand(model, images, stages["L4"], layout, grid) > 10 * MINIMUM_CHANGE
    for stage, module in stages.items():
        if stage in acting:
            continue
        assert logit_change(model, GaussianChaosNoise(), [stage], images) < MINIMUM_CHANGE
        with pytest.raises(NoiseDoesNothing) as error:
            inject(model, GaussianChaosNoise(), ["L4", stage], images=images)
        assert f"noise at stage {stage} ({module}) does nothing" in str(error.value)
        assert "cancels it" in str(error.value)
        assert [name for name in stages if f"{name} (" in str(error.value).split("that work:")[1]] == list(acting)
        assert not stage_hooks(model), "nothing is attached then"


# What timm's feature_info calls the last stage, where a gate after it is invisible: the default L4 of old.
INVISIBLE = ["vit_small_patch16_224", "deit_small_patch16_224", "swin_tiny_patch4_window7_224", "mixer_s16_224",
             "maxvit_nano_rw_256", "cait_xxs24_224"]  # fmt: skip


@pytest.mark.parametrize("name", INVISIBLE)
def test_the_last_block_itself_is_refused(name: str) -> None:
    model, images = make(name)
    last = feature_stages(model)["L4"]
    with pytest.raises(NoiseDoesNothing, match=r"that work: .*L4 \("):
        inject(model, GaussianChaosNoise(), [last], images=images)


@pytest.mark.parametrize(
    ("kwargs", "place"),
    [
        ({}, "blocks.1.norm1"),
        ({"reg_tokens": 4}, "blocks.1.norm1"),
        ({"global_pool": "avg"}, "blocks.1"),  # the pooling comes before fc_norm
        ({"global_pool": "avg", "fc_norm": False}, "norm"),
        ({"global_pool": "map"}, "norm"),
        ({"global_pool": "avg", "class_token": False, "fc_norm": False}, "norm"),
    ],
    ids=str,
)
def test_vits_of_every_pooling(kwargs: dict, place: str) -> None:
    model = timm.create_model("vit_tiny_patch16_224", num_classes=5, img_size=48, depth=2, **kwargs)
    assert inject(model, GaussianChaosNoise(), ["L4"]) == [Placement("L4", place)]
    assert (stage_hooks(model)[0].logit_change or 0) > 10 * MINIMUM_CHANGE


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("resnetv2_50", "norm"),
        ("regnety_002", "s4"),
        ("densenet121", "features.norm5"),
        ("convnextv2_atto", "stages.3"),
        ("xcit_nano_12_p16_224", "cls_attn_blocks.1.norm1"),
        ("mobilenetv4_conv_small", "blocks.4"),
        ("tf_efficientnet_lite0", "bn2"),
    ],
)
def test_other_backbones(name: str, place: str) -> None:
    model = timm.create_model(name, num_classes=5)
    assert inject(model, GaussianChaosNoise(), ["L4"], images=torch.randn(2, 3, 64, 64) if "xcit" not in name else None) == [
        Placement("L4", place)
    ]


def pooled() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))


def test_the_measured_change_is_its_formula() -> None:
    """On the perturbed weights, with a gate that is known, by matrix products."""
    model, images = pooled(), torch.randn(3, 3, 6, 5)
    weights = perturbed(model)
    maps = torch.nn.functional.conv2d(images, weights["0.weight"], weights["0.bias"])
    gate = torch.arange(2.0, 14.0).view(4, 3)
    clean, noisy = (values.mean((2, 3)) @ weights["3.weight"].T + weights["3.bias"] for values in (maps, maps * gate))
    expected = float((noisy - clean).norm() / clean.norm())
    change = Probe(model, images).change(Ramp(), [Placement("0", "0")])
    assert change.logits == pytest.approx(expected, rel=1e-5)
    assert change.stage == pytest.approx(float((maps * gate - maps).norm() / maps.norm()), rel=1e-5)
    assert (change.height, change.width) == (4, 3)


def test_perturbed_weights() -> None:
    model = nn.Sequential(nn.Conv2d(8, 64, 5), nn.BatchNorm2d(64), nn.Linear(2000, 50))
    found = perturbed(model)
    assert found.keys() == model.state_dict().keys()
    for name, parameter in model.named_parameters():
        expected = 0.1 / (parameter[0].numel() ** 0.5 if parameter.ndim > 1 else 1)
        assert float((found[name] - parameter.detach()).std()) == pytest.approx(expected, rel=0.3)
    assert torch.equal(found["1.running_var"], model[1].running_var)
    assert found["1.running_var"] is not model[1].running_var


def test_degenerate_weights_hide_nothing() -> None:
    """A classifier, last gammas and layer scales that start at zero."""
    for name, zeros in (("resnet18", ("fc.", "bn2.weight")), ("cait_xxs24_224", ("head.", "gamma"))):
        model, images = make(name)
        with torch.no_grad():
            for key, parameter in model.named_parameters():
                if any(part in key for part in zeros):
                    parameter.zero_()
        assert logit_change(model, GaussianChaosNoise(), ["L4"], images) > 10 * MINIMUM_CHANGE


@pytest.mark.parametrize("name", ["resnet18", "vit_small_patch16_224"])
def test_measuring_leaves_no_trace(name: str) -> None:
    model, images = make(name)
    inject(model, GaussianChaosNoise(), ["L3"], images=images, test=True)
    model.train()
    model.get_submodule(next(iter(dict(model.named_children())))).eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    modes, switches = [m.training for m in model.modules()], [(h.train, h.test) for h in stage_hooks(model)]
    random, hooks = torch.get_rng_state(), sum(len(m._forward_hooks) for m in model.modules())
    parameters = [id(parameter) for parameter in model.parameters()]
    first = logit_change(model, GaussianChaosNoise(), ["L4"], images)
    with pytest.raises(ValueError, match="4-d map"):
        logit_change(model, GaussianChaosNoise(), ["head" if name.startswith("vit") else "fc"], images)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert [id(parameter) for parameter in model.parameters()] == parameters
    assert [m.training for m in model.modules()] == modes
    assert [(h.train, h.test) for h in stage_hooks(model)] == switches
    assert sum(len(m._forward_hooks) for m in model.modules()) == hooks
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert logit_change(model, GaussianChaosNoise(), ["L4"], images) == first, "seeded"


def test_shared_additive_noise_is_removed_by_centring() -> None:
    model, images = make("convnext_tiny")
    with pytest.raises(NoiseDoesNothing, match=r"none of L1\.\.L4 with this noise"):
        inject(model, Additive(Gaussian(DirichletGreen(), 1.0)), ["L4"], images=images)
    inject(model, Additive(Gaussian(DirichletGreen(), 1.0, per_channel=True)), ["L4"], images=images)
    model, images = make("resnet18")
    inject(model, Additive(Gaussian(DirichletGreen(), 1.0)), ["L4"], images=images)


def test_reasons() -> None:
    def refused(*, size: int = 64, mechanism=None) -> str:
        model = timm.create_model("resnet18", num_classes=5)
        with pytest.raises(NoiseDoesNothing) as error:
            inject(model, mechanism or GaussianChaosNoise(), ["L4"], images=torch.randn(2, 3, size, size))
        return str(error.value)

    for mechanism in (None, HardMask(DirichletGreen(), 0.9), GaussianChaosNoise(0.5)):
        assert "on the stage's 1x1 map it is the IDENTITY: use larger images" in refused(size=32, mechanism=mechanism)
    assert "1x1" in refused(size=32, mechanism=Additive(Gaussian(PeriodicGreen())))
    assert "2x2 map it is the IDENTITY" in refused(mechanism=HardMask(DirichletGreen(), 0.1)), "it keeps 4 of 4 sites"
    assert "raise its strength" in refused(mechanism=GaussianChaosNoise(1e-6))


def test_strength_zero_is_no_mistake() -> None:
    model, images = make("resnet18")
    inject(model, GaussianChaosNoise(0.0), ["L4"], images=images)
    assert stage_hooks(model)[0].logit_change == 0


class EveryFifth(Ramp):
    """Acts in one draw out of five."""

    calls = 0

    def draw(self, features: Tensor, draws: Draws) -> Tensor:
        self.calls += 1
        return torch.ones(()) if self.calls % 5 else super().draw(features, draws)


def test_noise_that_rarely_acts_gets_more_draws() -> None:
    """As a dropout with a small p may do: the first draws drop nothing, and it is no noise that does nothing."""
    model, images = pooled(), torch.randn(2, 3, 6, 6)
    always, rarely = (Probe(model, images).change(noise, [Placement("0", "0")]) for noise in (Ramp(), EveryFifth()))
    assert rarely.logits == pytest.approx(always.logits / 5**0.5), "the mean of the squares counts the draws without"


def test_without_images() -> None:
    """The size that the network was made for, or 128 x 128 pixels, or a warning; its own channels."""
    grey = timm.create_model("vit_tiny_patch16_224", img_size=96, in_chans=1, depth=2)
    inject(grey, GaussianChaosNoise(), ["L4"])
    assert stage_hooks(grey)[0].logit_change is not None
    with pytest.raises(NoiseDoesNothing):
        inject(timm.create_model("vit_tiny_patch16_224", depth=2), GaussianChaosNoise(), ["blocks.1"])
    plain = pooled()
    inject(plain, GaussianChaosNoise(), ["0"])
    assert stage_hooks(plain)[0].logit_change is not None
    fixed = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 2))
    with pytest.warns(UserWarning, match=r"not checked.*mat1 and mat2.*give inject\(\.\.\., images=\.\.\.\)"):
        inject(fixed, GaussianChaosNoise(), ["0"])
    assert stage_hooks(fixed)[0].logit_change is None
    with pytest.raises(RuntimeError, match="mat1"):
        logit_change(fixed, GaussianChaosNoise(), ["0"], torch.randn(2, 3, 9, 9))
    with pytest.warns(UserWarning, match="no convolution"):
        inject(nn.Sequential(nn.Identity()), GaussianChaosNoise(), ["0"])


def test_running_statistics_that_fit_nothing_hide_nothing() -> None:
    """At initialisation a deep network's features die out in eval mode: BatchNorm uses the statistics of the images instead."""
    torch.manual_seed(0)
    layers = [part for _ in range(30) for part in (nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU())]
    for layer in layers[::3]:
        nn.init.normal_(layer.weight, std=1e-3)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    assert logit_change(model, GaussianChaosNoise(), ["0"], torch.randn(2, 3, 16, 16)) > 100 * MINIMUM_CHANGE
