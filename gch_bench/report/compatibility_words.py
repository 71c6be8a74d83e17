"""The results of mode=compatibility in words: the summary, the most telling measurements, what disagrees, and definitions."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import pandas as pd
from scipy import stats

from gch_bench.noise.placement import MINIMUM_CHANGE
from gch_bench.report.page_parts import Entry, PageTable
from gch_bench.report.render import MISSING
from gch_bench.results.compatibility import DISAGREES, FAMILY, NOT_APPLICABLE, OUTSIDE, ROUNDING

MOST_USED = 0.5  # share of the pairs from which the summary does not say how many were looked at
LEVEL = 0.05  # of the test for a bias at a site where theory knows none
MARKS = {OUTSIDE: " †", DISAGREES: " ‡"}
MARKS_NOTE = "in brackets: interval of 95%; †: theory lies outside it; ‡: DISAGREES"


class Line(NamedTuple):
    """A line of the table `summary`, and the measurements of the same mechanism at the same stage."""

    numbers: dict[str, Any]
    rows: pd.DataFrame

    def row(self, section: str, quantity: str) -> dict[str, Any] | None:
        """The first row of a quantity; None if there is none, or it is not applicable."""
        found = self.rows[(self.rows["section"] == section) & (self.rows["quantity"] == quantity)]
        found = found[found["measured"].notna()]
        return None if found.empty else {str(key): value for key, value in found.iloc[0].items()}


def percent(value: float) -> str:
    """A share in percent: 19%, 3.0%, 0.26%."""
    shown = 100 * value
    return f"{shown:.0f}%" if abs(shown) >= 9.95 or not shown else f"{two_digits(shown)}%"


def two_digits(value: float) -> str:
    """A number with two significant digits, or all before the point: 12, 1.0, 0.30, 0.0096."""
    return f"{value:#.2g}" if abs(value) < 9.95 else f"{value:.0f}"


def _positive(line: Line) -> str:
    if line.numbers["positive"]:
        return "yes"
    share = line.numbers["singular_share"]
    return "no" if math.isnan(share) else f"no: {percent(share)} singular"


def _pooled_bias(line: Line) -> str:
    mean = line.row("mean", "mean over sites")
    bias = 100 * line.numbers["pooled_bias"]
    if mean is None or mean["high"] - mean["low"] < ROUNDING:
        return f"{bias:.2f}%".replace("-0.00", "0.00")
    return f"{bias:+.1f} ± {100 * (mean['high'] - mean['low']) / 2:.1f}%"


def _mean_one(line: Line) -> str:
    mean, site = line.row("mean", "mean over sites"), line.row("mean", "mean at a site")
    if mean is None or site is None:
        return f"{1 + line.numbers['pooled_bias']:.3f} over sites"
    if mean["verdict"] == DISAGREES:
        return f"no: {mean['measured']:.3f} over sites"
    in_every_sample = mean["high"] - mean["low"] < ROUNDING and abs(mean["measured"] - 1) < ROUNDING
    if _biased(site, line.numbers["height"] * line.numbers["width"]):
        words = "per sample" if in_every_sample else "on average"
        return f"{words}; at a site {100 * line.numbers['largest_site_bias']:+.1f}%"
    if in_every_sample:
        return "per sample and at each site" if site["theory"] == 1 else "per sample; none seen at a site"
    return "at each site"


def _biased(site: dict[str, Any], sites: int) -> bool:
    """Whether the gate's mean at the most deviant site is not one: by theory, or where theory is silent by a corrected test."""
    if not math.isnan(site["theory"]):
        return abs(site["theory"] - 1) > ROUNDING or site["verdict"] == DISAGREES
    degrees = max(site["n"] - 1, 1)
    error = (site["high"] - site["low"]) / 2 / float(stats.t.ppf(0.975, degrees))
    off = abs(site["measured"] - 1)
    return off > ROUNDING and not (error > 0 and sites * 2 * float(stats.t.sf(off / error, degrees)) >= LEVEL)


