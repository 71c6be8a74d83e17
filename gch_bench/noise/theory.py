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


def flip_probability(log_margin: Tensor | float, log_ratio_sd: Tensor | float, log_ratio_mean: Tensor | float = 0.0) -> Tensor:
    """Phi(-(m + mean) / s), the probability that log F(x)/F(y) + log xi(x)/xi(y) < 0: the gate reverses F(x) > F(y).

    Args:
        log_margin: m = log F(x) - log F(y) > 0.
        log_ratio_sd: s, the square root of `log_ratio_variance` at (x, y); > 0.
        log_ratio_mean: the mean of log xi(x)/xi(y), `log_ratio_mean` at (x, y); 0 for the sample-wise gate.

    Returns:
        float64, of the shape to which the arguments broadcast.
    """
    margin, sd, mean = (torch.as_tensor(each, dtype=torch.float64) for each in (log_margin, log_ratio_sd, log_ratio_mean))
    return torch.special.ndtr(-(margin + mean) / sd)


def edge_roughness(kernel: Kernel, height: int, width: int, gamma: float, normalization: str = "samplewise") -> float:
    """E sum of (log xi(x) - log xi(y))^2 over the edges of the map, for a gate with any kernel.

    It is the sum over neighbours x and y of `log_ratio_variance`, and for `normalization="wick"` also of the squares of
    `log_ratio_mean`. With boundary="inside" the pinned ring belongs to the map, and so do the edges to it. It takes two dense
    matrices (N, N).
    """
    second_NN = log_ratio_variance(kernel, height, width, gamma)
    second_NN = second_NN + log_ratio_mean(kernel, height, width, gamma, normalization).square()
    return float(sum_over_edges(second_NN, width))


def sum_over_edges(matrix_NN: Tensor, width: int) -> Tensor:
    """The sum of a matrix's elements (x, y) over the edges of a map with rows of `width` sites: (N, N) -> ()."""
    right_N = matrix_NN.diagonal(1).clone()  # x and x + 1 in row-major order
    right_N[width - 1 :: width] = 0  # the last site of a row and the first of the next one are no neighbours
    return right_N.sum() + matrix_NN.diagonal(width).sum()


def roughness(kernel: DirichletGreen, height: int, width: int, gamma: float) -> float:
    """`edge_roughness` of the sample-wise gate with the Dirichlet Green kernel on a free map, by its closed form.

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
    to_the_ring = gamma**2 * float((boundary_HW * kernel.variance(height, width)).sum())
    return roughness_with_boundary(kernel, height, width, gamma) - to_the_ring


def roughness_with_boundary(kernel: DirichletGreen, height: int, width: int, gamma: float) -> float:
    """E sum of gamma^2 (psi(x) - psi(y))^2 over all edges that touch a free site: exactly |U| gamma^2 / beta.

    The edges to the pinned ring, where psi = 0, are included. |U| is the number of free sites: the whole map with
    boundary="outside"; the inner (H-2) x (W-2) sites with boundary="inside", where it equals `edge_roughness` of the map.

    Raises:
        ValueError: the kernel is not the Dirichlet Green kernel, for which alone the formula holds.
    """
    if type(kernel) is not DirichletGreen:
        raise ValueError(f"roughness_with_boundary needs DirichletGreen, got {kernel}")
    variance_HW = kernel.variance(height, width)
    unit_HW = DirichletGreen(boundary=kernel.boundary).variance(height, width)
    # Var psi(x) = G_xx / beta. `scale` is 1 / beta, or the factor that takes its place with energy or match_variance.
    scale = float(variance_HW.max() / unit_HW.max())
    sites = (height - 2 * kernel.pinned) * (width - 2 * kernel.pinned)
    return gamma**2 * scale * sites


def coherence(features_NC: Tensor) -> float:
    """||mean_x F(x)||^2 / mean_x ||F(x)||^2 of features F (N sites, C channels): 1 if all sites agree, 0 if their mean is 0."""
    return float(features_NC.mean(0).square().sum() / features_NC.square().sum(1).mean())


def pooled_distortion(gate_covariance_NN: Tensor, features_NC: Tensor | None = None) -> float:
    """E ||mean_x F~ - mean_x F||^2 / ||mean_x F||^2 for a map F whose sites are multiplied by a gate of mean one.

    F~ is the map with noise. The value is the mean over x and y of Cov(xi(x), xi(y)) <F(x), F(y)> / ||mean F||^2. For an iid
    mask it is p / (1-p) / (N kappa), where kappa is the `coherence` of the map.

    Args:
        gate_covariance_NN: Cov(xi(x), xi(y)), (N, N).
        features_NC: F, (N sites, C channels); default: a map that is constant over the sites.
    """
    if features_NC is None:
        return float(gate_covariance_NN.mean())
    products_NN = features_NC @ features_NC.T
    return float((gate_covariance_NN * products_NN).mean() / products_NN.mean())


def batchnorm_inflation(gate_variance: float, mean: float, variance: float) -> float:
    """The factor by which a mean-one gate inflates the variance of a channel over images and sites: what a BatchNorm records.

    It is 1 + (1 + mean^2 / variance) Var xi for features that are independent of the gate, with the mean and the variance that
    the channel has without noise at every site. A law with other variances at other sites enters through its mean over sites.
    """
    return 1 + (1 + mean**2 / variance) * gate_variance


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
