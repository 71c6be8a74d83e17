"""A row of a table per interface: how two factors are turned to each other, beside Haar rotations (docs/geometry.md)."""

import math
from typing import Any, NamedTuple

import torch

from gch_bench.geometry.factors import Analysed
from gch_bench.spectral import gibbs, radial
from gch_bench.spectral.linalg import top_value
from gch_bench.spectral.nulls import Null, Spectra, interface_nulls, permuted_gain
from gch_bench.spectral.transport import Transport, mean_cosine_squared

ANGLE_ETA = 0.5  # principal angles are between subspaces that hold this share of the energy


class Meeting(NamedTuple):
    """Two matrices that follow each other."""

    number: int  # the interface's number in the chain
    form: str  # BLOCK or BRANCH
    first: Analysed
    second: Analysed

    @property
    def title(self) -> str:
        return f"{self.first.name} -> {self.second.name}"


def interface_row(meeting: Meeting, moved: Transport, seed: int) -> dict[str, Any]:
    """The columns of interfaces.csv that concern the interface as a whole; those of its channels: channels.py.

    Raises:
        ValueError: if the product of both matrices is zero.
    """
    first, second = meeting.first, meeting.second
    top, energy = top_value(moved.full), float(torch.linalg.vector_norm(moved.full)) ** 2
    if energy == 0:
        raise ValueError(f"interface {meeting.title}: the product of its factors is zero, it carries nothing")
    windows = _angle_windows(first, second)
    overlap = mean_cosine_squared(first.parts, second.parts, *windows)
    spectra = Spectra(first.parts.values, second.parts.values, second.parts.matrix.shape[1])
    found = interface_nulls(spectra, top, energy, (overlap, *windows), seed)
    permuted = permuted_gain(first.parts.outputs, second.parts.inputs, found.energy_gain.value)
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
        "rank_first": moved.rank_first,
        "rank_second": moved.rank_second,
        "product_norm": math.sqrt(energy),
        "truncation_error": moved.error,
        "truncation_bound": moved.bound,
        "fitted_bound": moved.fitted_bound,
    }


def _columns(name: str, null: Null) -> dict[str, float]:
    return {name: null.value, f"{name}_null": null.mean, f"{name}_z": null.z, f"{name}_percentile": null.percentile}


def _angle_windows(first: Analysed, second: Analysed) -> tuple[int, int]:
    """The windows of the principal angles: those of R_.50, and before a classifier as many directions as it tells apart."""
    if second.classifier:
        directions = min(max(second.parts.matrix.shape[0] - 1, 1), len(first.energies), len(second.energies))
        return directions, directions
    return gibbs.effective_rank(first.energies, ANGLE_ETA), gibbs.effective_rank(second.energies, ANGLE_ETA)


def _spectra_row(first: Analysed, second: Analysed, exponent_change: float) -> dict[str, float]:
    """How far the two spectra are from each other. Numbers that need equally many ranks are nan where there are not."""
    equal = len(first.energies) == len(second.energies)
    return {
        "exponent_change": exponent_change if equal else math.nan,
        "hellinger_squared": gibbs.hellinger_squared(first.energies, second.energies),
        "bures_squared": gibbs.bures_squared(first.energies, second.energies) if equal else math.nan,
        "spectrum_kl": gibbs.kl_divergence(first.energies, second.energies) if equal else math.nan,
    }
