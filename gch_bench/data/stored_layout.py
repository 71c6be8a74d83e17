"""Where the corruptions and severities of a stored set of corrupted images lie.

ImageNet-C is published in one archive per group, so ROOT/CORRUPTION/SEVERITY/ may also be ROOT/GROUP/CORRUPTION/SEVERITY/. The
sets made from CIFAR are arrays, ROOT/CORRUPTION.npy and ROOT/labels.npy. An ImageNet-C-bar that was made with its authors' code
has levels such as 0.8 or 2.0 as names of its severities: the five in ascending order are the severities 1 to 5. A name with a
decimal point is always a level.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from gch_bench.errors import UserError

LABELS = "labels.npy"


def check_stored_root(root: Path, field: str = "corruptions.root") -> None:
    """Raise UserError if ``root``, which the user calls ``field``, is not a folder that can be read."""
    if not os.path.isdir(root) or not os.access(root, os.R_OK | os.X_OK):
        raise UserError(f"{field} must be an existing, readable folder, got {root}")


def has_arrays(root: Path) -> bool:
    """Whether the set consists of arrays, as CIFAR-10-C."""
    return (root / LABELS).is_file()


def corruption_folders(root: Path) -> dict[str, list[Path]]:
    """Corruption -> its folders, of which there should be one: ROOT/NAME or ROOT/GROUP/NAME.

    Every folder that holds a folder whose name is a number counts as a corruption's.
    """
    found: dict[str, list[Path]] = {}
    for first in _folders(root):
        if severity_names(first):
            found.setdefault(first.name, []).append(first)
            continue
        for second in _folders(first):
            if severity_names(second):
                found.setdefault(second.name, []).append(second)
    return found


def severity_names(folder: Path) -> list[str]:
    """The names of the folders in a corruption's folder that are numbers, in ascending order."""
    names = [each.name for each in _folders(folder) if _number(each.name) is not None]
    return sorted(names, key=lambda name: (_number(name), name))


def severity_folders(folder: Path) -> dict[int, str]:
    """Severity 1..5 -> the name of its folder in a corruption's folder.

    Raises:
        UserError: the names are levels (they have a decimal point, or are not all in 1..5) and are not five, so their order
            does not tell the severities.
    """
    names = severity_names(folder)
    values = [_number(name) for name in names]
    if len(set(values)) == len(values):
        if set(values) <= {1.0, 2.0, 3.0, 4.0, 5.0} and not any("." in name for name in names):
            return {int(value): name for value, name in zip(values, names, strict=True) if value is not None}
        if len(names) == 5:
            return dict(enumerate(names, start=1))
    raise UserError(
        f"{folder} must have folders named by severities in 1..5, or five levels, which in ascending order are the severities 1"
        f" to 5, got {', '.join(names)}"
    )


def cell_folder(found: dict[str, list[Path]], corruption: str, severity: int) -> Path | None:
    """The folder of one cell, with ``found = corruption_folders(root)``; None if it is not there.

    Raises UserError if several folders hold the corruption, or if it cannot be told which severities it has.
    """
    folders = found.get(corruption, [])
    if len(folders) > 1:
        raise UserError(
            f"corruptions.root must hold {corruption} once, got {' and '.join(str(folder) for folder in folders)}; remove one"
        )
    name = severity_folders(folders[0]).get(severity) if folders else None
    return folders[0] / name if name else None


def check_cells(root: Path, cells: Sequence[tuple[str, int]]) -> None:
    """Raise UserError, which says how to evaluate what is there, if the folder or array of a cell is not there."""
    arrays, found = has_arrays(root), corruption_folders(root)
    there = [cell for cell in cells if ((root / f"{cell[0]}.npy").is_file() if arrays else cell_folder(found, *cell))]
    missing = next((cell for cell in cells if cell not in there), None)
    if missing is None:
        return
    names = list(dict.fromkeys(name for name, _ in there))
    every = dict.fromkeys(severity for _, severity in there)
    severities = [str(severity) for severity in every if all((name, severity) in there for name in names)]
    advice = (
        f"; to evaluate what it holds, add 'corruptions.names=[{','.join(names)}]'"
        f" 'corruptions.severities=[{','.join(severities)}]'"
    )
    what = f"{missing[0]}.npy" if arrays else f"{missing[0]}/{missing[1]}/"
    raise UserError(
        f"corruptions.root must hold {what}, got {root} without it (it holds {held(root)}){advice if severities else ''}"
    )


def held(root: Path) -> str:
    """What the folder holds, for messages."""
    return ", ".join(sorted(os.listdir(root))[:25]) or "nothing"


def _folders(folder: Path) -> list[Path]:
    try:
        return sorted(each for each in folder.iterdir() if each.is_dir())
    except OSError:
        return []


def _number(name: str) -> float | None:
    return float(name) if name.replace(".", "", 1).isascii() and name.replace(".", "", 1).isdigit() else None
