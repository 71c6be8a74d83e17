"""The family of dropout: single values, channels, samples, blocks of sites, or keys of an attention are set to zero."""

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor, nn

from gch_bench.checks import check_probability, check_whole_number
from gch_bench.noise import theory
from gch_bench.noise.draws import Draws, GlobalDraws
from gch_bench.noise.mechanism import MATCH, Mechanism, Parameter


class Dropout(Mechanism):
    """Sets values to zero independently with probability p and scales the others by 1 / (1 - p), like torch.nn.Dropout.

    Args:
        p: probability in [0, 1).
    """

    strength, drops, independent_sites = "p", True, True
    each, shared = "single value", "an xi for each value"  # what is drawn for itself

    def __init__(self, p: float = 0.1) -> None:
        super().__init__()
        check_probability("p", p, below_one=True)
        self.p = p

    def draw(self, features: Tensor, draws: Draws) -> Tensor:
        return self._mask(draws, features.shape)

    def _mask(self, draws: Draws, shape: Sequence[int]) -> Tensor:
        return draws.uniform(shape).ge_(self.p).mul_(1 / (1 - self.p))

    def gate_mean(self, height: int, width: int) -> Tensor:
        return torch.ones(height * width, dtype=torch.float64)

    def gate_variance(self, height: int, width: int) -> Tensor:
        return torch.full((height * width,), theory.iid_mask_distortion(self.p) ** 2, dtype=torch.float64)

    def correlation(self, sites: int) -> float:
        return 0.0

    def drop_probability(self, height: int, width: int) -> Tensor:
        return torch.full((height * width,), self.p, dtype=torch.float64)

    def words(self, height: int, width: int) -> str:
        return f"Bernoulli: xi = 0 with probability p, else 1/(1-p), drawn for each {self.each}"

    def free_parameters(self, height: int, width: int, now: str) -> list[Parameter]:
        return [Parameter("p", self.p, f"the drop rate; {now}{MATCH}")]

    def extra_repr(self) -> str:
        return f"p={self.p:g}"


class SpatialDropout(Dropout):
    """Sets whole channels to zero independently with probability p and scales the others, like torch.nn.Dropout2d."""

    independent_sites = False
    each, shared = "channel", "one xi for a channel"

    def draw(self, features: Tensor, draws: Draws) -> Tensor:
        return self._mask(draws, (*features.shape[:2], 1, 1))

    def correlation(self, sites: int) -> float:
        return 1.0


class SampleDropout(SpatialDropout):
    """Sets all features of a sample, class token included, to zero with probability p; the others are scaled by 1 / (1 - p).

    On the residual branches of a stage this is stochastic depth (Huang et al., arXiv 1603.09382), as timm's DropPath.
    """

    on_prefix_tokens = True
    each, shared = "sample", "one xi for a sample"

    def draw(self, features: Tensor, draws: Draws) -> Tensor:
        return self._mask(draws, (len(features), 1, 1, 1))


class KeyDropout(Mechanism):
    """DropKey (Li et al., arXiv 2208.02646): each key of an attention is dropped with probability p, for each query and head.

    This happens before the softmax, which makes the remaining weights sum to one, so that nothing is scaled.

    It has no gate on a map: `inject` attaches it to the attention modules inside a stage, which must take an `attn_mask`.

    Args:
        p: probability in [0, 1).
    """

    place = "attention"
    strength, drops = "p", True

    def __init__(self, p: float = 0.1) -> None:
        super().__init__()
        check_probability("p", p, below_one=True)
        self.p = p

    @torch.compiler.disable
    def attention_mask(self, tokens_BNC: Tensor, heads: int, draws: Draws | None) -> Tensor:
        """What is added to the logits of the attention, in their type: (B, heads, N, N), 0 or half the type's lowest number.

        This is finite, so that a query all of whose keys are dropped sees all alike, as in DropKey's code.
        """
        batch, tokens, _ = tokens_BNC.shape
        draws = GlobalDraws(tokens_BNC.device) if draws is None else draws
        dropped = draws.uniform((batch, heads, tokens, tokens)) < self.p
        kind, device = tokens_BNC.dtype, tokens_BNC.device.type
        if kind == torch.float32 and torch.is_autocast_enabled(device):
            kind = torch.get_autocast_dtype(device)  # the attention turns queries, keys and this mask into it
        return torch.zeros(dropped.shape, dtype=kind, device=dropped.device).masked_fill_(dropped, torch.finfo(kind).min / 2)

    def drop_rate(self, height: int, width: int) -> float:
        return self.p

    def words(self, height: int, width: int) -> str:
        return "Bernoulli: each key of an attention is dropped with probability p, for each query and head"

    def injection_words(self) -> str:
        return "attention: the logit of a dropped key becomes -infinity before the softmax"

    def free_parameters(self, height: int, width: int, now: str) -> list[Parameter]:
        return [Parameter("p", self.p, "the probability of a dropped key; nothing here would fix it: there is no gate")]

    def extra_repr(self) -> str:
        return f"p={self.p:g}"


