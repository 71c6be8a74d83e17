"""Lists what a stored set of corrupted images holds and what it lacks, before a network is evaluated on it."""

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gch_bench.config.data import DataConfig
from gch_bench.corruptions import CORRUPTIONS
from gch_bench.data.images import FileImages, image_sizes
from gch_bench.data.sets import DATASETS, load_data
from gch_bench.data.stored import cell_reader, list_stored, mapped
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
DATA = [name for name, row in DATASETS.items() if row.root and name != "timm"]  # timm would need data.reader


class CellReport(NamedTuple):
    """What one cell holds: the number of its images, the sizes of some (width, height), and what is wrong; "" if nothing is."""

    images: int
    sizes: frozenset[tuple[int, int]]
    problem: str


def check_stored(
    root: Path,
    clean_root: Path | None,
    data: str,
    corruptions: Sequence[str] = (),
    severities: Sequence[int] = SEVERITIES,
) -> int:
    """Print the cells of the stored set ROOT with counts and sizes, then everything that is wrong.

    The ``corruptions`` must be there at the ``severities``. Where none is given, a group of corruptions (see KNOWN) of which
    one is there must be there completely. All cells must have the same number of images and the same sizes, and with a clean
    data set (``data``, a name in DATA, at ``clean_root``) exactly its images, in the size in which it is evaluated.

    Returns:
        The number of cells that are missing or wrong.

    Raises:
        UserError: ``root`` is no folder of corruptions, a corruption is not known, or the clean data set cannot be read.
    """
    check_stored_root(root, "ROOT")
    known = {name for names in KNOWN.values() for name in names}
    unknown = [name for name in corruptions if name not in known]
    if unknown:
        raise UserError(f"--corruptions must be names out of {', '.join(sorted(known))}, got {unknown[0]}")
    arrays, folders = has_arrays(root), corruption_folders(root)
    found = {path.stem for path in root.glob("*.npy") if path.name != LABELS} if arrays else set(folders)
    groups = {title: names for title, names in KNOWN.items() if found & set(names)}
    if not groups:
        raise UserError(
            f"ROOT must hold folders CORRUPTION/SEVERITY/ or CORRUPTION.npy and {LABELS}, got {root} with {held(root)}"
        )
    if corruptions:
        groups = {"the corruptions asked for": tuple(corruptions)}
    report = _reporter(root, folders, _with_clean(root, clean_root, data) if clean_root is not None else None)
    reports: dict[str, dict[int, CellReport]] = {}
    for title, names in groups.items():
        print(f"{title} ({len(found & set(names))} of {len(names)} there)")
        for name in names:
            reports[name] = {severity: report((name, severity)) for severity in severities}
            print(f"  {name:28}" + " ".join(_in_words(cell) for cell in reports[name].values()))
    _compare(reports)
    wrong = sum(bool(cell.problem) for cells in reports.values() for cell in cells.values())
    for line in (*_problems(reports), *_unexpected(found - known, {} if arrays else folders)):
        print(line)
    print(f"{sum(map(len, reports.values()))} cells expected, {wrong} missing or wrong")
    return wrong


def _with_clean(root: Path, clean_root: Path, data: str) -> Callable[[tuple[str, int]], CellReport]:
    """A function from a cell that is there to its report, where the images must be those of the clean data set."""
    try:
        clean = load_data(DataConfig(data, root=str(clean_root)), train=False)
        read = cell_reader(root, clean.val, clean.size)
    except UserError as error:
        raise UserError(f"--clean={clean_root} cannot be read as --data={data}: {error}") from error

    def report(cell: tuple[str, int]) -> CellReport:
        images = read(cell)
        return CellReport(len(images), frozenset(image_sizes(images, 8)), "")

    return report


