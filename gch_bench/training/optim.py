"""Makes timm's optimiser, schedule, mixing (mixup, cutmix), loss and averaging of the weights (EMA) from a recipe."""

from math import floor
from typing import Any, NamedTuple

import torch
from timm.data import Mixup
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import ModelEmaV3
from torch import nn

from gch_bench.config.run import RecipeConfig
from gch_bench.errors import UserError

MAX_FIRST_SHARE = 0.01  # largest share of the first step's weights in the final average that raises no warning


class Optimisation(NamedTuple):
    """Everything that changes the weights in training."""

    optimizer: torch.optim.Optimizer
    scheduler: Any  # timm's Scheduler, stepped after every update of the weights
    scaler: torch.amp.GradScaler  # does nothing unless recipe.amp is fp16
    mixup: Mixup | None
    loss: nn.Module
    ema: ModelEmaV3 | None


def create(
    recipe: RecipeConfig, model: nn.Module, num_classes: int, steps_per_epoch: int, device: torch.device
) -> Optimisation:
    """The optimisation of `model` that the recipe describes.

    Args:
        model: on `device`, not yet wrapped in DDP.
        steps_per_epoch: optimiser steps in an epoch, for the schedule.

    Raises:
        UserError: an optimiser or schedule that timm does not know, or fp16 without a GPU.
    """
    if recipe.amp == "fp16" and device.type != "cuda":
        raise UserError("recipe.amp must be none or bf16 without a GPU, got 'fp16'")
    try:
        optimizer = create_optimizer_v2(
            model, opt=recipe.optimizer, lr=recipe.scaled_lr, weight_decay=recipe.weight_decay, momentum=recipe.momentum
        )
        scheduler, _ = create_scheduler_v2(
            optimizer,
            sched=recipe.schedule,
            num_epochs=recipe.epochs,
            decay_milestones=recipe.milestones,
            decay_rate=recipe.decay_rate,
            min_lr=recipe.min_lr,
            warmup_epochs=recipe.warmup_epochs,
            warmup_lr=recipe.scaled_lr / 100,
            step_on_epochs=False,
            updates_per_epoch=steps_per_epoch,
        )
    except (AssertionError, KeyError, ValueError, TypeError) as error:
        raise UserError(f"recipe.optimizer={recipe.optimizer}, recipe.schedule={recipe.schedule}: {error}") from error
    if scheduler is None:
        raise UserError(f"recipe.schedule must be a schedule of timm (cosine, multistep, step, ...), got {recipe.schedule!r}")
    mixup = None
    if recipe.mixup > 0 or recipe.cutmix > 0:
        mixup = Mixup(
            mixup_alpha=recipe.mixup,
            cutmix_alpha=recipe.cutmix,
            label_smoothing=recipe.label_smoothing,
            num_classes=num_classes,
        )
    loss: nn.Module = nn.CrossEntropyLoss()
    if mixup is not None:
        loss = SoftTargetCrossEntropy()
    elif recipe.label_smoothing > 0:
        loss = LabelSmoothingCrossEntropy(recipe.label_smoothing)
    ema = ModelEmaV3(model, decay=recipe.ema_decay, use_warmup=True) if recipe.ema_decay is not None else None
    return Optimisation(optimizer, scheduler, torch.amp.GradScaler(device.type, enabled=recipe.amp == "fp16"), mixup, loss, ema)


def ema_warning(recipe: RecipeConfig, steps: int) -> str | None:
    """A warning if the averaging of the weights is too slow for a training of `steps` optimiser steps, else None.

    timm warms the decay up: at step n it is min(ema_decay, 1 - n^(-2/3)), so that little of the first step's weights is left in
    the average in any case. Without this warm-up their share at the end would be ema_decay^steps. Where that is above 1%, the
    warm-up and not ema_decay decides over how many steps the weights are averaged.
    """
    decay = recipe.ema_decay
    if decay is None or decay**steps <= MAX_FIRST_SHARE:
        return None
    reached = min(decay, 1 - steps ** (-2 / 3))
    return (
        f"recipe.ema_decay={decay:g} is too slow for {steps} steps: {decay:g}^{steps} = {decay**steps:.0%} of the average would"
        f" be the first step's weights without the warm-up, which ends at a decay of {reached:.3f} instead;"
        f" set recipe.ema_decay to at most {floor(1000 * MAX_FIRST_SHARE ** (1 / steps)) / 1000:.3f}, or null"
    )
