"""How many CPU cores this process may use: the one place that counts them. Imports no torch, so that ``--help`` stays quick."""

import os
from collections.abc import Mapping


def usable_cores(processes: int = 1, environment: Mapping[str, str] = os.environ) -> int:
    """How many cores each of ``processes`` equal processes on this host may use, at least 1.

    This process's affinity mask, which taskset and most SLURM set-ups narrow, says how many cores the process may use. Without
    SLURM these cores are divided by the number of processes. Under SLURM the job's cores on this host (``SLURM_CPUS_ON_NODE``
    in ``environment``) are divided instead, and the mask is only an upper limit: it may hold the cores of one task already.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    granted = environment.get("SLURM_CPUS_ON_NODE", "")
    share = min(cores, int(granted) // processes) if granted.isdigit() else cores // processes
    return max(1, share)
