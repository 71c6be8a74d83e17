"""Chains of vision networks against the operators themselves: their modules run on constant maps."""

import copy
from collections.abc import Callable

import pytest
import timm
import torch
import torchvision
from timm.layers import LayerNorm2d
from torch import Tensor, nn

from gch_bench.geometry.chain_format import load_chain
from gch_bench.geometry.chains import chain_blocks, chain_factors, find_chains, for_network


def scrambled(network: nn.Module, seed: int = 0) -> nn.Module:
    """In eval mode, with norms and running statistics that are not trivial."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in network.state_dict().items():
        if value.ndim == 1 and value.is_floating_point():
            low = 0.0 if name.endswith(("bias", "running_mean")) else 0.5
            value.uniform_(low, low + 1.0, generator=generator)
    return network.eval()


def columns(function: Callable[[Tensor], Tensor], count: int) -> Tensor:
    """(outputs, count): the matrix of an affine ``function`` of rows (B, count)."""
    return (function(torch.eye(count, dtype=torch.float64)) - function(torch.zeros(1, count, dtype=torch.float64))).T


def at_dc(conv: nn.Conv2d) -> Callable[[Tensor], Tensor]:
    """The convolution on a constant infinite plane: cyclic padding on a plane as large as the kernel."""
    side = conv.kernel_size[0] * 2 + 1

    def apply(rows: Tensor) -> Tensor:
        plane = rows[:, :, None, None].expand(-1, -1, side, side)
        return nn.functional.conv2d(plane, conv.weight.double(), groups=conv.groups).mean((2, 3))

    return apply


def bn(norm: nn.BatchNorm2d) -> Callable[[Tensor], Tensor]:
    return lambda rows: nn.functional.batch_norm(
        rows, norm.running_mean.double(), norm.running_var.double(), norm.weight.double(), norm.bias.double(), eps=norm.eps
    )


class Gain(nn.Module):
    """What a layer norm or affine layer does without its centring and dividing."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.gain, self.channels_first = norm.weight, isinstance(norm, LayerNorm2d)

    def forward(self, x: Tensor) -> Tensor:
        return x * (self.gain[:, None, None] if self.channels_first and x.ndim == 4 else self.gain)


LEFT_OUT = {"act", "act1", "act2", "se", "se_early", "grn"}


def linearised(network: nn.Module) -> nn.Module:
    """A copy in float64 without activations, squeeze-and-excitation and what layer norms compute from the data."""
    network = copy.deepcopy(network).double().eval()
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if name in LEFT_OUT:
                setattr(parent, name, nn.Identity())
            elif isinstance(child, nn.LayerNorm):
                setattr(parent, name, Gain(child))
    return network


class Nothing(nn.Module):
    """In the place of a branch: adds nothing."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x)


def on_plane(block: nn.Module, side: int = 12) -> Callable[[Tensor], Tensor]:
    """The block on constant maps, read off where no border is near."""

    def apply(rows: Tensor) -> Tensor:
        found = block(rows[:, :, None, None].expand(-1, -1, side, side))
        return found[:, :, found.shape[2] // 2, found.shape[3] // 2]

    return apply


def without_values(network: nn.Module) -> dict[str, Tensor]:
    """The state dict of a network on the device `meta`, filled with zeros that need no memory."""
    return {key: torch.zeros((), dtype=value.dtype).expand(value.shape) for key, value in network.state_dict().items()}


def on_meta(name: str) -> nn.Module:
    with torch.device("meta"):
        return timm.create_model(name)


def chained(*functions: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def apply(rows: Tensor) -> Tensor:
        for function in functions:
            rows = function(rows)
        return rows

    return apply


def steps_width(block: nn.Module) -> int:
    """Inputs of a ResNet block's last convolution."""
    return (block.conv3 if hasattr(block, "conv3") else block.conv2).in_channels


