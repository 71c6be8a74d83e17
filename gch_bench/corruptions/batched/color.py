"""Brightness, contrast, saturation. To be converted."""

from functools import lru_cache

import torch
from torch import Tensor


def brightness(images: Tensor, added: float) -> Tensor:
    """Add ``added`` to the V of HSV, V in [0, 1], and clip; hue and saturation stay."""
    cell = images.to(torch.int32).add_(images.amax(1, keepdim=True).to(torch.int32).mul_(256))
    return _brightness_table(added, str(images.device)).index_select(0, cell.flatten()).view(images.shape)


@lru_cache(maxsize=64)
def _brightness_table(added: float, device: str) -> Tensor:
    """uint8 (65536,): at the index 256 V + x, the new level of a channel of level x in a pixel whose largest channel is V.

    In HSV a channel is V (1 - S k), where k is 0 for the largest of the three channels and 1 for the smallest. S and k
    stay, so S k = 1 - x / V gives the new level.
    """
    x = torch.arange(256, dtype=torch.float64) / 255
    V = x[:, None]
    share = (V - x) / V.clamp(min=1 / 255)
    return (V + added).clamp(max=1).mul(1 - share).mul(255).clamp_(min=0).to(torch.uint8).flatten().to(device)


def saturate(images: Tensor, factor_offset: tuple[float, float]) -> Tensor:
    """The S of HSV becomes clip(S factor + offset); hue and V stay.

    A channel is V (1 - S k), where k is 0 for the largest of the three channels and 1 for the smallest; both come from tables,
    and only the middle one must be computed. A grey pixel has hue 0, so an offset turns it red, as in the reference. The work
    is done in float64, because many results are whole grey levels but for rounding, and truncation must treat them as the
    reference does.
    """
    most, least = images.amax(1, keepdim=True), images.amin(1, keepdim=True)
    cell = most.to(torch.int32).mul_(256).add_(least).flatten()
    units = torch.arange(256, dtype=torch.float64, device=images.device) / 255
    tables = _saturation_tables(*factor_offset, str(images.device))
    S_B1HW, of_least = (table.index_select(0, cell).view(most.shape) for table in tables)
    one, two, three = images.split(1, 1)
    middle = torch.maximum(torch.minimum(one, two), torch.minimum(torch.maximum(one, two), three))
    V, x, low = (units.index_select(0, levels.flatten().int()).view(levels.shape) for levels in (most, middle, least))
    k = torch.sub(V, x, out=x).div_(torch.sub(V, low, out=low).clamp_(min=1 / 255))
    of_middle = k.mul_(S_B1HW).neg_().add_(1).mul_(V).mul_(255).to(torch.int16).to(torch.uint8)
    of_most = V.mul_(255).to(torch.int16).to(torch.uint8)
    is_most, is_least = ((1 - each.clamp_(max=1)) for each in (most - images, images - least))
    is_most[:, 1:].mul_((most - least).clamp_(max=1))  # in a grey pixel red alone counts as the largest channel
    saturated = of_least * is_least + of_middle * (1 - is_least)
    return saturated.mul_(1 - is_most).add_(of_most * is_most)


@lru_cache(maxsize=64)
def _saturation_tables(factor: float, offset: float, device: str) -> tuple[Tensor, Tensor]:
    """Two tables (65536,) with the index 256 V + the smallest of the three channels.

    They give the new S (float64) and the new grey level of the smallest channel (uint8).
    """
    x = torch.arange(256, dtype=torch.float64) / 255
    V = x[:, None]
    saturation = ((V - x) / V.clamp(min=1 / 255)).mul_(factor).add_(offset).clamp_(0, 1)
    of_least = (1 - saturation).mul_(V).mul_(255).to(torch.uint8)
    return saturation.flatten().to(device), of_least.flatten().to(device)


def contrast(images: Tensor, factor: float) -> Tensor:
    """(x - mean) ``factor`` + mean for each value x; the mean is taken over each channel of each image."""
    batch, channels, height, width = images.shape
    # Each channel of an image has one mean, so a table of 256 outputs serves it. The sums are of integers, because these do not
    # depend on the order of summation.
    total = images.sum(3, dtype=torch.int32).sum(2, dtype=torch.int64)
    mean = total.to(torch.float64).view(-1, 1) / (255 * height * width)
    x = torch.arange(256, dtype=torch.float64, device=images.device) / 255
    table = ((x - mean) * factor + mean).clamp_(0, 1).mul_(255).to(torch.uint8)
    row = torch.arange(batch * channels, dtype=torch.int32, device=images.device).mul_(256).view(batch, channels, 1, 1)
    return table.flatten().index_select(0, images.to(torch.int32).add_(row).flatten()).view(images.shape)
