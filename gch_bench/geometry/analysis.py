"""From a chain of factors to its tables: factors, interfaces, spectra, channels, columns and edges.

Factors are read one after the other, and only two are in memory at a time, because all factors of a chain together may need
more memory than there is. Only rows of tables and small pictures are kept. Definitions: docs/geometry.md.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from gch_bench.config.diagnosis import AlignmentConfig, SpectralConfig
from gch_bench.geometry.chains import Factor
from gch_bench.results.geometry import PHYSICAL, PICTURE, SOURCE, ChainReport, Picture
from gch_bench.spectral import alignment as pam
from gch_bench.spectral import gibbs, radial
from gch_bench.spectral import labels as icm
from gch_bench.spectral.linalg import Decomposition, decompose, finite64, gram_values, top_value
from gch_bench.spectral.transport import Transport, principal_angles, transport_of
from gch_bench.threads import few_at_a_time

ETAS = (0.9, 0.95, 0.99)
NEAR_IDENTITY = 0.5  # largest ||A - I||_F / sqrt(d) at which a first-order formula is shown


class _Analysed(NamedTuple):
    factor: Factor
    parts: Decomposition
    radial: radial.Radial
    energies: Tensor
    window: int


Keep = Callable[[int, dict[str, Tensor]], None]


def analyse(
    factors: Iterable[Factor],
    chain: str,
    description: str,
    spectral: SpectralConfig,
    alignment: AlignmentConfig,
    keep: Keep | None = None,
) -> ChainReport:
    """The report on a chain.

    Args:
        factors: in the order in which they are applied.
        chain, description: the chain's name and what its factors are, for the report.
        spectral, alignment: options of the diagnosis.
        keep: if given, it is called with each interface's index and matrices, for example to write them to a file.

    Raises:
        ValueError: if a factor is zero or not finite, factors do not compose, their product is zero, or ``group_size`` does not
            divide the rows.
    """
    names = ("factors", "interfaces", "channels", "columns", "edges", "spectra")
    rows: dict[str, list[Any]] = {name: [] for name in names}
    interfaces: list[radial.Interface] = []
    report = ChainReport(chain, "", description)
    before: _Analysed | None = None
    for index, factor in enumerate(factors):
        here = _analyse_factor(factor, spectral)
        report.kind = factor.kind
        rows["factors"].append({"index": index, **_factor_row(here, spectral)})
        rows["spectra"].append(_spectrum(index, here))
        if before is not None:
            interfaces.append(_analyse_interface(index - 1, before, here, alignment, rows, report.pictures, keep))
        before = here
    for name, parts in rows.items():
        whole = pd.DataFrame(parts) if not parts or isinstance(parts[0], dict) else pd.concat(parts, ignore_index=True)
        whole.insert(0, "kind", report.kind)
        whole.insert(0, "chain", chain)
        setattr(report, name, whole)
    report.summary = _summary(report, interfaces)
    return report


def _analyse_factor(factor: Factor, options: SpectralConfig) -> _Analysed:
    try:
        parts = decompose(factor.matrix)
        radius = radial.radial_of_values(parts.values)
    except ValueError as error:
        raise ValueError(f"factor {factor.name}: {error}") from error
    window = gibbs.effective_rank(gibbs.chart(radius.fit.exponent, radius.fit.size), options.eta)
    return _Analysed(factor, parts, radius, gibbs.energies(parts.values).cpu(), window)


def _analyse_interface(
    index: int,
    first: _Analysed,
    second: _Analysed,
    options: AlignmentConfig,
    rows: dict[str, list[Any]],
    pictures: list[Picture],
    keep: Keep | None,
) -> radial.Interface:
    """Add an interface's rows and picture to ``rows`` and ``pictures``; return its margin. No matrix of it is kept."""
    moved = transport_of(first.parts, second.parts, first.window, second.window)
    top = top_value(moved.physical) / (first.radial.norm * second.radial.norm)
    between = radial.interface_of(first.radial, second.radial, top)
    title = f"{first.factor.name} -> {second.factor.name}"
    row = {"index": index, "first": first.factor.name, "second": second.factor.name}
    row |= _radial_row(between, first, second) | _transport_row(moved, first, second)
    for form, matrix, cut in (
        (PHYSICAL, moved.physical, moved.physical_truncated),
        (SOURCE, moved.source_mode, moved.source_mode_truncated),
    ):
        shown = _align(matrix, second.factor.group_size, options, title)
        labels = icm.channel_labels(matrix, shown.alignment, options.kappa)
        made, off = shown.alignment, cut - matrix
        sure = pam.certify(matrix, pam.block_norms(off, made.group), made.group, *made.thresholds)
        stable = icm.certify_labels(matrix, made, sure, icm.row_errors(off, made.group), options.kappa) != icm.NO_LABEL
        row |= {f"{form}_{key}": value for key, value in _alignment_row(shown, moved, labels, stable).items()}
        if form == PHYSICAL:
            rows["channels"].append(_channels(index, shown.alignment, labels, stable))
            rows["columns"].append(_columns(index, shown.alignment))
            rows["edges"].append(_edges(index, shown.alignment))
            pictures.append(_picture(index, title, matrix, shown))
            if keep is not None:
                keep(index, _matrices(moved, shown))
    rows["interfaces"].append(row)
    return between


