"""What is measured of gates and of activations, against plain loops and against theory; a wrong theory is flagged."""

import math

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from scipy import stats
from tinynet import tinynet
from torch import nn

from gch_bench.apps.compatibility.bench import Bench, noisy_passes, open_stage
from gch_bench.apps.compatibility.gates import gate_rows, named_pairs
from gch_bench.apps.compatibility.measure import effective_rank, measure, pairs_of
from gch_bench.apps.compatibility.stage import StageResult, examine
from gch_bench.noise import (
    Additive,
    DirichletGreen,
    Gate,
    Gaussian,
    GaussianChaosNoise,
    HardMask,
    Mechanism,
    White,
    make_mechanism,
    theory,
)
from gch_bench.noise.dropout import DropBlock, Dropout, SpatialDropout
from gch_bench.noise.strength import draw_gates
from gch_bench.results.compatibility import AGREES, DISAGREES, MEASURED, NOT_APPLICABLE, frame, judged

MECHANISMS: dict[str, Mechanism] = {
    "gch": GaussianChaosNoise(),
    "wick": GaussianChaosNoise(0.7, normalization="wick"),
    "strong wick": GaussianChaosNoise(3.0, normalization="wick"),
    "inside": GaussianChaosNoise(boundary="inside"),
    "lognormal": Gate(White(4.0), 1.0, "wick"),
    "per channel": Gate(DirichletGreen(), 0.7, "wick", per_channel=True),
    "gaussian": Gaussian(White(), 0.5, per_channel=True),
    "green gaussian": Gaussian(DirichletGreen(), 0.5),
    "dropout": Dropout(0.3),
    "spatial dropout": SpatialDropout(0.3),
    "dropblock": DropBlock(0.2, 2),
    "white hard mask": HardMask(White(), 0.3),
    "hard mask": HardMask(DirichletGreen(), 0.3),
    "additive": Additive(Gaussian(White(), 0.3)),
    "additive green": Additive(Gaussian(DirichletGreen(match_variance=True), 0.3)),
    "channel rms": Additive(Gaussian(White(), 0.3, per_channel=True), channel_rms=True),
    "additive gch": make_mechanism("samplewise", "dirichlet_green", {}, "additive"),
}


def net() -> nn.Module:
    """A network whose stage "late" has a 6 x 6 map of positive values, and some values that are not."""
    torch.manual_seed(0)
    network = tinynet(10).eval()
    network.late[1].bias.data.fill_(0.7)
    return network


@pytest.fixture(scope="module")
def bench() -> Bench:
    torch.manual_seed(1)
    return open_stage(net(), "late", torch.randn(40, 3, 48, 48))


def run(bench: Bench, mechanism: Mechanism, passes: int = 24) -> StageResult:
    return examine(bench, pairs_of(bench.map_MCHW), mechanism, "name", passes, 4096, seed=0)


@pytest.mark.parametrize("name", MECHANISMS)
def test_measurements_agree_with_theory(name: str, bench: Bench) -> None:
    """On real activations of a network, as placed; all statements that apply are compared, and none disagrees."""
    found = run(bench, MECHANISMS[name])
    table = judged(found.rows)
    assert not (table["verdict"] == DISAGREES).any(), table[table["verdict"] == DISAGREES].to_string()
    compared = table[table["p_value"].notna()]
    assert len(compared) >= 2
    assert (table[table["verdict"] == NOT_APPLICABLE]["note"] != "").all(), "a statement that does not apply says why"
    known = name not in ("gch", "inside", "hard mask", "additive gch")
    known &= name != "strong wick"  # its tails are too heavy for a test
    assert (compared["quantity"] == "squared distortion of the map").any() == known
    exact = name not in ("hard mask", "additive gch")
    assert (compared["quantity"] == "order lost").any() == exact
    # What is added sums to 0 over the sites, and the network pools them: it never reaches the logits.
    assert found.summary["survives"] == (name != "additive gch")


