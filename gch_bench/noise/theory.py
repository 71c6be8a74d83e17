"""Closed forms of the exact statements about gates (theory 1.4), to test against and to report.

Shapes: N = H*W row-major sites. Source: VKD (arXiv 2603.17365); Phi is the standard normal CDF.
"""

import torch
from torch import Tensor

from gch_bench.noise.kernels import DirichletGreen, Kernel


def log_ratio_mean(kernel: Kernel, height: int, width: int, gamma: float, normalization: str = "samplewise") -> Tensor:
    """E log(xi(x) / xi(y)): (N, N), float64. Sample-wise gate: 0. Wick gate: -gamma^2 (Var psi(x) - Var psi(y)) / 2."""
    variance_N = kernel.variance(height, width).flatten()
    wick_NN = -0.5 * gamma**2 * (variance_N[:, None] - variance_N[None, :])
    return wick_NN if normalization == "wick" else torch.zeros_like(wick_NN)


def log_ratio_variance(kernel: Kernel, height: int, width: int, gamma: float) -> Tensor:
    """s^2 = Var log(xi(x) / xi(y)) = gamma^2 Var(psi(x) - psi(y)): (N, N), float64; gamma^2 R / beta when unmatched."""
    covariance_NN = kernel.covariance(height, width)
    variance_N = covariance_NN.diagonal()
    return gamma**2 * (variance_N[:, None] + variance_N[None, :] - 2 * covariance_NN)


def flip_probability(log_margin: Tensor | float, log_ratio_sd: Tensor | float) -> Tensor:
    """P(the order of two positive features flips) = Phi(-m / s): log-margin m > 0, log-ratio sd s (sample-wise gate)."""
    ratio = torch.as_tensor(log_margin, dtype=torch.float64) / torch.as_tensor(log_ratio_sd, dtype=torch.float64)
    return torch.special.ndtr(-ratio)


def roughness(kernel: DirichletGreen, height: int, width: int, gamma: float) -> float:
    """E sum over edges inside U of (log xi(x) - log xi(y))^2 of the sample-wise gate, free boundary outside.

    = (gamma^2 / beta) (|U| - sum_x b(x) G_xx), b(x) the number of boundary edges at x (Foster).

    Raises:
        ValueError: the kernel is not the Dirichlet Green kernel with boundary="outside" (the identity is stated for it).
    """
    if type(kernel) is not DirichletGreen or kernel.boundary != "outside":
        raise ValueError(f'roughness needs DirichletGreen(boundary="outside"), got {kernel}')
    boundary_HW = torch.zeros(height, width, dtype=torch.float64)
    for edge in (boundary_HW[0], boundary_HW[-1], boundary_HW[:, 0], boundary_HW[:, -1]):
        edge += 1
    # sum_x b Var = (1/beta) sum_x b G_xx; the scale 1/beta of |U| follows from <psi, L psi> having mean |U| / beta.
    scale = kernel.variance(height, width)[0, 0] / DirichletGreen().variance(height, width)[0, 0]
    return float(gamma**2 * (scale * height * width - (boundary_HW * kernel.variance(height, width)).sum()))


def pooled_distortion(gate_covariance_NN: Tensor) -> float:
    """E ||mean_x F~ - mean_x F||^2 / ||mean_x F||^2 on a constant map = (1/N^2) sum_xy Cov(xi(x), xi(y)); (N, N) -> float."""
    return float(gate_covariance_NN.mean())


def wick_gate_variance(kernel: Kernel, height: int, width: int, gamma: float) -> Tensor:
    """Var xi(x) = exp(gamma^2 Var psi(x)) - 1 of the Wick gate: (H, W), float64."""
    return torch.expm1(gamma**2 * kernel.variance(height, width))


def wick_gate_covariance(kernel: Kernel, height: int, width: int, gamma: float) -> Tensor:
    """Cov(xi(x), xi(y)) = exp(gamma^2 C(x, y)) - 1 of the Wick gate: (N, N), float64."""
    return torch.expm1(gamma**2 * kernel.covariance(height, width))


def iid_mask_distortion(p: float) -> float:
    """Relative L2 distortion sqrt(p / (1-p)) of an iid keep-mask with inverted scaling on a coherent map (theory 1.4.4)."""
    return (p / (1 - p)) ** 0.5
