"""The trunk of a network is everything up to the end of one stage; the tail is the rest.

Where several forward passes share the trunk, it is run once and only the tail is run for each of them. This is so for networks
that were trained with recipe.freeze from the same weights, and for several noisy passes of one network, which differ only from
the first noisy stage on.

    trunk = find_trunk(network, "layer3", size)
    features = trunk_outputs(network, trunk, inputs)
    logits = run_tail(other_network_with_this_trunk, trunk, features, inputs)

A forward pass is Python code that calls modules, and it cannot be entered in the middle. Therefore `run_tail` runs it from the
start, but each outermost module of the trunk (one that was not called inside another module of the trunk) returns its stored
output at once. Only what lies between these modules is computed again, such as the addition of a position embedding.

Most of these stored outputs go nowhere except into the next module of the trunk, which ignores its input then. They are not
kept: a stand-in of the same shape without memory of its own takes their place. `find_trunk` finds out which outputs the tail
does read. In all backbones that were tried this is the output of the stage alone. A stand-in holds NaN, so that its use by
mistake shows in the logits, and `check_trunk` compares these with a plain forward pass.
"""

import contextlib
import hashlib
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_leaves, tree_map_only  # outputs may be lists, tuples and dicts of tensors

from gch_bench.model.weights import tensor_bytes
from gch_bench.noise.hooks import AttentionHook, stage_hooks


class Trunk(NamedTuple):
    """The part of a network up to the end of a stage, by names in the network."""

    stage: str  # the name of the module that ends the trunk
    modules: frozenset[str]  # all modules that have ended when the stage ends, and all modules inside them
    parameters: frozenset[str]  # those of the modules, and all others that the output of the stage depends on
    outermost: frozenset[str]  # the modules that were not called inside another module of the trunk
    kept: frozenset[str]  # the outermost modules whose outputs the tail reads; the stage is one of them
    keeps_inputs: bool  # whether the tail reads the input images


class Call(NamedTuple):
    """One call of an outermost module of the trunk."""

    module: str
    output: Any  # as the module gave it, before its forward hooks; tensors that the tail does not read are NotKept


Features = list[Call]  # the trunk's calls for a batch of B images, in order


@dataclass(frozen=True)
class NotKept:
    """A tensor of which only shape, type and device are known."""

    shape: torch.Size
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, tensor: Tensor) -> "NotKept":
        return cls(tensor.shape, tensor.dtype, tensor.device)

    def stand_in(self) -> Tensor:
        """A tensor of this shape that takes no memory. It is NaN everywhere (0 where the type has no NaN)."""
        value = float("nan") if self.dtype.is_floating_point else 0
        return torch.full((), value, dtype=self.dtype, device=self.device).expand(self.shape)


class _StageReached(Exception):
    """Stops a forward pass where the trunk ends."""


def find_trunk(network: nn.Module, stage: str, size: int) -> Trunk | None:
    """Find the trunk that the module `stage` ends, by trial forward passes of one image in eval mode without noise.

    Weights, buffers and modes are left as they were.

    Args:
        stage: a module's name, see `placement.find_stage`.
        size: the side in pixels of the square image of the trial passes.

    Returns:
        The trunk, or None if the forward pass never calls the module.
    """
    modules = {name: module for name, module in network.named_modules() if name}
    parameters = dict(network.named_parameters())
    image = torch.zeros(1, 3, size, size, device=next(iter(parameters.values())).device)
    with torch.inference_mode(False), _evaluating(network):
        # Tensors that share the parameters' memory and need gradients, also where the parameters themselves are frozen.
        leaves = {name: value.detach().requires_grad_() for name, value in parameters.items() if value.is_floating_point()}
        with torch.enable_grad():
            calls, ended = _record(lambda: functional_call(network, leaves, (image,)), modules, stage, modules)
            if stage not in ended:
                return None
            outputs = [value for value in tree_leaves(calls[-1].output) if isinstance(value, Tensor) and value.requires_grad]
            total = torch.stack([value.sum() for value in outputs]).sum()
            depends = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
        inner = {name for name in modules if any(name == each or name.startswith(f"{each}.") for each in ended)}
        upstream = {name for name, gradient in zip(leaves, depends, strict=True) if gradient is not None}
        inside = {name for name in parameters if name.rpartition(".")[0] in inner}
        outermost = frozenset(call.module for call in calls)
        trunk = Trunk(stage, frozenset(inner), frozenset(inside | upstream), outermost, outermost, True)
        with torch.no_grad():
            return _without_unread(network, trunk, calls, image)


