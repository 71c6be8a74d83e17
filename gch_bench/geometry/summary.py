"""The quantities that have one number for a whole chain: the headline of the report, by which networks are compared."""

import itertools
import math

import numpy as np
import pandas as pd

from gch_bench.results.geometry import ALIGNED, ChainReport, headline_interfaces
from gch_bench.spectral import gibbs


def summary_of(report: ChainReport) -> dict[str, float]:
    """Name -> number. Interfaces count in their branch form where a chain has it: with a shortcut they mostly show the shortcut."""
    factors = report.factors
    summary = {
        "factors": float(len(factors)),
        "mean_exponent": _mean(factors["exponent"]),
        "mean_square_exponent": _mean(factors["square_exponent"]),
        "mean_explained_share": _mean(factors["explained_share"]),
        "chart_adequate_share": float((factors["chart"] == "adequate").mean()),
        "mean_kl": _mean(factors["kl"]),
        "mean_residual": _mean(factors["residual"].abs()),
        "spikes": _mean(factors["spikes"]),
        "last_exponent": float(factors["exponent"].iloc[-1]),
        "last_rank_90": float(factors["rank_90"].iloc[-1]),
        "radial_sum": float(factors["radial"].sum()),
    }
    if not len(report.interfaces):
        return summary
    return summary | _of_interfaces(headline_interfaces(report.interfaces)) | _of_depth(report.factors)


def _of_interfaces(table: pd.DataFrame) -> dict[str, float]:
    names = ("energy_gain", "energy_gain_z", "slack_ratio", "slack_ratio_z", "angle_excess", "angle_excess_z")
    return {
        "interfaces": float(len(table)),
        **{name: float(table[name].median()) for name in names},
        "aligned_share": float((table["energy_gain_percentile"] >= ALIGNED).mean()),
    }


def _of_depth(factors: pd.DataFrame) -> dict[str, float]:
    """How far the charts move over depth. Exponents count between neighbours of equally many ranks; nan if there are none."""
    pairs = list(itertools.pairwise(factors.to_dict("records")))
    equal = [(one, two) for one, two in pairs if one["numerical_rank"] == two["numerical_rank"]]
    finite = [(one, two) for one, two in equal if math.isfinite(one["exponent"]) and math.isfinite(two["exponent"])]
    return {
        "drift": sum(abs(two["exponent"] - one["exponent"]) for one, two in finite) if finite else math.nan,
        "displacement": sum(abs(two["chart_radial"] - one["chart_radial"]) for one, two in pairs),
        "fisher_action": sum(
            gibbs.fisher_action([one["exponent"], two["exponent"]], one["numerical_rank"]) for one, two in finite
        )
        if finite
        else math.nan,
    }


def _mean(values: pd.Series) -> float:
    """The mean of the finite values, nan if there are none."""
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if len(finite) else math.nan
