"""The mean and the covariance of a mechanism's gate on a map, where closed forms are known, and what follows from them.

Additive noise is written as a gate, too: xi - 1 is what is added, in its own units. Shapes: N = H*W sites in row-major order,
C channels. Everything is float64 on the CPU.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from gch_bench.noise import theory
from gch_bench.noise.dropout import DropBlock, Dropout, SpatialDropout
from gch_bench.noise.gates import Gate, Gaussian, HardMask
from gch_bench.noise.injection import Additive, TokenRemoval
from gch_bench.noise.kernels import PeriodicGreen, White
from gch_bench.noise.laws import sites_kept
from gch_bench.noise.mechanism import DENSE_COVARIANCE_SITES, Mechanism


class Moments(NamedTuple):
    """Mean and covariance of the gate of one channel."""

    mean_N: Tensor  # E xi(x)
    covariance_NN: Tensor  # Cov(xi(x), xi(y))


def gate_moments(mechanism: Mechanism, height: int, width: int) -> Moments | None:
    """The moments of the gate on a height x width map.

    None where no closed form is known (the sample-wise gate, hard masks whose sites are not all alike), where there is no gate
    on a map (dropped keys), and on maps of more than DENSE_COVARIANCE_SITES sites.
    """
    sites = height * width
    if sites > DENSE_COVARIANCE_SITES or mechanism.place == "attention":
        return None
    ones_N = torch.ones(sites, dtype=torch.float64)
    if isinstance(mechanism, Additive):
        return gate_moments(mechanism.gate, height, width)
    if isinstance(mechanism, TokenRemoval):
        return gate_moments(mechanism.mask, height, width)
    if isinstance(mechanism, Gate) and mechanism.normalization == "wick":
        return Moments(ones_N, theory.wick_gate_covariance(mechanism.kernel, height, width, mechanism.gamma))
    if isinstance(mechanism, Gaussian):
        return Moments(ones_N, mechanism.sigma**2 * mechanism.kernel.covariance(height, width))
    if isinstance(mechanism, HardMask) and isinstance(mechanism.kernel, White):
        return Moments(ones_N, _exact_share_covariance(sites, sites_kept(sites, mechanism.p)))
    if isinstance(mechanism, SpatialDropout):  # one number per channel, or per sample
        return Moments(ones_N, torch.full((sites, sites), theory.iid_mask_distortion(mechanism.p) ** 2, dtype=torch.float64))
    if isinstance(mechanism, Dropout):
        return Moments(ones_N, theory.iid_mask_distortion(mechanism.p) ** 2 * torch.eye(sites, dtype=torch.float64))
    if isinstance(mechanism, DropBlock):
        kept_N = theory.dropblock_kept(mechanism.p, mechanism.block_size, height, width).flatten()
        covariance_NN = theory.dropblock_covariance(mechanism.p, mechanism.block_size, height, width)
        return Moments(kept_N / kept_N.mean(), covariance_NN)
    return None


def _exact_share_covariance(sites: int, kept: int) -> Tensor:
    """Of a mask that keeps `kept` sites, drawn without replacement, and scales them by sites / kept: (N, N)."""
    variance = sites / kept - 1
    covariance_NN = torch.full((sites, sites), -variance / max(sites - 1, 1), dtype=torch.float64)
    return covariance_NN.fill_diagonal_(variance)


def drop_probability(mechanism: Mechanism, height: int, width: int) -> Tensor | None:
    """The probability that a mask sets a site to zero: (N,). None for noise that is no mask, or where it is not known."""
    sites = height * width
    if isinstance(mechanism, TokenRemoval):
        mechanism = mechanism.mask
    if isinstance(mechanism, Dropout):
        return torch.full((sites,), mechanism.p, dtype=torch.float64)
    if isinstance(mechanism, DropBlock):
        return 1 - theory.dropblock_kept(mechanism.p, mechanism.block_size, height, width).flatten()
    if isinstance(mechanism, HardMask) and isinstance(mechanism.kernel, White | PeriodicGreen):
        return torch.full((sites,), 1 - sites_kept(sites, mechanism.p) / sites, dtype=torch.float64)
    return None


def both_kept_probability(mechanism: Mechanism, height: int, width: int) -> Tensor | None:
    """The probability that a mask keeps sites x and y: (N, N). None for noise that is no mask, or where it is not known."""
    moments, dropped_N = gate_moments(mechanism, height, width), drop_probability(mechanism, height, width)
    if moments is None or dropped_N is None:
        return None
    scale = moments.mean_N[0] / (1 - dropped_N[0])  # the value of a kept site, which is the same at all of them
    return (moments.covariance_NN + torch.outer(moments.mean_N, moments.mean_N)) / scale**2


class Distortion(NamedTuple):
    """Expected squared distortions of a map F (N, C) by a gate, relative to the same quantity of F without noise."""

    whole: float  # E ||F~ - F||^2 / ||F||^2
    pooled: float  # E ||mean_x F~ - mean_x F||^2 / ||mean_x F||^2
    contrast: float  # E sum_x ||F~(x) - mean F~||^2 / sum_x ||F(x) - mean F||^2
    second_C: Tensor  # E mean_x F~(c, x)^2 of each channel, (C,)


def distortion(mechanism: Mechanism, moments: Moments, features_NC: Tensor) -> Distortion:
    """What a mechanism with these moments does to a map, exactly.

    The channels' gates may be the same or independent: each channel enters by its own squared norm. Sites with a mean gate
    other than one contribute their bias, too.
    """
    mean_N, covariance_NN = moments
    features_NC = features_NC.double()
    pooled_C, power = features_NC.mean(0), features_NC.square().sum()
    contrast = (features_NC - pooled_C).square().sum()
    sites = len(features_NC)
    if isinstance(mechanism, Additive):
        unit_C = _units(mechanism, features_NC)
        added = covariance_NN.trace() * unit_C.square().sum()
        pooled = covariance_NN.mean() * unit_C.square().sum()
        inner = contrast + added - sites * pooled
        second_C = features_NC.square().mean(0) + covariance_NN.trace() / sites * unit_C.square()
        return _relative(added / power, pooled / pooled_C.square().sum(), inner / contrast, second_C)
    products_NN = features_NC @ features_NC.T
    second_NN = covariance_NN + torch.outer(mean_N, mean_N)
    bias_N = mean_N - 1
    moved = ((covariance_NN.diagonal() + bias_N.square()) * products_NN.diagonal()).sum()
    pooled = ((covariance_NN + torch.outer(bias_N, bias_N)) * products_NN).mean()
    inner = (second_NN.diagonal() * products_NN.diagonal()).sum() - sites * (second_NN * products_NN).mean()
    second_C = (second_NN.diagonal()[:, None] * features_NC.square()).mean(0)
    return _relative(moved / power, pooled / pooled_C.square().sum(), inner / contrast, second_C)


def _relative(whole: Tensor, pooled: Tensor, contrast: Tensor, second_C: Tensor) -> Distortion:
    return Distortion(float(whole), float(pooled), float(contrast), second_C)


def _units(mechanism: Additive, features_NC: Tensor) -> Tensor:
    """What the added noise of each channel is multiplied by, (C,)."""
    if not mechanism.relative:
        return torch.ones(features_NC.shape[1], dtype=torch.float64)
    squares_C = features_NC.square().mean(0)
    return (squares_C if mechanism.channel_rms else squares_C.mean().expand_as(squares_C)).sqrt()
