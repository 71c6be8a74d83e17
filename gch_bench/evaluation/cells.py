"""What to evaluate, and what is done already."""

from collections.abc import Mapping
from pathlib import Path

import torch

from gch_bench.checks import check_choice
from gch_bench.config.run import CorruptionsConfig
from gch_bench.corruptions import CORRUPTIONS, PARAMETER_SETS, corrupt, parameters_for
from gch_bench.errors import UserError
from gch_bench.results.records import CELL_CLEAN, Cell, record_facts


def wanted_cells(config: CorruptionsConfig) -> list[Cell]:
    """The clean cell, and every corruption (those named, else those of the groups) at every severity asked for.

    Raises:
        UserError: a corruption that is not in the table (lists the choices).
    """
    groups = dict.fromkeys(corruption.group for corruption in CORRUPTIONS.values())
    for name in config.names:
        if name not in CORRUPTIONS:
            raise UserError(f"unknown corruption {name!r}: choose from {', '.join(CORRUPTIONS)}")
    for group in config.groups:
        check_choice("corruptions.groups", group, groups)
    names = config.names or [name for name, corruption in CORRUPTIONS.items() if corruption.group in config.groups]
    return [CELL_CLEAN, *(Cell(name, severity) for name in names for severity in config.severities)]


def parameter_set(config: CorruptionsConfig, size: int) -> str:
    """The name of the corruption parameter set for images of `size` pixels."""
    if config.parameters == "auto":
        return parameters_for(size)
    check_choice("corruptions.parameters", config.parameters, ("auto", *PARAMETER_SETS))
    return config.parameters


def try_corruptions(cells: list[Cell], size: int, parameters: str) -> None:
    """Each corruption once, on a blank image of the run's size: what it lacks is said before hours of training, not after.

    Raises:
        UserError: a corruption that cannot be made here.
    """
    blank, ids = torch.zeros(1, 3, size, size, dtype=torch.uint8), torch.zeros(1, dtype=torch.int64)
    for name, severity in dict(cell for cell in cells if cell != CELL_CLEAN).items():
        try:
            corrupt(blank, name, severity, ids, parameters=parameters)
        except ValueError as error:
            raise UserError(f"corruption {name} of {size}x{size} images cannot be made: {error}") from error


def missing_cells(folder: Path, cells: list[Cell], facts: dict[str, str], images: Mapping[Cell, str]) -> list[Cell]:
    """The cells without a record of exactly these facts (protocol id, weights).

    `images`: the fingerprints of cells of stored images; {} where they are generated.

    Raises:
        UserError: a record of the same facts on other stored images.
    """
    missing = []
    for cell in cells:
        found = record_facts(folder, cell) or {}
        if not facts.items() <= found.items():
            missing.append(cell)
        elif found.get("images") != images.get(cell):
            raise UserError(
                f"{folder} holds {cell.corruption}-{cell.severity} of other stored images than corruptions.root has:"
                " choose another output="
            )
    return missing
