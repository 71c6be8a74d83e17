"""The table of the corruptions of ImageNet-C, and the functions that apply them to a batch of images on a CPU or GPU.

Source: Hendrycks and Dietterich, Benchmarking Neural Network Robustness to Common Corruptions and Perturbations, ICLR 2019;
hendrycks/robustness, make_imagenet_c.py. To add a corruption, write its function, its levels in parameters.py and its line in
CORRUPTIONS.
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
# How many pixels are corrupted together. On a CPU they should fit into a core's cache; on a GPU they should keep it busy, in
# bounded memory.
PART_PIXELS = {"cpu": 8 * 224 * 224, "cuda": 1 << 23}


@dataclass(frozen=True)
class Corruption:
    """One row of the table.

    ``function`` is called as ``function(images, level)``, and a random one as ``function(images, level, generators)`` with one
    generator per image.
    """

    function: Callable[..., Tensor]
    group: Literal["noise", "blur", "weather", "digital", "extra"]
    random: bool = False
    parts: float = 1  # how many times PART_PIXELS it takes at a time on a CPU


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
        ValueError: ``size`` is less than 1.
    """
    if size < 1:
        raise ValueError(f"image size must be at least 1 pixel, got {size}")
    return min(PARAMETER_SETS, key=lambda name: abs(math.log(size / PARAMETER_SETS[name].size)))


def corrupt(images: Tensor, name: str, severity: int, ids: Tensor, seed: int = 0, parameters: str = "imagenet_224") -> Tensor:
    """Corrupt a batch of images.

    The result for an image depends on its pixels, the level of the corruption and (seed, id, name, severity) alone, not on the
    size or order of the batch or on its other images. The random draws differ between CPU and CUDA.

    Args:
        images: uint8 (B, 3, H, W), grey levels 0..255, on a CPU or CUDA device; they are not changed.
        name: a key of CORRUPTIONS.
        severity: 1..5.
        ids: int64 (B,), the number of each image in its data set.
        seed: the seed of the whole corrupted data set.
        parameters: a key of PARAMETER_SETS, which gives the levels; see ``parameters_for``.

    Returns:
        uint8 (B, 3, H, W) on the images' device, truncated to whole levels as in the reference.

    Raises:
        ValueError: an argument breaks its rule; the message gives name, rule and value in one line.
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
    """``value`` as a Python int.

    Generators are named by the text of their keys, so that True, 1.0 and 1 would give different draws.
    """
    try:
        if isinstance(value, bool) or getattr(value, "dtype", None) == torch.bool:
            raise TypeError
        return operator.index(value)
    except TypeError:
        raise ValueError(f"{name} must be a whole number, got {value!r}") from None


def jpeg_roundtrip(images: Tensor) -> Tensor:
    """uint8 (B, 3, H, W) -> the same after JPEG at quality 85, as in stored ImageNet-C. Raises ValueError on other images."""
    _check_images(images)
    return in_parts(lambda of: jpeg_compression(images[of], STORED_QUALITY), images)


def in_parts(part: Callable[[slice], Tensor], images: Tensor, parts: float = 1) -> Tensor:
    """Compute a tensor like ``images`` in slices of the batch: ``part(slice)`` returns the result of one slice.

    On a CPU as many threads as torch may use work side by side, each on slices of its own. No thread therefore waits for the
    others after each operation; work that torch does in one thread (random draws) is done in parallel, too; and no result
    depends on the number of threads. ``parts`` scales the size of a slice on a CPU, see PART_PIXELS.
    """
    out = torch.empty(images.shape, dtype=images.dtype, device=images.device)
    on_cpu, threads = images.device.type == "cpu", torch.get_num_threads()
    pixels = PART_PIXELS[images.device.type] * (parts if on_cpu else 1)
    size = max(1, int(pixels / (images.shape[2] * images.shape[3])))
    if on_cpu:
        size = min(size, max(1, -(-len(images) // threads)))  # so that every thread gets a slice
    inference = torch.is_inference_mode_enabled()  # the mode belongs to a thread, so the workers must be given it

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
