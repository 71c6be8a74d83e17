"""Chains read from state dicts with the real key names, against the operators themselves: modules run on constant maps."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from timm.layers import LayerNorm2d
from torch import Tensor, nn

from gch_bench.geometry.chain_format import builtin_chains, load_chain
from gch_bench.geometry.chains import chain_blocks, chain_factors, find_chains, for_network, weight_matrices


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
        if kind in kinds or factor.matrix.shape[1] > 64:
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


SKIPS = ["efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2", "efficientnet_b0", "efficientnet_b1",
         "mobilenetv2_100",
         "mobilenetv2_050", "mobilenetv3_small_100", "mobilenetv3_large_100", "mnasnet_100", "tf_efficientnetv2_s",
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


def gpt2(layers: int, width: int, prefix: str) -> dict[str, Tensor]:
    state = {f"{prefix}wte.weight": torch.randn(11, width)}
    for i in range(layers):
        name = f"{prefix}h.{i}."
        shapes = {"ln_1": (width,), "ln_2": (width,), "attn.c_attn": (width, 3 * width), "attn.c_proj": (width, width),
                  "mlp.c_fc": (width, 4 * width), "mlp.c_proj": (4 * width, width)}  # fmt: skip
        state |= {f"{name}{key}.weight": torch.randn(shape) for key, shape in shapes.items()}
    return state


def llama(layers: int, heads: int, kv_heads: int, head_dim: int = 128) -> dict[str, Tensor]:
    width, state = heads * head_dim, {}
    for i in range(layers):
        name = f"model.layers.{i}."
        shapes = {"self_attn.q_proj": (width, width), "self_attn.k_proj": (kv_heads * head_dim, width),
                  "self_attn.v_proj": (kv_heads * head_dim, width), "self_attn.o_proj": (width, width),
                  "mlp.gate_proj": (96, width), "mlp.up_proj": (96, width), "mlp.down_proj": (width, 96)}  # fmt: skip
        state |= {f"{name}{key}.weight": torch.randn(shape) for key, shape in shapes.items()}
    return state


def dit(layers: int, width: int, diffusers: bool) -> dict[str, Tensor]:
    state = {}
    for i in range(layers):
        shapes = (
            {"attn1.to_q": (width, width), "attn1.to_v": (width, width), "attn1.to_out.0": (width, width),
             "ff.net.0.proj": (4 * width, width), "ff.net.2": (width, 4 * width)}
            if diffusers else
            {"attn.qkv": (3 * width, width), "attn.proj": (width, width), "mlp.fc1": (4 * width, width),
             "mlp.fc2": (width, 4 * width), "adaLN_modulation.1": (6 * width, width)}
        )  # fmt: skip
        name = f"transformer_blocks.{i}." if diffusers else f"blocks.{i}."
        state |= {f"{name}{key}.weight": torch.randn(shape) for key, shape in shapes.items()}
    return state


def unet2d() -> dict[str, Tensor]:
    state = {}

    def resnet(name: str, inputs: int, outputs: int) -> None:
        state.update({f"{name}.norm1.weight": torch.rand(inputs), f"{name}.conv1.weight": torch.randn(outputs, inputs, 3, 3),
                      f"{name}.time_emb_proj.weight": torch.randn(outputs, 7), f"{name}.norm2.weight": torch.rand(outputs),
                      f"{name}.conv2.weight": torch.randn(outputs, outputs, 3, 3)})  # fmt: skip
        if inputs != outputs:
            state[f"{name}.conv_shortcut.weight"] = torch.randn(outputs, inputs, 1, 1)

    resnet("down_blocks.0.resnets.0", 4, 4)
    resnet("down_blocks.0.resnets.1", 4, 4)
    state["down_blocks.0.downsamplers.0.conv.weight"] = torch.randn(4, 4, 3, 3)
    resnet("down_blocks.1.resnets.0", 4, 8)
    resnet("mid_block.resnets.0", 8, 8)
    resnet("mid_block.resnets.1", 8, 8)
    resnet("up_blocks.0.resnets.0", 8 + 8, 8)  # the second half of the inputs comes over a skip connection
    resnet("up_blocks.0.resnets.1", 8 + 4, 8)
    state["up_blocks.0.upsamplers.0.conv.weight"] = torch.randn(8, 8, 3, 3)
    return {key: state[key] for key in sorted(state)}  # as a safetensors file has them


def matrices(state: dict[str, Tensor], chain: str, head_dim: int | None = None) -> list[Tensor]:
    return [factor.matrix for factor in chain_factors(state, load_chain(chain), head_dim=head_dim)]


@pytest.mark.parametrize("prefix", ["", "transformer."])
def test_gpt2(prefix: str) -> None:
    state = gpt2(2, 64, prefix)
    assert [chain.name for chain in find_chains(state)] == ["gpt2_mlp", "gpt2_ov"]
    first, last = (state[f"{prefix}h.1.mlp.{name}.weight"].double() for name in ("c_fc", "c_proj"))
    gain = torch.diag(state[f"{prefix}h.1.ln_2.weight"].double())
    torch.testing.assert_close(matrices(state, "gpt2_mlp")[1], (gain @ first @ last).T + torch.eye(64))  # x W, as in GPT-2
    value = state[f"{prefix}h.1.attn.c_attn.weight"].double()[:, 128:]
    out = state[f"{prefix}h.1.attn.c_proj.weight"].double()
    gain = torch.diag(state[f"{prefix}h.1.ln_1.weight"].double())
    torch.testing.assert_close(matrices(state, "gpt2_ov")[1], (gain @ value @ out).T + torch.eye(64))
    torch.testing.assert_close(matrices(state, "gpt2_heads", 16)[2:], [(gain @ value).T, out.T])
    for key in [key for key in state if "ln_" in key]:  # a checkpoint without gains
        del state[key]
    torch.testing.assert_close(matrices(state, "gpt2_ov")[1], (value @ out).T + torch.eye(64))
    torch.testing.assert_close(matrices(state, "gpt2_heads", 16)[2:], [value.T, out.T])


@pytest.mark.parametrize("head_dim", [128, 64, 16])
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_llama_with_grouped_queries(kv_heads: int, head_dim: int) -> None:
    state, width = llama(2, 4, kv_heads, head_dim), 4 * head_dim
    assert [chain.name for chain in find_chains(state)] == ["llama_mlp", "llama_ov"]
    up, down = (state[f"model.layers.0.mlp.{name}.weight"].double() for name in ("up_proj", "down_proj"))
    torch.testing.assert_close(matrices(state, "llama_mlp")[0], down @ up + torch.eye(width))
    value, out = (state[f"model.layers.1.self_attn.{name}.weight"].double() for name in ("v_proj", "o_proj"))
    heads = value.view(kv_heads, head_dim, width)
    expected = sum(out[:, h * head_dim : (h + 1) * head_dim] @ heads[h // (4 // kv_heads)] for h in range(4))
    torch.testing.assert_close(matrices(state, "llama_ov", head_dim)[1], expected + torch.eye(width))
    factor = list(chain_factors(state, load_chain("llama_ov"), head_dim=head_dim))[1]
    torch.testing.assert_close((factor.read, factor.write), (value, out))
    assert factor.read_group_size == head_dim
    if kv_heads < 4:  # the weights alone do not say how large a head is
        with pytest.raises(ValueError, match="attention heads of a size that its weights do not say: give head_dim=SIZE"):
            matrices(state, "llama_ov")
        with pytest.raises(ValueError, match=r"no copies of .* rows in heads of 5"):
            matrices(state, "llama_ov", 5)


@pytest.mark.parametrize("model", ["qwen2", "qwen3"])
def test_qwen_has_the_keys_of_a_llama_and_gains_before_its_branches(model: str) -> None:
    """Sizes of Qwen: queries wider than the residual stream in Qwen3, biases in Qwen2, norms of queries and keys in Qwen3."""
    width, head_dim, heads, kv_heads = 48, 16, 4 if model == "qwen3" else 3, 1
    state = {"model.embed_tokens.weight": torch.randn(7, width)}
    for i in range(2):
        name = f"model.layers.{i}."
        shapes = {"self_attn.q_proj": (heads * head_dim, width), "self_attn.k_proj": (kv_heads * head_dim, width),
                  "self_attn.v_proj": (kv_heads * head_dim, width), "self_attn.o_proj": (width, heads * head_dim),
                  "mlp.gate_proj": (96, width), "mlp.up_proj": (96, width), "mlp.down_proj": (width, 96)}  # fmt: skip
        vectors = {"input_layernorm": width, "post_attention_layernorm": width}
        if model == "qwen3":
            vectors |= {"self_attn.q_norm": head_dim, "self_attn.k_norm": head_dim}
        else:
            state |= {f"{name}self_attn.{key}_proj.bias": torch.randn(len(shapes[f"self_attn.{key}_proj"])) for key in "qkv"}
        state |= {f"{name}{key}.weight": torch.randn(shape).bfloat16() for key, shape in shapes.items()}
        state |= {f"{name}{key}.weight": torch.rand(size) for key, size in vectors.items()}
    state |= {"model.norm.weight": torch.rand(width), "lm_head.weight": torch.randn(7, width)}
    assert [chain.name for chain in find_chains(state)] == ["llama_mlp", "llama_ov"]
    own = {key.removeprefix("model.layers.1."): value.double() for key, value in state.items()}
    mlp = list(chain_factors(state, load_chain("llama_mlp"), residual_scale=0.5))[1]
    gain = torch.diag(own["post_attention_layernorm.weight"])
    torch.testing.assert_close(mlp.read, own["mlp.up_proj.weight"] @ gain)
    torch.testing.assert_close(mlp.write, own["mlp.down_proj.weight"])
    torch.testing.assert_close(mlp.matrix, torch.eye(width) + 0.5 * mlp.write @ mlp.read)
    attention = list(chain_factors(state, load_chain("llama_ov"), head_dim=head_dim))[1]
    value = own["self_attn.v_proj.weight"] @ torch.diag(own["input_layernorm.weight"])
    torch.testing.assert_close(attention.read, value)
    torch.testing.assert_close(attention.matrix, own["self_attn.o_proj.weight"] @ value.repeat(heads, 1) + torch.eye(width))
    assert (mlp.dtype, attention.dtype, attention.read_group_size) == (torch.bfloat16, torch.bfloat16, head_dim)


@pytest.mark.parametrize("diffusers", [True, False])
def test_dit(diffusers: bool) -> None:
    state = dit(3, 16, diffusers)
    first, second = ("transformer_blocks.2.ff.net.0.proj", "transformer_blocks.2.ff.net.2") if diffusers else (
        "blocks.2.mlp.fc1", "blocks.2.mlp.fc2")  # fmt: skip
    expected = state[f"{second}.weight"].double() @ state[f"{first}.weight"].double() + torch.eye(16)
    torch.testing.assert_close(matrices(state, "dit_mlp")[2], expected)
    value = state["transformer_blocks.2.attn1.to_v.weight"] if diffusers else state["blocks.2.attn.qkv.weight"][32:]
    out = state["transformer_blocks.2.attn1.to_out.0.weight" if diffusers else "blocks.2.attn.proj.weight"]
    torch.testing.assert_close(matrices(state, "dit_ov")[2], out.double() @ value.double() + torch.eye(16))
    gain = torch.rand(16)  # most have no gain before the branch, as above
    state["transformer_blocks.2.norm1.weight" if diffusers else "blocks.2.norm1.weight"] = gain
    torch.testing.assert_close(matrices(state, "dit_ov")[2], out.double() @ value.double() * gain.double() + torch.eye(16))


def test_the_original_dit_is_told_from_a_vision_transformer() -> None:
    state = dit(3, 16, diffusers=False)
    assert [chain.name for chain in find_chains(state)] == ["dit_mlp", "dit_ov"]
    plain = {key: value for key, value in state.items() if "adaLN" not in key}
    assert [chain.name for chain in find_chains(plain)] == ["vit_mlp", "vit_ov"]


def test_layer_scale_under_its_names() -> None:
    for name in ("ls2.gamma", "gamma_2", "gamma2"):
        state = {f"blocks.{i}.{key}": torch.randn(shape) for i in (0, 1)
                 for key, shape in (("mlp.fc1.weight", (8, 4)), ("mlp.fc2.weight", (4, 8)), (name, (4,)))}  # fmt: skip
        first, second, gain = (state[f"blocks.1.{key}"].double() for key in ("mlp.fc1.weight", "mlp.fc2.weight", name))
        torch.testing.assert_close(matrices(state, "vit_mlp")[1], torch.diag(gain) @ second @ first + torch.eye(4))


def test_unet2d() -> None:
    state = unet2d()
    (chain,) = find_chains(state)
    factors = list(chain_factors(state, chain))
    assert [factor.name for factor in factors] == [
        "down_blocks.0.resnets.0", "down_blocks.0.resnets.1", "down_blocks.0.downsamplers.0", "down_blocks.1.resnets.0",
        "mid_block.resnets.0", "mid_block.resnets.1", "up_blocks.0.resnets.0", "up_blocks.0.resnets.1",
        "up_blocks.0.upsamplers.0",
    ]  # fmt: skip
    for index, name, inputs in ((3, "down_blocks.1.resnets.0", 4), (7, "up_blocks.0.resnets.1", 8)):
        one, two, shortcut = (state[f"{name}.{key}.weight"].double().sum((2, 3)) for key in ("conv1", "conv2", "conv_shortcut"))
        before, between = (torch.diag(state[f"{name}.{key}.weight"].double()) for key in ("norm1", "norm2"))
        expected = two @ between @ one @ before + shortcut
        torch.testing.assert_close(factors[index].matrix, expected[:, :inputs])
        torch.testing.assert_close(factors[index].read, (one @ before)[:, :inputs])
        torch.testing.assert_close(factors[index].write, two)


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


def test_stored_dtype_is_the_coarsest() -> None:
    state = gpt2(2, 8, "")
    assert {factor.dtype for factor in chain_factors(state, load_chain("gpt2_mlp"))} == {torch.float32}
    state["h.1.mlp.c_fc.weight"] = state["h.1.mlp.c_fc.weight"].half()
    assert [factor.dtype for factor in chain_factors(state, load_chain("gpt2_mlp"))] == [torch.float32, torch.float16]
    state["h.1.ln_2.weight"] = state["h.1.ln_2.weight"].bfloat16()
    assert [factor.dtype for factor in chain_factors(state, load_chain("gpt2_mlp"))] == [torch.float32, torch.bfloat16]


def test_blocks_come_in_the_order_of_their_numbers() -> None:
    state = dict(sorted(gpt2(12, 4, "").items()))  # h.10 before h.2
    assert chain_blocks(state, load_chain("gpt2_mlp")) == [f"h.{i}" for i in range(12)]


def test_layers_are_the_last_resort_and_must_compose() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1), nn.Flatten(), nn.Linear(4, 2))
    (chain,) = find_chains(net.state_dict())
    assert chain.name == "layers"
    assert [tuple(factor.matrix.shape) for factor in chain_factors(net.state_dict(), chain)] == [(8, 3), (4, 8), (2, 4)]
    assert find_chains(nn.Sequential(nn.Linear(3, 4), nn.Linear(5, 2)).state_dict()) == []


def test_own_chain_of_regular_expressions(tmp_path: Path) -> None:
    file = tmp_path / "own.yaml"
    file.write_text("""
