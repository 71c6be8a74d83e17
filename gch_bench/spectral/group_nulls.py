"""What shares of the energy lie in the overlap if the groups mean nothing: rows shuffled among groups, and clusters of chance.

Definition of this project (docs/geometry.md). Each null chooses its own tau by the same density of active blocks.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from gch_bench.spectral.blocks import CORE, DENSITY, NOISE, OVERLAP, choose_tau, grouped_norms, mask_of, membership
from gch_bench.spectral.groups import cluster_rows
from gch_bench.spectral.linalg import matrix64, power_of_two

DRAWS = 16
RANGE = (0.05, 0.95)  # quantiles of a null's draws


class Shares(NamedTuple):
    """Shares of the energy of a matrix on the masks; they sum to 1."""

    core: float
    overlap: float
    noise: float


def energy_shares(norms: Tensor, tau: float) -> Shares:
    """The shares of the energy N^2 on the masks, from block norms N (q, n)."""
    energy = (norms / power_of_two(norms.max())).square()
    masks = mask_of(norms >= tau)
    core, overlap, noise = (float(energy[masks == kind].sum() / energy.sum()) for kind in (CORE, OVERLAP, NOISE))
    return Shares(core, overlap, noise)


def permuted_shares(matrix: Tensor, group: Tensor, density: float = DENSITY, draws: int = DRAWS, seed: int = 0) -> list[Shares]:
    """The shares under ``draws`` random permutations of the rows among groups of the same sizes.

    Args:
        matrix: (m, n); group: int64 (m,), each row's group.
        density: share of active blocks, by which each draw's tau is chosen.
    """
    matrix = matrix64(matrix)
    generator = torch.Generator().manual_seed(seed)
    squares = (matrix / power_of_two(matrix.abs().max())).square_()
    orders = [torch.randperm(len(group), generator=generator).to(group.device) for _ in range(draws)]
    members = torch.cat([membership(group[order]) for order in orders])
    norms = (members @ squares).sqrt_().reshape(draws, -1, matrix.shape[1])  # one product for all draws
    return [energy_shares(each, choose_tau(each, density)) for each in norms]


def overlap_share_range(
    matrix: Tensor, group: Tensor, density: float = DENSITY, draws: int = DRAWS, seed: int = 0
) -> tuple[float, float]:
    """The 5% and 95% quantiles of the overlap share under ``permuted_shares``."""
    shares = permuted_shares(matrix, group, density, draws, seed)
    found = torch.tensor([each.overlap for each in shares], dtype=torch.float64)
    low, high = torch.quantile(found, torch.tensor(RANGE, dtype=torch.float64)).tolist()
    return low, high


def reclustered_share(matrix: Tensor, count: int, density: float = DENSITY, seed: int = 0) -> Shares:
    """The shares that clustering finds where nothing is to be found: one draw of the fairer null for clusters.

    Each column of the rows' profiles is shifted by a random number of rows, each column by another one, and the rows get their
    norms back. Every column keeps its values, but which columns a row's energy shares is chance. Then the rows are clustered.
    """
    matrix = matrix64(matrix)
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.linalg.vector_norm(matrix, dim=1, keepdim=True)
    shift = torch.randint(len(matrix), (matrix.shape[1],), generator=generator)
    at = (torch.arange(len(matrix))[:, None] + shift) % len(matrix)
    shifted = (matrix / torch.where(lengths > 0, lengths, 1)).gather(0, at.to(matrix.device)) * lengths
    norms = grouped_norms(shifted, cluster_rows(shifted, count, seed).to(matrix.device))
    return energy_shares(norms, choose_tau(norms, density))
