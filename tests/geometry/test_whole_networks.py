"""`diagnose(model)` against the same steps by hand, on networks, state dicts and what no chain fits."""

import itertools
import math
from pathlib import Path

import pandas as pd
import pytest
import timm
import torch
from geometry_chains import QUICK
from torch import nn

from gch_bench.config.diagnosis import SpectralConfig
from gch_bench.geometry.analysis import Options, analyse
from gch_bench.geometry.chain_format import load_chain
from gch_bench.geometry.chains import chain_factors, for_network, weight_matrices
from gch_bench.geometry.network import Frames, head_dim_of
from gch_bench.geometry.weights import weight_table
from gch_bench.spectral import diagnose


@pytest.fixture(scope="module")
def transformer() -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model("vit_tiny_patch16_224", embed_dim=16, depth=3, num_heads=2, img_size=32, num_classes=5)


def resnet() -> nn.Module:
    torch.manual_seed(0)
    network = timm.create_model("resnet18", channels=[4, 4, 8, 8], num_classes=7, zero_init_last=False)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 0.3
    return network


def test_a_network_by_hand(transformer: nn.Module) -> None:
    found = diagnose(transformer, options=QUICK)
    assert isinstance(found, Frames)
    assert list(found.summary["chain"]) == ["vit_mlp", "vit_ov"]
    state = transformer.state_dict()
    for name, own in found.factors.groupby("chain"):
        chain = load_chain(str(name))
        by_hand = analyse(chain_factors(state, chain, head_dim=8), chain.name, chain.description, QUICK)
        pd.testing.assert_frame_equal(own.reset_index(drop=True), by_hand.factors)
        for table in ("interfaces", "certificates", "channels", "columns", "edges", "spectra"):
            whole = getattr(found, table)
            pd.testing.assert_frame_equal(whole[whole["chain"] == name].reset_index(drop=True), getattr(by_hand, table))
        row = found.summary.set_index("chain").loc[name]
        assert row[list(by_hand.summary)].to_dict() == pytest.approx(by_hand.summary, nan_ok=True)
    pd.testing.assert_frame_equal(found.weights, weight_table(weight_matrices(state)))


def test_a_state_dict_has_what_its_network_does_not_add(transformer: nn.Module) -> None:
    of_network = diagnose(transformer, "vit_mlp", options=QUICK)
    of_state = diagnose(transformer.state_dict(), "vit_mlp", options=QUICK)
    for one, other in zip(of_network, of_state, strict=True):
        pd.testing.assert_frame_equal(one, other)


def test_the_network_says_the_eps_of_its_norms() -> None:
    network = resnet()
    chain = load_chain("resnet")
    quick = Options(SpectralConfig(weights=False), QUICK.alignment)
    by_hand = analyse(chain_factors(network.state_dict(), for_network(chain, network)), "resnet", "", quick)
    found, plain = diagnose(network, options=quick), diagnose(network.state_dict(), options=quick)
    pd.testing.assert_frame_equal(found.factors, by_hand.factors)
    assert found.weights.empty
    norms = found.factors["norm"] / plain.factors["norm"]
    assert norms.min() < 0.95  # batch norms divide by the root of variance + eps


