"""Memory that was freed stays with the process: on Linux, torch's work on a CPU is then about twice as fast or more.

The C library of most Linux systems, glibc, asks the system for every large block and gives it back when it is freed. Each
operation of a network therefore gets fresh pages, which the system must fill with zeros one by one when they are first
touched. With the two settings below glibc takes blocks of all sizes from its heap, never hands the heap back before the
process ends, and uses it again. No number changes. What is kept is bounded by the most that was in use at one time
(scripts/bench_memory.py measures both the time and the bound).

Only the size of the main thread's heap is set. The threads of gch_bench.threads, which compute corruptions in small pieces,
have heaps of their own; to let all threads share one heap (M_ARENA_MAX) or to pad the heaps (M_TOP_PAD) brought nothing.
"""

import ctypes
import os

# (the setting's number in glibc's malloc.h, value): no block comes from the system directly, and the heap never shrinks.
M_MMAP_MAX, M_TRIM_THRESHOLD = -4, -1
SETTINGS = ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, -1))
# The same for the processes that this one starts anew, such as the workers of a data loader under spawn; forked ones inherit.
ENVIRONMENT = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**62)}
# A user who sets one of these has tuned the allocator already.
USERS_OWN = ("MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_")


def keep_freed_memory(memory: str = "auto") -> bool:
    """Have glibc keep and reuse freed memory, in this process to its end and in those that it starts.

    Call it at the start of a job; a second call does nothing, and nothing takes it back. On other systems and C libraries
    (macOS, musl), and where the user has set the allocator in the environment, everything stays as it is.

    Args:
        memory: auto, or system to leave the allocator as it is (the configuration field of this name).

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
