"""Stored corrupted images: ROOT/CORRUPTION/SEVERITY/CLASS/NAME.JPEG, as ImageNet-C is published.

The network gets them as they are stored: they are neither resized nor cropped again. A stored image has the id and label of the
clean image with the same CLASS/NAME. Every cell, that is every corruption at every severity, must hold all images.
"""

import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from gch_bench.data.folders import fingerprint_of
from gch_bench.data.images import BadImage, FileImages, ImageSet, WrongSize, peek, spread
from gch_bench.errors import UserError

SUFFIXES = (".jpeg", ".jpg")  # compared without regard to case


@dataclass(frozen=True, eq=False)
class StoredImages(FileImages):
    """The images of one cell, in the order of the ids of the clean images."""

    size: int | None  # side in pixels that every image must have; None: any size, because the images will be resized
    fingerprint: str  # 16 hex digits of a hash of 64 images spread over the cell, see `fingerprint_of`

    def load_or_bad(self, index: int) -> Image.Image | BadImage:
        image = super().load_or_bad(index)
        return image if isinstance(image, BadImage) else self._misfit(index, image.size) or image

    def check_sizes(self) -> None:
        """Raise UserError if one of 64 images spread over the cell has another size; the others are checked when loaded."""
        for index in spread(len(self)):
            found = peek(self, index)
            misfit = self._misfit(index, found) if found else None
            if misfit:
                raise UserError(f"{misfit.path} {misfit.reason}")

    def _misfit(self, index: int, found: tuple[int, int]) -> WrongSize | None:
        if self.size is None or found == (self.size, self.size):
            return None
        return WrongSize(
            self.path(index),
            f"must be {self.size}x{self.size} pixels, as stored corrupted images are used without a resize, got"
            f" {found[0]}x{found[1]}: set data.size to theirs, or corruptions.resize=true (another protocol)",
        )


def stored_images(
    root: Path, cells: Iterable[tuple[str, int]], clean: ImageSet, size: int | None
) -> dict[tuple[str, int], StoredImages]:
    """The stored images of each cell, matched with the clean images by their relative paths without the suffix.

    This lists every folder, and reads the size and first 4 KiB of 64 images of each cell.

    Args:
        root: the folder that holds CORRUPTION/SEVERITY/CLASS/NAME.JPEG.
        cells: pairs (corruption, severity).
        clean: the clean images, which give ids and labels.
        size: the side in pixels that the images must have; None: any size.

    Raises:
        UserError: a folder or an image is missing, a folder holds other images, too, or an image has another size.
    """
    if not os.path.isdir(root) or not os.access(root, os.R_OK | os.X_OK):
        raise UserError(f"corruptions.root must be an existing, readable folder, got {root}; pass corruptions.root=/path")
    stems = [_stem(name) for name in clean.names]
    if len(set(stems)) < len(stems):
        raise UserError("corruptions.root needs evaluated images that differ in more than their suffix, got CLASS/NAME twice")
    return {cell: _stored_cell(root, cell, stems, clean, size) for cell in cells}


def _stored_cell(root: Path, cell: tuple[str, int], stems: list[str], clean: ImageSet, size: int | None) -> StoredImages:
    corruption, severity = cell
    folder = str(root / corruption / str(severity))
    if not os.path.isdir(folder):
        held = ", ".join(sorted(os.listdir(root))[:25]) or "nothing"
        raise UserError(f"corruptions.root must hold {corruption}/{severity}/, got {root} without it (it holds {held})")
    paths = _listed(folder)
    found = {_stem(path): path for path in paths}
    if len(paths) != len(stems) or found.keys() != set(stems):
        missing = [stem for stem in stems if stem not in found]
        surplus = sorted(set(paths) - {found[stem] for stem in stems if stem in found})
        kinds = {"missing": missing, "too many": surplus}
        what = " and ".join(f"{len(names)} {kind} (first: {names[0]})" for kind, names in kinds.items() if names)
        raise UserError(
            f"{folder} must hold the clean cell's {len(stems)} images as CLASS/NAME.JPEG, and no others, got {what};"
            " for a subset, give data.root the same subset"
        )
    names = [found[stem] for stem in stems]
    some = spread(len(names))
    fingerprint = fingerprint_of(FileImages([names[i] for i in some], clean.labels[some], folder), sizes=True)
    images = StoredImages(names, clean.labels, folder, size, fingerprint)
    images.check_sizes()
    return images


def _listed(folder: str) -> list[str]:
    """The JPEG files under the folder, as paths relative to it."""
    paths = []
    for parent, _, files in os.walk(folder, followlinks=True):
        start = parent[len(folder) + 1 :]
        names = (name for name in files if name.lower().endswith(SUFFIXES))
        paths += [sys.intern(os.path.join(start, name)) for name in names]  # interned: all cells have the same paths
    return paths


def _stem(path: str) -> str:
    return os.path.splitext(path)[0]
