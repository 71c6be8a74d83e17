"""Weights: loaded from a file, and identified by a digest."""

import hashlib
import os

import torch
from timm.models import load_state_dict
from torch import nn

from gch_bench.errors import FieldError


def weights_digest(model: nn.Module) -> str:
    """16 hex digits over the names and bytes of the state dict: which weights a record was made with."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def load_weights(network: nn.Module, path: str, reset_head: bool = False) -> None:
    """Load a plain state dict (nested under state_dict/model, `module.` prefixes; .pt, .pth or .safetensors) into the network.

    With `reset_head` a classifier of another number of classes is not loaded, and the network's own starts at zero.

    Raises:
        FieldError: unreadable or truncated file; another architecture; another class count (unless reset_head).
    """
    if not os.path.isfile(path):
        raise FieldError(f"checkpoint={path}:", "no such file")
    try:
        state = load_state_dict(path, use_ema=True, weights_only=True)
    except Exception as error:  # torch, zipfile, pickle and safetensors each raise their own
        raise FieldError(
            f"checkpoint={path}",
            f"cannot be read, it is truncated or no state dict of tensors: {str(error) or type(error).__name__}",
        ) from error
    state = {key.removeprefix("module.").removeprefix("_orig_mod."): value for key, value in state.items()}
    own = network.state_dict()
    heads = head_keys(network)
    misfits = [key for key in own if key in state and state[key].shape != own[key].shape]
    if misfits and set(misfits) <= heads:
        if not reset_head:
            theirs, ours = state[misfits[0]].shape[0], own[misfits[0]].shape[0]
            raise FieldError(
                f"checkpoint={path}",
                f"has {theirs} classes and the data {ours}: choose the data it was trained on, or model.reset_head=true to"
                " train a new classifier",
            )
        state = {key: value for key, value in state.items() if key not in heads}
        own = {key: value for key, value in own.items() if key not in heads}
    missing, unexpected = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys() - heads)
    new_classifier = bool(misfits)
    misfits = [key for key in misfits if key not in heads]
    if missing or unexpected or misfits:
        kinds = {"missing": missing, "unknown": unexpected, "of another shape": misfits}
        what = [f"{len(keys)} keys {kind} (first: {keys[0]})" for kind, keys in kinds.items() if keys]
        raise FieldError(
            f"checkpoint={path}",
            f"holds another architecture than {type(network).__name__}: {'; '.join(what)}"
            "; choose the model= it was trained with",
        )
    network.load_state_dict(state, strict=False)
    if new_classifier:
        zero_classifier(network)


@torch.no_grad()
def zero_classifier(network: nn.Module) -> None:
    """Set the classifier's weights and biases to zero: how a new classifier starts on given weights.

    All classes are equally likely at first, so the first gradients come from the labels. The random classifiers of some
    backbones give large logits instead (of size 5 for timm's EfficientNet), and the first steps spoil the given weights.
    """
    heads = head_keys(network)
    for name, parameter in network.named_parameters():
        if name in heads:
            parameter.zero_()


def head_keys(network: nn.Module) -> set[str]:
    """State-dict keys of the classifier: timm's own word for it, else the last linear layer."""
    names = (getattr(network, "pretrained_cfg", None) or {}).get("classifier")
    if not names:
        linear = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)]
        names = linear[-1:]
    names = (names,) if isinstance(names, str) else tuple(names)
    return {key for key in network.state_dict() if key.rsplit(".", 1)[0] in names}
