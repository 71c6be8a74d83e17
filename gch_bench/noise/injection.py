"""The ways of injection: what a gate xi does to a stage.

* multiplicative: the stage's output F becomes F xi. Every mechanism does this by itself.
* additive: F becomes F + r (xi - 1), where r is the root mean square of the features (`Additive`).
* branch: the gate multiplies the residual branches inside the stage, not the stage's output. This is a matter of the place
  alone (`stages.places_of`), and gives stochastic depth where the gate is one number per sample.
* removal: the tokens that a hard mask drops are removed from the sequence (`TokenRemoval`).
* attention: the keys of the stage's attention are dropped (`dropout.KeyDropout`).
"""

import torch
from torch import Tensor

from gch_bench.errors import FieldError
from gch_bench.noise.draws import Draws
from gch_bench.noise.gates import HardMask
from gch_bench.noise.laws import sites_kept
from gch_bench.noise.mechanism import Expected, FieldNoise, Mechanism, Moments


class Injected(Mechanism):
    """Base of the ways of injection that hold the law of xi inside: what is known of xi is known from that law."""

    @property
    def strength(self) -> str:  # type: ignore[override]
        return self.law.strength

    @property
    def is_off(self) -> bool:
        return self.law.is_off

    def moments(self, height: int, width: int) -> Moments | None:
        return self.law.moments(height, width)

    def expected(self, height: int, width: int) -> Expected:
        return self.law.expected(height, width)


class Additive(Injected):
    """Adds what a gate differs from one: F~ = F + r (xi - 1). For a Gaussian gate this is F + r sigma psi.

    Args:
        gate: the gate xi, such as ``Gaussian(White(), sigma=0.1)``.
        relative: whether r is the root mean square (RMS) of each sample's features over channels and sites, which the gradient
            treats as a constant; otherwise r = 1, and the noise is in the units of the features.
        channel_rms: whether each channel has an RMS of its own, over the sites; needs `relative`.
    """

    adds = True

    def __init__(self, gate: FieldNoise, relative: bool = True, channel_rms: bool = False) -> None:
        super().__init__()
        if channel_rms and not relative:
            raise FieldError("channel_rms", "needs relative=true, got relative=false")
        self.gate = gate
        self.relative = relative
        self.channel_rms = channel_rms

    def draw(self, features: Tensor, draws: Draws) -> Tensor:
        return self.gate.draw_deviation(features, draws)

    def apply_noise(self, features: Tensor, draws: Draws | None = None) -> Tensor:
        noise = self.drawn(features, draws)
        if self.relative:
            noise = noise * self.units(features.detach().float())
        return features + noise.to(features.dtype)

    def units(self, features: Tensor) -> Tensor:
        """r, which multiplies xi - 1, of features (B, C, H, W): (B, 1, 1, 1), or (B, C, 1, 1) with channel_rms."""
        if not self.relative:
            return torch.ones_like(features[:, :1, :1, :1])
        return features.square().mean((2, 3) if self.channel_rms else (1, 2, 3), keepdim=True).sqrt()

    @property
    def law(self) -> Mechanism:
        return self.gate

    def injection_words(self) -> str:
        of = "each channel's root mean square" if self.channel_rms else "the root mean square of the sample's features"
        unit = f"r (xi(x) - 1), r = {of}" if self.relative else "(xi(x) - 1)"
        return f"additive: F~(c,x) = F(c,x) + {unit}; {self.gate.shared}"

    def __repr__(self) -> str:
        unit = " x channel RMS" if self.channel_rms else " x feature RMS" if self.relative else ""
        return f"Additive({self.gate}{unit})"


class TokenRemoval(Injected):
    """Removes the patch tokens that a hard mask drops, and keeps the order of the others (PatchDropout, arXiv 2208.07220).

    On a map, and in `draw`, the tokens are set to zero and the others scaled by N / kept: the mean over sites then is the mean
    over the kept tokens, which is what a pooling after the removal computes.

    Args:
        mask: says which tokens are dropped, the same number in every sample.
    """

    place = "tokens"

    def __init__(self, mask: HardMask) -> None:
        super().__init__()
        if mask.per_channel:
            raise FieldError("per_channel", "has no meaning for injection=removal: a token is removed with all its channels")
        self.mask = mask

    def draw(self, features: Tensor, draws: Draws) -> Tensor:
        return self.mask.draw(features, draws)

    def remaining(self, tokens_BNC: Tensor, prefix: int, mask_BN: Tensor) -> Tensor:
        """The tokens (B, prefix + kept, C) of (B, prefix + N, C): the first `prefix`, and those where the mask is not 0."""
        kept = sites_kept(mask_BN.shape[1], self.mask.p)  # counting the mask would make the CPU wait for the GPU
        index_BK = (mask_BN != 0).float().topk(kept, dim=1).indices.sort(1).values + prefix
        patches = tokens_BNC.gather(1, index_BK[..., None].expand(-1, -1, tokens_BNC.shape[2]))
        return torch.cat([tokens_BNC[:, :prefix], patches], 1)

    @property
    def law(self) -> Mechanism:
        return self.mask

    def drop_probability(self, height: int, width: int) -> Tensor | None:
        return self.mask.drop_probability(height, width)

    def injection_words(self) -> str:
        return "removal: tokens with xi = 0 leave the sequence; the others stay as they are"

    def __repr__(self) -> str:
        return f"TokenRemoval({self.mask})"
