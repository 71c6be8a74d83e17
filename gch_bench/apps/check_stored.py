"""Lists what a stored set of corrupted images holds and what it lacks, before a network is evaluated on it."""

from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gch_bench.config.data import DataConfig
from gch_bench.corruptions import CORRUPTIONS
from gch_bench.data.images import FileImages, ImageSet, image_sizes
from gch_bench.data.sets import load_data
from gch_bench.data.stored import list_stored, mapped, stored_images
from gch_bench.data.stored_layout import (
    LABELS,
    cell_folder,
    check_stored_root,
    corruption_folders,
    has_arrays,
    held,
    severity_folders,
)
from gch_bench.errors import UserError
from gch_bench.metrics import EXTRA
from gch_bench.suites import SUITES

SEVERITIES = (1, 2, 3, 4, 5)
REPORTED = "ImageNet-C's 15 corruptions"
KNOWN = {REPORTED: tuple(name for name in CORRUPTIONS if name not in EXTRA), "its 4 extra corruptions": EXTRA, **SUITES}


class CellReport(NamedTuple):
    """What one cell holds: the number of its images, the sizes of some (width, height), and what is wrong; "" if nothing is."""

    images: int
    sizes: set[tuple[int, int]]
    problem: str


def check_stored(root: Path, clean_root: Path | None, data: str) -> int:
    """Print the cells of the stored set ROOT with counts and sizes, then everything that is wrong.

    A group of corruptions (see KNOWN) of which one is there must be there completely. All cells must have the same number of
    images, and with a clean data set (``data``, a row of DATASETS, at ``clean_root``) exactly its images.

    Returns:
        The number of things that are wrong.

    Raises:
        UserError: ``root`` is no folder of corruptions, or the clean data set cannot be read.
    """
    check_stored_root(root)
    clean = load_data(DataConfig(data, root=str(clean_root)), train=False).val if clean_root is not None else None
    arrays = has_arrays(root)
    found = {path.stem for path in root.glob("*.npy") if path.name != LABELS} if arrays else set(corruption_folders(root))
    groups = {title: names for title, names in KNOWN.items() if found & set(names)}
    if not groups:
        raise UserError(
            f"ROOT must hold folders CORRUPTION/SEVERITY/ or CORRUPTION.npy and {LABELS}, got {root} with {held(root)}"
        )
    problems = []
    reports: dict[tuple[str, int], CellReport] = {}
    for title, names in groups.items():
        print(f"{title} ({len(found & set(names))} of {len(names)} there)")
        for name in names:
            reports |= {(name, severity): _report(root, (name, severity), arrays, clean) for severity in SEVERITIES}
            print(f"  {name:28}" + " ".join(_in_words(reports[name, severity]) for severity in SEVERITIES))
    problems += [f"{name}/{severity}: {cell.problem}" for (name, severity), cell in reports.items() if cell.problem]
    usual = Counter(cell.images for cell in reports.values() if not cell.problem).most_common(1)
    for (name, severity), cell in reports.items():
        if not cell.problem and cell.images != usual[0][0]:
            problems.append(f"{name}/{severity}: {cell.images} images, other cells have {usual[0][0]}")
    known = {name for names in groups.values() for name in names}
    for line in (*(f"missing or wrong: {problem}" for problem in problems), *_unexpected(root, found - known, arrays)):
        print(line)
    print(f"{len(reports)} cells expected, {len(problems)} missing or wrong")
    return len(problems)


def _report(root: Path, cell: tuple[str, int], arrays: bool, clean: ImageSet | None) -> CellReport:
    try:
        if clean is not None:
            images = stored_images(root, [cell], clean, None)[cell]
            return CellReport(len(images), image_sizes(images, 8), "")
        if arrays:
            return _array_report(root, cell)
        folder = str(cell_folder(root, corruption_folders(root), *cell))
        names = sorted(list_stored(folder))
        sizes = image_sizes(FileImages(names, np.zeros(len(names)), folder), 8) if names else set()
        return CellReport(len(names), sizes, "" if names else "no images")
    except UserError as error:
        return CellReport(0, set(), str(error))


def _array_report(root: Path, cell: tuple[str, int]) -> CellReport:
    file = root / f"{cell[0]}.npy"
    if not file.is_file():
        raise UserError(f"no file {file.name}")
    shape, labels = mapped(str(file)).shape, len(mapped(str(root / LABELS)))
    if len(shape) != 4 or shape[0] != labels or labels % 5:
        raise UserError(
            f"{file.name} must have 5 x N images and {LABELS} as many labels, got shape {shape} and {labels} labels"
        )
    return CellReport(labels // 5, {(shape[2], shape[1])}, "")


def _in_words(cell: CellReport) -> str:
    sizes = ", ".join(f"{width}x{height}" for width, height in sorted(cell.sizes)[:2]) + (
        ", ..." if len(cell.sizes) > 2 else ""
    )
    return "[missing or wrong]" if cell.problem else f"[{cell.images} of {sizes}]"


def _unexpected(root: Path, names: set[str], arrays: bool) -> list[str]:
    """A line for each folder or array that belongs to no known corruption, or to no severity."""
    lines = [f"unexpected: {name}" for name in sorted(names)]
    if not arrays:
        for folders in corruption_folders(root).values():
            for folder in folders:
                try:
                    used = set(severity_folders(folder).values())
                except UserError:
                    continue  # reported as a wrong cell
                lines += [f"unexpected: {each}" for each in sorted(folder.iterdir()) if each.is_dir() and each.name not in used]
    return lines
