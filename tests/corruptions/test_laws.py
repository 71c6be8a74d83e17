"""The alias tables of the noises against their exact laws by SciPy."""

import numpy as np
import pytest
from corruption_references import LAWS

from gch_bench.corruptions import PARAMETER_SETS, laws

OURS = {
    "gaussian_noise": laws.gaussian_law,
    "shot_noise": laws.shot_law,
    "impulse_noise": laws.impulse_law,
    "speckle_noise": laws.speckle_law,
}
# Levels that no parameter set has: nothing, little and much of each noise.
EXTREMES = {
    "gaussian_noise": (0, 1e-3, 10),
    "shot_noise": (1, 2, 5000),
    "impulse_noise": (0, 1e-6, 1),
    "speckle_noise": (0, 1e-3, 10),
}


def probabilities(table: np.ndarray) -> np.ndarray:
    """P(k | v) of draws from an alias table: a column has 2**24 words, of which ``threshold`` keep it."""
    threshold, alias = (table >> 8).reshape(256, 256).astype(float), (table & 255).reshape(256, 256).astype(int)
    row, column = np.indices((256, 256))
    found = np.zeros((256, 256))
    np.add.at(found, (row, column), threshold)
    np.add.at(found, (row, alias), 2**24 - threshold)
    return found / 2**32


@pytest.mark.parametrize("name", LAWS)
def test_alias_tables_hold_the_exact_laws(name: str) -> None:
    published = {level for parameters in PARAMETER_SETS.values() for level in parameters.levels[name]}
    for level in (*sorted(published), *EXTREMES[name]):
        expected = np.stack([np.diff(LAWS[name](v, level), prepend=0) for v in range(256)])
        assert np.abs(OURS[name](level).sum(1) - 1).max() < 2**-32
        assert np.abs(probabilities(laws.alias_table(OURS[name], level)) - expected).max() < 2**-30, level
