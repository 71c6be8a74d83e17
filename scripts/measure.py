"""What the benchmark scripts share: a line on the machine, the time of one call, and a type of argparse for counts."""

import argparse
import platform
import time
from collections.abc import Callable

import torch

from gch_bench.provenance import provenance


def machine(device: torch.device) -> str:
    """One line on the machine: GPU or processor and threads, operating system, version of torch, commit of the code."""
    facts = provenance()
    gpu = facts["hardware"]["gpus"][0] if device.type == "cuda" else None
    processor = gpu or f"{facts['hardware']['processor']}, {torch.get_num_threads()} threads"
    return f"{processor}; {platform.system()}; torch {torch.__version__}; commit {facts['commit']}"


def seconds(action: Callable[[], object], device: torch.device) -> float:
    """The seconds that one call takes. On CUDA the time between two events is taken, when nothing else is queued."""
    if device.type == "cuda":
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize()
        start.record()
        action()
        end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end) / 1000
    begun = time.perf_counter()
    action()
    return time.perf_counter() - begun


def positive(text: str) -> int:
    """A type for argparse: a whole number of at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value
