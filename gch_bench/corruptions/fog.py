"""The facts of fog's plasma, a random map that the diamond-square algorithm makes.

A map of one point, 0, is doubled again and again. Each new point is the mean of its four neighbours (with wrap-around) plus
``wibble`` * U(-``wibble``, ``wibble``). Doubling a map of k x k points uses the draws k^2 to 4 k^2 - 1: first for the points in
the middle of four old ones, then for the points above these, then for those to their left. At the end the map is shifted and
scaled to [0, 1].
"""

from functools import lru_cache

import numpy as np

PLASMA = 0  # the stream of the side^2 draws of U(-1, 1)


def plasma_side(height: int, width: int) -> int:
    """The side of the map for an image: the next power of two, at least 2."""
    return 1 << max(1, (max(height, width) - 1).bit_length())


@lru_cache(maxsize=64)
def wibbles(side: int, decay: float) -> np.ndarray:
    """The factors of the draws at each doubling, float32 (log2(side),): wibble^2, where wibble starts at 100 and falls by
    ``decay`` from one doubling to the next."""
    return ((100.0 / decay ** np.arange(side.bit_length() - 1)) ** 2).astype(np.float32)
