"""Geometry of a network: spectra of its layer factors (GSA I), the transport between factors and static channels (GSA II).

Sources: Liu, Wang, Wang et al., Geometric and Spectral Alignment for Deep Neural Network I (GSA I), arXiv 2605.02108, and II
(GSA II), arXiv 2605.02111. Where their abstracts fix no definition, the definition is this project's (docs/geometry.md). The
modules take plain tensors and return named results; everything is computed in float64. ``diagnose`` reads a whole network.
"""

from typing import Any


def diagnose(model: Any, chain: str = "auto", **options: Any) -> Any:
    """The geometry of a network's weights as data frames; see ``gch_bench.geometry.library.diagnose``."""
    from gch_bench.geometry.library import diagnose as run

    return run(model, chain, **options)
