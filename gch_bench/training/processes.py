"""What a training owes to its number of processes: synchronised BatchNorm, and what still depends on that number.

The images of an optimiser step, their augmentation and the internal noise do not depend on it. A training in which nothing else
does ends in the same weights for any number of processes, up to rounding.
"""

from timm.layers import DropBlock2d, DropPath, PatchDropout, convert_sync_batchnorm
from torch import nn
from torch.nn.modules.dropout import _DropoutNd

from gch_bench.config.run import RecipeConfig
from gch_bench.model.trunk import Trunk
from gch_bench.training.batchnorm import batchnorms

# Layers that draw from torch's global generators, and the attribute that holds their rate.
RANDOM_LAYERS = ((_DropoutNd, "p"), (DropPath, "drop_prob"), (DropBlock2d, "drop_prob"), (PatchDropout, "prob"))


def synchronise(network: nn.Module) -> None:
    """Replace every BatchNorm layer by one whose batch statistics in training are those of all processes' images.

    It is torch's SyncBatchNorm, or timm's for layers that include the activation. Parameters, buffers, their names and the
    hooks on the layers, such as the noise, stay the same. Call it before DDP and `torch.compile`.
    """
    before = dict(network.named_modules())
    convert_sync_batchnorm(network)
    for name, module in network.named_modules():
        if module is not before[name]:  # torch and timm leave the hooks behind
            vars(module).update({key: value for key, value in vars(before[name]).items() if key.endswith("_hooks")})


def process_dependence(network: nn.Module, recipe: RecipeConfig, frozen: Trunk) -> list[str]:
    """The reasons why this training depends on the number of processes, in words; [] if it does not, apart from rounding."""
    reasons = []
    if recipe.mixup > 0 or recipe.cutmix > 0:
        reasons.append("mixup and cutmix mix the images of one process")
    if any(_draws(module) for name, module in network.named_modules() if name not in frozen.modules):
        reasons.append("the backbone's own dropout or stochastic depth draws from each process's generator")
    if batchnorms(network, frozen) and not recipe.sync_bn:
        reasons.append("BatchNorm normalises over the images of one process (recipe.sync_bn=true: of all)")
    return reasons


def _draws(module: nn.Module) -> bool:
    return any(isinstance(module, kind) and (getattr(module, rate) or 0) > 0 for kind, rate in RANDOM_LAYERS)
