"""The diagnosis in words: a verdict per interface, console tables, the Markdown report, and the metrics for the logger."""

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd

from gch_bench.files import slug
from gch_bench.report.geometry_compare import Comparison
from gch_bench.results.geometry import PHYSICAL, SOURCE, STATIC, ChainReport

Reports = Sequence[tuple[str, ChainReport]]
STATIC_NOTE = (
    "static weights are diagnostics only: budgets, slacks, residuals and certificates hold for these matrices, not for what the"
    " network computes with its nonlinearities; measured Jacobians (jacobian.images=N) verify the same chain at real inputs"
)
MEASURED_NOTE = "measured block Jacobians: the statements hold for the linearised blocks at this input"
FACTOR_COLUMNS = {  # column of factors.csv -> (header in report.md, meaning)
    "name": ("factor", ""),
    "rows": ("rows", ""),
    "columns": ("columns", ""),
    "exponent": ("a", "exponent of the energies by maximum likelihood"),
    "slope": ("slope", "of log energy over log rank, least squares"),
    "r_squared": ("R2", "of the line that slope is of"),
    "kl": ("KL", "of the energies from the chart: 0 is an exact power law"),
    "radial": ("r", "top-radial coordinate, log of the largest normalised singular value"),
    "residual": ("e", "r less the chart's rho(a)"),
    "rank_90": ("R.90", "effective rank: so many modes hold 90% of the energy"),
    "rank_95": ("R.95", ""),
    "rank_99": ("R.99", ""),
    "chart_rank_95": ("chart R.95", "that of the chart"),
    "window_low": ("window from", "the chart's at a + the exponent's uncertainty"),
    "window_high": ("to", "at a - it"),
    "tail_share": ("tail", "energy outside the chart's window (of the share spectral.eta)"),
    "chart_tail_bound": ("chart's bound", "of its own energy outside that window, by an integral"),
    "identity_distance": ("||A - I||", "of a square factor, Frobenius norm over the root of its size"),
    "near_identity_radial": ("r near I", "to first order in A - I, where that norm is below 0.5"),
}
MARGIN_COLUMNS = {  # column of interfaces.csv -> (header in report.md, meaning)
    "first": ("from", ""),
    "second": ("to", ""),
    "budget": ("2g", "twice the interface's amplitude"),
    "slack": ("slack", "what the two factors' tops lose in the product"),
    "residual_change": ("change of e", "of the second factor less that of the first"),
    "displacement": ("|change of rho|", "what the margin inequality bounds"),
    "bound": ("bound", "2g + slack + |change of e|"),
    "dominant": ("dominant", "the largest of these three"),
    "exponent_change": ("change of a", "second less first"),
    "exponent_bound": ("bound of it", "where the sizes are equal"),
    "mean_cosine_squared": ("mean cos^2", "of the principal angles between the two windows"),
}
CERTIFICATE_KEY = (
    "windows: modes kept of the two factors (rank_first, rank_second); error, bound: of the truncation to them"
    " (truncation_error, truncation_bound); radius: perturbations below it change no support, edge or hub (FORM_radius); limit:"
    " the threshold that is nearest; short by: error less radius (FORM_missing); core, overlap, noise: shares of the energy;"
    " edges: pairs of groups that share enough of their supports; hubs: columns in many supports; SC/SA/ST: channels with that"
    " label (docs/geometry.md). FORM is physical or source_mode"
)
CERTIFICATE_COLUMNS = (
    "from", "to", "windows", "error", "bound", "radius", "limit", "certified", "short by", "core", "overlap", "noise", "edges",
    "hubs", "SC/SA/ST",
)  # fmt: skip
BAD = "**no**"
CERTIFIED = {"bound": "yes, by the bound", "measured": "yes, measured", "no": BAD}


def verdict(row: dict[str, Any], form: str = PHYSICAL) -> str:
    """One sentence on an interface: which term of its margin inequality dominates, and whether its channels are certified.

    ``row`` is a row of the interfaces table; ``form`` is PHYSICAL or SOURCE, the matrix whose certificate is meant.
    """
    moved = f"exponent {row['exponent_change']:+.3g}"
    allowed = row["exponent_bound"]
    in_rho = f", rho {row['displacement']:.3g} within {row['bound']:.3g}"
    moved += in_rho if math.isnan(allowed) else f" within +-{allowed:.3g}"
    if row[f"{form}_certified"] != "no":
        return f"{moved}; {row['dominant']} dominates; channels certified ({row[f'{form}_certified']})"
    return (
        f"{moved}; {row['dominant']} dominates; channels not certified: truncation moves {row['truncation_error']:.3g}, the"
        f" nearest {row[f'{form}_limit']} threshold is {row[f'{form}_radius']:.3g} away, {row[f'{form}_missing']:.3g} too much"
    )


def console_tables(reports: Reports) -> list[tuple[str, list[str], list[list[str]], list[str]]]:
    """[(title, columns, rows, notes)] of one table with a row per chain; [] if there is no chain."""
    columns = ["network, chain", "factors", "exponent", "KL", "|residual|", "2g", "slack", "drift", "certified"]
    rows = [[f"{label} {each.chain}", *_chain_cells(each)] for label, each in reports]
    if not rows:
        return []
    notes = [
        "exponent, KL (chart quality) and |residual|: means over factors; 2g, slack: sums over interfaces; drift: sum of"
        " |change of exponent| where d is the same",
    ]
    if any(each.kind == STATIC for _, each in reports):
        notes.append(STATIC_NOTE)
    return [("Geometry", columns, rows, notes)]


