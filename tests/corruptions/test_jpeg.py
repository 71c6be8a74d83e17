"""The JPEG codec, in both forms, against Pillow's, bit by bit."""

import io
import random
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import skimage.data
import torch
from corruption_references import FORMS, batched
from PIL import Image
from torch import Tensor

both_forms = pytest.mark.parametrize("form", FORMS)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Small images by many threads are mostly waiting."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def pillow(images: Tensor, quality: int) -> Tensor:
    """Saved as JPEG and read back, one image at a time."""
    decoded = []
    for image in images:
        file = io.BytesIO()
        Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()).save(file, "JPEG", quality=quality)
        decoded.append(torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1))
    return torch.stack(decoded)


def photos(height: int, width: int) -> Tensor:
    """uint8 (3, 3, height, width)."""
    pictures = (skimage.data.astronaut(), skimage.data.coffee(), skimage.data.chelsea())
    crops = [torch.from_numpy(picture[60 : 60 + height, 100 : 100 + width].copy()) for picture in pictures]
    return torch.stack(crops).permute(0, 3, 1, 2)


def noise(height: int, width: int) -> Tensor:
    """uint8 (3, 3, height, width): all levels, black or white in each channel, columns of primary colours."""
    generator = torch.Generator().manual_seed(height * 1000 + width)
    level = torch.randint(0, 256, (3, 3, height, width), generator=generator)
    level[1] = (level[1] > 127) * 255
    level[2] = (level[2, :, :1] > 127) * 255
    return level.to(torch.uint8)


@both_forms
@pytest.mark.parametrize("make", [photos, noise])
@pytest.mark.parametrize("qualities", [range(first, first + 20) for first in range(1, 101, 20)], ids=lambda q: f"from_{q[0]}")
def test_every_quality(form: Callable, make: Callable, qualities: range) -> None:
    images = make(224, 224)
    for quality in qualities:
        assert torch.equal(form("jpeg_compression", images, quality), pillow(images, quality)), quality


@both_forms
@pytest.mark.parametrize("height", [1, 2, 3, 8, 9, 16, 17, 18, 33, 64])
def test_every_size(form: Callable, height: int) -> None:
    for width in (*range(1, 20), 24, 31, 32, 33, 47, 48, 50, 63, 64):
        for images in (photos(height, width), noise(height, width)):
            quality = random.Random(height * width).randint(1, 100)
            assert torch.equal(form("jpeg_compression", images, quality), pillow(images, quality)), (width, quality)


@both_forms
@pytest.mark.parametrize("quality", [1, 10, 50, 85, 100])
def test_flat_colours(form: Callable, quality: int) -> None:
    colours = torch.cartesian_prod(*[torch.arange(0, 256, 51)] * 3).to(torch.uint8)
    images = colours[:, :, None, None].expand(-1, -1, 20, 12)
    assert torch.equal(form("jpeg_compression", images, quality), pillow(images, quality))


@both_forms
def test_basis_patterns_of_full_contrast(form: Callable) -> None:
    # The largest sums the transforms meet: black and white by the sign of each product of two cosines.
    wave = torch.cos((2 * torch.arange(8) + 1) * torch.arange(8)[:, None] * torch.pi / 16) > 0
    signs = wave[:, None, :, None] == wave[None, :, None, :]
    blocks = (signs.reshape(64, 8, 8).to(torch.uint8) * 255)[:, None].expand(-1, 3, -1, -1)
    images = torch.cat([blocks, 255 - blocks])
    # Chroma is halved: it meets the same patterns enlarged twofold.
    large = images.repeat_interleave(2, 2).repeat_interleave(2, 3).clone()
    large[:, 1:] = 255 - large[:, 1:]
    for quality in (1, 5, 20, 50, 90, 100):
        assert torch.equal(form("jpeg_compression", images, quality), pillow(images, quality)), quality
        assert torch.equal(form("jpeg_compression", large, quality), pillow(large, quality)), quality


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu() -> None:
    for images in (photos(224, 224), noise(50, 37)):
        assert torch.equal(batched("jpeg_compression", images.cuda(), 40).cpu(), pillow(images, 40))
