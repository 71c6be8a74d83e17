"""Random draws of the corruptions: the same on a CPU and on a GPU, for any batch, order, number of threads or part of a run.

The generator is Philox4x32-10, which turns a key and a counter into four words of 32 random bits. Every image has a key of its
own, made from (seed, corruption, severity, image id). A corruption that needs several random fields takes each of them from a
stream of its own: word i of stream s is word i mod 4 of Philox with the counter (i div 4, s, 0, 0). No state is carried along,
so all words of a batch are computed together, without a loop over images.

Source: Salmon, Moraes, Dror and Shaw, Parallel Random Numbers: As Easy as 1, 2, 3, SC 2011. compiled/draws.py draws the same.

Shapes: B images, N draws of each.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

from gch_bench.rng import seed_of

ALGORITHM = "philox"  # names these draws in protocols and manifests: other draws need another name
ROUNDS = 10
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
KEY_STEPS = (0x9E3779B9, 0xBB67AE85)  # added to the two halves of the key after each round
WORD = 0xFFFFFFFF


def image_keys(ids: Iterable[int], seed: int, name: str, severity: int) -> list[int]:
    """The 63-bit key of each image id for one corruption at one severity."""
    return [seed_of(seed, name, severity, int(id_)) for id_ in ids]


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
    """Draws of U(0, 1), float64 (B, count): (word + 1/2) / 2**32, so neither 0 nor 1."""
    return (words(keys_B, stream, count).double() + 0.5) * 2.0**-32


def signed(keys_B: Tensor, stream: int, count: int) -> Tensor:
    """Draws of U(-1, 1), float32 (B, count): the word, read as a signed one and rounded to float32, times 2**-31."""
    return words(keys_B, stream, count).to(torch.int32).to(torch.float32) * 2.0**-31


def normal(keys_B: Tensor, stream: int, count: int) -> Tensor:
    """Draws of N(0, 1), float32 (B, count): the normal quantiles of the draws of ``uniform``."""
    return torch.special.ndtri(uniform(keys_B, stream, count)).to(torch.float32)


def below(keys_B: Tensor, stream: int, count: int, n: int) -> Tensor:
    """Draws of the whole numbers 0..n - 1, int64 (B, count): word * n div 2**32, whose bias is below n / 2**32."""
    return (words(keys_B, stream, count) * n) >> 32