def _reporter(
    root: Path, folders: dict[str, list[Path]], with_clean: Callable[[tuple[str, int]], CellReport] | None
) -> Callable[[tuple[str, int]], CellReport]:
    """A function from a cell to its report. It is ``with_clean`` where the cell is there and a clean data set is given."""

    def there(cell: tuple[str, int]) -> CellReport:
        if has_arrays(root):
            if not (root / f"{cell[0]}.npy").is_file():
                raise UserError(f"no file {cell[0]}.npy")
            return with_clean(cell) if with_clean else _array_report(root, cell)
        folder = cell_folder(folders, *cell)
        if folder is None:
            raise UserError("no such folder")
        return with_clean(cell) if with_clean else _folder_report(str(folder))

    def report(cell: tuple[str, int]) -> CellReport:
        try:
            return there(cell)
        except UserError as error:
            return CellReport(0, frozenset(), str(error))

    return report


def _folder_report(folder: str) -> CellReport:
    names = sorted(list_stored(folder))
    if not names:
        raise UserError("no images")
    return CellReport(len(names), frozenset(image_sizes(FileImages(names, np.zeros(len(names)), folder), 8)), "")


def _array_report(root: Path, cell: tuple[str, int]) -> CellReport:
    file = root / f"{cell[0]}.npy"
    shape, labels = mapped(str(file)).shape, len(mapped(str(root / LABELS)))
    if len(shape) != 4 or shape[0] != labels or labels % 5:
        raise UserError(
            f"{file.name} must have 5 x N images and {LABELS} as many labels, got shape {shape} and {labels} labels"
        )
    return CellReport(labels // 5, frozenset({(shape[2], shape[1])}), "")


def _compare(reports: dict[str, dict[int, CellReport]]) -> None:
    """Set the problem of each cell whose images are not as many, or not of such sizes, as those of most cells."""
    whole = [cell for cells in reports.values() for cell in cells.values() if not cell.problem]
    if not whole:
        return
    count = Counter(cell.images for cell in whole).most_common(1)[0][0]
    sizes = Counter(cell.sizes for cell in whole).most_common(1)[0][0]
    for cells in reports.values():
        for severity, cell in cells.items():
            if not cell.problem and cell.images != count:
                cells[severity] = cell._replace(problem=f"{cell.images} images, other cells have {count}")
            elif not cell.problem and cell.sizes != sizes:
                problem = f"images of {_sizes_in_words(cell.sizes)}, other cells have {_sizes_in_words(sizes)}"
                cells[severity] = cell._replace(problem=problem)


def _problems(reports: dict[str, dict[int, CellReport]]) -> list[str]:
    """A line for each cell that is missing or wrong; one for the whole corruption if all its cells have the same problem."""
    lines = []
    for name, cells in reports.items():
        problems = {severity: cell.problem for severity, cell in cells.items() if cell.problem}
        if len(problems) == len(cells) and len(set(problems.values())) == 1:
            lines.append(f"missing or wrong: {name}: {next(iter(problems.values()))}")
        else:
            lines += [f"missing or wrong: {name}/{severity}: {problem}" for severity, problem in problems.items()]
    return lines


def _in_words(cell: CellReport) -> str:
    return "[missing or wrong]" if cell.problem else f"[{cell.images} of {_sizes_in_words(cell.sizes)}]"


def _sizes_in_words(sizes: frozenset[tuple[int, int]]) -> str:
    first = ", ".join(f"{width}x{height}" for width, height in sorted(sizes)[:2]) or "no readable size"
    return first + (", ..." if len(sizes) > 2 else "")


def _unexpected(names: set[str], found: dict[str, list[Path]]) -> list[str]:
    """A line for each folder or array that belongs to no known corruption, or to no severity."""
    lines = [f"unexpected: {name}" for name in sorted(names)]
    for folder in (folder for folders in found.values() for folder in folders):
        try:
            used = set(severity_folders(folder).values())
        except UserError:
            continue  # reported as a wrong cell
        lines += [f"unexpected: {each}" for each in sorted(folder.iterdir()) if each.is_dir() and each.name not in used]
    return lines
