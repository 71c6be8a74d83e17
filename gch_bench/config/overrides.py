"""Values as the command line writes them, for commands that a user can copy."""

import re
from collections.abc import Mapping
from typing import Any


def written(value: Any) -> str:
    """A plain value as Hydra reads it on the command line, e.g. {name: dropout, p: 0.1, stages: [L3,L4]}, null, true, 0.1."""
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{name}: {written(each)}' for name, each in value.items())}}}"
    if isinstance(value, list | tuple):
        return f"[{','.join(map(written, value))}]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return _text(value) if isinstance(value, str) else repr(value)


def _text(value: str) -> str:
    """In quotes where Hydra would otherwise read something else: a number, null, or several values."""
    plain = re.fullmatch(r"[A-Za-z_][\w./+-]*", value) and value.lower() not in ("null", "true", "false", "nan", "inf")
    quoted = value.replace("'", r"\'")
    return value if plain else f"'{quoted}'"
