"""The forward hook that puts noise on a module's output, and the functions that find these hooks in a network.

The output may be a feature map in the layout NCHW or NHWC, or a token sequence NLC. In a token sequence the patch tokens form
the grid of sites, and the prefix tokens (class and register tokens) get no noise. Noise inside an attention is the exception:
its hook acts on what the module gets. A hook is an object and not a closure, so that a deep copy of the network, such as its
EMA, has hooks of its own.
"""

import contextlib
import inspect
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from gch_bench.noise.draws import KeyedDraws, derived_keys
from gch_bench.noise.dropout import KeyDropout
from gch_bench.noise.injection import TokenRemoval
from gch_bench.noise.mechanism import Mechanism
from gch_bench.rng import Key


class Placement(NamedTuple):
    """One place where noise is attached: the stage as the user named it, and the name of the module that carries the hook."""

    stage: str
    module: str


class TokenGrid(NamedTuple):
    """Where the patch grid lies in a token sequence: the number of tokens before it, and its height and width in patches."""

    prefix: int
    height: int
    width: int


class StageHook:
    """The forward hook on one stage: it returns the module's output with noise, in the output's own layout.

    Args:
        placement: the stage and its module.
        model: the whole network, which tells the layout of its outputs.
        mechanism: the noise.
        train: whether the noise acts when the module is in training mode.
        test: whether the noise acts when the module is in eval mode.
    """

    def __init__(self, placement: Placement, model: nn.Module, mechanism: Mechanism, train: bool, test: bool) -> None:
        self.placement = placement
        self.mechanism = mechanism
        self.train = train
        self.test = test
        self.output_format = getattr(model, "output_fmt", "NCHW")
        self.patch_grid = getattr(getattr(model, "patch_embed", None) or getattr(model, "stem", None), "grid_size", None)
        self.prefix_tokens = int(getattr(model, "num_prefix_tokens", 0))
        self.keys_B: Tensor | None = None  # one key per image, set by `keyed_noise`; None: torch's global generator
        self.calls = 1  # how often a forward pass calls the module, measured by `inject`
        self.called = 0  # how many draws were made since `keyed_noise` began
        self.logit_change: float | None = None  # measured by `inject`; None where it could not be measured

    def register(self, module: nn.Module, prepend: bool = False) -> RemovableHandle:
        """Attach the hook to its module."""
        return module.register_forward_hook(self, prepend=prepend)

    def __call__(self, module: nn.Module, inputs: tuple, output: Tensor) -> Tensor:
        return self.noisy(output) if self.acts_in(module) else output

    def acts_in(self, module: nn.Module) -> bool:
        return self.train if module.training else self.test

    def noisy(self, output: Tensor) -> Tensor:
        """The module's output with noise, in its own layout."""
        if output.ndim == 3 and self.mechanism.on_prefix_tokens:
            return self.mechanism.apply_noise(output.mT[..., None], self._draws(output.device))[..., 0].mT
        prefix, grid_BCHW = self.grid(output)
        if isinstance(self.mechanism, TokenRemoval):
            return self._without_tokens(self.mechanism, output, prefix, grid_BCHW)
        noisy_BCHW = self.mechanism.apply_noise(grid_BCHW, self._draws(grid_BCHW.device))
        if output.ndim == 3:
            return torch.cat([output[:, :prefix], noisy_BCHW.flatten(2).transpose(1, 2)], 1)
        return noisy_BCHW.permute(0, 2, 3, 1) if self.output_format == "NHWC" else noisy_BCHW

    def _without_tokens(self, removal: TokenRemoval, output: Tensor, prefix: int, grid_BCHW: Tensor) -> Tensor:
        if output.ndim == 4:
            raise ValueError(
                f"injection=removal removes tokens, and stage {self.placement.stage} ({self.placement.module}) gives a map:"
                " choose a token model such as ViT, or a stage with tokens"
            )
        mask_B1HW = removal.drawn(grid_BCHW, self._draws(output.device))
        return removal.remaining(output, prefix, mask_B1HW.flatten(1))

    def grid(self, output: Tensor) -> tuple[int, Tensor]:
        """The output as a feature map: (number of prefix tokens, view of shape (B, C, H, W)).

        Raises:
            ValueError: the module's output is neither a feature map nor a token sequence with a patch grid.
        """
        if not isinstance(output, Tensor) or output.ndim not in (3, 4):
            kind = f"{output.ndim}-d tensor" if isinstance(output, Tensor) else type(output).__name__
            raise ValueError(
                f"stage {self.placement.stage} ({self.placement.module}) must give a 4-d map or 3-d tokens, got {kind}"
            )
        if output.ndim == 3:
            prefix, height, width = self.token_grid(output.shape[1])
            return prefix, output[:, prefix:].transpose(1, 2).unflatten(2, (height, width))
        return 0, output.permute(0, 3, 1, 2) if self.output_format == "NHWC" else output

    def token_grid(self, tokens: int) -> TokenGrid:
        """Where the patch grid lies in a sequence of `tokens` tokens.

        It is the grid of the patch embedding if that fits the number of tokens, else a square grid that does.

        Raises:
            ValueError: neither grid fits.
        """
        prefixes = dict.fromkeys((self.prefix_tokens, 0))  # 0: some blocks run before the class token is added
        for prefix in prefixes:
            if self.patch_grid is not None and math.prod(self.patch_grid) == tokens - prefix:
                return TokenGrid(prefix, *self.patch_grid)
        for prefix in prefixes:
            side = math.isqrt(max(tokens - prefix, 0))
            if side > 0 and side * side == tokens - prefix:
                return TokenGrid(prefix, side, side)
        raise ValueError(
            f"stage {self.placement.stage} ({self.placement.module}) gives {tokens} tokens, {self.prefix_tokens} of them"
            " prefix: they form no patch grid; choose a stage whose tokens do"
        )

    @torch.compiler.disable
    def _draws(self, device: torch.device) -> KeyedDraws | None:
        """The draws of one call. Two places, and two calls of one place in a pass, have draws of their own.

        They start anew in every pass. A block that activation checkpointing runs once more makes all its calls again, so that
        the number of the call modulo the calls of a pass tells which one is repeated.
        """
        number = self.called % self.calls
        self.called += 1
        if self.keys_B is None:
            return None
        place: list[Key] = [self.placement.stage] if self.mechanism.place == "output" else list(self.placement)
        keys_B = self.keys_B.to(device, non_blocking=True)
        return KeyedDraws(derived_keys(keys_B, "stage", *place, *([number] if number else [])))