def _chain_cells(report: ChainReport) -> list[str]:
    numbers = report.summary
    names = ("mean_exponent", "mean_kl", "mean_residual", "amplification", "total_slack", "drift")
    cells = [f"{numbers[name]:.3f}" if name in numbers else "" for name in names]
    total = len(report.interfaces)
    return [f"{int(numbers['factors'])}", *cells, f"{round(numbers.get('certified_share', 0) * total)} of {total}"]


def logged_metrics(reports: Reports) -> dict[str, float]:
    """<network>/<chain>/<quantity> -> value, for every number of the chains' summaries that is finite."""
    return {
        f"{slug(label)}/{slug(each.chain)}/{name}": value
        for label, each in reports
        for name, value in each.summary.items()
        if math.isfinite(value)
    }


def markdown(facts: dict[str, Any], reports: Reports, comparison: Comparison | None, figures: list[str]) -> str:
    """The text of report.md: what was measured on which weights, tables, a verdict per interface, and the figures."""
    lines = ["# Geometry", "", f"`{facts['command']}`", ""]
    hardware = facts["hardware"]
    lines.append(
        f"commit {facts['commit']}; torch {facts['versions']['torch']}; {', '.join(hardware['gpus']) or hardware['processor']},"
        f" {hardware['threads']} threads. Definitions: docs/geometry.md. Computed in float64."
    )
    lines += [
        "",
        *_table(["network", "weights", "from"], [[s["label"], s["weights"], f"`{s['origin']}`"] for s in facts["subjects"]]),
    ]
    lines += [f"- WARNING: {s['label']}: {warning}" for s in facts["subjects"] for warning in s["warnings"]]
    if comparison is not None:
        lines += ["", "## Geometry and reliability", "", *_table(*comparison.console[1:3]), ""]
        lines += [f"- {note}" for note in comparison.console[3]]
        lines += _pictures(["comparison"], figures)
    for title, columns, rows, notes in console_tables(reports):
        lines += ["", f"## {title}: summary", "", *_table(columns, rows), "", *(f"- {note}" for note in notes)]
    lines += _pictures([name for name in figures if name.startswith("profile-")], figures)
    for label, report in reports:
        lines += _chain(label, report, figures)
    return "\n".join(lines + _key(reports)) + "\n"


def _key(reports: Reports) -> list[str]:
    """Lines that explain the tables' headers and name the column of the CSV file with the same numbers."""
    if not reports:
        return []
    lines = ["", "## Headers", ""]
    between = any(len(report.interfaces) for _, report in reports)
    files = [("factors.csv", FACTOR_COLUMNS)] + ([("interfaces.csv", MARGIN_COLUMNS)] if between else [])
    for file, columns in files:
        lines += [f"- {header} (`{name}` in {file}): {meaning}" for name, (header, meaning) in columns.items() if meaning]
    return [*lines, f"- Certificates (interfaces.csv): {CERTIFICATE_KEY}."] if between else lines


def _chain(label: str, report: ChainReport, figures: list[str]) -> list[str]:
    note = STATIC_NOTE if report.kind == STATIC else MEASURED_NOTE
    lines = ["", f"## {label}: {report.chain} ({report.kind})", "", f"{report.description}. {note[0].upper()}{note[1:]}.", ""]
    lines += _frame(report.factors, FACTOR_COLUMNS)
    if not len(report.interfaces):
        return lines
    table = report.interfaces
    lines += ["", "Margins: |change of rho| <= 2g + slack + |change of e|.", "", *_frame(table, MARGIN_COLUMNS)]
    for form, name in ((PHYSICAL, "output channels x input channels"), (SOURCE, "output channels x source modes")):
        lines += ["", f"Certificates, {name}. Windows are the charts' effective ranks.", ""]
        rows = [_certificate(row, form) for row in table.to_dict("records")]
        lines += _table(CERTIFICATE_COLUMNS, rows)
    lines += ["", *(f"- {row['first']} to {row['second']}: {verdict(row)}." for row in table.to_dict("records"))]  # type: ignore[arg-type]
    own = f"{slug(label)}-{slug(report.chain)}"
    return lines + _pictures([f"{kind}-{own}" for kind in ("spectra", "interfaces", "certificates", "alignment")], figures)


def _certificate(row: Any, form: str) -> list[str]:
    certified = row[f"{form}_certified"]
    numbers = [row["truncation_error"], row["truncation_bound"], row[f"{form}_radius"]]
    shares = [row[f"{form}_{part}_share"] for part in ("core", "overlap", "noise")]
    return [
        row["first"],
        row["second"],
        f"{row['rank_first']}, {row['rank_second']}",
        *(f"{number:.3g}" for number in numbers),
        row[f"{form}_limit"],
        CERTIFIED[certified],
        f"{row[f'{form}_missing']:.3g}" if certified == "no" else "",
        *(f"{share:.1%}" for share in shares),
        str(row[f"{form}_edges"]),
        str(row[f"{form}_hubs"]),
        "/".join(str(row[f"{form}_{name}"]) for name in ("SC", "SA", "ST")),
    ]


def _frame(table: pd.DataFrame, columns: dict[str, tuple[str, str]]) -> list[str]:
    rows = [[_cell(row[name]) for name in columns] for row in table.to_dict("records")]
    return _table([header for header, _ in columns.values()], rows)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.4g}"
    return str(value)


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    escaped = [[cell.replace("|", r"\|") for cell in line] for line in (columns, ["---"] * len(columns), *rows)]
    return ["| " + " | ".join(line) + " |" for line in escaped]


def _pictures(wanted: list[str], figures: list[str]) -> list[str]:
    return [line for name in wanted if name in figures for line in ("", f"![{name}](figures/{name}.svg)")]
