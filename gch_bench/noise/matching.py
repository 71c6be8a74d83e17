"""The strength at which a mechanism reaches a target: the variance of its gate, or of the logarithm of its gate, on a map.

Nominal strengths are not comparable (docs/definitions.md, "Realised strength"): mechanisms are compared where their gates have
equal variance. The strength of a law is an option, `Mechanism.strength`. Both quantities are averaged over the sites, and grow
with the strength, so that one strength reaches the target. Closed forms are used where they are known; a sample-wise gate, or
a hard mask of a correlated field, is measured by seeded draws, the same at every step.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from scipy.optimize import brentq

from gch_bench.checks import check_choice, check_number
from gch_bench.noise.gate_numbers import Number, gate_variance, log_variance
from gch_bench.noise.laws import sites_kept
from gch_bench.noise.mechanism import Mechanism
from gch_bench.noise.table import make_mechanism

QUANTITIES: dict[str, Callable[[Mechanism, int, int], Number | None]] = {
    "gate_variance": gate_variance,
    "log_variance": log_variance,
}
HIGHEST_P = 0.9999
HIGHEST_VALUE = 1e300  # in place of infinity
HIGHEST = 1e6  # of gamma and sigma, which have no bound of their own


class Match(NamedTuple):
    """The strength of a mechanism for a target on one map."""

    option: str  # the option that holds the strength: gamma, sigma or p
    strength: float | None  # None: the target is out of reach, or the mechanism has no such quantity
    reached: Number | None  # the quantity at this strength; where the target is out of reach, the most that is reached
    why_not: str = ""  # in words, why there is no strength


def not_applicable(mechanism: Mechanism, quantity: str) -> str:
    """In words, why a mechanism has no such quantity; "" if it has one."""
    if mechanism.place == "attention":
        return "noise inside an attention has no gate on a map"
    if quantity == "log_variance" and not mechanism.positive:
        return "noise that is added has no gate to take a logarithm of" if mechanism.adds else "its gate is not always positive"
    return ""


def match_strength(
    law: str,
    kernel: str,
    options: Mapping[str, Any],
    target: float,
    height: int,
    width: int,
    injection: str | None = None,
    quantity: str = "gate_variance",
) -> Match:
    """Find the strength at which a mechanism reaches the target on a height x width map.

    It is rounded to four decimals, below 0.01 to four digits. A hard mask drops whole sites: its strength is the share of
    dropped sites, at least one and not all, whose variance is nearest to the target.

    Args:
        law, kernel, options, injection: as in `make_mechanism`; the strength among the options has no effect.
        target: the value to reach, > 0.
        height, width: the size of the map.
        quantity: a key of QUANTITIES.

    Raises:
        ValueError: an argument is out of range (see `make_mechanism`, too), or the map is too small for the kernel.
    """
    check_choice("quantity", quantity, QUANTITIES)
    check_number("target", target, 0, strict=True)
    mechanism = make_mechanism(law, kernel, options, injection)
    option = mechanism.strength
    reason = not_applicable(mechanism, quantity)
    if reason:
        return Match(option, None, None, f"not applicable: {reason}")

    def at(strength: float) -> Number:
        found = QUANTITIES[quantity](make_mechanism(law, kernel, {**options, option: strength}, injection), height, width)
        assert found is not None, "not_applicable has excluded it"
        return found

    return _mask_share(at, target, height * width) if mechanism.law.strength_in_steps else _root(at, target, option)


def _root(at: Callable[[float], Number], target: float, option: str) -> Match:
    low, high = 0.0, HIGHEST_P if option == "p" else 1.0
    most = at(high)
    while most.value < target and option != "p":
        low, before = high, most
        high, most = 2 * high, at(2 * high)
        if most.value <= before.value or high > HIGHEST:  # a sample-wise gate ends up on one site
            break
    if most.value < target:
        words = f"{option} = {high:g}" if option == "p" else f"large {option}"
        return Match(option, None, most, f"reaches at most {most.value:.4g}, with {words}")

    def missing(strength: float) -> float:  # in terms of standard deviations, which grow about linearly with gamma and sigma
        return math.sqrt(min(at(strength).value, HIGHEST_VALUE)) - math.sqrt(target)

    found = float(brentq(missing, low, high, xtol=1e-6 * min(1.0, math.sqrt(target)), rtol=1e-6))
    strength = round(found, 4) if found >= 0.01 else float(f"{found:.4g}")
    return Match(option, strength, at(strength))  # the rounded strength has a value of its own


def _mask_share(at: Callable[[float], Number], target: float, sites: int) -> Match:
    """The share of dropped sites whose quantity is nearest to the target: a bisection over their number."""
    if sites == 1:
        return Match("p", None, Number(0.0), "reaches at most 0: a map of one site has nothing to drop")
    low, high = 1, sites - 1
    most = at(_share(high, sites))
    if most.value < target:
        return Match("p", None, most, f"reaches at most {most.value:.4g}, with {high} of {sites} sites dropped")
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if at(_share(middle, sites)).value > target else (middle, high)
    found = {p: at(p) for p in (_share(low, sites), _share(high, sites))}
    nearest = min(found, key=lambda p: abs(found[p].value - target))
    return Match("p", nearest, found[nearest])


def _share(dropped: int, sites: int) -> float:
    """A short p with which a hard mask drops so many sites."""
    for digits in range(4, 9):
        p = round(dropped / sites, digits)
        if sites_kept(sites, p) == sites - dropped:
            return p
    return dropped / sites
