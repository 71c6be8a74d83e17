"""The rounding of the batched corruptions depends neither on the batch nor on the user's settings."""

from typing import Any

import pytest
import torch
from corruption_references import batched, photos
from torch import Tensor

from gch_bench.corruptions import CORRUPTIONS, PARAMETER_SETS, Corruption, engine
from gch_bench.corruptions.batched.elastic import _sample
from gch_bench.corruptions.batched.filters import enlarge, gaussian_filter, motion_blur_at
from gch_bench.corruptions.batched.weather import plasma
from gch_bench.corruptions.shared import Shared
from gch_bench.corruptions.weather import wibbles

KEYS = [11, 12, 13, 14]


def planes(count: int, height: int, width: int) -> Tensor:
    return torch.rand(count, height, width, generator=torch.Generator().manual_seed(0)).mul_(255)


FLOATS = {  # (B, 3, H, W) -> (B, ...): before truncation, which hides most differences in rounding
    "gaussian filter": lambda x: gaussian_filter(x, 2.0),
    "narrow gaussian filter": lambda x: gaussian_filter(x[:, :1], 0.7, "symmetric", cut=3.0),
    "enlarged": lambda x: enlarge(x[:, :1, :60, :40].contiguous(), 2.5, (150, 100)),
    "motion blur": lambda x: motion_blur_at(x.to(torch.uint8), 15, 8, x[:, 0, 0, 0].double()),
    "sampled": lambda x: _sample(x, x[:, 0] * 0.3, x[:, 1] * 0.4, about_centres=False),
    "plasma": lambda x: plasma(x.flatten(1)[:, : 64 * 64] / 128 - 1, wibbles(64, 1.5)),
}


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_the_users_precision_of_products_does_not_matter(name: str) -> None:
    level, keys = PARAMETER_SETS["imagenet_224"].levels[name][2], KEYS if CORRUPTIONS[name].random else None
    expected = batched(name, photos(40, 48), level, keys)
    try:
        torch.set_float32_matmul_precision("medium")  # bfloat16 products where the processor has them
        assert torch.equal(batched(name, photos(40, 48), level, keys), expected)
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize("size", [(224, 224), (65, 97)])
def test_no_float_of_an_image_depends_on_the_batch(name: str, size: tuple[int, int]) -> None:
    images, threads = planes(51, *size).view(17, 3, *size), torch.get_num_threads()
    try:
        torch.set_num_threads(1)  # as the corruptions run on a CPU
        alone = torch.cat([FLOATS[name](images[i : i + 1]) for i in range(17)])
        for count in (2, 3, 5, 8, 16, 17):
            for first in (0, 17 - count):
                assert torch.equal(FLOATS[name](images[first : first + count]), alone[first : first + count])
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize(("size", "together"), [((32, 32), 4), ((16, 64), 4), ((8, 128), 1), ((64, 128), 1)])
def test_a_gpu_takes_a_part_of_a_batch_at_a_time(size: tuple[int, int], together: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fog's memory is that of a square around the image, so of long and narrow images fewer are taken."""
    taken = []
    fog = CORRUPTIONS["fog"].batched

    def note(images: Shared[Tensor], *arguments: Any) -> Tensor:
        taken.append(len(images.pixels))
        return fog(images, *arguments)

    monkeypatch.setattr(engine, "GPU_PIXELS", 32 * 32 * 4)
    images, level = photos(*size), PARAMETER_SETS["cifar_32"].levels["fog"][2]
    (parts,) = engine._batched(images, Corruption(note, note, group="weather", random=True), [level], [KEYS])
    assert taken == [together] * (4 // together)
    assert torch.equal(parts, batched("fog", images, level, KEYS))
