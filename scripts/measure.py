"""What the benchmark scripts share: a line on the machine, the time of one call, photographs,
a type of argparse, and the report."""

import argparse
import platform
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from PIL import Image

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


def photographs(count: int, size: tuple[int, int], root: Path | None = None) -> Iterator[Image.Image]:
    """`count` RGB crops of size (width, height), at changing places, of photographs: those that ship with scikit-image and
    scikit-learn (`shipped`), or the JPEG files below `root`. A photograph that is too small is enlarged first."""
    paths = sorted(root.rglob("*.jp*g")) if root else [path for paths in shipped().values() for path in paths]
    for i in range(count):
        yield crop(Image.open(paths[i % len(paths)]).convert("RGB"), size, i)


def shipped() -> dict[str, list[Path]]:
    """The photographs that ship with scikit-image and scikit-learn, by package."""
    import skimage
    import sklearn.datasets

    skimage_data, sklearn_data = Path(skimage.__file__).parent / "data", Path(sklearn.datasets.__file__).parent / "images"
    return {
        "scikit-image": [skimage_data / name for name in ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg")],
        "scikit-learn": [sklearn_data / name for name in ("china.jpg", "flower.jpg")],
    }


def crop(image: Image.Image, size: tuple[int, int], number: int) -> Image.Image:
    """A crop of size (width, height) at a place that depends on its number; an image that is too small is enlarged first."""
    scale = max(1.0, *((wanted + 1) / side for wanted, side in zip(size, image.size, strict=True)))
    if scale > 1:
        image = image.resize((round(image.width * scale) + 1, round(image.height * scale) + 1))
    left, top = 37 * number % (image.width - size[0]), 23 * number % (image.height - size[1])
    return image.crop((left, top, left + size[0], top + size[1]))


def positive(text: str) -> int:
    """A type for argparse: a whole number of at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def write_report(file: Path, title: str, lines: Sequence[str]) -> None:
    """Write what a script printed to a Markdown file, with the command that printed it."""
    command = shlex.join(["python", f"scripts/{Path(sys.argv[0]).name}", *sys.argv[1:]])
    file.write_text("\n".join([f"# {title}", "", f"`{command}`, as it came.", "", *lines, ""]))
