"""BatchNorm with internal noise: how much the noise inflates the running variances, and how to re-estimate them without noise.

Noise before a BatchNorm layer inflates the variance that the layer records in training. An evaluation without noise then
divides by this variance, which is too large. This changes the results, although it has nothing to do with what the noise taught
the network (docs/definitions.md).
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from gch_bench import distributed
from gch_bench.distributed import World
from gch_bench.model.trunk import Trunk
from gch_bench.noise.draws import image_keys
from gch_bench.noise.hooks import keyed_noise, stage_hooks

# The number of batches that each process uses for a re-estimation, as in PreciseBN (Wu and Johnson, arXiv 2105.07576).
MAX_BATCHES = 200
MAX_IMAGES = 64  # images on which the inflation is measured
LEAST_INFLATION = 1.01  # a smaller inflation is not worth a warning


def batchnorms(network: nn.Module, frozen: Trunk) -> dict[str, _BatchNorm]:
    """Name -> BatchNorm layer, in module order, for the layers whose running statistics training changes.

    Layers of the frozen part and layers without running statistics are left out.
    """
    return {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, _BatchNorm) and module.running_mean is not None and name not in frozen.modules
    }


def reestimate(network: nn.Module, layers: dict[str, _BatchNorm], batches: Iterable[Tensor], noise: bool = False) -> None:
    """Replace the layers' running statistics by the plain averages of their batch statistics over `batches`.

    Args:
        batches: images (B, 3, H, W), normalised, on the network's device.
        noise: whether the internal noise acts in these forward passes. Without it nothing is drawn at random.

    All modules but these layers are in eval mode during the passes, so dropout and stochastic depth are off. Afterwards the
    mode of every module and the layers' momenta are as they were before.
    """
    modes = {module: module.training for module in network.modules()}
    momenta = {name: layer.momentum for name, layer in layers.items()}
    network.eval()
    try:
        for layer in layers.values():
            layer.reset_running_stats()
            layer.momentum = None  # this makes torch average all batches with equal weight
            layer.training = True
        with torch.no_grad(), noise_switched(network, noise):
            for images in batches:
                network(images)
    finally:
        for module, mode in modes.items():
            module.training = mode
        for name, layer in layers.items():
            layer.momentum = momenta[name]


def recalibrate(network: nn.Module, frozen: Trunk, batches: Iterable[Tensor], world: World, limit: int = MAX_BATCHES) -> None:
    """Re-estimate the running statistics without noise on the first `limit` batches of each process.

    The results are averaged over the processes, so that all of them end with the same statistics. The layers of the frozen part
    keep their own, and a network without BatchNorm stays as it is. All processes must call it.
    """
    layers = batchnorms(network, frozen)
    if not layers:
        return
    reestimate(network, layers, islice(batches, limit))
    for layer in layers.values():  # all processes have equally many batches, so a plain mean weights every batch the same
        for value in (layer.running_mean, layer.running_var):
            assert value is not None
            value.copy_(distributed.all_reduce(value, world) / world.size)


def inflation(network: nn.Module, frozen: Trunk, images: Tensor, seed: int) -> dict[str, float]:
    """Layer name -> how many times larger its running variance is with the noise than without, on `images` (B, 3, H, W).

    The ratio is averaged over the layer's channels. The noise on image i is drawn from (`seed`, i). Afterwards the network's
    statistics and the global generators are as they were before.
    """
    layers = batchnorms(network, frozen)
    kept = {name: {key: value.clone() for key, value in layer.state_dict().items()} for name, layer in layers.items()}
    variances = []
    try:
        for noise in (False, True):
            with keyed_noise(network, image_keys(torch.arange(len(images)), seed, "inflation")):
                reestimate(network, layers, [images], noise)
            variances.append({name: layer.state_dict()["running_var"].clone() for name, layer in layers.items()})
    finally:
        for name, layer in layers.items():
            layer.load_state_dict(kept[name])
    clean, noisy = variances
    return {name: float((noisy[name] / clean[name].clamp_min(1e-12)).mean()) for name in layers}


@contextmanager
def noise_switched(network: nn.Module, on: bool) -> Iterator[None]:
    """Within the context the noise acts at every stage (`on`) or at none, in training mode and in eval mode alike."""
    hooks = stage_hooks(network)
    before = [(hook.train, hook.test) for hook in hooks]
    for hook in hooks:
        hook.train = hook.test = on
    try:
        yield
    finally:
        for hook, (train, test) in zip(hooks, before, strict=True):
            hook.train, hook.test = train, test
