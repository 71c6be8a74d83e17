"""Small chains for the tests of the analysis: plain factors, and blocks with shortcuts whose branches have two ends."""

from collections.abc import Sequence

import torch
from torch import Tensor

from gch_bench.config.diagnosis import AlignmentConfig, SpectralConfig
from gch_bench.geometry.analysis import Options, analyse
from gch_bench.geometry.chains import Factor
from gch_bench.results.geometry import ChainReport

SHAPES = [(12, 9), (10, 12), (10, 10), (30, 10)]
QUICK = Options(SpectralConfig(), AlignmentConfig(groups=4))


def gaussian(rows: int, columns: int, seed: int) -> Tensor:
    return torch.randn(rows, columns, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def orthogonal(rows: int, columns: int, seed: int) -> Tensor:
    """Orthonormal columns (rows, columns), or rows if there are fewer of them."""
    if rows < columns:
        return orthogonal(columns, rows, seed).mT
    return torch.linalg.qr(gaussian(rows, columns, seed)).Q


def with_values(values: Sequence[float] | Tensor, rows: int, columns: int, seed: int = 0) -> Tensor:
    """A matrix (rows, columns) with these singular values, between random directions."""
    values = torch.as_tensor(values, dtype=torch.float64)
    return (orthogonal(rows, len(values), seed) * values) @ orthogonal(columns, len(values), seed + 1).mT


def power_law(rows: int, columns: int, exponent: float, seed: int = 0) -> Tensor:
    """Energies that fall exactly like i^-exponent."""
    ranks = torch.arange(1, min(rows, columns) + 1, dtype=torch.float64)
    return with_values(ranks ** (-exponent / 2), rows, columns, seed)


def plain(seed: int = 0, group_size: int | None = None) -> list[Factor]:
    """Factors that are one plain matrix each."""
    return [Factor(f"block.{i}", gaussian(*shape, seed + i), group_size) for i, shape in enumerate(SHAPES)]


def residual(count: int = 3, width: int = 8, hidden: int = 16, aligned: float = 0.0, seed: int = 0) -> list[Factor]:
    """Blocks I + 0.1 W2 W1 of random W1 (hidden, width) and W2 (width, hidden).

    About a share `aligned` of the energy of each W1 reads the direction that the W2 before it writes most to.
    """
    made: list[Factor] = []
    before: Tensor | None = None
    for i in range(count):
        read, write = gaussian(hidden, width, seed + 2 * i), gaussian(width, hidden, seed + 2 * i + 1)
        if before is not None and aligned:
            direction = torch.linalg.svd(before).U[:, 0]
            planted = gaussian(hidden, 1, 1000 + i) @ direction[None]
            read = (1 - aligned) ** 0.5 * read / read.norm() + aligned**0.5 * planted / planted.norm()
        branch = 0.1 * write @ read
        made.append(Factor(f"block.{i}", torch.eye(width, dtype=torch.float64) + branch, read=read, write=write))
        before = write
    return made


def report(factors: Sequence[Factor], options: Options = QUICK) -> ChainReport:
    return analyse(factors, "test", "a chain", options)