@pytest.mark.parametrize(
    ("name", "options"),
    [("resnet18d", {"channels": [8, 16, 24, 32]}),
     ("resnet18", {"channels": [8, 16, 24, 32]}), ("resnet26", {"channels": [8, 8, 16, 16]}),
     ("resnext50_32x4d", {"layers": [1, 1, 1, 1], "channels": [16, 16, 32, 32], "cardinality": 4})],
)  # fmt: skip
def test_resnet_blocks_equal_their_modules_at_dc(name: str, options: dict) -> None:
    network = scrambled(timm.create_model(name, num_classes=3, **options))
    (chain,) = find_chains(network.state_dict())
    assert chain.name == "resnet"
    factors = list(chain_factors(network.state_dict(), chain))
    names = [f"layer{i}.{j}" for i in (1, 2, 3, 4) for j in range(len(network.layer1))]
    assert chain_blocks(network.state_dict(), chain) == names
    assert [factor.name for factor in factors] == [*names, "fc"]
    assert [factor.classifier for factor in factors] == [False] * len(names) + [True]
    torch.testing.assert_close(factors[-1].matrix, network.fc.weight.double())
    for factor in factors[:-1]:
        block = network.get_submodule(factor.name)
        steps = [step for i in (1, 2, 3) if hasattr(block, f"conv{i}")
                 for step in (at_dc(getattr(block, f"conv{i}")), bn(getattr(block, f"bn{i}")))]  # fmt: skip
        expected = columns(chained(*steps), block.conv1.in_channels)
        torch.testing.assert_close(factor.read, columns(chained(*steps[:2]), block.conv1.in_channels))
        torch.testing.assert_close(factor.write, columns(chained(*steps[-2:]), steps_width(block)))
        if block.downsample is None:
            expected = expected + torch.eye(len(expected))
        else:  # a resnet-d averages first, which changes nothing at DC
            conv, norm = (layer for layer in block.downsample if isinstance(layer, nn.Conv2d | nn.BatchNorm2d))
            expected = expected + columns(chained(at_dc(conv), bn(norm)), block.conv1.in_channels)
        torch.testing.assert_close(factor.matrix, expected, rtol=1e-9, atol=1e-9)


def test_convnext_blocks_equal_their_modules_at_dc() -> None:
    options = {"depths": (1, 2, 1, 1), "dims": (8, 8, 16, 16)}
    network = scrambled(timm.create_model("convnext_atto", num_classes=3, use_grn=False, **options))
    (chain,) = find_chains(network.state_dict())
    whole = {factor.name: factor for factor in chain_factors(network.state_dict(), chain)}
    factors = {name: factor.matrix for name, factor in whole.items()}
    assert list(factors) == ["stages.0.blocks.0", "stages.1.downsample", "stages.1.blocks.0", "stages.1.blocks.1",
                             "stages.2.downsample", "stages.2.blocks.0", "stages.3.downsample", "stages.3.blocks.0",
                             "head"]  # fmt: skip
    torch.testing.assert_close(factors["head"], network.head.fc.weight.double() * network.head.norm.weight.double())
    block = network.stages[1].blocks[1]
    taps = block.conv_dw.weight.double().sum((1, 2, 3))
    first, second = block.mlp.fc1.weight.double().flatten(1), block.mlp.fc2.weight.double().flatten(1)
    expected = torch.eye(8) + torch.diag(block.gamma.double()) @ second @ first @ torch.diag(block.norm.weight.double() * taps)
    torch.testing.assert_close(factors["stages.1.blocks.1"], expected)
    reading, writing = whole["stages.1.blocks.1"].read, whole["stages.1.blocks.1"].write
    torch.testing.assert_close(reading, first @ torch.diag(block.norm.weight.double() * taps))
    torch.testing.assert_close(writing, torch.diag(block.gamma.double()) @ second)
    down = network.stages[2].downsample
    expected = down[1].weight.double().sum((2, 3)) @ torch.diag(down[0].weight.double())
    torch.testing.assert_close(factors["stages.2.downsample"], expected)


