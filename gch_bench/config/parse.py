"""Turns the plain dictionaries that Hydra composes into checked dataclasses, and reads defaults and identities off the classes.

A field's default stands in its dataclass and nowhere else. `defaults` gives all defaults to Hydra as the lowest layer of every
composition, so that a YAML file says only what it chooses. The full name of a field is put together here: a dataclass reports
an error in `size`, and the user reads `data.size`.
"""

import types
import typing
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any

from gch_bench.checks import check
from gch_bench.errors import FieldError, UserError

# Version of all identities. It is raised when a default changes, because an identity leaves out every field at its default.
SCHEMA = 1

# Metadata that marks a dataclass field as having no influence on the results: where files lie, how a run is logged, how fast
# it goes.
NOT_IN_IDENTITY = {"identity": False}

T = typing.TypeVar("T")


def identity_of(config: Any) -> dict[str, Any]:
    """What determines the results of a configuration: SCHEMA, and the fields that differ from their defaults, nested.

    Fields marked NOT_IN_IDENTITY are left out. A field that a later version adds with a default does not change the identity of
    an older configuration.
    """
    return {"schema": SCHEMA, **_differing(config)}


def _differing(config: Any) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for each in fields(config):
        value, default = getattr(config, each.name), _default(each)
        if not each.metadata.get("identity", True):
            continue
        if is_dataclass(value):
            inner = _differing(value)
            if inner or not is_dataclass(default):
                values[each.name] = inner
        elif value != default:
            values[each.name] = [_plain(item) for item in value] if isinstance(value, list | tuple) else value
    return values


def _plain(item: Any) -> Any:
    """An item of a list; a dataclass as what differs from its defaults."""
    return _differing(item) if is_dataclass(item) else item


def _default(of: Field) -> Any:
    return of.default_factory() if of.default_factory is not MISSING else of.default


def defaults(kind: type) -> dict[str, Any]:
    """Every field of a dataclass with its default, nested, as plain values; a field without default has Hydra's mark `???`."""
    hints = typing.get_type_hints(kind)
    values: dict[str, Any] = {}
    for each in fields(kind):
        default, inner = _default(each), _dataclass_in(hints[each.name])
        if inner is not None:
            values[each.name] = defaults(inner)
        else:
            values[each.name] = "???" if default is MISSING else list(default) if isinstance(default, tuple) else default
    return values


def _dataclass_in(hint: Any) -> Any:
    """The dataclass that a type hint names, alone or as in `Kind | None`; None for others, lists of dataclasses included."""
    if typing.get_origin(hint) is list:
        return None
    return next((each for each in (hint, *typing.get_args(hint)) if is_dataclass(each)), None)


def parse(values: dict[str, Any], kind: type[T]) -> T:
    """A checked instance of ``kind`` (Config or DiagnoseConfig) from plain dictionaries.

    Keys of the top level that are no field of ``kind``, such as roots and slurm, are ignored.

    Raises:
        UserError: an unknown key in a group, a missing key, a value of a wrong type or out of range. The message is one line.
    """
    own = {f.name for f in fields(kind)}  # type: ignore[arg-type]
    built: T = _build(kind, {key: value for key, value in values.items() if key in own}, "")
    return built


def _build(kind: type, values: Any, path: str) -> Any:
    group = path.rstrip(".")
    check(isinstance(values, dict), group or "config", "a mapping", values)
    hints = typing.get_type_hints(kind)
    known = {f.name: f for f in fields(kind)}
    for key in values:
        if key not in known:
            raise UserError(f"unknown key {path}{key}: choose one of {', '.join(known)}")
    missing = [name for name, f in known.items() if name not in values and _default(f) is MISSING]
    if missing:
        raise UserError(f"{path}{missing[0]} is missing: set {path}{missing[0]}=...")
    converted = {key: _convert(hints[key], value, f"{path}{key}") for key, value in values.items()}
    try:
        return kind(**converted)
    except FieldError as error:
        raise error.in_group(group) from error


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