class DropBlock(Mechanism):
    """DropBlock (Ghiasi et al., arXiv 1810.12890) with the seeds and blocks of timm's `drop_block_2d`.

    The kept sites are scaled by 1 / E(share of kept sites), which depends on the map's size only, so that the noise on an image
    does not depend on the other images. timm divides by the share that was kept in the batch at hand.

    Args:
        p: the nominal drop probability in [0, 1).
        block_size: side of a block in sites, >= 1; it is cut to the map's size.
        per_channel: whether every channel has blocks of its own.
    """

    strength, drops = "p", True
    why_biased = "E xi(x), averaged over the sites, is 1, but it is larger at the map's edge"

    def __init__(self, p: float = 0.1, block_size: int = 7, per_channel: bool = False) -> None:
        super().__init__()
        check_probability("p", p, below_one=True)
        check_whole_number("block_size", block_size, low=1)
        self.p = p
        self.block_size = block_size
        self.per_channel = per_channel

    def draw(self, features: Tensor, draws: Draws) -> Tensor:
        batch, channels, height, width = features.shape
        rows, columns = min(self.block_size, height), min(self.block_size, width)
        seeds = draws.uniform((batch, channels if self.per_channel else 1, height, width))
        seeds.lt_(theory.dropblock_seed_rate(self.p, self.block_size, height, width))
        blocks = nn.functional.max_pool2d(seeds, (rows, columns), stride=1, padding=(rows // 2, columns // 2))
        blocks = blocks[..., (rows + 1) % 2 :, (columns + 1) % 2 :]  # blocks of an even side give one row or column too many
        return (1 - blocks).mul_(1 / _share_kept(self.p, self.block_size, height, width))

    def gate_mean(self, height: int, width: int) -> Tensor:
        kept_N = 1 - self.drop_probability(height, width)
        return kept_N / kept_N.mean()

    def gate_variance(self, height: int, width: int) -> Tensor:
        kept_N = 1 - self.drop_probability(height, width)
        return kept_N * (1 - kept_N) / kept_N.mean() ** 2

    def covariance(self, height: int, width: int) -> Tensor:
        return theory.dropblock_covariance(self.p, self.block_size, height, width)

    def drop_probability(self, height: int, width: int) -> Tensor:
        return 1 - theory.dropblock_kept(self.p, self.block_size, height, width).flatten()

    def words(self, height: int, width: int) -> str:
        return "DropBlock: xi(x) = 0 on square blocks with random centres, 1/E(share of kept sites) elsewhere"

    def free_parameters(self, height: int, width: int, now: str) -> list[Parameter]:
        words = "the side of a block, cut to the map's size: the correlation length; no desideratum fixes it"
        return [
            Parameter("p", self.p, f"the drop rate, here {self.drop_rate(height, width):.4g}; {now}{MATCH}"),
            Parameter("block size", self.block_size, words),
        ]

    def extra_repr(self) -> str:
        return f"p={self.p:g}, block_size={self.block_size}{', per_channel' if self.per_channel else ''}"


@lru_cache(maxsize=256)
def _share_kept(p: float, block_size: int, height: int, width: int) -> float:
    return float(theory.dropblock_kept(p, block_size, height, width).mean())
