"""What noisy forward passes do to real activations, as arrays over passes, images and pairs of sites.

Shapes: T noisy passes, M images, C channels, N = H*W sites, K pairs of sites of an image, each in one channel.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from gch_bench.apps.compatibility.bench import Bench, Pass
from gch_bench.noise import theory
from gch_bench.rng import generator

PAIRS = 2048  # pairs of values looked at in each image
RANK_IMAGES, RANK_PASSES = 16, 2  # images and passes whose effective rank is computed
TINY = 1e-30


class Pairs(NamedTuple):
    """Pairs of positive values of a channel, oriented so that the first is larger; (M, K) each."""

    channel: Tensor
    first: Tensor  # site of the larger value
    second: Tensor
    valid: Tensor  # whether both values are positive and different
    larger: Tensor  # the values, float64
    smaller: Tensor

    @property
    def margin(self) -> Tensor:
        return (self.larger.clamp_min(TINY) / self.smaller.clamp_min(TINY)).log()


def pairs_of(map_MCHW: Tensor) -> Pairs:
    """PAIRS pairs of each image, always the same for maps of one shape."""
    images, channels, height, width = map_MCHW.shape
    shape, draws = (images, PAIRS), generator("feature pairs", images, channels, height, width)
    channel = torch.randint(channels, shape, generator=draws)
    first = torch.randint(height * width, shape, generator=draws)
    second = (first + torch.randint(1, max(height * width, 2), shape, generator=draws)) % (height * width)
    one, two = values_at(map_MCHW, channel, first), values_at(map_MCHW, channel, second)
    swap = two > one
    first, second = torch.where(swap, second, first), torch.where(swap, first, second)
    larger, smaller = torch.maximum(one, two), torch.minimum(one, two)
    return Pairs(channel, first, second, (smaller > 0) & (larger > smaller), larger, smaller)


def values_at(map_MCHW: Tensor, channel: Tensor, site: Tensor) -> Tensor:
    """The values of a map at channels and sites (M, K): (M, K), float64."""
    sites = map_MCHW.shape[2] * map_MCHW.shape[3]
    return map_MCHW.flatten(1).gather(1, channel * sites + site).double()


@dataclass
class Measured:
    """What T noisy passes did to M images. Squared distortions are relative; those of the map are None without a noisy map."""

    logits: np.ndarray  # (T, M): ||logits~ - logits||^2 / ||logits||^2
    flipped: np.ndarray  # (T, M): whether the top class changed
    map: np.ndarray | None = None  # ||F~ - F||^2 / ||F||^2
    pooled: np.ndarray | None = None  # ||mean F~ - mean F||^2 / ||mean F||^2
    cosine: np.ndarray | None = None  # between the pooled features
    contrast: np.ndarray | None = None  # sum_x ||F~ - mean F~||^2 / sum_x ||F - mean F||^2
    rank: np.ndarray | None = None  # (passes, images): effective rank of F~
    destroyed: np.ndarray | None = None  # (T, M, K): whether the order of a pair is lost, by a flip or a tie
    ratio: np.ndarray | None = None  # (T, M, K): change of the log-ratio of a pair; NaN where it is infinite
    second: Tensor | None = None  # (C,): mean of F~^2 over passes, images and sites
    mean: Tensor | None = None  # (C,): mean of F~


def measure(bench: Bench, pairs: Pairs, passes: Iterator[Pass]) -> Measured:
    clean, top = bench.logits_MK, bench.logits_MK.argmax(1)
    norm = clean.square().sum(1).clamp_min(TINY)
    logits, flipped, maps = [], [], []
    for number, each in enumerate(passes):
        logits.append(((each.logits_MK - clean).square().sum(1) / norm).numpy())
        flipped.append((each.logits_MK.argmax(1) != top).numpy())
        if each.map_MCHW is not None:
            maps.append(_of_map(bench.map_MCHW, each.map_MCHW, pairs, number < RANK_PASSES))
    made = Measured(np.stack(logits), np.stack(flipped))
    if maps:
        for name in ("map", "pooled", "cosine", "contrast", "destroyed", "ratio"):
            setattr(made, name, np.stack([each[name].numpy() for each in maps]))
        made.rank = np.stack([each["rank"].numpy() for each in maps if "rank" in each])
        made.second, made.mean = (torch.stack([each[name] for each in maps]).mean(0) for name in ("second", "mean"))
    return made


def _of_map(clean: Tensor, noisy: Tensor, pairs: Pairs, with_rank: bool) -> dict[str, Tensor]:
    sites = clean.shape[2] * clean.shape[3]
    power = clean.square().sum((1, 2, 3)).double().clamp_min(TINY)
    pooled, pooled_noisy = clean.double().mean((2, 3)), noisy.double().mean((2, 3))
    squares, squares_noisy = pooled.square().sum(1).clamp_min(TINY), pooled_noisy.square().sum(1)
    inner = power - sites * squares
    inner = torch.where(inner > 1e-6 * power, inner, torch.nan)  # the sites agree up to rounding: there is no contrast
    second = noisy.square().sum((2, 3)).double() / sites
    larger, smaller = values_at(noisy, pairs.channel, pairs.first), values_at(noisy, pairs.channel, pairs.second)
    positive = (larger > 0) & (smaller > 0)
    ratio = torch.where(positive, (larger.clamp_min(TINY) / smaller.clamp_min(TINY)).log() - pairs.margin, torch.nan)
    found = {
        "map": (noisy - clean).square().sum((1, 2, 3)).double() / power,
        "pooled": (pooled_noisy - pooled).square().sum(1) / squares,
        "cosine": (pooled * pooled_noisy).sum(1) / (squares * squares_noisy.clamp_min(TINY)).sqrt(),
        "contrast": (sites * second.sum(1) - sites * squares_noisy) / inner,
        "destroyed": larger <= smaller,
        "ratio": ratio,
        "second": second.mean(0),
        "mean": pooled_noisy.mean(0),
    }
    return found | ({"rank": effective_rank(noisy[:RANK_IMAGES])} if with_rank else {})


def effective_rank(map_MCHW: Tensor) -> Tensor:
    """exp of the entropy of the singular values of each image's (N, C) matrix (Roy and Vetterli, EUSIPCO 2007): (M,)."""
    matrix = map_MCHW.flatten(2).double()
    gram = matrix @ matrix.mT if matrix.shape[1] < matrix.shape[2] else matrix.mT @ matrix
    values = torch.linalg.eigvalsh(gram).clamp_min(0).sqrt()
    share = values / values.sum(1, keepdim=True).clamp_min(TINY)
    return torch.special.entr(share).sum(1).exp()


def coherence_and_positivity(map_MCHW: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Of each image: how parallel its sites are (theory.coherence), and the share of sum |F| at positive values; (M,) each."""
    coherent = [theory.coherence(each.flatten(1).T.double()) for each in map_MCHW]
    positive = map_MCHW.clamp_min(0).sum((1, 2, 3)) / map_MCHW.abs().sum((1, 2, 3)).clamp_min(TINY)
    return np.array(coherent), positive.double().numpy()
