"""The figures on the compatibility of noise with a network."""

from collections.abc import Mapping

import pandas as pd
from matplotlib.figure import Figure


def all_figures(tables: Mapping[str, pd.DataFrame]) -> dict[str, Figure]:
    """Name -> figure, for each stage."""
    return {}
