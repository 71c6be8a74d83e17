"""What a result was made with: the commit of this code, the versions of its libraries, and the hardware."""

import contextlib
import os
import platform
import subprocess
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "torchvision", "timm", "numpy", "numba", "pandas", "pyarrow", "pillow", "hydra-core")


def versions(packages: Iterable[str] = PACKAGES) -> dict[str, str]:
    """Package -> its version."""
    return {name: version(name) for name in packages}


def provenance() -> dict[str, Any]:
    """The commit of the code, the versions of its libraries and the hardware of this process, in plain JSON values."""
    import torch

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    return {
        "commit": _commit(),
        "versions": {"python": platform.python_version(), **versions()},
        "hardware": {
            "machine": platform.machine(),
            "processor": _processor(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "gpus": gpus,
        },
    }


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor()


def _commit() -> str | None:
    """The commit of the code, with -dirty appended when tracked files differ from it; None outside a git checkout."""
    try:
        here = Path(__file__).parent
        described = subprocess.run(
            ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            capture_output=True, text=True, check=True, timeout=20,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return described.stdout.strip()