@pytest.mark.parametrize("options", [{}, {"global_pool": "avg"}, {"init_values": 0.5, "scale_attn_norm": True}])
def test_vision_transformer_equals_its_linear_maps(options: dict) -> None:
    small = {"depth": 2, "embed_dim": 32, "num_heads": 2, "num_classes": 3, "img_size": 32}
    network = scrambled(timm.create_model("vit_tiny_patch16_224", **small, **options)).double()
    state = network.state_dict()
    chains = find_chains(state)
    assert [chain.name for chain in chains] == ["vit_mlp", "vit_ov"]
    mlp, attention = (list(chain_factors(state, chain, head_dim=16)) for chain in chains)
    linear = linearised(network)
    norm = linear.norm if isinstance(linear.fc_norm, nn.Identity) else linear.fc_norm
    for factors in (mlp, attention):
        assert [(factor.name, factor.classifier) for factor in factors] == [
            ("blocks.0", False), ("blocks.1", False), ("head", True)]  # fmt: skip
        torch.testing.assert_close(factors[2].matrix, columns(chained(norm, linear.head), 32))
        assert (factors[2].read, factors[2].write) == (None, None)
    block = linear.blocks[1]
    scale = [block.ls2] if options.get("init_values") else []
    torch.testing.assert_close(
        mlp[1].matrix, columns(chained(block.norm2, block.mlp.fc1, block.mlp.fc2, *scale), 32) + torch.eye(32)
    )
    torch.testing.assert_close(mlp[1].read, columns(chained(block.norm2, block.mlp.fc1), 32))
    torch.testing.assert_close(mlp[1].write, columns(chained(block.mlp.fc2, *scale), 128))
    assert (mlp[1].read_group_size, attention[1].read_group_size) == (None, 16)
    torch.testing.assert_close(mlp[1].write @ mlp[1].read + torch.eye(32), mlp[1].matrix)
    # Attention over copies of one token gives each the value itself: the whole layer is then W_O W_V, softmax or not.
    constant = columns(lambda rows: block.ls1(block.attn(block.norm1(rows)[:, None].expand(-1, 5, -1)))[:, 2], 32)
    torch.testing.assert_close(attention[1].matrix, constant + torch.eye(32))
    torch.testing.assert_close(attention[1].read, columns(chained(block.norm1, block.attn.qkv), 32)[64:])
    if not options.get("scale_attn_norm"):
        torch.testing.assert_close(attention[1].write @ attention[1].read + torch.eye(32), attention[1].matrix)
        heads = list(chain_factors(state, load_chain("vit_heads"), head_dim=16))
        torch.testing.assert_close(heads[3].matrix @ heads[2].matrix, attention[1].matrix - torch.eye(32))
        assert [factor.group_size for factor in heads] == [16, None, 16, None]


def test_a_network_without_its_head_is_a_chain_too() -> None:
    network = timm.create_model("vit_tiny_patch16_224", depth=2, embed_dim=32, num_heads=2, num_classes=0, img_size=32)
    factors = list(chain_factors(network.state_dict(), find_chains(network.state_dict())[0]))
    assert [factor.name for factor in factors] == ["blocks.0", "blocks.1"]
    assert not any(factor.classifier for factor in factors)


@pytest.mark.parametrize(
    "name",
    ["test_efficientnet", "mobilenetv3_small_050", "mobilenetv4_conv_small_035"],
)
def test_mbconv_blocks_equal_their_modules_at_dc(name: str) -> None:
    network = scrambled(timm.create_model(name, num_classes=5))
    state = network.state_dict()
    (chain,) = find_chains(state)
    assert chain.name == "mbconv"
    factors = list(chain_factors(state, for_network(chain, network)))
    linear = linearised(network)
    assert [factor.name for factor in factors] == [
        *(f"blocks.{i}.{j}" for i, stage in enumerate(network.blocks) for j in range(len(stage))), "conv_head", "classifier"
    ]  # fmt: skip
    kinds = set()  # one block of each kind is enough
    for factor in factors[:-2]:
        block = linear.get_submodule(factor.name)
        kind = (type(block), block.has_skip, *(name for name, _ in block.named_modules()))
        if kind in kinds or factor.matrix.shape[1] > 40:
            continue
        kinds.add(kind)
        torch.testing.assert_close(factor.matrix, columns(on_plane(block), factor.matrix.shape[1]), rtol=1e-9, atol=1e-9)
        if hasattr(block, "conv_pwl"):
            expand, norm = (block.conv_pw, block.bn1) if hasattr(block, "conv_pw") else (block.conv_exp, block.bn1)
            reading = columns(on_plane(nn.Sequential(expand, norm)), factor.matrix.shape[1])
            last = block.bn3 if hasattr(block, "bn3") else block.bn2
            writing = columns(on_plane(nn.Sequential(block.conv_pwl, last)), block.conv_pwl.in_channels)
            torch.testing.assert_close((factor.read, factor.write), (reading, writing), rtol=1e-9, atol=1e-9)
    head, classifier = factors[-2:]
    norm = getattr(linear, "bn2", getattr(linear, "norm_head", nn.Identity()))
    torch.testing.assert_close(head.matrix, columns(on_plane(nn.Sequential(linear.conv_head, norm)), head.matrix.shape[1]))
    torch.testing.assert_close(classifier.matrix, network.classifier.weight.double())
    assert [factor.classifier for factor in factors[-2:]] == [False, True]


