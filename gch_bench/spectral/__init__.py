"""Geometry of a network: spectra of its layer factors (GSA I), the transport between factors and static channels (GSA II).

Sources: Liu, Wang, Wang et al., Geometric and Spectral Alignment for Deep Neural Network I (GSA I), arXiv 2605.02108, and II
(GSA II), arXiv 2605.02111. Where their abstracts fix no definition, the definition is this project's (docs/geometry.md). The
modules take plain tensors and return named results, in float64 unless they say otherwise. ``diagnose`` reads a whole network.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gch_bench.geometry.network import diagnose

__all__ = ["diagnose"]


def __getattr__(name: str) -> Any:
    """``diagnose`` is imported when it is asked for, because it stands on everything in this package."""
    if name != "diagnose":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from gch_bench.geometry.network import diagnose as found

    return found
