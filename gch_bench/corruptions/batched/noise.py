"""The four noises of a batch: a draw from an alias table for each value. See corruptions/laws.py."""

from functools import lru_cache

import torch
from torch import Tensor

from gch_bench.corruptions import laws
from gch_bench.corruptions.batched import draws
from gch_bench.corruptions.shared import Shared


def gaussian_noise(images: Shared[Tensor], level: float, keys: Tensor) -> Tensor:
    """See ``laws.gaussian_law``."""
    return _draw(images.pixels, laws.gaussian_law, level, keys)


def shot_noise(images: Shared[Tensor], level: int, keys: Tensor) -> Tensor:
    """See ``laws.shot_law``."""
    return _draw(images.pixels, laws.shot_law, level, keys)


def impulse_noise(images: Shared[Tensor], level: float, keys: Tensor) -> Tensor:
    """See ``laws.impulse_law``."""
    return _draw(images.pixels, laws.impulse_law, level, keys)


def speckle_noise(images: Shared[Tensor], level: float, keys: Tensor) -> Tensor:
    """See ``laws.speckle_law``."""
    return _draw(images.pixels, laws.speckle_law, level, keys)


def _draw(images_B3HW: Tensor, law: laws.Law, level: float, keys_B: Tensor) -> Tensor:
    values_BN = images_B3HW.flatten(1)
    words_BN = draws.words(keys_B, laws.STREAM, values_BN.shape[1])
    cells_BN = _table(law, level, str(images_B3HW.device))[values_BN.to(torch.int64) << 8 | words_BN & 255]
    kept_BN = words_BN >> 8 < cells_BN >> 8
    return torch.where(kept_BN, words_BN, cells_BN).to(torch.uint8).view(images_B3HW.shape)  # the low 8 bits


@lru_cache(maxsize=64)
def _table(law: laws.Law, level: float, device: str) -> Tensor:
    """int64 (256 * 256,): ``laws.alias_table``."""
    return torch.from_numpy(laws.alias_table(law, level).astype("int64")).to(device)
