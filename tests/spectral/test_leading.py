"""All singular values and the leading modes of large matrices, and products of two, against dense float64."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from spectral.matrices import orthogonal
from torch import Tensor

from gch_bench.spectral import linalg
from gch_bench.spectral.gibbs import effective_rank, energies
from gch_bench.spectral.leading import leading, met
from gch_bench.spectral.linalg import decompose, is_large, norm, product
from gch_bench.spectral.transport import mean_cosine_squared, transport_of, truncation_bounds

SHAPES = [(60, 60), (90, 40), (40, 90), (700, 530)]  # the last has more than one strip
seeds = st.integers(0, 2**31)


def spectral(rows: int, columns: int, exponent: float, seed: int, scale: float = 1.0) -> Tensor:
    """A matrix with the singular values scale i^-exponent."""
    generator = torch.Generator().manual_seed(seed)
    count = min(rows, columns)
    values = scale * torch.arange(1, count + 1, dtype=torch.float64) ** -exponent
    return orthogonal(rows, count, generator) * values @ orthogonal(columns, count, generator).mT


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("exponent", [0.02, 0.5, 1.5])  # the first is nearly flat: many modes hold half of the energy
def test_values_are_exact_and_the_leading_modes_span_what_those_of_svd_do(shape: tuple[int, int], exponent: float) -> None:
    matrix = spectral(*shape, exponent, 0)
    found = leading(matrix)
    left, values, right_T = torch.linalg.svd(matrix, full_matrices=False)
    torch.testing.assert_close(found.values, values, rtol=1e-9, atol=0)
    k = effective_rank(energies(values), 0.5)
    assert (found.modes, found.outputs.shape, found.inputs.shape) == (k, (shape[0], k), (k, shape[1]))
    torch.testing.assert_close(
        found.outputs @ (found.inputs / values[:k, None] ** 2), left[:, :k] @ right_T[:k], rtol=0, atol=2e-4
    )
    torch.testing.assert_close(torch.linalg.vector_norm(found.inputs, dim=1), values[:k], rtol=1e-5, atol=0)


@settings(max_examples=10, deadline=None)
@given(seed=seeds, exponent=st.floats(0, 1.5), power=st.sampled_from([-150, -20, 0, 20, 150]))
def test_tails_bounds_and_angles_are_those_of_all_modes_at_any_scale(seed: int, exponent: float, power: int) -> None:
    first, second = spectral(30, 45, exponent, seed, 10.0**power), spectral(24, 30, exponent / 2, seed + 1)
    whole, part = [decompose(each) for each in (first, second)], [leading(each) for each in (first, second)]
    bounds = truncation_bounds(part[0].values, part[1].values, 7, 9)
    moved = transport_of(*whole, 7, 9)
    assert bounds == pytest.approx((moved.bound, moved.fitted_bound), rel=1e-9)
    # A window between two equal singular values is no subspace of its own: exponents near 0 are for the test above.
    if exponent > 0.1:
        ranks = part[0].modes, part[1].modes
        assert mean_cosine_squared(*part, *ranks) == pytest.approx(mean_cosine_squared(*whole, *ranks), abs=1e-4)


def test_values_that_a_gram_matrix_does_not_resolve_are_those_of_svd() -> None:
    values = torch.logspace(0, -12, 30, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    matrix = orthogonal(40, 30, generator) * values @ orthogonal(30, 30, generator).mT
    torch.testing.assert_close(leading(matrix).values, values, rtol=1e-3, atol=0)
    # Those beyond the numerical rank of the type in which the matrix was stored need not be accurate.
    kept = linalg.numerical_rank(values, (40, 30), torch.float16)
    torch.testing.assert_close(leading(matrix, torch.float16).values[:kept], values[:kept], rtol=1e-6, atol=0)


@settings(max_examples=15, deadline=None)
@given(
    seed=seeds, sides=st.tuples(*[st.integers(1, 40)] * 3), exponent=st.floats(0, 1.5), power=st.sampled_from([-100, 0, 100])
)
def test_what_two_matrices_do_together(seed: int, sides: tuple[int, int, int], exponent: float, power: int) -> None:
    n, m, p = sides
    first, second = spectral(m, n, exponent, seed, 10.0**power), spectral(p, m, exponent, seed + 1)
    moved = second @ first
    found = met(decompose(first), leading(second)) if seed % 2 else met(leading(first), decompose(second))
    assert found.top == pytest.approx(float(torch.linalg.matrix_norm(moved / 10.0**power, 2)) * 10.0**power, rel=1e-5)
    assert math.sqrt(found.energy) == pytest.approx(norm(moved), rel=1e-5)
    for scatter, expected in zip(found.scatters, (first @ first.mT, second.mT @ second), strict=True):
        torch.testing.assert_close(scatter, expected, rtol=1e-4, atol=1e-6 * float(expected.abs().max()))


def test_a_product_that_nearly_cancels_is_computed_exactly() -> None:
    first, second = torch.zeros(40, 40, dtype=torch.float64), torch.zeros(40, 40, dtype=torch.float64)
    first[:20], second[:, 20:] = spectral(20, 40, 0.5, 0), spectral(40, 20, 0.5, 1)
    assert met(leading(first), leading(second))[:2] == (0.0, 0.0)
    first[30, 3] = 1e-6
    moved = second @ first
    assert met(leading(first), leading(second))[:2] == pytest.approx(
        (float(torch.linalg.matrix_norm(moved, 2)), norm(moved) ** 2), rel=1e-9
    )


def test_only_large_matrices_are_multiplied_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    left, right = spectral(30, 20, 0.5, 0, 1e60), spectral(20, 40, 0.5, 1, 1e-60)
    assert torch.equal(product(left, right), left @ right)
    monkeypatch.setattr(linalg, "LARGE", 19)
    assert is_large(left, right)
    assert not is_large(left, right[:, :19])
    found = product(left, right)
    assert found.dtype == torch.float64
    assert not torch.equal(found, left @ right)
    torch.testing.assert_close(found, left @ right, rtol=0, atol=1e-6)


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="must be finite, got 1 NaN or infinite values"):
        leading(torch.tensor([[1.0, np.nan], [0.0, 1.0]]))
    with pytest.raises(ValueError, match="a transport needs all 60 modes of its factors, got"):
        transport_of(*[leading(spectral(60, 60, 0.5, 0))] * 2, 1, 1)
