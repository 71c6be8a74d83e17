"""Stored corrupted images: ROOT/CORRUPTION/SEVERITY/CLASS/NAME.JPEG, as ImageNet-C is published.

They are the network's input as they lie there: neither resized nor cropped again. Ids and labels are those of the clean images
of the same CLASS/NAME, and every cell must hold them all.
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

SUFFIXES = (".jpeg", ".jpg")  # of any case


@dataclass(frozen=True, eq=False)
class StoredImages(FileImages):
    """One cell's images, in the order of the clean ids."""

    size: int | None  # pixels; the side every image must have. None: any, because they are resized
    fingerprint: str  # 16 hex digits over 64 images spread over the cell: path, size and first 4 KiB

    def load_or_bad(self, index: int) -> Image.Image | BadImage:
        image = super().load_or_bad(index)
        return image if isinstance(image, BadImage) else self._misfit(index, image.size) or image

    def check_sizes(self) -> None:
        """Raises UserError if one of 64 images spread over the cell has another size; the others are checked when loaded."""
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
    """The images of each (corruption, severity), matched with the clean ones by their relative path without its suffix.

    Lists every folder and reads 64 images of each cell. ``size``: see StoredImages.

    Raises:
        UserError: a folder or an image is missing, there is an image too many, or one has another size.
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
