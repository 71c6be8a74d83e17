"""Whether noise at a place in a network does anything: `logit_change` measures how much it changes the logits.

A gate multiplies each site by one scalar, and not every place lets this scalar reach the logits: a normalisation of each site
removes it, and a classifier that reads only the class token never sees the patch tokens of the last block. Additive noise
that all channels share is removed by the centring of such a normalisation.
"""

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from gch_bench.noise.hooks import AttentionHook, Placement, StageHook, never_called, stage_hooks
from gch_bench.noise.mechanism import Mechanism
from gch_bench.noise.stages import places_of, stage_modules
from gch_bench.rng import generator, own_draws

MINIMUM_CHANGE = 1e-4  # relative change of the logits; noise that is cancelled later changes them by at most 3e-5
DRAWS = 2  # how many forward passes with noise are made; their squared changes are averaged
MOST_DRAWS = 32  # if the noise changed nothing in the first draws, as some noise acts rarely, more are made
PERTURBATION = 0.1  # standard deviation of what is added to the weights, in units of 1 / sqrt(fan-in)
IMAGES = 2  # BatchNorm needs at least two where a map has one site only


class CannotAct(ValueError):
    """The noise cannot act in this network as it should, whatever its images."""


class NoiseDoesNothing(CannotAct):
    """Noise at the requested stage does not reach the logits."""


