"""What a set of images is: names, labels, and one RGB image per id: the index in sorted order, so it is stable."""

import os
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError


class BadImage(NamedTuple):
    """An image that could not be decoded. A result, as an exception from a loader process arrives wrapped in a traceback."""

    path: str
    reason: str


class WrongSize(BadImage):
    """An image that could be decoded, and whose size its protocol forbids: it is never skipped."""


@dataclass(frozen=True, eq=False)
class ImageSet(ABC):
    """``names`` (N,) and ``labels`` (N,) int64; ``load(id)`` gives the image."""

    names: list[str]
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.names)

    @abstractmethod
    def load(self, index: int) -> Image.Image:
        """The image as RGB. Raises what Pillow raises on an unreadable one."""

    def path(self, index: int) -> str:
        """Where the image is, for messages."""
        return self.names[index]

    def load_or_bad(self, index: int) -> Image.Image | BadImage:
        """The image as RGB, or why it cannot be read."""
        try:
            return self.load(index)
        except (
            Exception
        ) as error:  # a broken file makes Pillow raise OSError, SyntaxError, ValueError, struct.error, zlib.error, ...
            return BadImage(self.path(index), _reason(error))


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "not an image in a format Pillow knows"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split()) or type(error).__name__


class Subset(NamedTuple):
    """One split of a data set."""

    classes: list[str]
    images: ImageSet
    fingerprint: str  # 16 hex digits over what the images are


@dataclass(frozen=True, eq=False)
class ArrayImages(ImageSet):
    """Images in memory; ``pixels`` uint8, (N, H, W) grey or (N, H, W, 3) RGB."""

    pixels: np.ndarray

    def load(self, index: int) -> Image.Image:
        return Image.fromarray(self.pixels[index]).convert("RGB")


@dataclass(frozen=True, eq=False)
class FileImages(ImageSet):
    """Images on disk; names are paths relative to ``folder``."""

    folder: str

    def path(self, index: int) -> str:
        return os.path.join(self.folder, self.names[index])

    def load(self, index: int) -> Image.Image:
        with open(self.path(index), "rb") as file:
            return Image.open(file).convert("RGB")


def image_sizes(images: ImageSet, most: int = 64) -> set[tuple[int, int]]:
    """(width, height) in pixels of up to ``most`` images spread evenly over the set; unreadable ones do not count."""
    found = {peek(images, index) for index in spread(len(images), most)}
    return {size for size in found if size is not None}


def spread(count: int, most: int = 64) -> list[int]:
    """Up to ``most`` of the ids 0..count-1, spread evenly."""
    return np.unique(np.linspace(0, count - 1, min(most, count)).round().astype(int)).tolist()


def peek(images: ImageSet, index: int) -> tuple[int, int] | None:
    """(width, height) in pixels, of a file by its header alone; None if it is unreadable."""
    if isinstance(images, FileImages):
        try:
            with Image.open(images.path(index)) as image:  # reads the header only
                return image.size
        except Exception:  # reported by name when the image is used
            return None
    return images.load(index).size
