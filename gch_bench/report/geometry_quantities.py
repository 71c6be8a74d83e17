"""The columns of report.md's tables: what each header means, which column of the CSV files it is, and what it is by chance.

The tables and the section that explains them are made of the same lists, so that no header stands without its explanation.
Definitions: docs/geometry.md.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from gch_bench.report.geometry_headline import with_z

Row = Mapping[str, Any]
ROUNDING = 1e-12  # smaller numbers are rounding alone
LARGE = 1e6  # numbers from here on are written with an exponent
SIZE = "none: it is a size"
FITTED = "none: it describes the fit, and counts only where the chart is adequate"
DERIVED = "none: it follows from the two spectra alone, however the factors are turned"
SETTING = "none: it is a setting"
PROOF = "none: it is proved for these matrices, not estimated"


class Quantity(NamedTuple):
    """A column of a table of report.md."""

    header: str
    name: str  # column of the CSV file, or several
    meaning: str
    chance: str  # what it is by chance, or why that is not asked; "" for names
    cell: Callable[[Row], str] | None = None  # the text of a row; None: the column ``name`` as it is, without FORM_

    def text(self, row: Row) -> str:
        return self.cell(row) if self.cell else plain(row.get(self.name.removeprefix("FORM_"), math.nan))


class Section(NamedTuple):
    """A table of report.md."""

    title: str
    file: str
    quantities: Sequence[Quantity]


def plain(value: Any, digits: int = 3) -> str:
    if isinstance(value, str):
        return value
    if value is None or math.isnan(value):
        return "-"
    if abs(value) < ROUNDING:
        return "0"
    return f"{value:.0f}" if 1000 <= abs(value) < LARGE else f"{value:.{digits}g}"


def _number(row: Row, name: str) -> float:
    return float(row.get(name, math.nan))


def _beside(*names: str, between: str = " / ", percent: bool = False) -> Callable[[Row], str]:
    def cell(row: Row) -> str:
        values = [row.get(name, math.nan) for name in names]
        if percent:
            return between.join("-" if math.isnan(value) else f"{value:.0%}" for value in values)
        return between.join(plain(value) for value in values)

    return cell


def _share(name: str) -> Callable[[Row], str]:
    return _beside(name, percent=True)


def _z(name: str, form: str) -> Callable[[Row], str]:
    return lambda row: with_z(row, name, form)


def _against_null(name: str, form: str) -> Callable[[Row], str]:
    """value / null (z)."""

    def cell(row: Row) -> str:
        value, null, z = (_number(row, each) for each in (name, f"{name}_null", f"{name}_z"))
        if math.isnan(value):
            return "-"
        return f"{value:{form}} / {null:{form}}" + ("" if math.isnan(z) else f" ({z:+.1f})")

    return cell


def _in_brackets(name: str, other: str, form: str, other_form: str) -> Callable[[Row], str]:
    """value (other)."""

    def cell(row: Row) -> str:
        value, beside = _number(row, name), _number(row, other)
        return "-" if math.isnan(value) else f"{value:{form}}" + ("" if math.isnan(beside) else f" ({beside:{other_form}})")

    return cell


def _spikes(row: Row) -> str:
    """Those of the factor and, of a block with a branch, those of what it reads and writes."""
    own = _beside("spikes_read", "spikes_write", between=", ")(row)
    return plain(row.get("spikes", math.nan)) + (f" ({own})" if own != "-, -" else "")


def _with_range(part: str) -> Callable[[Row], str]:
    """A share and its range over permutations of the rows among the groups."""

    def cell(row: Row) -> str:
        value, low, high = (_number(row, f"{part}{end}") for end in ("", "_low", "_high"))
        between = "" if math.isnan(low) else f" [{low:.0%}, {high:.0%}]"
        return "-" if math.isnan(value) else f"{value:.0%}{between}"

    return cell


def _certified_rank(row: Row) -> str:
    """k_first, k_second (eta)."""
    ranks = _beside("certified_rank_first", "certified_rank_second", between=", ")(row)
    eta = _number(row, "certified_eta")
    return f"{ranks}" if math.isnan(eta) else f"{ranks} ({plain(eta, 4)})"


SPECTRA = Section(
    "Factors",
    "factors.csv",
    [
        Quantity("factor", "name", "its name in the network", ""),
        Quantity("shape", "rows, columns", "rows x columns", SIZE, _beside("rows", "columns", between=" x ")),
        Quantity("rank", "numerical_rank", "singular values above the rounding of the stored precision", "the smaller size"),
        Quantity("a", "exponent", "of the energies i^-a, by maximum likelihood", FITTED),
        Quantity(
            "square a", "square_exponent", "a, mean over square parts, which frees it of the aspect ratio",
            "that of the random initialisation",
        ),
        Quantity(
            "explained / null", "explained_share, explained_share_null",
            "share of the distance (KL) from a flat spectrum that the chart explains", "beside it, for Gaussian matrices",
            _beside("explained_share", "explained_share_null", percent=True),
        ),
        Quantity(
            "chart", "chart", "verdict on the power law: adequate, not adequate, or not applicable where the spectrum is flat"
            " or has fewer than 8 ranks, which no count includes", "not adequate",
        ),
        Quantity(
            "spikes (read, write)", "spikes, spikes_read, spikes_write", "singular values above the largest of 20 Gaussian"
            " matrices of this shape; in brackets those of the single matrices that the block's branch reads and writes with,"
            " which count in the headline, because no identity is added to them", "0, rarely more", _spikes,
        ),
        Quantity(
            "alpha / of a", "alpha, alpha_of_chart", "weightwatcher's exponent of the density of eigenvalues / the same as a"
            " implies it, 1 + 1/a", "none: it is fitted to a tail that it chooses itself",
            _beside("alpha", "alpha_of_chart"),
        ),
        Quantity(
            "r / null (z)", "radial, radial_null, radial_z", "top radius: log of s_1 in units of the root mean square singular"
            " value", "beside it, for Gaussian matrices", _against_null("radial", ".2f"),
        ),
        Quantity(
            "R.50, R.90, R.95, R.99", "rank_50 ... rank_99", "effective ranks: so many modes hold that share of the energy",
            "that of R.95 is in rank_95_null", _beside("rank_50", "rank_90", "rank_95", "rank_99", between=", "),
        ),
    ],
)  # fmt: skip
CHARTS = Section(
    "Charts",
    "factors.csv",
    [
        SPECTRA.quantities[0],
        Quantity(
            "rest a (explained)", "rest_exponent, rest_share", "the chart of the ranks behind the spikes alone",
            "see explained: Gaussian matrices have no spikes", _in_brackets("rest_exponent", "rest_share", ".3g", ".0%"),
        ),
        Quantity("slope", "slope", "of log energy over log rank, least squares", FITTED),
        Quantity("R2", "r_squared", "of that line", FITTED),
        Quantity("KL", "kl", "of the energies from the chart; 0 is an exact power law", "see explained"),
        Quantity("I(a)", "fisher", "Fisher information: variance of log rank under the chart", FITTED),
        Quantity("rho(a)", "chart_radial", "top radius of the chart", FITTED),
        Quantity("e", "residual", "r less rho(a)", FITTED),
        Quantity("chart R.95", "chart_rank_95", "effective rank of the chart", FITTED),
        Quantity(
            "window", "window_low, window_high", "its range over the exponent's uncertainty", SETTING,
            _beside("window_low", "window_high", between=" to "),
        ),
        Quantity(
            "tail", "tail_share", "energy outside the chart's window", "1 - eta where the chart is exact",
            _share("tail_share"),
        ),
        Quantity(
            "|A - I|", "identity_distance", "of a square factor: Frobenius norm over the root of its size",
            "none: it is a distance",
        ),
        Quantity("near I", "near_identity", "whether the spectral norm of A - I is at most 0.1", "no"),
    ],
)  # fmt: skip
FROM = Quantity("from", "first", "factor that writes", "")
TO = Quantity("to", "second", "factor that reads", "")
TURNED = Section(
    "How neighbours are turned to each other",
    "interfaces.csv",
    [
        FROM,
        TO,
        Quantity("m", "shared", "dimension in which they meet", SIZE),
        Quantity(
            "gain (z)", "energy_gain, energy_gain_z", "energy of the product over what it is under a random rotation", "1 (0)",
            _z("energy_gain", ".2f"),
        ),
        Quantity(
            "permuted (z)", "energy_gain_permuted, energy_gain_permuted_z", "mean gain if the shared channels are permuted,"
            " which keeps what any assignment of them has, such as a direction in which all move together (z of the gain"
            " against that)", "it is itself a null, whose z is 0",
            _in_brackets("energy_gain_permuted", "energy_gain_permuted_z", ".2f", "+.1f"),
        ),
        Quantity(
            "percentile", "energy_gain_percentile", "share of the rotations whose gain is smaller, in percent; missing where"
            " the null has no spread", "50; 97.5 or more in 2.5% of the interfaces",
        ),
        Quantity(
            "slack ratio / null (z)", "slack_ratio, slack_ratio_null, slack_ratio_z", "share of r1 + r2 that the product loses",
            "beside it", _against_null("slack_ratio", ".2f"),
        ),
        Quantity(
            "cos^2", "mean_cosine_squared", "mean over the principal angles between the directions that hold half of each"
            " energy (before a classifier, as many as it has classes, less one, if that is at most half of m)",
            "the larger number of directions over m",
        ),
        Quantity("excess (z)", "angle_excess, angle_excess_z", "cos^2 less chance", "0 (0)", _z("angle_excess", "+.3f")),
    ],
)  # fmt: skip
MARGINS = Section(
    "Decomposition of the change of the charts",
    "interfaces.csv",
    [
        FROM,
        TO,
        Quantity("2g", "budget", "log s_1 of the product of the normalised factors", "see slack ratio"),
        Quantity("slack", "slack", "r1 + r2 - 2g >= 0", "see slack ratio"),
        Quantity("change of e", "residual_change", "second less first", FITTED),
        Quantity(
            "|change of rho|", "displacement", "of the charts' top radii; at most 2g + slack + |change of e| = r1 + r2 +"
            " |change of"
            " e|, by construction", DERIVED,
        ),
        Quantity("change of a", "exponent_change", "second less first, where the ranks are equally many", DERIVED),
        Quantity(
            "H^2 / Bures^2 / KL", "hellinger_squared, bures_squared, spectrum_kl",
            "distances of the two spectra, where the ranks"
            " are equally many", DERIVED, _beside("hellinger_squared", "bures_squared", "spectrum_kl"),
        ),
        Quantity(
            "windows", "rank_first, rank_second", "modes that the truncation keeps: the charts' effective ranks", SETTING,
            _beside("rank_first", "rank_second", between=", "),
        ),
        Quantity(
            "error / bound / fitted", "truncation_error, truncation_bound, fitted_bound", "of the product by the truncation,"
            " Frobenius norm / bounded by the measured tails / by the charts' tails", "none: a norm and its bounds",
            _beside("truncation_error", "truncation_bound", "fitted_bound"),
        ),
    ],
)  # fmt: skip
STRUCTURE = Section(
    "Static channels",
    "interfaces.csv (FORM is physical or source_mode)",
    [
        FROM,
        TO,
        Quantity(
            "groups", "FORM_groups, FORM_grouping", "of rows, and where they come from", SETTING,
            _beside("groups", "grouping", between=" "),
        ),
        Quantity("tau", "FORM_tau", "block norm from which a block is active", SETTING),
        Quantity(
            "core", "FORM_core_share", "energy of active blocks that share their column with none", "see overlap",
            _share("core_share"),
        ),
        Quantity(
            "overlap [null]", "FORM_overlap_share, _low, _high", "energy of active blocks in columns with several",
            "in brackets: 5 to 95% of"
            " random permutations of the rows among the groups, which clusters exceed by construction: compare them with"
            " reclustered", _with_range("overlap_share"),
        ),
        Quantity(
            "reclustered", "FORM_overlap_share_reclustered", "overlap that the same clustering finds where the columns are"
            " shifted against each other; one draw, and only where groups are clusters", "it is itself a null",
            _share("overlap_share_reclustered"),
        ),
        Quantity("noise", "FORM_noise_share", "energy of inactive blocks", "see overlap", _share("noise_share")),
        Quantity(
            "edges", "FORM_edges", "pairs of groups that share enough of their supports",
            "none: it depends on the thresholds",
        ),
        Quantity("hubs", "FORM_hubs", "columns in several supports", "none: it depends on the thresholds"),
        Quantity(
            "SC/SA/ST", "FORM_SC, FORM_SA, FORM_ST", "rows by label: core channels, overlap channels, the others",
            "none: kappa is in units of the cosine's null", _beside("SC", "SA", "ST", between="/"),
        ),
    ],
)  # fmt: skip
CERTIFICATES = Section(
    "Certificates",
    "interfaces.csv (FORM is physical or source_mode)",
    [
        FROM,
        TO,
        Quantity(
            "blocks (energy)", "FORM_certified_share, FORM_energy_certified_share",
            "share of blocks whose status the truncation"
            " cannot change (weighted by energy)", PROOF,
            lambda row: f"{_share('certified_share')(row)} ({_share('energy_certified_share')(row)})",
        ),
        Quantity(
            "a priori", "FORM_apriori_certified_share", "the same from norms alone, without the product",
            PROOF, _share("apriori_certified_share"),
        ),
        Quantity(
            "edges, hubs, masks, labels",
            "FORM_edges_certified, FORM_hubs_certified, FORM_masks_certified, FORM_labels_certified",
            "share of each that is decided; the mask of a block says core, overlap or noise", PROOF,
            _beside("edges_certified", "hubs_certified", "masks_certified", "labels_certified", between=", ", percent=True),
        ),
        Quantity(
            "k*", "FORM_certified_rank_first, _second, FORM_certified_eta",
            "smallest windows at which 95% of the blocks are decided (the share of energy they"
            " hold)", PROOF,
            _certified_rank,
        ),
        Quantity(
            "margins", "FORM_margin_01, _05, _50", "1, 5 and 50% quantiles of |block norm - tau| / tau", PROOF,
            _beside("margin_01", "margin_05", "margin_50", between=", "),
        ),
        Quantity(
            "Jaccard, agreement", "FORM_jaccard, FORM_agreement", "of the active blocks before and after the truncation",
            "none: compared, not estimated", _beside("jaccard", "agreement", between=", ", percent=True),
        ),
        Quantity(
            "tau -10%, +10%", "FORM_tau_low_share, FORM_tau_high_share",
            "certified share of blocks at thresholds so much lower and"
            " higher", PROOF, _beside("tau_low_share", "tau_high_share", between=", ", percent=True),
        ),
        Quantity(
            "model", "FORM_model_share", "share of blocks that would keep their status if the error were a random"
            " direction: a model,"
            " no certificate", "it is itself a chance model", _share("model_share"),
        ),
        Quantity("strict", "FORM_certified", "whether nothing at all can change: by the bound, as measured, or no", PROOF),
        Quantity("short by", "FORM_missing", "truncation error less the certificate's radius", PROOF),
    ],
)  # fmt: skip
WHOLE = Section(
    "The chain as a whole",
    "summary.csv",
    [
        Quantity("factors", "factors", "their number", SIZE),
        Quantity(
            "log M", "log_top", "log s_1 of the product of all factors, each scaled to the Frobenius norm sqrt d",
            "none: log gain has one",
        ),
        Quantity(
            "log gain", "log_gain", "log of the product's Frobenius norm over its root mean square with a random rotation at"
            " every interface", "0 or slightly less",
        ),
        Quantity(
            "mean log gain", "mean_log_gain", "of the energy gains, mean over the interfaces of their logarithms",
            "0 or slightly less",
        ),
        Quantity("slack excess", "slack_excess", "slack ratio less its null, median over the interfaces", "0"),
    ],
)  # fmt: skip
SECTIONS = (WHOLE, SPECTRA, CHARTS, TURNED, MARGINS, STRUCTURE, CERTIFICATES)
