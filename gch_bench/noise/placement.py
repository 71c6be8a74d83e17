"""Where noise is placed in a network, and whether it does anything there.

A gate multiplies each site by one scalar, and not every place lets this scalar reach the logits: a normalisation of each site
removes it, and a classifier that reads only the class token never sees the patch tokens of the last block. Additive noise
that all channels share is removed by the centring of such a normalisation. `stage_modules` says which modules the stages L1..L4
are; `logit_change` measures how much the noise at a stage changes the logits.
"""

import contextlib
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from gch_bench.noise.hooks import Placement, StageHook, never_called, stage_hooks
from gch_bench.noise.mechanism import Mechanism
from gch_bench.rng import generator, own_draws

MINIMUM_CHANGE = 1e-4  # relative change of the logits; noise that is cancelled later changes them by at most 3e-5
DRAWS = 2  # how many forward passes with noise are made; their squared changes are averaged
MOST_DRAWS = 32  # if the noise changed nothing in the first draws, as some noise acts rarely, more are made
PERTURBATION = 0.1  # standard deviation of what is added to the weights, in units of 1 / sqrt(fan-in)
IMAGES = 2  # BatchNorm needs at least two where a map has one site only
HEAD = ("global_pool", "attn_pool", "fc_norm", "head_drop", "pre_logits", "head", "fc", "classifier")  # timm's


class NoiseDoesNothing(ValueError):
    """Noise at the requested stage does not reach the logits."""


def feature_stages(model: nn.Module) -> dict[str, str]:
    """The module names of L1..L4 (early..late) by timm's `feature_info`; {} for a network that has no `feature_info`.

    In a hierarchical backbone these are the modules that end its last four resolutions. In a backbone with one resolution
    throughout (ViT, Mixer) they are the blocks that end each quarter of the depth. A backbone with fewer than four such
    modules has only the last stages, for example L3 and L4.
    """
    info = getattr(model, "feature_info", None) or []
    entries = list(getattr(info, "info", info))
    names = [entry["module"] for entry in entries]
    if len({entry["reduction"] for entry in entries}) == 1:
        names = [names[math.ceil(quarter * len(names) / 4) - 1] for quarter in (1, 2, 3, 4)]
    names = names[-4:]
    return {f"L{5 - len(names) + i}": name for i, name in enumerate(names)}


def stage_modules(model: nn.Module) -> dict[str, str]:
    """The names of the modules whose outputs get the noise at L1..L4; {} for a network without timm's `feature_info`.

    L1..L3 are the backbone's own stages (`feature_stages`). L4 is the last place where one scalar per site still reaches the
    logits. This is a definition of this project (docs/definitions.md).
    """
    stages = feature_stages(model)
    return stages | {"L4": _last_place(model, stages["L4"])} if stages else {}


def _last_place(model: nn.Module, last_stage: str) -> str:
    """The name of the last module whose output holds one vector per site, each of which the logits depend on.

    If the classifier reads only the class token, this is the first norm of the last block whose attention mixes tokens (in
    CaiT and XCiT the last class-attention block). Otherwise it is the last module before the pooling, possibly a final norm.
    """
    children = dict(model.named_children())
    if getattr(model, "global_pool", None) == "token":
        for name, blocks in reversed(children.items()):
            if isinstance(blocks, (nn.ModuleList, nn.Sequential)) and len(blocks) and hasattr(blocks[-1], "norm1"):
                return f"{name}.{len(blocks) - 1}.norm1"
        return last_stage
    names = list(children)
    following = names[names.index(last_stage.split(".")[0]) + 1 :] if last_stage.split(".")[0] in names else []
    before_pooling = itertools.takewhile(lambda name: name not in HEAD, following)
    acting = [name for name in before_pooling if not isinstance(children[name], nn.Identity)]
    return acting[-1] if acting else last_stage


def find_stage(model: nn.Module, stage: str) -> str:
    """The module name of a stage: one of L1..L4, or a module's own name.

    Raises:
        ValueError: there is no such stage; the message lists the choices.
    """
    stages = stage_modules(model)
    name = stages.get(stage, stage)
    if name and name in dict(model.named_modules()):
        return name
    known = [f"{key} ({module})" for key, module in stages.items()]
    children = [child for child, _ in model.named_children()]
    raise ValueError(
        f"unknown stage {stage!r} of {type(model).__name__}: choose one of {', '.join(known) or '(no L1..L4 here)'},"
        f" or a module name inside {', '.join(children)}"
    )


