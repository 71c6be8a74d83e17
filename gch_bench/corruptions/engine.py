"""Apply corruptions to a batch of images: on a CPU one image at a time in compiled code, on a GPU all images together.

Both ways use the same random draws, so their results differ by rounding alone.
"""

import operator
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from gch_bench.corruptions.draws import image_keys
from gch_bench.corruptions.parameters import PARAMETER_SETS
from gch_bench.corruptions.shared import Shared
from gch_bench.corruptions.table import CORRUPTIONS, SEVERITIES, Corruption, parameters_for
from gch_bench.threads import pool

STORED_QUALITY = 85  # JPEG quality of the published ImageNet-C
DEVICES = ("cpu", "cuda")
PARTS_OF_A_THREAD = 4  # a batch is dealt out to threads in so many parts for each, as some images take longer than others
GPU_PIXELS = 1 << 23  # how many pixels a GPU corrupts together: enough to keep it busy, in bounded memory


def corrupt(images: Tensor, name: str, severity: int, ids: Tensor, seed: int = 0, parameters: str = "auto") -> Tensor:
    """Corrupt a batch of images.

    The result for an image depends on its pixels, the level of the corruption and (seed, id, name, severity) alone, not on the
    size or order of the batch or on its other images. On a CPU and on a GPU it differs by rounding alone.

    Args:
        images: uint8 (B, 3, H, W), grey levels 0..255, on a CPU or CUDA device; they are not changed.
        name: a key of CORRUPTIONS.
        severity: 1..5.
        ids: int64 (B,), the number of each image in its data set.
        seed: the seed of the whole corrupted data set.
        parameters: a key of PARAMETER_SETS, which gives the levels; "auto" is ``parameters_for`` the shorter side.

    Returns:
        uint8 (B, 3, H, W) on the images' device, truncated to whole levels as in the reference.

    Raises:
        ValueError: an argument breaks its rule; the message gives name, rule and value in one line.
    """
    return next(corrupt_all(images, [(name, severity)], ids, seed, parameters))


def corrupt_all(
    images: Tensor, cells: Sequence[tuple[str, int]], ids: Tensor, seed: int = 0, parameters: str = "auto"
) -> Iterator[Tensor]:
    """Corrupt a batch of images in several ways, and compute once what the severities of a corruption have in common.

    Args:
        images: as in ``corrupt``; they must stay as they are until the last result was taken.
        cells: pairs (name, severity). Everything else is as in ``corrupt``.

    Returns:
        An iterator over the cells in their order; each gives what ``corrupt`` gives, bit for bit. Severities of one corruption
        that follow each other are made together, and only these are held in memory.

    Raises:
        ValueError: as in ``corrupt``, at the call.
    """
    seed = _whole("seed", seed)
    rows = [_cell(cell) for cell in cells]
    if not isinstance(parameters, str) or parameters not in ("auto", *PARAMETER_SETS):
        raise ValueError(f"parameters must be one of auto, {', '.join(PARAMETER_SETS)}, got {parameters!r}")
    _check_images(images)
    parameters = parameters_for(min(images.shape[2:])) if parameters == "auto" else parameters
    if not isinstance(ids, Tensor):
        raise ValueError(f"ids must be a torch tensor, got {type(ids).__name__}")
    if ids.dtype != torch.int64 or ids.shape != images.shape[:1]:
        raise ValueError(f"ids must be int64 of shape ({images.shape[0]},), got {ids.dtype} of shape {tuple(ids.shape)}")
    return _corrupt_all(images, rows, ids.tolist(), seed, parameters)


def _corrupt_all(
    images: Tensor, cells: Sequence[tuple[str, int]], ids: list[int], seed: int, parameters: str
) -> Iterator[Tensor]:
    for name, group in groupby(cells, key=lambda cell: cell[0]):
        severities = [severity for _, severity in group]
        levels = [PARAMETER_SETS[parameters].levels[name][severity - 1] for severity in severities]
        keys = [image_keys(ids if CORRUPTIONS[name].random else [], seed, name, severity) for severity in severities]
        yield from _apply(images, CORRUPTIONS[name], levels, keys)


