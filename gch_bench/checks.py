"""The checks that every part of the program makes of what it is given."""

import math

from gch_bench.errors import UserError


def check(good: bool, name: str, rule: str, value: object) -> None:
    """Raise UserError `name must be rule, got value` unless good."""
    if not good:
        raise UserError(f"{name} must be {rule}, got {value!r}")


def check_number(name: str, value: float, low: float, strict: bool = False) -> None:
    """Raise ValueError unless ``value`` is finite and ``>= low`` (``> low`` when strict)."""
    good = isinstance(value, (int, float)) and math.isfinite(value) and (value > low if strict else value >= low)
    if not good:
        raise ValueError(f"{name} must be a finite number {'>' if strict else '>='} {low:g}, got {value!r}")


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}; got {value!r}")


def check_probability(name: str, value: float) -> None:
    if not (isinstance(value, (int, float)) and 0 <= value < 1):
        raise ValueError(f"{name} must be in [0, 1), got {value!r}")