@pytest.mark.parametrize(
    ("function", "names"),
    [("log_ratio_variance", ["gch", "wick"]), ("edge_roughness", ["gch", "wick"]), ("log_ratio_mean", ["strong wick"])],
)
def test_a_wrong_closed_form_is_flagged(function: str, names: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A factor of 1.25 on one closed form, at 4,096 draws."""
    right = getattr(theory, function)
    monkeypatch.setattr(theory, function, lambda *arguments: 1.25 * right(*arguments))
    for name in names:
        mechanism = MECHANISMS[name]
        table = judged(frame(gate_rows(mechanism, draw_gates(mechanism, 6, 6, 4096))))
        assert (table["verdict"] == DISAGREES).any(), name


def test_wrong_moments_are_flagged(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The network's noise is dropout with p = 0.3, theory is asked about p = 0.33."""
    right, other = Dropout.moments, Dropout(0.33)
    monkeypatch.setattr(Dropout, "moments", lambda mechanism, *of: right(other, *of))
    monkeypatch.setattr(Dropout, "drop_probability", lambda *of: torch.full((36,), 0.33).double())
    table = judged(run(bench, Dropout(0.3), passes=60).rows)
    wrong = set(table[table["verdict"] == DISAGREES]["quantity"])
    assert {"squared distortion of the map", "squared distortion of the pooled feature", "order lost"} <= wrong


def test_quantities_are_those_of_plain_loops(bench: Bench) -> None:
    mechanism, pairs = MECHANISMS["dropout"], pairs_of(bench.map_MCHW)
    passes = list(noisy_passes(bench, mechanism, 2, seed=3))
    measured = measure(bench, pairs, iter(passes))
    assert not torch.equal(passes[0].map_MCHW, passes[1].map_MCHW)
    for t, i in ((0, 0), (1, 7), (1, 39)):
        clean, noisy = (each[i].double().flatten(1).numpy() for each in (bench.map_MCHW, passes[t].map_MCHW))  # (C, N)
        pooled, pooled_noisy = clean.mean(1), noisy.mean(1)
        assert measured.map[t, i] == pytest.approx(((noisy - clean) ** 2).sum() / (clean**2).sum())
        assert measured.pooled[t, i] == pytest.approx(((pooled_noisy - pooled) ** 2).sum() / (pooled**2).sum())
        cosine = pooled @ pooled_noisy / np.linalg.norm(pooled) / np.linalg.norm(pooled_noisy)
        assert measured.cosine[t, i] == pytest.approx(cosine)
        spread = [((each - each.mean(1, keepdims=True)) ** 2).sum() for each in (noisy, clean)]
        assert measured.contrast[t, i] == pytest.approx(spread[0] / spread[1], rel=1e-4)
        logits, noisy_logits = (each[i].numpy() for each in (bench.logits_MK, passes[t].logits_MK))
        assert measured.logits[t, i] == pytest.approx(((noisy_logits - logits) ** 2).sum() / (logits**2).sum())
        assert measured.flipped[t, i] == (logits.argmax() != noisy_logits.argmax())
        for k in range(0, 2048, 160):
            c, x, y = (int(each[i, k]) for each in (pairs.channel, pairs.first, pairs.second))
            assert bool(pairs.valid[i, k]) == (clean[c, x] > clean[c, y] > 0)
            assert bool(measured.destroyed[t, i, k]) == (noisy[c, x] <= noisy[c, y])
            if pairs.valid[i, k] and min(noisy[c, x], noisy[c, y]) > 0:
                change = math.log(noisy[c, x] / noisy[c, y]) - math.log(clean[c, x] / clean[c, y])
                assert measured.ratio[t, i, k] == pytest.approx(change, abs=1e-5)


def test_the_noisy_map_is_the_mechanisms(bench: Bench) -> None:
    """The map after the hook is the clean one times the gate of the image's key; the logits are those of the rest of it."""
    mechanism = MECHANISMS["gch"]
    (first,) = noisy_passes(bench, mechanism, 1, seed=0)
    gate = first.map_MCHW / bench.map_MCHW
    channels = torch.where(bench.map_MCHW > 1e-3, gate, torch.nan)
    torch.testing.assert_close(channels.nanmean((1, 2, 3)), torch.ones(40), atol=0.15, rtol=0)
    reference = channels.nanmedian(1).values[:, None]
    assert float((channels - reference).abs().nan_to_num().max()) < 1e-3, "one gate for all channels"
    rest = nn.Sequential(*list(bench.network.children())[3:])
    torch.testing.assert_close(rest(first.map_MCHW).double(), first.logits_MK, atol=1e-5, rtol=1e-4)
    assert bench.trunk is not None
    assert not bench.network.late._forward_hooks, "the network is left as it was"


def test_effective_rank() -> None:
    """Orthogonal equal sites: as many as there are; parallel sites: 1 (Roy and Vetterli's examples)."""
    equal = torch.eye(4).view(1, 4, 2, 2)
    assert float(effective_rank(equal)[0]) == pytest.approx(4)
    assert float(effective_rank(torch.ones(1, 5, 2, 3))[0]) == pytest.approx(1, abs=1e-4)
    values = torch.tensor([3.0, 1.0])
    share = values / values.sum()
    rank = effective_rank(torch.diag(values).view(1, 2, 2, 1))[0]
    assert float(rank) == pytest.approx(math.exp(stats.entropy(share.numpy())))


@pytest.mark.parametrize(("height", "width", "count"), [(1, 1, 0), (1, 2, 2), (2, 2, 4), (7, 7, 4), (1, 5, 4)])
def test_named_pairs_are_different_sites(height: int, width: int, count: int) -> None:
    pairs = named_pairs(height, width)
    assert len(set(pairs.values())) == len(pairs) == count
    assert all(0 <= x != y < height * width for x, y in pairs.values())


@pytest.mark.parametrize("shape", [(1, 1), (1, 6), (2, 2)])
@pytest.mark.parametrize("name", ["gch", "wick", "dropout", "hard mask", "additive", "dropblock"])
def test_small_maps(name: str, shape: tuple[int, int]) -> None:
    mechanism = MECHANISMS[name]
    table = judged(frame(gate_rows(mechanism, draw_gates(mechanism, *shape, 512))))
    assert not (table["verdict"] == DISAGREES).any(), table[table["verdict"] == DISAGREES].to_string()


@pytest.mark.parametrize(
    ("mechanism", "gates"),
    [
        (Dropout(0.001), 4096), (Dropout(0.9999), 4096), (SpatialDropout(0.001), 256), (HardMask(White(), 0.03), 256),
        (GaussianChaosNoise(50.0), 512), (GaussianChaosNoise(20.0, normalization="wick"), 512),
        (GaussianChaosNoise(3.0, normalization="wick"), 512), (Gate(White(), 2.0, "wick"), 512),
        (GaussianChaosNoise(1e-3), 512),
    ],
    ids=str,
)  # fmt: skip
def test_extreme_strengths_are_no_disagreement(mechanism: Mechanism, gates: int) -> None:
    """Events that are too rare to be seen, exponentials beyond float32, and heavy tails."""
    table = judged(frame(gate_rows(mechanism, draw_gates(mechanism, 7, 7, gates))))
    wrong = table[(table["verdict"] == DISAGREES) & ~table["quantity"].isin(["singular share", "drop rate"])]
    assert wrong.empty, wrong.to_string()
    underflow = getattr(mechanism, "gamma", 0) >= 20  # gates that are 0 in float32 are singular, whatever theory says
    assert (table["verdict"] == DISAGREES).any() <= underflow


def test_contrast_on_one_site_does_not_apply() -> None:
    opened = open_stage(net(), "late", torch.randn(16, 3, 8, 8))
    assert opened.map_MCHW.shape[2:] == (1, 1)
    table = judged(run(opened, MECHANISMS["lognormal"], passes=2).rows)
    made = table[table["quantity"] == "amplification of the contrast between sites"].iloc[0]
    assert (made["verdict"], made["note"]) == (NOT_APPLICABLE, "the sites of some images do not differ")


def test_intervals_without_theory_cover_over_images(bench: Bench) -> None:
    """Intervals from two passes hold the mean over many passes on the same images; they are wider, being about images, too."""
    mechanism = MECHANISMS["gch"]
    truth = run(bench, mechanism, passes=60).rows.query("quantity == 'squared distortion of the map'")["measured"].iloc[0]
    hits = 0
    for seed in range(40):
        found = examine(bench, pairs_of(bench.map_MCHW), mechanism, "name", 2, 256, seed=seed).rows
        made = found.query("quantity == 'squared distortion of the map'").iloc[0]
        hits += made["low"] <= truth <= made["high"]
    assert hits >= 34, "40 intervals of at least 95%"


def test_normalisation_after_the_stage_removes_a_gate() -> None:
    """The gate is cancelled by a LayerNorm of each site: it does not survive to the logits."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stage, self.head = nn.Conv2d(3, 16, 4, stride=4), nn.Linear(16, 5)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            sites = self.stage(images).flatten(2).mT
            return self.head(torch.nn.functional.layer_norm(sites, (16,), eps=1e-12).mean(1))

    torch.manual_seed(0)
    opened = open_stage(Net(), "stage", torch.randn(16, 3, 20, 20))
    found = run(opened, MECHANISMS["gch"], passes=2)
    assert not found.summary["survives"]
    assert found.summary["surviving_share"] < 1e-4
    assert run(opened, MECHANISMS["dropout"], passes=2).summary["survives"]


def test_batchnorm_inflation_is_measured(bench: Bench) -> None:
    """The stage's own channels: with theory; the network has no BatchNorm after it, the other stage has one."""
    wanted = "variance inflation of the stage's channels"
    rows = run(bench, MECHANISMS["dropout"], passes=8).rows
    made = rows[rows["quantity"] == wanted].iloc[0]
    assert made["measured"] == pytest.approx(made["theory"], rel=0.03)
    assert made["measured"] > 1.2
    assert (rows[rows["note"] == "no BatchNorm follows the stage"]["section"] == "norm").all()
    early = open_stage(net(), "early", bench.images[:16])
    rows = run(early, GaussianChaosNoise(2.0), passes=2).rows
    first = rows[rows["quantity"] == "BatchNorm inflation, first"].iloc[0]
    assert (first["at"], first["measured"] > 1.1) == ("late.1", True)


@pytest.mark.parametrize(
    ("law", "kernel", "injection"),
    [("bernoulli", "", "attention"), ("hard_mask", "white", "removal"), ("bernoulli_sample", "", "branch")],
)
@pytest.mark.parametrize("stage", ["L2", "L4"])
def test_noise_inside_a_stage_of_tokens(law: str, kernel: str, injection: str, stage: str) -> None:
    torch.manual_seed(0)
    network = timm.create_model("vit_tiny_patch16_224", img_size=64, num_classes=5, depth=3).eval()
    nn.init.normal_(network.head.weight)
    opened = open_stage(network, stage, torch.randn(8, 3, 64, 64))
    found = run(opened, make_mechanism(law, kernel, {"p": 0.5}, injection), passes=2)
    assert found.summary["survives"]
    table = judged(found.rows)
    inside = table[table["quantity"] == "features"]
    assert set(inside["verdict"]) == {NOT_APPLICABLE}
    assert set(inside["note"]) == {"this noise acts inside the stage, not on its output"}
    assert (table[table["quantity"] == "top class flips"]["verdict"] == MEASURED).all()
    assert not any(module._forward_pre_hooks for module in network.modules())


def test_tables_fit_together(bench: Bench) -> None:
    found = run(bench, MECHANISMS["gch"], passes=2)
    labels = ["stage", "module", "height", "width", "mechanism"]
    assert list(found.rows.columns[:5]) == list(found.images.columns[:5]) == list(found.summary)[:5] == labels
    assert len(found.images) == 40
    assert isinstance(found.images, pd.DataFrame)
    shares = found.images[["coherence", "positivity", "flips"]]
    assert ((shares >= 0) & (shares <= 1)).all().all()
    assert AGREES in set(judged(found.rows)["verdict"])