def _record(
    forward: Callable[[], Any], modules: Mapping[str, nn.Module], stage: str, kept: Collection[str]
) -> tuple[Features, set[str]]:
    """Run `forward` up to the end of the stage: its outermost calls of `modules` in order, and the names of all that ended."""
    calls: Features = []
    ended: set[str] = set()
    begun: list[int] = []  # for each call that has not ended: how many calls were recorded when it began

    def end(name: str, output: Any) -> None:
        del calls[begun.pop() :]  # those inside this call
        ended.add(name)
        if name == stage:
            calls.append(Call(name, output))
            raise _StageReached
        calls.append(Call(name, tree_map_only(Tensor, Tensor.clone if name in kept else NotKept.of, output)))

    handles = []
    try:
        for name, module in modules.items():
            handles.append(module.register_forward_pre_hook(lambda module, inputs: begun.append(len(calls))))
            handles.append(
                module.register_forward_hook(lambda module, inputs, output, name=name: end(name, output), prepend=True)
            )
        with contextlib.suppress(_StageReached):
            forward()
    finally:
        for handle in handles:
            handle.remove()
    return calls, ended


def _without_unread(network: nn.Module, trunk: Trunk, calls: Features, image: Tensor) -> Trunk:
    """The same trunk, which keeps only what the tail reads. An output is read if the logits are NaN when it is NaN."""

    def enough(less: Trunk) -> bool:
        features = [call if call.module in less.kept else _not_kept(call) for call in calls]
        try:
            return not bool(run_tail(network, less, features, image).isnan().any())
        except Exception:  # a foreign forward may raise anything at NaN, or write into a stand-in, which torch refuses
            return False

    stage_alone = trunk._replace(kept=frozenset({trunk.stage}), keeps_inputs=False)
    if enough(stage_alone):
        return stage_alone
    less = trunk._replace(keeps_inputs=False)
    trunk = less if enough(less) else trunk
    for name in sorted(trunk.outermost - {trunk.stage}):
        less = trunk._replace(kept=trunk.kept - {name})
        trunk = less if enough(less) else trunk
    return trunk


