"""The photographs of frost, which the corruption of this name adds to images."""

import importlib.metadata
from functools import lru_cache
from pathlib import Path

from PIL import Image


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
