"""Numbers of a gate xi on a map: bias, share of values that are not positive, neighbours' correlation, and variances.

Each is a closed form where one is known, and else the mean over seeded draws with its standard error. For additive noise xi is
1 + the noise on a map of ones, as in `strength.draw_gates`. Noise inside an attention has no gate on a map, and no numbers.
Shapes: H x W map, N = H*W sites, B draws.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from gch_bench.noise import theory
from gch_bench.noise.kernels import Kernel
from gch_bench.noise.mechanism import FieldNoise, Mechanism
from gch_bench.noise.strength import FEWEST_DRAWS, VALUES
from gch_bench.rng import generator, own_draws

GROUPS = 16  # groups of independent draws, between which the standard errors are computed
VALUES_DRAWN = 4 * VALUES  # site values in all the groups: 171,184 draws of a 7x7 map


class Number(NamedTuple):
    """A number of a mechanism on one map."""

    value: float
    error: float | None = None  # its standard error if it comes from seeded draws; None: a closed form

    @property
    def text(self) -> str:
        return f"{self.value:.4g}" + ("" if self.error is None else f" +- {self.error:.1g}")

    @property
    def is_zero(self) -> bool:
        """Whether it is 0, or, if it was measured, differs from 0 by at most 5 standard errors."""
        return abs(self.value) <= 5 * (self.error or 0.0)


class GateNumbers(NamedTuple):
    """The numbers of a mechanism on one map. None: there is no such number."""

    bias: Number | None  # the largest |E xi(x) - 1| over the sites
    nonpositive: Number | None  # the probability of xi(x) <= 0, averaged over the sites
    neighbours: Number | None  # sum of Cov(xi(x), xi(y)) over the edges of the map / sum of sqrt(Var xi(x) Var xi(y))
    gate_variance: Number | None  # Var xi(x), averaged over the sites
    log_variance: Number | None  # Var log xi(x), averaged over the sites; for positive gates that multiply


class Sample:
    """Seeded draws of a mechanism's gate, made when they are first needed. The global random state is kept."""

    def __init__(self, mechanism: Mechanism, height: int, width: int) -> None:
        self.mechanism, self.height, self.width = mechanism, height, width
        self.draws = max(VALUES_DRAWN // (height * width), FEWEST_DRAWS) // GROUPS  # of a group

    @cached_property
    def groups(self) -> list[Tensor]:
        """GROUPS tensors (B, H, W), float64."""
        with torch.no_grad(), own_draws(torch.device("cpu"), "moments of a gate"):
            ones = torch.ones(self.draws, 1, self.height, self.width)
            return [self.mechanism.apply_noise(ones)[:, 0].double() for _ in range(GROUPS)]

    def mean(self, statistic: Callable[[Tensor], Tensor]) -> Number:
        """The mean over the groups of a statistic of the draws (B, H, W) -> (), with its standard error."""
        return _mean(statistic, self.groups)

    def fields(self, kernel: Kernel) -> Iterator[Tensor]:
        """As many draws of the kernel's field: GROUPS tensors (B, H, W), float64."""
        random = generator("fields of a gate")
        for _ in range(GROUPS):
            yield kernel.sample(self.draws, self.height, self.width, random, dtype=torch.float64)

    def bias(self) -> Number:
        site = int((torch.stack([group_BHW.mean(0) for group_BHW in self.groups]).mean(0) - 1).abs().argmax())
        found = self.mean(lambda group_BHW: group_BHW.mean(0).flatten()[site] - 1)
        return Number(abs(found.value), found.error)


def _mean(statistic: Callable[[Tensor], Tensor], groups: Iterable[Tensor]) -> Number:
    values_G = torch.stack([statistic(group_BHW) for group_BHW in groups])
    return Number(float(values_G.mean()), float(values_G.std()) / math.sqrt(len(values_G)))


def gate_numbers(mechanism: Mechanism, height: int, width: int) -> GateNumbers:
    """The numbers of `mechanism` on a height x width map.

    Raises:
        ValueError: the map is too small for the mechanism's kernel.
    """
    if mechanism.place == "attention":
        return GateNumbers(None, None, None, None, None)
    sample, law = Sample(mechanism, height, width), mechanism.law
    mean_N, share = law.gate_mean(height, width), law.nonpositive_share(height, width)
    return GateNumbers(
        bias=sample.bias() if mean_N is None else Number(float((mean_N - 1).abs().max())),
        nonpositive=sample.mean(lambda group_BHW: (group_BHW <= 0).double().mean()) if share is None else Number(share),
        neighbours=_neighbours(law, sample),
        gate_variance=gate_variance(mechanism, height, width, sample),
        log_variance=log_variance(mechanism, height, width, sample),
    )


def gate_variance(mechanism: Mechanism, height: int, width: int, sample: Sample | None = None) -> Number | None:
    """Var xi(x), averaged over the sites; None for noise inside an attention, which has no gate on a map."""
    if mechanism.place == "attention":
        return None
    exact_N = mechanism.law.gate_variance(height, width)
    if exact_N is not None:
        return Number(float(exact_N.mean()))
    return (sample or Sample(mechanism, height, width)).mean(lambda group_BHW: group_BHW.var(0).mean())


def log_variance(mechanism: Mechanism, height: int, width: int, sample: Sample | None = None) -> Number | None:
    """Var log xi(x), averaged over the sites; None unless the noise multiplies by a positive gate."""
    if not mechanism.positive:
        return None
    exact_N = mechanism.log_variance(height, width)
    if exact_N is not None:
        return Number(float(exact_N.mean()))
    sample = sample or Sample(mechanism, height, width)
    if not isinstance(mechanism, FieldNoise):
        return sample.mean(lambda group_BHW: group_BHW.log().var(0).mean())
    log_transform = mechanism.log_transform
    return _mean(lambda psi_BHW: log_transform(psi_BHW).var(0).mean(), sample.fields(mechanism.kernel))


def _neighbours(law: Mechanism, sample: Sample) -> Number | None:
    """The correlation of xi at neighbouring sites; None on one site, and for a gate that is always one."""
    height, width = sample.height, sample.width
    if height * width == 1 or law.is_off:
        return None
    moments = law.moments(height, width)
    if moments is not None:
        covariance_NN = moments.covariance_NN
        variance_HW = covariance_NN.diagonal().view(height, width)
        over = _edges(variance_HW.sqrt())
        return Number(float(theory.sum_over_edges(covariance_NN, width) / over)) if over > 0 else None
    found = sample.mean(_correlation)
    return found if math.isfinite(found.value) else None


def _correlation(gates_BHW: Tensor) -> Tensor:
    centred_BHW = gates_BHW - gates_BHW.mean(0)
    return _edges(centred_BHW) / (len(gates_BHW) * _edges(centred_BHW.square().mean(0).sqrt()))


def _edges(values: Tensor) -> Tensor:
    """The sum of the products of neighbouring values (..., H, W) over all edges of the map, and over the draws."""
    return (values[..., 1:] * values[..., :-1]).sum() + (values[..., 1:, :] * values[..., :-1, :]).sum()
