"""Closed forms of what a gate xi does to features: log-ratios, order flips, roughness, variance and pooled distortion.

Tests and reports compare measured values with them. psi is the Gaussian field of the gate, gamma its strength, Phi the standard
normal CDF. Shapes: N = H*W sites in row-major order. Source: VKD (arXiv 2603.17365).
"""

import torch
from torch import Tensor

from gch_bench.noise.kernels import DirichletGreen, Kernel


def log_ratio_mean(kernel: Kernel, height: int, width: int, gamma: float, normalization: str = "samplewise") -> Tensor:
    """E log(xi(x) / xi(y)): (N, N), float64.

    It is 0 for the sample-wise gate, and -gamma^2 (Var psi(x) - Var psi(y)) / 2 for `normalization="wick"`.
    """
    variance_N = kernel.variance(height, width).flatten()
    wick_NN = -0.5 * gamma**2 * (variance_N[:, None] - variance_N[None, :])
    return wick_NN if normalization == "wick" else torch.zeros_like(wick_NN)


def log_ratio_variance(kernel: Kernel, height: int, width: int, gamma: float) -> Tensor:
    """s^2 = Var log(xi(x) / xi(y)) = gamma^2 Var(psi(x) - psi(y)): (N, N), float64.

    Without `match_variance` it equals gamma^2 R(x, y) / beta, where R is `kernel.resistance`.
    """
    covariance_NN = kernel.covariance(height, width)
    variance_N = covariance_NN.diagonal()
    return gamma**2 * (variance_N[:, None] + variance_N[None, :] - 2 * covariance_NN)


def flip_probability(log_margin: Tensor | float, log_ratio_sd: Tensor | float) -> Tensor:
    """Probability Phi(-m / s) that a sample-wise gate flips the order of two positive features.

    Args:
        log_margin: m = log F(x) - log F(y) > 0.
        log_ratio_sd: s, the square root of `log_ratio_variance` at (x, y).

    Returns:
        float64, of the shape to which the arguments broadcast.
    """
    ratio = torch.as_tensor(log_margin, dtype=torch.float64) / torch.as_tensor(log_ratio_sd, dtype=torch.float64)
    return torch.special.ndtr(-ratio)


def roughness(kernel: DirichletGreen, height: int, width: int, gamma: float) -> float:
    """E sum of (log xi(x) - log xi(y))^2 over the edges of the map, for the sample-wise gate.

    It equals (gamma^2 / beta) (|U| - sum_x b(x) G_xx) by Foster's theorem, where |U| is the number of sites and b(x) the number
    of edges from site x to the pinned ring around the map.

    Raises:
        ValueError: the kernel is not the Dirichlet Green kernel with boundary="outside", for which alone the formula holds.
    """
    if type(kernel) is not DirichletGreen or kernel.boundary != "outside":
        raise ValueError(f'roughness needs DirichletGreen(boundary="outside"), got {kernel}')
    boundary_HW = torch.zeros(height, width, dtype=torch.float64)
    for edge in (boundary_HW[0], boundary_HW[-1], boundary_HW[:, 0], boundary_HW[:, -1]):
        edge += 1
    # Var psi(x) = G_xx / beta. `scale` is 1 / beta, or with match_variance the factor that takes its place.
    scale = kernel.variance(height, width)[0, 0] / DirichletGreen().variance(height, width)[0, 0]
    return float(gamma**2 * (scale * height * width - (boundary_HW * kernel.variance(height, width)).sum()))


def pooled_distortion(gate_covariance_NN: Tensor) -> float:
    """E ||mean_x F~ - mean_x F||^2 / ||mean_x F||^2 for a map F that is constant over the sites.

    F~ is the map with noise. The value is the mean over x and y of Cov(xi(x), xi(y)), the matrix (N, N) that is given.
    """
    return float(gate_covariance_NN.mean())


def wick_gate_variance(kernel: Kernel, height: int, width: int, gamma: float) -> Tensor:
    """Var xi(x) = exp(gamma^2 Var psi(x)) - 1 of the Wick gate: (H, W), float64."""
    return torch.expm1(gamma**2 * kernel.variance(height, width))


def wick_gate_covariance(kernel: Kernel, height: int, width: int, gamma: float) -> Tensor:
    """Cov(xi(x), xi(y)) = exp(gamma^2 C(x, y)) - 1 of the Wick gate: (N, N), float64."""
    return torch.expm1(gamma**2 * kernel.covariance(height, width))


def iid_mask_distortion(p: float) -> float:
    """Relative L2 distortion sqrt(p / (1-p)) of a map that is constant over the sites, by an iid keep-mask with drop rate p.

    The kept sites are scaled by 1 / (1-p), so the square of the distortion is also the variance of the gate.
    """
    return (p / (1 - p)) ** 0.5


def dropblock_seed_rate(p: float, block_size: int, height: int, width: int) -> float:
    """The probability with which each site of the map is the seed of a block of DropBlock, as in timm's `drop_block_2d`.

    It is p N / (k_H k_W (H - k_H + 1) (W - k_W + 1)) with the block's sides k_H = min(block_size, H) and k_W likewise.
    """
    rows, columns = min(block_size, height), min(block_size, width)
    return p * height * width / (rows * columns) / ((height - rows + 1) * (width - columns + 1))


def dropblock_kept(p: float, block_size: int, height: int, width: int) -> Tensor:
    """The probability (1 - seed rate)^n(x) that DropBlock keeps site x: (H, W), float64.

    n(x) is the number of sites whose blocks cover x; it is smaller at the map's edge.
    """
    rows_H, columns_W = (_block_covers(block_size, size).sum(1) for size in (height, width))
    return (1 - dropblock_seed_rate(p, block_size, height, width)) ** torch.outer(rows_H, columns_W)


def dropblock_covariance(p: float, block_size: int, height: int, width: int) -> Tensor:
    """Cov(xi(x), xi(y)) of DropBlock's mask, whose kept sites are scaled by 1 / mean of `dropblock_kept`: (N, N), float64.

    Both sites are kept if no site is a seed whose block covers x or y.
    """
    rows_HH, columns_WW = (_block_covers(block_size, size) for size in (height, width))
    both_NN = torch.kron(rows_HH @ rows_HH.T, columns_WW @ columns_WW.T)  # how many blocks cover x and y
    number_N = both_NN.diagonal()
    either_NN = number_N[:, None] + number_N[None, :] - both_NN
    kept_N = dropblock_kept(p, block_size, height, width).flatten()
    both_kept_NN = (1 - dropblock_seed_rate(p, block_size, height, width)) ** either_NN
    return (both_kept_NN - torch.outer(kept_N, kept_N)) / kept_N.mean() ** 2


def _block_covers(block_size: int, size: int) -> Tensor:
    """On an axis of `size` sites: 1 where a block seeded at the second site covers the first, else 0. (size, size), float64."""
    side = min(block_size, size)
    offset = torch.arange(size)[None, :] - torch.arange(size)[:, None]
    return ((-((side - 1) // 2) <= offset) & (offset <= side // 2)).double()