class Change(NamedTuple):
    """What the noise changes: root mean squares of ||with noise - without|| over images and draws, relative to ||without||."""

    logits: float
    stage: float  # the same of the stage's own output; of several stages the largest
    height: int  # of the first stage's map, in sites
    width: int
    calls: tuple[int, ...]  # how often a forward pass calls the module of each place


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
            CannotAct: the forward pass fails when tokens are removed, or the residual branches have maps of different layouts.
        """
        hooks = [_recorder(place, self.model, mechanism) for place in places]
        handles = [hook.register(self.model.get_submodule(hook.placement.module)) for hook in hooks]
        squares: list[float] = []
        try:
            with own_draws(self.images.device, "logit change"):
                while len(squares) < MOST_DRAWS and not (len(squares) >= DRAWS and any(hook.difference for hook in hooks)):
                    noisy = self._logits() if mechanism.place != "tokens" else self._with_fewer_tokens(places)
                    squares.append(float((noisy - self.clean).double().square().sum()))
        finally:
            for handle in handles:
                handle.remove()
        unused = [hook.placement for hook in hooks if hook.map is None]
        if unused:
            raise ValueError(never_called(unused[0], self.model))
        if mechanism.place == "branch" and not mechanism.on_prefix_tokens:
            _check_layouts(self.model, hooks, square=self.images.shape[-1] == self.images.shape[-2])
        clean = float(self.clean.double().square().sum())
        logits = math.sqrt(sum(squares) / len(squares) / clean) if clean else 0.0
        outputs = [math.sqrt(hook.difference / hook.power) if hook.power else 0.0 for hook in hooks]
        calls = tuple(hook.called // len(squares) for hook in hooks)
        return Change(logits, max(outputs), *(hooks[0].map or (0, 0)), calls)

    def _with_fewer_tokens(self, places: Sequence[Placement]) -> Tensor:
        try:
            return self._logits()
        except ValueError:  # of a hook, which says itself what is wrong
            raise
        except Exception as error:  # the first pass, without noise, did not fail
            where = ", ".join(f"stage {place.stage} ({place.module})" for place in places)
            why = (str(error).splitlines() or [""])[0]
            raise CannotAct(
                f"{type(self.model).__name__} needs all its tokens: its forward pass fails when injection=removal removes some"
                f" after {where} ({type(error).__name__}: {why}); choose another injection, or a model such as ViT"
            ) from error

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
        self.map: tuple[int, int] | None = None  # of the last call

    def noisy(self, output: Tensor) -> Tensor:
        noisy = super().noisy(output)
        height, width = self.grid(output)[1].shape[2:]
        self.map = (height, width)
        same_shape = noisy.shape == output.shape  # otherwise tokens were removed, which counts as a change of the whole output
        self.difference += float((noisy - output if same_shape else output).double().square().sum())
        self.power += float(output.double().square().sum())
        return noisy


class _AttentionRecorder(AttentionHook):
    """A noise hook inside an attention. What it changes in the module's output is not measured and counts as everything."""

    def __init__(self, placement: Placement, model: nn.Module, mechanism: Mechanism) -> None:
        super().__init__(placement, model, mechanism, train=True, test=True)
        self.difference, self.power = 1.0, 1.0
        self.map: tuple[int, int] | None = None

    def masked(self, module: nn.Module, inputs: tuple, named: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
        self.map = self.token_grid(inputs[0].shape[1])[1:]
        return super().masked(module, inputs, named)


def _recorder(placement: Placement, model: nn.Module, mechanism: Mechanism) -> _Recorder | _AttentionRecorder:
    kind = _AttentionRecorder if mechanism.place == "attention" else _Recorder
    return kind(placement, model, mechanism)


def _check_layouts(model: nn.Module, branches: Sequence[_Recorder | _AttentionRecorder], square: bool) -> None:
    """Refuse residual branches whose layout is not the network's.

    Such a branch shows by a map of another size than the stage's first branch, or by one that is not square where the images
    are. An example is MaxViT, where convolutions give NCHW and attentions NHWC.
    """
    for branch in branches:
        first = next(each for each in branches if each.placement.stage == branch.placement.stage)
        if branch.map is None or first.map is None:
            continue
        narrow = square and branch.map[0] != branch.map[1] and branch.map != branch.patch_grid
        if narrow or branch.map != first.map:
            sizes = {each.placement.module: f"{each.map[0]}x{each.map[1]}" for each in (first, branch) if each.map}
            raise CannotAct(
                f"gates on residual branches need the network's layout: read as {branch.output_format}, the branches of stage"
                f" {branch.placement.stage} of {type(model).__name__} have maps of"
                f" {' and '.join(f'{size} ({module})' for module, size in sizes.items())};"
                " choose another stage, injection=multiplicative, or noise of whole samples (law=bernoulli_sample)"
            )


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
    switches = {
        hook: (hook.train, hook.test) for hook in stage_hooks(model) if not isinstance(hook, (_Recorder, _AttentionRecorder))
    }
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
    places = [place for stage in stages for place in places_of(model, mechanism, stage)]
    return Probe(model, images).change(mechanism, places).logits


def check_acts(model: nn.Module, mechanism: Mechanism, stages: Sequence[str], images: Tensor) -> list[Change]:
    """What the noise changes when it acts at each of `stages` alone, for images (B, C, H, W).

    Raises:
        CannotAct: see `Probe.change`.
        NoiseDoesNothing: a change is under MINIMUM_CHANGE; the message says why, and which stages of this network work.
    """
    probe = Probe(model, images)
    changes = []
    for stage in stages:
        places = places_of(model, mechanism, stage)
        change = probe.change(mechanism, places)
        if change.logits < MINIMUM_CHANGE:
            raise NoiseDoesNothing(_refusal(probe, mechanism, stage, places, change))
        changes.append(change)
    return changes


def _refusal(probe: Probe, mechanism: Mechanism, stage: str, places: Sequence[Placement], change: Change) -> str:
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
            f" {_working(probe, mechanism, places)}"
        )
    modules = ", ".join(place.module for place in places)
    return (
        f"noise at stage {stage} ({modules}) does nothing: it changes the logits of {type(probe.model).__name__}"
        f" by a relative {change.logits:.1e}, under {MINIMUM_CHANGE:.0e}; {why}"
    )


def _working(probe: Probe, mechanism: Mechanism, tried: Sequence[Placement]) -> str:
    """A sentence that lists the stages L1..L4 of this network at which the noise acts, with the measured changes."""
    found = []
    for stage, module in stage_modules(probe.model).items():
        with contextlib.suppress(ValueError):  # of a stage whose map is too small for the kernel
            places = places_of(probe.model, mechanism, stage)
            same = [place.module for place in places] == [place.module for place in tried]
            change = 0.0 if same else probe.change(mechanism, places).logits
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
