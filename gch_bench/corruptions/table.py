"""The table of the corruptions of ImageNet-C.

Source: Hendrycks and Dietterich, Benchmarking Neural Network Robustness to Common Corruptions and Perturbations, ICLR 2019;
hendrycks/robustness, make_imagenet_c.py. To add a corruption, write its two functions, its levels in parameters.py and its line
in CORRUPTIONS.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from gch_bench.corruptions import batched, compiled
from gch_bench.corruptions.parameters import PARAMETER_SETS

SEVERITIES = (1, 2, 3, 4, 5)


@dataclass(frozen=True)
class Corruption:
    """One row of the table: the same corruption written twice, for CPUs and for GPUs.

    ``compiled`` corrupts one image on one core in compiled code: ``compiled(image, out, level)``, where ``image`` is a Shared
    of a uint8 array (3, H, W) and ``out`` an array like it that is filled. ``batched`` corrupts many images at once by torch on
    any device, without a loop over the images: ``batched(images, level)`` takes a Shared of a uint8 tensor (B, 3, H, W) and
    returns a tensor like it. ``level`` is the entry of parameters.py. Random corruptions take the keys of their draws as a last
    argument: an int (``image_keys``), and an int64 tensor (B,).
    """

    compiled: Callable[..., None]
    batched: Callable[..., Tensor]
    group: Literal["noise", "blur", "weather", "digital", "extra"]
    random: bool = False


CORRUPTIONS: dict[str, Corruption] = {
    "gaussian_noise": Corruption(compiled.gaussian_noise, batched.gaussian_noise, group="noise", random=True),
    "shot_noise": Corruption(compiled.shot_noise, batched.shot_noise, group="noise", random=True),
    "impulse_noise": Corruption(compiled.impulse_noise, batched.impulse_noise, group="noise", random=True),
    "defocus_blur": Corruption(compiled.defocus_blur, batched.defocus_blur, group="blur"),
    "glass_blur": Corruption(compiled.glass_blur, batched.glass_blur, group="blur", random=True),
    "motion_blur": Corruption(compiled.motion_blur, batched.motion_blur, group="blur", random=True),
    "zoom_blur": Corruption(compiled.zoom_blur, batched.zoom_blur, group="blur"),
    "snow": Corruption(compiled.snow, batched.snow, group="weather", random=True),
    "frost": Corruption(compiled.frost, batched.frost, group="weather", random=True),
    "fog": Corruption(compiled.fog, batched.fog, group="weather", random=True),
    "brightness": Corruption(compiled.brightness, batched.brightness, group="weather"),
    "contrast": Corruption(compiled.contrast, batched.contrast, group="digital"),
    "elastic_transform": Corruption(compiled.elastic_transform, batched.elastic_transform, group="digital", random=True),
    "pixelate": Corruption(compiled.pixelate, batched.pixelate, group="digital"),
    "jpeg_compression": Corruption(compiled.jpeg_compression, batched.jpeg_compression, group="digital"),
    "speckle_noise": Corruption(compiled.speckle_noise, batched.speckle_noise, group="extra", random=True),
    "gaussian_blur": Corruption(compiled.gaussian_blur, batched.gaussian_blur, group="extra"),
    "spatter": Corruption(compiled.spatter, batched.spatter, group="extra", random=True),
    "saturate": Corruption(compiled.saturate, batched.saturate, group="extra"),
}


def parameters_for(size: int) -> str:
    """The name of the parameter set whose image side is nearest to ``size`` pixels on a logarithmic scale.

    Raises:
        ValueError: ``size`` is less than 1.
    """
    if size < 1:
        raise ValueError(f"image size must be at least 1 pixel, got {size}")
    return min(PARAMETER_SETS, key=lambda name: abs(math.log(size / PARAMETER_SETS[name].size)))
