"""A row of a table per interface: how two factors are turned to each other, beside Haar rotations (docs/geometry.md)."""

import math
from typing import Any, NamedTuple

import torch

from gch_bench.geometry.factors import Analysed
from gch_bench.spectral import gibbs, radial
from gch_bench.spectral.leading import Met, met
from gch_bench.spectral.linalg import top_value
from gch_bench.spectral.nulls import Null, Spectra, interface_nulls, permuted_gain_of
from gch_bench.spectral.transport import Transport, mean_cosine_squared, truncation_bounds

SAME = 1e-9  # difference of two singular values, in units of the largest, that is rounding
ANGLE_ETA = 0.5  # principal angles are between subspaces that hold this share of the energy


class Meeting(NamedTuple):
    """Two matrices that follow each other."""

    number: int  # the interface's number in the chain
    form: str  # BLOCK or BRANCH
    first: Analysed
    second: Analysed
    headline: bool = True  # whether this form stands for the interface in the chain's summary

    @property
    def title(self) -> str:
        return f"{self.first.name} -> {self.second.name}"


def interface_row(meeting: Meeting, moved: Transport | None, seed: int) -> dict[str, Any]:
    """The columns of interfaces.csv that concern the interface as a whole; those of its channels: channels.py.

    ``moved`` is None where a factor is large, so that not all of its modes are known (leading.py). Then the truncation error is
    nan, and so are the angles if they are between more modes.

    Raises:
        ValueError: if the product of both matrices is zero.
    """
    first, second = meeting.first, meeting.second
    together = met(first.parts, second.parts) if moved is None else _met(first, second, moved)
    top, energy = together.top, together.energy
    if energy == 0:
        raise ValueError(f"interface {meeting.title}: the product of its factors is zero, it carries nothing")
    windows = _angle_windows(first, second)
    known = _defined(first, windows[0]) and _defined(second, windows[1])
    known = known and windows[0] <= first.parts.modes and windows[1] <= second.parts.modes
    overlap = mean_cosine_squared(first.parts, second.parts, *windows) if known else math.nan
    kept = [each.parts.values[: len(each.energies)] for each in (first, second)]
    spectra = Spectra(kept[0], kept[1], second.parts.matrix.shape[1])
    found = interface_nulls(spectra, top, energy, (overlap, *windows), (seed, meeting.number))
    permuted = permuted_gain_of(together.scatters, found.energy_gain.value)
    bounds = truncation_bounds(first.parts.values, second.parts.values, first.window, second.window)
    between = radial.interface_of(first.radial, second.radial, top / (first.radial.norm * second.radial.norm))
    return {
        "index": meeting.number,
        "form": meeting.form,
        "first": first.name,
        "second": second.name,
        "shared": spectra.shared,
        **_columns("energy_gain", found.energy_gain),
        "energy_gain_permuted": permuted.mean,
        "energy_gain_permuted_z": permuted.z,
        **_columns("slack_ratio", found.slack_ratio),
        "mean_cosine_squared": overlap,
        "angle_window_first": windows[0],
        "angle_window_second": windows[1],
        "angle_null": found.mean_cosine_squared.mean,
        "angle_excess": overlap - found.mean_cosine_squared.mean,
        "angle_excess_z": found.mean_cosine_squared.z,
        "angle_excess_percentile": found.mean_cosine_squared.percentile,
        "budget": 2 * between.amplitude,
        "slack": between.slack,
        "residual_change": between.residual_change,
        "displacement": between.displacement,
        **_spectra_row(first, second, between.exponent_change),
        "modes_first": len(first.parts.values),
        "modes_second": len(second.parts.values),
        "rank_first": first.window,
        "rank_second": second.window,
        "product_norm": math.sqrt(energy),
        "truncation_error": math.nan if moved is None else moved.error,
        "truncation_bound": bounds[0],
        "fitted_bound": bounds[1],
    }


def _met(first: Analysed, second: Analysed, moved: Transport) -> Met:
    """``met`` from modes, which are all known."""
    outputs, inputs = first.parts.outputs, second.parts.inputs
    energy = float(torch.linalg.vector_norm(moved.full)) ** 2
    return Met(top_value(moved.full), energy, (outputs @ outputs.mT, inputs.mT @ inputs))


def _columns(name: str, null: Null) -> dict[str, float]:
    return {name: null.value, f"{name}_null": null.mean, f"{name}_z": null.z, f"{name}_percentile": null.percentile}


def _angle_windows(first: Analysed, second: Analysed) -> tuple[int, int]:
    """The windows of the principal angles: those of R_.50, and before a classifier as many directions as it tells apart.

    Of a classifier with so many classes that these would be more than half of all directions, R_.50 counts, too.
    """
    rows, shared = second.parts.matrix.shape
    if second.classifier and rows - 1 <= shared / 2:
        directions = min(max(rows - 1, 1), len(first.energies), len(second.energies))
        return directions, directions
    return gibbs.effective_rank(first.energies, ANGLE_ETA), gibbs.effective_rank(second.energies, ANGLE_ETA)


def _defined(here: Analysed, window: int) -> bool:
    """Whether the leading directions of a window are defined, that is, whether its last mode is larger than the next one."""
    values = here.parts.values
    return window >= len(values) or float(values[window - 1] - values[window]) > SAME * float(values[0])


def _spectra_row(first: Analysed, second: Analysed, exponent_change: float) -> dict[str, float]:
    """How far the two spectra are from each other. Numbers that need equally many ranks are nan where there are not."""
    equal = len(first.energies) == len(second.energies)
    return {
        "exponent_change": exponent_change if equal else math.nan,
        "hellinger_squared": gibbs.hellinger_squared(first.energies, second.energies),
        "bures_squared": gibbs.bures_squared(first.energies, second.energies) if equal else math.nan,
        "spectrum_kl": gibbs.kl_divergence(first.energies, second.energies) if equal else math.nan,
    }
