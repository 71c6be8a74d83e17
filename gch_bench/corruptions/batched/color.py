"""Brightness, contrast and saturation of a batch."""

from functools import lru_cache

import torch
from torch import Tensor

from gch_bench.corruptions.color import brightness_table
from gch_bench.corruptions.shared import Shared


def brightness(images: Shared[Tensor], level: float) -> Tensor:
    """See ``compiled.color.brightness``."""
    pixels = images.pixels
    place = pixels.amax(1, keepdim=True).to(torch.int32).mul_(256).add(pixels)
    return _brightness_table(level, str(pixels.device)).index_select(0, place.flatten()).view(pixels.shape)


@lru_cache(maxsize=64)
def _brightness_table(added: float, device: str) -> Tensor:
    return torch.from_numpy(brightness_table(added)).to(device)


def contrast(images: Shared[Tensor], level: float) -> Tensor:
    """See ``compiled.color.contrast``."""
    batch, channels, height, width = images.pixels.shape
    # Each channel of an image has one mean, so a table of 256 outputs serves it. The sums are of integers, because these do not
    # depend on the order of summation.
    total = images.pixels.sum(3, dtype=torch.int32).sum(2, dtype=torch.int64)
    mean = total.to(torch.float64).view(-1, 1) / (255 * height * width)
    x = torch.arange(256, dtype=torch.float64, device=total.device) / 255
    table = ((x - mean) * level + mean).clamp_(0, 1).mul_(255).to(torch.uint8)
    row = torch.arange(batch * channels, dtype=torch.int32, device=total.device).mul_(256).view(batch, channels, 1, 1)
    return table.flatten().index_select(0, row.add(images.pixels).flatten()).view(images.pixels.shape)


def saturate(images: Shared[Tensor], level: tuple[float, float]) -> Tensor:
    """See ``compiled.color.saturate``."""
    factor, offset = level
    x_B3HW = images.pixels.to(torch.float64).div_(255)
    V_B1HW, low_B1HW = x_B3HW.amax(1, keepdim=True), x_B3HW.amin(1, keepdim=True)
    range_B1HW = V_B1HW - low_B1HW
    S_B1HW = (range_B1HW / V_B1HW.clamp(min=1 / 255)).mul_(factor).add_(offset).clamp_(0, 1)
    k_B3HW = torch.sub(V_B1HW, x_B3HW, out=x_B3HW).div_(range_B1HW.clamp(min=1 / 255))
    k_B3HW[:, 1:].masked_fill_(range_B1HW == 0, 1)
    return k_B3HW.mul_(S_B1HW).neg_().add_(1).mul_(V_B1HW).mul_(255).to(torch.uint8)
