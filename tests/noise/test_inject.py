"""Injection into timm backbones: stages, layouts, prefix tokens, copies, compilation."""

import copy

import pytest
import timm
import torch
from test_mechanism import ON_OUTPUTS, build
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from gch_bench.noise import GaussianChaosNoise, Mechanism, Placement, inject
from gch_bench.noise.draws import Draws, image_keys
from gch_bench.noise.dropout import Dropout
from gch_bench.noise.hooks import keyed_noise, stage_grids, stage_hooks
from gch_bench.noise.stages import stage_modules

ALL = ("L1", "L2", "L3", "L4")


def stages_of(*modules: str) -> dict[str, str]:
    return dict(zip(ALL, modules, strict=True))


RESNET = stages_of("layer1", "layer2", "layer3", "layer4")
CONVNEXT = stages_of("stages.0", "stages.1", "stages.2", "stages.3")
MOBILE = ("blocks.1", "blocks.2", "blocks.4")
VIT = stages_of("blocks.2", "blocks.5", "blocks.8", "blocks.11.norm1")
CAIT = stages_of("blocks.5", "blocks.11", "blocks.17", "blocks_token_only.1.norm1")
# name -> (kwargs, image size, stages, those where a gate acts, layout of L4, grid of L4)
BACKBONES = {
    "resnet18": ({"output_stride": 16}, 64, RESNET, ALL, "NCHW", (4, 4)),
    "resnet50": ({}, 64, RESNET, ALL, "NCHW", (2, 2)),
    "convnext_tiny": ({}, 64, CONVNEXT, ("L4",), "NCHW", (2, 2)),
    "efficientnet_b0": ({"output_stride": 16}, 64, stages_of(*MOBILE, "bn2"), ALL, "NCHW", (4, 4)),
    "mobilenetv3_large_100": ({}, 64, stages_of(*MOBILE, "blocks.6"), ALL, "NCHW", (2, 2)),
    "vit_small_patch16_224": ({"img_size": 64}, 64, VIT, ALL, "NLC", (4, 4)),
    "deit_small_patch16_224": ({"img_size": 64}, 64, VIT, ALL, "NLC", (4, 4)),
    "vit_small_patch14_reg4_dinov2": ({"img_size": 70}, 70, VIT, ALL, "NLC", (5, 5)),
    "swin_tiny_patch4_window7_224": (
        {"img_size": 64}, 64, stages_of("layers.0", "layers.1", "layers.2", "norm"), ALL, "NHWC", (2, 2),
    ),
    "mixer_s16_224": ({"img_size": 64}, 64, stages_of("blocks.1", "blocks.3", "blocks.5", "norm"), ALL, "NLC", (4, 4)),
    "maxvit_nano_rw_256": (
        {"img_size": 64}, 64, stages_of("stages.0", "stages.1", "stages.2", "norm"), ALL, "NCHW", (2, 2),
    ),
    "cait_xxs24_224": ({"img_size": 64}, 64, CAIT, ALL, "NLC", (4, 4)),
    "edgenext_xx_small": ({}, 64, CONVNEXT, ("L4",), "NCHW", (2, 2)),
}  # fmt: skip


class Ramp(Mechanism):
    """A known gate: site i of the row-major grid is multiplied by i + 2."""

    def draw(self, features: Tensor, draws: Draws) -> Tensor:
        height, width = features.shape[2:]
        return torch.arange(2, height * width + 2, dtype=features.dtype).view(1, 1, height, width)


def make(name: str) -> tuple[nn.Module, Tensor]:
    kwargs, size, *_ = BACKBONES[name]
    torch.manual_seed(0)
    return timm.create_model(name, num_classes=5, **kwargs), torch.randn(2, 3, size, size)


class Recorded(GaussianChaosNoise):
    """GCh that keeps the gates it drew."""

    def __init__(self) -> None:
        super().__init__()
        self.gates: list[Tensor] = []

    def transform(self, psi_BHW: Tensor) -> Tensor:
        self.gates.append(super().transform(psi_BHW))
        return self.gates[-1]


def times(clean: Tensor, gate_BHW: Tensor, layout: str) -> Tensor:
    """What a gate should make of a stage's output; prefix tokens are left alone."""
    if layout == "NCHW":
        return clean * gate_BHW[:, None]
    if layout == "NHWC":
        return clean * gate_BHW[..., None]
    prefix = torch.ones(len(gate_BHW), clean.shape[1] - gate_BHW[0].numel())
    return clean * torch.cat([prefix, gate_BHW.flatten(1)], 1)[..., None]


def output_of(model: nn.Module, module: str, images: Tensor) -> Tensor:
    """The module's output, after whatever its hooks did."""
    kept: list[Tensor] = []
    handle = model.get_submodule(module).register_forward_hook(lambda m, i, output: kept.append(output))
    with torch.no_grad():
        model(images)
    handle.remove()
    return kept[0]