name: mine
units:
  - block: 'enc\\.(\\d+)'
    order: ['\\1']
    product: ['a\\.weight', {key: 'b\\.weight', transpose: true}]
    group_size: 2
""")
    state = {f"enc.{i}.{key}.weight": torch.randn(6, 4) for i in (1, 0) for key in "ab"}
    chain = load_chain(str(file))
    factors = list(chain_factors(state, chain))
    assert (chain.name, [factor.name for factor in factors]) == ("mine", ["enc.0", "enc.1"])
    torch.testing.assert_close(factors[0].matrix, state["enc.0.b.weight"].double().T @ state["enc.0.a.weight"].double())
    assert factors[0].group_size == 2


@pytest.mark.parametrize("name", builtin_chains())
def test_every_builtin_chain_loads_and_says_what_it_is(name: str) -> None:
    chain = load_chain(name)
    assert chain.name == name
    assert len(chain.description) > 20


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("units: [", "wrong"),
        ("[]", "name, description and units"),
        ("units: [{block: 'a', product: [w], colour: red}]", "unknown colour"),
        ("units: [{block: '(', product: [w]}]", "wrong"),
        ("units: [{block: 'a', product: [{key: w, as: vector}]}]", "diagonal, depthwise or batch_norm"),
        ("units: [{block: 'a', product: [{key: w, twist: 1}]}]", "twist"),
        ("units: [{block: 'a', product: weight}]", "must be a list of keys"),
        ("units: [{block: 'a', product: [{key: w, part: [0, 2]}]}]", "part must be"),
        ("units: [{block: 'a', product: [{key: w, part: [3, 2]}]}]", "part must be"),
        ("units: [{block: 'a', product: [{key: w, optional: true}]}]", "not optional"),
        ("units: [{block: 'a', product: [w], group_size: 0}]", "group_size must be"),
        ("units: [{block: 'a(b)', product: [w], order: ['\\2']}]", "order must hold"),
        ("units: [{block: 'a(b)', product: [w], order: [x]}]", "order must hold"),
        ("units: [{block: 'a'}]", "product"),
        ("units: [{block: 'a', product: [{as: diagonal}]}]", "key"),
        ("units: [{block: 'a', product: [{key: w, root: true}]}]", "of the block's own"),
        ("units: [{block: 'a', product: [w], shortcut: sometimes}]", "shortcut must be identity, identity_if_square or"),
        ("units: [{block: 'a', product: [w], copies: 0}]", "copies must be a whole number"),
        ("units: [{block: 'a', product: [w], where: '('}]", "wrong"),
        ("units: [{block: 'a', product: [{key: w, interleaved: true}]}]", "interleaved needs part"),
    ],
)
def test_wrong_chain_files_are_refused_in_one_line(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "own.yaml"
    file.write_text(text)
    with pytest.raises(ValueError, match=said) as caught:
        load_chain(str(file))
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("state", "chain", "said"),
    [
        ({"a.weight": torch.randn(4, 3), "b.weight": torch.randn(2, 5)}, "layers",
         r"b has shape \(2, 5\) .* takes 5 inputs, a before it has shape \(4, 3\) and gives 4 outputs"),
        ({"a.weight": torch.randn(4, 3)}, "layers", "at least two blocks"),
        ({"x": torch.randn(3)}, "gpt2_mlp", "at least two blocks"),
        ({f"h.{i}.mlp.c_fc.weight": torch.randn(4, 8) for i in (0, 1)}, "gpt2_mlp", "h.0 has no weight mlp.*c_proj"),
        ({f"h.{i}.mlp.{k}.weight": torch.randn(4, 8) for i in (0, 1) for k in ("c_fc", "c_proj")}, "gpt2_mlp",
         r"c_proj.weight has shape \(8, 4\).*does not compose with the 8 outputs"),
        ({"a.weight": torch.tensor([[1.0, float("nan")]]), "b.weight": torch.randn(2, 1)}, "layers", "a.weight must be finite"),
        ({"a.weight": torch.ones(2, 2, dtype=torch.int8), "b.weight": torch.randn(2, 2)}, "layers", "must hold floating-point"),
        ({f"layer1.{i}.{k}": v for i in (0, 1) for k, v in (("conv1.weight", torch.randn(2, 2, 1, 1)),
          ("bn1.running_var", torch.tensor([1.0, -1.0])))}, "resnet", "layer1.0.bn1.running_var must be >= 0, got -1"),
        ({f"blocks.{i}.mlp.fc{j}.weight": torch.randn(*s) for i in (0, 1) for j, s in ((1, (8, 4)), (2, (6, 8)))}, "vit_mlp",
         "identity shortcut but is .6, 4."),
        ({f"blocks.{i}.{j}.{k}": v for i in (0, 1) for j in (0, 1) for k, v in (("conv.weight", torch.randn(4, 2, 1, 1)),
          ("bn1.running_var", torch.ones(3)))}, "mbconv", "has 4 outputs, and its batch norm bn1 3 gains"),
        ({f"layers.{i}.{k}": torch.randn(*s) for i in (0, 1) for k, s in [("downsample.reduction.weight", (4, 6))]}, "swin_mlp",
         "takes 6 inputs, which are no 4 copies"),
        (gpt2(2, 8, ""), "vit_mlp", "at least two blocks"),
    ],
)  # fmt: skip
def test_weights_that_do_not_fit_are_refused_in_one_line(state: dict[str, Tensor], chain: str, said: str) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        list(chain_factors(state, load_chain(chain)))
    assert "\n" not in str(caught.value)


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match=r"head_dim must divide the 8 value rows of h\.0, got 3"):
        list(chain_factors(gpt2(2, 8, ""), load_chain("gpt2_ov"), head_dim=3))
    with pytest.raises(ValueError, match="residual_scale must be finite, got nan"):
        list(chain_factors(gpt2(2, 8, ""), load_chain("gpt2_ov"), residual_scale=float("nan")))


def test_unknown_chain_lists_the_choices() -> None:
    with pytest.raises(ValueError, match=r"choose one of .*gpt2_mlp.*resnet.*NAME.yaml"):
        load_chain("resnet51")
    with pytest.raises(ValueError, match="cannot be read"):
        load_chain("nowhere.yaml")


def test_weights_tap_by_tap() -> None:
    state = {"c.weight": torch.randn(4, 3, 2, 2).half(), "c.bias": torch.randn(4), "n.weight": torch.randn(4),
             "l.weight": torch.randn(5, 4), "count.weight": torch.ones(2, 2, dtype=torch.int64)}  # fmt: skip
    found = dict(weight_matrices(state))
    assert {name: tuple(taps.shape) for name, taps in found.items()} == {"c": (4, 4, 3), "l": (1, 5, 4)}
    assert torch.equal(found["c"][3], state["c.weight"][:, :, 1, 1])
