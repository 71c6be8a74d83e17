"""Corruptions of single pixels: four noises, brightness, contrast, saturation.

Source: hendrycks/robustness, make_imagenet_c.py. Every function takes uint8 images (B, 3, H, W) and one severity's level,
the noises also one generator per image on the images' device, and returns new uint8 images. The reference works on x / 255,
clips to [0, 1], scales by 255 and truncates. The noises work in grey levels instead, with the same result in distribution.

Shapes: B images, 3 channels, H x W pixels; B1HW holds one value per pixel.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache

import torch
from torch import Generator, Tensor


def truncate(field: Tensor) -> Tensor:
    """uint8 of a field in grey levels, which is overwritten: clipped to 0..255, fractions dropped."""
    return field.clamp_(0, 255).to(torch.int16).to(torch.uint8)  # torch converts to uint8 directly 4 times more slowly


def product_dtype(device: torch.device) -> torch.dtype:
    """Of matrix products whose rounding must not show: float64 where the user's settings may make those of float32 coarser
    (TF32, bfloat16), and on a GPU, which may choose a kernel by the size of the batch."""
    exact = device.type == "cpu" and torch.get_float32_matmul_precision() == "highest"
    return torch.float32 if exact else torch.float64


def _draw(
    images: Tensor, generators: Sequence[Generator], dtype: torch.dtype, fill: Callable[[Tensor, Generator], Tensor]
) -> Tensor:
    """A contiguous tensor of the images' shape, each image filled from its own generator."""
    draws_B3HW = torch.empty(images.shape, dtype=dtype, device=images.device)
    for draws_3HW, generator in zip(draws_B3HW, generators, strict=True):
        fill(draws_3HW, generator)
    return draws_B3HW


def _normal(images: Tensor, generators: Sequence[Generator], mean: float, sd: float) -> Tensor:
    return _draw(images, generators, torch.float32, lambda out, generator: out.normal_(mean, sd, generator=generator))


def gaussian_noise(images: Tensor, sd: float, generators: Sequence[Generator]) -> Tensor:
    """x + N(0, sd) per value, x in [0, 1]."""
    return truncate(_normal(images, generators, 0, 255 * sd).add_(images))


def speckle_noise(images: Tensor, sd: float, generators: Sequence[Generator]) -> Tensor:
    """x + x N(0, sd) per value, x in [0, 1]."""
    return truncate(_normal(images, generators, 1, sd).mul_(images))


