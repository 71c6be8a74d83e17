"""Noise mechanisms: law x kernel x injection, as layers on feature maps (B, C, H, W).

Each is the identity in eval mode, like dropout; `inject` attaches one to named stages of a network. Noise has no
parameters and no buffers, so a state dict never shows it. Without a generator, draws come from torch's global one.
"""

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any, NamedTuple

import torch
from timm.layers.drop import DropBlock2d
from torch import Tensor, nn

from gch_bench.checks import check_choice, check_number, check_probability, check_whole_number
from gch_bench.errors import FieldError
from gch_bench.noise import theory
from gch_bench.noise.kernels import KERNELS, DirichletGreen, Kernel, PeriodicGreen, White, variance_on
from gch_bench.noise.laws import hard_mask, samplewise_gate, sites_kept, wick_gate

NORMALIZATIONS = ("samplewise", "wick")
DENSE_COVARIANCE_SITES = 1024  # up to 32 x 32 the closed forms that need the sites x sites covariance are worked out


class Expected(NamedTuple):
    """What is known in advance of a mechanism's strength on one map, see `describe.Realised`; None: no closed form is known."""

    nominal_drop_rate: float = 0.0
    gate_variance: float | None = None
    pooled_distortion: float | None = None


class Mechanism(nn.Module):
    """Base of all mechanisms: `forward` is `apply_noise` in training mode and the identity in eval mode."""

    def apply_noise(self, features: Tensor) -> Tensor:
        """Noisy features, whatever the mode: (B, C, H, W) -> (B, C, H, W)."""
        raise NotImplementedError

    def forward(self, features: Tensor) -> Tensor:
        return self.apply_noise(features) if self.training else features

    @property
    def is_off(self) -> bool:
        """Whether its strength is 0, so that it is the identity everywhere, as asked for."""
        return False

    def expected(self, height: int, width: int) -> Expected:
        """Closed forms of its strength on a map of this size, to compare the measured ones with."""
        return Expected()


class FieldNoise(Mechanism):
    """Base of the mechanisms that draw a Gaussian field; injection is multiplicative unless `apply_noise` says otherwise.

    The kernel's matrices are cached per (H, W, device, dtype).
    """

    def __init__(self, kernel: Kernel, per_channel: bool = False) -> None:
        super().__init__()
        self.kernel = kernel
        self.per_channel = per_channel

    def transform(self, psi_BHW: Tensor) -> Tensor:
        """The law: Gaussian fields (B, H, W) -> gates (or additive noise) (B, H, W)."""
        raise NotImplementedError

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

    @torch.compiler.disable  # cached matrices: traced, every compiled graph would rebuild them
    def draw(self, features: Tensor) -> Tensor:
        """Draws for features (B, C, H, W): (B, 1, H, W), or (B, C, H, W) per channel; float32 whatever their dtype."""
        batch, channels, height, width = features.shape
        channels = channels if self.per_channel else 1
        noise = self.gate(batch * channels, height, width, device=features.device)
        return noise.view(batch, channels, height, width)

    def apply_noise(self, features: Tensor) -> Tensor:
        return features * self.draw(features).to(features.dtype)

    def extra_repr(self) -> str:
        shared = ", per_channel" if self.per_channel else ""
        return f"{self.kernel}{shared}"


