"""The batched corruptions call as many operators for many images as for few: a GPU launches as many kernels for 7 as for 2."""

from collections import Counter

import pytest
import torch
from corruption_references import ids, photos
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from gch_bench.corruptions import CORRUPTIONS, PARAMETER_SETS, SEVERITIES
from gch_bench.corruptions.draws import image_keys
from gch_bench.corruptions.shared import Shared


def operators(corruption, images: Tensor, level: object, keys: Tensor | None) -> Counter:
    """How often each operator of torch is called, by name. What operators call themselves may depend on sizes, on a CPU."""
    draws = () if keys is None else (keys,)
    corruption.batched(Shared(images), level, *draws)  # makes the tables that later calls find in caches
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        corruption.batched(Shared(images), level, *draws)
    return Counter(event.name for event in profiler.events() if event.cpu_parent is None)


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize("severity", SEVERITIES)
def test_operators_do_not_depend_on_the_number_of_images(name: str, severity: int) -> None:
    """All images and keys are the same, because spatter links edges in as many rounds as the images need."""
    level, random = PARAMETER_SETS["imagenet_224"].levels[name][severity - 1], CORRUPTIONS[name].random
    image = photos(64, 48)[:1]
    key = torch.tensor(image_keys(ids(1).tolist(), 0, name, severity))
    few, many = (
        operators(CORRUPTIONS[name], image.repeat(n, 1, 1, 1), level, key.repeat(n) if random else None) for n in (2, 7)
    )
    assert few.total() > 0
    assert few == many
