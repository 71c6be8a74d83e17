"""What both forms of snow, frost and fog share. Source: hendrycks/robustness, make_imagenet_c.py."""

import importlib.metadata
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

# ---- snow ----

FLAKES, ANGLE = 0, 1  # streams: the normal draws of the flakes, and the uniform draw of the motion blur's angle
ANGLES = (-135.0, -45.0)  # the range of the angle in degrees
LUMA = (0.299, 0.587, 0.114)  # the weights of red, green and blue in the grey version of an image

# ---- frost ----

CROP = 0  # the stream of the three uniform draws: which photograph, and where its crop begins, down and across


@lru_cache(maxsize=1)
def frost_photographs() -> list[Image.Image]:
    """The first five frost photographs of the reference, RGB, read from the files of the package ``imagecorruptions``.

    The package is not imported, because it fails to import with current versions of its dependencies.

    Raises:
        ValueError: the package is not installed, or its photographs cannot be read.
    """
    names = ("frost1.png", "frost2.png", "frost3.png", "frost4.jpg", "frost5.jpg")
    try:
        package = importlib.metadata.distribution("imagecorruptions")
        files = [Path(str(package.locate_file(f"imagecorruptions/frost/{name}"))) for name in names]
        return [Image.open(file).convert("RGB") for file in files]
    except (importlib.metadata.PackageNotFoundError, OSError) as error:
        raise ValueError(
            "frost needs the photographs of the package imagecorruptions: install them with pip install 'gch-bench[frost]'"
        ) from error


def frost_texture(number: int, scale: float, height: int, width: int) -> np.ndarray:
    """A photograph, scaled by ``scale``, or by more where crops of ``height`` x ``width`` pixels need it: uint8 (3, h, w)."""
    photograph = frost_photographs()[number]
    return _scaled(number, max(scale, (height + 1) / photograph.height, (width + 1) / photograph.width))


@lru_cache(maxsize=16)
def _scaled(number: int, scale: float) -> np.ndarray:
    """The photograph of this number, scaled by ``scale``: uint8 (3, h, w)."""
    photograph = frost_photographs()[number]
    # Bilinear without antialiasing, as in the reference, which shrinks the photographs for small images.
    size = (round(photograph.height * scale), round(photograph.width * scale))
    texture = torch.from_numpy(np.array(photograph)).to(torch.float32).permute(2, 0, 1)[None]
    return F.interpolate(texture, size, mode="bilinear", align_corners=False)[0].round().to(torch.uint8).numpy()


# ---- fog ----

# Fog is a plasma, a random map that the diamond-square algorithm makes. A map of one point, 0, is doubled again and again.
# Each new point is the mean of its four neighbours (with wrap-around) plus wibble * U(-wibble, wibble). Doubling a map of k x k
# points uses the draws k^2 to 4 k^2 - 1: first for the points in the middle of four old ones, then for the points above these,
# then for those to their left. At the end the map is shifted and scaled to [0, 1].
PLASMA = 0  # the stream of the side^2 draws of U(-1, 1)


def plasma_side(height: int, width: int) -> int:
    """The side of the map for an image: the next power of two, at least 2."""
    return 1 << max(1, (max(height, width) - 1).bit_length())


@lru_cache(maxsize=64)
def wibbles(side: int, decay: float) -> np.ndarray:
    """The factors of the draws at each doubling, float32 (log2(side),): wibble^2, where wibble starts at 100 and falls by
    ``decay`` from one doubling to the next."""
    return ((100.0 / decay ** np.arange(side.bit_length() - 1)) ** 2).astype(np.float32)