class Change(NamedTuple):
    """What the noise changes: root mean squares of ||with noise - without|| over images and draws, relative to ||without||."""

    logits: float
    stage: float  # the same of the stage's own output; of several stages the largest
    height: int  # of the first stage's map, in sites
    width: int


class Probe:
    """Compares the logits of a network with and without noise, on a few images and with perturbed weights.

    The weights are perturbed because a network at initialisation may hide every noise: its classifier, its last gammas and its
    layer scales may start at zero. Each weight gets N(0, (0.1 / sqrt(fan-in))^2) added, each component of a vector
    N(0, 0.1^2). Everything is in eval mode except BatchNorm, which normalises with the statistics of these images, because the
    running statistics of an untrained network fit nothing. Weights, buffers, modes, noise that is attached already and the
    state of the global generators are left as they were.

    Args:
        model: the network.
        images: normalised images (B, C, H, W); B >= 2 if a BatchNorm sees a map of one site.

    Raises:
        TypeError: the network's output is not a tensor.
    """

    def __init__(self, model: nn.Module, images: Tensor) -> None:
        self.model = model
        self.images = images
        self.tensors = perturbed(model)
        self.clean = self._logits()

    def change(self, mechanism: Mechanism, places: Sequence[Placement]) -> Change:
        """Measure what `mechanism` changes when it acts at all of `places` at once.

        Raises:
            ValueError: the output at a place is no map and no token grid, or the forward pass never reaches the place.
        """
        hooks = [_Recorder(place, self.model, mechanism) for place in places]
        handles = [self.model.get_submodule(hook.placement.module).register_forward_hook(hook) for hook in hooks]
        squares: list[float] = []
        try:
            with own_draws(self.images.device, "logit change"):
                while len(squares) < MOST_DRAWS and not (len(squares) >= DRAWS and any(hook.difference for hook in hooks)):
                    squares.append(float((self._logits() - self.clean).double().square().sum()))
        finally:
            for handle in handles:
                handle.remove()
        unused = [hook.placement for hook in hooks if hook.map is None]
        if unused:
            raise ValueError(never_called(unused[0], self.model))
        clean = float(self.clean.double().square().sum())
        logits = math.sqrt(sum(squares) / len(squares) / clean) if clean else 0.0
        outputs = [math.sqrt(hook.difference / hook.power) if hook.power else 0.0 for hook in hooks]
        return Change(logits, max(outputs), *(hooks[0].map or (0, 0)))

    def _logits(self) -> Tensor:
        with torch.no_grad(), _quiet(self.model):
            logits = functional_call(self.model, self.tensors, (self.images,))
        if not isinstance(logits, Tensor):
            raise TypeError(f"{type(self.model).__name__} must give a tensor of logits, got {type(logits).__name__}")
        return logits


class _Recorder(StageHook):
    """A noise hook that also sums the squares of the output and of what the noise changed in it."""

    def __init__(self, placement: Placement, model: nn.Module, mechanism: Mechanism) -> None:
        super().__init__(placement, model, mechanism, train=True, test=True)
        self.difference, self.power = 0.0, 0.0
        self.map: tuple[int, int] | None = None

    def __call__(self, module: nn.Module, inputs: tuple, output: Tensor) -> Tensor:
        noisy = super().__call__(module, inputs, output)
        height, width = self.grid(output)[1].shape[2:]
        self.map = (height, width)
        self.difference += float((noisy - output).double().square().sum())
        self.power += float(output.double().square().sum())
        return noisy


def perturbed(model: nn.Module) -> dict[str, Tensor]:
    """Perturbed copies of the network's parameters and exact copies of its buffers, by name (see `Probe`)."""
    draws = generator("perturbed weights")
    tensors = {name: buffer.clone() for name, buffer in model.named_buffers()}
    for name, parameter in model.named_parameters():
        value = parameter.detach()
        if value.is_floating_point():
            fan_in = value[0].numel() if value.ndim > 1 and len(value) else 1
            step = torch.randn(value.shape, generator=draws) * (PERTURBATION / math.sqrt(fan_in))
            value = value + step.to(value.device, value.dtype)
        tensors[name] = value
    return tensors


