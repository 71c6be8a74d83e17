"""How far Jacobians compose, against brute force: sampled rotations, plain products, and numpy's singular values."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ortho_group
from torch import Tensor

from gch_bench.spectral.composition import Product, chain_composition, composition_defect, log_top, product_with, rotated_defect


def matrices(seed: int, sizes: list[int]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(n, m, dtype=torch.float64, generator=generator) for m, n in pairwise(sizes)]


def product_of(factors: list[Tensor]) -> Product:
    product = None
    for factor in factors:
        product = product_with(product, factor)
    assert product is not None
    return product


def test_the_null_is_the_root_mean_square_over_sampled_rotations() -> None:
    first, second = matrices(0, [5, 4, 3])
    together = second @ first + matrices(1, [5, 3])[0]
    rotations = torch.from_numpy(ortho_group.rvs(4, 20000, random_state=0))
    errors = torch.linalg.matrix_norm(together - second @ rotations @ first) / torch.linalg.matrix_norm(together)
    assert rotated_defect(first, second, together) == pytest.approx(float(errors.square().mean().sqrt()), rel=0.01)
    assert rotated_defect(torch.eye(4), 2 * torch.eye(4), 2 * torch.eye(4)) == pytest.approx(math.sqrt(2))


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), sizes=st.lists(st.integers(1, 6), min_size=3, max_size=6), scale=st.floats(1e-3, 1e3))
def test_products_that_compose_have_no_defect_and_one_scale_cancels(seed: int, sizes: list[int], scale: float) -> None:
    factors = matrices(seed, sizes)
    first, second = factors[:2]
    together = second @ first
    moved = together + matrices(seed + 1, [sizes[0], sizes[2]])[0]
    assert composition_defect(first, second, together) == 0
    assert composition_defect(first, second, moved) == pytest.approx(
        float(torch.dist(moved, together) / moved.norm()), rel=1e-9
    )
    assert composition_defect(scale * first, second, scale * moved) == pytest.approx(composition_defect(first, second, moved))
    whole = torch.linalg.multi_dot(factors[::-1])
    compared = chain_composition(product_of(factors), whole)
    assert compared.composition_defect < 1e-9 or math.isnan(compared.composition_defect)
    assert compared.log_top_product == pytest.approx(math.log(np.linalg.norm(whole.numpy(), 2)), abs=1e-8)
    normalised = [each / each.norm() * math.sqrt(min(each.shape)) for each in factors]
    expected = math.log(np.linalg.norm(torch.linalg.multi_dot(normalised[::-1]).numpy(), 2))
    assert compared.log_top_normalised == pytest.approx(expected, abs=1e-8)
    assert compared.log_top_difference == pytest.approx(0, abs=1e-8)


def test_the_chains_null_is_the_root_mean_square_over_sampled_rotations() -> None:
    factors = matrices(5, [3, 4, 3, 2])
    whole = matrices(6, [3, 2])[0]
    first = torch.from_numpy(ortho_group.rvs(4, 20000, random_state=1))
    second = torch.from_numpy(ortho_group.rvs(3, 20000, random_state=2))
    errors = torch.linalg.matrix_norm(whole - factors[2] @ second @ factors[1] @ first @ factors[0]) / whole.norm()
    found = chain_composition(product_of(factors), whole).composition_defect_null
    assert found == pytest.approx(float(errors.square().mean().sqrt()), rel=0.02)


def test_long_chains_neither_overflow_nor_vanish() -> None:
    for gain in (1e-20, 1e20):
        product = product_of([gain * torch.eye(3, dtype=torch.float64)] * 50)
        compared = chain_composition(product, torch.eye(3, dtype=torch.float64))
        assert compared.log_top_product == pytest.approx(50 * math.log(gain))
        assert compared.log_top_normalised == pytest.approx(0, abs=1e-9)
        assert compared.composition_defect == (1 if gain < 1 else math.inf)


def test_zero_matrices_and_wrong_shapes() -> None:
    zero, eye = torch.zeros(2, 2, dtype=torch.float64), torch.eye(2, dtype=torch.float64)
    assert log_top(zero) == -math.inf
    assert math.isnan(composition_defect(eye, eye, zero))
    assert math.isnan(rotated_defect(eye, eye, zero))
    assert composition_defect(zero, eye, eye) == 1
    compared = chain_composition(product_of([eye, zero]), eye)
    assert compared.log_top_product == compared.log_top_normalised == -math.inf
    assert compared.composition_defect == pytest.approx(1)
    assert math.isnan(chain_composition(product_of([eye]), zero).composition_defect)
    assert math.isnan(chain_composition(product_of([zero]), zero).log_top_difference)
    with pytest.raises(ValueError, match=r"together must have shape \(2, 2\), got \(3, 2\)"):
        composition_defect(eye, eye, torch.zeros(3, 2))
    with pytest.raises(ValueError, match="second must take what first gives"):
        product_with(product_of([eye]), torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"whole must have the product's shape \(2, 2\), got \(1, 2\)"):
        chain_composition(product_of([eye]), torch.zeros(1, 2))
