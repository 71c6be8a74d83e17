"""Gates made from a Gaussian field: sample-wise and Wick-normalised exponentials (GCh), Gaussian gates, and hard masks.

They multiply the features, F~(c, x) = F(c, x) xi(x), unless injection.py adds them. Source: VKD (arXiv 2603.17365).
"""

import math

import torch
from torch import Tensor

from gch_bench.checks import check_choice, check_number, check_probability
from gch_bench.errors import FieldError
from gch_bench.noise import theory
from gch_bench.noise.kernels import DirichletGreen, Kernel, variance_on
from gch_bench.noise.laws import hard_mask, samplewise_gate, sites_kept, wick_gate
from gch_bench.noise.mechanism import DENSE_COVARIANCE_SITES, MATCH, FieldNoise, LogRatio, Parameter

NORMALIZATIONS = ("samplewise", "wick")


def _ones(height: int, width: int) -> Tensor:
    return torch.ones(height * width, dtype=torch.float64)


class Gate(FieldNoise):
    """A positive gate xi of mean one that multiplies the features: F~(c, x) = F(c, x) xi(x).

    Args:
        kernel: the covariance of psi.
        gamma: strength, >= 0 (0: identity).
        normalization: "samplewise" (spatial mean one in every sample) or "wick" (mean one at every site).
        per_channel: an independent gate for every channel; default: one gate per sample, shared by all channels.
    """

    strength, positive, drops = "gamma", True, False

    def __init__(
        self, kernel: Kernel, gamma: float = 1.0, normalization: str = "samplewise", per_channel: bool = False
    ) -> None:
        super().__init__(kernel, per_channel)
        check_number("gamma", gamma, 0)
        check_choice("normalization", normalization, NORMALIZATIONS)
        self.gamma = gamma
        self.normalization = normalization

    def transform(self, psi_BHW: Tensor) -> Tensor:
        if self.normalization == "samplewise":
            return samplewise_gate(psi_BHW, self.gamma)
        _, height, width = psi_BHW.shape
        return wick_gate(psi_BHW, variance_on(self.kernel, height, width, psi_BHW.device, psi_BHW.dtype), self.gamma)

    def log_transform(self, psi_BHW: Tensor) -> Tensor:  # no gamma makes it infinite
        if self.normalization == "samplewise":
            return (self.gamma * psi_BHW.flatten(1)).log_softmax(1).view_as(psi_BHW)
        return self.gamma * psi_BHW

    @property
    def mean_one_per_sample(self) -> bool:  # type: ignore[override]
        return self.normalization == "samplewise"

    def gate_mean(self, height: int, width: int) -> Tensor | None:
        known = not self.mean_one_per_sample or self.is_off or self.kernel.alike_sites(height, width)
        return _ones(height, width) if known else None

    def gate_variance(self, height: int, width: int) -> Tensor | None:
        if self.mean_one_per_sample:
            return None
        return theory.wick_gate_variance(self.kernel, height, width, self.gamma).flatten()

    def covariance(self, height: int, width: int) -> Tensor | None:
        return None if self.mean_one_per_sample else theory.wick_gate_covariance(self.kernel, height, width, self.gamma)

    def log_ratio(self, height: int, width: int) -> LogRatio | None:
        if height * width > DENSE_COVARIANCE_SITES:
            return None
        mean_NN = theory.log_ratio_mean(self.kernel, height, width, self.gamma, self.normalization)
        return LogRatio(mean_NN, theory.log_ratio_variance(self.kernel, height, width, self.gamma).clamp_min(0).sqrt())

    def roughness(self, height: int, width: int) -> float | None:
        kernel = self.kernel
        if height * width <= DENSE_COVARIANCE_SITES:
            return theory.edge_roughness(kernel, height, width, self.gamma, self.normalization)
        if not self.mean_one_per_sample or not isinstance(kernel, DirichletGreen):
            return None
        free = type(kernel) is DirichletGreen and not kernel.pinned
        return theory.roughness(kernel, height, width, self.gamma) if free else None

    def log_variance(self, height: int, width: int) -> Tensor | None:
        return None if self.mean_one_per_sample else self.gamma**2 * self.kernel.variance(height, width).flatten()

    def words(self, height: int, width: int) -> str:
        if self.mean_one_per_sample:
            return "sample-wise exponential of a Gaussian field: xi(x) = exp(gamma psi(x)) / mean over y of exp(gamma psi(y))"
        return "Wick exponential of a Gaussian field: xi(x) = exp(gamma psi(x) - gamma^2/2 Var psi(x))"

    def free_parameters(self, height: int, width: int, now: str) -> list[Parameter]:
        return [Parameter("gamma", self.gamma, f"{now}only gamma^2/beta acts; {MATCH}")]

    def extra_repr(self) -> str:
        return f"gamma={self.gamma:g}, {self.normalization}, {super().extra_repr()}"


class GaussianChaosNoise(Gate):
    """Gaussian Chaos Noise (GCh): a positive, mean-one, spatially correlated multiplicative gate.

    Features (B, C, H, W) -> the same shape; the identity in eval mode. The method
    `gate(batch, height, width, generator=None)` returns the gates alone, (batch, height, width).

    Args:
        gamma: strength, >= 0.
        beta: inverse temperature of psi ~ N(0, (beta L)^-1), > 0.
        boundary: where psi is pinned to 0, "outside" or "inside" (see DirichletGreen).
        normalization: "samplewise" (default; the gate used in practice) or "wick" (see Gate).

    Raises:
        ValueError: an argument is out of range, or a map is smaller than 3x3 with boundary="inside".

    Source: VKD (arXiv 2603.17365). A patent application on GCh is in preparation (see the README's section on the licence).
    """

    def __init__(
        self, gamma: float = 1.0, beta: float = 1.0, boundary: str = "outside", normalization: str = "samplewise"
    ) -> None:
        super().__init__(DirichletGreen(beta, boundary), gamma, normalization)