@contextlib.contextmanager
def _quiet(model: nn.Module) -> Iterator[None]:
    """Within the context the network is in eval mode, but BatchNorm uses the statistics of the batch, and the noise that is
    attached already is off."""
    modes = {module: module.training for module in model.modules()}
    switches = {hook: (hook.train, hook.test) for hook in stage_hooks(model) if not isinstance(hook, _Recorder)}
    try:
        model.eval()
        for module in modes:
            module.training = module.training or isinstance(module, _BatchNorm)
        for hook in switches:
            hook.train = hook.test = False
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        for hook, (train, test) in switches.items():
            hook.train, hook.test = train, test


def logit_change(model: nn.Module, mechanism: Mechanism, stages: Sequence[str], images: Tensor) -> float:
    """The relative change of the logits when `mechanism` acts at all of `stages` at once, on perturbed weights (see `Probe`).

    It is the root mean square over images and draws of ||logits with noise - logits without||, divided by that of
    ||logits without||. Noise with a change under MINIMUM_CHANGE counts as doing nothing.

    Args:
        images: normalised images (B, C, H, W); B >= 2 if a BatchNorm sees a map of one site.

    Raises:
        ValueError: a stage is unknown, has no map and no token grid, or is never reached by the forward pass.
    """
    places = [Placement(stage, find_stage(model, stage)) for stage in stages]
    return Probe(model, images).change(mechanism, places).logits


def check_acts(model: nn.Module, mechanism: Mechanism, places: Sequence[Placement], images: Tensor) -> list[float]:
    """The relative change of the logits when the noise acts at each of `places` alone, for images (B, C, H, W).

    Raises:
        NoiseDoesNothing: a change is under MINIMUM_CHANGE; the message says why, and which stages of this network work.
    """
    probe = Probe(model, images)
    changes = []
    for place in places:
        change = probe.change(mechanism, [place])
        if change.logits < MINIMUM_CHANGE:
            raise NoiseDoesNothing(_refusal(probe, mechanism, place, change))
        changes.append(change.logits)
    return changes


def _refusal(probe: Probe, mechanism: Mechanism, place: Placement, change: Change) -> str:
    if change.stage == 0:
        why = (
            f"on the stage's {change.height}x{change.width} map it is the IDENTITY: use larger images, a smaller output stride"
            " or an earlier stage"
        )
    elif change.stage < MINIMUM_CHANGE:
        why = f"it changes the stage's own output by only {change.stage:.1e}: raise its strength"
    else:
        why = (
            "what follows cancels it (a normalisation of each site, or a classifier that does not read these tokens);"
            f" {_working(probe, mechanism, place)}"
        )
    return (
        f"noise at stage {place.stage} ({place.module}) does nothing: it changes the logits of {type(probe.model).__name__}"
        f" by a relative {change.logits:.1e}, under {MINIMUM_CHANGE:.0e}; {why}"
    )


def _working(probe: Probe, mechanism: Mechanism, place: Placement) -> str:
    """A sentence that lists the stages L1..L4 of this network at which the noise acts, with the measured changes."""
    found = []
    for stage, module in stage_modules(probe.model).items():
        with contextlib.suppress(ValueError):  # of a stage whose map is too small for the kernel
            change = probe.change(mechanism, [Placement(stage, module)]).logits if module != place.module else 0.0
            if change >= MINIMUM_CHANGE:
                found.append(f"{stage} ({module}, {change:.1e})")
    return f"stages of this network that work: {', '.join(found) or 'none of L1..L4 with this noise'}"


def random_images(height: int, width: int, channels: int = 3) -> Tensor:
    """Random images for measurements: (IMAGES, channels, height, width), N(0, 1) like normalised ones, always the same."""
    return torch.randn(IMAGES, channels, height, width, generator=generator("images"))


def own_size(model: nn.Module) -> tuple[int, int] | None:
    """Height and width in pixels of the images that a timm network was made for; None if the network does not tell."""
    facts: dict[str, Any] = getattr(model, "pretrained_cfg", None) or {}
    embedding = getattr(model, "patch_embed", None) or getattr(model, "stem", None)
    size = getattr(embedding, "img_size", None) or tuple(facts.get("input_size", ()))[1:]
    return (int(size[0]), int(size[1])) if size else None
