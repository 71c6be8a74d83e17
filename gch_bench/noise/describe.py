"""What a mechanism does on a map of a given size, measured by drawing from it: drop rate, gate variance, pooled distortion.

Nominal strengths are not comparable: timm's DropBlock with p = 0.1 and block size 3 drops 15% of a 7x7 map, 24% of a 4x4 map.
These are the numbers to report, and to match when mechanisms are compared at equal strength (theory 1.3).
"""

from typing import NamedTuple

import torch
from torch import Tensor

from gch_bench.noise.mechanism import Mechanism
from gch_bench.rng import own_draws

VALUES = 2**21  # drawn in all: 42,799 draws of a 7x7 map
FEWEST_DRAWS = 256


class Realised(NamedTuple):
    """Measured strength on an H x W map, and beside each number what is expected of it: None where no closed form is known."""

    drop_rate: float  # share of sites that are set to zero
    nominal_drop_rate: float  # the option p; 0 for gates that never drop
    inner_drop_rate: float  # the same without the map's outermost ring, where boundary="inside" never drops
    gate_variance: (
        float  # mean over sites of Var xi(x); additive noise: of what is added, in units of the features' mean square
    )
    expected_gate_variance: float | None
    pooled_distortion: float  # E (mean_x xi(x) - 1)^2: what the noise does to the pooled feature of a constant map
    expected_pooled_distortion: float | None


def draw_gates(mechanism: Mechanism, height: int, width: int) -> Tensor:
    """Independent draws of what a constant map of ones becomes: (draws, H, W), float64. The global random state is kept.

    For a multiplicative mechanism these are its gates xi; for additive noise 1 + what is added at a feature RMS of one.

    Raises:
        ValueError: the kernel cannot live on a map of this size.
    """
    draws = max(VALUES // (height * width), FEWEST_DRAWS)
    with torch.no_grad(), own_draws(torch.device("cpu"), "realised strength"):
        return mechanism.apply_noise(torch.ones(draws, 1, height, width))[:, 0].double()


def realised(mechanism: Mechanism, height: int, width: int) -> Realised:
    """The measured strength of `mechanism` on a height x width map, by seeded draws on the CPU.

    Raises:
        ValueError: the kernel cannot live on a map of this size.
    """
    gates_BHW = draw_gates(mechanism, height, width)
    dropped_HW = (gates_BHW == 0).double().mean(0)
    inner_HW = dropped_HW[1:-1, 1:-1] if min(height, width) > 2 else dropped_HW
    expected = mechanism.expected(height, width)
    return Realised(
        drop_rate=float(dropped_HW.mean()),
        nominal_drop_rate=expected.nominal_drop_rate,
        inner_drop_rate=float(inner_HW.mean()),
        gate_variance=float(gates_BHW.var(0).mean()),
        expected_gate_variance=expected.gate_variance,
        pooled_distortion=float((gates_BHW.mean((1, 2)) - 1).square().mean()),
        expected_pooled_distortion=expected.pooled_distortion,
    )