class Gate(FieldNoise):
    """Multiplicative injection F~(c, x) = F(c, x) xi(x) of a positive, mean-one gate.

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
            return Expected(pooled_distortion=0.0)
        variance = float(theory.wick_gate_variance(self.kernel, height, width, self.gamma).mean())
        if height * width > DENSE_COVARIANCE_SITES:
            return Expected(gate_variance=variance)
        covariance_NN = theory.wick_gate_covariance(self.kernel, height, width, self.gamma)
        return Expected(gate_variance=variance, pooled_distortion=theory.pooled_distortion(covariance_NN))

    def extra_repr(self) -> str:
        return f"gamma={self.gamma:g}, {self.normalization}, {super().extra_repr()}"


class GaussianChaosNoise(Gate):
    """Gaussian Chaos Noise (GCh): a positive, mean-one, spatially correlated multiplicative gate.

    Features (B, C, H, W) -> the same shape; identity in eval mode. `.gate(batch, height, width, generator=None)` gives
    the gates themselves, (B, H, W).

    Args:
        gamma: strength, >= 0.
        beta: inverse temperature of psi ~ N(0, (beta L)^-1), > 0.
        boundary: "outside" or "inside", see DirichletGreen.
        normalization: "samplewise" (default; the gate used in practice) or "wick".

    Raises:
        ValueError: an argument out of range; a map smaller than 3x3 with boundary="inside".

    Source: VKD (arXiv 2603.17365), theory 1.1-1.3. A patent application on GCh is in preparation (README, licence).
    """

    def __init__(
        self, gamma: float = 1.0, beta: float = 1.0, boundary: str = "outside", normalization: str = "samplewise"
    ) -> None:
        super().__init__(DirichletGreen(beta, boundary), gamma, normalization)


class HardMask(FieldNoise):
    """Thresholded Gaussian field: keep the 1-p share of sites where psi is largest, scaled to spatial mean one."""

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
        exchangeable = isinstance(self.kernel, White | PeriodicGreen)  # every site is dropped equally often
        return Expected(self.p, theory.iid_mask_distortion(dropped) ** 2 if exchangeable else None, 0.0)

    def extra_repr(self) -> str:
        return f"p={self.p:g}, {super().extra_repr()}"


class Additive(FieldNoise):
    """Additive injection F~ = F + sigma psi.

    Args:
        kernel: the covariance of psi.
        sigma: strength, >= 0, in the features' units, or with `relative` in units of the sample's feature RMS
            (over channels and sites; taken as a constant by the gradient).
        per_channel: an independent field for every channel; default: one field per sample, shared by all channels.
    """

    def __init__(self, kernel: Kernel, sigma: float = 0.1, relative: bool = True, per_channel: bool = False) -> None:
        super().__init__(kernel, per_channel)
        check_number("sigma", sigma, 0)
        self.sigma = sigma
        self.relative = relative

    def transform(self, psi_BHW: Tensor) -> Tensor:
        return self.sigma * psi_BHW

    @property
    def is_off(self) -> bool:
        return self.sigma == 0

    def expected(self, height: int, width: int) -> Expected:
        variance = self.sigma**2 * float(self.kernel.variance(height, width).mean())
        if height * width > DENSE_COVARIANCE_SITES:
            return Expected(gate_variance=variance)
        covariance_NN = self.sigma**2 * self.kernel.covariance(height, width)
        return Expected(gate_variance=variance, pooled_distortion=theory.pooled_distortion(covariance_NN))

    def extra_repr(self) -> str:
        return f"sigma={self.sigma:g}{' x feature RMS' if self.relative else ''}, {super().extra_repr()}"

    def apply_noise(self, features: Tensor) -> Tensor:
        noise = self.draw(features)
        if self.relative:
            noise = noise * features.detach().float().square().mean((1, 2, 3), keepdim=True).sqrt()
        return features + noise.to(features.dtype)


class LayerNoise(Mechanism):
    """A library's own noise layer (torch's Dropout, timm's DropBlock2d) as a mechanism; `options` are its own."""

    def __init__(self, layer: nn.Module, **options: float) -> None:
        super().__init__()
        self.layer = layer
        self.options = options  # for the description and `is_off`: timm's layer does not print its own

    def __repr__(self) -> str:
        shown = [name if value is True else f"{name}={value:g}" for name, value in self.options.items() if value is not False]
        return f"{type(self.layer).__name__}({', '.join(shown)})"

    @property
    def is_off(self) -> bool:
        return self.options.get("p") == 0

    def expected(self, height: int, width: int) -> Expected:
        p = self.options.get("p", 0.0)
        if isinstance(self.layer, nn.Dropout | nn.Dropout2d):
            variance = theory.iid_mask_distortion(p) ** 2
            draws = height * width if isinstance(self.layer, nn.Dropout) else 1  # independent ones on a map
            return Expected(p, variance, variance / draws)
        return Expected(p)

    def train(self, mode: bool = True) -> "LayerNoise":
        super().train(mode)
        self.layer.train()  # whether noise is on is decided outside the layer
        return self

    @torch.compiler.disable
    def apply_noise(self, features: Tensor) -> Tensor:
        return self.layer(features)


def _dropout(layer: type[nn.Module]) -> Callable[..., Mechanism]:
    def make(p: float = 0.1) -> Mechanism:
        check_probability("p", p, below_one=True)
        return LayerNoise(layer(p), p=p)

    return make


def _dropblock(p: float = 0.1, block_size: int = 7, per_channel: bool = False) -> Mechanism:
    check_probability("p", p, below_one=True)
    check_whole_number("block_size", block_size, low=1)
    layer = DropBlock2d(drop_prob=p, block_size=block_size, couple_channels=not per_channel)
    return LayerNoise(layer, p=p, block_size=block_size, per_channel=per_channel)


# law -> (constructor, the options it takes, does it take a kernel)
LAWS: dict[str, tuple[Callable[..., Mechanism], tuple[str, ...], bool]] = {
    "samplewise": (Gate, ("gamma", "per_channel"), True),
    "wick": (lambda kernel, **options: Gate(kernel, normalization="wick", **options), ("gamma", "per_channel"), True),
    "hard_mask": (HardMask, ("p", "per_channel"), True),
    "additive": (Additive, ("sigma", "relative", "per_channel"), True),
    "bernoulli": (_dropout(nn.Dropout), ("p",), False),
    "bernoulli_channel": (_dropout(nn.Dropout2d), ("p",), False),
    "block": (_dropblock, ("p", "block_size", "per_channel"), False),
}


def make_mechanism(law: str, kernel: str, options: Mapping[str, Any]) -> Mechanism:
    """A mechanism from names: `law` of LAWS, `kernel` of KERNELS, and flat options, of which each takes its own.

    Raises:
        ValueError: unknown name, or an option out of range (name, rule and value in one line).
    """
    check_choice("law", law, LAWS)
    make, names, takes_kernel = LAWS[law]
    own = set()
    if takes_kernel:
        check_choice("kernel", kernel, KERNELS)
        own = {field.name for field in fields(KERNELS[kernel])}
    for name in sorted(options.keys() - own - set(names)):
        taker = f"law {law} with kernel {kernel}" if takes_kernel else f"law {law}"
        raise FieldError(name, f"has no meaning for {taker}, which takes {', '.join(sorted({*names, *own}))}")
    chosen = {name: options[name] for name in names if name in options}
    if not takes_kernel:
        return make(**chosen)
    return make(KERNELS[kernel](**{name: options[name] for name in own & options.keys()}), **chosen)