def impulse_noise(images: Tensor, amount: float, generators: Sequence[Generator]) -> Tensor:
    """A share ``amount`` of the values, each drawn by itself, becomes 0 or 255, half each; ``amount`` to 1 in 65536."""
    values = images[0].numel()
    bits = torch.empty(len(images), -(-values // 4), dtype=torch.int64, device=images.device)  # four draws each
    for bits_N, generator in zip(bits, generators, strict=True):
        bits_N.random_(-(2**63), None, generator=generator)
    draw_B3HW = bits.view(torch.int16)[:, :values].reshape(images.shape)  # uniform over -2^15..2^15 - 1
    half = round(amount / 2 * 2**16)
    white = draw_B3HW.clone().lt_(half - 2**15).mul_(255).to(torch.uint8)
    kept = draw_B3HW.lt_(2**15 - half).mul_(255).to(torch.uint8)
    return images.bitwise_or(white).bitwise_and_(kept)


def shot_noise(images: Tensor, photons: int, generators: Sequence[Generator]) -> Tensor:
    """Poisson(x ``photons``) / ``photons`` per value, x in [0, 1].

    An image holds 256 rates at most, so each value is one draw of a discrete law (Walker's alias method): a column, kept with
    the column's probability, else replaced by the column's alias; about 3 times faster on a CPU than ``torch.poisson``.
    """
    threshold, outcomes, column_bits = _poisson_alias(photons, str(images.device))
    bits_B3HW = _draw(images, generators, torch.int32, lambda out, generator: out.random_(generator=generator))
    cell = bits_B3HW.bitwise_and((1 << column_bits) - 1).add_(images.to(torch.int32) << column_bits).flatten()
    draw = bits_B3HW.flatten().bitwise_right_shift_(column_bits)
    # -1 where the draw is not below the threshold: the sign of a difference is quicker on a CPU than a comparison.
    aliased = threshold.index_select(0, cell).sub_(1).sub_(draw).bitwise_right_shift_(31)
    return outcomes.index_select(0, cell.mul_(2).sub_(aliased)).view(images.shape)


@lru_cache(maxsize=64)
def _poisson_alias(photons: int, device: str) -> tuple[Tensor, Tensor, int]:
    """Alias tables of the grey level trunc(255 min(k / photons, 1)), k ~ Poisson(v photons / 255), for v = 0..255.

    Returns:
        threshold: int32 (256 C,), C = 2**column_bits: a draw from 0..2**(31 - column_bits) - 1 below it keeps its column.
        outcomes: uint8 (256 C 2,), the grey level of (v, column, kept or aliased).
        column_bits: log2 of the number of columns.
    """
    column_bits = max(photons.bit_length(), 1)  # k = 0..photons, where the last stands for all k >= photons
    columns = 1 << column_bits
    k = torch.arange(photons, dtype=torch.float64)
    rate = torch.arange(256, dtype=torch.float64)[:, None] * photons / 255
    mass = torch.zeros(256, columns, dtype=torch.float64)
    mass[:, :photons] = torch.exp(torch.xlogy(k, rate) - rate - torch.lgamma(k + 1))
    mass[:, photons] = (1 - mass.sum(1)).clamp_(min=0)
    mass *= columns
    keep = torch.ones(256, columns, dtype=torch.float64)
    alias = torch.arange(columns).repeat(256, 1)
    row = torch.arange(256)
    for _ in range(columns - 1):  # the poorest column is filled up by the richest, in all rows at once
        poor, rich = mass.argmin(1), mass.argmax(1)
        need = 1 - mass[row, poor]
        need[need < 1e-12] = 0  # this row is done
        open_row, column = row[need > 0], poor[need > 0]
        keep[open_row, column] = mass[open_row, column]
        alias[open_row, column] = rich[need > 0]
        mass[row, rich] -= need
        mass[open_row, column] = 1
    level = torch.arange(columns, dtype=torch.float64).div_(photons).clamp_(max=1).mul_(255).to(torch.uint8)
    threshold = (keep * (1 << (31 - column_bits))).round().clamp_(max=2**31 - 1).to(torch.int32)
    outcomes = torch.stack([level.expand(256, columns), level[alias]], dim=2)
    return threshold.flatten().to(device), outcomes.flatten().to(device), column_bits


def brightness(images: Tensor, added: float) -> Tensor:
    """The V of HSV raised by ``added`` and clipped, V in [0, 1]; hue and saturation stay."""
    cell = images.to(torch.int32).add_(images.amax(1, keepdim=True).to(torch.int32).mul_(256))
    return _brightness_table(added, str(images.device)).index_select(0, cell.flatten()).view(images.shape)


@lru_cache(maxsize=64)
def _brightness_table(added: float, device: str) -> Tensor:
    """uint8 (65536,): what x becomes at 256 V + x. A channel is V (1 - S k) in HSV, where k = 0 at the largest of the three and
    1 at the smallest, and S k = 1 - x / V."""
    x = torch.arange(256, dtype=torch.float64) / 255
    V = x[:, None]
    share = (V - x) / V.clamp(min=1 / 255)
    return (V + added).clamp(max=1).mul(1 - share).mul(255).clamp_(min=0).to(torch.uint8).flatten().to(device)


def saturate(images: Tensor, factor_offset: tuple[float, float]) -> Tensor:
    """The S of HSV becomes clip(S factor + offset); hue and V stay.

    A channel is V (1 - S k), where k = 0 at the largest of the three and 1 at the least; so only the middle one takes more than
    tables. A grey pixel has hue 0, so an offset turns it red, as in the reference. In float64: a result often is a whole grey
    level, where the reference's rounding decides the truncation.
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
    is_most[:, 1:].mul_((most - least).clamp_(max=1))  # of a grey pixel red alone is the largest channel
    saturated = of_least * is_least + of_middle * (1 - is_least)
    return saturated.mul_(1 - is_most).add_(of_most * is_most)


@lru_cache(maxsize=64)
def _saturation_tables(factor: float, offset: float, device: str) -> tuple[Tensor, Tensor]:
    """(65536,) each, at 256 V + the least of the three channels: the new S, float64, and the least's grey level, uint8."""
    x = torch.arange(256, dtype=torch.float64) / 255
    V = x[:, None]
    saturation = ((V - x) / V.clamp(min=1 / 255)).mul_(factor).add_(offset).clamp_(0, 1)
    of_least = (1 - saturation).mul_(V).mul_(255).to(torch.uint8)
    return saturation.flatten().to(device), of_least.flatten().to(device)


def contrast(images: Tensor, factor: float) -> Tensor:
    """(x - mean) ``factor`` + mean, with the mean of each channel of each image."""
    batch, channels, height, width = images.shape
    # An image's channel has one mean, hence a table of 256 outputs; sums of integers do not depend on the order.
    total = images.sum(3, dtype=torch.int32).sum(2, dtype=torch.int64)
    mean = total.to(torch.float64).view(-1, 1) / (255 * height * width)
    x = torch.arange(256, dtype=torch.float64, device=images.device) / 255
    table = ((x - mean) * factor + mean).clamp_(0, 1).mul_(255).to(torch.uint8)
    row = torch.arange(batch * channels, dtype=torch.int32, device=images.device).mul_(256).view(batch, channels, 1, 1)
    return table.flatten().index_select(0, images.to(torch.int32).add_(row).flatten()).view(images.shape)
