"""Random draws of the corruptions: the same on a CPU and on a GPU, for any batch, order, number of threads or part of a run.

The generator is Philox4x32-10, which turns a key and a counter into four words of 32 random bits. Every image has a key of its
own, made from (seed, corruption, severity, image id). A corruption that needs several random fields takes each of them from a
stream of its own: word i of stream s is word i mod 4 of Philox with the counter (i div 4, s, 0, 0). No state is carried along.
Numbers are made from words in the same way in both forms:

    uniform U(0, 1), float64: (word + 1/2) / 2**32, so neither 0 nor 1
    signed U(-1, 1), float32: the word, read as a signed one and rounded to float32, times 2**-31
    normal N(0, 1), float32: the normal quantile of the uniform number
    below, the whole numbers 0..n - 1: word * n div 2**32, whose bias is below n / 2**32

Source: Salmon, Moraes, Dror and Shaw, Parallel Random Numbers: As Easy as 1, 2, 3, SC 2011.
"""

from collections.abc import Iterable

from gch_bench.rng import seed_of

ALGORITHM = "philox"  # names these draws in protocols and manifests: other draws need another name
ROUNDS = 10
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
KEY_STEPS = (0x9E3779B9, 0xBB67AE85)  # added to the two halves of the key after each round


def image_keys(ids: Iterable[int], seed: int, name: str, severity: int) -> list[int]:
    """The 63-bit key of each image id for one corruption at one severity."""
    return [seed_of(seed, name, severity, int(id_)) for id_ in ids]
