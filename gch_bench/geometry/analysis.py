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
from gch_bench.geometry.channel_tables import channel_tables
from gch_bench.geometry.channels import ChannelRow, Channels, channels_of, rotated_share
from gch_bench.geometry.factors import Analysed, analysed, factor_row, plain_spikes, spectrum_rows
from gch_bench.geometry.interfaces import Meeting, interface_row
from gch_bench.geometry.pictures import Place, picture
from gch_bench.geometry.summary import summary_of
from gch_bench.results.geometry import BLOCK, BRANCH, PHYSICAL, ROTATED, SOURCE, ChainReport
from gch_bench.spectral.composition import Product, log_top, product_with
from gch_bench.spectral.linalg import norm
from gch_bench.spectral.transport import Transport, transport_of

Keep = Callable[[int, str, dict[str, Tensor]], None]


class Options(NamedTuple):
    """What an analysis may be told."""

    spectral: SpectralConfig = SpectralConfig()
    alignment: AlignmentConfig = AlignmentConfig()
    seed: int = 0  # of the rotations, the null of an interface; all other draws are the same whatever the seed


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
        keep: if given, it is called with each interface's index, form and matrices, for example to write them to a file; not
            for interfaces of large factors, whose channels are left out.

    Raises:
        ValueError: if there is no factor, one is zero or not finite, factors do not compose, their product is zero, or
            ``group_size`` does not divide the rows.
    """
    tables: dict[str, list[Any]] = {name: [] for name in TABLES}
    report = ChainReport(chain, "", description)
    before: _Ends | None = None
    product: Product | None = None
    for index, factor in enumerate(factors):
        here = _ends(factor, options.spectral.eta)
        report.kind = factor.kind
        ends = {"spikes_read": _end_spikes(here.read, here.whole), "spikes_write": _end_spikes(here.write, here.whole)}
        tables["factors"].append({"index": index, **factor_row(here.whole, options.spectral), **ends})
        tables["spectra"].append(spectrum_rows(index, here.whole))
        product = product_with(product, factor.matrix)
        if before is not None:
            for meeting in _meetings(index - 1, before, here):
                _add_interface(meeting, options, tables, report, keep)
        before = here
    if product is None:
        raise ValueError(f"chain {chain} must have at least one factor, got none")
    for name, parts in tables.items():
        whole = pd.DataFrame(parts) if not parts or isinstance(parts[0], dict) else pd.concat(parts, ignore_index=True)
        whole.insert(0, "kind", report.kind)
        whole.insert(0, "chain", chain)
        setattr(report, name, whole)
    report.summary = summary_of(report) | _of_product(product)
    return report


def _ends(factor: Factor, eta: float) -> _Ends:
    whole = analysed(factor.name, factor.matrix, factor, eta, factor.group_size)
    read = write = whole
    # A branch that ends in gains of zero, as networks are often initialised, writes nothing, and has no geometry.
    if factor.read is not None and factor.write is not None and factor.read.any() and factor.write.any():
        read = analysed(factor.name, factor.read, factor, eta, factor.read_group_size)
        write = analysed(factor.name, factor.write, factor, eta, factor.group_size)
    return _Ends(whole, read, write)


def _end_spikes(end: Analysed, whole: Analysed) -> float:
    """The spikes of what a branch reads or writes; nan where that is the factor itself."""
    return math.nan if end is whole else float(plain_spikes(end))


def _meetings(index: int, first: _Ends, second: _Ends) -> Iterator[Meeting]:
    """The interface in its two forms; one alone where both factors are plain matrices."""
    branches = first.write is not first.whole or second.read is not second.whole
    yield Meeting(index, BLOCK, first.whole, second.whole, headline=not branches)
    if branches:
        yield Meeting(index, BRANCH, first.write, second.read)


def _add_interface(
    meeting: Meeting, options: Options, tables: dict[str, list[Any]], report: ChainReport, keep: Keep | None
) -> None:
    """Add the rows and pictures of an interface; no matrix of it is kept in memory.

    The channels of a large factor's interfaces are left out: they need all modes, and products of all sizes at ten windows.
    """
    first, second = meeting.first, meeting.second
    if any(each.parts.modes < len(each.parts.values) for each in (first, second)):
        left_out = {f"{matrix}_{name}": math.nan for matrix in (PHYSICAL, SOURCE) for name in ChannelRow._fields}
        left_out[ROTATED] = math.nan
        tables["interfaces"].append(interface_row(meeting, None, options.seed) | left_out)
        return
    moved = transport_of(first.parts, second.parts, first.window, second.window)
    row = interface_row(meeting, moved, options.seed)
    try:
        found = channels_of(first.parts, second.parts, moved, options.alignment, second.group_size)
        rotated = math.nan
        if meeting.headline:
            rotated = rotated_share(first.parts, second.parts, options.alignment, second.group_size)
    except ValueError as error:
        raise ValueError(f"interface {meeting.title}: {error}") from error
    for matrix, each in zip((PHYSICAL, SOURCE), found, strict=True):
        row |= {f"{matrix}_{name}": value for name, value in each.row._asdict().items()}
        where: dict[str, Any] = {"index": meeting.number, "form": meeting.form, "matrix": matrix}
        tables["certificates"] += [where | point._asdict() for point in each.curve]
        for name, table in channel_tables(each).items():
            tables[name].append(table.assign(**where))
    tables["interfaces"].append(row | {ROTATED: rotated})
    place = Place(meeting.number, meeting.form, PHYSICAL, meeting.title)
    report.pictures.append(picture(place, moved.physical, found.physical.alignment, found.physical.certificate.edges))
    if keep is not None:
        keep(meeting.number, meeting.form, _matrices(moved, found.physical))


def _matrices(moved: Transport, found: Channels) -> dict[str, Tensor]:
    made, certain = found.alignment, found.certificate
    matrices = {name: getattr(moved, name) for name in ("full", "physical", "physical_truncated", "source_mode")}
    blocks = {name: getattr(made, name) for name in ("norms", "supports", "overlap", "edges", "hubs", "group")}
    return matrices | blocks | {"certified_blocks": certain.blocks, "certified_edges": certain.edges}


def _of_product(product: Product) -> dict[str, float]:
    """Of the product of all factors, each with Frobenius norm sqrt(d): log s_1, and how far its norm exceeds the null's.

    The null is a Haar rotation at every interface; `log_gain` is the log of the norm over its root mean square there.
    """
    return {
        "log_top": log_top(product.matrix) + product.log_scale - product.log_gain,
        "log_gain": math.log(norm(product.matrix)) + product.log_scale - product.log_null,
    }
