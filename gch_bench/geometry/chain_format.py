"""The format of chain files, which say by regular expressions which weights form a chain of operator matrices.

A chain file (chain_files/*.yaml, or a user's own) has a `name`, a `description` and `units`. A unit finds modules by name:

    units:
      - block: 'layer(\\d+)\\.(\\d+)'    # the module's whole name; its captured numbers are \\1, \\2, ...
        order: ['\\1', '\\2']           # place of its factor in the chain; default: that of its first key in the weights
        product:                        # matrices in the module, first the one applied first; a key is a regular expression
          - {key: 'conv1\\.weight', norm: bn1}
          - {key: 'conv2\\.weight', norm: bn2}
        shortcut:                       # added to the product: `identity`, or a product (identity if a key of it is missing)
          - {key: 'downsample\\.0\\.weight', norm: downsample.1}
        group_size: 64                  # rows per group, or `head_dim`; default: rows are divided into alignment.groups groups
        skip_vectors: true              # modules whose weight is a vector (norms) are left out
        where: 'bn3\\.weight'            # only if the weights have such a key, or all keys of a list
        classifier: true                # the rows are classes; its factor is the last of the chain
      - block: 'fc'
        product: [weight]

A module belongs to the first unit that fits. `shortcut: identity_if_square` adds the identity only to a square product, and
`shortcut_except: REGEX` to none of the modules with such a name. `copies: 4` is for inputs that are several copies of the
module's own at DC (merged patches): the product's columns come in so many blocks, which are summed. `concatenated: true` is for
        shortcut:                       # added to the product: `identity`, or a product (identity if one of its keys lacks)
is the size of an attention head, if the caller knows none.

An entry of a product is a key, or a mapping with `key` and options. `norm` names a batch norm, also by a regular expression, to
fold into the matrix with `eps` (1e-5; the network's own, where there is a network). `as: diagonal` reads a vector of gains,
`as: depthwise` a convolution of each channel by itself, `as: batch_norm` the gain of a batch norm whose running_var is the key.
`transpose: true` is for weights stored inputs x outputs, `part: [i, n]` takes the i-th of n equal parts of the rows, or, with
        where: 'bn3\\.weight'            # only if the weights have such a key, or all keys of a list
is repeated until the rows fill the next matrix. An entry with `optional: true` may be missing. With `root: true`, key and norm
are names in the whole network, not in the module, and may contain the numbers \\1, \\2 that block captured, as may `where`.
Convolutions are taken at DC, their taps summed; a grouped one is a block-diagonal matrix.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

IDENTITY, IF_SQUARE = "identity", "identity_if_square"


@dataclass(frozen=True)
class Entry:
    """One matrix of a product; the docstring of this file explains the fields (``form`` is the option `as`)."""

    key: str
    norm: str | None = None
    eps: float = 1e-5
    form: str = "matrix"  # matrix | diagonal | depthwise | batch_norm
    transpose: bool = False
    part: tuple[int, int] | None = None
    interleaved: bool = False
    heads: bool = False
    optional: bool = False
    root: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.key, str):
            raise ValueError(f"key must be a regular expression, got {self.key!r}")
        for pattern in (self.key, self.norm or ""):
            re.compile(re.sub(r"\\\d", "0", pattern) if self.root else pattern)
        if self.form not in ("matrix", "diagonal", "depthwise", "batch_norm"):
            raise ValueError(f"as must be diagonal, depthwise or batch_norm, got {self.form!r}")
        if self.part is not None and not (
            _whole_numbers(self.part) and len(self.part) == 2 and 1 <= self.part[0] <= self.part[1]
        ):
            raise ValueError(f"part must be [i, n] with 1 <= i <= n, got {list(self.part)}")
        if self.interleaved and self.part is None:
            raise ValueError("interleaved needs part")
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
    shortcut: str | None = None  # IDENTITY | IF_SQUARE
    projection: tuple[Entry, ...] = ()  # replaces the identity, unless a key of it is missing
    shortcut_except: str | None = None
    group_size: int | str | None = None
    skip_vectors: bool = False
    where: tuple[str, ...] = ()
    copies: int = 1
    concatenated: bool = False
    head_dim: int | None = None
    classifier: bool = False

    def __post_init__(self) -> None:
        numbers = re.compile(self.block).groups
        for pattern in (*(re.sub(r"\\\d", "0", pattern) for pattern in self.where), self.shortcut_except or ""):
            re.compile(pattern)
        if all(entry.optional or entry.root for entry in self.product):
            raise ValueError("a product must have an entry of the block's own that is not optional")
        if self.shortcut not in (None, IDENTITY, IF_SQUARE):
            raise ValueError(f"shortcut must be {IDENTITY}, {IF_SQUARE} or a product, got {self.shortcut!r}")
        for name, count in (("copies", self.copies), ("head_dim", self.head_dim)):
            if count is not None and (not _whole_numbers([count]) or count < 1):
                raise ValueError(f"{name} must be a whole number >= 1, got {count!r}")
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
    eps: Mapping[str, float] = field(default_factory=dict)  # of the network's batch norms, by name; others have Entry.eps
    shortcuts: Mapping[str, bool] = field(default_factory=dict)  # whether a block has one, instead of `identity_if_square`


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
    unknown = set(content) - {each.name for each in fields(Unit) if each.name != "projection"}
    if unknown:
        raise ValueError(f"unknown {', '.join(sorted(unknown))} in a unit")
    options = dict(content)
    options["product"] = _entries(content["product"])
    if isinstance(content.get("shortcut"), list):
        options |= {"shortcut": IDENTITY, "projection": _entries(content["shortcut"])}
    if "order" in content:
        options["order"] = tuple(content["order"])
    if "where" in content:
        options["where"] = tuple([content["where"]] if isinstance(content["where"], str) else content["where"])
    return Unit(**options)


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
