"""Config -> network: warnings, weights, and what is refused."""

import json
import logging
import logging.handlers
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from tinynet import tinynet

from gch_bench.config.run import ModelConfig, NoiseConfig
from gch_bench.errors import UserError
from gch_bench.model.build import build, build_network
from gch_bench.model.weights import load_weights

NONE = NoiseConfig("none", None)
GCH = NoiseConfig("gch", "samplewise", gamma=1.0, beta=1.0, boundary="outside")
MODELS = ["resnet18", "mobilenetv3_large_100", "vit_small_patch16_224", "swin_tiny_patch4_window7_224"]


@pytest.mark.parametrize("name", MODELS)
def test_options_a_backbone_has_no_word_for_are_left_out(name: str) -> None:
    built = build(ModelConfig(name, output_stride=16), GCH, num_classes=7, size=64)
    assert built.network(torch.zeros(2, 3, 64, 64)).shape == (2, 7)
    assert [stage.stage for stage in built.stages] == ["L4"]
    assert (name == "mobilenetv3_large_100") == any("output_stride" in warning for warning in built.warnings)


def test_normalisation_is_the_backbones_own() -> None:
    assert build(ModelConfig("vit_small_patch16_224"), NONE, 10, 64).normalisation.mean == (0.5, 0.5, 0.5)
    assert build(ModelConfig("resnet18"), NONE, 10, 64).normalisation.std == (0.229, 0.224, 0.225)


def test_noise_that_does_nothing_is_refused() -> None:
    with pytest.raises(UserError) as error:
        build(ModelConfig("resnet18"), GCH, 10, 32)
    for part in ("data.size=32", "noise=gch", "L4 (layer4)", "1x1", "IDENTITY", "larger images", "output stride"):
        assert part in str(error.value)
    (stage,) = build(ModelConfig("resnet18"), GCH, 10, 64).stages
    assert stage[:4] == ("L4", "layer4", 2, 2)
    assert build(ModelConfig("resnet18"), NoiseConfig("gch_wick", "wick"), 10, 32).stages, "a Wick gate acts on one site"
    with pytest.raises(UserError, match=r"stages of this network that work: L4 \(stages\.3, "):
        build(ModelConfig("convnext_atto"), replace(GCH, stages=["L2"]), 10, 64)
    (stage,) = build(ModelConfig("convnext_atto"), replace(GCH, stages=["L2"], gamma=0.0), 10, 64).stages
    assert (stage.logit_change, stage.strength.gate_variance) == (0, pytest.approx(0, abs=1e-10)), "strength 0 is no mistake"


def test_stage_facts_are_measured() -> None:
    """They go to run.json as they are; the strength is that of the stage's own grid."""
    torch.manual_seed(3)
    noise = NoiseConfig("dropblock", "block", p=0.1, block_size=3, stages=["L3", "L4"])
    state = torch.get_rng_state()
    network, _ = build_network(ModelConfig("resnet18"), 10, 128)
    drawn = torch.get_rng_state()
    torch.set_rng_state(state)
    built = build(ModelConfig("resnet18"), noise, 10, 128)
    assert torch.equal(torch.get_rng_state(), drawn), "measuring draws nothing from the global generator"
    assert all(torch.equal(value, built.network.state_dict()[key]) for key, value in network.state_dict().items())
    assert [stage[:4] for stage in built.stages] == [("L3", "layer3", 8, 8), ("L4", "layer4", 4, 4)]
    assert all(1e-3 < stage.logit_change < 2 for stage in built.stages)
    assert built.stages[1].strength.drop_rate == pytest.approx(0.245, abs=0.003)
    assert 0.13 < built.stages[0].strength.drop_rate < 0.16
    assert json.loads(json.dumps([stage.facts() for stage in built.stages]))[1]["nominal_drop_rate"] == 0.1


def test_bad_models_and_noise() -> None:
    with pytest.raises(UserError, match=r"unknown model 'resnet5O'.*close: .*resnet50"):
        build(ModelConfig("resnet5O"), GCH, 10, 64)
    wrong = [
        (NoiseConfig("gch", "samplewise", stages=["layer9"]), r"noise.stages=\['layer9'\]: unknown stage"),
        (NoiseConfig("gch", "samplewise", gamma=-2.0), "noise.gamma must be"),
        (NoiseConfig("gch", "chaos"), "noise.law must be one of"),
        (NoiseConfig("gch", "samplewise", boundary="inside"), 'boundary="inside" needs a map of at least 3x3, got 2x2'),
    ]
    for noise, message in wrong:
        with pytest.raises(UserError, match=message):
            build(ModelConfig("resnet18"), noise, 10, 64)