def trunk_digest(network: nn.Module, trunk: Trunk) -> str:
    """The first 16 hex digits of a SHA-256 over all that the features at the end of the trunk depend on, besides the images.

    These are the bytes of the trunk's parameters and buffers, and the type and plain attributes (numbers, words, and functions
    by name) of its modules and of the modules that contain them, the network included. Networks of the same digest compute the
    same features, unless a module hides a difference in another kind of attribute (`check_trunk` with `computed_by` sees that).
    The reverse does not hold where an attribute differs that only the tail uses, such as the number of classes.
    """
    digest = hashlib.sha256(f"{trunk.stage} {sorted(trunk.kept)} {trunk.keeps_inputs}".encode())
    around = {".".join(name.split(".")[:depth]) for name in trunk.outermost for depth in range(name.count(".") + 1)}
    for name in sorted(trunk.modules | around):
        module = network.get_submodule(name)
        digest.update(f"{name} {type(module).__module__}.{type(module).__qualname__}".encode())
        for attribute, value in sorted(vars(module).items()):
            if attribute.startswith("_") or attribute == "training":
                continue
            if isinstance(value, Tensor):
                digest.update(attribute.encode() + tensor_bytes(value))
            elif (words := _in_words(value)) is not None:
                digest.update(f"{attribute}={words}".encode())
    tensors: dict[str, Tensor] = {name: value for name, value in network.named_parameters() if name in trunk.parameters}
    tensors |= {name: value for name, value in network.named_buffers() if name.rpartition(".")[0] in trunk.modules | around}
    for name, value in sorted(tensors.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(tensor_bytes(value))
    return digest.hexdigest()[:16]


def _in_words(value: Any) -> str | None:
    """A plain value or a function in words that are the same in every process; None for other objects."""
    if isinstance(value, (list, tuple)):
        parts = [_in_words(each) for each in value]
        return None if None in parts else f"{parts}"
    if value is None or isinstance(value, (bool, int, float, str, torch.dtype)):
        return repr(value)
    return getattr(value, "__qualname__", None)


def trunk_outputs(network: nn.Module, trunk: Trunk, inputs: Tensor) -> Features:
    """Run the network up to the end of the trunk, without the forward hooks of the stage, such as its noise.

    Memory: what is returned holds the output of the stage for B images (in float32 for B = 64 and images of 224 pixels 51 MB
    for ResNet-50 at L3, 5.6 MB for EfficientNet-Lite0), and besides that only the outputs of the modules in `trunk.kept`.

    Args:
        network: in eval mode.
        inputs: normalised images (B, 3, H, W).

    Raises:
        ValueError: the network is in training mode, or there is noise inside the trunk, which each pass must draw anew.
    """
    if network.training:
        raise ValueError("the trunk can be shared in eval mode only, call network.eval() first")
    for hook in stage_hooks(network):
        outside = {trunk.stage} if not isinstance(hook, AttentionHook) else set()
        if hook.test and hook.placement.module in trunk.modules - outside:
            raise ValueError(f"noise at {hook.placement.module} acts before the end of {trunk.stage}: take an earlier trunk")
    modules = {name: network.get_submodule(name) for name in trunk.outermost}
    calls, _ = _record(lambda: network(inputs), modules, trunk.stage, trunk.kept)
    return calls


def run_tail(network: nn.Module, trunk: Trunk, features: Features, inputs: Tensor, repeats: int = 1) -> Tensor:
    """The logits (repeats * B, C) of a network with this trunk: its forward pass, in which the trunk is not computed again.

    The forward hooks of the stage act, so that its noise is drawn, for each repetition anew. Row r * B + i belongs to image i
    in repetition r. The features are left as they were.

    Memory: that of a forward pass of the tail for repeats * B images, which includes `repeats` copies of the features.

    Args:
        network: the trunk in eval mode; the one that computed the features or another of the same `trunk_digest`.
        features: from `trunk_outputs`.
        inputs: the images (B, 3, H, W) that the features belong to.

    Raises:
        ValueError: this network's forward cannot be repeated along the batch in this way.
    """
    outputs: dict[str, deque[Any]] = {}
    for call in features:
        outputs.setdefault(call.module, deque()).append(call.output)
    images = _repeated(inputs if trunk.keeps_inputs else NotKept.of(inputs), len(inputs), repeats)
    with contextlib.ExitStack() as stack:
        for name, stored in outputs.items():
            stack.enter_context(_replaying(network.get_submodule(name), stored, len(inputs), repeats))
        logits: Tensor = network(images)
    if len(logits) != repeats * len(inputs):
        raise ValueError(f"{type(network).__name__} gives {len(logits)} rows for {repeats} x {len(inputs)} images")
    return logits


@contextlib.contextmanager
def _replaying(module: nn.Module, stored: deque[Any], batch: int, repeats: int) -> Iterator[None]:
    """Within the context the module's forward gives the stored outputs, one per call, and computes again after the last."""
    compute = module.forward
    own = vars(module).get("forward")  # set on the object itself and not on its class

    def replay(*args: Any, **kwargs: Any) -> Any:
        if not stored:
            return compute(*args, **kwargs)
        output = stored.popleft()
        return tree_map_only((Tensor, NotKept), lambda value: _repeated(value, batch, repeats), output)

    module.forward = replay
    try:
        yield
    finally:
        del module.forward
        if own is not None:
            module.forward = own


def _repeated(value: Tensor | NotKept, batch: int, repeats: int) -> Tensor:
    """A copy, since the tail may write into it, with `repeats` times the batch where the first dimension is the batch."""
    times = repeats if value.shape[:1] == (batch,) else 1
    if isinstance(value, NotKept):
        shape = torch.Size((times * value.shape[0], *value.shape[1:])) if value.shape else value.shape
        return NotKept(shape, value.dtype, value.device).stand_in()
    return value.clone() if times == 1 else torch.cat([value] * times)


def _not_kept(call: Call) -> Call:
    return Call(call.module, tree_map_only(Tensor, NotKept.of, call.output))


def check_trunk(
    network: nn.Module, trunk: Trunk, images: Tensor, repeats: int = 1, computed_by: nn.Module | None = None
) -> bool:
    """Whether trunk and tail give bit for bit the logits of a plain forward pass without noise.

    The trunk is computed by the network itself, or by the network `computed_by`, whose features are to be shared.

    With `repeats` it is also checked that the tail can be repeated along the batch. Other batch sizes may round otherwise, so
    that these logits need to agree to one per cent only, which is enough to see a row that belongs to another image.

    Args:
        network: in eval mode.
        images: normalised images (B, 3, H, W), B >= 2 and different if `repeats` is to be checked.
    """
    with noise_off(network):
        plain = network(images)
        try:
            features = trunk_outputs(computed_by or network, trunk, images)
            same = torch.equal(plain, run_tail(network, trunk, features, images))
            if repeats > 1:
                rows, wanted = run_tail(network, trunk, features, images, repeats), torch.cat([plain] * repeats)
                same = same and bool((rows - wanted).norm() <= 0.01 * wanted.norm())
        except Exception:  # a foreign forward may raise anything at a stand-in
            return False
    return same


def first_noisy(network: nn.Module, size: int) -> str | None:
    """The name of the module whose noise acts first in a forward pass in eval mode.

    None if no noise acts in eval mode, or if some acts inside an attention: what comes before that is the output of no module.

    Args:
        size: the side in pixels of the square image of the trial forward pass, which is made if several stages have noise.
    """
    hooks = [hook for hook in stage_hooks(network) if hook.test]
    names = [] if any(isinstance(hook, AttentionHook) for hook in hooks) else [hook.placement.module for hook in hooks]
    if len(names) < 2:
        return names[0] if names else None
    first: list[str] = []

    def end(name: str) -> None:
        first.append(name)
        raise _StageReached

    handles = [
        network.get_submodule(name).register_forward_hook(lambda module, inputs, output, name=name: end(name), prepend=True)
        for name in names
    ]
    try:
        with torch.no_grad(), _evaluating(network), contextlib.suppress(_StageReached):
            network(torch.zeros(1, 3, size, size, device=next(network.parameters()).device))
    finally:
        for handle in handles:
            handle.remove()
    return first[0] if first else None


@contextlib.contextmanager
def noise_off(network: nn.Module) -> Iterator[None]:
    """Within the context the noise that is attached to the network does not act in eval mode."""
    switches = [(hook, hook.test) for hook in stage_hooks(network)]
    try:
        for hook, _ in switches:
            hook.test = False
        yield
    finally:
        for hook, test in switches:
            hook.test = test


@contextlib.contextmanager
def _evaluating(network: nn.Module) -> Iterator[None]:
    """Within the context the network is in eval mode and without noise."""
    modes = [(module, module.training) for module in network.modules()]
    try:
        network.eval()
        with noise_off(network):
            yield
    finally:
        for module, mode in modes:
            module.training = mode
