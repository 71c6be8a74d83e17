"""Finds the numbers that the tables of a report show: rows of the table of results by mechanism and part of the evaluation."""

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import pandas as pd

from gch_bench.metrics import CLEAN, METRICS, Metric
from gch_bench.report.render import Column, Number, Row
from gch_bench.report.study import CALIBRATED, MEAN, RAW, ROWS, Report, Setting

PARTS = {CLEAN: "clean", MEAN: "shift"}  # column corruption of ROWS -> heading
SEVERITY = {CLEAN: 0, MEAN: None}  # of these parts
UNCHANGED = ("top1", "top5")  # metrics that a temperature does not change

# Numbers that are computed from several rows of ROWS or from run.json, and how they are shown.
_PERCENT, _PLAIN = METRICS["top1"]._replace(better="lower"), METRICS["nll"]._replace(better=None)
DERIVED: dict[str, Metric] = {
    "mce": _PERCENT._replace(title="mCE (AlexNet)"),
    "relative_mce": _PERCENT._replace(title="relative mCE (AlexNet)"),
    "mce_baseline": _PERCENT._replace(title="mCE (baseline)"),
    "relative_mce_baseline": _PERCENT._replace(title="relative mCE (baseline)"),
    "gate_variance": _PLAIN._replace(title="gate variance"),
    "published_ece": _PERCENT._replace(title="ECE, published"),
}
Who = tuple[str, str, str]  # setting, mechanism and kind: what the numbers of a table's row have in common


class Part(NamedTuple):
    """Which number of a mechanism: a metric on one part of the evaluation, raw or after temperature scaling."""

    corruption: str
    severity: int | None
    metric: str
    temperature: str = RAW


class Results:
    """The rows of the table of results that some settings have, by mechanism and part."""

    def __init__(self, report: Report, settings: Sequence[Setting]) -> None:
        self.settings = {setting.name: setting for setting in settings}
        self.numbers: dict[Who, dict[Part, Number]] = {}
        rows = report.rows[report.rows["setting"].isin(list(self.settings)) & report.rows["metric"].isin(list(METRICS))]
        for record in rows.to_dict("records"):
            facts: dict[str, Any] = {str(key): value for key, value in record.items()}
            severity = None if pd.isna(facts["severity"]) else int(facts["severity"])
            part = Part(facts["corruption"], severity, facts["metric"], facts["temperature"])
            who = (facts["setting"], facts["mechanism"], facts["kind"])
            self.numbers.setdefault(who, {})[part] = Number(METRICS[part.metric], facts)

    def mechanisms(self) -> list[Who]:
        """The settings in their order, in each the baseline first and then the order of the table of results."""
        order = list(self.settings)
        first = {(name, base.mechanism, base.kind) for name, setting in self.settings.items() if (base := setting.baseline)}
        return sorted(self.numbers, key=lambda who: (order.index(who[0]), who not in first))

    def baseline(self, who: Who) -> Who | None:
        """The baseline of the mechanism's setting, of the same kind (an ensemble's is an ensemble), also for itself."""
        base = self.settings[who[0]].baseline
        found = None if base is None else (who[0], base.mechanism, who[2])
        return found if found in self.numbers else None

    def facts(self, who: Who) -> dict[str, Any]:
        """What all rows of a mechanism say alike: setting, mechanism, noise, stages, kind."""
        return next(iter(self.numbers[who].values())).facts

    def derived(self, who: Who, metric: str, value: float, corruption: str = MEAN) -> Number:
        """A number of DERIVED. Nothing is known of it beside its value."""
        known = {key: self.facts(who)[key] for key in ("setting", "mechanism", "noise", "stages", "kind", "seeds")}
        known |= {"corruption": corruption, "severity": pd.NA, "temperature": RAW, "metric": metric, "value": value}
        return Number(DERIVED[metric], {**dict.fromkeys(ROWS, math.nan), **known})

    def columns(self, parts: Sequence[str], metrics: Iterable[str]) -> dict[Part, Column]:
        """A column for each metric on each part, raw and, where there are such rows, after temperature scaling."""
        wanted = [
            Part(corruption, SEVERITY[corruption], metric, temperature)
            for corruption in parts
            for metric in metrics
            for temperature in (RAW, CALIBRATED)
            if not (temperature == CALIBRATED and metric in UNCHANGED)
        ]
        known = {part for numbers in self.numbers.values() for part in numbers}
        return {part: column_of(part, several=len(parts) > 1) for part in wanted if part in known}

    def row(self, who: Who, columns: dict[Part, Column], label: str | None = None, section: str = "") -> Row:
        own = self.numbers[who]
        numbers = {column.key: own[part] for part, column in columns.items() if part in own}
        return Row(label_of(who) if label is None else label, numbers, section)


def label_of(who: Who) -> str:
    """The label of a mechanism's row. What is not a single network says so."""
    _, mechanism, kind = who
    return mechanism if kind == "single" or kind in mechanism else f"{mechanism}, {kind}"


def column_of(part: Part, several: bool) -> Column:
    """The column of a part of the evaluation, whose heading names clean or shift if the table shows `several` parts."""
    words = [PARTS[part.corruption]] if several else []
    words += [METRICS[part.metric].header] + ([CALIBRATED] if part.temperature == CALIBRATED else [])
    return Column(" ".join(words), "/".join(map(str, part)))
