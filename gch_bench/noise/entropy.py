"""The entropy and the energy of a Gaussian field, and why the Dirichlet Green kernel is the one to choose.

Statement. Let U be the free sites, L the Dirichlet Laplacian on U, and eps > 0 a budget. Among all centred laws of a field psi
on U with E[1/2 <psi, L psi>] = eps, the differential entropy h is largest for the Gaussian N(0, (beta L)^-1), where
beta = |U| / (2 eps), and for no other law.

Proof. Let q be that Gaussian. Its energy is tr(L (beta L)^-1) / 2 = |U| / (2 beta) = eps. Let p be a law with a density and the
same energy. As log q(psi) = constant - beta/2 <psi, L psi>, it has the same mean under p as under q, which is -h(q). Therefore
KL(p || q) = -h(p) - E_p log q = h(q) - h(p). A Kullback-Leibler divergence is >= 0, and 0 only where p = q. So the gap in
entropy of every other field of equal energy is its divergence from the Green field. For two Gaussian fields it is a difference
of two log-determinants, which this module computes exactly. (A law without a density has h = -inf.)

Shapes: H x W grid of the free sites, N = H*W sites. Everything is float64, and no N x N matrix is needed.
Source of the statement: VKD (arXiv 2603.17365). Proof, kernels compared and `max_entropy_check` are this project's.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from gch_bench.checks import check_choice, check_number, check_whole_number
from gch_bench.errors import FieldError
from gch_bench.noise.kernels import (
    BOUNDARIES,
    DirichletGreen,
    Kernel,
    MassiveGreen,
    PeriodicGreen,
    Spectrum,
    White,
    _spectrum,
    hartley_basis,
)

GREEN = "dirichlet_green"


@dataclass(frozen=True)
class RidgedPeriodicGreen(Kernel):
    """psi ~ N(0, (beta (L + ridge))^-1) with the Laplacian L of the torus: the periodic kernel with its zero mode kept.

    It is here because PeriodicGreen itself has no density on U, and so loses to every other kernel.
    """

    ridge: float = field(default=1.0, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("ridge", self.ridge, 0, strict=True)

    def _green(self, height: int, width: int) -> Spectrum:
        (basis_HH, eigen_H), (basis_WW, eigen_W) = hartley_basis(height), hartley_basis(width)
        return Spectrum(basis_HH, basis_WW, (eigen_H[:, None] + eigen_W[None, :] + self.ridge).rsqrt())


def other_kernels(boundary: str = "outside") -> dict[str, Kernel]:
    """The kernels that `max_entropy_check` compares with the Dirichlet Green kernel of this boundary, by name."""
    massive: dict[str, Kernel] = {f"massive_{mass:g}": MassiveGreen(boundary=boundary, mass=mass) for mass in (0.25, 1, 4)}
    return {"white": White(), **massive, "periodic": PeriodicGreen(), "periodic_ridge": RidgedPeriodicGreen()}


class MaxEntropyCheck(NamedTuple):
    """Entropies of fields of equal energy on one grid. Gaps are those of the Green field less that of each other field."""

    sites: int  # |U|, the number of free sites
    energy: float  # the budget that every field has: E[1/2 <psi, L psi>]
    beta: float  # |U| / (2 energy), the inverse temperature of the Green field
    entropy: dict[str, float]  # nats, by kernel; "dirichlet_green" first; -inf where the field has no density on U
    gap: dict[str, float]  # nats, by other kernel: KL divergence from the Green field; exactly 0 where it is the same field
    gap_per_site: dict[str, float]  # gap / |U|
    holds: bool  # whether every gap is > 0, except where the field is the Green field itself


def field_entropy(kernel: Kernel, height: int, width: int) -> float:
    """Differential entropy 1/2 log det(2 pi e C) of the field on its free sites, in nats, where C is its covariance there.

    It is -inf where C is singular: the periodic kernel lacks the zero mode, so its fields fill no volume.

    Args:
        kernel: the kernel of the field.
        height, width: the size of the map. Kernels with boundary="inside" have (height-2) x (width-2) free sites.

    Raises:
        ValueError: the map is too small for the kernel.
    """
    return _entropy(_spectrum(kernel, height, width))


def field_energy(kernel: Kernel, height: int, width: int, boundary: str = "outside") -> float:
    """E[1/2 <psi, L psi>] = 1/2 tr(L C), the expected Dirichlet energy on the free sites U of a height x width map.

    A kernel that pins no site by itself (white, periodic) is made on U: with boundary="inside" that is the inner
    (height-2) x (width-2) grid, and psi is 0 on the map's outermost ring, so that all kernels live on the same sites.

    Args:
        kernel: the kernel of the field.
        height, width: the size of the map; with boundary="inside" at least 3 x 3.
        boundary: where psi is pinned to 0, "outside" or "inside" (see DirichletGreen). It must be the kernel's own
            boundary where the kernel has one.

    Raises:
        FieldError: the boundary is unknown or not the kernel's own, or the map is too small.
    """
    return _energy(_free_spectrum(kernel, height, width, boundary))


def max_entropy_check(
    height: int,
    width: int,
    energy: float | None = None,
    boundary: str = "outside",
    kernels: Mapping[str, Kernel] | None = None,
) -> MaxEntropyCheck:
    """Compare the entropy of the Dirichlet Green field with that of other fields which have the same energy.

    Every covariance is multiplied by the factor that makes its energy the budget. The statement and its proof are at the top
    of this module.

    Args:
        height, width: the size of the map; with boundary="inside" at least 3 x 3.
        energy: the budget E[1/2 <psi, L psi>] > 0; default |U| / 2, where beta is 1.
        boundary: where psi is pinned to 0, "outside" or "inside".
        kernels: the other kernels, by name; default `other_kernels(boundary)`.

    Raises:
        FieldError: the energy is not > 0, the boundary is unknown or not that of a kernel, or the map is too small.
    """
    green = _free_spectrum(DirichletGreen(boundary=boundary), height, width, boundary)
    sites = green.amplitude_HW.numel()
    energy = sites / 2 if energy is None else energy
    check_number("energy", energy, 0, strict=True)
    others = other_kernels(boundary) if kernels is None else dict(kernels)
    spectra = {name: _free_spectrum(kernel, height, width, boundary) for name, kernel in others.items()}
    budgeted = {name: _at_energy(spectrum, energy) for name, spectrum in ({GREEN: green} | spectra | {GREEN: green}).items()}
    entropy = {name: _entropy(spectrum) for name, spectrum in budgeted.items()}
    same = {name for name in others if _same_field(budgeted[name], budgeted[GREEN])}
    gap = {name: 0.0 if name in same else entropy[GREEN] - entropy[name] for name in others}
    return MaxEntropyCheck(
        sites=sites,
        energy=energy,
        beta=sites / (2 * energy),
        entropy=entropy,
        gap=gap,
        gap_per_site={name: value / sites for name, value in gap.items()},
        holds=all(gap[name] > 0 for name in others if name not in same),
    )


def _free_spectrum(kernel: Kernel, height: int, width: int, boundary: str) -> Spectrum:
    """The kernel's spectrum on the free sites of a height x width map, of which the boundary says which they are."""
    check_choice("boundary", boundary, BOUNDARIES)
    ring = int(boundary == "inside")
    for name, size in (("height", height), ("width", width)):
        check_whole_number(name, size, 1 + 2 * ring)
    own = getattr(kernel, "boundary", None)
    if own is None:
        return _spectrum(kernel, height - 2 * ring, width - 2 * ring)
    if own != boundary:
        raise FieldError("boundary", f"must be the kernel's own, {own}, got {boundary!r}")
    return _spectrum(kernel, height, width)


