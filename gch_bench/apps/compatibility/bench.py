"""A network opened at one stage: the clean map there, and noisy forward passes from there on."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from gch_bench.model.trunk import Features, Trunk, check_trunk, find_trunk, run_tail, trunk_outputs
from gch_bench.noise.draws import image_keys
from gch_bench.noise.hooks import Placement, StageHook, hook_for, keyed_noise
from gch_bench.noise.mechanism import Mechanism
from gch_bench.noise.stages import find_stage, places_of

BATCH = 32  # images of a forward pass
MANY = 2**31  # more than how often a forward pass calls a module


class Pass(NamedTuple):
    """One noisy forward pass of all M images."""

    map_MCHW: Tensor | None  # the stage's map with noise; None for noise that does not act on the stage's output
    logits_MK: Tensor


@dataclass(frozen=True)
class Bench:
    """A network in eval mode without noise of its own, and what it computes for M images at one stage.

    Where the network's forward can be entered at the stage (model/trunk.py), what comes before is computed once.
    """

    network: nn.Module
    stage: str  # as the user named it
    module: str  # the module whose output the stage is
    images: Tensor  # (M, 3, S, S), normalised
    trunk: Trunk | None
    features: list[Features]  # of the trunk, one per batch; [] without trunk
    map_MCHW: Tensor
    logits_MK: Tensor
    norms: dict[str, Tensor]  # BatchNorm after the stage -> variance of its input over images and sites, (C,), in calling order

    def batches(self) -> Iterator[tuple[int, Tensor]]:
        for number, first in enumerate(range(0, len(self.images), BATCH)):
            yield number, self.images[first : first + BATCH]


def open_stage(network: nn.Module, stage: str, images: Tensor) -> Bench:
    """Run the network without noise on normalised images (M, 3, S, S), and keep what noisy passes at the stage need.

    Raises:
        ValueError: the stage is unknown, or its output is neither a feature map nor a token sequence with a patch grid.
    """
    network.eval()
    module = find_stage(network, stage)
    with torch.no_grad():
        trunk = find_trunk(network, module, images.shape[-1])
        if trunk is not None and not check_trunk(network, trunk, images[:2]):
            trunk = None
        parts = images.split(BATCH)
        features = [trunk_outputs(network, trunk, part) for part in parts] if trunk else []
        bench = Bench(network, stage, module, images, trunk, features, torch.empty(0), torch.empty(0), {})
        clean, norms = _run(bench, True, norms=True)
    assert clean.map_MCHW is not None
    return Bench(network, stage, module, images, trunk, features, clean.map_MCHW, clean.logits_MK, norms)


def noisy_passes(bench: Bench, mechanism: Mechanism, passes: int, seed: int) -> Iterator[Pass]:
    """Independent noisy passes of all images; the noise on image i in pass t depends on (seed, i, t) alone.

    Raises:
        ValueError: the mechanism cannot act at this stage.
    """
    places = places_of(bench.network, mechanism, bench.stage)
    for number in range(passes):
        with torch.no_grad(), _attached(bench.network, mechanism, places):
            yield _run(bench, mechanism.place == "output", seed=seed, number=number)[0]


def norm_variances(bench: Bench, mechanism: Mechanism, seed: int) -> dict[str, Tensor]:
    """BatchNorm after the stage -> the variance of its input under noise, (C,), in one noisy pass."""
    places = places_of(bench.network, mechanism, bench.stage)
    with torch.no_grad(), _attached(bench.network, mechanism, places):
        return _run(bench, mechanism.place == "output", seed=seed, norms=True)[1]


@contextmanager
def _attached(network: nn.Module, mechanism: Mechanism, places: list[Placement]) -> Iterator[None]:
    """Within the context the noise acts in eval mode."""
    handles = []
    for place in places:
        hook = hook_for(place, network, mechanism, train=False, test=True)
        hook.calls = MANY  # `_run` makes one pass in each `keyed_noise`, so that all calls have draws of their own
        handles.append(hook.register(network.get_submodule(place.module)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _run(bench: Bench, at_output: bool, seed: int = 0, number: int = 0, norms: bool = False) -> tuple[Pass, dict[str, Tensor]]:
    """One forward pass of all images with the noise that is attached, and the input variances of the BatchNorm layers.

    Noise inside the stage (not `at_output`) takes a pass of the whole network, and the stage's map is not looked at.
    """
    reader = StageHook(Placement(bench.stage, bench.module), bench.network, Mechanism(), train=False, test=False)
    maps, logits, moments = [], [], _Moments()
    shared = bench.trunk is not None and at_output
    with ExitStack() as stack:
        if at_output:

            def keep(module: nn.Module, inputs: tuple, output: Tensor) -> None:
                maps.append(reader.grid(output)[1])

            stack.callback(bench.network.get_submodule(bench.module).register_forward_hook(keep).remove)
        if norms:
            moments.watch(bench.network, bench.module, stack)
        for batch, images in bench.batches():
            moments.behind = False
            ids = torch.arange(batch * BATCH, batch * BATCH + len(images))
            with keyed_noise(bench.network, image_keys(ids, seed, "compatibility", number)):
                if shared and bench.trunk is not None:
                    logits.append(run_tail(bench.network, bench.trunk, bench.features[batch], images))
                else:
                    logits.append(bench.network(images))
    return Pass(torch.cat(maps) if maps else None, torch.cat(logits).double()), moments.variances()


class _Moments:
    """The variances over images and sites of what the BatchNorm layers behind a stage get."""

    def __init__(self) -> None:
        self.sums: dict[str, list[Any]] = {}  # layer -> [count, sum, sum of squares]
        self.behind = False  # whether the stage has ended in the forward pass under way

    def watch(self, network: nn.Module, stage: str, stack: ExitStack) -> None:
        """Watch the layers that are called after the module `stage`, until the stack is closed."""

        def end(module: nn.Module, inputs: tuple, output: Any) -> None:
            self.behind = True

        stack.callback(network.get_submodule(stage).register_forward_hook(end).remove)
        for name, module in network.named_modules():
            if isinstance(module, _BatchNorm):

                def add(module: nn.Module, inputs: tuple, name: str = name) -> None:
                    if not self.behind:
                        return
                    values = inputs[0].transpose(0, 1).flatten(1).double()
                    total = self.sums.setdefault(name, [0, 0.0, 0.0])
                    for i, part in enumerate((values.shape[1], values.sum(1), values.square().sum(1))):
                        total[i] = total[i] + part

                stack.callback(module.register_forward_pre_hook(add).remove)

    def variances(self) -> dict[str, Tensor]:
        return {name: squares / n - (total / n).square() for name, (n, total, squares) in self.sums.items()}
