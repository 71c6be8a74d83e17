"""What follows from the mean and the covariance of a mechanism's gate (`Mechanism.moments`) for a map.

Additive noise is written as a gate, too: xi - 1 is what is added, in its own units. Shapes: N = H*W sites in row-major order,
C channels. Everything is float64 on the CPU.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from gch_bench.noise.injection import Additive
from gch_bench.noise.mechanism import Mechanism, Moments


def both_kept_probability(mechanism: Mechanism, height: int, width: int) -> Tensor | None:
    """The probability that a mask keeps sites x and y: (N, N). None for noise that is no mask, or where it is not known."""
    moments, dropped_N = mechanism.moments(height, width), mechanism.drop_probability(height, width)
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
        unit_C = mechanism.units(features_NC.T[None, :, :, None]).flatten().expand(features_NC.shape[1])
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
