"""The matrices of one block of a chain, read from weights as its unit says (chain_format.py).

Biases, activations, gates, squeeze-and-excitation and what layer norms divide by or centre at run time depend on the data and
are left out (definition of this project, docs/geometry.md).
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from gch_bench.geometry.chain_format import IF_SQUARE, Chain, Entry, Unit
from gch_bench.spectral.linalg import finite64, product


class Block(NamedTuple):
    """One module that a unit of a chain found."""

    unit: Unit
    name: str
    place: tuple[int, ...]


class Reader(NamedTuple):
    """How the weights of a network are read."""

    weights: Mapping[str, Tensor]
    chain: Chain
    device: torch.device | str
    head_dim: int | None
    residual_scale: float


class BlockMatrices(NamedTuple):
    """A block's operator, and the two ends of its branch. Matrices are float64 (outputs, inputs); see ``linalg.product``."""

    matrix: Tensor  # the shortcut, if there is one, plus residual_scale times the product
    read: Tensor | None  # first plain matrix of the product; None if the product is one plain matrix without shortcut
    write: Tensor | None  # last plain matrix of the product; None together with `read`
    read_group_size: int | None  # rows per head of `read`
    group_size: int | None  # rows per group of `matrix`
    dtype: torch.dtype  # the coarsest in which a weight of the block is stored


def resolved(pattern: str, block: Unit, name: str) -> str:
    """A pattern of whole names, with the numbers that the block captured in the place of \\1, \\2, ..."""
    at = re.fullmatch(block.block, name)
    assert at is not None
    return re.sub(r"\\(\d)", lambda number: re.escape(at[int(number[1])]), pattern)


def block_matrices(reader: Reader, block: Block, inputs: int | None) -> BlockMatrices:
    """The matrices of a block. ``inputs`` is the number of outputs of the factor before it, None for the first.

    Raises:
        ValueError: if a weight is missing, not finite, not floating-point or of a wrong shape.
    """
    unit, weights = block.unit, _BlockWeights(reader, block)
    factors = weights.factors(unit.product)
    at = [index for index, factor in enumerate(factors) if factor.ndim == 2]
    branch = _columns(_multiplied(factors), block, inputs)
    shortcut = _shortcut(reader, weights, branch, inputs)
    matrix = branch if shortcut is None else shortcut + reader.residual_scale * branch
    ends = None if shortcut is None else (branch, branch)
    read_group_size = None
    if len(at) > 1:
        ends = _columns(_multiplied(factors[: at[0] + 1]), block, inputs), _multiplied(factors[at[-1] :])
        if next(entry.heads for entry in unit.product if weights.is_matrix(entry)):
            read_group_size = weights.head_dim_of(ends[0])
    read, write = ends or (None, None)
    for factor in weights.factors(unit.behind):
        matrix = _multiplied([matrix, factor])
        write = None if write is None else _multiplied([write, factor])
    size = weights.need_head_dim() if isinstance(unit.group_size, str) else unit.group_size
    coarsest = max(weights.dtypes, key=lambda dtype: torch.finfo(dtype).eps)
    return BlockMatrices(matrix, read, write, read_group_size, size, coarsest)


def _multiplied(factors: Sequence[Tensor]) -> Tensor:
    """The product of matrices (2-D), gains (1-D) and repetitions of rows (1-D, indices), of which the first acts first."""
    total: Tensor | None = None
    for factor in factors:
        if total is None:
            total = factor
        elif factor.ndim == 2:
            total = factor * total if total.ndim == 1 else product(factor, total)
        elif factor.is_floating_point():
            total = factor * total if total.ndim == 1 else factor[:, None] * total
        else:
            total = total[factor]
    assert total is not None
    return torch.diag(total) if total.ndim == 1 else total


