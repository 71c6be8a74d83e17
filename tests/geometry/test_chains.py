"""Chains read from state dicts with the real key names of language and diffusion models, the format of chain files, errors."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from gch_bench.geometry.chain_format import builtin_chains, load_chain
from gch_bench.geometry.chains import chain_blocks, chain_factors, find_chains, weight_matrices


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


@pytest.mark.parametrize("prefix", ["", "bert."])
def test_bert_has_the_gain_of_its_norm_behind_the_block(prefix: str) -> None:
    state = {}
    for i in (0, 1):
        shapes = {"attention.self.query": (16, 16), "attention.self.value": (16, 16), "attention.output.dense": (16, 16),
                  "attention.output.LayerNorm": (16,), "intermediate.dense": (64, 16), "output.dense": (16, 64),
                  "output.LayerNorm": (16,)}  # fmt: skip
        state |= {f"{prefix}encoder.layer.{i}.{key}.weight": torch.randn(shape) for key, shape in shapes.items()}
    assert [chain.name for chain in find_chains(state)] == ["bert_mlp", "bert_ov"]
    own = {key.removeprefix(f"{prefix}encoder.layer.1."): value.double() for key, value in state.items()}
    for chain, first, last, norm in (
        ("bert_mlp", "intermediate.dense", "output.dense", "output.LayerNorm"),
        ("bert_ov", "attention.self.value", "attention.output.dense", "attention.output.LayerNorm"),
    ):
        factor = list(chain_factors(state, load_chain(chain), head_dim=8, residual_scale=2.0))[1]
        gain = torch.diag(own[f"{norm}.weight"])
        write = gain @ own[f"{last}.weight"]
        torch.testing.assert_close((factor.read, factor.write), (own[f"{first}.weight"], write))
        torch.testing.assert_close(factor.matrix, gain + 2 * factor.write @ factor.read)


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