def test_new_classifiers_on_pretrained_weights_start_at_zero(tmp_path: Path) -> None:
    """timm's own pretrained path, with a file in place of the download."""
    path = tmp_path / "weights.safetensors"
    save_file(timm.create_model("resnet10t").state_dict(), path)
    options = {"pretrained_cfg_overlay": {"file": str(path)}}
    for pretrained, classes, zero in ((True, 7, True), (True, 1000, False), (False, 7, False)):
        config = ModelConfig("resnet10t", pretrained=pretrained, kwargs=options)
        network, _ = build_network(config, classes, 64)
        assert bool(network.fc.weight.any()) != zero, (pretrained, classes)
        assert bool(network.conv1[0].weight.any())


def test_given_classifiers_of_the_same_classes_are_kept(tmp_path: Path) -> None:
    source, target = tinynet(4), tinynet(4)
    torch.save(source.state_dict(), tmp_path / "weights.pt")
    load_weights(target, str(tmp_path / "weights.pt"), reset_head=True)
    assert torch.equal(source.head.weight, target.head.weight)


def test_factory() -> None:
    network, _ = build_network(ModelConfig("custom", factory="tinynet:tinynet", kwargs={"width": 4}), 3, 32)
    assert network.head.out_features == 3
    with pytest.raises(UserError, match=r"must give logits of shape \(B, 5\)"):
        build_network(ModelConfig("custom", factory="torchvision.models:resnet18", kwargs={"num_classes": 4}), 5, 32)
    with pytest.raises(UserError, match=r"must return a torch\.nn\.Module, got dict"):
        build_network(ModelConfig("custom", factory="builtins:dict"), 5, 32)


@pytest.mark.parametrize("nesting", ["plain", "state_dict", "model", "prefixed", "safetensors"])
def test_weights_in_the_usual_wrappings(tmp_path: Path, nesting: str) -> None:
    torch.manual_seed(0)
    source, target = tinynet(4), tinynet(4)
    state = source.state_dict()
    path = tmp_path / f"weights.{'safetensors' if nesting == 'safetensors' else 'pt'}"
    if nesting == "safetensors":
        save_file(state, path)
    else:
        prefixed = {f"module.{key}": value for key, value in state.items()}
        torch.save({"plain": state, "prefixed": {"state_dict": prefixed}}.get(nesting, {nesting: state}), path)
    load_weights(target, str(path))
    assert all(torch.equal(value, state[key]) for key, value in target.state_dict().items())


def test_weights_that_do_not_fit(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save(tinynet(4).state_dict(), path)
    for network, message in (
        (tinynet(4, width=6), "another architecture than TinyNet: 4 keys of another shape|another architecture than TinyNet"),
        (torch.nn.Linear(3, 4), "another architecture than Linear: .* keys missing"),
        (
            tinynet(7),
            "has 4 classes and the data 7: .* it was trained on \\(for data=timm also data.num_classes=4\\)$",
        ),
    ):
        before = {key: value.clone() for key, value in network.state_dict().items()}
        with pytest.raises(UserError, match=message):
            load_weights(network, str(path))
        assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    target = tinynet(7)
    load_weights(target, str(path), reset_head=True)
    assert torch.equal(target.late[0].weight, torch.load(path, weights_only=True)["late.0.weight"])
    assert not target.head.weight.any(), "a new classifier on given weights starts at zero"
    assert not target.head.bias.any()
    (tmp_path / "cut.pt").write_bytes(path.read_bytes()[:900])
    for name, message in (("cut.pt", "truncated"), ("none.pt", "no such file")):
        with pytest.raises(UserError, match=message):
            load_weights(target, str(tmp_path / name))


def test_a_download_without_a_network_ends_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nowhere = "http://127.0.0.1:9/{repo_id}/resolve/{revision}/{filename}"  # nothing listens there
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", nowhere)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    logger, said = logging.getLogger("huggingface_hub"), logging.handlers.BufferingHandler(1000)
    logger.addHandler(said)
    level = logger.level
    message = r"weights of resnet18 are neither in the cache nor downloadable \(.*refused.*\): give model\.checkpoint=FILE or"
    try:
        with pytest.raises(UserError, match=message):
            build_network(ModelConfig("resnet18", pretrained=True), 1000, 64)
    finally:
        logger.removeHandler(said)
    assert not said.buffer
    assert logger.level == level
