"""Measured block Jacobians on real inputs, by forward-mode differentiation. Source: GSA I, arXiv 2605.02108, chain (ii).

Definitions of this project (docs/geometry.md). For a convolutional network, the DC channel Jacobian J[o, i] is the derivative
of output channel o when input channel i moves by the same amount at every site, averaged over the output's sites. For a token
model, the token Jacobian J[o, i] is the derivative of channel o of one output token with respect to channel i of the same token
of the input, while the other tokens are held fixed.

Both reduce a map to its channels, so the Jacobian of two neighbouring blocks is not the product of their Jacobians: between the
blocks the derivative differs from site to site, or leaks into other tokens. Hence neighbours are also differentiated together,
from the first one's input to the second one's output through whatever the network does between them.

Legend: a block's input is (1, C, H, W), (1, H, W, C) or (1, N, C), with N tokens and C channels.
"""

import contextlib
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import jvp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

CHUNK_BYTES = 256 * 2**20  # memory for the tangents that are computed at a time
CHANNELS_FIRST, CHANNELS_LAST, TOKEN = "channels first", "channels last", "token"
HELD = 4  # tangents of the size of the largest intermediate result that a block holds at a time


class Layout(NamedTuple):
    """Which axis of a block's input and output holds the channels, and which token is differentiated."""

    kind: str  # CHANNELS_FIRST, CHANNELS_LAST or TOKEN
    token: int = 0


class BlockJacobian(NamedTuple):
    """The Jacobian of a block, and that of the block before and this one differentiated together."""

    name: str
    matrix: Tensor  # float64 (C_out, C_in)
    together: Tensor | None = None  # float64 (C_out, C_in of the block before); None for the first block


def block_jacobian(block: Callable[[Tensor], Tensor], inputs: Tensor, layout: Layout, chunk_bytes: int = CHUNK_BYTES) -> Tensor:
    """float64 (C_out, C_in): the Jacobian of ``block`` at ``inputs``, a batch of 1.

    ``chunk_bytes`` bounds the memory of the tangents that are computed at a time.

    Raises:
        ValueError: if the batch is not 1, or the output has another layout than the input.
    """
    if len(inputs) != 1:
        raise ValueError(f"inputs must be a batch of 1, got {len(inputs)}")

    def function(moved: Tensor) -> tuple[Tensor, ...]:
        outputs = block(moved)
        _check_layout("the block", layout, inputs, outputs)
        return (_channels(outputs, layout),)

    return _columns(function, inputs, layout, chunk_bytes)[0]


def network_jacobians(
    network: nn.Module, blocks: Sequence[str], image: Tensor, token: int | None = None, chunk_bytes: int = CHUNK_BYTES
) -> Iterator[BlockJacobian]:
    """Yield the Jacobian of every block named in ``blocks``, in order, at its input when the network sees ``image``.

    Each comes with the Jacobian of the block before and this one differentiated together. What the network does between two
    blocks (a pooling, a norm, a permutation) is part of the latter and of neither block.

    ``image`` is (1, 3, H, W). The network runs in eval mode, so noise acts only if its hooks are set to act in eval mode, too.
    Afterwards the network is back in the mode it was in.

    Args:
        token: the index of the token to differentiate in a token model; by default the middle one of the patches.
        chunk_bytes: see ``block_jacobian``.

    Raises:
        ValueError: if the network has no such block, calls it never or more than once, or calls blocks in another order; if a
            block receives neither a map, nor tokens, nor a vector, or changes its layout; if ``image`` is not a batch of 1, or
            ``token`` is out of range.
    """
    with _evaluating(network):
        calls = _calls(network, blocks, image, token)
        together = None
        for index, call in enumerate(calls):
            found = _columns(_segment(network, image, calls[index : index + 2]), call.inputs, call.layout, chunk_bytes)
            yield BlockJacobian(call.name, found[0], together)
            together = found[-1]


def chain_jacobian(
    network: nn.Module, blocks: Sequence[str], image: Tensor, token: int | None = None, chunk_bytes: int = CHUNK_BYTES
) -> Tensor:
    """float64 (C_out of the last block, C_in of the first): the whole chain differentiated together; see ``network_jacobians``.

    The derivative is that of the last block's output by the first block's input, through all that the network does between
    them.

    Raises:
        ValueError: as ``network_jacobians``, or if ``blocks`` is empty.
    """
    if not blocks:
        raise ValueError("blocks must name at least one block, got none")
    with _evaluating(network):
        calls = _calls(network, blocks, image, token)
        return _columns(_segment(network, image, calls), calls[0].inputs, calls[0].layout, chunk_bytes)[-1]