def _columns(matrix: Tensor, block: Block, inputs: int | None) -> Tensor:
    """The matrix on the inputs of the block: copies of an input summed, columns of a concatenated skip connection left out."""
    copies = block.unit.copies
    if copies > 1:
        if matrix.shape[1] % copies:
            raise ValueError(f"{block.name} takes {matrix.shape[1]} inputs, which are no {copies} copies")
        matrix = matrix.unflatten(1, (copies, -1)).sum(1)
    return matrix[:, :inputs] if block.unit.concatenated and inputs is not None else matrix


def _shortcut(reader: Reader, weights: "_BlockWeights", branch: Tensor, inputs: int | None) -> Tensor | None:
    """(outputs, inputs): the projection or the identity that is added to the branch; None if nothing is."""
    block = weights.block
    unit, name = block.unit, block.name
    if unit.shortcut is None:
        return None
    square = branch.shape[0] == branch.shape[1]
    if unit.shortcut == IF_SQUARE:
        excepted = unit.shortcut_except is not None and re.fullmatch(unit.shortcut_except, name) is not None
        if not reader.chain.shortcuts.get(name, square and not excepted):
            return None
    elif unit.projection and all(weights.find(entry) for entry in unit.projection):
        projection = _columns(_multiplied(weights.factors(unit.projection)), block, inputs)
        if projection.shape != branch.shape:
            raise ValueError(f"{name} has shape {tuple(branch.shape)} and its shortcut {tuple(projection.shape)}")
        return projection
    if not square:
        raise ValueError(f"{name} has an identity shortcut but is {tuple(branch.shape)}, not square")
    return torch.eye(len(branch), dtype=torch.float64, device=reader.device)


class _BlockWeights:
    """The weights of one block; keeps the dtypes of those that were read."""

    def __init__(self, reader: Reader, block: Block) -> None:
        prefix = f"{block.name}."
        self.reader, self.block = reader, block
        self.own = {key.removeprefix(prefix): key for key in reader.weights if key.startswith(prefix)}
        self.dtypes: list[torch.dtype] = []
        self.head_dim = block.unit.head_dim if reader.head_dim is None else reader.head_dim

    def need_head_dim(self) -> int:
        if self.head_dim is None:
            raise ValueError(
                f"{self.block.name} comes in attention heads of a size that its weights do not say: give head_dim=SIZE"
            )
        return self.head_dim

    def head_dim_of(self, values: Tensor) -> int | None:
        """Rows per head of the value matrix; None if the size of a head is unknown."""
        if self.head_dim is not None and len(values) % self.head_dim:
            raise ValueError(f"head_dim must divide the {len(values)} value rows of {self.block.name}, got {self.head_dim}")
        return self.head_dim

    def read(self, key: str) -> Tensor:
        weight = self.reader.weights[key]
        if not weight.is_floating_point():
            raise ValueError(
                f"{key} must hold floating-point numbers, got {weight.dtype}: quantised weights must be unpacked first"
            )
        self.dtypes.append(weight.dtype)
        return finite64(weight.to(self.reader.device), key)

    def find(self, entry: Entry) -> str | None:
        """The whole name of an entry's weight; None if it is missing."""
        return self._named(entry, entry.key)

    def _named(self, entry: Entry, pattern: str) -> str | None:
        if entry.root:
            pattern = resolved(pattern, self.block.unit, self.block.name)
            return next((key for key in self.reader.weights if re.fullmatch(pattern, key)), None)
        return next((self.own[key] for key in self.own if re.fullmatch(pattern, key)), None)

    def is_matrix(self, entry: Entry) -> bool:
        return entry.form == "matrix" and self.find(entry) is not None

    def factors(self, entries: Sequence[Entry]) -> list[Tensor]:
        """What `_multiplied` multiplies. Raises ValueError if a weight is missing or two do not compose."""
        found: list[Tensor] = []
        outputs: int | None = None  # of what was found so far
        heads = False  # whether these come in heads that may have to be repeated
        for entry in entries:
            key = self.find(entry)
            if key is None:
                if entry.optional:
                    continue
                there = ", ".join(list(self.own)[:5])
                raise ValueError(f"{self.block.name} has no weight {entry.key}, which its chain needs; it has {there}")
            weight = self._norm_gain(entry, key) if entry.form == "batch_norm" else self.read(key)
            if outputs is not None and heads and weight.ndim == 2 and weight.shape[1] != outputs:
                found.append(_repeated_heads(outputs, weight.shape[1], self.need_head_dim(), key).to(weight.device))
                outputs = len(found[-1])
            if entry.form in ("diagonal", "batch_norm"):
                weight = weight.flatten()
            elif entry.form == "depthwise" and weight.shape[1] == 1:
                weight = weight.flatten(1).sum(1)
            else:
                inputs = len(weight) if entry.form == "depthwise" and outputs is None else outputs
                weight = _matrix(weight, entry, key, inputs, self.need_head_dim if entry.interleaved else None)
            if weight.ndim == 1 and outputs not in (None, len(weight)):
                raise ValueError(
                    f"{key} has {len(weight)} gains, and what comes before it in {self.block.name} gives {outputs} outputs"
                )
            if entry.norm:
                gain = self._norm_gain(entry, self._norm(entry))
                if len(gain) != len(weight):
                    raise ValueError(f"{key} has {len(weight)} outputs, and its batch norm {entry.norm} {len(gain)} gains")
                weight = gain * weight if weight.ndim == 1 else gain[:, None] * weight
            found.append(weight)
            outputs, heads = len(weight), entry.heads
        return found

    def _norm(self, entry: Entry) -> str:
        name = self._named(entry, rf"(?:{entry.norm})\.running_var")
        if name is None:
            raise ValueError(f"{self.block.name} has no {entry.norm}.running_var, which its chain folds into {entry.key}")
        return name

    def _norm_gain(self, entry: Entry, key: str) -> Tensor:
        """gamma / sqrt(running variance + eps) of a batch norm; gamma is 1 if it is not stored."""
        norm = key.removesuffix(".running_var")
        variance = self.read(key)
        if float(variance.min()) < 0:
            raise ValueError(f"{key} must be >= 0, got {float(variance.min())!r}")
        gain = (variance + self.reader.chain.eps.get(norm, entry.eps)).rsqrt()
        return gain * self.read(f"{norm}.weight") if f"{norm}.weight" in self.reader.weights else gain