SKIPS = ["efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2", "efficientnet_b0",
         "mobilenetv2_100",
         "mobilenetv3_small_100", "mobilenetv3_large_100", "mnasnet_100", "tf_efficientnetv2_s",
         "efficientnetv2_rw_t", "fbnetc_100", "efficientnet_em", "lcnet_050", "mobilenetv1_100",
         "mobilenetv4_conv_small"]  # fmt: skip


ONLY_THE_NETWORK_KNOWS = {"mobilenetv3_rw": 1, "mobilenetv3_small_050": 1}  # blocks that the weights alone get wrong


@pytest.mark.parametrize("name", [*SKIPS, *ONLY_THE_NETWORK_KNOWS])
def test_mbconv_has_a_shortcut_where_the_network_has_one(name: str) -> None:
    network = on_meta(name)
    state = {key: value for key, value in without_values(network).items() if not key.startswith(("conv_head", "classifier"))}
    (chain,) = find_chains(state)
    wrong = {"weights": 0, "network": 0}
    for source, asked in (("weights", chain), ("network", for_network(chain, network))):
        for factor in chain_factors(state, asked, residual_scale=0.0):  # of which the shortcut is left
            wrong[source] += bool(factor.matrix.any()) != network.get_submodule(factor.name).has_skip
    assert wrong == {"weights": ONLY_THE_NETWORK_KNOWS.get(name, 0), "network": 0}


def test_mbconv_reads_torchvision_keys() -> None:
    network = scrambled(torchvision.models.mobilenet_v2(num_classes=4, width_mult=0.35))
    state = dict(sorted(network.state_dict().items()))  # as a safetensors file has them
    (chain,) = find_chains(state)
    factors = list(chain_factors(state, for_network(chain, network)))
    assert [factor.name for factor in factors] == [*(f"features.{i}" for i in range(1, 19)), "classifier.1"]
    linear = network.double()
    for module in linear.modules():
        for name, child in module.named_children():
            if isinstance(child, nn.ReLU6):
                setattr(module, name, nn.Identity())
    for factor in factors[:4]:
        block = linear.get_submodule(factor.name)
        torch.testing.assert_close(factor.matrix, columns(on_plane(block), factor.matrix.shape[1]), rtol=1e-9, atol=1e-9)
    full = torchvision.models.mobilenet_v2()
    zeros = {key: torch.zeros_like(value) for key, value in full.state_dict().items()}
    for factor in chain_factors(zeros, chain, residual_scale=0.0):
        if factor.name.startswith("features") and factor.name != "features.18":
            assert bool(factor.matrix.any()) == full.get_submodule(factor.name).use_res_connect


def test_eps_of_the_networks_own_batch_norms() -> None:
    network = scrambled(timm.create_model("test_efficientnet", num_classes=3, bn_eps=0.1))
    (chain,) = find_chains(network.state_dict())
    guessed, known = (next(chain_factors(network.state_dict(), each)) for each in (chain, for_network(chain, network)))
    variance = network.blocks[0][0].bn1.running_var.double()
    ratio = ((variance + 1e-5) / (variance + 0.1)).sqrt()
    torch.testing.assert_close(known.matrix, ratio[:, None] * guessed.matrix)


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256"])
def test_swin_blocks_equal_their_modules_on_equal_patches(name: str) -> None:
    options = {"img_size": 64, "window_size": 4, "depths": (1, 2), "num_heads": (2, 4), "embed_dim": 16, "num_classes": 3}
    network = scrambled(timm.create_model(name, **options))
    chains = find_chains(network.state_dict())
    assert [chain.name for chain in chains] == ["swin_mlp", "swin_ov"]
    for chain, other, size in zip(chains, ("drop_path1", "drop_path2"), (None, 8), strict=True):
        factors = list(chain_factors(network.state_dict(), chain, head_dim=8))
        assert [factor.name for factor in factors] == [
            "layers.0.blocks.0", "layers.1.downsample", "layers.1.blocks.0", "layers.1.blocks.1", "head"]  # fmt: skip
        linear = linearised(network)
        for factor in factors[:-1]:
            module = linear.get_submodule(factor.name)
            if hasattr(module, other):
                setattr(module, other, Nothing())
            side = module.input_resolution[0] if hasattr(module, "input_resolution") else 8

            def at_site(rows: Tensor, module: nn.Module = module, side: int = side) -> Tensor:
                return module(rows[:, None, None].expand(-1, side, side, -1))[:, 0, 0]

            torch.testing.assert_close(factor.matrix, columns(at_site, factor.matrix.shape[1]), rtol=1e-6, atol=1e-8)
            if "blocks" in factor.name:
                torch.testing.assert_close(factor.write @ factor.read + torch.eye(len(factor.matrix)), factor.matrix)
                assert factor.read_group_size == size
            else:
                assert factor.read is None
        torch.testing.assert_close(factors[-1].matrix, columns(chained(linear.norm, linear.head.fc), 32))
        assert factors[-1].classifier


