"""Loads weights from a file, identifies weights by a digest, and finds and resets the classifier of a network."""

import hashlib
import os

import torch
from timm.models import load_state_dict
from torch import Tensor, nn

from gch_bench.errors import FieldError


class UnfitWeights(FieldError):
    """A file of weights that does not fit the network. The field is `checkpoint=FILE`."""


class OtherClasses(UnfitWeights):
    """A file of weights that fits the network apart from its number of classes."""


def weights_digest(model: nn.Module) -> str:
    """The first 16 hex digits of a SHA-256 over the names and bytes of the state dict. Records name their weights by it."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor_bytes(tensor))
    return digest.hexdigest()[:16]


def tensor_bytes(tensor: Tensor) -> bytes:
    """The bytes of a tensor's values, whatever its device and strides."""
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def load_weights(network: nn.Module, path: str, reset_head: bool = False) -> None:
    """Load a state dict from a file into the network.

    Args:
        path: a .pt, .pth or .safetensors file. The state dict may lie under a key such as state_dict or model, and its names
            may begin with `module.` or `_orig_mod.`. Of a checkpoint that also holds an average of the weights (EMA), the
            average is loaded.
        reset_head: do not load a classifier of another number of classes; set the network's own to zero instead.

    Raises:
        UnfitWeights: the file is missing, unreadable or truncated, or holds another architecture.
        OtherClasses: without `reset_head`, the file has another number of classes.
    """
    if not os.path.isfile(path):
        raise UnfitWeights(f"checkpoint={path}:", "no such file")
    try:
        state = load_state_dict(path, use_ema=True, weights_only=True)
    except Exception as error:  # torch, zipfile, pickle and safetensors each raise their own
        cause = str(error) or type(error).__name__
        more = "" if "weights_only" in cause else f": {cause}"  # torch's advice would run the code in the file
        raise UnfitWeights(
            f"checkpoint={path}", f"cannot be read, it is truncated or no state dict of tensors{more}"
        ) from error
    state = {key.removeprefix("module.").removeprefix("_orig_mod."): value for key, value in state.items()}
    own = network.state_dict()
    heads = head_keys(network)
    misfits = [key for key in own if key in state and state[key].shape != own[key].shape]
    if misfits and set(misfits) <= heads:
        if not reset_head:
            theirs, ours = state[misfits[0]].shape[0], own[misfits[0]].shape[0]
            raise OtherClasses(
                f"checkpoint={path}",
                f"has {theirs} classes and the data {ours}: choose the data it was trained on (for data=timm also"
                f" data.num_classes={theirs})",
            )
        state = {key: value for key, value in state.items() if key not in heads}
        own = {key: value for key, value in own.items() if key not in heads}
    missing, unexpected = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys() - heads)
    new_classifier = bool(misfits)
    misfits = [key for key in misfits if key not in heads]
    if missing or unexpected or misfits:
        kinds = {"missing": missing, "unknown": unexpected, "of another shape": misfits}
        what = [f"{len(keys)} keys {kind} (first: {keys[0]})" for kind, keys in kinds.items() if keys]
        raise UnfitWeights(
            f"checkpoint={path}",
            f"holds another architecture than {type(network).__name__}: {'; '.join(what)}"
            "; choose the model= it was trained with",
        )
    network.load_state_dict(state, strict=False)
    if new_classifier:
        zero_classifier(network)


@torch.no_grad()
def zero_classifier(network: nn.Module) -> None:
    """Set the classifier's weights and biases to zero, which is how a new classifier starts on top of trained weights.

    All classes are then equally likely at first, so that the first gradients come from the labels. The random classifiers of
    some backbones give large logits instead (of size 5 for timm's EfficientNet), and the first steps then spoil the trained
    weights.
    """
    heads = head_keys(network)
    for name, parameter in network.named_parameters():
        if name in heads:
            parameter.zero_()


def head_keys(network: nn.Module) -> set[str]:
    """The state-dict keys of the classifier: the layer that timm names as such, else the last linear layer."""
    names = (getattr(network, "pretrained_cfg", None) or {}).get("classifier")
    if not names:
        linear = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)]
        names = linear[-1:]
    names = (names,) if isinstance(names, str) else tuple(names)
    return {key for key in network.state_dict() if key.rsplit(".", 1)[0] in names}
