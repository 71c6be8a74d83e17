"""recipe.freeze: train only what lies after a stage.

What lies after a stage is decided by one forward pass. A module whose forward is over by the time the stage's is belongs to
the frozen part, with everything inside it. So does every other parameter that the stage's output depends on, for instance
the position embedding of a vision transformer, which no module of its own holds.

The frozen part has no gradients and stays in eval mode, also while the rest is trained: its BatchNorm layers use and keep
their running statistics, and its dropout is off.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from gch_bench.errors import UserError
from gch_bench.noise.hooks import stage_hooks
from gch_bench.noise.placement import find_stage


class FrozenPart(NamedTuple):
    """What `freeze` holds still, by names in the network."""

    stage: str  # the module after which training begins
    modules: frozenset[str]  # all modules inside the frozen part, submodules included
    parameters: frozenset[str]


NOTHING = FrozenPart("", frozenset(), frozenset())


def freeze(network: nn.Module, stage: str | None, size: int) -> FrozenPart:
    """Switch off the gradients of everything up to the end of `stage` (L1..L4, or a module's name); None freezes nothing.

    `size` is the side in pixels of the square images of the trial forward pass. Call it before the optimiser and DDP are made.

    Raises:
        UserError: an unknown stage, one that the forward pass never reaches, one after which nothing is left to train, or
            one with noise inside the frozen part, where it would not act.
    """
    if stage is None:
        return NOTHING
    try:
        name = find_stage(network, stage)
    except ValueError as error:
        raise UserError(f"recipe.freeze={stage}: {error}") from error
    frozen = _frozen_part(network, name, size)
    if frozen is None:
        raise UserError(f"recipe.freeze={stage}: {name} is never called by the network's forward; choose another stage")
    if all(name in frozen.parameters for name, _ in network.named_parameters()):
        raise UserError(f"recipe.freeze={stage} leaves no parameter to train: choose an earlier stage")
    for hook in stage_hooks(network):
        if hook.placement.module in frozen.modules:
            raise UserError(
                f"recipe.freeze={stage} keeps {hook.placement.module} in eval mode, where the noise at stage"
                f" {hook.placement.stage} does not act: choose an earlier stage to freeze, or a later one in noise.stages"
            )
    for parameter_name, parameter in network.named_parameters():
        if parameter_name in frozen.parameters:
            parameter.requires_grad_(False)
    return frozen


def hold_still(network: nn.Module, frozen: FrozenPart) -> None:
    """Put the frozen part into eval mode; call it after every `train()`, which puts everything into training mode."""
    for name in frozen.modules:
        network.get_submodule(name).training = False


def _frozen_part(network: nn.Module, stage: str, size: int) -> FrozenPart | None:
    """What lies up to the end of the module `stage`, or None if the forward pass never reaches it."""
    over: list[str] = []  # the modules whose forward is over, up to the stage
    outputs: list[Tensor] = []  # the stage's

    def note(name: str, output: Tensor) -> None:
        if not outputs:
            over.append(name)
        if name == stage:
            outputs.append(output)

    names = [name for name, _ in network.named_modules() if name]
    handles = [
        network.get_submodule(name).register_forward_hook(lambda module, inputs, output, name=name: note(name, output))
        for name in names
    ]
    parameters = dict(network.named_parameters())
    was_training = network.training
    network.eval()
    try:
        device = next(iter(parameters.values())).device
        network(torch.zeros(1, 3, size, size, device=device))
        if not outputs:
            return None
        depends = torch.autograd.grad(outputs[0].sum(), list(parameters.values()), allow_unused=True)
    finally:
        for handle in handles:
            handle.remove()
        network.train(was_training)
    modules = {name for name in names if any(name == each or name.startswith(f"{each}.") for each in over)}
    upstream = {name for name, gradient in zip(parameters, depends, strict=True) if gradient is not None}
    inside = {name for name in parameters if name.rpartition(".")[0] in modules}
    return FrozenPart(stage, frozenset(modules), frozenset(inside | upstream))
