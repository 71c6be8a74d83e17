"""recipe.freeze: train only the part of a network that lies after a stage.

A trial forward pass decides what is frozen (`find_trunk`). A module whose forward has ended when the stage's forward ends
belongs to the frozen part, with everything inside it. So does every other parameter that the stage's output depends on, for
instance the position embedding of a vision transformer, which belongs to the network itself and not to one of these modules.

The frozen part has no gradients and stays in eval mode, also while the rest is trained: its BatchNorm layers normalise with
their running statistics and do not update them, and its dropout is off.
"""

from torch import nn

from gch_bench.errors import UserError
from gch_bench.model.trunk import Trunk, find_trunk
from gch_bench.noise.hooks import stage_hooks
from gch_bench.noise.stages import find_stage

NOTHING = Trunk("", frozenset(), frozenset(), frozenset(), frozenset(), keeps_inputs=False)  # the frozen part where none is


def freeze(network: nn.Module, stage: str | None, size: int) -> Trunk:
    """Switch off the gradients of everything up to the end of `stage`. Call it before the optimiser and DDP are made.

    Args:
        stage: L1..L4 or a module's name; None freezes nothing.
        size: the side in pixels of the square images of the trial forward pass.

    Returns:
        What is frozen now. Pass it to `hold_still` after every `network.train()`.

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
    frozen = find_trunk(network, name, size)
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


def hold_still(network: nn.Module, frozen: Trunk) -> None:
    """Put the frozen part into eval mode. Call it after every `network.train()`, which puts all modules into training mode."""
    for name in frozen.modules:
        network.get_submodule(name).training = False
