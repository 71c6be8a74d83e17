"""Strengths of all mechanisms at which their gates have equal variance: python scripts/match_variance.py 0.1 0.2 0.4 0.8

It prints a sweep point for each mechanism and variance on the map of --map, with the variance that is reached. The points in
configs/experiment/matched_strength.yaml were made by it. Additive noise is matched by the variance of what is added to features
whose root mean square is 1.
"""

import argparse
from collections.abc import Callable
from typing import Any

from gch_bench.noise.strength import realised
from gch_bench.noise.table import make_mechanism

# Mechanism -> its options but for the strength, as in configs/noise/, and the name and upper bound of the strength.
MECHANISMS: dict[str, tuple[dict[str, Any], str, float]] = {
    "dropout": ({"law": "bernoulli"}, "p", 0.99),
    "dropblock": ({"law": "block", "block_size": 3}, "p", 0.99),
    "hard_mask": ({"law": "hard_mask"}, "p", 0.99),
    "lognormal_iid": ({"law": "wick", "kernel": "white", "beta": 1.0}, "gamma", 10.0),
    "additive": ({"law": "gaussian", "kernel": "white", "match_variance": True}, "sigma", 10.0),
    "additive_green": ({"law": "gaussian", "match_variance": True}, "sigma", 10.0),
    "gch": ({"law": "samplewise", "beta": 1.0}, "gamma", 10.0),
}


def gate_variance(options: dict[str, Any], height: int, width: int) -> float:
    """The variance of a mechanism's gate, averaged over the sites: in closed form, or where there is none measured."""
    own = {name: value for name, value in options.items() if name not in ("law", "kernel")}
    mechanism = make_mechanism(options["law"], options.get("kernel", "dirichlet_green"), own)
    expected = mechanism.expected(height, width).gate_variance
    return realised(mechanism, height, width).gate_variance if expected is None else expected


def strength_of(variance_at: Callable[[float], float], target: float, high: float) -> float:
    """The strength in (0, high), to four decimals, at which a variance that grows with the strength reaches the target."""
    low = 0.0
    while high - low > 1e-5:
        middle = (low + high) / 2
        low, high = (low, middle) if variance_at(middle) > target else (middle, high)
    return round(low, 4)


def mask_share(variance_at: Callable[[float], float], target: float, sites: int) -> float:
    """The share p of dropped sites whose variance is nearest to the target: a hard mask drops whole sites."""
    return min((round(k / sites, 4) for k in range(1, sites)), key=lambda p: abs(variance_at(p) - target))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("variances", nargs="+", type=float, help="the variances of the gate to reach, each in (0, 4)")
    parser.add_argument(
        "--map", nargs=2, type=int, default=(7, 7), metavar=("HEIGHT", "WIDTH"), help="the stage's map in sites"
    )
    arguments = parser.parse_args()
    if not all(0 < target < 4 for target in arguments.variances) or min(arguments.map) < 2:
        parser.error(f"variances must be in (0, 4) and the map at least 2x2, got {arguments.variances} {arguments.map}")
    height, width = arguments.map
    for name, (options, strength, high) in MECHANISMS.items():
        for target in arguments.variances:

            def variance_at(value: float, fixed: dict[str, Any] = options, option: str = strength) -> float:
                return gate_variance({**fixed, option: value}, height, width)

            mask = options["law"] == "hard_mask"
            found = mask_share(variance_at, target, height * width) if mask else strength_of(variance_at, target, high)
            values = {"name": name, **options, strength: found}
            text = ", ".join(f"{key}: {str(value).lower() if value is True else value}" for key, value in values.items())
            print(f"{{{text}}},  # {variance_at(found):.4f}", flush=True)


if __name__ == "__main__":
    main()
