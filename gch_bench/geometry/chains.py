"""Chains of operator matrices (outputs x inputs) read from weights. The format of chain files: chain_format.py.

Source: GSA I, arXiv 2605.02108; which matrices represent a block is this project's choice (docs/geometry.md).
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from gch_bench.geometry.chain_format import Chain, Entry, Unit, load_chain
from gch_bench.results.geometry import STATIC
from gch_bench.spectral.linalg import finite64

# `chain=auto` takes the first family that has a chain in the weights; the last, `layers`, only if its shapes compose.
FAMILIES = (
    ("resnet",), ("convnext",), ("vit_mlp", "vit_ov"), ("mixer",), ("gpt2_mlp", "gpt2_ov"), ("llama_mlp", "llama_ov"),
    ("dit_mlp", "dit_ov"), ("unet2d",), ("layers",),
)  # fmt: skip


class Factor(NamedTuple):
    """One operator of a chain."""

    name: str  # the module's name
    matrix: Tensor  # float64 (outputs, inputs), with the shortcut added if the block has one
    group_size: int | None = None  # rows per group, if the rows come in groups such as heads
    kind: str = STATIC
    # The branch's first and last plain matrix, without shortcut: what the block reads from and writes to the residual stream.
    # None where they are the matrix itself.
    read: Tensor | None = None  # float64 (hidden, inputs), with the gain of the norm before it
    write: Tensor | None = None  # float64 (outputs, hidden), with the batch norm or layer scale behind it
    read_group_size: int | None = None  # rows per group of `read`, if they come in heads
    dtype: torch.dtype = torch.float32  # the coarsest in which a weight of the factor is stored
    classifier: bool = False  # whether the rows are classes
    together: Tensor | None = None  # measured Jacobians: of the block before and this one, differentiated together


class _Block(NamedTuple):
    unit: Unit
    name: str
    place: tuple[int, ...]


def chain_blocks(weights: Mapping[str, Tensor], chain: Chain) -> list[str]:
    """The names of the chain's modules, in order; [] if the weights have none."""
    return [block.name for block in _blocks(weights, chain)]


def _blocks(weights: Mapping[str, Tensor], chain: Chain) -> list[_Block]:
    found: dict[str, _Block] = {}
    for position, key in enumerate(weights):
        for unit in chain.units:
            first = next(entry for entry in unit.product if not entry.optional)
            match = re.fullmatch(rf"(?P<_block>{unit.block})\.(?:{first.key})", key)
            if match and not (unit.skip_vectors and weights[key].ndim < 2):
                name = match["_block"]
                at = re.fullmatch(unit.block, name)
                assert at is not None
                place = (position,) if unit.order is None else tuple(int(at.expand(str(part))) for part in unit.order)
                found.setdefault(name, _Block(unit, name, place))
                break
    return sorted(found.values(), key=lambda block: block.place)


def find_chains(weights: Mapping[str, Tensor]) -> list[Chain]:
    """The chains with at least two blocks in these weights, of the first family that has such a chain; [] if none has."""
    adaptive = any("adaLN_modulation" in key for key in weights)  # the original DiT also has the keys of a vision transformer
    for family in sorted(FAMILIES[:-1], key=lambda family: not (adaptive and family[0].startswith("dit"))):
        chains = [load_chain(name) for name in family]
        present = [chain for chain in chains if len(chain_blocks(weights, chain)) >= 2]
        if present:
            return present
    layers = load_chain(*FAMILIES[-1])
    try:
        for _ in chain_factors(weights, layers):
            pass
    except ValueError:
        return []
    return [layers]