@pytest.mark.parametrize("name", ["test_maxvit", "maxvit_tiny_tf_224"])
def test_maxvit_blocks_equal_their_modules_on_constant_maps(name: str) -> None:
    options = {} if name == "test_maxvit" else {"depths": (1, 1), "embed_dim": (32, 64), "num_classes": 3}
    options |= {"block_type": ("M", "M"), "head_hidden_size": 24, "stem_width": 16} if options else {}
    network = scrambled(timm.create_model(name, img_size=64, **options))
    state = network.state_dict()
    chains = find_chains(state)
    assert [chain.name for chain in chains] == ["maxvit_mlp", "maxvit_ov"]
    for chain, other in zip(chains, ("attn", "mlp"), strict=True):
        factors = list(chain_factors(state, for_network(chain, network)))
        linear = linearised(network)
        assert [factor.name.rsplit(".", 1)[1] for factor in factors[:3]] == ["conv", "attn_block", "attn_grid"]
        for factor in factors[:7] if not options else factors[:-1]:
            module = linear.get_submodule(factor.name)
            if factor.name.endswith("conv"):
                found = columns(on_plane(module), factor.matrix.shape[1])
            else:
                setattr(module, other, Nothing())
                window = module.partition_size[0]

                def at_site(rows: Tensor, module: nn.Module = module, window: int = window) -> Tensor:
                    return module(rows[:, None, None].expand(-1, window, window, -1))[:, 0, 0]

                found = columns(at_site, factor.matrix.shape[1])
                assert factor.read_group_size == (None if other == "attn" else 32)
            torch.testing.assert_close(factor.matrix, found, rtol=1e-9, atol=1e-9)
        head = linear.head
        steps = (head.norm, head.pre_logits.fc, head.fc) if options else (linear.norm, head.fc)
        torch.testing.assert_close(factors[-1].matrix, columns(chained(*steps), factors[-1].matrix.shape[1]))


AUTO = {
    "test_efficientnet": ["mbconv"], "test_vit": ["vit_mlp", "vit_ov"], "test_vit4": ["vit_mlp", "vit_ov"],
    "test_convnext": ["convnext"], "test_convnext3": ["convnext"], "test_resnet": ["resnet"],
    "test_maxvit": ["maxvit_mlp", "maxvit_ov"], "test_mambaout": [], "test_byobnet": [], "test_nfnet": [], "test_coatnet": [],
    "efficientnet_b0": ["mbconv"], "mobilenetv2_100": ["mbconv"], "mobilenetv3_large_100": ["mbconv"],
    "mobilenetv4_conv_small": ["mbconv"], "swin_tiny_patch4_window7_224": ["swin_mlp", "swin_ov"],
    "swinv2_tiny_window8_256": ["swin_mlp", "swin_ov"], "maxvit_tiny_tf_224": ["maxvit_mlp", "maxvit_ov"],
    "maxvit_rmlp_nano_rw_256": ["maxvit_mlp", "maxvit_ov"], "deit3_small_patch16_224": ["vit_mlp", "vit_ov"],
    "mixer_s16_224": ["mixer"], "resmlp_12_224": ["mixer"], "resnet50d": ["resnet"],
}  # fmt: skip


@pytest.mark.parametrize("name", AUTO)
def test_the_family_of_a_network_is_found(name: str) -> None:
    assert [chain.name for chain in find_chains(without_values(on_meta(name)))] == AUTO[name]


def test_mixer_equals_its_linear_maps() -> None:
    network = scrambled(timm.models.MlpMixer(num_blocks=2, embed_dim=16, img_size=32, num_classes=3))
    factors = list(chain_factors(network.state_dict(), find_chains(network.state_dict())[0]))
    block = linearised(network).blocks[1]
    expected = columns(chained(block.norm2, block.mlp_channels.fc1, block.mlp_channels.fc2), 16)
    torch.testing.assert_close(factors[1].matrix, expected + torch.eye(16))
    torch.testing.assert_close(factors[2].matrix, network.head.weight.double() * network.norm.weight.double())
