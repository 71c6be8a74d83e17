"""Chains read from state dicts with the real key names, against the operators themselves: modules run on constant maps."""

from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor, nn

from gch_bench.geometry.chain_format import builtin_chains, load_chain
from gch_bench.geometry.chains import chain_blocks, chain_factors, find_chains, weight_matrices


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


def chained(*functions: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def apply(rows: Tensor) -> Tensor:
        for function in functions:
            rows = function(rows)
        return rows

    return apply


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
    assert [factor.name for factor in factors] == [f"layer{i}.{j}" for i in (1, 2, 3, 4) for j in range(len(network.layer1))]
    for factor in factors:
        block = network.get_submodule(factor.name)
        steps = [step for i in (1, 2, 3) if hasattr(block, f"conv{i}")
                 for step in (at_dc(getattr(block, f"conv{i}")), bn(getattr(block, f"bn{i}")))]  # fmt: skip
        expected = columns(chained(*steps), block.conv1.in_channels)
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
    factors = {factor.name: factor.matrix for factor in chain_factors(network.state_dict(), chain)}
    expected_order = ["stages.0.blocks.0", "stages.1.downsample", "stages.1.blocks.0", "stages.1.blocks.1",
                      "stages.2.downsample", "stages.2.blocks.0", "stages.3.downsample", "stages.3.blocks.0"]  # fmt: skip
    assert list(factors)[-7:] == expected_order[-7:]
    block = network.stages[1].blocks[1]
    taps = block.conv_dw.weight.double().sum((1, 2, 3))
    first, second = block.mlp.fc1.weight.double().flatten(1), block.mlp.fc2.weight.double().flatten(1)
    expected = torch.eye(8) + torch.diag(block.gamma.double()) @ second @ first @ torch.diag(block.norm.weight.double() * taps)
    torch.testing.assert_close(factors["stages.1.blocks.1"], expected)
    down = network.stages[2].downsample
    expected = down[1].weight.double().sum((2, 3)) @ torch.diag(down[0].weight.double())
    torch.testing.assert_close(factors["stages.2.downsample"], expected)


def test_vision_transformer_equals_its_linear_maps() -> None:
    network = timm.create_model("vit_tiny_patch16_224", depth=2, embed_dim=32, num_heads=2, num_classes=3, img_size=32).double()
    chains = find_chains(network.state_dict())
    assert [chain.name for chain in chains] == ["vit_mlp", "vit_ov"]
    mlp, attention = ([factor.matrix for factor in chain_factors(network.state_dict(), chain)] for chain in chains)
    block = network.blocks[1]
    torch.testing.assert_close(mlp[1], columns(chained(block.mlp.fc1, block.mlp.fc2), 32) + torch.eye(32))
    # Attention over copies of one token gives each the value itself: the whole layer is then W_O W_V, softmax or not.
    constant = columns(lambda rows: block.attn(rows[:, None].expand(-1, 5, -1))[:, 2], 32)
    torch.testing.assert_close(attention[1], constant + torch.eye(32))
    heads = list(chain_factors(network.state_dict(), load_chain("vit_heads"), head_dim=16))
    torch.testing.assert_close(heads[3].matrix @ heads[2].matrix, attention[1] - torch.eye(32))
    assert [factor.group_size for factor in heads] == [16, None, 16, None]


def gpt2(layers: int, width: int, prefix: str) -> dict[str, Tensor]:
    state = {f"{prefix}wte.weight": torch.randn(11, width)}
    for i in range(layers):
        name = f"{prefix}h.{i}."
        shapes = {"ln_1": (width,), "attn.c_attn": (width, 3 * width), "attn.c_proj": (width, width),
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
    resnet("up_blocks.0.resnets.0", 16, 8)
    return {key: state[key] for key in sorted(state)}  # as a safetensors file has them


def matrices(state: dict[str, Tensor], chain: str, head_dim: int | None = None) -> list[Tensor]:
    return [factor.matrix for factor in chain_factors(state, load_chain(chain), head_dim=head_dim)]


@pytest.mark.parametrize("prefix", ["", "transformer."])
def test_gpt2(prefix: str) -> None:
    state = gpt2(2, 64, prefix)
    assert [chain.name for chain in find_chains(state)] == ["gpt2_mlp", "gpt2_ov"]
    first, last = (state[f"{prefix}h.1.mlp.{name}.weight"].double() for name in ("c_fc", "c_proj"))
    torch.testing.assert_close(matrices(state, "gpt2_mlp")[1], (first @ last).T + torch.eye(64))  # x W, as GPT-2 multiplies
    value = state[f"{prefix}h.1.attn.c_attn.weight"].double()[:, 128:]
    out = state[f"{prefix}h.1.attn.c_proj.weight"].double()
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
    if kv_heads < 4:  # the weights alone do not say how large a head is
        with pytest.raises(ValueError, match="attention heads of a size that its weights do not say: give head_dim=SIZE"):
            matrices(state, "llama_ov")
        with pytest.raises(ValueError, match=r"no copies of .* rows in heads of 5"):
            matrices(state, "llama_ov", 5)


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


def test_unet2d_down_path_and_middle() -> None:
    state = unet2d()
    (chain,) = find_chains(state)
    assert chain_blocks(state, chain) == [
        "down_blocks.0.resnets.0", "down_blocks.0.resnets.1", "down_blocks.0.downsamplers.0", "down_blocks.1.resnets.0",
        "mid_block.resnets.0", "mid_block.resnets.1",
    ]  # fmt: skip
    name = "down_blocks.1.resnets.0"
    one, two, shortcut = (state[f"{name}.{key}.weight"].double().sum((2, 3)) for key in ("conv1", "conv2", "conv_shortcut"))
    expected = two @ torch.diag(state[f"{name}.norm2.weight"].double()) @ one + shortcut
    torch.testing.assert_close(matrices(state, "unet2d")[3], expected)


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
    ],
)  # fmt: skip
def test_weights_that_do_not_fit_are_refused_in_one_line(state: dict[str, Tensor], chain: str, said: str) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        list(chain_factors(state, load_chain(chain)))
    assert "\n" not in str(caught.value)


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
