"""Noise mechanisms, each a law, a kernel and a way of injection, as layers on feature maps (B, C, H, W).

Every mechanism is the identity in eval mode, like dropout; `inject` attaches one to named stages of a network. Mechanisms have
no parameters and no buffers, so that they add nothing to a state dict. They take their random numbers from a `Draws` object,
which is torch's global generator of the features' device where none is given; `FieldNoise.gate` also takes a generator.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from functools import lru_cache, partial
from inspect import signature
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from gch_bench.checks import check_choice, check_number, check_probability, check_whole_number
from gch_bench.errors import FieldError
from gch_bench.noise import theory
from gch_bench.noise.draws import Draws, GlobalDraws
from gch_bench.noise.kernels import KERNELS, DirichletGreen, Kernel, PeriodicGreen, White, variance_on
from gch_bench.noise.laws import hard_mask, samplewise_gate, sites_kept, wick_gate

NORMALIZATIONS = ("samplewise", "wick")
DENSE_COVARIANCE_SITES = 1024  # on larger maps closed forms that need the covariance of all pairs are left out


class Expected(NamedTuple):
    """The closed forms of a mechanism's strength on one map; the fields are explained in `describe.Realised`.

    None means that no closed form is known, or that the map has more than DENSE_COVARIANCE_SITES sites.
    """

    nominal_drop_rate: float = 0.0
    drop_rate: float | None = None
    gate_variance: float | None = None
    pooled_distortion: float | None = None


class Mechanism(nn.Module):
    """Base of all mechanisms: in training mode `forward` applies the noise, in eval mode it is the identity.

    A subclass defines `draw`. The noise multiplies the features unless the subclass overrides `apply_noise`, too.
    """

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
        return False

    def expected(self, height: int, width: int) -> Expected:
        """The closed forms of the mechanism's strength on a height x width map, for comparison with the measured strength."""
        return Expected()


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

    def draw(self, features: Tensor, draws: Draws) -> Tensor:
        """Draws of the law for features (B, C, H, W): (B, 1, H, W), or (B, C, H, W) if per channel. Always float32."""
        batch, channels, height, width = features.shape
        channels = channels if self.per_channel else 1
        z = draws.normal((batch, channels, *self.kernel.modes(height, width)))
        noise = self.transform(self.kernel.field(z.flatten(0, 1), height, width))
        return noise.view(batch, channels, height, width)

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
            return Expected(drop_rate=0.0, gate_variance=variance)
        covariance_NN = self.sigma**2 * self.kernel.covariance(height, width)
        return Expected(0.0, 0.0, variance, theory.pooled_distortion(covariance_NN))

    def extra_repr(self) -> str:
        return f"sigma={self.sigma:g}{' x feature RMS' if self.relative else ''}, {super().extra_repr()}"

    def apply_noise(self, features: Tensor, draws: Draws | None = None) -> Tensor:
        noise = self.drawn(features, draws)
        if self.relative:
            noise = noise * features.detach().float().square().mean((1, 2, 3), keepdim=True).sqrt()
        return features + noise.to(features.dtype)


class Dropout(Mechanism):
    """Sets values to zero independently with probability p and scales the others by 1 / (1 - p), like torch.nn.Dropout.

    Args:
        p: probability in [0, 1).
    """

    def __init__(self, p: float = 0.1) -> None:
        super().__init__()
        check_probability("p", p, below_one=True)
        self.p = p

    def draw(self, features: Tensor, draws: Draws) -> Tensor:
        return self._mask(draws, features.shape)

    def _mask(self, draws: Draws, shape: Sequence[int]) -> Tensor:
        return draws.uniform(shape).ge_(self.p).mul_(1 / (1 - self.p))

    @property
    def is_off(self) -> bool:
        return self.p == 0

    def expected(self, height: int, width: int) -> Expected:
        variance = theory.iid_mask_distortion(self.p) ** 2
        return Expected(self.p, self.p, variance, variance / (height * width))

    def extra_repr(self) -> str:
        return f"p={self.p:g}"


