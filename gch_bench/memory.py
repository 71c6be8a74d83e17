"""Make the process keep freed memory for reuse, which makes torch's work on a CPU about twice as fast on Linux.

glibc, the C library of most Linux systems, asks the system for every large block of memory and gives the block back when it is
freed. Each operation of a network therefore gets fresh pages, which the system must fill with zeros one by one when they are
first touched. With the two settings below glibc takes blocks of all sizes from its heap, uses freed blocks again, and never
hands the heap back before the process ends. Results do not change. The memory that is kept is bounded by the most that was in
use at one time (scripts/bench_memory.py measures both the time and the bound).

The settings concern the heap of the main thread. The threads of gch_bench.threads, which compute corruptions in small pieces,
have heaps of their own. Letting all threads share one heap (M_ARENA_MAX) or padding the heaps (M_TOP_PAD) brought no gain.
"""

import ctypes
import os

# Pairs (number of the setting in glibc's malloc.h, value): no block comes from the system directly, and the heap never shrinks.
M_MMAP_MAX, M_TRIM_THRESHOLD = -4, -1
SETTINGS = ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, -1))
# The same settings for new processes that this one starts, such as spawned loader workers; forked processes inherit them
# anyway.
ENVIRONMENT = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**62)}
# If one of these is set, the user has tuned the allocator, and it is left alone.
USERS_OWN = ("MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_")


def keep_freed_memory(memory: str = "auto") -> bool:
    """Make glibc keep and reuse freed memory, in this process until it ends and in the processes that it starts.

    Call it at the start of a job. A second call does nothing, and the change cannot be taken back. On other systems and with
    other C libraries (macOS, musl), and if the environment sets the allocator, everything stays as it is.

    Args:
        memory: the configuration field of this name: "auto", or "system" to leave the allocator as it is.

    Returns:
        Whether this call changed the allocator.
    """
    if memory == "system" or not _is_glibc() or _is_tuned():
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    changed = all(mallopt(ctypes.c_int(setting), ctypes.c_int(value)) == 1 for setting, value in SETTINGS)
    if changed:
        os.environ.update(ENVIRONMENT)
    return changed


def _is_glibc() -> bool:
    try:
        return (os.confstr("CS_GNU_LIBC_VERSION") or "").startswith("glibc")
    except (AttributeError, ValueError, OSError):  # Windows has no confstr, other systems do not know this name
        return False


def _is_tuned() -> bool:
    """Whether the environment sets the allocator: the user did, or a process that called keep_freed_memory."""
    return any(name in os.environ for name in USERS_OWN) or "glibc.malloc." in os.environ.get("GLIBC_TUNABLES", "")
