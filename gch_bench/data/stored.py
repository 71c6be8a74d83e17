"""Stored corrupted images: ROOT/CORRUPTION/SEVERITY/CLASS/NAME.JPEG, as ImageNet-C is published, or ROOT/CORRUPTION.npy.

The network gets them as they are stored: they are neither resized nor cropped again. A stored file has the id and label of the
clean image with the same CLASS/NAME, and the image of an array those of the clean image at its position. Every cell, that is
every corruption at every severity, must hold all images. See stored_layout.py for the layouts.
"""

import functools
import hashlib
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from gch_bench.data.folders import fingerprint_of
from gch_bench.data.imagenet import wordnet_id
from gch_bench.data.images import BadImage, FileImages, ImageSet, WrongSize, peek, spread
from gch_bench.data.stored_layout import LABELS, cell_folder, check_cells, check_stored_root, corruption_folders, has_arrays
from gch_bench.errors import UserError

SUFFIXES = (".jpeg", ".jpg")  # compared without regard to case


@dataclass(frozen=True, eq=False)
class StoredImages(ImageSet):
    """The images of one cell, in the order of the ids of the clean images."""

    size: int | None  # side in pixels that every image must have; None: any size, because the images will be resized
    fingerprint: str  # 16 hex digits of a hash of 64 images spread over the cell

    def load_or_bad(self, index: int) -> Image.Image | BadImage:
        image = super().load_or_bad(index)
        return image if isinstance(image, BadImage) else self._misfit(index, image.size) or image

    def check_sizes(self, ids: Sequence[int]) -> None:
        """Raise UserError if one of these images has another size; the others are checked when they are loaded."""
        for index in ids:
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


@dataclass(frozen=True, eq=False)
class StoredFiles(StoredImages, FileImages):
    """The images of one cell as files."""


@dataclass(frozen=True, eq=False)
class StoredArray(StoredImages):
    """The images of one cell in the array of a corruption: in the .npy file ``file`` they begin at ``start``."""

    file: str
    start: int

    def path(self, index: int) -> str:
        return f"{self.file}[{self.start + index}]"

    def load(self, index: int) -> Image.Image:
        return Image.fromarray(mapped(self.file)[self.start + index])


def stored_images(
    root: Path, cells: Iterable[tuple[str, int]], clean: ImageSet, size: int | None, ids: np.ndarray | None = None
) -> dict[tuple[str, int], StoredImages]:
    """The stored images of each of ``cells``, the pairs (corruption, severity), see ``cell_reader``.

    Raises:
        UserError: what ``cell_reader`` raises, or a folder or array is missing.
    """
    check_stored_root(root)
    cells = list(cells)
    check_cells(root, cells)
    read = cell_reader(root, clean, size, ids)
    return {cell: read(cell) for cell in cells}


def cell_reader(
    root: Path, clean: ImageSet, size: int | None, ids: np.ndarray | None = None
) -> Callable[[tuple[str, int]], StoredImages]:
    """A function from a cell that is there to its stored images. What all cells have in common is computed once.

    Images are matched with the clean images by their relative paths without the suffix. A folder that is named by the number of
    a class of ImageNet counts as its WordNet id, as in the clean set. For each cell the function lists the folder, and reads
    the size and first 4 KiB of 64 images.

    Args:
        root: the folder that holds the stored set, see stored_layout.py.
        clean: the clean images, which give ids and labels.
        size: the side in pixels that the images must have; None: any size.
        ids: the ids of the images that will be used, sorted; None: all. The sets of the cells keep the length and the ids of
            the clean set, but files of other ids may be missing.

    Raises:
        UserError: an image is missing, a folder holds other images, too, or an image has another size.
    """
    used = list(range(len(clean))) if ids is None else ids.tolist()
    if has_arrays(root):
        return lambda cell: _stored_array(root, cell, clean, size, used)
    stems = [_stem(name) for name in clean.names]
    if len(set(stems)) < len(stems):
        raise UserError("corruptions.root needs evaluated images that differ in more than their suffix, got CLASS/NAME twice")
    folders = corruption_folders(root)
    return lambda cell: _stored_files(str(cell_folder(folders, *cell)), stems, clean, size, used)