def _entropy(spectrum: Spectrum) -> float:
    # The bases are orthonormal, so the eigenvalues of the covariance are the squares of the amplitudes.
    amplitude_HW = spectrum.amplitude_HW
    return 0.5 * amplitude_HW.numel() * math.log(2 * math.pi * math.e) + float(amplitude_HW.log().sum())


def _energy(spectrum: Spectrum) -> float:
    """1/2 tr(L C). A mode u v^T of unit norm has <u v^T, L u v^T> = <u, T u> + <v, T v> with the Laplacian T of a path."""
    basis_HH, basis_WW, amplitude_HW = spectrum
    form_HW = _path_energy(basis_HH)[:, None] + _path_energy(basis_WW)[None, :]
    return 0.5 * float((amplitude_HW.square() * form_HW).sum())


def _path_energy(basis_nn: Tensor) -> Tensor:
    """<u, T u> of every mode u, a row of the basis (modes x sites), on a path pinned to 0 beyond both ends: (modes,)."""
    pinned = torch.nn.functional.pad(basis_nn, [1, 1])
    return pinned.diff(dim=1).square().sum(1)


def _at_energy(spectrum: Spectrum, energy: float) -> Spectrum:
    """The field times the number that makes its energy the budget. A field of energy 0 is 0, and stays so."""
    own = _energy(spectrum)
    return spectrum._replace(amplitude_HW=spectrum.amplitude_HW * math.sqrt(energy / own)) if own > 0 else spectrum


def _same_field(one: Spectrum, other: Spectrum) -> bool:
    """Whether two covariances are equal up to rounding: whether they map one random vector to the same vector.

    Those that differ do so for almost every vector. The comparison needs no dense matrix.
    """
    shape = one.amplitude_HW.shape
    vector_HW = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    images = [
        basis_HH.T @ (amplitude_HW.square() * (basis_HH @ vector_HW @ basis_WW.T)) @ basis_WW
        for basis_HH, basis_WW, amplitude_HW in (one, other)
    ]
    return float((images[0] - images[1]).norm()) <= 1e-10 * float(images[1].norm())
