"""The four noises of one image: a draw from an alias table for each value. See corruptions/laws.py."""

import numpy as np

from gch_bench.corruptions import laws
from gch_bench.corruptions.compiled.draws import philox
from gch_bench.corruptions.compiled.jit import jit
from gch_bench.corruptions.shared import Shared

_BLOCKS = 256  # of four words, drawn together before they are used: they stay in the cache


def gaussian_noise(image: Shared[np.ndarray], out: np.ndarray, level: float, key: int) -> None:
    """See ``laws.gaussian_law``."""
    _draw(image.pixels.reshape(-1), out.reshape(-1), laws.alias_table(laws.gaussian_law, level), key)


def shot_noise(image: Shared[np.ndarray], out: np.ndarray, level: int, key: int) -> None:
    """See ``laws.shot_law``."""
    _draw(image.pixels.reshape(-1), out.reshape(-1), laws.alias_table(laws.shot_law, level), key)


def impulse_noise(image: Shared[np.ndarray], out: np.ndarray, level: float, key: int) -> None:
    """See ``laws.impulse_law``."""
    _draw(image.pixels.reshape(-1), out.reshape(-1), laws.alias_table(laws.impulse_law, level), key)


def speckle_noise(image: Shared[np.ndarray], out: np.ndarray, level: float, key: int) -> None:
    """See ``laws.speckle_law``."""
    _draw(image.pixels.reshape(-1), out.reshape(-1), laws.alias_table(laws.speckle_law, level), key)


@jit
def _draw(values, out, table, key):
    """Simple loops over a few values after each other, since the processor's vectors can run all of them but the look-up."""
    words = np.empty(4 * _BLOCKS, np.uint32)
    cells = np.empty(4 * _BLOCKS, np.uint32)
    places = np.empty(4 * _BLOCKS, np.uint16)
    for first in range(0, len(values), 4 * _BLOCKS):
        some, drawn = values[first : first + 4 * _BLOCKS], out[first : first + 4 * _BLOCKS]
        for block in range(_BLOCKS):
            a, b, c, d = philox(first // 4 + block, laws.STREAM, key)
            words[4 * block], words[4 * block + 1], words[4 * block + 2], words[4 * block + 3] = a, b, c, d
        for i in range(len(some)):
            places[i] = (np.uint16(some[i]) << np.uint16(8)) | np.uint16(words[i] & np.uint32(255))
        for i in range(len(some)):
            cells[i] = table[places[i]]
        for i in range(len(some)):
            kept = words[i] >> np.uint32(8) < cells[i] >> np.uint32(8)
            drawn[i] = np.uint8(words[i]) if kept else np.uint8(cells[i])
