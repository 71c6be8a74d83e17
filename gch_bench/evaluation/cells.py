"""Which cells a run evaluates (a cell: clean, or one corruption at one severity), and which of them it has not recorded yet."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from gch_bench.checks import check_choice
from gch_bench.config.run import CorruptionsConfig, RecordsConfig
from gch_bench.corruptions import CORRUPTIONS, PARAMETER_SETS, corrupt, parameters_for
from gch_bench.corruptions.compiled.jit import is_kept
from gch_bench.data.images import drawn_ids
from gch_bench.errors import FieldError, UserError
from gch_bench.results.records import CELL_CLEAN, Cell, record_facts
from gch_bench.suites import SUITES, suite_of


def wanted_cells(config: CorruptionsConfig) -> list[Cell]:
    """The clean cell, and every chosen corruption at every chosen severity.

    The corruptions are those of `config.names`, or where that is empty, those of `config.groups` or of `config.suite`.

    Raises:
        UserError: a corruption or group that is not in the table, or not in the suite; the message lists the choices.
    """
    if config.suite is not None:
        suite = SUITES[config.suite]
        for name in config.names:
            if name not in suite:
                raise UserError(f"unknown corruption {name!r} of {config.suite}: choose from {', '.join(suite)}")
        return [CELL_CLEAN, *(Cell(name, severity) for name in config.names or suite for severity in config.severities)]
    groups = dict.fromkeys(corruption.group for corruption in CORRUPTIONS.values())
    for name in config.names:
        if suite_of(name):
            raise UserError(f"corruption {name!r} is one of stored images: choose corruptions={suite_of(name)} for it")
        if name not in CORRUPTIONS:
            raise UserError(f"unknown corruption {name!r}: choose from {', '.join(CORRUPTIONS)}")
    for group in config.groups:
        check_choice("corruptions.groups", group, groups)
    names = config.names or [name for name, corruption in CORRUPTIONS.items() if corruption.group in config.groups]
    return [CELL_CLEAN, *(Cell(name, severity) for name in names for severity in config.severities)]


def subset_ids(num_images: int, subset: int | None, seed: int) -> np.ndarray:
    """The ids, sorted int64, of the images that are evaluated: `subset` of 0..num_images-1, drawn by `seed`; None: all.

    Raises:
        UserError: `subset` is more than `num_images`.
    """
    if subset is None:
        return np.arange(num_images, dtype=np.int64)
    if subset > num_images:
        raise FieldError("corruptions.subset", f"must be at most the number of evaluated images, {num_images}, got {subset}")
    return drawn_ids(num_images, subset, seed)


def parameter_set(config: CorruptionsConfig, size: int) -> str:
    """The name of the corruption parameter set for images with a side of `size` pixels.

    Raises:
        UserError: a set that is not in the table; the message lists the choices.
    """
    if config.parameters == "auto":
        return parameters_for(size)
    check_choice("corruptions.parameters", config.parameters, ("auto", *PARAMETER_SETS))
    return config.parameters


def try_corruptions(cells: list[Cell], size: int, parameters: str, device: torch.device, say: Callable[[str], None]) -> None:
    """Apply each corruption once to a blank image of size x size pixels, so that a failure shows before hours of training.

    On a CPU this compiles the corruptions, for this and for later processes; ``say`` is told if that takes a while.

    Raises:
        UserError: a corruption that cannot be made here.
    """
    severity_of = dict(cell for cell in cells if cell.severity > 0)
    if severity_of and device.type == "cpu" and not is_kept():
        say("compiling the corruptions for this machine: this takes up to a minute, once")
    blank = torch.zeros(1, 3, size, size, dtype=torch.uint8, device=device)
    for name, severity in severity_of.items():
        try:
            corrupt(blank, name, severity, torch.zeros(1, dtype=torch.int64), parameters=parameters)
        except ValueError as error:
            raise UserError(f"corruption {name} of {size}x{size} images cannot be made: {error}") from error


def logits_cells(config: RecordsConfig, cells: Sequence[Cell]) -> frozenset[Cell]:
    """The cells whose logits are recorded.

    Raises:
        UserError: a name in `records.logits_cells` that fits no cell of the run.
    """
    if not config.logits:
        return frozenset()
    for name in config.logits_cells:
        names = [*dict.fromkeys(cell.corruption for cell in cells)]
        if not any(name in (cell.corruption, f"{cell.corruption}-{cell.severity}") for cell in cells):
            raise UserError(
                f"records.logits_cells must name cells of this run such as {names[-1]} or {names[-1]}-{cells[-1].severity},"
                f" got {name}"
            )
    chosen = config.logits_cells or [cell.corruption for cell in cells]
    return frozenset(cell for cell in cells if {cell.corruption, f"{cell.corruption}-{cell.severity}"} & set(chosen))


def missing_cells(
    folder: Path, cells: list[Cell], facts: dict[str, str], images: Mapping[Cell, str], logits: frozenset[Cell] = frozenset()
) -> list[Cell]:
    """The cells that have no record with these facts yet, or one without the logits that are wanted.

    Args:
        folder: the run folder.
        facts: the protocol id and the digest of the weights that a record must have.
        images: cell -> fingerprint of its stored images; {} where the images are generated.
        logits: the cells whose logits are wanted.

    Raises:
        UserError: a record with the same facts was made from other stored images.
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
        elif cell in logits and "logits" not in found:
            missing.append(cell)
    return missing