@contextlib.contextmanager
def _evaluating(network: nn.Module) -> Iterator[None]:
    training = network.training
    network.eval()
    try:
        yield
    finally:
        network.train(training)


def _columns(
    function: Callable[[Tensor], tuple[Tensor, ...]], inputs: Tensor, layout: Layout, chunk_bytes: int
) -> tuple[Tensor, ...]:
    """float64 (C_out, C_in) for each of the vectors (C_out,) that ``function`` makes of ``inputs``."""
    channel = _channel_axis(inputs, layout)
    channels = inputs.shape[channel]

    def derivative(index: Tensor) -> tuple[Tensor, ...]:
        """The derivatives along channel ``index`` of the input, moved at the token or at all sites."""
        unit = torch.nn.functional.one_hot(index, channels).to(inputs.dtype)
        if layout.kind == TOKEN:
            here = torch.arange(inputs.shape[1], device=inputs.device) == layout.token
            tangent = here[None, :, None] * unit
        else:
            tangent = unit.view([-1 if axis == channel else 1 for axis in range(inputs.ndim)]).expand_as(inputs)
        # A clone, because a block may work on its input in place.
        moved: tuple[Tensor, ...] = jvp(lambda start: function(start.clone()), (inputs,), (tangent,))[1]
        return moved

    # Fused attention has no forward-mode derivative. The warning is about torch's own call of its deprecated part.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated")
        with _Largest() as results:
            function(inputs.clone())
        chunk = max(1, min(channels, chunk_bytes // (HELD * max(results.bytes, 1))))
        index = torch.arange(channels, device=inputs.device)
        parts = [vmap(derivative)(part) for part in index.split(chunk)]
    return tuple(torch.cat(part).to(torch.float64).mT for part in zip(*parts, strict=True))


class _Largest(TorchDispatchMode):
    """Within the context ``bytes`` becomes the size of the largest tensor that an operation makes anew."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {each.untyped_storage().data_ptr() for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)}
        made = func(*args, **(kwargs or {}))
        for each in tree_leaves(made):
            if isinstance(each, Tensor) and each.untyped_storage().data_ptr() not in given:  # not a view of an argument
                self.bytes = max(self.bytes, each.untyped_storage().nbytes())
        return made


def _channel_axis(values: Tensor, layout: Layout) -> int:
    return 1 if layout.kind == CHANNELS_FIRST else values.ndim - 1


def _channels(outputs: Tensor, layout: Layout) -> Tensor:
    """(C,): the token's channels, or each channel averaged over the sites; a copy, since later modules may work in place."""
    if layout.kind == TOKEN:
        return outputs[0, layout.token].clone()
    return outputs.movedim(_channel_axis(outputs, layout), 0).flatten(1).mean(1)


def _check_layout(name: str, layout: Layout, inputs: Tensor, outputs: Any) -> None:
    if not isinstance(outputs, Tensor):
        raise ValueError(f"{name} must give a tensor, got {type(outputs).__name__}")
    if outputs.ndim != inputs.ndim or (layout.kind == TOKEN and outputs.shape[1] != inputs.shape[1]):
        raise ValueError(f"{name} must keep the layout of its input {tuple(inputs.shape)}, got {tuple(outputs.shape)}")


class _Call(NamedTuple):
    """What a block received when the network saw the image."""

    name: str
    module: nn.Module
    inputs: Tensor
    rest: tuple  # its other arguments
    options: Mapping[str, Any]  # its keyword arguments
    layout: Layout
    follows: bool  # whether its input is what the block before gave, and nothing else of it depends on that


class _Stop(Exception):
    """Ends the network's forward pass behind the last block that is looked at."""


def _segment(network: nn.Module, image: Tensor, calls: Sequence[_Call]) -> Callable[[Tensor], tuple[Tensor, ...]]:
    """A function: the first block's input -> the channels (C_out,) of each block's output, with all that lies between them."""
    if all(call.follows for call in calls[1:]):

        def one_after_the_other(values: Tensor) -> tuple[Tensor, ...]:
            found = []
            for call in calls:
                values = call.module(values, *call.rest, **call.options)
                found.append(_channels(values, call.layout))
            return tuple(found)

        return one_after_the_other

    def replayed(values: Tensor) -> tuple[Tensor, ...]:
        """The network's own pass from the image on, in which the first block receives ``values`` in place of its input."""
        found: list[Tensor] = []

        def replace(module: nn.Module, inputs: tuple) -> tuple:
            return values, *inputs[1:]

        def read(module: nn.Module, inputs: tuple, outputs: Tensor) -> None:
            found.append(_channels(outputs, calls[len(found)].layout))
            if len(found) == len(calls):
                raise _Stop

        handles = [calls[0].module.register_forward_pre_hook(replace)]
        handles += [call.module.register_forward_hook(read) for call in calls]
        try:
            with contextlib.suppress(_Stop):
                network(image)
        finally:
            for handle in handles:
                handle.remove()
        return tuple(found)

    return replayed


def _calls(network: nn.Module, blocks: Sequence[str], image: Tensor, token: int | None) -> list[_Call]:
    """What each block receives for ``image``; see ``network_jacobians`` for what is refused."""
    if len(image) != 1:
        raise ValueError(f"image must be a batch of 1, got {len(image)}")
    calls: dict[int, _Call] = {}
    visits: list[int] = []  # the blocks' numbers, each when it is entered and when it is left
    before: list[tuple[Tensor, int]] = []  # what the last block gave, and torch's count of the changes to it in place

    def enter(index: int, module: nn.Module, inputs: tuple, options: dict[str, Any]) -> None:
        visits.append(index)
        first = inputs[0] if inputs else None
        layout = _layout(network, blocks[index], first, token)
        assert isinstance(first, Tensor)
        follows = bool(before) and first is before[-1][0] and first._version == before[-1][1]
        follows = follows and not any(isinstance(each, Tensor) for each in tree_leaves((inputs[1:], options)))
        calls[index] = _Call(blocks[index], module, first.detach().clone(), inputs[1:], options, layout, follows)

    def leave(index: int, outputs: Any) -> None:
        visits.append(index)
        _check_layout(f"block {blocks[index]}", calls[index].layout, calls[index].inputs, outputs)
        before[:] = [(outputs, outputs._version)]

    handles = []
    try:
        for index, name in enumerate(blocks):
            module = _module(network, name)
            handles.append(module.register_forward_pre_hook(lambda *given, index=index: enter(index, *given), with_kwargs=True))
            handles.append(module.register_forward_hook(lambda *given, index=index: leave(index, given[-1])))
        with torch.no_grad():
            network(image)
    finally:
        for handle in handles:
            handle.remove()
    _check_visits(type(network).__name__, blocks, visits)
    return [calls[index] for index in range(len(blocks))]


def _module(network: nn.Module, name: str) -> nn.Module:
    try:
        return network.get_submodule(name)
    except AttributeError:
        raise ValueError(f"block {name} is no module of {type(network).__name__}") from None


def _check_visits(network: str, blocks: Sequence[str], visits: list[int]) -> None:
    for index, name in enumerate(blocks):
        if index not in visits:
            raise ValueError(f"block {name} is never called by {network}'s forward")
        if visits.count(index) > 2:
            raise ValueError(f"block {name} must be called once in a pass of {network}, got {visits.count(index) // 2} calls")
    for place, index in enumerate(visits):
        if index != place // 2:
            wanted = blocks[place // 2]
            raise ValueError(
                f"blocks must be in the order of {network}'s forward: {blocks[index]} is called before {wanted} ends"
            )


def _layout(network: nn.Module, name: str, inputs: Any, token: int | None) -> Layout:
    """The layout of the input of a block named ``name``."""
    if not isinstance(inputs, Tensor) or inputs.ndim not in (2, 3, 4):
        got = f"{inputs.ndim}-d" if isinstance(inputs, Tensor) else type(inputs).__name__
        raise ValueError(f"block {name} must receive a map, tokens or a vector, got {got}")
    if len(inputs) != 1:
        raise ValueError(f"block {name} must receive a batch of 1, got {len(inputs)}")
    if inputs.ndim == 4:
        return Layout(CHANNELS_LAST if _is_channels_last(network, name) else CHANNELS_FIRST)
    if inputs.ndim == 2:  # a layer behind the pooling, which has no sites
        return Layout(CHANNELS_LAST)
    prefix = int(getattr(network, "num_prefix_tokens", 0))
    at = (prefix + inputs.shape[1]) // 2 if token is None else token
    if not 0 <= at < inputs.shape[1]:
        raise ValueError(f"token must be in 0..{inputs.shape[1] - 1}, got {at}")
    return Layout(TOKEN, at)


def _is_channels_last(network: nn.Module, name: str) -> bool:
    """Whether a block takes maps (1, H, W, C). Its first layer tells, since parts of one network may differ, as in MaxViT."""
    for module in network.get_submodule(name).modules():
        kind = type(module).__name__.lower()
        if "2d" in kind or isinstance(module, nn.GroupNorm):
            return False
        if isinstance(module, nn.Linear) or kind.startswith(("layernorm", "rmsnorm")):
            return True
    return getattr(network, "output_fmt", "NCHW") == "NHWC"