def _factor_row(here: _Analysed, options: SpectralConfig) -> dict[str, Any]:
    fit = here.radial.fit
    low, high = gibbs.rank_window(fit.exponent, options.exponent_uncertainty, fit.size, options.eta)
    fitted = gibbs.chart(fit.exponent, fit.size)
    ranks = {f"rank_{eta * 100:.0f}": gibbs.effective_rank(here.energies, eta) for eta in ETAS}
    chart_ranks = {f"chart_rank_{eta * 100:.0f}": gibbs.effective_rank(fitted, eta) for eta in ETAS}
    return {
        "name": here.factor.name,
        "rows": here.factor.matrix.shape[0],
        "columns": here.factor.matrix.shape[1],
        "norm": here.radial.norm,
        "top": float(here.parts.values[0]),
        **fit._asdict(),
        "radial": here.radial.radial,
        "chart_radial": here.radial.chart,
        "residual": here.radial.residual,
        **ranks,
        **chart_ranks,
        "window_low": low,
        "window_high": high,
        **_tails(here, fitted),
        **_near_identity(here.factor.matrix),
    }


def _tails(here: _Analysed, fitted: Tensor) -> dict[str, float]:
    """Energy outside the window of the transport: the measured share, and an integral that bounds the chart's own share.

    The bound is nan for exponents below 0, for which it does not hold.
    """
    fit = here.radial.fit
    bound = float(fitted[0]) * gibbs.tail_bound(fit.exponent, here.window, fit.size) if fit.exponent >= 0 else math.nan
    return {"tail_share": max(1 - float(here.energies[: here.window].sum()), 0.0), "chart_tail_bound": bound}


def _near_identity(matrix: Tensor) -> dict[str, float]:
    """Distance of a square factor A (d, d) from the identity, ||A - I||_F / sqrt(d), and its r to first order in A - I.

    Both are nan for a factor that is not square; r is nan where the distance is too large for a first-order formula.
    """
    if matrix.shape[0] != matrix.shape[1]:
        return {"identity_distance": math.nan, "near_identity_radial": math.nan}
    direction = matrix - torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
    distance = float(torch.linalg.vector_norm(direction)) / math.sqrt(len(matrix))
    radius = radial.near_identity_radial(direction, 1.0) if distance < NEAR_IDENTITY else math.nan
    return {"identity_distance": distance, "near_identity_radial": radius}


def _spectrum(index: int, here: _Analysed) -> pd.DataFrame:
    values = here.parts.values.cpu()
    return pd.DataFrame({"index": index, "rank": range(1, len(values) + 1), "value": values.numpy(), "energy": here.energies})


