"""The photographs of frost, which the corruption of this name adds to images."""

import importlib.metadata
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

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