def chain_factors(
    weights: Mapping[str, Tensor], chain: Chain, device: torch.device | str = "cpu", head_dim: int | None = None
) -> Iterator[Factor]:
    """Yield the factors of a chain, in order, in float64 on ``device``; each weight is read only when it is needed.

    ``head_dim`` is the number of rows of an attention head; chains with grouped queries or groups of rows need it.

    Raises:
        ValueError: if there are fewer than two blocks, a matrix is missing, not finite or of a wrong shape, or factors do not
            compose (the message names both).
    """
    blocks = _blocks(weights, chain)
    if len(blocks) < 2:
        raise ValueError(
            f"chain {chain.name} needs at least two blocks {' or '.join(unit.block for unit in chain.units)}, the weights have"
            f" {len(blocks)} (first keys: {', '.join(list(weights)[:3])})"
        )
    reader = _Reader(weights, device, head_dim)
    factors = (Factor(block.name, _operator(reader, block), reader.group_size(block)) for block in blocks)
    yield from composing(factors, chain.name)


class _Reader(NamedTuple):
    weights: Mapping[str, Tensor]
    device: torch.device | str
    head_dim: int | None

    def read(self, key: str) -> Tensor:
        weight = self.weights[key]
        if not weight.is_floating_point():
            raise ValueError(
                f"{key} must hold floating-point numbers, got {weight.dtype}: quantised weights must be unpacked first"
            )
        return finite64(weight.to(self.device), key)

    def head(self, block: str) -> int:
        if self.head_dim is None:
            raise ValueError(f"{block} comes in attention heads of a size that its weights do not say: give head_dim=SIZE")
        return self.head_dim

    def group_size(self, block: _Block) -> int | None:
        size = block.unit.group_size
        return self.head(block.name) if isinstance(size, str) else size


def composing(factors: Iterable[Factor], chain: str) -> Iterator[Factor]:
    """Yield the factors. Raises ValueError, naming both, if one has not as many inputs as the one before it has outputs."""
    before: tuple[str, tuple[int, ...]] | None = None
    for factor in factors:
        shape = tuple(factor.matrix.shape)
        if before is not None and before[1][0] != shape[1]:
            raise ValueError(
                f"chain {chain} does not compose: {factor.name} has shape {shape} (outputs, inputs) and takes {shape[1]}"
                f" inputs, {before[0]} before it has shape {before[1]} and gives {before[1][0]} outputs"
            )
        before = (factor.name, shape)
        yield factor


def _operator(reader: _Reader, block: _Block) -> Tensor:
    unit, prefix = block.unit, f"{block.name}."
    own = {key.removeprefix(prefix): key for key in reader.weights if key.startswith(prefix)}
    matrix = _product(reader, own, unit.product, block.name)
    if not unit.has_shortcut:
        return matrix
    if unit.shortcut and all(_find(own, entry) for entry in unit.shortcut):
        shortcut = _product(reader, own, unit.shortcut, block.name)
    else:
        if matrix.shape[0] != matrix.shape[1]:
            raise ValueError(f"{block.name} has an identity shortcut but is {tuple(matrix.shape)}, not square")
        shortcut = torch.eye(len(matrix), dtype=torch.float64, device=reader.device)
    if shortcut.shape != matrix.shape:
        raise ValueError(f"{block.name} has shape {tuple(matrix.shape)} and its shortcut {tuple(shortcut.shape)}")
    return matrix + shortcut


def _find(own: Mapping[str, str], entry: Entry) -> str | None:
    return next((own[key] for key in own if re.fullmatch(entry.key, key)), None)


def _product(reader: _Reader, own: Mapping[str, str], entries: Sequence[Entry], block: str) -> Tensor:
    """The product of the entries' matrices, of which the first acts first."""
    total: Tensor | None = None
    heads = False  # whether the rows so far are heads that may have to be repeated
    for entry in entries:
        key = _find(own, entry)
        if key is None:
            if entry.optional:
                continue
            raise ValueError(f"{block} has no weight {entry.key}, which its chain needs; it has {', '.join(list(own)[:5])}")
        weight = reader.read(key)
        if total is not None and heads and weight.ndim == 2 and weight.shape[1] != len(total):
            total = _repeated_heads(total, weight.shape[1], reader.head(block), key)
        inputs = None if total is None else len(total)
        if entry.form != "matrix":
            gain = weight.flatten(1).sum(1) if entry.form == "depthwise" else weight.flatten()
            total = torch.diag(gain) if total is None else gain[:, None] * total if len(gain) == inputs else None
            if total is None:
                raise ValueError(f"{key} has {len(gain)} gains, and what comes before it in {block} gives {inputs} outputs")
        else:
            matrix = _matrix(weight, entry, key, inputs)
            if entry.norm:
                matrix = _norm_gain(reader, own, entry, block)[:, None] * matrix
            total = matrix if total is None else matrix @ total
        heads = entry.heads
    assert total is not None
    return total


