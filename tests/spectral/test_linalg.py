"""Singular values and decompositions against LAPACK's SVD by NumPy, and what is refused."""

import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matrices import BAD_MATRICES, KINDS, ODD, ODD_FORMS, matrices, refusal
from torch import Tensor

from gch_bench.spectral.linalg import decompose, finite64, gram_values, matrix64, tail, top_value


def rounding(shape: tuple[int, ...]) -> float:
    """The backward error LAPACK states, p(m, n) eps s_1, p a modest multiple of m + n; the CPU decides what is left of it."""
    return 4 * sum(shape[-2:]) * torch.finfo(torch.float64).eps


def value_errors(values: Tensor, shape: tuple[int, ...]) -> Tensor:
    """What the module states, relative to s_1: the rounding times s_1 / s_i by the Gram matrix, else that of an SVD."""
    floor = values.clamp(min=1e-5 * values[0]) if values[0] > 0 else torch.ones_like(values)
    return values[0] * rounding(shape) * (values[0] / floor)


@settings(max_examples=100, deadline=None)
@given(matrix=matrices(12))
def test_values_are_those_of_an_svd(matrix: Tensor) -> None:
    expected = torch.from_numpy(np.linalg.svd(matrix.numpy(), compute_uv=False))
    values = gram_values(matrix)
    assert values.shape == expected.shape
    assert (values >= 0).all()
    assert ((values - expected).abs() <= value_errors(expected, matrix.shape)).all()
    assert ((decompose(matrix).values - expected).abs() <= value_errors(expected, matrix.shape)).all()
    assert top_value(matrix) == pytest.approx(float(expected[0]), rel=rounding(matrix.shape))


@settings(max_examples=100, deadline=None)
@given(batch=st.lists(st.sampled_from(KINDS), min_size=1, max_size=4).flatmap(lambda k: st.tuples(*[matrices(4)] * len(k))))
def test_values_of_a_batch_are_those_of_each(batch: tuple[Tensor, ...]) -> None:
    """Also where only some of a batch are too coarse for the Gram matrix, at very different scales."""
    rows, columns = (max(each.shape[axis] for each in batch) for axis in (0, 1))
    padded = [torch.nn.functional.pad(each, (0, columns - each.shape[1], 0, rows - each.shape[0])) for each in batch]
    values = gram_values(torch.stack(padded))
    for got, each in zip(values, padded, strict=True):
        expected = torch.from_numpy(np.linalg.svd(each.numpy(), compute_uv=False))
        assert ((got - expected).abs() <= value_errors(expected, each.shape)).all()


