"""The headline of a diagnosis: one line per network and chain, each number with what it is by chance."""

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd

from gch_bench.report.text_table import TextTable
from gch_bench.results.geometry import ALIGNED, STATIC, ChainReport, headline_interfaces

Reports = Sequence[tuple[str, ChainReport]]
NAME = "geometry_headline"
NONE = "-"
NO_NULL = "not defined, because it is proved for these matrices and not estimated"
# header -> (meaning, by chance), for the notes of the table and for the list of all headers
COLUMNS = {
    "energy gain (z)": (
        "energy of the product of two factors that meet, over its mean under rotations (z: distance from the null's mean in"
        " standard deviations); medians over interfaces",
        "1 (0)",
    ),
    "aligned / opposed": (
        "interfaces whose energy gain is above / below that of 97.5% of the rotations",
        "2.5% of them each",
    ),
    "angle excess (z)": (
        "mean cos^2 of the angles between the directions that hold half of each factor's energy, less its null; medians",
        "0 (0)",
    ),
    "slack ratio / null (z)": (
        "share of the two factors' top radii that the product loses, 0 if their top directions meet; medians",
        "the null beside it (0)",
    ),
    "spikes": (
        "singular values above the largest of 20 Gaussian matrices of the same shape, mean per factor",
        "0, rarely more",
    ),
    "chart": ("factors whose spectrum a power law describes, better than any such Gaussian one", "0"),
    "certified (energy)": (
        "blocks of the alignment matrices whose status the truncation to the charts' windows cannot change, mean (weighted by"
        " energy)",
        NO_NULL,
    ),
    "k*/d": ("smallest share of the ranks at which 95% of the blocks are decided, median", NO_NULL),
    "a (square)": (
        "exponent of the energies, mean over factors (over square parts of them, free of the aspect ratio)",
        "nothing known: compare with a random initialisation, and only where the chart is adequate",
    ),
}


def headline(reports: Reports) -> TextTable:
    """The table, whose last row says what each number is by chance; its CSV form has the numbers, not rounded."""
    rows = [[label, each.chain, *cells(each)] for label, each in reports]
    chance = ["by chance", "", "1 (0)", "2.5% / 2.5%", "0 (0)", "its null (0)", "0", "0%", NONE, NONE, NONE]
    notes = ["by chance: under Haar-random rotations between the factors, or for Gaussian matrices of the same shapes"]
    notes += [f"{header}: {meaning}; by chance {null}" for header, (meaning, null) in COLUMNS.items()]
    if any(each.kind == STATIC for _, each in reports):
        notes.append("static weights are diagnostics only")
    if any(each.kind != STATIC for _, each in reports):
        notes.append("jacobian chains: measured at these images")
    known = [{"subject": label, "chain": each.chain, "kind": each.kind, **facts(each)} for label, each in reports]
    title = "Geometry of the weights, beside chance"
    return TextTable(NAME, title, ["network", "chain", *COLUMNS], [*rows, chance], notes, pd.DataFrame(known), heads=2)


def facts(report: ChainReport) -> dict[str, float]:
    """The numbers of one row, not rounded; nan where there is none."""
    factors, meetings = report.factors, interfaces_of(report)
    names = (
        "energy_gain", "energy_gain_z", "angle_excess", "angle_excess_z", "slack_ratio", "slack_ratio_z", "spikes",
        "certified_share", "energy_certified_share", "strict_share", "certified_rank", "mean_exponent", "mean_square_exponent",
    )  # fmt: skip
    found = {name: float(report.summary.get(name, math.nan)) for name in names}
    gain = column(meetings, "energy_gain_percentile")
    return found | {
        "slack_ratio_null": float(column(meetings, "slack_ratio_null").median()),
        "interfaces": float(len(meetings)),
        "aligned": float((gain >= ALIGNED).sum()),
        "opposed": float((gain <= 100 - ALIGNED).sum()),
        "factors": float(len(factors)),
        "chart_adequate": float((factors["chart"] == "adequate").sum()) if "chart" in factors else math.nan,
    }


def interfaces_of(report: ChainReport) -> pd.DataFrame:
    """One row per interface of the chain, in branch form where there is one; no row if the chain has one factor."""
    return headline_interfaces(report.interfaces) if len(report.interfaces) else pd.DataFrame()


def column(table: pd.DataFrame, name: str) -> Any:
    """A column of numbers; nan where the table lacks it."""
    return table[name].astype(float) if name in table else pd.Series(math.nan, index=table.index, dtype=float)


def cells(report: ChainReport) -> list[str]:
    """The texts of one row, without network and chain."""
    own = facts(report)
    meetings = int(own["interfaces"])
    slack = f"{_text(own['slack_ratio'], '.2f')} / {_text(own['slack_ratio_null'], '.2f')}"
    return [
        with_z(own, "energy_gain", ".2f"),
        f"{own['aligned']:.0f} / {own['opposed']:.0f} of {meetings}" if meetings else NONE,
        with_z(own, "angle_excess", "+.3f"),
        f"{slack}{_z(own['slack_ratio_z'])}" if math.isfinite(own["slack_ratio"]) else NONE,
        _text(own["spikes"], ".1f"),
        f"{own['chart_adequate']:.0f} of {own['factors']:.0f}" if math.isfinite(own["chart_adequate"]) else NONE,
        _beside(own["certified_share"], own["energy_certified_share"], ".0%"),
        _text(own["certified_rank"], ".2f"),
        _beside(own["mean_exponent"], own["mean_square_exponent"], ".2f"),
    ]


def with_z(row: Any, name: str, form: str) -> str:
    """A number and, in brackets, its z; "-" where there is no number."""
    value = float(row.get(name, math.nan))
    return f"{value:{form}}{_z(float(row.get(f'{name}_z', math.nan)))}" if math.isfinite(value) else NONE


def _z(z: float) -> str:
    return f" ({z:+.1f})" if math.isfinite(z) else ""


def _text(value: float, form: str) -> str:
    return f"{value:{form}}" if math.isfinite(value) else NONE


def _beside(value: float, other: float, form: str) -> str:
    return f"{_text(value, form)} ({_text(other, form)})" if math.isfinite(value) else NONE
