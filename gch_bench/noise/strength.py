"""The realised strength of a mechanism on a map of a given size: its drop rate, gate variance and pooled distortion.

The strengths are measured by drawing from the mechanism, because nominal ones are not comparable: DropBlock with
p = 0.1 and block size 3 drops 15% of a 7x7 map, but 24% of a 4x4 map. Report the realised strengths, and make them equal when
mechanisms are to be compared at equal strength (docs/definitions.md, "Realised strength").
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from gch_bench.noise.mechanism import Mechanism
from gch_bench.rng import Key, own_draws

VALUES = 2**21  # how many site values are drawn in all: 42,799 draws of a 7x7 map
FEWEST_DRAWS = 256  # for large maps


class Realised(NamedTuple):
    """The measured strength on an H x W map, with the expected value beside each number.

    An expected value is None where no closed form is known. Noise inside an attention has no gate on a map, so that nothing of
    it is measured; its nominal and expected drop rates are those of the keys.
    """

    drop_rate: float | None  # share of sites that are set to zero
    nominal_drop_rate: float  # the mechanism's option p; 0 for gates that never drop a site
    expected_drop_rate: float | None
    inner_drop_rate: float | None  # drop_rate without the map's outermost ring, where boundary="inside" pins psi to 0
    gate_variance: float | None  # mean over sites of Var xi(x); additive noise: variance of what is added to a map of ones
    expected_gate_variance: float | None
    pooled_distortion: float | None  # E (mean_x xi(x) - 1)^2: what the noise does to the pooled feature of a constant map
    expected_pooled_distortion: float | None


def draw_gates(mechanism: Mechanism, height: int, width: int, draws: int | None = None, keys: Sequence[Key] = ()) -> Tensor:
    """Apply the noise to independent maps of ones: (draws, H, W), float64. The global random state is kept.

    The result of a multiplicative mechanism is its gate xi. The result of additive noise is 1 + the noise, where the RMS of the
    features is 1.

    Args:
        draws: how many; None: about VALUES site values in all.
        keys: what the draws depend on besides, for independent ones.

    Raises:
        ValueError: the map is too small for the mechanism's kernel.
    """
    draws = max(VALUES // (height * width), FEWEST_DRAWS) if draws is None else draws
    with torch.no_grad(), own_draws(torch.device("cpu"), "realised strength", *keys):
        return mechanism.apply_noise(torch.ones(draws, 1, height, width))[:, 0].double()


def realised(mechanism: Mechanism, height: int, width: int) -> Realised:
    """Measure the strength of `mechanism` on a height x width map by seeded draws on the CPU.

    Raises:
        ValueError: the map is too small for the mechanism's kernel.
    """
    if mechanism.place == "attention":
        expected = mechanism.expected(height, width)
        return Realised(None, expected.nominal_drop_rate, expected.drop_rate, None, None, None, None, None)
    gates_BHW = draw_gates(mechanism, height, width)
    dropped_HW = (gates_BHW == 0).double().mean(0)
    inner_HW = dropped_HW[1:-1, 1:-1] if min(height, width) > 2 else dropped_HW
    expected = mechanism.expected(height, width)
    return Realised(
        drop_rate=float(dropped_HW.mean()),
        nominal_drop_rate=expected.nominal_drop_rate,
        expected_drop_rate=expected.drop_rate,
        inner_drop_rate=float(inner_HW.mean()),
        gate_variance=float(gates_BHW.var(0).mean()),
        expected_gate_variance=expected.gate_variance,
        pooled_distortion=float((gates_BHW.mean((1, 2)) - 1).square().mean()),
        expected_pooled_distortion=expected.pooled_distortion,
    )
