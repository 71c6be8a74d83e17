"""The draws of corruptions/draws.py for many images at once, without a loop over images.

Shapes: B images. ``keys_B``, int64, are the keys of ``image_keys``, on the device where the draws are wanted.
"""

import torch
from torch import Tensor

from gch_bench.corruptions.draws import KEY_STEPS, MULTIPLIERS, ROUNDS

WORD = 0xFFFFFFFF


def words(keys_B: Tensor, stream: int, count: int) -> Tensor:
    """``count`` words of a stream for every key, int64 (B, count), each uniform over 0..2**32 - 1.

    Args:
        keys_B: int64 (B,), on the device where the words are wanted.
        stream: 0, 1, 2, ...: which of an image's random fields.
    """
    blocks = -(-count // 4)
    a = torch.arange(blocks, device=keys_B.device).expand(len(keys_B), -1)
    b = torch.full_like(a, stream)
    c = torch.zeros_like(a)
    d = torch.zeros_like(a)
    low_B1, high_B1 = (keys_B & WORD)[:, None], ((keys_B >> 32) & WORD)[:, None]
    for number in range(ROUNDS):
        # The product of two words has up to 64 bits. int64 holds them, if as a negative number, and the masks take them apart.
        p, q = a * MULTIPLIERS[0], c * MULTIPLIERS[1]
        key_low_B1, key_high_B1 = (
            (half + number * step) & WORD for half, step in zip((low_B1, high_B1), KEY_STEPS, strict=True)
        )
        a, b, c, d = ((q >> 32) & WORD) ^ b ^ key_low_B1, q & WORD, ((p >> 32) & WORD) ^ d ^ key_high_B1, p & WORD
    return torch.stack([a, b, c, d], 2).flatten(1)[:, :count]


def uniform(keys_B: Tensor, stream: int, count: int) -> Tensor:
    """Draws of U(0, 1), float64 (B, count)."""
    return (words(keys_B, stream, count).double() + 0.5) * 2.0**-32


def signed(keys_B: Tensor, stream: int, count: int) -> Tensor:
    """Draws of U(-1, 1), float32 (B, count)."""
    return words(keys_B, stream, count).to(torch.int32).to(torch.float32) * 2.0**-31


def normal(keys_B: Tensor, stream: int, count: int) -> Tensor:
    """Draws of N(0, 1), float32 (B, count)."""
    return torch.special.ndtri(uniform(keys_B, stream, count)).to(torch.float32)


def below(keys_B: Tensor, stream: int, count: int, n: int) -> Tensor:
    """Draws of the whole numbers 0..n - 1, int64 (B, count)."""
    return (words(keys_B, stream, count) * n) >> 32
