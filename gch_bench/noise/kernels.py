"""Kernels: the covariances that a Gaussian field psi on an H x W grid may have.

Shapes: B batch, H x W grid, N = H*W sites (row-major). Every kernel here is diagonal in a separable orthonormal basis. A field
is therefore computed by two small matrix products, psi_BHW = S_HH^T @ (amplitude_HW * z_BHW) @ S_WW with z iid N(0, 1), or by
one dense product on small grids; Var psi and Cov psi are finite sums over the same amplitudes.

Source: VKD (arXiv 2603.17365). Definitions that its abstract does not fix are this project's (docs/definitions.md).
"""

import math
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from gch_bench.checks import check_choice, check_number
from gch_bench.errors import FieldError

BOUNDARIES = ("outside", "inside")
DENSE_SITES = 256  # up to 16 x 16 sites one dense product is faster than two small ones, each of which must be launched


class Spectrum(NamedTuple):
    """A kernel on one grid: two bases (modes x sites), and the standard deviation of each mode's coefficient."""

    basis_HH: Tensor
    basis_WW: Tensor
    amplitude_HW: Tensor


def _dense_root(spectrum: Spectrum) -> Tensor:
    """The matrix R, modes x sites, for which Cov psi = R^T R on the free (not pinned) sites."""
    return spectrum.amplitude_HW.flatten()[:, None] * torch.kron(spectrum.basis_HH, spectrum.basis_WW)


def sine_basis(n: int) -> tuple[Tensor, Tensor]:
    """Orthonormal DST-I basis (n, n) and the eigenvalues (n,) of the path Laplacian pinned to 0 just outside."""
    k = torch.arange(1, n + 1, dtype=torch.float64)
    basis = math.sqrt(2 / (n + 1)) * torch.sin(math.pi * torch.outer(k, k) / (n + 1))
    return basis, 2 - 2 * torch.cos(math.pi * k / (n + 1))


def hartley_basis(n: int) -> tuple[Tensor, Tensor]:
    """Orthonormal real Fourier (Hartley) basis (n, n) and the eigenvalues (n,) of the cycle Laplacian."""
    k = torch.arange(n, dtype=torch.float64)
    phase = 2 * math.pi * torch.outer(k, k) / n
    return (torch.cos(phase) + torch.sin(phase)) / math.sqrt(n), 2 - 2 * torch.cos(2 * math.pi * k / n)