def test_a_batch_of_batches_and_of_zeros() -> None:
    stack = torch.randn(2, 3, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    stack[1, 2] = 0
    expected = np.linalg.svd(stack.numpy(), compute_uv=False)
    np.testing.assert_allclose(gram_values(stack), expected, rtol=1e-12)


@settings(max_examples=150, deadline=None)
@given(matrix=matrices(10))
def test_decomposition_reconstructs(matrix: Tensor) -> None:
    """A = U Sigma V^T with orthogonal modes: (U Sigma)^T U Sigma = Sigma^2 = (Sigma V^T)(Sigma V^T)^T."""
    parts = decompose(matrix)
    count, top = min(matrix.shape), float(parts.values[0])
    assert parts.outputs.shape == (matrix.shape[0], count)
    assert parts.inputs.shape == (count, matrix.shape[1])
    assert (parts.values.diff() <= 0).all()
    assert torch.equal(parts.matrix, matrix)
    kept = parts.values > 1e-12 * top
    rebuilt = parts.outputs[:, kept] @ (parts.inputs[kept] / parts.values[kept, None])
    torch.testing.assert_close(rebuilt, matrix, atol=1e-11 * top, rtol=0)
    squares = torch.diag(parts.values**2)
    torch.testing.assert_close(parts.outputs.mT @ parts.outputs, squares, atol=rounding(matrix.shape) * top**2, rtol=0)
    torch.testing.assert_close(parts.inputs @ parts.inputs.mT, squares, atol=rounding(matrix.shape) * top**2, rtol=0)
    torch.testing.assert_close(parts.outputs @ parts.inputs, matrix @ right_root(matrix), atol=1e-11 * top**2, rtol=0)


def right_root(matrix: Tensor) -> Tensor:
    """(A^T A)^1/2 by NumPy: U Sigma Sigma V^T = A (A^T A)^1/2."""
    _, values, right = np.linalg.svd(matrix.numpy(), full_matrices=False)
    return torch.from_numpy(right.T * values @ right)


@settings(max_examples=50, deadline=None)
@given(matrix=matrices(8))
def test_tail_is_the_norm_of_what_is_left(matrix: Tensor) -> None:
    left, values, right = np.linalg.svd(matrix.numpy(), full_matrices=False)
    for rank in range(len(values) + 1):
        rest = matrix.numpy() - (left[:, :rank] * values[:rank]) @ right[:rank]
        assert tail(torch.from_numpy(values), rank) == pytest.approx(np.linalg.norm(rest), abs=1e-13 * values[0])
    assert tail(torch.from_numpy(values), len(values)) == 0


@pytest.mark.parametrize("scale", [1e-200, 1e-8, 1.0, 1e200])
@pytest.mark.parametrize("condition", [1e-2, 1e-8])
def test_values_neither_overflow_nor_vanish(scale: float, condition: float) -> None:
    matrix = torch.diag(torch.tensor([1.0, condition, 2.0], dtype=torch.float64)) * scale
    for values in (gram_values(matrix), decompose(matrix).values):
        torch.testing.assert_close(values / scale, torch.tensor([2.0, 1.0, condition], dtype=torch.float64), rtol=1e-11, atol=0)
    assert top_value(matrix) == pytest.approx(2 * scale)


@pytest.mark.parametrize("shape", [(1, 1), (1, 3), (3, 1), (2, 3)])
def test_zero_matrix_has_zero_values(shape: tuple[int, int]) -> None:
    zero = torch.zeros(shape, dtype=torch.float64)
    parts = decompose(zero)
    assert gram_values(zero).tolist() == parts.values.tolist() == [0.0] * min(shape)
    assert not parts.outputs.any()
    assert not parts.inputs.any()
    assert top_value(zero) == 0


def test_one_by_one() -> None:
    parts = decompose(torch.tensor([[-3.0]]))
    assert parts.values.tolist() == [3.0]
    assert float(parts.outputs * parts.inputs) == -9.0
    assert float(gram_values(parts.matrix)) == top_value(parts.matrix) == 3.0


@pytest.mark.parametrize("form", ODD_FORMS)
def test_any_layout_and_precision_becomes_float64(form: str) -> None:
    matrix = matrix64(ODD_FORMS[form])
    assert matrix.dtype == torch.float64
    assert not matrix.requires_grad
    assert matrix.tolist() == ODD.tolist()
    parts = decompose(ODD_FORMS[form])
    torch.testing.assert_close(parts.values, decompose(ODD.double()).values, rtol=1e-14, atol=0)


@pytest.mark.parametrize("function", [matrix64, decompose])
@pytest.mark.parametrize("case", BAD_MATRICES)
def test_bad_matrices_are_refused(case: str, function) -> None:
    matrix, message = BAD_MATRICES[case]
    assert re.match("matrix " + message, refusal(function, matrix))


def test_the_name_given_is_named() -> None:
    assert refusal(finite64, torch.tensor([float("nan")]), "error").startswith("error must be finite")
    assert refusal(matrix64, torch.ones(2), "second").startswith("second must be a non-empty matrix")


def test_finite_values_whose_sum_overflows_are_finite() -> None:
    largest = torch.full((3,), torch.finfo(torch.float64).max, dtype=torch.float64)
    assert torch.equal(finite64(largest, "values"), largest)
    assert gram_values(torch.diag(largest)).tolist() == largest.tolist()
    assert finite64(torch.ones(2).to(torch.float8_e4m3fn), "values").tolist() == [1, 1]
    assert "must be finite, got 2" in refusal(finite64, torch.tensor([float("inf"), -float("inf"), 1.0]), "values")
