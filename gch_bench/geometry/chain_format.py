"""The format of chain files, which say by regular expressions which weights form a chain of operator matrices.

A chain file (chain_files/*.yaml, or a user's own) has a `name`, a `description` and `units`. A unit finds modules by name:

    units:
      - block: 'layer(\\d+)\\.(\\d+)'    # the module's whole name; its captured numbers are \\1, \\2, ...
        order: ['\\1', '\\2']           # place of its factor in the chain; default: the place of its first key in the weights
        product:                        # matrices in the module, first the one applied first; a key is a regular expression
          - {key: 'conv1\\.weight', norm: bn1}
          - {key: 'conv2\\.weight', norm: bn2}
        shortcut:                       # added to the product: `identity`, or a product (if a key of it is missing: identity)
          - {key: 'downsample\\.0\\.weight', norm: downsample.1}
        group_size: 64                  # rows per group, or `head_dim`; default: rows are divided into alignment.groups groups
        skip_vectors: true              # modules whose weight is a vector (norms) are left out

An entry of a product is a key, or a mapping with `key` and options. `norm` names a batch norm, also by a regular expression, to
fold into the matrix with `eps` (1e-5). `as: diagonal` reads a vector of gains, `as: depthwise` a convolution of each channel by
itself. `transpose: true` is for weights stored inputs x outputs, `part: [i, n]` takes the i-th of n equal parts of the rows.
`heads: true` is for grouped queries: each head of head_dim rows is repeated until the rows fill the next matrix. An entry with
`optional: true` may be missing. Convolutions are taken at DC, their taps summed; a grouped one is a block-diagonal matrix.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import yaml


@dataclass(frozen=True)
class Entry:
    """One matrix of a product; the docstring of this file explains the fields (``form`` is the option `as`)."""

    key: str
    norm: str | None = None
    eps: float = 1e-5
    form: str = "matrix"  # matrix | diagonal | depthwise
    transpose: bool = False
    part: tuple[int, int] | None = None
    heads: bool = False
    optional: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.key, str):
            raise ValueError(f"key must be a regular expression, got {self.key!r}")
        re.compile(self.key)
        if self.norm is not None:
            re.compile(self.norm)
        if self.form not in ("matrix", "diagonal", "depthwise"):
            raise ValueError(f"as must be diagonal or depthwise, got {self.form!r}")
        if self.part is not None and not (
            _whole_numbers(self.part) and len(self.part) == 2 and 1 <= self.part[0] <= self.part[1]
        ):
            raise ValueError(f"part must be [i, n] with 1 <= i <= n, got {list(self.part)}")
        if not isinstance(self.eps, float) or self.eps < 0:
            raise ValueError(f"eps must be a number >= 0 such as 1.0e-5, got {self.eps!r}")


def _whole_numbers(values: Sequence[Any]) -> bool:
    return all(isinstance(value, int) and not isinstance(value, bool) for value in values)


@dataclass(frozen=True)
class Unit:
    """One kind of module in a chain; the docstring of this file explains the fields."""

    block: str
    product: tuple[Entry, ...]
    order: tuple[str | int, ...] | None = None
    has_shortcut: bool = False
    shortcut: tuple[Entry, ...] = ()  # the identity, if it is empty or a key of it is missing
    group_size: int | str | None = None
    skip_vectors: bool = False

    def __post_init__(self) -> None:
        numbers = re.compile(self.block).groups
        if all(entry.optional for entry in self.product):
            raise ValueError("a product must have an entry that is not optional")
        size = self.group_size
        if size not in (None, "head_dim") and (not isinstance(size, int) or isinstance(size, bool) or size < 1):
            raise ValueError(f"group_size must be a whole number >= 1 or head_dim, got {size!r}")
        for part in self.order or ():
            captured = re.fullmatch(r"\\(\d)", part) if isinstance(part, str) else None
            if not (_whole_numbers([part]) or (captured and 1 <= int(captured[1]) <= numbers)):
                raise ValueError(
                    f"order must hold whole numbers and \\1..\\{numbers}, the numbers that block captures, got {part!r}"
                )


@dataclass(frozen=True)
class Chain:
    """A named way to read an ordered list of factors from weights."""

    name: str
    description: str
    units: tuple[Unit, ...]


def builtin_chains() -> list[str]:
    """The names of the built-in chains, which `chain=` takes besides a file."""
    return sorted(path.name.removesuffix(".yaml") for path in _folder().iterdir() if path.name.endswith(".yaml"))


def _folder() -> Any:
    return resources.files("gch_bench.geometry") / "chain_files"


def load_chain(chain: str) -> Chain:
    """A built-in chain by name, or one from a .yaml file.

    Raises:
        ValueError: if there is no such chain or file, or the file breaks the format explained on top.
    """
    if chain in builtin_chains():
        text = (_folder() / f"{chain}.yaml").read_text()
    elif chain.endswith((".yaml", ".yml")):
        try:
            text = Path(chain).expanduser().read_text()
        except OSError as error:
            raise ValueError(f"chain file {chain} cannot be read: {error.strerror}") from error
    else:
        raise ValueError(f"unknown chain {chain!r}: choose one of {', '.join(builtin_chains())}, or a file NAME.yaml")
    try:
        content = yaml.safe_load(text)
        if not isinstance(content, dict) or set(content) - {"name", "description", "units"} or not content.get("units"):
            raise ValueError("it must have name, description and units")
        units = tuple(_unit(unit) for unit in content["units"])
        return Chain(str(content.get("name", Path(chain).stem)), str(content.get("description", "")), units)
    except (yaml.YAMLError, ValueError, TypeError, KeyError, AttributeError, re.error) as error:
        raise ValueError(
            f"chain file {chain} is wrong: {' '.join(str(error).split())}; see gch_bench/geometry/chain_format.py"
        ) from error


def _unit(content: dict[str, Any]) -> Unit:
    unknown = set(content) - {"block", "order", "product", "shortcut", "group_size", "skip_vectors"}
    if unknown:
        raise ValueError(f"unknown {', '.join(sorted(unknown))} in a unit")
    shortcut = content.get("shortcut")
    return Unit(
        block=content["block"],
        product=_entries(content["product"]),
        order=tuple(content["order"]) if "order" in content else None,
        has_shortcut=shortcut is not None,
        shortcut=() if shortcut in (None, "identity") else _entries(shortcut),
        group_size=content.get("group_size"),
        skip_vectors=content.get("skip_vectors", False),
    )


def _entries(contents: Any) -> tuple[Entry, ...]:
    if not isinstance(contents, list):
        raise ValueError(f"a product must be a list of keys, got {contents!r}")
    entries = []
    for content in contents:
        options: dict[str, Any] = {"key": content} if isinstance(content, str) else dict(content)
        if "as" in options:
            options["form"] = options.pop("as")
        if "part" in options:
            options["part"] = tuple(options["part"])
        entries.append(Entry(**options))
    return tuple(entries)
