"""The tables of a report, among them those of the paper, made from the table of results (`ROWS`); see docs/definitions.md."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import pandas as pd

from gch_bench.checks import check_choice
from gch_bench.metrics import CLEAN, mean_corruption_error, relative_mean_corruption_error
from gch_bench.report.lookup import DERIVED, UNCHANGED, Part, Results, Who, column_of, label_of
from gch_bench.report.published import PUBLISHED, Published
from gch_bench.report.render import Column, Number, Row, Table
from gch_bench.report.study import CALIBRATED, MEAN, RAW, Report, Setting
from gch_bench.results.summary import ALEXNET, ALEXNET_CLEAN

SHORT = ("top1", "nll", "ece", "ece_floor", "ce2_debiased")  # metrics of all tables but the one on shift
LONG = ("top1", "nll", "brier", "ece", "ece_floor", "ce2_debiased", "smece", "aurc")


class TableKind(NamedTuple):
    """A kind of table."""

    title: str
    make: Callable[[Report, Setting], Table]
    spans: bool = False  # True: one table is of all settings, whichever setting `make` is given


def tables(report: Report, name: str) -> list[Table]:
    """The tables of one kind: one for each setting, or one of them all. A table without rows has nothing to show.

    Raises:
        FieldError: there is no such kind.
    """
    check_choice("table", name, TABLES)
    kind = TABLES[name]
    if kind.spans or len(report.settings) == 1:
        return [kind.make(report, setting)._replace(setting="") for setting in report.settings[:1]]
    made = [kind.make(report, setting) for setting in report.settings]
    return [table._replace(title=f"{table.title}, {table.setting}") for table in made]


def varies(report: Report, name: str) -> bool:
    """Whether a table of this kind shows more than the others do: several stages, strengths or settings."""
    noisy = report.rows[(report.rows["kind"] == "single") & (report.rows["stages"] != "")]
    if name == "finegrained":
        return len(report.settings) > 1
    if name == "depth":
        return bool((noisy.groupby(["setting", "noise"])["stages"].nunique() > 1).any())
    if name == "strength":
        return bool((noisy.groupby(["setting", "noise", "stages"])["mechanism"].nunique() > 1).any())
    return True


def _table(
    results: Results,
    name: str,
    columns: Iterable[Column],
    rows: Sequence[Row],
    notes: Sequence[str] = (),
    first: str = "mechanism",
) -> Table:
    """The table without its empty columns, with the notes that its numbers need before its own `notes`."""
    columns = [column for column in columns if any(_says(row, column) for row in rows)]
    rows = _with_seeds(rows)
    shown = [number for row in rows for number in row.numbers.values()]
    caption = [*_notes(results, shown), *notes]
    return Table(name, TABLES[name].title, first, columns, list(rows) if columns else [], caption, next(iter(results.settings)))


def _with_seeds(rows: Sequence[Row]) -> list[Row]:
    """The rows; where their mechanisms have different numbers of seeds, with the number in their labels."""
    seeds = [{number.facts["seeds"] for number in row.numbers.values() if number.facts["kind"] == "single"} for row in rows]
    if len(set().union(*seeds)) < 2:
        return list(rows)
    return [
        row._replace(label=f"{row.label} (n = {'/'.join(map(str, sorted(own)))})") if own else row
        for row, own in zip(rows, seeds, strict=True)
    ]


def _says(row: Row, column: Column) -> bool:
    shows = "value" if column.shows == "both" else column.shows
    return column.key in row.numbers and bool(row.numbers[column.key].text(shows))


def _clean(report: Report, setting: Setting) -> Table:
    results = Results(report, [setting])
    columns = results.columns([CLEAN], SHORT)
    return _table(results, "clean", columns.values(), [results.row(who, columns) for who in results.mechanisms()])


def _depth(report: Report, setting: Setting) -> Table:
    """A section for each mechanism and strength, in it a row for each stage; the baseline comes first."""
    results = Results(report, [setting])
    columns = results.columns([CLEAN, MEAN], SHORT[1:])
    singles = [who for who in results.mechanisms() if who[2] == "single"]
    rows = []
    for who in singles:
        stages = results.facts(who)["stages"]
        strength = " ".join(word for word in label_of(who).split() if word != stages)
        rows.append(results.row(who, columns, stages, strength) if stages else results.row(who, columns))
    sections = list(dict.fromkeys(row.section for row in rows))
    rows.sort(key=lambda row: (sections.index(row.section), row.label if row.section else ""))
    return _table(results, "depth", columns.values(), rows, first="stage")


def _shift(report: Report, setting: Setting) -> Table:
    results = Results(report, [setting])
    columns = results.columns([MEAN], LONG)
    rows = [results.row(who, columns) for who in results.mechanisms()]
    extra: list[str] = []
    for who, row in zip(results.mechanisms(), rows, strict=True):
        row.numbers.update(_corruption_errors(results, who))
        if published := _published(results, who):
            row.numbers["published_ece"] = results.derived(who, "published_ece", published.value)
            extra.append(f"published: {published.source}, not measured here")
    if any("mce" in row.numbers for row in rows):
        extra.append("mCE: the error relative to that of AlexNet or the baseline, which has 100%, averaged over corruptions")
    derived = [Column(metric.header, key) for key, metric in DERIVED.items()]
    return _table(results, "shift", [*columns.values(), *derived], rows, list(dict.fromkeys(extra)))


def _strength(report: Report, setting: Setting) -> Table:
    """A section for each mechanism and place, in it the strengths by the realised variance of the gate."""
    results = Results(report, [setting])
    columns = results.columns([CLEAN, MEAN], SHORT)
    groups = {(setting.name, group.mechanism, group.kind): group for group in setting.groups}
    ordered = []
    for who in results.mechanisms():
        facts = results.facts(who)
        if who[2] != "single":
            continue
        stages = [stage for run in groups[who].runs.values() for stage in run.facts.stages if stage.get("gate_variance")]
        variance = sum(stage["gate_variance"] for stage in stages) / len(stages) if stages else math.nan
        row = results.row(who, columns, section=f"{facts['noise']} at {facts['stages']}" if facts["stages"] else "")
        if stages:
            row.numbers["gate_variance"] = results.derived(who, "gate_variance", variance)
        ordered.append((row.section, variance if stages else math.inf, row))
    rows = [row for *_, row in sorted(ordered, key=lambda each: each[:2])]
    note = "gate variance: realised variance of the gate, mean over sites, noisy stages and seeds"
    shown = [Column(DERIVED["gate_variance"].header, "gate_variance", "value"), *columns.values()]
    return _table(results, "strength", shown, rows, [note])


_SIDE_BY_SIDE = [
    Column("value", RAW, "value"),
    Column("difference", RAW, "difference"),
    Column("p Holm", RAW, "p_holm"),
    Column(CALIBRATED, CALIBRATED, "value"),
    Column(f"difference {CALIBRATED}", CALIBRATED, "difference"),
    Column(f"p {CALIBRATED}", CALIBRATED, "p_holm"),
    Column("p sign flip (better)", RAW, "sign_flip"),
    Column("detectable", RAW, "detectable"),
]


def _mechanisms(report: Report, setting: Setting) -> Table:
    """A section for each metric, clean and under shift, in it a row for each mechanism with all that is known of its
    difference from the baseline."""
    results = Results(report, [setting])
    rows = []
    for part, column in results.columns([CLEAN, MEAN], SHORT).items():
        if part.temperature == CALIBRATED:
            continue
        for who in results.mechanisms():
            own = results.numbers[who]
            numbers = {
                key: own[part._replace(temperature=key)] for key in (RAW, CALIBRATED) if part._replace(temperature=key) in own
            }
            if part.metric in UNCHANGED:
                numbers.pop(CALIBRATED, None)
            rows.append(Row(label_of(who), numbers, column.header))
    notes = []
    if any(_says(row, column) for row in rows for column in _SIDE_BY_SIDE if column.shows == "sign_flip"):
        notes.append("p sign flip: exact one-sided sign-flip test over seeds for `better`, which cannot fall below 2^-seeds")
    if any(_says(row, column) for row in rows for column in _SIDE_BY_SIDE if column.shows == "detectable"):
        notes.append("detectable: smallest difference that this design detects with a power of 80% at the 5% level")
    return _table(results, "mechanisms", _SIDE_BY_SIDE, rows, notes)


def _finegrained(report: Report, setting: Setting) -> Table:
    """All settings of the report, a section for each."""
    results = Results(report, report.settings)
    columns = results.columns([CLEAN, MEAN], SHORT)
    several = len(report.settings) > 1
    rows = [results.row(who, columns, section=who[0] if several else "") for who in results.mechanisms()]
    return _table(results, "finegrained", columns.values(), rows)


def _cells(report: Report, setting: Setting) -> Table:
    """A section for each corruption and severity, in it a row for each mechanism."""
    results = Results(report, [setting])
    found = [part for numbers in results.numbers.values() for part in numbers if part.severity and part.corruption != MEAN]
    columns = {
        (metric, temperature): column_of(Part(MEAN, None, metric, temperature), several=False)
        for metric in ("top1", "nll", "ece")
        for temperature in (RAW, CALIBRATED)
        if not (temperature == CALIBRATED and metric in UNCHANGED)
    }
    rows = []
    for corruption, severity in sorted({(part.corruption, part.severity or 0) for part in found}):
        for who in results.mechanisms():
            parts = {column.key: Part(corruption, severity, *which) for which, column in columns.items()}
            own = results.numbers[who]
            numbers = {key: own[part] for key, part in parts.items() if part in own}
            rows.append(Row(label_of(who), numbers, f"{corruption} {severity}"))
    return _table(results, "cells", columns.values(), rows)


def _corruption_errors(results: Results, who: Who) -> dict[str, Number]:
    """mCE and relative mCE from the mean errors over seeds, relative to AlexNet's and to the baseline's; {} where they are not
    defined: outside ImageNet-1k, and without the 15 corruptions at five severities."""
    runs = [run for group in results.settings[who[0]].groups for run in group.runs.values()]
    if not all(run.facts.data.get("imagenet_1k") for run in runs):
        return {}
    own, others = _errors(results, who), _errors(results, results.baseline(who))
    if own is None:
        return {}
    found = {
        "mce": mean_corruption_error(own[0], ALEXNET),
        "relative_mce": relative_mean_corruption_error(*own, ALEXNET, ALEXNET_CLEAN),
    }
    means = {name: sum(values) / len(values) for name, values in others[0].items()} if others else {}
    if others and all(means.values()):  # a ratio to no error is no number
        found["mce_baseline"] = mean_corruption_error(own[0], means)
        if all(value > others[1] for value in means.values()):
            found["relative_mce_baseline"] = relative_mean_corruption_error(*own, means, others[1])
    return {key: results.derived(who, key, value) for key, value in found.items()}


def _errors(results: Results, who: Who | None) -> tuple[dict[str, list[float]], float] | None:
    """The top-1 errors of the 15 corruptions, one per severity, and on clean images; None unless all are there."""
    own = results.numbers[who] if who else {}
    wanted = {name: [Part(name, severity, "top1") for severity in range(1, 6)] for name in ALEXNET}
    clean = Part(CLEAN, 0, "top1")
    if clean not in own or any(part not in own for parts in wanted.values() for part in parts):
        return None
    errors = {name: [1 - float(own[part].facts["value"]) for part in parts] for name, parts in wanted.items()}
    return errors, 1 - float(own[clean].facts["value"])


def _published(results: Results, who: Who) -> Published | None:
    """The published number for this mechanism, if the setting is the published one: ResNet-50 on ImageNet-C."""
    setting, facts = results.settings[who[0]], results.facts(who)
    configs = [run.facts.config for group in setting.groups for run in group.runs.values()]
    names = {(str(config["model"]["name"]).split(".")[0], config["data"]["name"]) for config in configs}
    whole = {tuple(cell) for cell in setting.cells} == {(name, severity) for name in ALEXNET for severity in range(1, 6)}
    if not whole or facts["kind"] != "single":
        return None
    wanted = (facts["noise"], facts["stages"])
    return next((p for p in PUBLISHED if {(p.model, "imagenet")} == names and (p.noise, p.stages) == wanted), None)


def _span(values: Iterable[float], word: str) -> str:
    """A number of things in words, such as `3 seeds` or `1 to 3 seeds`."""
    known = [int(value) for value in values if not pd.isna(value)]
    low, high = min(known, default=0), max(known, default=0)
    return f"{high} {word}{'s' * (high != 1)}" if low == high else f"{low} to {high} {word}s"


def _notes(results: Results, shown: Sequence[Number]) -> list[str]:
    """What the numbers of a table are of: units, images, seeds, protocol, corruptions, baseline, temperature."""
    facts = [number.facts for number in shown]
    settings = [setting for setting in results.settings.values() if any(each["setting"] == setting.name for each in facts)]
    runs = [run for setting in settings for group in setting.groups for run in group.runs.values()]
    protocols = sorted({run.facts.protocol_id for run in runs})
    seeds = [each["seeds"] for each in facts if each["kind"] == "single"]
    notes = [
        "numbers marked % are in percent, NLL in nats, Brier from 0 to 2",
        f"{_span((each['images'] for each in facts), 'image')} in each cell, {_span(seeds, 'seed')}",
        f"protocol {', '.join(protocols)}",
    ]
    if any(each["corruption"] == MEAN for each in facts):
        notes.append(_mean_in_words(settings))
    if any(not math.isnan(each["difference"]) for each in facts):
        baselines = {setting.baseline.mechanism for setting in settings if setting.baseline}
        notes.append(f"baseline: {', '.join(sorted(baselines))}; differences are at equal seed on equal images")
        if max(seeds, default=1) > 1:
            notes.append("intervals: over training seeds and images")
        alone = dict.fromkeys(each["mechanism"] for each in facts if each["kind"] == "single" and each["seeds"] == 1)
        others = [name for name in alone if name not in baselines]
        if others:
            notes.append(
                f"ONE SEED ({', '.join(others)}): its intervals are over images only and say nothing about other training seeds"
            )
    else:
        notes.append("no difference from a baseline is known")
    if any(each["temperature"] == CALIBRATED for each in facts):
        notes.append(
            f"{CALIBRATED}: logits divided by each run's temperature, the baseline's, too, fitted on clean images only"
        )
    if any(each["metric"] == "ece_floor" for each in facts):
        notes.append("floor of ECE: what a perfectly calibrated network with the same confidences is expected to show")
    if any(each["kind"] == "ensemble" for each in facts):
        notes.append("ensemble: the mean of the softmax outputs of all seeds' networks; its intervals are over images only")
    return notes


def _mean_in_words(settings: Sequence[Setting]) -> str:
    cells = {tuple(setting.cells) for setting in settings}
    if len(cells) != 1:
        return "shift: mean over severities, then over the corruptions of the setting"
    names = sorted({cell.corruption for cell in settings[0].cells})
    severities = ", ".join(map(str, sorted({cell.severity for cell in settings[0].cells})))
    what = "the 15 corruptions of ImageNet-C" if set(names) == set(ALEXNET) else f"{', '.join(names)}"
    return f"shift: mean over severities {severities}, then over {what}"


# What `python report.py table=NAME` can show.
TABLES: dict[str, TableKind] = {
    "mechanisms": TableKind("Mechanisms side by side", _mechanisms),
    "clean": TableKind("Clean images", _clean),
    "shift": TableKind("Mean over corruptions", _shift),
    "depth": TableKind("Depth of injection", _depth),
    "strength": TableKind("Strength of the noise", _strength),
    "finegrained": TableKind("Data sets side by side", _finegrained, spans=True),
    "cells": TableKind("Every corruption and severity", _cells),
}