def _stored_files(folder: str, stems: list[str], clean: ImageSet, size: int | None, used: list[int]) -> StoredFiles:
    paths = list_stored(folder)
    known = set(stems)
    found = {stem if (stem := _stem(path)) in known else _with_wordnet_id(stem): path for path in paths}
    missing = [stems[i] for i in used if stems[i] not in found]
    surplus = sorted(set(paths) - {found[stem] for stem in stems if stem in found})
    if missing or surplus:
        kinds = {"missing": missing, "too many": surplus}
        what = " and ".join(f"{len(names)} {kind} (first: {names[0]})" for kind, names in kinds.items() if names)
        raise UserError(
            f"{folder} must hold the clean cell's {len(used)} images as CLASS/NAME.JPEG, and no others, got {what};"
            " for a subset, give data.root the same subset"
        )
    names = [found.get(stem, f"{stem}.JPEG") for stem in stems]
    some = [used[i] for i in spread(len(used))]
    fingerprint = fingerprint_of(FileImages([names[i] for i in some], clean.labels[some], folder), sizes=True)
    images = StoredFiles(names, clean.labels, folder, size, fingerprint, label_sets=clean.label_sets)
    images.check_sizes(some)
    return images


def _stored_array(root: Path, cell: tuple[str, int], clean: ImageSet, size: int | None, used: list[int]) -> StoredArray:
    corruption, severity = cell
    labels, file, count = root / LABELS, root / f"{corruption}.npy", len(clean)
    labels_N, pixels = mapped(str(labels)), mapped(str(file))
    if labels_N.shape != (5 * count,) or not np.array_equal(labels_N, np.tile(clean.labels, 5)):
        differing = "other labels" if labels_N.shape == (5 * count,) else f"shape {labels_N.shape}"
        raise UserError(
            f"{labels} must hold the labels of the {count} clean images five times, once for each severity, got {differing};"
            " give the data set that was corrupted"
        )
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[0] != 5 * count or pixels.shape[3] != 3:
        raise UserError(
            f"{file} must be a uint8 array (5 x {count}, H, W, 3) in the order of the severities, got {pixels.dtype}"
            f" {pixels.shape}; download it again"
        )
    start = (severity - 1) * count
    digest = hashlib.sha256()
    for i in spread(len(used)):
        digest.update(pixels[start + used[i]].tobytes() + str(clean.labels[used[i]]).encode())
    images = StoredArray(
        clean.names, clean.labels, size, digest.hexdigest()[:16], str(file), start, label_sets=clean.label_sets
    )
    images.check_sizes(used[:1])
    return images


def mapped(path: str) -> np.ndarray:
    """The array in a .npy file, of which only what is used is read. Raises UserError if it cannot be read."""
    try:
        facts = os.stat(path)
        return _opened(path, facts.st_mtime_ns, facts.st_size)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path} must be a whole .npy file, and cannot be read so ({error}); download it again") from error


@functools.lru_cache(maxsize=32)
def _opened(path: str, changed: int, size: int) -> np.ndarray:
    """The array, opened once in each process as long as the file stays what it is."""
    return np.load(path, mmap_mode="r", allow_pickle=False)


def list_stored(folder: str) -> list[str]:
    """The JPEG files under the folder, as paths relative to it."""
    paths = []
    for parent, _, files in os.walk(folder, followlinks=True):
        start = parent[len(folder) + 1 :]
        names = (name for name in files if name.lower().endswith(SUFFIXES))
        paths += [sys.intern(os.path.join(start, name)) for name in names]  # interned: all cells have the same paths
    return paths


def _stem(path: str) -> str:
    return os.path.splitext(path)[0]


def _with_wordnet_id(stem: str) -> str:
    folder, separator, name = stem.partition(os.sep)
    return wordnet_id(folder) + separator + name