def _order(line: Line) -> str:
    lost = f"{percent(line.numbers['clear_order_lost'])} lost"
    bins = line.rows[(line.rows["section"] == "ranking") & (line.rows["quantity"] == "order lost")].dropna(subset=["measured"])
    if len(bins) < 2:
        return lost
    bins = bins.sort_values("x")
    used = 1 - float(bins["excluded"].iloc[0])
    lost += f" ({percent(used)} of pairs)" if used < MOST_USED else ""
    return f"{'yes' if bins['high'].iloc[-1] < bins['low'].iloc[0] else 'no'}: {lost}"


def _survives(line: Line) -> str:
    change = line.numbers["logit_change"]
    if not line.numbers["survives"]:
        return f"no: {percent(change)}, under {MINIMUM_CHANGE:.2%}"
    return f"yes: {percent(change)}"


def _flips(line: Line) -> str:
    return f"{percent(line.numbers['top_class_flips'])}"


class SummaryColumn(NamedTuple):
    """A column of the summary in words. Its number, by which it is sorted, is a column of the table `summary`; where that is
    NaN, the cell says NOT_APPLICABLE."""

    number: str
    words: Callable[[Line], str]
    meaning: str


SUMMARY = {
    "positive": SummaryColumn(
        "positive",
        _positive,
        "yes for exponential gates, which are above 0 by law; else the share of pairs of sites that are singular in the draws:"
        " their ratio of gates is 0, infinite, negative or undefined; noise that is added has no such ratio, and changes signs",
    ),
    "mean one": SummaryColumn(
        "largest_site_bias",
        _mean_one,
        "whether the gate's mean over sites is one in every sample or only on average, and its mean at a single site: the most"
        f" deviant site's, unless theory says one there or, where theory is silent, the deviation has p >= {LEVEL} after"
        " correction for the number of sites",
    ),
    "ranking stable": SummaryColumn(
        "clear_order_lost",
        _order,
        "share of pairs of sites of a channel whose order is lost although one value is at least e times the other; yes: the"
        " pairs of the largest margin lose it less often than those of the smallest, with intervals of 95% that do not"
        " overlap; no word: too few pairs to compare",
    ),
    "gate variance": SummaryColumn(
        "gate_variance",
        lambda line: two_digits(line.numbers["gate_variance"]),
        "mean over sites of Var xi: how strong the noise is; compare mechanisms at equal strength (mode=match)",
    ),
    "roughness": SummaryColumn(
        "roughness",
        lambda line: two_digits(line.numbers["roughness"]),
        "mean over sites of the squared differences of the gate's log between neighbours; not applicable if a gate has no log",
    ),
    "pooled bias": SummaryColumn(
        "pooled_bias", _pooled_bias, "how far the mean of the gate over sites and draws is from one, with its interval of 95%"
    ),
    "pooled distortion": SummaryColumn(
        "pooled_distortion",
        lambda line: two_digits(line.numbers["pooled_distortion"]),
        "relative change of the feature pooled over sites, bias and chance together (root of the mean square)",
    ),
    "survives": SummaryColumn(
        "logit_change",
        _survives,
        f"relative change of the logits (root of the mean square); yes from {MINIMUM_CHANGE:.2%} on",
    ),
    "top class flips": SummaryColumn(
        "top_class_flips", _flips, "share of images and noisy passes in which the class of the largest logit changes"
    ),
}
SUMMARY_NOTES = [
    *(f"{name}: {column.meaning}" for name, column in SUMMARY.items()),
    f"{NOT_APPLICABLE}: the noise has no such quantity (added noise has no ratio of gates), or it acts inside the stage",
]


def _of(table: pd.DataFrame, stage: str, mechanism: str) -> pd.DataFrame:
    return table[(table["stage"] == stage) & (table["mechanism"] == mechanism)]