def _radial_row(between: radial.Interface, first: _Analysed, second: _Analysed) -> dict[str, Any]:
    row = {key: value for key, value in between._asdict().items() if key not in ("first", "second")}
    equal = first.radial.fit.size == second.radial.fit.size
    return row | {
        "budget": 2 * between.amplitude,
        "hellinger_squared": gibbs.hellinger_squared(first.energies, second.energies),
        "bures_squared": gibbs.bures_squared(first.energies, second.energies) if equal else math.nan,
        "spectrum_kl": gibbs.kl_divergence(first.energies, second.energies) if equal else math.nan,
    }


def _transport_row(moved: Transport, first: _Analysed, second: _Analysed) -> dict[str, Any]:
    angles = principal_angles(first.parts, second.parts, moved.rank_first, moved.rank_second)
    return {
        "rank_first": moved.rank_first,
        "rank_second": moved.rank_second,
        "product_norm": float(torch.linalg.vector_norm(moved.full)),
        "truncation_error": moved.error,
        "truncation_bound": moved.bound,
        "fitted_bound": moved.fitted_bound,
        "smallest_angle": float(angles[0]),
        "mean_cosine_squared": float(angles.cos().square().mean()),
    }


class _Aligned(NamedTuple):
    alignment: pam.Alignment
    tau: float
    omega: float


def _align(matrix: Tensor, group_size: int | None, options: AlignmentConfig, where: str) -> _Aligned:
    if group_size is not None and len(matrix) % group_size:
        raise ValueError(f"interface {where}: group_size must divide its {len(matrix)} rows, got {group_size}")
    groups = len(matrix) // group_size if group_size is not None else min(options.groups, len(matrix))
    norms = pam.block_norms(matrix, groups)
    rms = float(norms.square().mean().sqrt())
    if rms == 0:
        raise ValueError(f"interface {where}: the product of its factors is zero, it carries nothing")
    tau = pam.choose_tau(norms, options.density)
    omega = pam.choose_omega(norms, tau, options.edge_density)
    return _Aligned(pam.align(matrix, groups, tau, omega, options.hub_degree, options.noise_budget), tau, omega)


def _alignment_row(shown: _Aligned, moved: Transport, labels: icm.ChannelLabels, stable: Tensor) -> dict[str, Any]:
    made = shown.alignment
    energy = made.core**2 + made.overlapping**2 + made.noise**2
    certified = "bound" if moved.bound < made.radius else "measured" if moved.error < made.radius else "no"
    return {
        "groups": len(made.supports),
        "tau": shown.tau,
        "omega": shown.omega,
        "radius": made.radius,
        "limit": made.limit,
        "certified": certified,
        "missing": max(moved.error - made.radius, 0.0),
        "core_share": made.core**2 / energy,
        "overlap_share": made.overlapping**2 / energy,
        "noise_share": made.noise**2 / energy,
        "active": float(made.supports.double().mean()),
        "edges": int(made.edges.sum()) // 2,
        "hubs": int(made.hubs.sum()),
        **{name: int((labels.label == kind).sum()) for kind, name in enumerate(icm.LABELS)},
        "stable_labels": int(stable.sum()) if certified != "no" else 0,  # a label is certain only if the masks are
    }


def _channels(index: int, made: pam.Alignment, labels: icm.ChannelLabels, stable: Tensor) -> pd.DataFrame:
    columns = {name: values.cpu().numpy() for name, values in labels._asdict().items() if name != "label"}
    names = [icm.LABELS[kind] for kind in labels.label.tolist()]
    head = {"index": index, "channel": range(len(names)), "group": made.group.cpu().numpy(), "label": names}
    return pd.DataFrame(head | columns | {"margin_holds": stable.cpu().numpy()})


def _columns(index: int, made: pam.Alignment) -> pd.DataFrame:
    supports = [",".join(str(g) for g, active in enumerate(column) if active) for column in made.supports.T.tolist()]
    degree, hub = made.degree.cpu().numpy(), made.hubs.cpu().numpy()
    return pd.DataFrame({"index": index, "column": range(len(supports)), "supports": supports, "degree": degree, "hub": hub})