class HardMask(FieldNoise):
    """A mask that keeps the share 1 - p of the sites, those with the largest psi, and drops the others.

    The kept sites are scaled so that the spatial mean of the mask is one in every sample (see `laws.hard_mask`).
    """

    strength, strength_in_steps, drops, mean_one_per_sample = "p", True, True, True

    def __init__(self, kernel: Kernel, p: float = 0.1, per_channel: bool = False) -> None:
        super().__init__(kernel, per_channel)
        check_probability("p", p, below_one=True)
        self.p = p

    def transform(self, psi_BHW: Tensor) -> Tensor:
        return hard_mask(psi_BHW, self.p)

    def gate_mean(self, height: int, width: int) -> Tensor | None:
        known = self.drop_rate(height, width) == 0 or self.kernel.alike_sites(height, width)
        return _ones(height, width) if known else None

    def gate_variance(self, height: int, width: int) -> Tensor | None:
        dropped_N = self.drop_probability(height, width)
        return None if dropped_N is None else dropped_N / (1 - dropped_N)

    def correlation(self, sites: int) -> float | None:  # white fields: the sites are drawn without replacement
        return -1 / max(sites - 1, 1) if self.kernel.independent_sites else None

    def drop_probability(self, height: int, width: int) -> Tensor | None:
        alike = self.kernel.alike_sites(height, width)
        return self.drop_rate(height, width) * _ones(height, width) if alike else None

    def drop_rate(self, height: int, width: int) -> float:
        return 1 - sites_kept(height * width, self.p) / (height * width)

    def words(self, height: int, width: int) -> str:
        sites, kept = height * width, sites_kept(height * width, self.p)
        return (
            f"hard mask of a Gaussian field: xi(x) = {sites}/{kept} at the {kept} sites with the largest psi, 0 at the others"
        )

    def free_parameters(self, height: int, width: int, now: str) -> list[Parameter]:
        sites, kept = height * width, sites_kept(height * width, self.p)
        words = f"the number of kept sites, round((1-p) N) = {kept} of {sites}; {now}beta has no effect; {MATCH}"
        return [Parameter("p", self.p, words)]

    def extra_repr(self) -> str:
        return f"p={self.p:g}, {super().extra_repr()}"


class Gaussian(FieldNoise):
    """A Gaussian gate xi = 1 + sigma psi, which may be negative. Added to the features it is additive Gaussian noise.

    Args:
        kernel: the covariance of psi.
        sigma: strength, >= 0; default: 0.1, unless p is given.
        p: in place of sigma, for sigma = sqrt(p / (1 - p)): with a white kernel of beta = 1 the gate then has the variance of
            dropout with drop probability p (Gaussian dropout, Srivastava et al., JMLR 2014, section 10).
        per_channel: an independent field for every channel; default: one field per sample, shared by all channels.
    """

    gaussian, drops = True, False

    def __init__(self, kernel: Kernel, sigma: float | None = None, p: float | None = None, per_channel: bool = False) -> None:
        super().__init__(kernel, per_channel)
        if sigma is not None and p is not None:
            raise FieldError("p", f"replaces sigma: give one of them, got p={p:g} and sigma={sigma:g}")
        if p is not None:
            check_probability("p", p, below_one=True)
            sigma = theory.iid_mask_distortion(p)
        sigma = 0.1 if sigma is None else sigma
        check_number("sigma", sigma, 0)
        self.sigma = sigma
        self.p = p

    def transform(self, psi_BHW: Tensor) -> Tensor:
        return 1 + self.sigma * psi_BHW

    def deviation(self, psi_BHW: Tensor) -> Tensor:
        return self.sigma * psi_BHW

    @property
    def strength(self) -> str:  # type: ignore[override]
        return "sigma" if self.p is None else "p"

    @property
    def independent_sites(self) -> bool:  # type: ignore[override]
        return self.kernel.independent_sites

    def gate_mean(self, height: int, width: int) -> Tensor:
        return _ones(height, width)

    def gate_variance(self, height: int, width: int) -> Tensor:
        return self.sigma**2 * self.kernel.variance(height, width).flatten()

    def covariance(self, height: int, width: int) -> Tensor:
        return self.sigma**2 * self.kernel.covariance(height, width)

    def nonpositive_share(self, height: int, width: int) -> float:
        sd_N = self.gate_variance(height, width).sqrt()
        return float(torch.special.erfc(1 / (math.sqrt(2) * sd_N)).mean()) / 2  # Phi(-1 / sd), exact in the tail; sd 0: 0

    def words(self, height: int, width: int) -> str:
        return "Gaussian: xi(x) = 1 + sigma psi(x)" + ("" if self.p is None else ", sigma = sqrt(p/(1-p))")

    def free_parameters(self, height: int, width: int, now: str) -> list[Parameter]:
        of = "" if self.p is None else f", here by p = {self.p:g}: sigma = sqrt(p/(1-p))"
        return [Parameter("sigma", self.sigma, f"{now}only sigma^2/beta acts{of}; {MATCH}")]

    def extra_repr(self) -> str:
        return f"{f'sigma={self.sigma:g}' if self.p is None else f'p={self.p:g}'}, {super().extra_repr()}"
