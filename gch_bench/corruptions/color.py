"""What both forms of brightness share."""

from functools import lru_cache

import numpy as np


@lru_cache(maxsize=64)
def brightness_table(added: float) -> np.ndarray:
    """uint8 (65536,): at the index 256 V + x, the new level of a channel of level x in a pixel whose largest channel is V.

    In HSV a channel is V (1 - S k), where k is 0 for the largest of the three channels and 1 for the smallest. S and k
    stay, so S k = 1 - x / V gives the new level.
    """
    x = np.arange(256) / 255
    V = x[:, None]
    share = (V - x) / np.maximum(V, 1 / 255)
    return np.maximum(np.minimum(V + added, 1) * (1 - share) * 255, 0).astype(np.uint8).ravel()
