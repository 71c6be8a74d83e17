"""The quantities that have one number for a whole chain: the headline of the report, by which networks are compared."""

import itertools
import math

import numpy as np
import pandas as pd

from gch_bench.results.geometry import (
    ADEQUATE,
    ALIGNED,
    BEYOND,
    BLOCK,
    NOT_APPLICABLE,
    PHYSICAL,
    ROTATED,
    ChainReport,
    headline_interfaces,
)
from gch_bench.spectral import gibbs

FIXED_ETA = 0.95  # share of the energy in the windows at which networks are compared


def summary_of(report: ChainReport) -> dict[str, float]:
    """Name -> number. Of interfaces the branch form counts where there is one: with a shortcut they mostly show it."""
    factors = report.factors
    judged = factors[factors["chart"] != NOT_APPLICABLE]
    summary = {
        "factors": float(len(factors)),
        "mean_exponent": _mean(factors["exponent"]),
        "mean_square_exponent": _mean(factors["square_exponent"]),
        "mean_explained_share": _mean(factors["explained_share"]),
        "chart_applicable": float(len(judged)),
        "chart_adequate_share": _mean((judged["chart"] == ADEQUATE).astype(float)),
        "mean_kl": _mean(factors["kl"]),
        "mean_residual": _mean(factors["residual"].abs()),
        "spikes": _plain_spikes(factors),
        "last_exponent": float(factors["exponent"].iloc[-1]),
        "last_rank_90": float(factors["rank_90"].iloc[-1]),
        "radial_sum": float(factors["radial"].sum()),
    }
    if not len(report.interfaces):
        return summary
    return summary | _of_interfaces(headline_interfaces(report.interfaces)) | _certified(report) | _of_depth(report)


def _plain_spikes(factors: pd.DataFrame) -> float:
    """Mean spikes of the chain's plain matrices: products of matrices, which most factors are, have spikes by themselves."""
    ends = factors[["spikes_read", "spikes_write"]].mean(axis=1)
    return _mean(ends.fillna(factors["spikes"]))


def _of_interfaces(table: pd.DataFrame) -> dict[str, float]:
    names = ("energy_gain", "energy_gain_z", "slack_ratio", "slack_ratio_z", "angle_excess", "angle_excess_z")
    tested = table[table["energy_gain_percentile"].notna()]
    above, below = (tested["energy_gain_percentile"] >= ALIGNED), (tested["energy_gain_percentile"] <= 100 - ALIGNED)
    permuted = tested["energy_gain_permuted_z"]
    quartiles = table["energy_gain"].quantile([0.25, 0.75])
    gains = table["energy_gain"]
    return {
        "interfaces": float(len(table)),
        **{name: float(table[name].median()) for name in names},
        "energy_gain_q25": float(quartiles.iloc[0]),
        "energy_gain_q75": float(quartiles.iloc[1]),
        "mean_log_gain": _mean(pd.Series(np.log(gains[gains > 0]))),
        "slack_excess": float((table["slack_ratio"] - table["slack_ratio_null"]).median()),
        "aligned_share": _mean(above.astype(float)),
        "opposed_share": _mean(below.astype(float)),
        "aligned_both_share": _mean((above & (permuted >= BEYOND)).astype(float)),
        "opposed_both_share": _mean((below & (permuted <= -BEYOND)).astype(float)),
    }


def _certified(report: ChainReport) -> dict[str, float]:
    """What is certified of the physical alignment matrices: at the charts' windows, and at the windows of 95% of the energy."""
    table = headline_interfaces(report.interfaces)
    shares = {name: _mean(table[f"{PHYSICAL}_{name}"]) for name in ("certified_share", "energy_certified_share")}
    at = report.certificates
    if len(at):
        shown = table[["index", "form"]]
        at = at[(at["matrix"] == PHYSICAL) & (at["eta"] == FIXED_ETA)].merge(shown, on=["index", "form"])
    return {
        **shares,
        "strict_share": _mean((table[f"{PHYSICAL}_certified"].dropna() != "no").astype(float)),
        "certified_95": _mean(at["certified_share"]) if len(at) else math.nan,
        "certified_95_rotated": _mean(table[ROTATED]),
        "certified_rank": float(_certified_ranks(table).median()),
    }


def _certified_ranks(table: pd.DataFrame) -> pd.Series:
    """k*: the larger of the two certified windows, as a share of its factor's modes; 1 where no window is certified.

    Interfaces of large factors, whose channels are left out, are not counted.
    """
    shares = [table[f"{PHYSICAL}_certified_rank_{side}"] / table[f"modes_{side}"] for side in ("first", "second")]
    return pd.concat(shares, axis=1).max(axis=1).fillna(1.0)[table[f"{PHYSICAL}_certified"].notna()]


def _of_depth(report: ChainReport) -> dict[str, float]:
    """How far the charts move over depth, between neighbours of equally many ranks; nan if there are none.

    Fisher's action is that of the charts, sum of I(a) da^2; those of KL and Bures add up KL(p_l || p_{l+1}) and the squared
    Bures-Wasserstein distances of the measured spectra.
    """
    factors = report.factors
    pairs = list(itertools.pairwise(factors.to_dict("records")))
    equal = [(one, two) for one, two in pairs if one["numerical_rank"] == two["numerical_rank"]]
    fisher = [gibbs.fisher_action([one["exponent"], two["exponent"]], one["numerical_rank"]) for one, two in equal]
    blocks = report.interfaces[report.interfaces["form"] == BLOCK]
    return {
        "drift": _sum([abs(two["exponent"] - one["exponent"]) for one, two in equal]),
        "displacement": sum(abs(two["chart_radial"] - one["chart_radial"]) for one, two in pairs),
        "fisher_action": _sum(fisher),
        "kl_action": _sum(list(blocks["spectrum_kl"].dropna())),
        "bures_action": _sum(list(blocks["bures_squared"].dropna())),
    }


def _sum(values: list[float]) -> float:
    return float(sum(values)) if values else math.nan


def _mean(values: pd.Series) -> float:
    """The mean of the finite values, nan if there are none."""
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if len(finite) else math.nan
