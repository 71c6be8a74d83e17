"""The base of all noise mechanisms: layers on feature maps (B, C, H, W), each made of a law, a kernel and an injection.

Every mechanism is the identity in eval mode, like dropout; `inject` attaches one to named stages of a network. Mechanisms have
no parameters and no buffers, so that they add nothing to a state dict. They take their random numbers from a `Draws` object,
which is torch's global generator of the features' device where none is given; `FieldNoise.gate` also takes a generator.

A mechanism also says what is known of it in closed form: `Mechanism` lists these facts, each with the default "not known".
What asks for them (desiderata.py, matching.py, apps/compatibility) measures by draws what it is not told.

gates.py and dropout.py have the laws, injection.py the ways of injection, and table.py the table of all of them.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from gch_bench.noise import theory
from gch_bench.noise.draws import Draws, GlobalDraws
from gch_bench.noise.kernels import Kernel

DENSE_COVARIANCE_SITES = 1024  # on larger maps closed forms that need the covariance of all pairs are left out
# Where in a stage: at its output, at the output of a whole block of tokens, at the residual branches or attentions inside it.
PLACES = ("output", "tokens", "branch", "attention")
MATCH = "a target for the gate variance would fix it (mode=match of diagnose.py)"  # a strength that no desideratum fixes


class Expected(NamedTuple):
    """The closed forms of a mechanism's strength on one map; the fields are explained in `strength.Realised`.

    None means that no closed form is known, or that the map has more than DENSE_COVARIANCE_SITES sites.
    """

    nominal_drop_rate: float = 0.0
    drop_rate: float | None = None
    gate_variance: float | None = None
    pooled_distortion: float | None = None


class Moments(NamedTuple):
    """Mean and covariance of the gate of one channel: float64, on the CPU. Additive noise has the gate 1 + what is added."""

    mean_N: Tensor  # E xi(x)
    covariance_NN: Tensor  # Cov(xi(x), xi(y))


class LogRatio(NamedTuple):
    """The normal distribution of log xi(x)/xi(y) for every pair of sites: float64, on the CPU."""

    mean_NN: Tensor
    sd_NN: Tensor


class Parameter(NamedTuple):
    """A parameter that the desiderata leave free."""

    name: str
    value: float
    fixed_by: str  # in words: what it fixes, and what fixes it


class Mechanism(nn.Module):
    """Base of all mechanisms: in training mode `forward` applies the noise, in eval mode it is the identity.

    A subclass defines `draw`. The noise multiplies the features unless the subclass overrides `apply_noise`, too.

    All else that is said of a mechanism here is a fact that a subclass states where it knows it; None means "not known", and
    such numbers are measured by draws. Facts on a map are about the gate xi of one channel on height x width sites, N in all
    in row-major order; tensors are float64 on the CPU.
    """

    place = "output"  # one of PLACES: where in a stage `inject` attaches the mechanism
    on_prefix_tokens = False  # whether class and register tokens get the noise, too
    adds = False  # whether the noise is added to the features; otherwise it multiplies them

    strength = ""  # the option that holds the strength, which is also an attribute: gamma, sigma or p
    strength_in_steps = False  # whether the strength is a share of dropped sites, the same in every sample
    positive = False  # whether the noise multiplies by an exponential, which is always positive
    gaussian = False  # whether xi is a Gaussian field
    drops: bool | None = None  # whether values are set to zero, with the nominal probability `p`; None: not known
    mean_one_per_sample = False  # whether the mean of xi over the sites is one in every sample
    independent_sites = False  # whether the xi of different sites are independent
    why_biased = "E xi(x) is not 1 at every site"  # in words, if `gate_mean` is not one

    def draw(self, features: Tensor, draws: Draws) -> Tensor:
        """One draw of the noise for features (B, C, H, W): float32, of a shape that broadcasts to theirs."""
        raise NotImplementedError

    @torch.compiler.disable  # if it were traced, every compiled graph would rebuild the cached matrices
    def drawn(self, features: Tensor, draws: Draws | None) -> Tensor:
        """`draw` in the features' memory layout, from torch's global generator if `draws` is None."""
        noise = self.draw(features, GlobalDraws(features.device) if draws is None else draws)
        if noise.shape == features.shape and features.is_contiguous(memory_format=torch.channels_last):
            # The numbers do not depend on the layout, but products of two layouts take several times as long.
            noise = noise.contiguous(memory_format=torch.channels_last)
        return noise

    def apply_noise(self, features: Tensor, draws: Draws | None = None) -> Tensor:
        """The features with noise, in training mode as in eval mode: (B, C, H, W) -> (B, C, H, W).

        Args:
            features: the feature map (B, C, H, W).
            draws: where the random numbers come from; None: torch's global generator of the features' device.
        """
        return features * self.drawn(features, draws).to(features.dtype)

    def forward(self, features: Tensor) -> Tensor:
        return self.apply_noise(features) if self.training else features

    @property
    def is_off(self) -> bool:
        """Whether the mechanism is the identity because the user set its strength (gamma, p or sigma) to 0."""
        return bool(self.strength) and getattr(self, self.strength) == 0

    @property
    def law(self) -> "Mechanism":
        """The mechanism that draws xi: the one inside additive noise or a removal of tokens, else the mechanism itself."""
        return self

    def gate_mean(self, height: int, width: int) -> Tensor | None:
        """E xi(x) at every site: (N,)."""
        return None

    def gate_variance(self, height: int, width: int) -> Tensor | None:
        """Var xi(x) at every site: (N,)."""
        return None

    def correlation(self, sites: int) -> float | None:
        """The correlation of xi at two different sites, if it is the same for all pairs, and Var xi for all sites."""
        return None

    def covariance(self, height: int, width: int) -> Tensor | None:
        """Cov(xi(x), xi(y)): (N, N). The size of the map is checked by `moments`."""
        variance_N, correlation = self.gate_variance(height, width), self.correlation(height * width)
        if variance_N is None or correlation is None:
            return None
        return variance_N[0] * torch.full((len(variance_N),) * 2, correlation, dtype=torch.float64).fill_diagonal_(1.0)

    def moments(self, height: int, width: int) -> Moments | None:
        """The mean and the covariance; None also on maps of more than DENSE_COVARIANCE_SITES sites."""
        mean_N = self.gate_mean(height, width)
        if mean_N is None or height * width > DENSE_COVARIANCE_SITES:
            return None
        covariance_NN = self.covariance(height, width)
        return None if covariance_NN is None else Moments(mean_N, covariance_NN)

    def drop_probability(self, height: int, width: int) -> Tensor | None:
        """The probability that xi(x) is set to zero: (N,). None also for noise that is no mask."""
        return None

    def drop_rate(self, height: int, width: int) -> float | None:
        """The expected share of values that are set to zero."""
        dropped_N = self.drop_probability(height, width)
        if dropped_N is None:
            return 0.0 if self.drops is False else None
        return float(dropped_N.mean())

    def nonpositive_share(self, height: int, width: int) -> float | None:
        """P(xi(x) <= 0), averaged over the sites."""
        return self.drop_rate(height, width)

    def log_ratio(self, height: int, width: int) -> LogRatio | None:
        """The law of log xi(x)/xi(y) if it is normal; None also on maps of more than DENSE_COVARIANCE_SITES sites."""
        return None

    def roughness(self, height: int, width: int) -> float | None:
        """E sum of (log xi(x) - log xi(y))^2 over the edges of the map."""
        return None

    def log_variance(self, height: int, width: int) -> Tensor | None:
        """Var log xi(x) of a positive gate at every site: (N,)."""
        return None

    def expected(self, height: int, width: int) -> Expected:
        """The closed forms of the mechanism's strength on a height x width map, for comparison with the measured strength."""
        variance_N = self.gate_variance(height, width)
        return Expected(
            nominal_drop_rate=float(getattr(self, self.strength)) if self.drops else 0.0,
            drop_rate=self.drop_rate(height, width),
            gate_variance=None if variance_N is None else float(variance_N.mean()),
            pooled_distortion=self._pooled_distortion(height, width, variance_N),
        )

    def _pooled_distortion(self, height: int, width: int, variance_N: Tensor | None) -> float | None:
        """The mean of the covariance matrix, without the matrix where that is possible."""
        sites, correlation = height * width, self.correlation(height * width)
        if self.mean_one_per_sample:
            return 0.0
        if variance_N is not None and correlation is not None:
            return float(variance_N[0]) * (1 / sites + correlation * (1 - 1 / sites))
        moments = self.moments(height, width)
        return None if moments is None else theory.pooled_distortion(moments.covariance_NN)

    def words(self, height: int, width: int) -> str | None:
        """The law of xi in words, with its formula on a height x width map. `describe` needs it."""
        return None

    @property
    def shared(self) -> str:
        """Which features share one xi, in words."""
        return "a map xi for each channel" if getattr(self, "per_channel", False) else "the same xi for all channels"

    def injection_words(self) -> str:
        """What xi does to a stage, in words with a formula."""
        if self.place == "branch":
            return f"branch: every residual branch f of the stage becomes xi f; {self.shared}"
        return f"multiplicative: F~(c,x) = F(c,x) xi(x); {self.shared}"

    def free_parameters(self, height: int, width: int, now: str) -> list[Parameter]:
        """The parameters of the law that the desiderata leave free. `now` is the gate variance on the map, in words."""
        return [Parameter(self.strength, getattr(self, self.strength), f"{now}{MATCH}")] if self.strength else []


