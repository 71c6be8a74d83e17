"""Attach noise to named stages of a network. The keys of the network's state dict do not change."""

import warnings
from collections.abc import Sequence

from torch import Tensor, nn

from gch_bench.noise.hooks import Placement, hook_for, stage_hooks
from gch_bench.noise.mechanism import Mechanism
from gch_bench.noise.placement import CannotAct, Change, check_acts, own_size, random_images
from gch_bench.noise.stages import places_of

GUESSED_SIZE = 128  # pixels, for a network that does not say which size it takes


def inject(
    model: nn.Module,
    mechanism: Mechanism,
    stages: Sequence[str],
    train: bool = True,
    test: bool = False,
    images: Tensor | None = None,
) -> list[Placement]:
    """Attach `mechanism` to `stages` of the network by forward hooks.

    Call it before `torch.compile`, before DDP and before an EMA copies the network. A network that is not timm's may declare
    the layout NHWC by an attribute `output_fmt = "NHWC"`, and its number of prefix tokens by an attribute `num_prefix_tokens`.

    Noise that does not reach the logits is refused: a few forward passes on perturbed copies of the weights compare the logits
    with and without the noise (`placement.logit_change`). If the network does not accept the images of these passes (it has no
    convolution, or its forward pass fails), a Python warning says that the noise was not checked. A mechanism of strength 0
    is what the user asked for, and is not checked.

    Args:
        model: the network; it is changed in place.
        mechanism: the noise.
        stages: L1..L4 of a timm backbone (see `stages.stage_modules`), or names of modules.
        train: whether the noise acts when the stage's module is in training mode.
        test: whether the noise acts when the stage's module is in eval mode.
        images: normalised images (B, C, H, W), B >= 2, for the check. Default: two random images of the size that a timm
            network was made for, or of 128 x 128 pixels.

    Returns:
        Where the noise was attached, in the order of `stages`; noise on residual branches or attentions has several places
        in a stage.

    Raises:
        ValueError: there is no stage, a stage is unknown (the message lists the choices), a module is named twice or has
            noise already, or its output has no map and no token grid. Nothing is attached then.
        CannotAct: a ValueError, too: the network needs all its tokens, its residual branches have different layouts, or the
            noise does nothing (NoiseDoesNothing; the message names the stages that work). Nothing is attached then.
    """
    if isinstance(stages, str) or not stages:
        raise ValueError(f"stages must be a non-empty list such as ['L4'], got {stages!r}")
    places = {stage: places_of(model, mechanism, stage) for stage in stages}
    modules = [place.module for stage in stages for place in places[stage]]
    names = modules + [hook.placement.module for hook in stage_hooks(model)]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise ValueError(f"stages must name different modules without noise, got {', '.join(sorted(twice))} twice")
    removing = [stage for stage in stages if mechanism.place == "tokens"]
    removing += [hook.placement.stage for hook in stage_hooks(model) if hook.mechanism.place == "tokens"]
    if len(removing) > 1:
        raise ValueError(f"injection=removal needs one stage: the tokens left form no grid, got {', '.join(removing)}")
    changes = _changes(model, mechanism, stages, images)
    for stage, change in zip(stages, changes, strict=True):
        for i, place in enumerate(places[stage]):
            hook = hook_for(place, model, mechanism, train, test)
            if change is None:
                hook.logit_change = 0.0 if mechanism.is_off else None
            else:
                hook.logit_change, hook.calls = change.logits, change.calls[i]
            hook.register(model.get_submodule(place.module))
    return [place for stage in stages for place in places[stage]]


def _changes(model: nn.Module, mechanism: Mechanism, stages: Sequence[str], images: Tensor | None) -> list[Change] | list[None]:
    """What each stage's noise changes; None where it was not measured, as for noise of strength 0."""
    if mechanism.is_off:
        return [None] * len(stages)
    if images is not None:
        return check_acts(model, mechanism, stages, images)
    size = own_size(model)
    convolution = next((module for module in model.modules() if isinstance(module, nn.Conv2d)), None)
    reason: object = "it has no convolution"
    if convolution is not None:
        guess = random_images(*(size or (GUESSED_SIZE, GUESSED_SIZE)), channels=convolution.in_channels)
        try:
            return check_acts(model, mechanism, stages, guess.to(convolution.weight))
        except CannotAct:
            raise
        except Exception as error:  # an unknown network may raise anything when the images do not fit it
            if size and isinstance(error, ValueError):
                raise
            reason = error
    warnings.warn(
        f"whether the noise reaches the logits of {type(model).__name__} was not checked, because its images are not known"
        f" ({reason}): give inject(..., images=...)",
        stacklevel=3,
    )
    return [None] * len(stages)
