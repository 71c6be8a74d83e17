"""The checks of values that every part of the program uses. Each raises FieldError, `field must be rule, got value`."""

import math
from collections.abc import Iterable

from gch_bench.errors import FieldError


def check(good: bool, field: str, rule: str, value: object) -> None:
    """Raise FieldError `field must be rule, got value` unless `good`."""
    if not good:
        raise FieldError(field, f"must be {rule}, got {value!r}")


def check_number(field: str, value: object, low: float, strict: bool = False) -> None:
    """Raise FieldError unless the value is a finite number and >= `low`, or > `low` where `strict`."""
    good = is_number(value) and math.isfinite(value) and (value > low if strict else value >= low)  # type: ignore[arg-type, operator]
    check(good, field, f"a finite number {'>' if strict else '>='} {low:g}", value)


def check_whole_number(field: str, value: object, low: int) -> None:
    """Raise FieldError unless the value is a whole number and >= `low`."""
    good = isinstance(value, int) and not isinstance(value, bool) and value >= low
    check(good, field, f"a whole number >= {low}", value)


def check_choice(field: str, value: object, choices: Iterable[object]) -> None:
    """Raise FieldError unless the value is one of the choices, which the message lists."""
    choices = list(choices)
    check(value in choices, field, f"one of {', '.join(map(str, choices))}", value)


def check_probability(field: str, value: object, below_one: bool = False) -> None:
    """Raise FieldError unless the value is a number in [0, 1], or in [0, 1) where `below_one`."""
    good = is_number(value) and 0 <= value <= 1 and not (below_one and value == 1)  # type: ignore[operator]
    check(good, field, "a number in [0, 1)" if below_one else "a number in [0, 1]", value)


def is_number(value: object) -> bool:
    """Whether the value is an int or a float; True and False are not."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)