def _edges(index: int, made: pam.Alignment) -> pd.DataFrame:
    one, other = torch.triu(made.edges, 1).nonzero().cpu().unbind(1)
    shared = [int(made.shared(g, h).sum()) for g, h in zip(one.tolist(), other.tolist(), strict=True)]
    strength = made.overlap.cpu()[one, other]
    return pd.DataFrame({"index": index, "one": one.numpy(), "other": other.numpy(), "strength": strength.numpy(),
                         "shared": np.array(shared, dtype=np.int64)})  # fmt: skip


def _picture(index: int, title: str, matrix: Tensor, shown: _Aligned) -> Picture:
    cells = (min(matrix.shape[0], PICTURE), min(matrix.shape[1], PICTURE))
    energy = torch.nn.functional.adaptive_avg_pool2d(matrix.square()[None, None], cells)[0, 0].sqrt()
    order = shown.alignment.norms.amax(0).argsort(descending=True)
    return Picture(index, title, energy.cpu(), shown.alignment.norms[:, order].cpu(), shown.tau)


def _matrices(moved: Transport, shown: _Aligned) -> dict[str, Tensor]:
    made = shown.alignment
    names = ("full", "physical", "physical_truncated", "source_mode")
    small = {"norms": made.norms, "supports": made.supports, "overlap": made.overlap, "edges": made.edges, "hubs": made.hubs}
    return {name: getattr(moved, name) for name in names} | small | {"masks": made.masks.to(torch.int8)}


def _summary(report: ChainReport, interfaces: list[radial.Interface]) -> dict[str, float]:
    """The quantities that have one number for the whole chain; runs are compared by them."""
    factors, between = report.factors, report.interfaces
    summary = {
        "factors": float(len(factors)),
        "mean_exponent": float(factors["exponent"].mean()),
        "mean_kl": float(factors["kl"].mean()),
        "mean_residual": float(factors["residual"].abs().mean()),
        "last_exponent": float(factors["exponent"].iloc[-1]),
        "last_rank_90": float(factors["rank_90"].iloc[-1]),
    }
    if not interfaces:
        return summary
    budget = radial.depth_budget(interfaces)
    same = factors[factors["size"] == factors["size"].iloc[-1]]
    action = gibbs.fisher_action([float(a) for a in same["exponent"]], int(same["size"].iloc[-1]))
    certified = {form: float((between[f"{form}_certified"] != "no").mean()) for form in (PHYSICAL, SOURCE)}
    return summary | budget._asdict() | {
        "fisher_action_last_size": action,
        "certified_share": certified[PHYSICAL],
        "certified_share_source_mode": certified[SOURCE],
    }  # fmt: skip


def weight_table(weights: Iterable[tuple[str, Tensor]]) -> pd.DataFrame:
    """A row per weight, given as (name, (taps, rows, columns)): the spectrum of all its taps' singular values, and its chart.

    Several weights are analysed at a time, because most are too small to keep more than one core busy.

    Raises:
        ValueError: if a weight is not finite.
    """
    return pd.DataFrame(few_at_a_time(_weight_row, weights))


def _weight_row(weight: tuple[str, Tensor]) -> dict[str, Any]:
    name, taps = weight
    values = gram_values(finite64(taps, f"{name}.weight")).flatten()
    row: dict[str, Any] = {"name": name, "taps": taps.shape[0], "rows": taps.shape[1], "columns": taps.shape[2], "norm": 0.0}
    if float(values.max()) == 0:
        return row
    here = radial.radial_of_values(values)
    p = gibbs.energies(values).cpu()
    ranks = {f"rank_{eta * 100:.0f}": gibbs.effective_rank(p, eta) for eta in ETAS}
    return row | {"norm": here.norm, "top": float(values.max()), **here.fit._asdict(), **ranks}