@pytest.mark.parametrize("name", BACKBONES)
def test_backbone(name: str) -> None:
    """Stages, state dict, eval mode, and the gate on the right axis, by a gate that is known."""
    _, _, stages, _, layout, grid = BACKBONES[name]
    model, images = make(name)
    model.eval()
    keys, clean_logits = list(model.state_dict()), model(images)
    clean = output_of(model, stages["L4"], images)
    assert stage_modules(model) == stages
    assert inject(model, Ramp(), ["L4"], images=images) == [Placement("L4", stages["L4"])]
    assert stage_grids(model, images) == {"L4": grid}
    assert list(model.state_dict()) == keys
    assert torch.equal(model(images), clean_logits), "eval mode is untouched"
    stage_hooks(model)[0].test = True
    noisy = output_of(model, stages["L4"], images)
    gate_1HW = torch.arange(2, grid[0] * grid[1] + 2, dtype=torch.float32).view(1, *grid)
    torch.testing.assert_close(noisy, times(clean, gate_1HW, layout))
    if layout == "NLC":
        assert clean.shape[1] - gate_1HW.numel() == getattr(model, "num_prefix_tokens", 0)


@pytest.mark.parametrize("name", BACKBONES)
def test_training_mode_multiplies_every_stage_by_its_gate(name: str) -> None:
    _, _, stages, acting, layout, _ = BACKBONES[name]
    model, images = make(name)
    noise, clean, noisy = Recorded(), [], []
    inject(model, noise, acting, images=images)
    noise.gates.clear()
    for module in (model.get_submodule(stages[stage]) for stage in acting):
        module.register_forward_hook(lambda m, i, output: clean.append(output.clone()), prepend=True)
        module.register_forward_hook(lambda m, i, output: noisy.append(output.clone()))
    model.train()
    with torch.no_grad():
        model(images)
        noise.gamma = 0.0
        model(images)
    for i, (gate, before, after) in enumerate(zip(noise.gates, clean, noisy, strict=True)):
        torch.testing.assert_close(after, times(before, gate, layout))
        assert torch.allclose(before, after) == (i >= len(acting)), "gamma = 0 is the identity"


@pytest.mark.parametrize(
    ("name", "size", "grids"),
    [
        ("resnet18", (64, 96), {"L4": (2, 3)}),
        ("swin_tiny_patch4_window7_224", (64, 128), {"L3": (4, 8), "L4": (2, 4)}),
        ("vit_small_patch16_224", (48, 96), {"patch_embed": (3, 6), "L4": (3, 6)}),  # before and after the class token joins
    ],
)
def test_maps_that_are_not_square(name: str, size: tuple[int, int], grids: dict[str, tuple[int, int]]) -> None:
    sized = {} if name == "resnet18" else {"img_size": size}
    model, images = timm.create_model(name, num_classes=5, **sized).eval(), torch.randn(2, 3, *size)
    for stage, (height, width) in grids.items():
        (touched,) = inject(model, Ramp(), [stage], images=images)
        clean = output_of(model, touched.module, images)
        hook = next(hook for hook in stage_hooks(model) if hook.placement == touched)
        hook.test = True
        noisy = output_of(model, touched.module, images)
        hook.test = False
        gate_1HW = torch.arange(2, height * width + 2, dtype=torch.float32).view(1, height, width)
        torch.testing.assert_close(noisy, times(clean, gate_1HW, BACKBONES[name][4]))
    assert stage_grids(model, images) == grids


@pytest.mark.parametrize("name", BACKBONES)
def test_training_gradients_and_channels_last(name: str) -> None:
    model, images = make(name)
    model = model.to(memory_format=torch.channels_last).train()
    inject(model, GaussianChaosNoise(), BACKBONES[name][3][-3::2], images=images)
    images = images.to(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(images).float().square().sum()
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    if BACKBONES[name][4] == "NCHW":
        assert output_of(model, BACKBONES[name][2]["L4"], images).is_contiguous(memory_format=torch.channels_last)


def test_one_gate_for_all_channels_in_training() -> None:
    model, images = make("resnet18")
    inject(model, GaussianChaosNoise(), ["L4"], images=images)
    hook = stage_hooks(model)[0]
    kept: list[Tensor] = []
    model.layer4.register_forward_hook(lambda m, i, output: kept.append(output), prepend=True)
    model.train()
    noisy = output_of(model, "layer4", images)
    ratio = torch.where(kept[0] > 1e-3, noisy / kept[0], torch.nan)
    gate = ratio.nanmean(1, keepdim=True)
    assert torch.nanmean((ratio - gate).abs()) < 1e-5
    assert hook.placement == Placement("L4", "layer4")


def test_deep_copies_are_independent() -> None:
    model, _ = make("resnet18")
    inject(model, GaussianChaosNoise(), ["L4"])
    twin, ema = copy.deepcopy(model), ModelEmaV3(model)
    mechanisms = [stage_hooks(network)[0].mechanism for network in (model, twin, ema)]
    assert len({id(mechanism) for mechanism in mechanisms}) == 3
    stage_hooks(model)[0].test = True
    mechanisms[0].gamma = 9.0
    assert not stage_hooks(twin)[0].test
    assert mechanisms[1].gamma == mechanisms[2].gamma == 1.0
    ema.update(model, step=1)


def stance_after(calls: int) -> str:
    """The first call with keys may compile, the others must not."""
    return "fail_on_recompile" if calls else "default"


@pytest.mark.parametrize("backend", ["eager", "inductor"])
@pytest.mark.parametrize("mechanism", [GaussianChaosNoise(), Dropout(0.5)], ids=["gch", "dropout"])
def test_compile(backend: str, mechanism: Mechanism) -> None:
    torch._dynamo.reset()
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3))
    inject(network, mechanism, ["0"])
    compiled, images = torch.compile(network, backend=backend), torch.randn(2, 3, 12, 12)
    compiled.train()
    first, second = compiled(images), compiled(images)
    assert not torch.equal(first, second), "every call draws anew"
    torch.manual_seed(0)
    expected = network(images)
    torch.manual_seed(0)
    torch.testing.assert_close(compiled(images), expected)
    for epoch in range(3):  # new keys in every step need no new graph
        with keyed_noise(network, image_keys(torch.arange(2), epoch)), torch.compiler.set_stance(stance_after(epoch)):
            torch.testing.assert_close(compiled(images), network(images))
    compiled.eval()
    torch.testing.assert_close(compiled(images), network(images))
    first.sum().backward()


