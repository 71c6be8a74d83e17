"""The placement atlas: whether each mechanism reaches the logits at each stage of a network, and how much it distorts them."""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from gch_bench.apps.compatibility.bench import noisy_passes, open_stage
from gch_bench.noise.mechanism import Mechanism
from gch_bench.noise.placement import MINIMUM_CHANGE, perturbed
from gch_bench.noise.stages import stage_modules
from gch_bench.training.batchnorm import batchnorms, reestimate
from gch_bench.training.freeze import NOTHING


class Place(NamedTuple):
    """One mechanism at one stage of one network. Changes are roots of mean squares over images and passes."""

    network: str
    stage: str
    module: str
    height: int
    width: int
    mechanism: str
    logit_change: float  # ||logits~ - logits|| / ||logits||; NaN where the mechanism cannot act
    map_change: float  # the same of the stage's map; NaN for noise inside the stage
    survives: bool  # whether the change of the logits is at least MINIMUM_CHANGE
    note: str  # why the mechanism cannot act


def atlas(
    network: nn.Module,
    label: str,
    images: Tensor,
    mechanisms: Mapping[str, Mechanism],
    passes: int,
    progress: Callable[[str, int], None] = lambda note, places: None,
) -> Iterator[Place]:
    """Every mechanism at L1..L4 of a network in eval mode, on normalised images (M, 3, S, S)."""
    for stage, module in stage_modules(network).items():
        bench = open_stage(network, stage, images)
        clean_map, clean = bench.map_MCHW, bench.logits_MK
        height, width = clean_map.shape[2:]
        for name, mechanism in mechanisms.items():
            logits, maps, note = [], [], ""
            try:
                for each in noisy_passes(bench, mechanism, passes, seed=0):
                    logits.append(float((each.logits_MK - clean).square().sum() / clean.square().sum()))
                    if each.map_MCHW is not None:
                        maps.append(float((each.map_MCHW - clean_map).square().sum() / clean_map.square().sum()))
            except ValueError as error:
                note = str(error)
            change, moved = _root(logits), _root(maps)
            yield Place(label, stage, module, height, width, name, change, moved, change >= MINIMUM_CHANGE, note)
            progress(f"{label} {stage} {name}", 1)


def _root(squares: list[float]) -> float:
    return math.sqrt(sum(squares) / len(squares)) if squares else math.nan


def settle(network: nn.Module, images: Tensor) -> None:
    """Give a network with random weights weights that hide no noise, and BatchNorm statistics of these images.

    The weights are perturbed as in `placement.Probe`: classifiers, last gammas and layer scales may start at zero.
    """
    with torch.no_grad():
        network.load_state_dict(perturbed(network), strict=False)
    reestimate(network, batchnorms(network, NOTHING), [images])
