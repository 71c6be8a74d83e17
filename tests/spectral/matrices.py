"""Matrices for the property tests of the geometry: assorted shapes, spectra and scales, in float64."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor

KINDS = ("gaussian", "power law", "repeated", "deficient", "nearly deficient", "coarse", "rank one")
REGULAR = ("gaussian", "power law", "repeated")  # condition numbers that a Gram matrix resolves well
seeds = st.integers(0, 2**31)
scales = st.integers(-8, 8).map(lambda power: 10.0**power)


def orthogonal(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    """Orthonormal columns (rows, columns)."""
    return torch.linalg.qr(torch.randn(rows, columns, dtype=torch.float64, generator=generator)).Q


def spectrum(kind: str, count: int, exponent: float, generator: torch.Generator) -> Tensor:
    """Singular values (count,), descending, the largest near 1."""
    ranks = torch.arange(1, count + 1, dtype=torch.float64)
    kept = (count + 1) // 2
    if kind == "power law":
        return ranks ** (-exponent / 2)
    if kind == "repeated":
        return torch.where(ranks <= kept, 1.0, 0.25).double()
    values = torch.rand(count, dtype=torch.float64, generator=generator).add(0.1).sort(descending=True).values
    if kind == "rank one":
        return torch.where(ranks == 1, values[0], 0)
    if kind == "deficient":
        return torch.where(ranks <= kept, values, 0)
    if kind == "nearly deficient":
        return torch.where(ranks <= kept, values, 1e-9 * values)
    floor = 10 ** -(
        4 + 3 * torch.rand(1, dtype=torch.float64, generator=generator)
    )  # about what a Gram matrix may still resolve
    return torch.where(ranks <= kept, values, floor * values)  # coarse


def made(rows: int, columns: int, kind: str, exponent: float, scale: float, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    if kind == "gaussian":
        return scale * torch.randn(rows, columns, dtype=torch.float64, generator=generator)
    count = min(rows, columns)
    left, right = (orthogonal(side, count, generator) for side in (rows, columns))
    return scale * (left * spectrum(kind, count, exponent, generator)) @ right.mT


def factors(rows: int, columns: int, kinds: tuple[str, ...] = KINDS) -> st.SearchStrategy[Tensor]:
    return st.builds(
        made, st.just(rows), st.just(columns), st.sampled_from(kinds), st.floats(0, 4), scales, seeds
    )  # the exponent is of a power law


def matrices(largest: int = 9, kinds: tuple[str, ...] = KINDS) -> st.SearchStrategy[Tensor]:
    side = st.integers(1, largest)
    return st.tuples(side, side).flatmap(lambda shape: factors(*shape, kinds))


def pairs(largest: int = 9, kinds: tuple[str, ...] = KINDS) -> st.SearchStrategy[tuple[Tensor, Tensor]]:
    """Two factors that compose: first (m, n), then second (p, m)."""
    side = st.integers(1, largest)
    return st.tuples(side, side, side).flatmap(
        lambda mnp: st.tuples(factors(mnp[0], mnp[1], kinds), factors(mnp[2], mnp[0], kinds))
    )


def refusal(function: Callable, *arguments: object, **keywords: object) -> str:
    """The message of the ValueError that a call must raise: one line."""
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - each caller checks the message
        function(*arguments, **keywords)
    message = str(caught.value)
    assert message
    assert "\n" not in message
    return message


NAN, INF = float("nan"), float("inf")
BAD_MATRICES = {  # what to a matrix is refused, and what the message must say
    "nan": (torch.tensor([[1.0, NAN], [0.0, 1.0]]), "must be finite, got 1 NaN or infinite"),
    "infinite": (torch.tensor([[1.0, INF], [-INF, 1.0]]), "must be finite, got 2 NaN or infinite"),
    "complex": (torch.ones(2, 2, dtype=torch.complex64), "must be real, got torch.complex64"),
    "no rows": (torch.ones(0, 2), r"must be a non-empty matrix \(rows, columns\), got \(0, 2\)"),
    "no columns": (torch.ones(2, 0), r"must be a non-empty matrix \(rows, columns\), got \(2, 0\)"),
    "vector": (torch.ones(2), r"must be a non-empty matrix \(rows, columns\), got \(2,\)"),
    "batch": (torch.ones(1, 2, 2), r"must be a non-empty matrix \(rows, columns\), got \(1, 2, 2\)"),
    "list": ([[1.0, 2.0], [3.0, 4.0]], r"must be a non-empty matrix \(rows, columns\), got list"),
}
ODD = torch.tensor([[3, 0, -1], [1, 2, 4]])
ODD_FORMS = {  # the same matrix in other layouts and precisions
    "integer": ODD,
    "half": ODD.half(),
    "bfloat16": ODD.bfloat16(),
    "single": ODD.float(),
    "transposed": ODD.double().mT.contiguous().mT,
    "strided": torch.stack([ODD, -ODD], 2).flatten(1).double()[:, ::2],
    "requires grad": ODD.double().requires_grad_(),
}


def partition(rows: int, seed: int) -> list[int]:
    """Each row's group, all groups non-empty, in no order."""
    rng = np.random.default_rng(seed)
    count = int(rng.integers(1, rows + 1))
    return rng.permutation(np.r_[np.arange(count), rng.integers(0, count, rows - count)]).tolist()
