"""Noise mechanisms, each a law, a kernel and a way of injection, as layers on feature maps (B, C, H, W).

Every mechanism is the identity in eval mode, like dropout; `inject` attaches one to named stages of a network. Mechanisms have
no parameters and no buffers, so that they add nothing to a state dict. They draw from torch's global generator of the
features' device; `FieldNoise.gate` also takes a generator.
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
DENSE_COVARIANCE_SITES = 1024  # on larger maps closed forms that need the covariance of all pairs are left out


class Expected(NamedTuple):
    """The closed forms of a mechanism's strength on one map; the fields are explained in `describe.Realised`.

    None means that no closed form is known, or that the map has more than DENSE_COVARIANCE_SITES sites.
    """

    nominal_drop_rate: float = 0.0
    gate_variance: float | None = None
    pooled_distortion: float | None = None


class Mechanism(nn.Module):
    """Base of all mechanisms: in training mode `forward` applies the noise, in eval mode it is the identity."""

    def apply_noise(self, features: Tensor) -> Tensor:
        """The features with noise, in training mode as in eval mode: (B, C, H, W) -> (B, C, H, W)."""
        raise NotImplementedError

    def forward(self, features: Tensor) -> Tensor:
        return self.apply_noise(features) if self.training else features

    @property
    def is_off(self) -> bool:
        """Whether the mechanism is the identity because the user set its strength (gamma, p or sigma) to 0."""
        return False

    def expected(self, height: int, width: int) -> Expected:
        """The closed forms of the mechanism's strength on a height x width map, for comparison with the measured strength."""
        return Expected()


class FieldNoise(Mechanism):
    """Base of the mechanisms that draw a Gaussian field. The noise multiplies the features unless a subclass overrides
    `apply_noise`.

    Args:
        kernel: the covariance of the field. Its matrices are cached per (H, W, device, dtype).
        per_channel: whether every channel has a draw of its own; default: one draw per sample, shared by all channels.
    """

    def __init__(self, kernel: Kernel, per_channel: bool = False) -> None:
        super().__init__()
        self.kernel = kernel
        self.per_channel = per_channel

    def transform(self, psi_BHW: Tensor) -> Tensor:
        """The law: turns Gaussian fields (B, H, W) into gates, or into additive noise, (B, H, W)."""
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

    @torch.compiler.disable  # if it were traced, every compiled graph would rebuild the cached matrices
    def draw(self, features: Tensor) -> Tensor:
        """Draws of the law for features (B, C, H, W): (B, 1, H, W), or (B, C, H, W) if per channel. Always float32."""
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
        return Expected(self.p, theory.iid_mask_distortion(dropped) ** 2 if exchangeable else None, 0.0)

    def extra_repr(self) -> str:
        return f"p={self.p:g}, {super().extra_repr()}"


class Additive(FieldNoise):
    """A Gaussian field that is added to the features: F~ = F + sigma psi.

    Args:
        kernel: the covariance of psi.
        sigma: strength, >= 0.
        relative: whether sigma is in units of the root mean square (RMS) of each sample's features over channels and sites,
            which the gradient treats as a constant; otherwise it is in the units of the features.
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
    """The noise layer of a library (torch's Dropout and Dropout2d, timm's DropBlock2d) as a mechanism.

    Args:
        layer: the library's layer, with its options already set.
        options: the same options, by the names that this project gives them.
    """

    def __init__(self, layer: nn.Module, **options: float) -> None:
        super().__init__()
        self.layer = layer
        self.options = options  # kept here for `repr` and `is_off`, because timm's layer does not print its options

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
            draws = height * width if isinstance(self.layer, nn.Dropout) else 1  # independent ones on the map of a channel
            return Expected(p, variance, variance / draws)
        return Expected(p)

    def train(self, mode: bool = True) -> "LayerNoise":
        super().train(mode)
        self.layer.train()  # the layer must always act: the mechanism decides whether the noise is on
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


# law -> (what makes the mechanism, the options of the law, whether the law needs a kernel)
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
    """Make a mechanism from the names of its law and kernel.

    Args:
        law: a key of LAWS.
        kernel: a key of KERNELS; ignored by a law that needs no kernel.
        options: options of the law and of the kernel together, by name.

    Raises:
        ValueError: a name is unknown, neither law nor kernel has such an option, or an option is out of range; the message
            gives name, rule and value in one line.
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