class AttentionHook(StageHook):
    """The hook of `KeyDropout`: it joins the mask of dropped keys to what an attention module gets as `attn_mask`."""

    position = 1  # of `attn_mask` among the arguments of the module's forward

    def register(self, module: nn.Module, prepend: bool = False) -> RemovableHandle:
        self.position = list(inspect.signature(module.forward).parameters).index("attn_mask")
        return module.register_forward_pre_hook(self.masked, prepend=prepend, with_kwargs=True)

    def masked(self, module: nn.Module, inputs: tuple, named: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
        """The module's arguments with the mask; None, which leaves them as they are, where the noise does not act."""
        if not self.acts_in(module):
            return None
        assert isinstance(self.mechanism, KeyDropout), "`hook_for` makes this hook for it alone"
        tokens_BNC = inputs[0]
        mask = self.mechanism.attention_mask(tokens_BNC, module.num_heads, self._draws(tokens_BNC.device))
        if len(inputs) > self.position:
            before, given, after = inputs[: self.position], inputs[self.position], inputs[self.position + 1 :]
            return (*before, joined(mask, given), *after), named
        return inputs, {**named, "attn_mask": joined(mask, named.get("attn_mask"))}


def joined(mask: Tensor, given: Tensor | None) -> Tensor:
    """The mask of dropped keys joined to a mask that the attention is given: numbers to add, or booleans, True = keep.

    A key that the given mask excludes gets the lowest number of the type, lower than a dropped key: a query all of whose other
    keys are dropped does not see it.
    """
    if given is None:
        return mask
    lowest = torch.finfo(mask.dtype).min
    if given.dtype == torch.bool:
        return mask.masked_fill(~given, lowest)
    return (mask + given.to(mask.dtype)).clamp_min(lowest)


def hook_for(placement: Placement, model: nn.Module, mechanism: Mechanism, train: bool, test: bool) -> StageHook:
    """The hook of the kind that the mechanism needs."""
    kind = AttentionHook if mechanism.place == "attention" else StageHook
    return kind(placement, model, mechanism, train, test)


def stage_hooks(model: nn.Module) -> list[StageHook]:
    """The hooks that `inject` attached to this network, in module order; the network may be compiled or wrapped in DDP."""
    found: list[StageHook] = []
    for module in model.modules():
        owners = (getattr(hook, "__self__", None) for hook in module._forward_pre_hooks.values())
        found += [owner for owner in owners if isinstance(owner, AttentionHook)]
        found += [hook for hook in module._forward_hooks.values() if isinstance(hook, StageHook)]
    return found


@contextlib.contextmanager
def keyed_noise(model: nn.Module, keys_B: Tensor) -> Iterator[None]:
    """Within the context, the noise on image i of a batch is drawn from keys_B[i] alone, an int64 key (`draws.image_keys`).

    Every forward pass within the context draws the same noise; a batch of another length is a ValueError.
    """
    hooks = stage_hooks(model)
    for hook in hooks:
        hook.keys_B, hook.called = keys_B, 0
    try:
        yield
    finally:
        for hook in hooks:
            hook.keys_B = None


def stage_grids(model: nn.Module, images: Tensor) -> dict[str, tuple[int, int]]:
    """The size (H, W) of the map or patch grid at each noisy stage, by name of the stage.

    The sizes are read in one forward pass of `images` (B, C, H, W) in eval mode; the network's mode is kept.

    Raises:
        ValueError: a stage has no grid, or the forward pass never reaches it.
    """
    grids: dict[str, tuple[int, int]] = {}
    handles = []
    for hook in stage_hooks(model):

        def record(module: nn.Module, inputs: tuple, output: Tensor, hook: StageHook = hook) -> None:
            height, width = hook.grid(output)[1].shape[2:]
            grids[hook.placement.stage] = (height, width)

        handles.append(model.get_submodule(hook.placement.module).register_forward_hook(record, prepend=True))
    was_training = model.training
    try:
        with torch.no_grad():
            model.eval()(images)
    finally:
        model.train(was_training)
        for handle in handles:
            handle.remove()
    silent = [hook.placement for hook in stage_hooks(model) if hook.placement.stage not in grids]
    if silent:
        raise ValueError(never_called(silent[0], model))
    return grids


def never_called(placement: Placement, model: nn.Module) -> str:
    """The error message for a stage that a forward pass never reaches."""
    return f"stage {placement.stage} ({placement.module}) is never called by {type(model).__name__}'s forward"
