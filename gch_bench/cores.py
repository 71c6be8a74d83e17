"""How many CPU cores this process may use: the one place that counts them. Imports no torch, so that ``--help`` stays quick."""

import os
from collections.abc import Mapping


def usable_cores(processes: int = 1, environment: Mapping[str, str] = os.environ) -> int:
    """The cores that one of ``processes`` equal processes on this host may use, at least 1.

    The cores of this process's affinity mask are counted, which taskset and most SLURM set-ups narrow. Under SLURM the share is
    one of the job's cores on this host (``SLURM_CPUS_ON_NODE``): a mask that holds the cores of one task is not divided again.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    granted = environment.get("SLURM_CPUS_ON_NODE", "")
    share = min(cores, int(granted) // processes) if granted.isdigit() else cores // processes
    return max(1, share)
