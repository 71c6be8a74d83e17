"""Sets of images: the names, the labels and one RGB image for each id.

The id of an image is its index in the sorted list of the set, so it is the same in every run.
"""

import hashlib
import os
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from gch_bench.rng import seed_of


class BadImage(NamedTuple):
    """An image that could not be decoded.

    It is returned and not raised, because an exception from a loader process would arrive wrapped in a traceback.
    """

    path: str
    reason: str


class WrongSize(BadImage):
    """An image that could be decoded but has a size that the protocol forbids. It is an error even with data.skip_bad=true."""


class LostImage(BadImage):
    """A listed image that could not be opened: the disk or its folder is gone. It is an error even with data.skip_bad=true."""


@dataclass(frozen=True, eq=False)
class ImageSet(ABC):
    """Base of the sets of N images: ``names`` (N,), ``labels`` (N,) int64, and ``load(id)``, which returns an image.

    Where an image may have several labels, ``label_sets`` (N,) holds all of them, and ``labels`` the first of each;
    ``metrics.scored_labels`` says which one an image is scored against. Otherwise it is None.
    """

    names: list[str]
    labels: np.ndarray
    label_sets: list[tuple[int, ...]] | None = field(default=None, kw_only=True)

    def __len__(self) -> int:
        return len(self.names)

    @abstractmethod
    def load(self, index: int) -> Image.Image:
        """The image with this id as RGB. Raises what Pillow raises if the image is unreadable."""

    def path(self, index: int) -> str:
        """The path or name of the image, for messages."""
        return self.names[index]

    def load_or_bad(self, index: int) -> Image.Image | BadImage:
        """The image with this id as RGB, or the reason why it cannot be read."""
        try:
            return self.load(index)
        # A broken file makes Pillow raise OSError (without an errno), SyntaxError, ValueError, struct.error, zlib.error, ...
        except Exception as error:
            if isinstance(error, OSError) and error.errno is not None:
                return LostImage(
                    self.path(index), f"is listed but cannot be read ({error.strerror}): check the disk and its folder"
                )
            return BadImage(self.path(index), _reason(error))


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "not an image in a format Pillow knows"
    return " ".join(str(error).split()) or type(error).__name__


class Subset(NamedTuple):
    """One split of a data set."""

    classes: list[str]
    images: ImageSet
    fingerprint: str  # 16 hex digits of a hash that identifies the images
    class_ids: tuple[int, ...] | None = None  # which of ImageNet-1k's classes `classes` are; None: they are others


@dataclass(frozen=True, eq=False)
class ArrayImages(ImageSet):
    """Images in memory: ``pixels`` is uint8, (N, H, W) if grey or (N, H, W, 3) if RGB."""

    pixels: np.ndarray

    def load(self, index: int) -> Image.Image:
        return Image.fromarray(self.pixels[index]).convert("RGB")


@dataclass(frozen=True, eq=False)
class FileImages(ImageSet):
    """Images on disk: ``names`` are paths relative to ``folder``."""

    folder: str

    def path(self, index: int) -> str:
        return os.path.join(self.folder, self.names[index])

    def load(self, index: int) -> Image.Image:
        with open(self.path(index), "rb") as file:
            return Image.open(file).convert("RGB")


@dataclass(frozen=True, eq=False)
class PlacedImages(FileImages):
    """Images on disk whose names do not depend on where they lie: ``files`` (N,) are the paths relative to ``folder``."""

    files: list[str]

    def path(self, index: int) -> str:
        return os.path.join(self.folder, self.files[index])


@dataclass(frozen=True, eq=False)
class ChosenImages(ImageSet):
    """Some images of another set: image i is image ``ids[i]`` of ``whole``."""

    whole: ImageSet
    ids: np.ndarray

    def path(self, index: int) -> str:
        return self.whole.path(int(self.ids[index]))

    def load(self, index: int) -> Image.Image:
        return self.whole.load(int(self.ids[index]))


def drawn_ids(num_images: int, count: int, seed: int, purpose: str = "subset") -> np.ndarray:
    """``count`` of the ids 0..num_images-1, sorted int64, drawn by ``seed`` for a ``purpose``.

    The draw is NumPy's legacy permutation, whose values NumPy promises never to change, so the ids are the same everywhere.
    """
    draws = np.random.RandomState(seed_of(seed, purpose) % 2**32)
    return np.sort(draws.permutation(num_images)[:count]).astype(np.int64)


def chosen(subset: Subset, ids: np.ndarray) -> Subset:
    """The images of ``subset`` with these ids; the classes stay. The fingerprint is a hash of the whole one and the ids."""
    whole = subset.images
    sets = None if whole.label_sets is None else [whole.label_sets[i] for i in ids]
    images = ChosenImages([whole.names[i] for i in ids], whole.labels[ids], whole, ids, label_sets=sets)
    fingerprint = hashlib.sha256(subset.fingerprint.encode() + ids.astype("<i8").tobytes()).hexdigest()[:16]
    return subset._replace(images=images, fingerprint=fingerprint)


def image_sizes(images: ImageSet, most: int = 64) -> set[tuple[int, int]]:
    """The sizes (width, height) in pixels that occur among up to ``most`` images, spread evenly over the set.

    Unreadable images are left out.
    """
    found = {peek(images, index) for index in spread(len(images), most)}
    return {size for size in found if size is not None}


def spread(count: int, most: int = 64) -> list[int]:
    """Up to ``most`` of the ids 0..count-1, evenly spaced."""
    return np.unique(np.linspace(0, count - 1, min(most, count)).round().astype(int)).tolist()


def peek(images: ImageSet, index: int) -> tuple[int, int] | None:
    """(width, height) of the image in pixels; None if its file is unreadable. Of a file only the header is read."""
    if isinstance(images, FileImages):
        try:
            with Image.open(images.path(index)) as image:  # reads the header only
                return image.size
        except Exception:  # the error is reported with the file's name when the image is used
            return None
    return images.load(index).size