def _repeated_heads(outputs: int, wanted: int, head_dim: int, key: str) -> Tensor:
    """(wanted,): which row stands where if each head of ``head_dim`` rows is repeated for every query head that shares it."""
    if outputs % head_dim or wanted % outputs:
        raise ValueError(f"{key} takes {wanted} inputs, which are no copies of {outputs} rows in heads of {head_dim}")
    return torch.arange(outputs).unflatten(0, (-1, head_dim)).repeat_interleave(wanted // outputs, 0).flatten()


def _matrix(weight: Tensor, entry: Entry, key: str, inputs: int | None, head_dim: Callable[[], int] | None) -> Tensor:
    """(outputs, inputs) of a linear layer or a convolution at DC, grouped if its weight has fewer columns than ``inputs``."""
    if weight.ndim < 2:
        raise ValueError(f"{key} must be a matrix or a convolution, got shape {tuple(weight.shape)}")
    matrix = weight.flatten(2).sum(2) if weight.ndim > 2 else weight
    if entry.transpose:
        matrix = matrix.mT
    if entry.part:
        index, parts = entry.part
        period = parts * head_dim() if head_dim else len(matrix)
        if len(matrix) % parts or len(matrix) % period:
            raise ValueError(f"{key} has {len(matrix)} rows, which do not split into {parts} parts")
        matrix = matrix.unflatten(0, (-1, parts, period // parts))[:, index - 1].flatten(0, 1)
    if inputs is None or inputs == matrix.shape[1]:
        return matrix
    groups = inputs // matrix.shape[1]
    if weight.ndim == 2 or inputs % matrix.shape[1] or len(matrix) % groups:
        raise ValueError(
            f"{key} has shape {tuple(matrix.shape)} (outputs, inputs), which does not compose with the {inputs} outputs of what"
            " comes before it"
        )
    return torch.block_diag(*matrix.chunk(groups))
