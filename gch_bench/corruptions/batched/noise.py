"""The four noises. To be converted."""

from collections.abc import Callable, Sequence
from functools import lru_cache

import torch
from torch import Generator, Tensor

from gch_bench.corruptions.batched.common import truncate


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
