"""Where noise goes in a network, and whether it does anything there: stages L1..L4, and the measured change of the logits.

A gate is one scalar per site, and not every place lets it reach the logits: a normalisation of each site removes it, and a
classifier that reads the class token alone never sees the patch tokens of the last block. Additive noise that all channels
share is removed by the centring of such a normalisation. `stage_modules` says where L1..L4 are; `logit_change` measures.
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

MINIMUM_CHANGE = 1e-4  # of the logits, relative; what is cancelled changes them by 3e-5 at most (docs/definitions.md)
DRAWS = 2  # forward passes with noise, whose squared changes are averaged
MOST_DRAWS = 32  # for noise that acts so rarely that it did nothing at all in the first draws
PERTURBATION = 0.1  # standard deviation that is added to the weights, in units of 1 / sqrt(fan-in)
IMAGES = 2  # BatchNorm needs two images where a map has one site
HEAD = ("global_pool", "attn_pool", "fc_norm", "head_drop", "pre_logits", "head", "fc", "classifier")  # timm's names


class NoiseDoesNothing(ValueError):
    """The noise does not reach the logits from the stage that was asked for."""


def feature_stages(model: nn.Module) -> dict[str, str]:
    """L1..L4 (early..late) -> module names, from timm's `feature_info` alone; {} for a network that has none.

    Hierarchical backbones: the last four reductions. Isotropic ones (ViT, Mixer: one reduction throughout): the blocks
    that end each quarter of the depth. Fewer than four: they end at L4.
    """
    info = getattr(model, "feature_info", None) or []
    entries = list(getattr(info, "info", info))
    names = [entry["module"] for entry in entries]
    if len({entry["reduction"] for entry in entries}) == 1:
        names = [names[math.ceil(quarter * len(names) / 4) - 1] for quarter in (1, 2, 3, 4)]
    names = names[-4:]
    return {f"L{5 - len(names) + i}": name for i, name in enumerate(names)}


def stage_modules(model: nn.Module) -> dict[str, str]:
    """L1..L4 -> the modules whose outputs carry the noise; {} for a network without timm's `feature_info`.

    L1..L3 are the backbone's own stages (`feature_stages`). L4 is the last place where one scalar per site still reaches the
    logits. Definition of this project, docs/definitions.md.
    """
    stages = feature_stages(model)
    return stages | {"L4": _last_place(model, stages["L4"])} if stages else {}


def _last_place(model: nn.Module, last_stage: str) -> str:
    """The last module whose output holds one vector per site that the logits depend on.

    Where the classifier reads the class token alone: the first norm of the last block whose attention mixes tokens (CaiT and
    XCiT: of the last class-attention block). Elsewhere: the last module before the pooling, which may be a final norm.
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
        ValueError: no such stage; the message lists the choices.
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
    """Root mean square relative changes ||with noise - without|| / ||without|| over images and draws."""

    logits: float
    stage: float  # of the stages' own outputs, the largest
    height: int  # of the first stage's map
    width: int


class Probe:
    """A network that is looked at with and without noise, on perturbed weights and a few images; nothing of it changes.

    The weights are perturbed because a network at initialisation may be degenerate (classifiers, last gammas and layer scales
    that start at zero hide every noise): each gets N(0, (0.1 / sqrt(fan-in))^2) on top, vectors 0.1 N(0, 1). Everything is in
    eval mode but BatchNorm, which normalises with the statistics of these images: at initialisation its running statistics
    fit no network. Weights, buffers, modes, other noise and the global random state are as before afterwards.

    Args:
        images: (B, C, H, W), B >= 2 where a BatchNorm sees a map of one site.

    Raises:
        TypeError: the network gives no tensor.
    """

    def __init__(self, model: nn.Module, images: Tensor) -> None:
        self.model = model
        self.images = images
        self.tensors = perturbed(model)
        self.clean = self._logits()

    def change(self, mechanism: Mechanism, places: Sequence[Placement]) -> Change:
        """What `mechanism` at `places` (all at once) changes.

        Raises:
            ValueError: a place whose output is no map or token grid, or that the forward pass never reaches.
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
    """The hook that adds the noise, and sums how much it changed."""

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
    """Perturbed copies of the parameters and plain copies of the buffers, by name (see `Probe`)."""
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
    """Eval mode, BatchNorm on the statistics of its batch, and the noise that is already attached switched off."""
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
    """The relative change of the logits that `mechanism` makes at `stages` (all at once), on perturbed weights (see `Probe`).

    Root mean square over images (B, C, H, W) and draws of ||logits with noise - without|| / ||logits without||. Under
    MINIMUM_CHANGE the noise does nothing.

    Raises:
        ValueError: an unknown stage, one without a map or token grid, or one that the forward pass never reaches.
    """
    places = [Placement(stage, find_stage(model, stage)) for stage in stages]
    return Probe(model, images).change(mechanism, places).logits


def check_acts(model: nn.Module, mechanism: Mechanism, places: Sequence[Placement], images: Tensor) -> list[float]:
    """The relative change of the logits that the noise makes at each of `places` alone.

    Raises:
        NoiseDoesNothing: a change under MINIMUM_CHANGE; the message says why, and which stages of this network work.
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
    """The stages L1..L4 of this network at which the noise acts, measured, in words."""
    found = []
    for stage, module in stage_modules(probe.model).items():
        with contextlib.suppress(ValueError):  # a map that is too small for the kernel is no stage that works
            change = probe.change(mechanism, [Placement(stage, module)]).logits if module != place.module else 0.0
            if change >= MINIMUM_CHANGE:
                found.append(f"{stage} ({module}, {change:.1e})")
    return f"stages of this network that work: {', '.join(found) or 'none of L1..L4 with this noise'}"


def random_images(height: int, width: int, channels: int = 3) -> Tensor:
    """Two random images to measure with: (2, channels, height, width), N(0, 1) like normalised ones, always the same."""
    return torch.randn(IMAGES, channels, height, width, generator=generator("images"))


def own_size(model: nn.Module) -> tuple[int, int] | None:
    """Height and width of the images that a timm network was made for; None where it does not say."""
    facts: dict[str, Any] = getattr(model, "pretrained_cfg", None) or {}
    embedding = getattr(model, "patch_embed", None) or getattr(model, "stem", None)
    size = getattr(embedding, "img_size", None) or tuple(facts.get("input_size", ()))[1:]
    return (int(size[0]), int(size[1])) if size else None
