"""Chains of operator matrices (outputs x inputs) read from weights. The format of chain files: chain_format.py.

Source: GSA I, arXiv 2605.02108; which matrices represent a block is this project's choice (docs/geometry.md).
"""

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from gch_bench.geometry.block_matrices import Block, Reader, block_matrices, resolved
from gch_bench.geometry.chain_format import Chain, load_chain
from gch_bench.results.geometry import STATIC

# `chain=auto` takes the first family that has a chain in the weights; the last, `layers`, only if its shapes compose.
FAMILIES = (
    ("resnet",), ("convnext",), ("mbconv",), ("swin_mlp", "swin_ov"), ("maxvit_mlp", "maxvit_ov"), ("vit_mlp", "vit_ov"),
    ("mixer",), ("gpt2_mlp", "gpt2_ov"), ("llama_mlp", "llama_ov"), ("dit_mlp", "dit_ov"), ("unet2d",), ("layers",),
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


def chain_blocks(weights: Mapping[str, Tensor], chain: Chain, classifier: bool = False) -> list[str]:
    """The names of the chain's modules, in order, on request with the classifier; [] if the weights have none."""
    return [block.name for block in _blocks(weights, chain) if classifier or not block.unit.classifier]


def _blocks(weights: Mapping[str, Tensor], chain: Chain) -> list[Block]:
    """The chain's modules, in order. Each belongs to the first unit that fits it."""
    found: dict[str, Block] = {}
    present: dict[str, bool] = {}  # whether the weights have a key that fits a pattern

    def has(pattern: str) -> bool:
        if pattern not in present:
            present[pattern] = any(re.fullmatch(pattern, key) for key in weights)
        return present[pattern]

    for unit in chain.units:
        first = next(entry for entry in unit.product if not (entry.optional or entry.root))
        finder = re.compile(rf"(?P<_block>{unit.block})\.(?:{first.key})")
        for position, key in enumerate(weights):
            match = finder.fullmatch(key)
            if match is None or match["_block"] in found or (unit.skip_vectors and weights[key].ndim < 2):
                continue
            name = match["_block"]
            at = re.fullmatch(unit.block, name)
            if at is not None and all(has(resolved(pattern, unit, name)) for pattern in unit.where):
                place = (position,) if unit.order is None else tuple(int(at.expand(str(part))) for part in unit.order)
                found[name] = Block(unit, name, place)
    return sorted(found.values(), key=lambda block: (block.unit.classifier, block.place))


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


def for_network(chain: Chain, network: nn.Module) -> Chain:
    """The chain with what weights do not say but their network does.

    These are the eps of its batch norms, and which of its blocks have an identity shortcut where the chain has the rule
    `identity_if_square` (timm's attribute `has_skip`, torchvision's `use_res_connect`).
    """
    eps = {name: norm.eps for name, norm in network.named_modules() if isinstance(norm, _BatchNorm)}
    shortcuts = {}
    for name, block in network.named_modules():
        skip = getattr(block, "has_skip", getattr(block, "use_res_connect", None))
        if isinstance(skip, bool):
            shortcuts[name] = skip
    return replace(chain, eps=eps, shortcuts=shortcuts)


def chain_factors(
    weights: Mapping[str, Tensor],
    chain: Chain,
    device: torch.device | str = "cpu",
    head_dim: int | None = None,
    residual_scale: float = 1.0,
) -> Iterator[Factor]:
    """Yield the factors of a chain, in order, in float64 on ``device``; each weight is read only when it is needed.

    ``head_dim`` is the number of rows of an attention head; chains with grouped queries or groups of rows need it. The matrix
    of a block with a shortcut is the shortcut plus ``residual_scale`` times the branch; `read` and `write` are not scaled.

    Raises:
        ValueError: if there are fewer than two blocks, a matrix is missing, not finite or of a wrong shape, or factors do not
            compose (the message names both).
    """
    if not math.isfinite(residual_scale):
        raise ValueError(f"residual_scale must be finite, got {residual_scale!r}")
    blocks = _blocks(weights, chain)
    if len(blocks) < 2:
        patterns = " or ".join(dict.fromkeys(unit.block for unit in chain.units))
        raise ValueError(
            f"chain {chain.name} needs at least two blocks {patterns}, the weights have {len(blocks)} (first keys:"
            f" {', '.join(list(weights)[:3])})"
        )
    reader = Reader(weights, chain, device, head_dim, residual_scale)
    yield from composing(_factors(reader, blocks), chain.name)


def _factors(reader: Reader, blocks: list[Block]) -> Iterator[Factor]:
    outputs: int | None = None
    for block in blocks:
        found = block_matrices(reader, block, outputs)
        outputs = len(found.matrix)
        yield Factor(
            name=block.name,
            matrix=found.matrix,
            group_size=found.group_size,
            read=found.read,
            write=found.write,
            read_group_size=found.read_group_size,
            dtype=found.dtype,
            classifier=block.unit.classifier,
        )


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