def summary_tables(summary: pd.DataFrame, measurements: pd.DataFrame) -> list[PageTable]:
    """The summary in words, one table for each stage. What the columns mean stands in SUMMARY_NOTES."""
    tables = []
    for stage, part in summary.groupby("stage", sort=False) if len(summary) else ():
        rows = []
        for numbers in part.to_dict("records"):
            line = Line(
                {str(key): value for key, value in numbers.items()}, _of(measurements, str(stage), numbers["mechanism"])
            )
            rows.append([Entry(str(numbers["mechanism"])), *(_entry(line, column) for column in SUMMARY.values())])
        first = part.iloc[0]
        title = f"{stage} ({first['module']}, map of {first['height']} x {first['width']})"
        tables.append(PageTable(title, ["mechanism", *SUMMARY], rows, []))
    return tables


def _entry(line: Line, column: SummaryColumn) -> Entry:
    number = float(line.numbers[column.number])
    return Entry(NOT_APPLICABLE if math.isnan(number) else column.words(line), number)


class Quantity(NamedTuple):
    """A quantity of the table `measurements`."""

    section: str
    name: str
    meaning: str
    telling: bool = True  # whether the tables of the most telling measurements show its first row


SECTIONS = {  # section of the table `measurements` -> what it asks
    "log-ratio": "How does the noise change the ratio of the features at two sites?",
    "roughness": "How different are the gates of neighbouring sites?",
    "mean": "Is the gate's mean one, and how strong is it?",
    "ranking": "Does the order of sites, or of classes, survive?",
    "distortion": "How much do map, pooled feature and logits change?",
    "norm": "How much of the noise reaches the logits, and what would BatchNorm record?",
}
QUANTITIES = (
    Quantity("log-ratio", "variance", "variance of log xi(x)/xi(y); x and y are the pair of sites under `at`"),
    Quantity("log-ratio", "mean", "mean of the same", False),
    Quantity("log-ratio", "distance from N(0, s^2)", "Kolmogorov-Smirnov distance of the standardised log-ratio from N(0, 1)"),
    Quantity("log-ratio", "quantile", "a quantile of the standardised log-ratio; theory: that of N(0, 1)", False),
    Quantity("log-ratio", "variance on features / theory", "squared change of log-ratios of features over its expectation"),
    Quantity(
        "log-ratio", "singular share", "share of pairs of sites whose ratio of gates is 0, infinite, negative or undefined"
    ),
    Quantity("roughness", "per site", "sum over edges of the squared differences of log xi, over the number of sites"),
    Quantity("mean", "mean at a site", "E xi(x) at the most deviant site; its p value is corrected for the number of sites"),
    Quantity("mean", "mean over sites", "mean of the gate over sites and draws; theory: 1"),
    Quantity("mean", "gate variance", "variance of the gate, mean over sites"),
    Quantity("mean", "pooled distortion", "mean square of (mean over sites of xi) - 1: distortion of a constant map", False),
    Quantity("mean", "drop rate", "share of sites whose gate is 0"),
    Quantity("mean", "correlation length", "distance in sites at which the gate's correlation falls below 1/e"),
    Quantity("ranking", "order lost", "share of pairs of a channel whose order is lost, by margin (s: by theory)", False),
    Quantity("ranking", "clear order lost", "the same for pairs with a log-margin of 1 or more"),
    Quantity("ranking", "top class flips", "share of noisy passes that change the top class, by logit margin", False),
    Quantity("distortion", "squared distortion of the map", "||F~ - F||^2 / ||F||^2"),
    Quantity("distortion", "squared distortion of the pooled feature", "the same of the mean over sites"),
    Quantity("distortion", "amplification of the contrast between sites", "variance over sites of F~ over that of F"),
    Quantity("distortion", "cosine of pooled features", "cosine of the pooled feature with and without noise"),
    Quantity("distortion", "effective rank", "of the map, sites x channels, before and after the noise", False),
    *(
        Quantity("distortion", f"distortion of the {what} and {fact}", "rank correlation of the two over images", False)
        for what in ("pooled feature", "logits")
        for fact in ("coherence", "positivity")
    ),
    Quantity("distortion", "squared distortion of the logits", "||logits~ - logits||^2 / ||logits||^2"),
    Quantity("norm", "relative change of the logits", "root of the mean over images of the squared distortion of the logits"),
    Quantity("norm", "surviving share", "relative change of the logits over that of the stage's map"),
    Quantity("norm", "variance inflation of the stage's channels", "variance over images and sites, with noise over without"),
    Quantity("norm", "BatchNorm inflation, first", "the same of the input of the first BatchNorm after the stage"),
    Quantity("norm", "BatchNorm inflation, largest", "the same of the BatchNorm with the largest inflation"),
)
WORDS = {
    "coherence": "||mean over sites of F||^2 / mean over sites of ||F||^2; 1: all sites have the same vector",
    "positivity": "share of sum |F| at positive values: 1 after a ReLU",
    "theory": "what docs/theory.md says of the number, exactly or for the law that the mechanism has",
    "interval": "of 95%: t distribution over independent draws, or over images and passes; quantiles: binomial",
    DISAGREES: f"the p value of the difference from theory, times the number of rows compared, is below {FAMILY:g}",
}


