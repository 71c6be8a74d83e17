"""From a chain of factors to its tables: factors, interfaces, spectra, channels, certificates.

Factors are read one after the other, and only two are in memory at a time, because all factors of a chain together may need
more memory than there is. Only rows of tables and small pictures are kept. Definitions: docs/geometry.md.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import pandas as pd
from torch import Tensor

from gch_bench.config.diagnosis import AlignmentConfig, SpectralConfig
from gch_bench.geometry.chains import Factor
from gch_bench.geometry.factors import Analysed, analysed, factor_row, spectrum_rows
from gch_bench.geometry.interfaces import Meeting, interface_row
from gch_bench.geometry.summary import summary_of
from gch_bench.results.geometry import BLOCK, BRANCH, ChainReport
from gch_bench.spectral.linalg import norm, top_value
from gch_bench.spectral.transport import transport_of

Keep = Callable[[int, str, dict[str, Tensor]], None]


class Options(NamedTuple):
    """What an analysis may be told."""

    spectral: SpectralConfig = SpectralConfig()
    alignment: AlignmentConfig = AlignmentConfig()
    seed: int = 0  # of the draws of the nulls


OPTIONS = Options()
TABLES = ("factors", "interfaces", "certificates", "channels", "columns", "edges", "spectra")


class _Ends(NamedTuple):
    """One factor of a chain, and what its branch reads and writes; the same object where the factor is one plain matrix."""

    whole: Analysed
    read: Analysed
    write: Analysed


def analyse(
    factors: Iterable[Factor], chain: str, description: str, options: Options = OPTIONS, keep: Keep | None = None
) -> ChainReport:
    """The report on a chain.

    Args:
        factors: in the order in which they are applied.
        chain, description: the chain's name and what its factors are, for the report.
        keep: if given, it is called with each interface's index, form and matrices, for example to write them to a file.

    Raises:
        ValueError: if a factor is zero or not finite, factors do not compose, their product is zero, or ``group_size`` does not
            divide the rows.
    """
    tables: dict[str, list[Any]] = {name: [] for name in TABLES}
    report = ChainReport(chain, "", description)
    before: _Ends | None = None
    product = _Product()
    for index, factor in enumerate(factors):
        here = _ends(factor, options.spectral.eta)
        report.kind = factor.kind
        tables["factors"].append({"index": index, **factor_row(here.whole, options.spectral)})
        tables["spectra"].append(spectrum_rows(index, here.whole))
        product.append(here.whole)
        if before is not None:
            for meeting in _meetings(index - 1, before, here):
                _add_interface(meeting, options, tables, report, keep)
        before = here
    for name, parts in tables.items():
        whole = pd.DataFrame(parts) if not parts or isinstance(parts[0], dict) else pd.concat(parts, ignore_index=True)
        whole.insert(0, "kind", report.kind)
        whole.insert(0, "chain", chain)
        setattr(report, name, whole)
    report.summary = summary_of(report) | {"log_top": product.log_top()}
    return report


def _ends(factor: Factor, eta: float) -> _Ends:
    whole = analysed(factor.name, factor.matrix, factor, eta, factor.group_size)
    read = write = whole
    if factor.read is not None:
        read = analysed(factor.name, factor.read, factor, eta, factor.read_group_size)
    if factor.write is not None:
        write = analysed(factor.name, factor.write, factor, eta, factor.group_size)
    return _Ends(whole, read, write)


def _meetings(index: int, first: _Ends, second: _Ends) -> Iterator[Meeting]:
    """The interface in its two forms; one alone where both factors are plain matrices."""
    yield Meeting(index, BLOCK, first.whole, second.whole)
    if first.write is not first.whole or second.read is not second.whole:
        yield Meeting(index, BRANCH, first.write, second.read)


def _add_interface(
    meeting: Meeting, options: Options, tables: dict[str, list[Any]], report: ChainReport, keep: Keep | None
) -> None:
    """Add the rows and pictures of an interface; no matrix of it is kept in memory."""
    moved = transport_of(meeting.first.parts, meeting.second.parts, meeting.first.window, meeting.second.window)
    tables["interfaces"].append(interface_row(meeting, moved, options.seed))


class _Product:
    """The product of all factors of a chain, each of norm sqrt(d); its scale is kept apart, lest it overflow."""

    def __init__(self) -> None:
        self.matrix: Tensor | None = None
        self.log_scale = 0.0

    def append(self, factor: Analysed) -> None:
        matrix = factor.parts.matrix * (math.sqrt(factor.radial.fit.size) / factor.radial.norm)
        product = matrix if self.matrix is None else matrix @ self.matrix
        size = norm(product)
        if size > 0:
            self.log_scale += math.log(size)
        self.matrix = product / size if size > 0 else product

    def log_top(self) -> float:
        """log s_1 of the product; -inf if it is zero."""
        top = top_value(self.matrix) if self.matrix is not None else 0.0
        return self.log_scale + math.log(top) if top > 0 else -math.inf