def jpeg_roundtrip(images: Tensor) -> Tensor:
    """uint8 (B, 3, H, W) -> the same after JPEG at quality 85, as in stored ImageNet-C. Raises ValueError on other images."""
    _check_images(images)
    return _apply(images, CORRUPTIONS["jpeg_compression"], [STORED_QUALITY], [[]])[0]


def _apply(images: Tensor, corruption: Corruption, levels: list[Any], keys: list[list[int]]) -> list[Tensor]:
    """The images corrupted at every level; ``keys`` holds those of each level, one per image, if the corruption is random."""
    apply = _compiled if images.device.type == "cpu" else _batched
    return apply(images, corruption, levels, keys)


def _compiled(images: Tensor, corruption: Corruption, levels: list[Any], keys: list[list[int]]) -> list[Tensor]:
    """On a CPU: one image after the other, by as many threads as torch may use, each with images of its own."""
    pixels = images.contiguous().numpy()
    corrupted = [torch.empty(images.shape, dtype=torch.uint8, device=images.device) for _ in levels]
    outs = [tensor.numpy() for tensor in corrupted]

    def fill(numbers: range) -> None:
        for number in numbers:
            image = Shared(pixels[number])
            for out, level, own in zip(outs, levels, keys, strict=True):
                corruption.compiled(image, out[number], level, *(own[number : number + 1] if corruption.random else ()))

    count, threads = len(pixels), torch.get_num_threads()
    if threads == 1 or count == 1:
        fill(range(count))
    else:
        step = -(-count // (threads * PARTS_OF_A_THREAD)) or 1
        for _ in pool().map(fill, [range(start, min(start + step, count)) for start in range(0, count, step)]):
            pass
    return corrupted


def _batched(images: Tensor, corruption: Corruption, levels: list[Any], keys: list[list[int]]) -> list[Tensor]:
    """On a GPU: as many images together as fit into GPU_PIXELS."""
    height, width = images.shape[2:]
    # Fog draws a square map around an image, of which a long and narrow image shows a small part.
    size = max(1, GPU_PIXELS // max(height * width, max(height, width) ** 2 // 4))
    parts: list[list[Tensor]] = [[] for _ in levels]
    with torch.autocast(images.device.type, enabled=False):
        for start in range(0, len(images), size):
            shared = Shared(images[start : start + size].contiguous())
            for part, level, own in zip(parts, levels, keys, strict=True):
                draws = [torch.tensor(own[start : start + size], device=images.device)] if corruption.random else []
                part.append(corruption.batched(shared, level, *draws))
    return [torch.cat(part) if part else images.clone() for part in parts]


def _cell(cell: tuple[str, int]) -> tuple[str, int]:
    if not isinstance(cell, tuple | list) or len(cell) != 2:
        raise ValueError(f"cells must be pairs (name, severity), got {cell!r}")
    name, severity = cell[0], _whole("severity", cell[1])
    if not isinstance(name, str) or name not in CORRUPTIONS:
        raise ValueError(f"corruption must be one of {', '.join(CORRUPTIONS)}, got {name!r}")
    if severity not in SEVERITIES:
        raise ValueError(f"severity must be 1..5, got {severity!r}")
    return name, severity


def _check_images(images: Tensor) -> None:
    if not isinstance(images, Tensor):
        raise ValueError(f"images must be a torch tensor, got {type(images).__name__}")
    if images.device.type not in DEVICES:
        raise ValueError(f"images must be on one of {', '.join(DEVICES)}, got {images.device}")
    if images.dtype != torch.uint8:
        raise ValueError(f"images must be uint8, got {images.dtype}")
    if images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape[2:]:
        raise ValueError(f"images must have shape (B, 3, H, W), got {tuple(images.shape)}")


def _whole(name: str, value: int) -> int:
    """``value`` as a Python int.

    Keys are made from the text of numbers, so that True, 1.0 and 1 would give different draws.
    """
    try:
        if isinstance(value, bool) or getattr(value, "dtype", None) == torch.bool:
            raise TypeError
        return operator.index(value)
    except TypeError:
        raise ValueError(f"{name} must be a whole number, got {value!r}") from None
