"""The corruptions of ImageNet-C, batched, on CPU and GPU, reproducible per image.

Source: Hendrycks and Dietterich, Benchmarking Neural Network Robustness to Common Corruptions and Perturbations, ICLR 2019;
hendrycks/robustness, make_imagenet_c.py. A new corruption is a function, its levels in parameters.py and a line in CORRUPTIONS.
"""

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from gch_bench.corruptions.blur import defocus_blur, gaussian_blur, glass_blur, motion_blur, zoom_blur
from gch_bench.corruptions.digital import elastic_transform, jpeg_compression, pixelate
from gch_bench.corruptions.parameters import PARAMETER_SETS
from gch_bench.corruptions.pixel import (
    brightness,
    contrast,
    gaussian_noise,
    impulse_noise,
    saturate,
    shot_noise,
    speckle_noise,
)
from gch_bench.corruptions.spatter import spatter
from gch_bench.corruptions.weather import fog, frost, snow
from gch_bench.rng import generators
from gch_bench.threads import pool

SEVERITIES = (1, 2, 3, 4, 5)
STORED_QUALITY = 85  # JPEG quality of the published ImageNet-C
# How many pixels are corrupted together: on a CPU what stays in a core's cache, on a GPU what keeps it busy and bounds memory.
PART_PIXELS = {"cpu": 8 * 224 * 224, "cuda": 1 << 23}


@dataclass(frozen=True)
class Corruption:
    """One row of the table: ``function(images, level)``, or ``function(images, level, generators)`` where it is random."""

    function: Callable[..., Tensor]
    group: Literal["noise", "blur", "weather", "digital", "extra"]
    random: bool = False
    parts: float = 1  # of PART_PIXELS that it takes at a time on a CPU


CORRUPTIONS: dict[str, Corruption] = {
    "gaussian_noise": Corruption(gaussian_noise, group="noise", random=True),
    "shot_noise": Corruption(shot_noise, group="noise", random=True),
    "impulse_noise": Corruption(impulse_noise, group="noise", random=True),
    "defocus_blur": Corruption(defocus_blur, group="blur"),
    "glass_blur": Corruption(glass_blur, group="blur", random=True),
    "motion_blur": Corruption(motion_blur, group="blur", random=True),
    "zoom_blur": Corruption(zoom_blur, group="blur", parts=2),
    "snow": Corruption(snow, group="weather", random=True),
    "frost": Corruption(frost, group="weather", random=True),
    "fog": Corruption(fog, group="weather", random=True),
    "brightness": Corruption(brightness, group="weather"),
    "contrast": Corruption(contrast, group="digital"),
    "elastic_transform": Corruption(elastic_transform, group="digital", random=True, parts=0.5),
    "pixelate": Corruption(pixelate, group="digital"),
    "jpeg_compression": Corruption(jpeg_compression, group="digital"),
    "speckle_noise": Corruption(speckle_noise, group="extra", random=True),
    "gaussian_blur": Corruption(gaussian_blur, group="extra", parts=0.5),
    "spatter": Corruption(spatter, group="extra", random=True),
    "saturate": Corruption(saturate, group="extra", parts=0.5),
}


def parameters_for(size: int) -> str:
    """The name of the parameter set whose image side is nearest to ``size`` pixels on a logarithmic scale.

    Raises:
        ValueError: ``size`` is below 1.
    """
    if size < 1:
        raise ValueError(f"image size must be at least 1 pixel, got {size}")
    return min(PARAMETER_SETS, key=lambda name: abs(math.log(size / PARAMETER_SETS[name].size)))


