"""Measured block Jacobians on real inputs, by forward-mode differentiation. Source: GSA I, arXiv 2605.02108, chain (ii).

Definitions of this project (docs/geometry.md). For a convolutional network, the DC channel Jacobian J[o, i] is the derivative
of output channel o when input channel i moves by the same amount at every site, averaged over the output's sites. For a token
model, the token Jacobian J[o, i] is the derivative of channel o of one output token with respect to channel i of the same token
of the input, while the other tokens are held fixed.

Legend: a block's input is (1, C, H, W), (1, H, W, C) or (1, N, C), with N tokens and C channels.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import jvp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

CHUNK_BYTES = 256 * 2**20  # memory for the tangents that are computed at a time
CHANNELS_FIRST, CHANNELS_LAST, TOKEN = "channels first", "channels last", "token"


class Layout(NamedTuple):
    """Which axis of a block's input and output holds the channels, and which token is differentiated."""

    kind: str  # CHANNELS_FIRST, CHANNELS_LAST or TOKEN
    token: int = 0


def block_jacobian(block: Callable[[Tensor], Tensor], inputs: Tensor, layout: Layout, chunk_bytes: int = CHUNK_BYTES) -> Tensor:
    """float64 (C_out, C_in): the Jacobian of ``block`` at ``inputs``, a batch of 1.

    ``chunk_bytes`` bounds the memory of the tangents that are computed at a time.

    Raises:
        ValueError: if the batch is not 1, or the output has another layout than the input.
    """
    if len(inputs) != 1:
        raise ValueError(f"inputs must be a batch of 1, got {len(inputs)}")
    channel = 1 if layout.kind == CHANNELS_FIRST else inputs.ndim - 1
    channels = inputs.shape[channel]
    # Fused attention has no forward-mode derivative. The warning is about torch's own call of its deprecated part.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated")
        outputs = block(inputs)
        if outputs.ndim != inputs.ndim or (layout.kind == TOKEN and outputs.shape[1] != inputs.shape[1]):
            raise ValueError(f"the block must keep the layout of its input {tuple(inputs.shape)}, got {tuple(outputs.shape)}")

        def derivative(index: Tensor) -> Tensor:
            """(C_out,): the derivative along channel ``index`` of the input, moved at the token or at all sites."""
            unit = torch.nn.functional.one_hot(index, channels).to(inputs.dtype)
            if layout.kind == TOKEN:
                here = torch.arange(inputs.shape[1], device=inputs.device) == layout.token
                tangent = here[None, :, None] * unit
            else:
                tangent = unit.view([-1 if axis == channel else 1 for axis in range(inputs.ndim)]).expand_as(inputs)
            moved = jvp(block, (inputs,), (tangent,))[1]
            if layout.kind == TOKEN:
                return moved[0, layout.token]
            return moved.movedim(channel, 0).flatten(1).mean(1)

        each = 8 * max(inputs.numel(), outputs.numel()) * inputs.element_size()  # a block holds several maps of this size
        chunk = max(1, min(channels, chunk_bytes // each))
        index = torch.arange(channels, device=inputs.device)
        columns = [vmap(derivative)(part) for part in index.split(chunk)]
    return torch.cat(columns).to(torch.float64).mT


def network_jacobians(
    network: nn.Module, blocks: Sequence[str], image: Tensor, token: int | None = None, chunk_bytes: int = CHUNK_BYTES
) -> Iterator[tuple[str, Tensor]]:
    """Yield (name, Jacobian) of every block named in ``blocks``, in order, at its input when the network sees ``image``.

    ``image`` is (1, 3, H, W). The network runs in eval mode, so noise acts only if its hooks are set to act in eval mode, too.
    Afterwards the network is back in the mode it was in.

    Args:
        token: the index of the token to differentiate in a token model; by default the middle one of the patches.
        chunk_bytes: see ``block_jacobian``.

    Raises:
        ValueError: if the forward pass never calls a block, or a block receives neither a map, nor tokens, nor a vector, or
            ``token`` is out of range; also as ``block_jacobian``.
    """
    training = network.training
    network.eval()
    try:
        received = _inputs(network, blocks, image)
        for name in blocks:
            inputs = received.pop(name)
            layout = _layout(network, name, inputs, token)
            yield name, block_jacobian(network.get_submodule(name), inputs, layout, chunk_bytes)
    finally:
        network.train(training)


def _inputs(network: nn.Module, blocks: Sequence[str], image: Tensor) -> dict[str, Tensor]:
    """The input that each block receives for ``image``."""
    received: dict[str, Tensor] = {}
    handles = []
    for name in blocks:

        def keep(module: nn.Module, inputs: tuple, name: str = name) -> None:
            received.setdefault(name, inputs[0].detach().clone())  # a clone, because a later module may work in place

        handles.append(network.get_submodule(name).register_forward_pre_hook(keep))
    try:
        with torch.no_grad():
            network(image)
    finally:
        for handle in handles:
            handle.remove()
    missing = [name for name in blocks if name not in received]
    if missing:
        raise ValueError(f"block {missing[0]} is never called by {type(network).__name__}'s forward")
    return received


def _layout(network: nn.Module, name: str, inputs: Tensor, token: int | None) -> Layout:
    if inputs.ndim == 4:
        return Layout(CHANNELS_LAST if getattr(network, "output_fmt", "NCHW") == "NHWC" else CHANNELS_FIRST)
    if inputs.ndim == 2:  # a layer behind the pooling, which has no sites
        return Layout(CHANNELS_LAST)
    if inputs.ndim != 3:
        raise ValueError(f"block {name} must receive a map, tokens or a vector, got {inputs.ndim}-d")
    prefix = int(getattr(network, "num_prefix_tokens", 0))
    at = (prefix + inputs.shape[1]) // 2 if token is None else token
    if not 0 <= at < inputs.shape[1]:
        raise ValueError(f"token must be in 0..{inputs.shape[1] - 1}, got {at}")
    return Layout(TOKEN, at)
