"""Geometry of a network: spectra of its layer factors (GSA I), the transport between factors and static channels (GSA II).

Sources: Liu, Wang, Wang et al., Geometric and Spectral Alignment for Deep Neural Network I (GSA I), arXiv 2605.02108, and II
(GSA II), arXiv 2605.02111. Where their abstracts fix no definition, the definition is this project's (docs/geometry.md). The
modules take plain tensors and return named results, in float64 unless they say otherwise. ``diagnose`` reads a whole network.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor, nn

    from gch_bench.geometry.library import Frames, Options


def diagnose(
    model: nn.Module | Mapping[str, Tensor],
    chain: str | Sequence[str] = "auto",
    options: Options | None = None,
    head_dim: int | None = None,
) -> Frames:
    """The geometry of a network's weights as data frames: .summary .factors .interfaces .certificates .channels and others.

    Args:
        model: a network or its state dict.
        chain: "auto" for the first family of built-in chains that fits, the name of a chain or a file NAME.yaml, or several.
        options: ``gch_bench.geometry.library.Options(spectral, alignment, seed)``, with the groups of diagnose.py's options.
        head_dim: rows of an attention head; by default what the network's modules say.

    Raises:
        ValueError: a chain does not exist or does not fit the weights, no built-in chain fits, or a weight is not finite.
        TypeError: the model is neither a network nor a mapping from names to tensors.
    """
    from gch_bench.geometry.library import diagnose as measured

    return measured(model, chain, options, head_dim)
