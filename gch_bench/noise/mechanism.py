"""The base of all noise mechanisms: layers on feature maps (B, C, H, W), each made of a law, a kernel and an injection.

Every mechanism is the identity in eval mode, like dropout; `inject` attaches one to named stages of a network. Mechanisms have
no parameters and no buffers, so that they add nothing to a state dict. They take their random numbers from a `Draws` object,
which is torch's global generator of the features' device where none is given; `FieldNoise.gate` also takes a generator.

gates.py and dropout.py have the laws, injection.py the ways of injection, and table.py the table of all of them.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from gch_bench.noise.draws import Draws, GlobalDraws
from gch_bench.noise.kernels import Kernel

DENSE_COVARIANCE_SITES = 1024  # on larger maps closed forms that need the covariance of all pairs are left out
# Where in a stage: at its output, at the output of a whole block of tokens, at the residual branches or attentions inside it.
PLACES = ("output", "tokens", "branch", "attention")


class Expected(NamedTuple):
    """The closed forms of a mechanism's strength on one map; the fields are explained in `strength.Realised`.

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

    place = "output"  # one of PLACES: where in a stage `inject` attaches the mechanism
    on_prefix_tokens = False  # whether class and register tokens get the noise, too
    adds = False  # whether the noise is added to the features; otherwise it multiplies them

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
        """The law: turns Gaussian fields (B, H, W) into gates xi of mean one, (B, H, W)."""
        raise NotImplementedError

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
