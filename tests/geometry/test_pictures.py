"""The arrays of an interface's figures against sums over the blocks, one by one."""

import pytest
import torch

from gch_bench.geometry.pictures import Place, picture
from gch_bench.results.geometry import BLOCK, PHYSICAL, PICTURE, Picture
from gch_bench.spectral.alignment import align

PLACE = Place(3, BLOCK, PHYSICAL, "a -> b")


def drawn(rows: int, columns: int, groups: int, scale: float = 1.0) -> tuple[torch.Tensor, torch.Tensor, Picture]:
    generator = torch.Generator().manual_seed(rows)
    matrix = torch.randn(rows, columns, dtype=torch.float64, generator=generator) * scale
    group = torch.cat([torch.arange(groups), torch.randint(groups, (rows - groups,), generator=generator)])
    found = align(matrix, group, tau=scale, omega=scale)
    return matrix, group, picture(PLACE, matrix, found, torch.where(found.edges, 1, -1))


@pytest.mark.parametrize("shape", [(9, 7), (300, 140)])
def test_energy_and_ends_of_the_parts(shape: tuple[int, int]) -> None:
    matrix, group, made = drawn(*shape, groups=3)
    assert made.energy.shape == (min(shape[0], PICTURE), min(shape[1], PICTURE))
    assert float(made.row_ends[-1]) == pytest.approx(made.energy.shape[0])
    assert float(made.column_ends[-1]) == pytest.approx(made.energy.shape[1])
    assert made.sizes.tolist() == [int((group == g).sum()) for g in range(3)]
    if shape == (9, 7):
        assert float(made.energy.square().sum()) == pytest.approx(float(matrix.square().sum()))


def test_rows_and_columns_are_sorted_by_group_and_then_by_norm() -> None:
    matrix, group, made = drawn(12, 10, groups=3)
    norms = torch.stack([matrix[group == g].norm(dim=0) for g in range(3)])
    dominant = norms.argmax(0)
    rows = sorted(range(12), key=lambda i: (int(group[i]), -float(matrix[i].norm())))
    columns = sorted(range(10), key=lambda j: (int(dominant[j]), -float(norms[:, j].max())))
    torch.testing.assert_close(made.energy, matrix[rows][:, columns].abs())
    mean = matrix.square().mean()
    for g in range(3):
        for h in range(3):
            block = matrix[group == g][:, dominant == h]
            if block.numel():
                assert float(made.blocks[g, h]) == pytest.approx(float(block.square().mean() / mean))
            else:
                assert torch.isnan(made.blocks[g, h])


def test_huge_and_tiny_matrices_give_the_same_shares() -> None:
    _, _, one = drawn(20, 15, groups=4)
    for scale in (1e100, 1e-100):
        _, _, other = drawn(20, 15, groups=4, scale=scale)
        torch.testing.assert_close(one.blocks, other.blocks, equal_nan=True)
        torch.testing.assert_close(one.strengths, other.strengths)
        torch.testing.assert_close(one.energy * scale, other.energy)


def test_bad_input_is_refused() -> None:
    matrix = torch.eye(4, dtype=torch.float64)
    found = align(matrix, 2, tau=0.5, omega=0.5)
    edges = torch.zeros(2, 2)
    with pytest.raises(ValueError, match=r"matrix must have the alignment's shape \(4, 4\), got \(3, 4\)"):
        picture(PLACE, matrix[:3], found, edges)
    with pytest.raises(ValueError, match="edges must have a row and a column per group"):
        picture(PLACE, matrix, found, torch.zeros(3, 3))
    with pytest.raises(ValueError, match="must not be zero"):
        picture(PLACE, torch.zeros(4, 4), found, edges)
