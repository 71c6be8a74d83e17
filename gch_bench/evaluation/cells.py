"""What to evaluate, and what is done already."""

from pathlib import Path

from gch_bench.config import CorruptionsConfig
from gch_bench.corruptions import CORRUPTIONS, PARAMETER_SETS, parameters_for
from gch_bench.errors import UserError
from gch_bench.records import CELL_CLEAN, Cell, record_facts


def wanted_cells(config: CorruptionsConfig) -> list[Cell]:
    """The clean cell and every corruption at every severity asked for.

    Raises:
        UserError: a corruption that is not in the table (lists the choices).
    """
    unknown = [name for name in config.names if name not in CORRUPTIONS]
    if unknown:
        raise UserError(f"unknown corruption {unknown[0]!r}: choose from {', '.join(CORRUPTIONS)}")
    return [CELL_CLEAN, *(Cell(name, severity) for name in config.names for severity in config.severities)]


def parameter_set(config: CorruptionsConfig, size: int) -> str:
    """The name of the corruption parameter set for images of `size` pixels."""
    if config.parameters == "auto":
        return parameters_for(size)
    if config.parameters not in PARAMETER_SETS:
        raise UserError(f"corruptions.parameters must be auto or one of {', '.join(PARAMETER_SETS)}, got {config.parameters!r}")
    return config.parameters


def missing_cells(folder: Path, cells: list[Cell], facts: dict[str, str]) -> list[Cell]:
    """The cells without a record of exactly these facts (protocol id, weights)."""
    return [cell for cell in cells if not facts.items() <= (record_facts(folder, cell) or {}).items()]