def definitions() -> PageTable:
    rows = [[Entry(each.name), Entry(each.section), Entry(each.meaning)] for each in QUANTITIES]
    words = [[Entry(word), Entry(""), Entry(meaning)] for word, meaning in WORDS.items()]
    return PageTable("Definitions", ["quantity", "section", "meaning"], [*rows, *words], [])


def telling_tables(measurements: pd.DataFrame) -> list[PageTable]:
    """For each section a table of the first row of its telling quantities, by stage and mechanism."""
    tables = []
    for section, question in SECTIONS.items():
        own = measurements[measurements["section"] == section].drop_duplicates(["stage", "mechanism", "quantity"])
        names = [each.name for each in QUANTITIES if each.section == section and each.telling]
        names = [name for name in names if own.loc[own["quantity"] == name, "measured"].notna().any()]
        if section == "ranking":
            names, own = [*names, "top class flips"], _all_images(measurements, own)
        rows = [
            [Entry(f"{stage} {mechanism}"), *(_measured(part, name) for name in names)]
            for (stage, mechanism), part in own.groupby(["stage", "mechanism"], sort=False)
        ]
        if rows and names:
            tables.append(PageTable(question, ["mechanism", *names], rows, [MARKS_NOTE]))
    return tables


def _all_images(measurements: pd.DataFrame, own: pd.DataFrame) -> pd.DataFrame:
    """The rows with the flips of the top class over all images in the place of those of the first group of them."""
    flips = measurements[(measurements["quantity"] == "top class flips") & (measurements["at"] == "all images")]
    return pd.concat([own[own["quantity"] != "top class flips"], flips])


def _measured(rows: pd.DataFrame, quantity: str) -> Entry:
    found = rows[rows["quantity"] == quantity]
    if found.empty:
        return Entry(MISSING, math.nan)
    row = found.iloc[0]
    if row["verdict"] == NOT_APPLICABLE:
        return Entry(NOT_APPLICABLE, math.nan)
    theory = "" if pd.isna(row["theory"]) else f"; theory {row['theory']:.3g}"
    return Entry(f"{interval(row)}{theory}{MARKS.get(row['verdict'], '')}", float(row["measured"]))


def interval(row: Any) -> str:
    """The measured value with its interval, if it has one."""
    bounds = "" if pd.isna(row["low"]) or pd.isna(row["high"]) else f" [{row['low']:.3g}, {row['high']:.3g}]"
    return f"{row['measured']:.3g}{bounds}"


def disagreements(measurements: pd.DataFrame) -> PageTable:
    """The rows that disagree with theory."""
    rows = [
        [
            Entry(str(row["mechanism"])),
            *(Entry(str(row[name])) for name in ("stage", "section", "quantity", "at")),
            Entry(interval(row), float(row["measured"])),
            *(Entry(f"{row[name]:.3g}", float(row[name])) for name in ("theory", "p_value")),
        ]
        for row in measurements[measurements["verdict"] == DISAGREES].to_dict("records")
    ]
    columns = ["mechanism", "stage", "section", "quantity", "at", "measured", "theory", "p"]
    return PageTable("Disagreements with theory", columns, rows, [])
