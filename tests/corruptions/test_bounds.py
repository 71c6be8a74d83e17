"""The compiled corruptions stay within their arrays: compiled code checks no index, and an error would overwrite memory."""

import subprocess
import sys
from pathlib import Path

from conftest import environment

PROGRAM = """
import warnings
import numpy as np
from numba import NumbaWarning
from gch_bench.corruptions import CORRUPTIONS, PARAMETER_SETS
from gch_bench.corruptions.draws import image_keys
from gch_bench.corruptions.shared import Shared

warnings.simplefilter("error", NumbaWarning)  # of code that cannot be kept on disk, for one
SIZES = (1, 1), (1, 2), (2, 1), (3, 5), (1, 40), (17, 33), (33, 64), (65, 97)
failures = set()
for name, corruption in CORRUPTIONS.items():
    for parameters in PARAMETER_SETS.values():
        for severity, level in enumerate(parameters.levels[name], 1):
            for size in SIZES:
                image = np.random.default_rng(0).integers(0, 256, (3, *size), dtype=np.uint8)
                draws = image_keys([7], 0, name, severity) if corruption.random else ()
                try:
                    corruption.compiled(Shared(image), np.empty_like(image), level, *draws)
                except IndexError as error:
                    failures.add(f"{name} {parameters.size} {severity} {size}: {error}")
print(*sorted(failures), sep="\\n", end="")
"""


def test_no_index_is_out_of_bounds_at_any_level_and_odd_sizes(tmp_path: Path) -> None:
    # NUMBA_OPT spares a third of the time: all functions are compiled anew.
    checked = {**environment(), "NUMBA_BOUNDSCHECK": "1", "NUMBA_OPT": "1", "XDG_CACHE_HOME": str(tmp_path)}
    run = subprocess.run([sys.executable, "-c", PROGRAM], env=checked, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert not run.stdout, run.stdout
