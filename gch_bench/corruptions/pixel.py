"""Corruptions that neither move pixels nor mix neighbours: four noises, brightness, contrast and saturation.

Source: hendrycks/robustness, make_imagenet_c.py. Every corruption takes uint8 images (B, 3, H, W) and the level of one
severity; the noises also take one generator per image, on the images' device. All return new uint8 images. The reference
works on x / 255, clips to [0, 1], scales by 255 and truncates. The noises here work in grey levels; their results have the
same distribution.

Shapes: B images, 3 channels, H x W pixels; B1HW holds one value per pixel.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache

import torch
from torch import Generator, Tensor


def truncate(field: Tensor) -> Tensor:
    """Clip a field in grey levels to 0..255 and drop the fractions: uint8 of the same shape. The field is overwritten."""
    return field.clamp_(0, 255).to(torch.int16).to(torch.uint8)  # direct conversion to uint8 takes torch 4 times as long


def product_dtype(device: torch.device) -> torch.dtype:
    """The dtype for matrix products whose rounding must not depend on the user's settings or on the batch.

    It is float64 on a GPU, which may choose a matrix-product kernel by the size of the batch, and wherever the user's settings
    may make float32 products coarser (TF32, bfloat16). Otherwise it is float32.
    """
    exact = device.type == "cpu" and torch.get_float32_matmul_precision() == "highest"
    return torch.float32 if exact else torch.float64


def _draw(
    images: Tensor, generators: Sequence[Generator], dtype: torch.dtype, fill: Callable[[Tensor, Generator], Tensor]
) -> Tensor:
    """A contiguous tensor of the images' shape, in which ``fill`` draws each image's values from the image's own generator."""
    draws_B3HW = torch.empty(images.shape, dtype=dtype, device=images.device)
    for draws_3HW, generator in zip(draws_B3HW, generators, strict=True):
        fill(draws_3HW, generator)
    return draws_B3HW


def _normal(images: Tensor, generators: Sequence[Generator], mean: float, sd: float) -> Tensor:
    return _draw(images, generators, torch.float32, lambda out, generator: out.normal_(mean, sd, generator=generator))


def gaussian_noise(images: Tensor, sd: float, generators: Sequence[Generator]) -> Tensor:
    """x + N(0, sd^2) for each value x in [0, 1]; ``sd`` is in the same unit."""
    return truncate(_normal(images, generators, 0, 255 * sd).add_(images))


def speckle_noise(images: Tensor, sd: float, generators: Sequence[Generator]) -> Tensor:
    """x + x N(0, sd^2) for each value x in [0, 1]."""
    return truncate(_normal(images, generators, 1, sd).mul_(images))


def impulse_noise(images: Tensor, amount: float, generators: Sequence[Generator]) -> Tensor:
    """Each value becomes 0 or 255 with probability ``amount`` / 2 each, independently of the others.

    The probabilities are rounded to multiples of 1 / 65536.
    """
    values = images[0].numel()
    bits = torch.empty(len(images), -(-values // 4), dtype=torch.int64, device=images.device)  # four draws in each
    for bits_N, generator in zip(bits, generators, strict=True):
        bits_N.random_(-(2**63), None, generator=generator)
    draw_B3HW = bits.view(torch.int16)[:, :values].reshape(images.shape)  # uniform over -2^15..2^15 - 1
    half = round(amount / 2 * 2**16)
    white = draw_B3HW.clone().lt_(half - 2**15).mul_(255).to(torch.uint8)
    kept = draw_B3HW.lt_(2**15 - half).mul_(255).to(torch.uint8)
    return images.bitwise_or(white).bitwise_and_(kept)


def shot_noise(images: Tensor, photons: int, generators: Sequence[Generator]) -> Tensor:
    """Poisson(x ``photons``) / ``photons`` for each value x in [0, 1].

    An image has at most 256 different rates, so each value is drawn from one of 256 tables by Walker's alias method: draw a
    column of the table, keep it with the column's probability, or else take the column's alias. On a CPU this is about 3 times
    as fast as ``torch.poisson``.
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
    """The alias tables of the grey level trunc(255 min(k / photons, 1)), k ~ Poisson(v photons / 255), one for each v = 0..255.

    Returns:
        threshold: int32 (256 C,), where C = 2**column_bits is the number of columns. A column is kept if a uniform draw from
            0..2**(31 - column_bits) - 1 is below its threshold.
        outcomes: uint8 (256 C 2,), the grey level for (v, column, kept or aliased).
        column_bits: log2 of the number of columns.
    """
    column_bits = max(photons.bit_length(), 1)  # a column for each k = 0..photons; the last stands for all k >= photons
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
    for _ in range(columns - 1):  # in all rows at once, the richest column fills up the poorest
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