def test_a_network_that_is_aligned_on_purpose() -> None:
    """Random weights are within chance; a part of fc1 that reads what the block before writes most is found."""
    torch.manual_seed(1)
    network = timm.create_model("vit_tiny_patch16_224", embed_dim=32, depth=6, num_heads=2, img_size=32, num_classes=5)
    options = Options(SpectralConfig(weights=False), QUICK.alignment)
    before = diagnose(network, "vit_mlp", options=options)
    with torch.no_grad():
        for one, other in itertools.pairwise(network.blocks):
            direction = torch.linalg.svd(one.mlp.fc2.weight).U[:, 0]
            planted = torch.outer(torch.randn(len(other.mlp.fc1.weight)), direction)
            other.mlp.fc1.weight += planted * other.mlp.fc1.weight.norm() / planted.norm()
    after = diagnose(network, "vit_mlp", options=options)
    rows = [each.interfaces.query("form == 'branch' and second != 'head'") for each in (before, after)]
    assert [len(each) for each in rows] == [5, 5]
    for name in ("energy_gain_z", "slack_ratio_z", "angle_excess_z"):
        assert rows[0][name].abs().max() < 3.5, name
    assert (rows[0]["energy_gain_percentile"] >= 97.5).sum() <= 1
    assert rows[1]["energy_gain_z"].min() > 5
    assert rows[1]["slack_ratio_z"].max() < -5
    assert (rows[1]["energy_gain_percentile"] == 100).all()
    assert after.summary["aligned_share"][0] >= 5 / 6


def test_options_arrive(transformer: nn.Module) -> None:
    scaled = Options(SpectralConfig(residual_scale=0.01, weights=False), QUICK.alignment)
    near = diagnose(transformer, "vit_mlp", options=scaled).factors
    far = diagnose(transformer, "vit_mlp", options=scaled._replace(spectral=SpectralConfig(weights=False))).factors
    ratio = near["identity_distance"].iloc[:3] / far["identity_distance"].iloc[:3]
    assert ratio.to_list() == pytest.approx([0.01] * 3)


def test_heads() -> None:
    class Head(nn.Module):
        dim_head = 4

    assert head_dim_of(nn.Sequential(nn.Linear(2, 2), Head())) == 4
    assert head_dim_of(nn.Linear(2, 2)) is None


def test_grouped_queries_need_the_size_of_a_head() -> None:
    shapes = {"self_attn.q_proj": (16, 16), "self_attn.k_proj": (8, 16), "self_attn.v_proj": (8, 16),
              "self_attn.o_proj": (16, 16), "mlp.gate_proj": (24, 16), "mlp.up_proj": (24, 16),
              "mlp.down_proj": (16, 24)}  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    state = {
        f"model.layers.{i}.{key}.weight": torch.randn(shape, generator=generator)
        for i in range(2)
        for key, shape in shapes.items()
    }
    with pytest.raises(ValueError, match=r"^[^\n]*give head_dim=SIZE$"):
        diagnose(state, chain="llama_ov", options=QUICK)
    with pytest.warns(UserWarning, match="^chain llama_ov was left out: .*give head_dim=SIZE$"):
        assert set(diagnose(state, options=QUICK).summary["chain"]) == {"llama_mlp"}
    found = diagnose(state, options=QUICK, head_dim=4)
    assert set(found.summary["chain"]) == {"llama_mlp", "llama_ov"}


def test_what_cannot_be_diagnosed_is_refused(transformer: nn.Module, tmp_path: Path) -> None:
    odd = {"a.weight": torch.randn(4, 3), "b.weight": torch.randn(4, 3)}
    with pytest.raises(
        ValueError,
        match=r"^no built-in chain fits these weights .first keys: a.weight, b.weight.: give chain='NAME\.yaml'[^\n]*$",
    ):
        diagnose(odd)
    with pytest.raises(ValueError, match=r"^chain resnet needs at least two blocks[^\n]*$"):
        diagnose(odd, "resnet")
    with pytest.raises(ValueError, match=r"^unknown chain 'resnet51': choose one of[^\n]*$"):
        diagnose(transformer, "resnet51")
    with pytest.raises(ValueError, match=r"^chain file [^\n]*nowhere\.yaml cannot be read[^\n]*$"):
        diagnose(transformer, str(tmp_path / "nowhere.yaml"))
    state, key = transformer.state_dict(), "blocks.1.mlp.fc1.weight"
    bad = state[key].clone()
    bad[0, 0] = math.nan
    with pytest.raises(ValueError, match=f"^{key} must be finite, got 1 NaN or infinite values$"):
        diagnose(state | {key: bad}, "vit_mlp")
