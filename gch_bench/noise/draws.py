"""Random numbers for the noise: keyed draws, which depend on an image's key alone, and draws from torch's global generator.

Keyed draws are counter-based. Number n of the stream with key k is mix64(k + (n + 1) * GOLDEN), which is SplitMix64 (Steele,
Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014; reference code by Vigna). A whole batch is
therefore drawn at once by integer arithmetic on tensors, and each row still depends on its own key alone. The integers and the
uniform numbers have the same bits on every device. Normal numbers may differ between devices in their last bits, because each
device has its own logarithm, sine and cosine.

Legend: B images of a batch, n numbers of one image.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from gch_bench.rng import Key, seed_of


def _signed(constant: int) -> int:
    """The 64-bit constant as torch's int64, which has a sign and wraps around in sums and products."""
    return constant - 2**64 if constant >= 2**63 else constant


GOLDEN = _signed(0x9E3779B97F4A7C15)
# The steps of mix64: x ^= x >>> shift, then x *= factor.
MIX_STEPS = ((30, _signed(0xBF58476D1CE4E5B9)), (27, _signed(0x94D049BB133111EB)), (31, 1))

# How many 64-bit numbers are drawn at once. Intermediate results that stay in a CPU's cache make large draws much quicker.
CPU_BLOCK = 2**17
GPU_BLOCK = 2**22


def mix64(x: Tensor) -> Tensor:
    """SplitMix64's mixing function, a bijection of 64-bit integers, applied to an int64 tensor in place."""
    shifted = torch.empty_like(x)
    for shift, factor in MIX_STEPS:
        torch.bitwise_right_shift(x, shift, out=shifted)  # an arithmetic shift: the mask makes it a logical one
        x ^= shifted.bitwise_and_(2 ** (64 - shift) - 1)
        if factor != 1:
            x *= factor
    return x


def stream(keys_B: Tensor, start: int, count: int) -> Tensor:
    """The numbers `start` to `start + count - 1` of the streams with these keys: (B,) int64 -> (B, count) int64."""
    steps = torch.arange(start + 1, start + count + 1, device=keys_B.device).mul_(GOLDEN)
    return mix64(keys_B[:, None] + steps)


def image_keys(ids: Tensor, *keys: Key) -> Tensor:
    """One key per image: number i of the stream with the key seed_of(*keys) for the image with id i.

    Args:
        ids: image ids (B,), int64.
        keys: what the draws depend on besides the image, e.g. ``image_keys(ids, seed, "training noise", epoch)``.

    Returns:
        (B,) int64, on the device of `ids`.
    """
    return mix64((ids + 1).mul_(GOLDEN).add_(seed_of(*keys)))


def derived_keys(keys_B: Tensor, *keys: Key) -> Tensor:
    """Keys (B,) that depend on `keys_B` and on a hash of `keys`: streams of their own for the same images."""
    return mix64(keys_B ^ seed_of(*keys))


class KeyedDraws:
    """Draws for a batch in which row b is made from the key keys_B[b] alone. Successive calls give new numbers.

    Args:
        keys_B: one key per image (B,), int64; the draws are made on their device.
    """

    def __init__(self, keys_B: Tensor) -> None:
        self.keys_B = keys_B
        self.used = 0  # how many numbers of each stream were used up by earlier calls

    def uniform(self, shape: Sequence[int]) -> Tensor:
        """Uniform numbers in (0, 1), float32, of this shape (B, ...).

        Each is (k + 1/2) / 2^23 with 23 random bits k, so neither 0 nor 1 occurs. Two are made from one 64-bit number.
        """
        return self._drawn(_uniform_pairs, shape)

    def normal(self, shape: Sequence[int]) -> Tensor:
        """Standard normal numbers, float32, of this shape (B, ...).

        They are made by the method of Box and Muller (1958), two from one 64-bit number: 31 bits give the radius, 32 the angle.
        None is larger than sqrt(64 ln 2) = 6.66 in absolute value, beyond which 2.7e-11 of the true distribution lie.
        """
        return self._drawn(_normal_pairs, shape)

    def _drawn(self, pairs_of: Callable[[Tensor], Tensor], shape: Sequence[int]) -> Tensor:
        """Numbers of this shape (B, ...), two of them made by `pairs_of` from each of the streams' next integers."""
        rows, columns = shape[0], math.prod(shape[1:])
        if rows != len(self.keys_B):
            raise ValueError(f"draws must have one key per image ({rows}), got {len(self.keys_B)}")
        count = (columns + 1) // 2
        drawn = torch.empty(rows, 2 * count, device=self.keys_B.device)
        width = max(1, (CPU_BLOCK if self.keys_B.device.type == "cpu" else GPU_BLOCK) // max(1, rows))
        for first in range(0, count, width):
            last = min(first + width, count)
            drawn[:, 2 * first : 2 * last] = pairs_of(stream(self.keys_B, self.used + first, last - first))
        self.used += count
        return drawn[:, :columns].reshape(tuple(shape))


def _uniform_pairs(numbers: Tensor) -> Tensor:
    """Two uniform numbers in (0, 1) from each 64-bit integer: (B, n) -> (B, 2n), float32. `numbers` is overwritten."""
    halves = numbers.view(torch.int32)
    halves >>= 9  # -2^22 .. 2^22 - 1, so that every step below is exact in float32
    return halves.float().mul_(2**-23).add_(0.5 + 2**-24)


def _normal_pairs(numbers: Tensor) -> Tensor:
    """Two normal numbers from each 64-bit integer: (B, n) -> (B, 2n), float32. `numbers` is overwritten."""
    angle = numbers.to(torch.int32).float().mul_(math.pi * 2**-31)  # the low half, with its sign: in [-pi, pi]
    numbers >>= 32
    radius = numbers.bitwise_and_(2**31 - 1).float().add_(0.5).mul_(2**-31).log_().mul_(-2).sqrt_()
    return torch.stack([torch.cos(angle).mul_(radius), angle.sin_().mul_(radius)], 2).flatten(1)


class GlobalDraws:
    """The same draws from torch's global generator of a device, for the use of a mechanism without keys."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def uniform(self, shape: Sequence[int]) -> Tensor:
        """Uniform numbers in [0, 1), float32, of this shape (B, ...)."""
        return torch.rand(tuple(shape), device=self.device)

    def normal(self, shape: Sequence[int]) -> Tensor:
        """Standard normal numbers, float32, of this shape (B, ...)."""
        return torch.randn(tuple(shape), device=self.device)


Draws = KeyedDraws | GlobalDraws
