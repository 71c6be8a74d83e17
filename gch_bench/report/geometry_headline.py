"""The headline of a diagnosis: one line per network and chain, each number with what it is by chance."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from gch_bench.report.text_table import TextTable
from gch_bench.results.geometry import ADEQUATE, ALIGNED, BEYOND, NOT_APPLICABLE, STATIC, ChainReport, headline_interfaces

Reports = Sequence[tuple[str, ChainReport]]
Numbers = Mapping[str, float]
NAME = "geometry_headline"
NONE = "-"
# header -> (meaning, by chance), for the notes of the table and for the list of all headers
COLUMNS = {
    "energy gain": (
        "energy of the product of two factors that meet, over its mean under rotations; median over interfaces [quartiles]",
        "1",
    ),
    "z": (
        "distance of the energy gain from the null's mean in standard deviations, median; it grows with the number of channels,"
        " so that it is no size of an effect, and networks of different widths do not compare by it",
        "0",
    ),
    "aligned / opposed": (
        "interfaces whose energy gain is above / below that of 97.5% of the rotations, of those whose null has a spread; in"
        f" brackets those that lie, on the same side, {BEYOND:g} or more standard deviations from the gain under permutations"
        " of the shared channels, too",
        "2.5% of them each",
    ),
    "angle excess (z)": (
        "mean cos^2 of the angles between the directions that hold half of each factor's energy, less its null; medians",
        "0 (0)",
    ),
    "slack / null": (
        "slack ratio, the share of the two factors' top radii that the product loses, 0 if their top directions meet; medians",
        "the null beside it",
    ),
    "spikes": (
        "singular values above the largest of 20 Gaussian matrices of the same shape, mean per plain matrix of the branches, or"
        " per factor where there are no branches",
        "0, rarely more",
    ),
    "chart": (
        "factors whose spectrum a power law describes, better than any such Gaussian one, of those to which it applies (no flat"
        " spectra, no fewer than 8 ranks)",
        "0",
    ),
    "R.95 / rotated": (
        "blocks of the alignment matrices whose status cannot change if the factors keep the ranks that hold 95% of their"
        " energy, mean / the same after a random rotation between the two factors",
        "beside it",
    ),
    "k*/d": (
        "smallest share of the ranks at which 95% of the blocks are decided, median",
        "not defined, because it is proved for these matrices and not estimated",
    ),
    "square a": (
        "exponent of the energies of square parts of the factors, free of the aspect ratio, mean",
        "nothing known: compare with a random initialisation, and only where the chart is adequate",
    ),
}
CHANCE = ["1", "0", "2.5% / 2.5%", "0 (0)", "its null", "0", "0%", "beside it", NONE, NONE]
OVER_IMAGES = (
    "jacobian chains: measured at these images, mean ± standard deviation over the images of each image's number (counts:"
    " mean alone; the CSV file has all deviations)"
)
SUMMARY = (  # entries of a chain's summary that the headline's CSV holds
    "energy_gain", "energy_gain_q25", "energy_gain_q75", "energy_gain_z", "mean_log_gain", "angle_excess", "angle_excess_z",
    "slack_ratio", "slack_ratio_z", "slack_excess", "spikes", "certified_95", "certified_95_rotated", "certified_share",
    "energy_certified_share", "strict_share", "certified_rank", "mean_exponent", "mean_square_exponent",
)  # fmt: skip


class Row(NamedTuple):
    """One line of the headline: a chain of weights, or the Jacobians of a network at all images."""

    label: str
    chain: str
    kind: str
    images: int  # 0 for weights
    mean: Numbers  # the numbers of `facts`, means over images
    sd: Numbers  # their standard deviations over images (those of a sample); empty for fewer than two

    def number(self, name: str, form: str) -> str:
        """The text of a number with its standard deviation; "-" where there is none. A form that ends in % shows percent."""
        value, sd = self.mean.get(name, math.nan), self.sd.get(name, math.nan)
        if not math.isfinite(value):
            return NONE
        if not math.isfinite(sd):
            return f"{value:{form}}"
        return f"{f'{value:{form}}'.removesuffix('%')}±{sd:{form.lstrip('+')}}"


def headline(reports: Reports) -> TextTable:
    """The table, whose last row says what each number is by chance; its CSV form has the numbers, not rounded."""
    rows = rows_of(reports)
    notes = ["by chance: under Haar-random rotations between the factors, or for Gaussian matrices of the same shapes"]
    notes += [f"{header}: {meaning}; by chance {null}" for header, (meaning, null) in COLUMNS.items()]
    if any(row.kind == STATIC for row in rows):
        notes.append("static weights are diagnostics only")
    if any(row.kind != STATIC for row in rows):
        notes.append(OVER_IMAGES)
    known = [
        {"subject": row.label, "chain": row.chain, "kind": row.kind, "images": row.images, **row.mean}
        | {f"{name}_sd": sd for name, sd in row.sd.items()}
        for row in rows
    ]
    lines = [[row.label, row.chain, *cells(row)] for row in rows]
    columns = ["network", "chain", *COLUMNS]
    title = "Geometry of the weights, beside chance"
    return TextTable(NAME, title, columns, [*lines, ["by chance", "", *CHANCE]], notes, pd.DataFrame(known), heads=2)


def rows_of(reports: Reports) -> list[Row]:
    """A row per chain of weights, and one for all measured Jacobians of a network, in the order in which they first come."""
    rows: list[Row] = []
    for label, report in reports:
        if report.kind == STATIC:
            rows.append(Row(label, report.chain, report.kind, 0, facts(report), {}))
        elif not any(row.label == label and row.images for row in rows):
            rows.append(_over_images(label, measured_of(reports, label)))
    return rows


def measured_of(reports: Reports, label: str) -> list[ChainReport]:
    """The reports on the measured Jacobians of one network, one per image."""
    return [report for name, report in reports if name == label and report.kind != STATIC]


def _over_images(label: str, reports: Sequence[ChainReport]) -> Row:
    """Means and standard deviations, each over the images at which the number is finite, as in over_images.csv."""
    table = pd.DataFrame([facts(report) for report in reports]).replace([math.inf, -math.inf], math.nan)
    count = len(reports)
    sd = {str(name): float(value) for name, value in table.std(ddof=1).items()} if count > 1 else {}
    mean = {str(name): float(value) for name, value in table.mean().items()}
    return Row(label, f"jacobian, {count} image{'s' if count > 1 else ''}", reports[0].kind, count, mean, sd)


def facts(report: ChainReport) -> dict[str, float]:
    """The numbers of one chain, not rounded; nan where there is none."""
    factors, meetings = report.factors, interfaces_of(report)
    found = {name: float(report.summary.get(name, math.nan)) for name in SUMMARY}
    chart = factors.get("chart")
    return found | {
        "slack_ratio_null": float(column(meetings, "slack_ratio_null").median()),
        "interfaces": float(len(meetings)),
        **sides(meetings),
        "factors": float(len(factors)),
        "chart_applicable": math.nan if chart is None else float((chart != NOT_APPLICABLE).sum()),
        "chart_adequate": math.nan if chart is None else float((chart == ADEQUATE).sum()),
    }


def sides(meetings: pd.DataFrame) -> dict[str, float]:
    """How many interfaces are aligned and opposed: by rotations, and by permutations of the shared channels, too.

    ``interfaces_with_null`` counts those whose null has a spread; the others are neither.
    """
    table = with_null(meetings, "energy_gain")
    percentile, z = column(table, "energy_gain_percentile"), column(table, "energy_gain_permuted_z")
    aligned, opposed = percentile >= ALIGNED, percentile <= 100 - ALIGNED
    known = "energy_gain_permuted_z" in table
    return {
        "interfaces_with_null": float(len(table)),
        "aligned": float(aligned.sum()),
        "opposed": float(opposed.sum()),
        "aligned_both": float((aligned & (z >= BEYOND)).sum()) if known else math.nan,
        "opposed_both": float((opposed & (z <= -BEYOND)).sum()) if known else math.nan,
    }


def interfaces_of(report: ChainReport) -> pd.DataFrame:
    """One row per interface of the chain, in branch form where there is one; no row if the chain has one factor."""
    return headline_interfaces(report.interfaces) if len(report.interfaces) else pd.DataFrame()


def with_null(table: pd.DataFrame, name: str) -> pd.DataFrame:
    """The interfaces at which the null of a number has a spread, so that there is something to compare it with."""
    found = [np.isfinite(column(table, f"{name}_{end}")) for end in ("z", "percentile")]
    return table[found[0] & found[1]]


def column(table: pd.DataFrame, name: str) -> Any:
    """A column of numbers; nan where the table lacks it."""
    return table[name].astype(float) if name in table else pd.Series(math.nan, index=table.index, dtype=float)


def cells(row: Row) -> list[str]:
    """The texts of one row, without network and chain."""
    own, number = row.mean, row.number
    gain, slack = number("energy_gain", ".2f"), number("slack_ratio", ".2f")
    low, high = (own.get(f"energy_gain_q{at}", math.nan) for at in (25, 75))
    if math.isfinite(low) and row.images < 2:  # of several images the spread over them stands in its place
        gain += f" [{low:.2f}, {high:.2f}]"
    certified = [_text(own[name], ".0%") for name in ("certified_95", "certified_95_rotated")]
    return [
        gain,
        number("energy_gain_z", "+.1f"),
        f"{_side(row, 'aligned')} / {_side(row, 'opposed')} of {_count(row, 'interfaces_with_null')}"
        if own["interfaces_with_null"]
        else NONE,
        number("angle_excess", "+.3f") + _z(own["angle_excess_z"]),
        f"{slack} / {_text(own['slack_ratio_null'], '.2f')}" if slack != NONE else NONE,
        number("spikes", ".1f"),
        f"{_count(row, 'chart_adequate')} of {_count(row, 'chart_applicable')}" if own["chart_applicable"] >= 0 else NONE,
        f"{number('certified_95', '.0%')} / {certified[1]}" if certified != [NONE, NONE] else NONE,
        number("certified_rank", ".2f"),
        number("mean_square_exponent", ".2f"),
    ]


def _side(row: Row, name: str) -> str:
    both = f" ({_count(row, f'{name}_both')})" if math.isfinite(row.mean[f"{name}_both"]) else ""
    return f"{_count(row, name)}{both}"


def _count(row: Row, name: str) -> str:
    """A number of interfaces or factors, or its mean over images, without .0."""
    return f"{row.mean[name]:.1f}".removesuffix(".0")


def with_z(row: Any, name: str, form: str) -> str:
    """A number and, in brackets, its z; "-" where there is no number."""
    value = float(row.get(name, math.nan))
    return f"{value:{form}}{_z(float(row.get(f'{name}_z', math.nan)))}" if math.isfinite(value) else NONE


def _z(z: float) -> str:
    return f" ({z:+.1f})" if math.isfinite(z) else ""


def _text(value: float, form: str) -> str:
    return f"{value:{form}}" if math.isfinite(value) else NONE
