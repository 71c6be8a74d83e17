"""The draws of corruptions/draws.py for one image in compiled code.

``key`` is an image's key as ``image_keys`` makes it, an int of 63 bits.
"""

import math

import numpy as np
from numba import uint32, uint64

from gch_bench.corruptions.compiled.jit import inline, jit
from gch_bench.corruptions.draws import KEY_STEPS, MULTIPLIERS, ROUNDS

_M0, _M1 = (np.uint64(multiplier) for multiplier in MULTIPLIERS)
_STEP0, _STEP1 = (np.uint32(step) for step in KEY_STEPS)
_HALF = np.uint64(32)
# Coefficients of Wichura's PPND7, Algorithm AS 241, Applied Statistics 37 (1988), 477-484: the normal quantile function by
# rational functions of three ranges of p, each (numerator, denominator) from the constant term on. About 7 digits.
_MIDDLE = ((3.3871327179, 50.434271938, 159.29113202, 59.109374720), (1.0, 17.895169469, 78.757757664, 67.187563600))
_OUTER = ((1.4234372777, 2.7568153900, 1.3067284816, 0.17023821103), (1.0, 0.73700164250, 0.12021132975, 0.0))
_FAR = ((6.6579051150, 3.0812263860, 0.42868294337, 0.017337203997), (1.0, 0.24197894225, 0.012258202635, 0.0))


@inline
def philox(position, stream, key):
    """The four words, uint32, of Philox4x32-10 with the counter (``position``, ``stream``, 0, 0)."""
    a, b, c, d = uint32(position), uint32(stream), uint32(0), uint32(0)
    low, high = uint32(uint64(key)), uint32(uint64(key) >> _HALF)
    for _ in range(ROUNDS):
        p, q = _M0 * uint64(a), _M1 * uint64(c)
        a, b, c, d = uint32(q >> _HALF) ^ b ^ low, uint32(q), uint32(p >> _HALF) ^ d ^ high, uint32(p)
        low, high = uint32(low + _STEP0), uint32(high + _STEP1)
    return a, b, c, d


@jit
def words(key, stream, count):
    """uint32 (count,), each uniform over 0..2**32 - 1."""
    out = np.empty(-(-count // 4) * 4, np.uint32)
    for block in range(len(out) // 4):
        out[4 * block], out[4 * block + 1], out[4 * block + 2], out[4 * block + 3] = philox(block, stream, key)
    return out[:count]


@inline
def to_uniform(word):
    """A word as a draw of U(0, 1), float64."""
    return (np.float64(word) + 0.5) * 2.0**-32


@inline
def to_below(word, n):
    """A word as a draw of 0..n - 1, int64."""
    return np.int64((uint64(word) * uint64(n)) >> _HALF)


@jit
def uniform(key, stream, count):
    """Draws of U(0, 1), float64 (count,)."""
    drawn = words(key, stream, count)
    out = np.empty(count)
    for i in range(count):
        out[i] = to_uniform(drawn[i])
    return out


@jit
def signed(key, stream, count):
    """Draws of U(-1, 1), float32 (count,)."""
    drawn = words(key, stream, count).view(np.int32)
    out = np.empty(count, np.float32)
    for i in range(count):
        out[i] = np.float32(drawn[i]) * np.float32(2.0**-31)
    return out


@inline
def _ratio(coefficients, r):
    (a, b, c, d), (e, f, g, h) = coefficients
    return (((d * r + c) * r + b) * r + a) / (((h * r + g) * r + f) * r + e)


@inline
def _tail(p):
    """The normal quantile of ``p`` in (0, 0.075], as a positive number."""
    r = math.sqrt(-math.log(p))
    return _ratio(_OUTER, r - 1.6) if r <= 5.0 else _ratio(_FAR, r - 5.0)


@jit
def normal(key, stream, count):
    """Draws of N(0, 1), float32 (count,), with about 7 digits."""
    drawn = words(key, stream, count)
    out = np.empty(count, np.float32)
    for i in range(count):  # by the formula for the middle, in a loop that the processor's vectors can run
        q = to_uniform(drawn[i]) - 0.5
        out[i] = q * _ratio(_MIDDLE, 0.180625 - q * q)
    for i in range(count):
        p = to_uniform(drawn[i])
        if p < 0.075:
            out[i] = -_tail(p)
        elif p > 0.925:
            out[i] = _tail(1.0 - p)
    return out
