"""Gates made from a Gaussian field: sample-wise and Wick-normalised exponentials (GCh), Gaussian gates, and hard masks.

They multiply the features, F~(c, x) = F(c, x) xi(x), unless injection.py adds them. Source: VKD (arXiv 2603.17365).
"""

from torch import Tensor

from gch_bench.checks import check_choice, check_number, check_probability
from gch_bench.errors import FieldError
from gch_bench.noise import theory
from gch_bench.noise.kernels import DirichletGreen, Kernel, PeriodicGreen, White, variance_on
from gch_bench.noise.laws import hard_mask, samplewise_gate, sites_kept, wick_gate
from gch_bench.noise.mechanism import DENSE_COVARIANCE_SITES, Expected, FieldNoise

NORMALIZATIONS = ("samplewise", "wick")


class Gate(FieldNoise):
    """A positive gate xi of mean one that multiplies the features: F~(c, x) = F(c, x) xi(x).

    Args:
        kernel: the covariance of psi.
        gamma: strength, >= 0 (0: identity).
        normalization: "samplewise" (spatial mean one in every sample) or "wick" (mean one at every site).
        per_channel: an independent gate for every channel; default: one gate per sample, shared by all channels.
    """

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

    @property
    def is_off(self) -> bool:
        return self.gamma == 0

    def expected(self, height: int, width: int) -> Expected:
        if self.normalization == "samplewise":
            return Expected(drop_rate=0.0, pooled_distortion=0.0)
        variance = float(theory.wick_gate_variance(self.kernel, height, width, self.gamma).mean())
        if height * width > DENSE_COVARIANCE_SITES:
            return Expected(drop_rate=0.0, gate_variance=variance)
        covariance_NN = theory.wick_gate_covariance(self.kernel, height, width, self.gamma)
        return Expected(0.0, 0.0, variance, theory.pooled_distortion(covariance_NN))

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

    def __init__(self, kernel: Kernel, p: float = 0.1, per_channel: bool = False) -> None:
        super().__init__(kernel, per_channel)
        check_probability("p", p, below_one=True)
        self.p = p

    def transform(self, psi_BHW: Tensor) -> Tensor:
        return hard_mask(psi_BHW, self.p)

    @property
    def is_off(self) -> bool:
        return self.p == 0

    def expected(self, height: int, width: int) -> Expected:
        sites = height * width
        dropped = 1 - sites_kept(sites, self.p) / sites
        exchangeable = isinstance(self.kernel, White | PeriodicGreen)  # every site is dropped with the same probability
        return Expected(self.p, dropped, theory.iid_mask_distortion(dropped) ** 2 if exchangeable else None, 0.0)

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
    def is_off(self) -> bool:
        return self.sigma == 0

    def expected(self, height: int, width: int) -> Expected:
        variance = self.sigma**2 * float(self.kernel.variance(height, width).mean())
        if height * width > DENSE_COVARIANCE_SITES:
            return Expected(drop_rate=0.0, gate_variance=variance)
        covariance_NN = self.sigma**2 * self.kernel.covariance(height, width)
        return Expected(0.0, 0.0, variance, theory.pooled_distortion(covariance_NN))

    def extra_repr(self) -> str:
        return f"{f'sigma={self.sigma:g}' if self.p is None else f'p={self.p:g}'}, {super().extra_repr()}"
