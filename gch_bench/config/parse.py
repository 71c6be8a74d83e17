"""Plain dictionaries, as Hydra composes them, to checked dataclasses."""

import types
import typing
from dataclasses import MISSING, fields, is_dataclass
from typing import Any

from gch_bench.checks import check
from gch_bench.errors import UserError

T = typing.TypeVar("T")


def parse(values: dict[str, Any], kind: type[T]) -> T:
    """A checked ``kind`` (Config, DiagnoseConfig) from plain dictionaries. Keys it has not (roots, slurm, hydra) are left out.

    Raises:
        UserError: an unknown or missing key, a wrong type, or a value out of range, in one line.
    """
    own = {f.name for f in fields(kind)}  # type: ignore[arg-type]
    built: T = _build(kind, {key: value for key, value in values.items() if key in own}, "")
    return built


def _build(kind: type, values: Any, path: str) -> Any:
    check(isinstance(values, dict), path.rstrip(".") or "config", "a mapping", values)
    hints = typing.get_type_hints(kind)
    known = {f.name: f for f in fields(kind)}
    for key in values:
        if key not in known:
            raise UserError(f"unknown key {path}{key}: choose one of {', '.join(known)}")
    missing = [
        name for name, f in known.items()
        if name not in values and f.default is MISSING and f.default_factory is MISSING
    ]  # fmt: skip
    if missing:
        raise UserError(f"{path}{missing[0]} is missing: set {path}{missing[0]}=...")
    return kind(**{key: _convert(hints[key], value, f"{path}{key}") for key, value in values.items()})


def _convert(hint: Any, value: Any, path: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in arguments:
            return None
        return _convert(next(argument for argument in arguments if argument is not type(None)), value, path)
    if is_dataclass(hint):
        return _build(typing.cast(type, hint), value, path + ".")
    if origin in (list, tuple):
        check(isinstance(value, (list, tuple)), path, "a list such as [a,b]", value)
        items = [_convert(arguments[0], item, f"{path}[{i}]") for i, item in enumerate(value)]
        return items if origin is list else tuple(items)
    if origin is dict or hint is Any:
        return value
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is str and isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)  # YAML reads a name such as 224 as a number
    check(isinstance(value, hint) and (hint is bool or not isinstance(value, bool)), path, f"of type {hint.__name__}", value)
    return value