def corrupt(images: Tensor, name: str, severity: int, ids: Tensor, seed: int = 0, parameters: str = "imagenet_224") -> Tensor:
    """The images, corrupted. An image's result depends on its pixels and on (seed, id, name, severity) alone: not on the
    batch's size, order or other images. Draws differ between CPU and CUDA.

    Args:
        images: uint8 (B, 3, H, W), grey levels 0..255, on a CPU or CUDA device; left as they are.
        name: a key of CORRUPTIONS.
        severity: 1..5.
        ids: int64 (B,), each image's number in its data set.
        seed: of the whole corrupted data set.
        parameters: a key of PARAMETER_SETS; see ``parameters_for``.

    Returns:
        uint8 (B, 3, H, W) on the images' device, truncated to whole levels as in the reference.

    Raises:
        ValueError: an argument breaks its rule; one line gives rule and value.
    """
    severity, seed = _whole("severity", severity), _whole("seed", seed)
    if not isinstance(name, str) or name not in CORRUPTIONS:
        raise ValueError(f"corruption must be one of {', '.join(CORRUPTIONS)}, got {name!r}")
    if severity not in SEVERITIES:
        raise ValueError(f"severity must be 1..5, got {severity!r}")
    if not isinstance(parameters, str) or parameters not in PARAMETER_SETS:
        raise ValueError(f"parameters must be one of {', '.join(PARAMETER_SETS)}, got {parameters!r}")
    _check_images(images)
    if not isinstance(ids, Tensor):
        raise ValueError(f"ids must be a torch tensor, got {type(ids).__name__}")
    if ids.dtype != torch.int64 or ids.shape != images.shape[:1]:
        raise ValueError(f"ids must be int64 of shape ({images.shape[0]},), got {ids.dtype} of shape {tuple(ids.shape)}")
    corruption, level = CORRUPTIONS[name], PARAMETER_SETS[parameters].levels[name][severity - 1]

    def part(of: slice) -> Tensor:
        if not corruption.random:
            return corruption.function(images[of], level)
        draws = generators(ids[of].tolist(), seed, name, severity, device=images.device)
        return corruption.function(images[of], level, draws)

    return in_parts(part, images, corruption.parts)


def _check_images(images: Tensor) -> None:
    if not isinstance(images, Tensor):
        raise ValueError(f"images must be a torch tensor, got {type(images).__name__}")
    if images.device.type not in PART_PIXELS:
        raise ValueError(f"images must be on one of {', '.join(PART_PIXELS)}, got {images.device}")
    if images.dtype != torch.uint8:
        raise ValueError(f"images must be uint8, got {images.dtype}")
    if images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape[2:]:
        raise ValueError(f"images must have shape (B, 3, H, W), got {tuple(images.shape)}")


def _whole(name: str, value: int) -> int:
    """A Python int: draws are named by their keys' text, where True, 1.0 and 1 would differ."""
    try:
        if isinstance(value, bool) or getattr(value, "dtype", None) == torch.bool:
            raise TypeError
        return operator.index(value)
    except TypeError:
        raise ValueError(f"{name} must be a whole number, got {value!r}") from None


def jpeg_roundtrip(images: Tensor) -> Tensor:
    """uint8 (B, 3, H, W) -> the same after JPEG at quality 85, as ImageNet-C is stored. Raises ValueError for other images."""
    _check_images(images)
    return in_parts(lambda of: jpeg_compression(images[of], STORED_QUALITY), images)


def in_parts(part: Callable[[slice], Tensor], images: Tensor, parts: float = 1) -> Tensor:
    """A tensor like ``images`` with ``part(slice)`` in each slice of the batch, on a CPU by as many threads as torch may use.

    Each thread runs its operations alone: no thread waits for others after each operation, what torch does in one thread
    (random draws) runs side by side too, and no result depends on the number of threads.
    """
    out = torch.empty(images.shape, dtype=images.dtype, device=images.device)
    on_cpu, threads = images.device.type == "cpu", torch.get_num_threads()
    pixels = PART_PIXELS[images.device.type] * (parts if on_cpu else 1)
    size = max(1, int(pixels / (images.shape[2] * images.shape[3])))
    if on_cpu:
        size = min(size, max(1, -(-len(images) // threads)))  # something for every thread
    inference = torch.is_inference_mode_enabled()  # each thread has its own mode

    def fill(start: int) -> None:
        with torch.inference_mode(inference), torch.autocast(images.device.type, enabled=False):
            out[start : start + size] = part(slice(start, start + size))

    starts = range(0, len(images), size)
    if not on_cpu or threads == 1:
        for start in starts:
            fill(start)
        return out
    for _ in pool().map(fill, starts):
        pass
    return out
