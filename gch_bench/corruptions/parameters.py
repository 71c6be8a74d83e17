"""The published severities of ImageNet-C, Tiny-ImageNet-C and CIFAR-10-C, and AlexNet's errors: numbers only.

Source of the severities: hendrycks/robustness (Apache-2.0), make_imagenet_c.py, make_tinyimagenet_c.py and make_cifar_c.py.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class ParameterSet:
    """Severities 1..5 of every corruption, tuned for square images of ``size`` pixels a side.

    The function that takes a level says what it means: ``levels["gaussian_noise"][severity - 1]`` is a standard deviation.
    """

    size: int
    levels: Mapping[str, tuple[Any, Any, Any, Any, Any]]


PARAMETER_SETS: dict[str, ParameterSet] = {
    "imagenet_224": ParameterSet(
        size=224,
        levels={
            "gaussian_noise": (0.08, 0.12, 0.18, 0.26, 0.38),
            "shot_noise": (60, 25, 12, 5, 3),
            "impulse_noise": (0.03, 0.06, 0.09, 0.17, 0.27),
            "brightness": (0.1, 0.2, 0.3, 0.4, 0.5),
            "contrast": (0.4, 0.3, 0.2, 0.1, 0.05),
            "pixelate": (0.6, 0.5, 0.4, 0.3, 0.25),
            "jpeg_compression": (25, 18, 15, 10, 7),
            "speckle_noise": (0.15, 0.2, 0.35, 0.45, 0.6),
            "gaussian_blur": (1.0, 2.0, 3.0, 4.0, 6.0),
            "saturate": ((0.3, 0.0), (0.1, 0.0), (2.0, 0.0), (5.0, 0.1), (20.0, 0.2)),
        },
    ),
    "tiny_64": ParameterSet(
        size=64,
        levels={
            "gaussian_noise": (0.04, 0.08, 0.12, 0.15, 0.18),
            "shot_noise": (250, 100, 50, 30, 15),
            "impulse_noise": (0.01, 0.02, 0.05, 0.08, 0.14),
            "brightness": (0.1, 0.2, 0.3, 0.4, 0.5),
            "contrast": (0.4, 0.3, 0.2, 0.1, 0.05),
            "pixelate": (0.9, 0.8, 0.7, 0.6, 0.5),
            "jpeg_compression": (65, 58, 50, 40, 25),
            "speckle_noise": (0.15, 0.2, 0.25, 0.3, 0.35),
            "gaussian_blur": (0.5, 0.75, 1.0, 1.25, 1.5),
            "saturate": ((0.3, 0.0), (0.1, 0.0), (2.0, 0.0), (5.0, 0.1), (30.0, 0.2)),
        },
    ),
    "cifar_32": ParameterSet(
        size=32,
        levels={
            "gaussian_noise": (0.04, 0.06, 0.08, 0.09, 0.1),
            "shot_noise": (500, 250, 100, 75, 50),
            "impulse_noise": (0.01, 0.02, 0.03, 0.05, 0.07),
            "brightness": (0.05, 0.1, 0.15, 0.2, 0.3),
            "contrast": (0.75, 0.5, 0.4, 0.3, 0.15),
            "pixelate": (0.95, 0.9, 0.85, 0.75, 0.65),
            "jpeg_compression": (80, 65, 58, 50, 40),
            "speckle_noise": (0.06, 0.1, 0.12, 0.16, 0.2),
            "gaussian_blur": (0.4, 0.6, 0.7, 0.8, 1.0),
            "saturate": ((0.3, 0.0), (0.1, 0.0), (1.5, 0.0), (2.0, 0.1), (2.5, 0.2)),
        },
    ),
}

# Top-1 error in percent of AlexNet, the mean over the five severities of stored ImageNet-C: the denominators of mCE.
# Source: facebookresearch/augmentation-corruption, experiments/overlap/baseline_data; the 15 reported corruptions agree with
# google-research/augmix, imagenet.py.
ALEXNET_CLEAN_ERROR_PERCENT = 43.5
ALEXNET_ERROR_PERCENT: dict[str, float] = {
    "gaussian_noise": 88.6428,
    "shot_noise": 89.4468,
    "impulse_noise": 92.264,
    "defocus_blur": 81.988,
    "glass_blur": 82.6268,
    "motion_blur": 78.5948,
    "zoom_blur": 79.836,
    "snow": 86.6816,
    "frost": 82.6572,
    "fog": 81.9324,
    "brightness": 56.4592,
    "contrast": 85.3204,
    "elastic_transform": 64.6056,
    "pixelate": 71.784,
    "jpeg_compression": 60.65,
    "speckle_noise": 84.5388,
    "gaussian_blur": 78.7108,
    "spatter": 71.7512,
    "saturate": 65.8248,
}