class SpatialDropout(Dropout):
    """Sets whole channels to zero independently with probability p and scales the others, like torch.nn.Dropout2d."""

    def draw(self, features: Tensor, draws: Draws) -> Tensor:
        return self._mask(draws, (*features.shape[:2], 1, 1))

    def expected(self, height: int, width: int) -> Expected:
        return super().expected(height, width)._replace(pooled_distortion=theory.iid_mask_distortion(self.p) ** 2)


class DropBlock(Mechanism):
    """DropBlock (Ghiasi et al., arXiv 1810.12890) with the seeds and blocks of timm's `drop_block_2d`.

    The kept sites are scaled by 1 / E(share of kept sites), which depends on the map's size only, so that the noise on an image
    does not depend on the other images. timm divides by the share that was kept in the batch at hand.

    Args:
        p: the nominal drop probability in [0, 1).
        block_size: side of a block in sites, >= 1; it is cut to the map's size.
        per_channel: whether every channel has blocks of its own.
    """

    def __init__(self, p: float = 0.1, block_size: int = 7, per_channel: bool = False) -> None:
        super().__init__()
        check_probability("p", p, below_one=True)
        check_whole_number("block_size", block_size, low=1)
        self.p = p
        self.block_size = block_size
        self.per_channel = per_channel

    def draw(self, features: Tensor, draws: Draws) -> Tensor:
        batch, channels, height, width = features.shape
        rows, columns = min(self.block_size, height), min(self.block_size, width)
        seeds = draws.uniform((batch, channels if self.per_channel else 1, height, width))
        seeds.lt_(theory.dropblock_seed_rate(self.p, self.block_size, height, width))
        blocks = nn.functional.max_pool2d(seeds, (rows, columns), stride=1, padding=(rows // 2, columns // 2))
        blocks = blocks[..., (rows + 1) % 2 :, (columns + 1) % 2 :]  # blocks of an even side give one row or column too many
        return (1 - blocks).mul_(1 / _share_kept(self.p, self.block_size, height, width))

    @property
    def is_off(self) -> bool:
        return self.p == 0

    def expected(self, height: int, width: int) -> Expected:
        kept_HW = theory.dropblock_kept(self.p, self.block_size, height, width)
        share = float(kept_HW.mean())
        variance = float((kept_HW * (1 - kept_HW)).mean()) / share**2
        if height * width > DENSE_COVARIANCE_SITES:
            return Expected(self.p, 1 - share, variance)
        covariance_NN = theory.dropblock_covariance(self.p, self.block_size, height, width)
        return Expected(self.p, 1 - share, variance, theory.pooled_distortion(covariance_NN))

    def extra_repr(self) -> str:
        return f"p={self.p:g}, block_size={self.block_size}{', per_channel' if self.per_channel else ''}"


@lru_cache(maxsize=256)
def _share_kept(p: float, block_size: int, height: int, width: int) -> float:
    return float(theory.dropblock_kept(p, block_size, height, width).mean())


# law -> (what makes the mechanism, the options of the law, whether the law needs a kernel)
LAWS: dict[str, tuple[Callable[..., Mechanism], tuple[str, ...], bool]] = {
    "samplewise": (Gate, ("gamma", "per_channel"), True),
    "wick": (partial(Gate, normalization="wick"), ("gamma", "per_channel"), True),
    "hard_mask": (HardMask, ("p", "per_channel"), True),
    "additive": (Additive, ("sigma", "relative", "per_channel"), True),
    "bernoulli": (Dropout, ("p",), False),
    "bernoulli_channel": (SpatialDropout, ("p",), False),
    "block": (DropBlock, ("p", "block_size", "per_channel"), False),
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


def option_defaults(law: str | None, kernel: str) -> dict[str, Any]:
    """The options of a law and of its kernel, with their defaults; {} without noise or where a name is unknown."""
    if law not in LAWS or (LAWS[law][2] and kernel not in KERNELS):
        return {}
    make, names, takes_kernel = LAWS[law]
    of_kernel = {each.name: each.default for each in fields(KERNELS[kernel])} if takes_kernel else {}
    return of_kernel | {name: signature(make).parameters[name].default for name in names}
