"""Finds out which part of the networks of a pass is computed once: for several networks, or for several noisy passes of one.

Networks that were trained with recipe.freeze from the same weights have the same trunk. Noisy passes of one network are alike
up to its first noisy stage. A trunk is only used if, on random images, trunk and tail give the logits of a plain forward pass
bit for bit, also where another network has computed the trunk.
"""

from collections import defaultdict
from collections.abc import Sequence

import torch

from gch_bench.evaluation.predict import Predictor
from gch_bench.model.trunk import Trunk, check_trunk, find_trunk, first_noisy, trunk_digest
from gch_bench.noise.placement import random_images
from gch_bench.noise.stages import find_stage


def with_trunks(predictors: Sequence[Predictor], frozen: Sequence[str | None], sizes: Sequence[int]) -> list[Predictor]:
    """The predictors with the trunks that save work.

    Args:
        predictors: the networks of a pass, in eval mode.
        frozen: for each network the stage up to which its weights were frozen in training (L1..L4 or a module's name), if any.
        sizes: the side in pixels of each network's images.
    """
    groups: dict[str, list[int]] = defaultdict(list)
    shared: dict[int, Trunk] = {}
    for number, (predictor, stage, size) in enumerate(zip(predictors, frozen, sizes, strict=True)):
        # Several noisy passes save more with a trunk that ends at the noise, which lies behind the frozen part.
        trunk = _frozen_trunk(predictor, stage, size) if predictor.noise_passes <= 1 else None
        if trunk is not None:
            shared[number] = trunk
            groups[f"{size} {trunk_digest(predictor.network, trunk)}"].append(number)
    found = list(predictors)
    for digest, members in groups.items():
        first = predictors[members[0]]
        alike = [number for number in members if _works(predictors[number], shared[number], sizes[number], first)]
        if len(alike) > 1 and alike[0] == members[0]:
            for number in alike:
                found[number] = predictors[number]._replace(trunk=shared[number], trunk_id=digest)
    for number, predictor in enumerate(found):
        if predictor.trunk is None and predictor.noise_passes > 1:
            found[number] = _with_own_trunk(predictor, sizes[number], f"of network {number}")
    return found


def _frozen_trunk(predictor: Predictor, stage: str | None, size: int) -> Trunk | None:
    if stage is None:
        return None
    try:
        name = find_stage(predictor.network, stage)
    except ValueError:  # another network than the one that was trained
        return None
    return find_trunk(predictor.network, name, size)


def _with_own_trunk(predictor: Predictor, size: int, name: str) -> Predictor:
    """The predictor with a trunk that ends at its first noisy stage."""
    stage = first_noisy(predictor.network, size)
    trunk = find_trunk(predictor.network, stage, size) if stage else None
    if trunk is None or not _works(predictor, trunk, size, predictor):
        return predictor
    return predictor._replace(trunk=trunk, trunk_id=name)


def _works(predictor: Predictor, trunk: Trunk, size: int, first: Predictor) -> bool:
    """Whether the predictor's tail gives the right logits on the features of the predictor `first`, which computes them."""
    images = random_images(size, size).to(next(predictor.network.parameters()).device)
    with torch.inference_mode():
        repeats = 2 if predictor.noise_passes > 1 else 1
        return check_trunk(predictor.network, trunk, images, repeats, computed_by=first.network)