def _repeated_heads(total: Tensor, wanted: int, head_dim: int, key: str) -> Tensor:
    """(wanted, inputs): each head of ``head_dim`` rows repeated in place, once for every query head that shares it."""
    if len(total) % head_dim or wanted % len(total):
        raise ValueError(f"{key} takes {wanted} inputs, which are no copies of {len(total)} rows in heads of {head_dim}")
    return total.unflatten(0, (-1, head_dim)).repeat_interleave(wanted // len(total), 0).flatten(0, 1)


def _matrix(weight: Tensor, entry: Entry, key: str, inputs: int | None) -> Tensor:
    """(outputs, inputs) of a linear layer or a convolution at DC, grouped if its weight has fewer columns than ``inputs``."""
    if weight.ndim < 2:
        raise ValueError(f"{key} must be a matrix or a convolution, got shape {tuple(weight.shape)}")
    matrix = weight.flatten(2).sum(2) if weight.ndim > 2 else weight
    if entry.transpose:
        matrix = matrix.mT
    if entry.part:
        index, parts = entry.part
        if len(matrix) % parts:
            raise ValueError(f"{key} has {len(matrix)} rows, which do not split into {parts} parts")
        matrix = matrix.chunk(parts)[index - 1]
    if inputs is None or inputs == matrix.shape[1]:
        return matrix
    groups = inputs // matrix.shape[1]
    if weight.ndim == 2 or inputs % matrix.shape[1] or len(matrix) % groups:
        raise ValueError(
            f"{key} has shape {tuple(matrix.shape)} (outputs, inputs), which does not compose with the {inputs} outputs of what"
            " comes before it"
        )
    return torch.block_diag(*matrix.chunk(groups))


def _norm_gain(reader: _Reader, own: Mapping[str, str], entry: Entry, block: str) -> Tensor:
    """gamma / sqrt(running variance + eps) of a batch norm; gamma is 1 if it is not stored."""
    name = next((key for key in own if re.fullmatch(rf"(?:{entry.norm})\.running_var", key)), None)
    if name is None:
        raise ValueError(f"{block} has no {entry.norm}.running_var, which its chain folds into {entry.key}")
    variance = reader.read(own[name])
    if float(variance.min()) < 0:
        raise ValueError(f"{own[name]} must be >= 0, got {float(variance.min())!r}")
    scale = own.get(name.removesuffix("running_var") + "weight")
    gain = (variance + entry.eps).rsqrt()
    return gain * reader.read(scale) if scale else gain


def weight_matrices(weights: Mapping[str, Tensor], device: torch.device | str = "cpu") -> Iterator[tuple[str, Tensor]]:
    """Yield (name of its layer, (taps, outputs, inputs)) for every weight of at least two dimensions, axes as they are stored.

    A convolution has one matrix per tap. Norms and biases, which are vectors, are left out, and so are weights that are not
    floating-point numbers.
    """
    for key in weights:
        if key.endswith(".weight") or key == "weight":
            weight = weights[key]
            if weight.ndim >= 2 and weight.is_floating_point() and 0 not in weight.shape:
                weight = weight.to(device)
                yield key.removesuffix(".weight"), weight.flatten(2).permute(2, 0, 1) if weight.ndim > 2 else weight[None]
