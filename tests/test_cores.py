"""One place counts the cores, and loaders take as many processes as there are cores to run them."""

import os
import subprocess
import sys
import warnings

import numpy as np
import pytest
from conftest import environment

from gch_bench.cores import usable_cores
from gch_bench.data.images import ArrayImages, FileImages
from gch_bench.data.loaders import FEW_IMAGES, MOST_WORKERS, Source, eval_loader, loader_workers, workers_warning
from gch_bench.data.transforms import EvalTransform


@pytest.mark.parametrize(
    ("mask", "processes", "granted", "share"),
    [
        (8, 1, None, 8),
        (8, 2, None, 4),  # torchrun: the mask is all processes'
        (8, 3, None, 2),
        (2, 5, None, 1),  # more processes than cores
        (64, 4, "16", 4),  # SLURM binds nothing: the host has 64 cores, the job 16
        (4, 4, "16", 4),  # SLURM has bound each task to its own
        (64, 1, "16", 16),
        (64, 1, "", 64),
    ],
)
def test_share(mask: int, processes: int, granted: str | None, share: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(mask)), raising=False)
    assert usable_cores(processes, {} if granted is None else {"SLURM_CPUS_ON_NODE": granted}) == share


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs affinity masks")
def test_an_affinity_mask_counts() -> None:
    """As `taskset` narrows it, in a process of its own."""
    code = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); from gch_bench.cores import usable_cores; "
    done = subprocess.run(
        [sys.executable, "-c", code + "import sys; print(usable_cores(), 'torch' in sys.modules)"],
        env=environment(), capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.split() == ["1", "False"]


def test_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gch_bench.data.loaders.usable_cores", lambda processes: 64 // processes)
    few, many = (
        ArrayImages([""] * count, np.zeros(count, np.int64), np.zeros((count, 1, 1), np.uint8))
        for count in (FEW_IMAGES - 1, FEW_IMAGES)
    )
    stored = FileImages(["a.png"], np.zeros(1, np.int64), "/nowhere")
    assert [loader_workers(None, images, 4) for images in (few, many, stored)] == [0, 16, 16]
    assert loader_workers(None, stored, 1) == MOST_WORKERS < 64
    assert [loader_workers(wanted, few, 1) for wanted in (0, 3, 100)] == [0, 3, 100], "a number given is taken as it is"
    assert workers_warning(None, 1) is None
    assert workers_warning(16, 4) is None
    assert "data.workers=17" in str(workers_warning(17, 4))


def test_too_many_workers_print_no_python_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    images = ArrayImages(["a"], np.zeros(1, np.int64), np.zeros((1, 8, 8), np.uint8))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        eval_loader([Source(images, (EvalTransform(8),))], [[(0, 0)]], workers=500)  # processes start with the first pass
