"""The exact laws of the four noises, and the tables that both forms of a noise draw from.

A noise changes each value on its own, and a value is one of 256 levels before and after. So all there is to know about a noise
at one severity is the matrix P(output k | input v). Walker's alias method draws from a row of it with one random word: the word
chooses one of 256 columns, which all have the same probability, and the rest of the word decides between the column's own level
and another one, the column's alias.

Sources: hendrycks/robustness, make_imagenet_c.py (the noises); Walker, An Efficient Method for Generating Discrete Random
Variables with General Distributions, ACM TOMS 3 (1977), 253-256.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import torch

STREAM = 0  # of the random words; the only one that a noise needs
FULL = 1 << 24  # the mass of a column of an alias table: a row has 256 columns and the mass 2**32
Law = Callable[[Any], np.ndarray]  # level -> float64 (256, 256): P(output k | input v)


def gaussian_law(sd: float) -> np.ndarray:
    """x + N(0, sd^2) for each value x in [0, 1]; ``sd`` is in the same unit. Returns P(k | v), float64 (256, 256)."""
    return _truncated_normal(np.full(256, 255 * sd))


def speckle_law(sd: float) -> np.ndarray:
    """x + x N(0, sd^2) for each value x in [0, 1]. Returns P(k | v), float64 (256, 256)."""
    return _truncated_normal(np.arange(256) * sd)


def _truncated_normal(sd_V: np.ndarray) -> np.ndarray:
    """P(k | v) of v + N(0, sd_V[v]^2), clipped to 0..255 and truncated to a whole number."""
    distance_VK = np.arange(1, 256) - np.arange(256)[:, None]
    below_VK = torch.special.ndtr(torch.from_numpy(distance_VK / np.maximum(sd_V, 1e-9)[:, None])).numpy()
    return np.diff(below_VK, axis=1, prepend=0, append=1)


def shot_law(photons: int) -> np.ndarray:
    """min(Poisson(x ``photons``) / ``photons``, 1) for each value x in [0, 1]. Returns P(k | v), float64 (256, 256)."""
    count = np.arange(photons)
    log_factorial = np.concatenate([[0], np.log(np.arange(1, photons)).cumsum()])
    rate_V1 = np.arange(1, 256)[:, None] * photons / 255
    law = np.zeros((256, 256))
    law[0, 0] = 1
    level = (count / photons * 255).astype(int)
    np.add.at(law[1:].T, level, np.exp(count * np.log(rate_V1) - rate_V1 - log_factorial).T)
    law[1:, 255] = np.maximum(1 - law[1:].sum(1), 0)  # all counts from ``photons`` on
    return law


def impulse_law(amount: float) -> np.ndarray:
    """Each value becomes 0 or 255 with probability ``amount`` / 2 each. Returns P(k | v), float64 (256, 256)."""
    law = (1 - amount) * np.eye(256)
    law[:, [0, 255]] += amount / 2
    return law


@lru_cache(maxsize=64)
def alias_table(law: Law, level: float) -> np.ndarray:
    """Alias tables of all rows of ``law(level)``, uint32 (256 * 256,): at 256 v + column, (threshold << 8) + alias.

    A word w chooses the column w & 255 of its input's row. The output is the column if w >> 8 is below the threshold, else the
    alias. The probabilities equal the law's to 2**-31.
    """
    return _alias_table(law(level))


def _alias_table(law: np.ndarray) -> np.ndarray:
    """See ``alias_table``. The masses are whole numbers, so that each row's are used up exactly.

    In every row, in step, a donor (a column with too much mass) gives to one poor column after the other what these lack. A
    donor that has become poor itself gets the rest from the next donor.
    """
    mass = np.diff(np.rint(law.cumsum(1) * (256 * FULL)), axis=1, prepend=0).astype(np.int64)
    mass[:, 255] += 256 * FULL - mass.sum(1)
    order = (mass > FULL).argsort(1, kind="stable")
    threshold, alias = np.full_like(mass, FULL), np.tile(np.arange(256), (256, 1))
    row, poor, donor = np.arange(256), np.zeros(256, int), (mass <= FULL).sum(1)
    while (donor < 256).any():
        row, poor, donor = (each[donor < 256] for each in (row, poor, donor))
        giver, gives = order[row, donor], mass[row, order[row, donor]] > FULL
        filled = np.where(gives, order[row, poor], giver)
        poor, donor = poor + gives, donor + ~gives
        row, poor, donor, filled = (
            each[donor < 256] for each in (row, poor, donor, filled)
        )  # or else the rest is full already
        giver = order[row, donor]
        threshold[row, filled], alias[row, filled] = mass[row, filled], giver
        mass[row, giver] -= FULL - mass[row, filled]
    full = threshold == FULL  # one more than a word may hold
    threshold[full], alias[full] = FULL - 1, np.nonzero(full)[1]
    return (threshold * 256 + alias).astype(np.uint32).ravel()