class FieldNoise(Mechanism):
    """Base of the mechanisms that draw a Gaussian field.

    Args:
        kernel: the covariance of the field. Its matrices are cached per (H, W, device, dtype).
        per_channel: whether every channel has a draw of its own; default: one draw per sample, shared by all channels.
    """

    def __init__(self, kernel: Kernel, per_channel: bool = False) -> None:
        super().__init__()
        self.kernel = kernel
        self.per_channel = per_channel

    def transform(self, psi_BHW: Tensor) -> Tensor:
        """The law: turns Gaussian fields (B, H, W) into gates xi of mean one, (B, H, W)."""
        raise NotImplementedError

    def log_transform(self, psi_BHW: Tensor) -> Tensor:
        """log xi for a positive law, up to a constant: (B, H, W) -> (B, H, W)."""
        return self.transform(psi_BHW).log()

    def deviation(self, psi_BHW: Tensor) -> Tensor:
        """xi - 1, which additive injection adds: (B, H, W) -> (B, H, W)."""
        return self.transform(psi_BHW) - 1

    def gate(
        self,
        batch: int,
        height: int,
        width: int,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """`batch` independent draws of the law on a height x width grid: (B, H, W), float32."""
        return self.transform(self.kernel.sample(batch, height, width, generator, device))

    def draw(self, features: Tensor, draws: Draws) -> Tensor:
        """Gates for features (B, C, H, W): (B, 1, H, W), or (B, C, H, W) if per channel. Always float32."""
        return self._of_field(self.transform, features, draws)

    def draw_deviation(self, features: Tensor, draws: Draws) -> Tensor:
        """What `draw` gives less one, without the rounding of that sum."""
        return self._of_field(self.deviation, features, draws)

    def _of_field(self, law: Callable[[Tensor], Tensor], features: Tensor, draws: Draws) -> Tensor:
        batch, channels, height, width = features.shape
        channels = channels if self.per_channel else 1
        z = draws.normal((batch, channels, *self.kernel.modes(height, width)))
        return law(self.kernel.field(z.flatten(0, 1), height, width)).view(batch, channels, height, width)

    def extra_repr(self) -> str:
        shared = ", per_channel" if self.per_channel else ""
        return f"{self.kernel}{shared}"
