"""Draws are named by their keys alone."""

import torch

from gch_bench.rng import generator, generators, seed_of


def test_seeds_are_distinct_and_fixed_for_ever() -> None:
    """The pinned value guards recorded runs: another hash would silently change every corruption draw."""
    keys = [(0,), (1,), (0, 1), (1, 0), (0, "a"), (0, "a", 1), ("a", 0, 1), ("a0", 1), (10,)]
    seeds = [seed_of(*key) for key in keys]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert seed_of(0, "gaussian_noise", 3, 17) == 1077739715986477681


def test_generators_depend_on_their_id_alone() -> None:
    first = [torch.randn(3, generator=g) for g in generators([4, 5, 6], 0, "x")]
    again = [torch.randn(3, generator=g) for g in generators([6, 4], 0, "x")]
    assert torch.equal(first[2], again[0])
    assert torch.equal(first[0], again[1])
    assert torch.equal(first[1], torch.randn(3, generator=generator(0, "x", 5)))