def test_train_and_test_switches() -> None:
    model, images = make("resnet18")
    inject(model, GaussianChaosNoise(), ["L4"], train=False, test=True)
    model.eval()
    assert not torch.equal(model(images), model(images))
    assert torch.equal(output_of(model.train(), "layer4", images), output_of(model, "layer4", images))


@pytest.mark.parametrize("name", ON_OUTPUTS)
def test_keyed_noise_is_independent_of_the_batch(name: str) -> None:
    model, mechanism = nn.Sequential(nn.Identity(), nn.Identity()), build(name)
    model[0].register_forward_hook(lambda module, inputs, output: output + 1, prepend=True)
    inject(model, mechanism, ["0", "1"], test=True, images=torch.rand(2, 3, 5, 5))
    model.eval()
    images, keys_B = torch.rand(6, 3, 5, 5), image_keys(torch.arange(6), 3)
    state = torch.get_rng_state()
    with keyed_noise(model, keys_B):
        together = model(images)
        first = output_of(model, "0", images)
    first_gate, second_gate = (first - images, together - first) if "add" in name else (first / (images + 1), together / first)
    assert not torch.allclose(first_gate, second_gate), "every stage has its own draw"
    with keyed_noise(model, keys_B.roll(1)):
        assert not torch.equal(model(images), together), "another key, another draw"
    with keyed_noise(model, keys_B.flip(0)):
        reversed_order = model(images.flip(0))
    with keyed_noise(model, keys_B[2:3]):
        alone = model(images[2:3])
    torch.testing.assert_close(reversed_order.flip(0), together)  # products of matrices of other sizes round otherwise
    torch.testing.assert_close(alone, together[2:3])
    assert torch.equal(torch.get_rng_state(), state)
    with keyed_noise(model, keys_B[:2]), pytest.raises(ValueError, match=r"one key per image \(6\), got 2"):
        model(images)
    assert not torch.equal(model(images), model(images)), "outside the context: the global generator"


def test_bad_input() -> None:
    model, images = make("resnet18")
    with pytest.raises(
        ValueError, match=r"unknown stage 'L5' of ResNet: choose one of L1 \(layer1\), .*, or a module name inside conv1"
    ):
        inject(model, GaussianChaosNoise(), ["L4", "L5"])
    assert not stage_hooks(model), "nothing is attached then"
    for stages in ([], "L4"):
        with pytest.raises(ValueError, match="stages must be a non-empty list"):
            inject(model, GaussianChaosNoise(), stages)
    with pytest.raises(ValueError, match="layer4 twice"):
        inject(model, GaussianChaosNoise(), ["L4", "layer4"])
    with pytest.raises(ValueError, match=r"stage fc \(fc\) must give a 4-d map or 3-d tokens, got 2-d tensor"):
        inject(model, GaussianChaosNoise(), ["fc"])
    unused = nn.Sequential(nn.Identity())
    unused.add_module("aside", nn.Identity())
    unused.add_module("1", nn.Identity())
    unused.forward = unused[0].forward
    with pytest.warns(UserWarning, match="not checked"):
        inject(unused, GaussianChaosNoise(), ["aside"])
    with pytest.raises(ValueError, match="never called"):
        stage_grids(unused, images)
    with pytest.raises(ValueError, match="never called"):
        inject(unused, GaussianChaosNoise(), ["1"], images=images)


def test_tokens_without_a_grid() -> None:
    model = nn.Sequential(nn.Flatten(2))
    inject(model, GaussianChaosNoise(), ["0"])
    assert stage_grids(model, torch.zeros(1, 9, 2, 1)) == {"0": (3, 3)}
    with pytest.raises(ValueError, match="gives 7 tokens"):
        model.train()(torch.zeros(1, 7, 2, 1))
