"""BatchNorm under internal noise: how much the noise inflates the running variances, and re-estimation without it.

Noise before a BatchNorm layer inflates the variance that the layer records in training, and a noise-free evaluation then
divides by it: a side effect that has nothing to do with what the noise taught the network (theory 1.3).
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from gch_bench import distributed
from gch_bench.distributed import World
from gch_bench.noise.hooks import image_seeds, stage_hooks
from gch_bench.rng import seed_of
from gch_bench.training.freeze import FrozenPart

MAX_BATCHES = 200  # batches of each process that a re-estimation looks at, as in PreciseBN (Wu and Johnson, arXiv 2105.07576)
MAX_IMAGES = 64  # images on which the inflation is measured
LEAST_INFLATION = 1.01  # smaller ones are not worth a warning


def batchnorms(network: nn.Module, frozen: FrozenPart) -> dict[str, _BatchNorm]:
    """The layers whose running statistics training moves, by name, in module order."""
    return {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, _BatchNorm) and module.running_mean is not None and name not in frozen.modules
    }


def reestimate(network: nn.Module, layers: dict[str, _BatchNorm], batches: Iterable[Tensor], noise: bool = False) -> None:
    """Replace the layers' running statistics by their plain averages over the batches of images (B, 3, H, W).

    Everything but the layers is in eval mode (no dropout, no stochastic depth); `noise` says whether the internal noise acts.
    Without it nothing is drawn at random. The network's mode is kept.
    """
    modes = {module: module.training for module in network.modules()}
    momenta = {name: layer.momentum for name, layer in layers.items()}
    network.eval()
    try:
        for layer in layers.values():
            layer.reset_running_stats()
            layer.momentum = None  # torch's word for the cumulative average
            layer.training = True
        with torch.no_grad(), noise_switched(network, noise):
            for images in batches:
                network(images)
    finally:
        for module, mode in modes.items():
            module.training = mode
        for name, layer in layers.items():
            layer.momentum = momenta[name]


def recalibrate(
    network: nn.Module, frozen: FrozenPart, batches: Iterable[Tensor], world: World, limit: int = MAX_BATCHES
) -> None:
    """Re-estimate the statistics without noise on each process's first `limit` batches; all processes end up with the same.

    The layers of the frozen part keep theirs. A network without BatchNorm stays as it is.
    """
    layers = batchnorms(network, frozen)
    if not layers:
        return
    reestimate(network, layers, islice(batches, limit))
    for layer in layers.values():  # the batches of all processes count the same
        for value in (layer.running_mean, layer.running_var):
            assert value is not None
            value.copy_(distributed.all_reduce(value, world) / world.size)


def inflation(network: nn.Module, frozen: FrozenPart, images: Tensor, seed: int) -> dict[str, float]:
    """Layer name -> how many times larger its variance is with the noise than without, on these images (B, 3, H, W).

    The mean over channels of the ratio. Leaves the network's statistics and the global generators as they were.
    """
    layers = batchnorms(network, frozen)
    kept = {name: {key: value.clone() for key, value in layer.state_dict().items()} for name, layer in layers.items()}
    variances = []
    try:
        for noise in (False, True):
            with image_seeds(network, [seed_of(seed, "inflation", i) for i in range(len(images))]):
                reestimate(network, layers, [images], noise)
            variances.append({name: layer.state_dict()["running_var"].clone() for name, layer in layers.items()})
    finally:
        for name, layer in layers.items():
            layer.load_state_dict(kept[name])
    clean, noisy = variances
    return {name: float((noisy[name] / clean[name].clamp_min(1e-12)).mean()) for name in layers}


@contextmanager
def noise_switched(network: nn.Module, on: bool) -> Iterator[None]:
    """Within the context the noise at every stage acts, or not, whatever the mode of the stage's module."""
    hooks = stage_hooks(network)
    before = [(hook.train, hook.test) for hook in hooks]
    for hook in hooks:
        hook.train = hook.test = on
    try:
        yield
    finally:
        for hook, (train, test) in zip(hooks, before, strict=True):
            hook.train, hook.test = train, test
