"""Pixelate a batch."""

from functools import lru_cache

import torch
from torch import Tensor

from gch_bench.corruptions.pixelate import FIXED_POINT_BITS, nearest, shrinking, shrunk_size
from gch_bench.corruptions.shared import Shared


def pixelate(images: Shared[Tensor], level: float) -> Tensor:
    """See ``compiled.pixelate.pixelate``."""
    height, width = images.pixels.shape[2:]
    device = str(images.pixels.device)
    rows, columns = shrunk_size(height, level), shrunk_size(width, level)
    shrunk = _shrink(_shrink(images.pixels, 3, columns), 2, rows)
    return shrunk.index_select(3, _nearest(columns, width, device)).index_select(2, _nearest(rows, height, device))


def _shrink(images: Tensor, dim: int, size: int) -> Tensor:
    """Box filter along ``dim`` down to ``size`` pixels: differences of running sums give the sums of each box."""
    before_first, last, weight = _boxes(images.shape[dim], size, str(images.device))
    running = torch.cat([torch.zeros_like(images.narrow(dim, 0, 1)), images], dim).cumsum(dim, dtype=torch.int32)
    total = running.index_select(dim, last).sub_(running.index_select(dim, before_first))
    total.mul_(weight if dim == 3 else weight[:, None]).add_(1 << (FIXED_POINT_BITS - 1))
    return total.bitwise_right_shift_(FIXED_POINT_BITS).to(torch.uint8)


@lru_cache(maxsize=64)
def _boxes(size_in: int, size_out: int, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """Per box the number of pixels before it and up to its end, int64, and its weight, int32."""
    first, count, weight = (torch.from_numpy(array.astype("int64")) for array in shrinking(size_in, size_out))
    return first.to(device), (first + count).to(device), weight.to(device, torch.int32)


@lru_cache(maxsize=64)
def _nearest(size_in: int, size_out: int, device: str) -> Tensor:
    return torch.from_numpy(nearest(size_in, size_out).astype("int64")).to(device)