@dataclass(frozen=True)
class Kernel:
    """Base of all kernels: the covariance of a centred Gaussian field, Cov psi = G / beta. Subclasses define G by `_green`.

    Args:
        beta: inverse temperature, > 0.
        match_variance: rescale psi so that the mean of Var psi over the free sites is 1 (beta then has no effect).

    Raises:
        ValueError: an argument is out of range, or, in the methods, a grid is too small for the kernel.
    """

    beta: float = 1.0
    match_variance: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        check_number("beta", self.beta, 0, strict=True)

    pinned = 0  # how many rings of sites at the map's edge are pinned to psi = 0
    independent_sites = False  # whether the values of different sites are independent
    homogeneous = False  # whether a symmetry of the field carries every site to every other, on every map

    def alike_sites(self, height: int, width: int) -> bool:
        """Whether a symmetry of the field carries every site of this map to every other."""
        return self.homogeneous or max(height, width) <= 2

    @property
    def words(self) -> str:
        """The covariance of the field psi in words, with its formula."""
        return self._formula() + (", scaled to a mean variance of 1" if self.match_variance else "")

    def _formula(self) -> str:
        return type(self).__name__

    # Every kernel defines this: the spectrum of G, which is Cov psi at beta = 1, on the free sites of a height x width map.
    def _green(self, height: int, width: int) -> Spectrum:
        raise NotImplementedError

    def _beta(self, height: int, width: int) -> float:
        return self.beta

    def sample(
        self,
        batch: int,
        height: int,
        width: int,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """Independent fields psi ~ N(0, Cov psi): (batch, height, width). Default generator: the device's global one."""
        device = torch.device(device or (generator.device if generator is not None else "cpu"))
        modes = self.modes(height, width)
        return self.field(torch.randn(batch, *modes, generator=generator, device=device, dtype=dtype), height, width)

    def modes(self, height: int, width: int) -> tuple[int, int]:
        """The shape of the standard normal numbers from which `field` makes one field on a height x width map."""
        rows, columns = _spectrum(self, height, width).amplitude_HW.shape
        return rows, columns

    def field(self, z_BHW: Tensor, height: int, width: int) -> Tensor:
        """The fields psi (B, height, width) that standard normal numbers z (B, *modes(height, width)) stand for."""
        spectrum, root_NN = _on_device(self, height, width, z_BHW.device, z_BHW.dtype)
        basis_HH, basis_WW, amplitude_HW = spectrum
        # The field stays in z's precision inside autocast, where matmul would drop to half precision.
        with torch.autocast(z_BHW.device.type, enabled=False):
            if root_NN is not None:
                psi_BHW = (z_BHW.flatten(1) @ root_NN).view_as(z_BHW)
            else:
                psi_BHW = basis_HH.T @ (amplitude_HW * z_BHW) @ basis_WW
        return self._padded(psi_BHW)

    def variance(self, height: int, width: int) -> Tensor:
        """Var psi(x) at every site x: (height, width), float64."""
        basis_HH, basis_WW, amplitude_HW = _spectrum(self, height, width)
        return self._padded((basis_HH**2).T @ amplitude_HW**2 @ basis_WW**2)

    def covariance(self, height: int, width: int) -> Tensor:
        """C(x, y) = Cov(psi(x), psi(y)): (N, N), float64, for N = height*width sites in row-major order."""
        return self._dense(_spectrum(self, height, width))

    def resistance(self, height: int, width: int) -> Tensor:
        """R(x, y) = G_xx + G_yy - 2 G_xy: (N, N), float64. G is taken at beta = 1 and without match_variance.

        For the Dirichlet kernel R is the effective resistance between two sites of the grid whose boundary is grounded."""
        green_NN = self._dense(self._green(height, width))
        diagonal_N = green_NN.diagonal()
        return diagonal_N[:, None] + diagonal_N[None, :] - 2 * green_NN

    def _dense(self, spectrum: Spectrum) -> Tensor:
        root_NN = _dense_root(spectrum)
        green_NN = root_NN.T @ root_NN
        free_N = self._padded(torch.ones_like(spectrum.amplitude_HW)).flatten().bool()
        full_NN = torch.zeros(len(free_N), len(free_N), dtype=torch.float64)
        full_NN[torch.outer(free_N, free_N)] = green_NN.flatten()  # pinned sites have covariance 0
        return full_NN

    def _padded(self, sites: Tensor) -> Tensor:
        return torch.nn.functional.pad(sites, [self.pinned] * 4) if self.pinned else sites


@dataclass(frozen=True)
class White(Kernel):
    """Independent sites: Cov psi = I / beta."""

    independent_sites = homogeneous = True

    def _green(self, height: int, width: int) -> Spectrum:
        eye = lambda n: torch.eye(n, dtype=torch.float64)  # noqa: E731
        return Spectrum(eye(height), eye(width), torch.ones(height, width, dtype=torch.float64))

    def _formula(self) -> str:
        return "white: Cov psi = 1/beta, independent sites"


@dataclass(frozen=True)
class DirichletGreen(Kernel):
    """Dirichlet Green kernel: psi ~ N(0, (beta L)^-1), the field of maximum entropy under a budget of energy.

    L is the Dirichlet graph Laplacian: L psi(x) = 4 psi(x) - the sum over the four neighbours, diagonal in the DST-I basis.

    Args:
        beta: inverse temperature, > 0.
        boundary: "outside": the pinned ring (psi = 0) lies just outside the map, and every site is free;
            "inside": the map's own outermost ring is pinned (needs H, W >= 3).
        match_variance: rescale psi so that the mean of Var psi over the free sites is 1.
        energy: the budget E[1/2 <psi, L psi>] > 0, which may be given in place of beta: beta = |U| / (2 energy), where |U| is
            the number of free sites.

    Source: VKD (arXiv 2603.17365).
    """

    boundary: str = "outside"
    energy: float | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("boundary", self.boundary, BOUNDARIES)
        if self.energy is not None:
            check_number("energy", self.energy, 0, strict=True)
            if self.beta != 1.0:
                raise FieldError(
                    "energy", f"replaces beta: give one of them, got energy={self.energy:g} and beta={self.beta:g}"
                )
            if self.match_variance:
                raise FieldError("energy", "has no effect with match_variance=true: give one of them")

    @property
    def pinned(self) -> int:  # type: ignore[override]
        return int(self.boundary == "inside")

    def _free(self, height: int, width: int) -> tuple[int, int]:
        if min(height, width) <= 2 * self.pinned:
            raise ValueError(f'boundary="inside" needs a map of at least 3x3, got {height}x{width}')
        return height - 2 * self.pinned, width - 2 * self.pinned

    def _eigenvalues(self, eigen_H: Tensor, eigen_W: Tensor) -> Tensor:
        return eigen_H[:, None] + eigen_W[None, :]

    def _green(self, height: int, width: int) -> Spectrum:
        free_height, free_width = self._free(height, width)
        (basis_HH, eigen_H), (basis_WW, eigen_W) = sine_basis(free_height), sine_basis(free_width)
        return Spectrum(basis_HH, basis_WW, self._eigenvalues(eigen_H, eigen_W).rsqrt())

    def _beta(self, height: int, width: int) -> float:
        return self.beta if self.energy is None else math.prod(self._free(height, width)) / (2 * self.energy)

    def _formula(self) -> str:
        return f"Dirichlet Green: Cov psi = (beta L)^-1 {self._pinned_words()}"

    def _pinned_words(self) -> str:
        where = "just outside the map" if self.boundary == "outside" else "on the map's outermost ring"
        return f"with the Laplacian L, psi = 0 {where}"


@dataclass(frozen=True)
class MassiveGreen(DirichletGreen):
    """Massive Green kernel: psi ~ N(0, (beta (L + mass^2))^-1) with the Dirichlet Laplacian L and a mass >= 0.

    Correlations decay within about 1/mass sites. The other arguments are those of DirichletGreen.
    """

    mass: float = field(default=1.0, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("mass", self.mass, 0)

    def _eigenvalues(self, eigen_H: Tensor, eigen_W: Tensor) -> Tensor:
        return super()._eigenvalues(eigen_H, eigen_W) + self.mass**2

    def _formula(self) -> str:
        return f"massive Green: Cov psi = (beta (L + mass^2))^-1 {self._pinned_words()}"


@dataclass(frozen=True)
class PeriodicGreen(Kernel):
    """Periodic Green kernel: psi ~ N(0, (beta L)^+) with the Laplacian L of the torus and without its zero mode.

    Every field therefore sums to 0. On a 1x1 grid, whose only mode is the zero mode, psi is 0.
    """

    homogeneous = True

    def _green(self, height: int, width: int) -> Spectrum:
        (basis_HH, eigen_H), (basis_WW, eigen_W) = hartley_basis(height), hartley_basis(width)
        eigen_HW = eigen_H[:, None] + eigen_W[None, :]
        eigen_HW[0, 0] = math.inf  # gives the zero mode the amplitude 0
        return Spectrum(basis_HH, basis_WW, eigen_HW.rsqrt())

    def _formula(self) -> str:
        return "periodic Green: Cov psi = (beta L)^+ with the Laplacian L of the torus, without its constant mode"


KERNELS: dict[str, type[Kernel]] = {
    "dirichlet_green": DirichletGreen,
    "white": White,
    "massive_green": MassiveGreen,
    "periodic_green": PeriodicGreen,
}


@lru_cache(maxsize=256)
@torch.inference_mode(False)  # cached tensors are used again after an evaluation in inference mode, also by training
def _spectrum(kernel: Kernel, height: int, width: int) -> Spectrum:
    """The spectrum of Cov psi, after beta or match_variance: float64, on the CPU."""
    if min(height, width) < 1:
        raise ValueError(f"a grid must be at least 1x1, got {height}x{width}")
    basis_HH, basis_WW, amplitude_HW = kernel._green(height, width)
    if kernel.match_variance:
        # As the bases are orthonormal, the variances of the free sites add up to the sum of amplitude^2.
        power = amplitude_HW.square().mean()
        amplitude_HW = amplitude_HW / power.sqrt() if power > 0 else amplitude_HW
    else:
        amplitude_HW = amplitude_HW / math.sqrt(kernel._beta(height, width))
    return Spectrum(basis_HH, basis_WW, amplitude_HW)


@lru_cache(maxsize=256)
@torch.inference_mode(False)
def _on_device(
    kernel: Kernel, height: int, width: int, device: torch.device, dtype: torch.dtype
) -> tuple[Spectrum, Tensor | None]:
    """The spectrum in `dtype` on `device`, and on a small grid the dense root (modes x sites) for sampling in one product."""
    spectrum = _spectrum(kernel, height, width)
    root_NN = _dense_root(spectrum).to(device, dtype) if spectrum.amplitude_HW.numel() <= DENSE_SITES else None
    return Spectrum(*(matrix.to(device, dtype) for matrix in spectrum)), root_NN


@lru_cache(maxsize=256)
@torch.inference_mode(False)
def variance_on(kernel: Kernel, height: int, width: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """`kernel.variance(height, width)` (H, W) in `dtype` on `device`, cached."""
    return kernel.variance(height, width).to(device, dtype)
