"""Clusters of rows, and what shares come out where groups mean nothing."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matrices import BAD_MATRICES, matrices, partition, refusal, seeds
from torch import Tensor

from gch_bench.spectral.alignment import align, block_norms, choose_tau, row_groups
from gch_bench.spectral.group_nulls import energy_shares, overlap_share_range, permuted_shares, reclustered_share
from gch_bench.spectral.groups import cluster_rows


def planted(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """A matrix whose rows have their energy in the columns of their group, with random signs, and each row's group."""
    rng = np.random.default_rng(seed)
    group = torch.from_numpy(rng.permutation(np.arange(40 * count) % count))
    size = torch.where(torch.arange(count)[:, None] == torch.arange(20 * count) % count, 3.0, 1.0)[group]
    norms = torch.from_numpy(rng.lognormal(0, 1, (len(group), 1)))
    return norms * size * torch.from_numpy(rng.normal(size=size.shape)), group


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("count", [2, 5, 8])
def test_clusters_find_what_was_planted(count: int, seed: int) -> None:
    matrix, group = planted(count, seed)
    found = cluster_rows(matrix, count)
    together = (found[:, None] == found) == (group[:, None] == group)  # the same pairs, whatever the numbers
    assert float(together.double().mean()) > 0.99


@settings(max_examples=40, deadline=None)
@given(matrix=matrices(12), count=st.integers(1, 14))
def test_clusters_are_a_partition_that_is_reproducible(matrix: Tensor, count: int) -> None:
    found = cluster_rows(matrix, count)
    assert torch.equal(row_groups(found, len(matrix)), found)  # no gaps
    assert int(found.max()) + 1 == min(count, len(matrix))
    sizes = found.bincount()
    assert int(sizes.max() - sizes.min()) <= 1
    firsts = [int((found == g).nonzero()[0]) for g in range(int(found.max()) + 1)]
    assert firsts == sorted(firsts)
    assert torch.equal(cluster_rows(matrix, count), found)
    assert torch.equal(cluster_rows(-(2.0**700) * matrix, count), found)  # of any scale and sign


def test_equal_and_dead_rows_still_fill_every_cluster() -> None:
    for matrix in (torch.ones(7, 3), torch.zeros(7, 3), torch.eye(7)[[0, 0, 0, 0, 0, 1, 1]]):
        assert sorted(set(cluster_rows(matrix, 4).tolist())) == [0, 1, 2, 3]


@pytest.mark.parametrize("case", BAD_MATRICES)
def test_bad_matrices_have_no_clusters(case: str) -> None:
    bad, message = BAD_MATRICES[case]
    with pytest.raises(ValueError, match="matrix " + message):
        cluster_rows(bad, 2)
    with pytest.raises(ValueError, match="matrix " + message):
        reclustered_share(bad, 2)


@pytest.mark.parametrize("count", [0, -1, 2.0, True])
def test_a_number_of_clusters_that_is_none_is_refused(count) -> None:
    assert refusal(cluster_rows, torch.eye(3), count) == f"count must be a whole number >= 1, got {count!r}"


@settings(max_examples=60, deadline=None)
@given(matrix=matrices(9, ("gaussian",)), seed=seeds)
def test_permuted_shares_are_those_of_permuted_rows(matrix: Tensor, seed: int) -> None:
    """The first draw, done by hand."""
    group = torch.tensor(partition(len(matrix), seed))
    found = permuted_shares(matrix, group, 0.3, draws=2, seed=seed)
    order = torch.randperm(len(matrix), generator=torch.Generator().manual_seed(seed))
    tau = choose_tau(block_norms(matrix, group[order]), 0.3)
    made = align(matrix, group[order], tau, 1.0)
    whole = float(matrix.norm()) ** 2
    assert found[0].overlap == pytest.approx(made.overlapping**2 / whole, abs=1e-12)
    assert found[0].core == pytest.approx(made.core**2 / whole, abs=1e-12)
    assert sum(found[0]) == pytest.approx(1)


def test_range_is_of_quantiles() -> None:
    matrix, group = planted(4, 0)
    shares = [each.overlap for each in permuted_shares(matrix, group)]
    assert overlap_share_range(matrix, group) == pytest.approx(tuple(np.quantile(shares, [0.05, 0.95])))
    norms = block_norms(matrix, group)
    planted_share = energy_shares(norms, choose_tau(norms))
    assert planted_share.core > max(each.core for each in permuted_shares(matrix, group))


def test_reclustering_finds_by_chance_what_clustering_finds_in_noise() -> None:
    """On a Gaussian matrix clusters collect more energy than every permutation of their rows, and so does the fairer null."""
    matrix = torch.randn(256, 192, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    group = cluster_rows(matrix, 6)
    norms = block_norms(matrix, group)
    own, again = energy_shares(norms, choose_tau(norms)), reclustered_share(matrix, 6)
    permuted = [each.noise for each in permuted_shares(matrix, group)]
    assert max(own.noise, again.noise) < min(permuted)
    assert again.noise == pytest.approx(own.noise, abs=0.005)
    assert math.isclose(sum(again), 1)


def test_what_is_planted_exceeds_the_fairer_null() -> None:
    matrix, group = planted(6, 0)
    norms = block_norms(matrix, group)
    assert energy_shares(norms, choose_tau(norms)).core > 1.5 * reclustered_share(matrix, 6).core
