"""The verdict of a report in words: what is better under shift, by how much, and whether a temperature does as much."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from gch_bench.metrics import CLEAN, METRICS
from gch_bench.report.study import CALIBRATED, MEAN, RAW, Setting

ALPHA = 0.05  # level of the tests after Holm's correction
FOLD = 3  # so many differences that are not distinguishable from 0 get a sentence each; more of them share one
METRIC = "nll"  # the metric that the verdict is about: proper, with an interval, and sensitive to calibration and accuracy


def verdict(settings: Sequence[Setting], rows: pd.DataFrame) -> list[str]:
    """Sentences, the most important first: for each setting a summary, a sentence for each mechanism, and the limits. More than
    FOLD mechanisms, or ensembles, that are not distinguishable from the baseline share a sentence."""
    sentences = []
    for setting in settings:
        own = rows[rows["setting"] == setting.name]
        if setting.baseline is None or len(setting.groups) < 2:
            sentences.append(f"{setting.name}: no mechanism was compared with another, so nothing follows about one.")
            continue
        where = MEAN if setting.cells else CLEAN
        part = own[(own["metric"] == METRIC) & (own["corruption"] == where) & ~own["severity"].ge(1).fillna(False)]
        compared = part[part["difference"].notna() & (part["temperature"] == RAW)]
        compared = compared.sort_values(["kind", "difference"], key=lambda by: by == "ensemble" if by.name == "kind" else by)
        if compared.empty:
            sentences.append(f"{setting.name}: no mechanism shares a seed and all cells with {setting.baseline.mechanism}.")
            continue
        what = f"{'mean corrupted' if setting.cells else 'clean'} {METRICS[METRIC].title}"
        after = part[part["temperature"] == CALIBRATED].set_index(["mechanism", "kind"])
        sentences += [
            _summary(setting, what, compared[compared["kind"] == "single"], after),
            *(text for _, alike in compared.groupby("kind", sort=False) for text in _each(setting, what, alike, after)),
            *_limits(setting, compared, after),
        ]
    return sentences


def _each(setting: Setting, what: str, compared: pd.DataFrame, after: pd.DataFrame) -> list[str]:
    """The sentences on mechanisms of one kind, single networks or ensembles."""
    key = compared.set_index(["mechanism", "kind"]).index
    scaled = np.full(len(key), np.nan) if after.empty else after["p_holm"].reindex(key).to_numpy()
    unclear = (compared["p_holm"] >= ALPHA).to_numpy() & ~(scaled < ALPHA)
    folded = unclear & (unclear.sum() > FOLD)
    sentences = [_sentence(setting, what, row, after) for row in compared[~folded].to_dict("records")]
    return [*sentences, _shared(setting, what, compared[folded], after)] if folded.any() else sentences


def _shared(setting: Setting, what: str, unclear: pd.DataFrame, after: pd.DataFrame) -> str:
    """One sentence on all mechanisms of one kind that are not distinguishable from the baseline."""
    assert setting.baseline is not None
    base, metric, rows = setting.baseline.mechanism, METRICS[METRIC], unclear.to_dict("records")
    who, against = f"{len(rows)} mechanisms", base
    if rows[0]["kind"] != "single":
        who, against = f"the ensembles of {who}", f"that of {base} over the images alone"
    each = "; ".join(f"{row['mechanism']} {metric.text(row['difference'], '+')} {_bounds(row, signed=True)}" for row in rows)
    low, high = (metric.text(bound) for bound in (unclear["detectable"].min(), unclear["detectable"].max()))
    return (
        f"{who} cannot be told apart from {against} in {what}{'' if after.empty else ', raw or after temperature scaling'}"
        f" (p = {unclear['p_holm'].min():.3f} or more after Holm; this design finds differences of {low} to {high} or more"
        f" with a power of 80%): {each}."
    )


def _better(row: pd.Series | dict) -> bool:
    return bool(row["p_holm"] < ALPHA and row["difference"] < 0)


def _summary(setting: Setting, what: str, compared: pd.DataFrame, after: pd.DataFrame) -> str:
    assert setting.baseline is not None
    base = setting.baseline.mechanism
    better = int(sum(_better(row) for row in compared.to_dict("records")))
    worse = int(((compared["p_holm"] < ALPHA) & (compared["difference"] > 0)).sum())
    unclear = len(compared) - better - worse
    text = (
        f"{setting.name}: of {len(compared)} mechanism{'s' * (len(compared) != 1)} compared with {base}, {better}"
        f" {'has' if better == 1 else 'have'} a lower {what},"
        f" {worse} a higher one, and {unclear} cannot be told apart from it (Holm-corrected, {ALPHA:.0%} level)"
    )
    if after.empty:
        return f"{text}."
    single = after[(after.index.get_level_values("kind") == "single") & after["difference"].notna()]
    if single.empty:
        return f"{text}; no temperature could be fitted both to one of them and to {base}."
    still = int(sum(_better(row) for row in single.to_dict("records")))
    text += f"; after temperature scaling of both, {still} of {len(single)} {'has' if still == 1 else 'have'} a lower one"
    return f"{text}."


def _sentence(setting: Setting, what: str, row: dict, after: pd.DataFrame) -> str:
    assert setting.baseline is not None
    base, metric = setting.baseline.mechanism, METRICS[METRIC]
    name = row["mechanism"]
    seeds = f"{row['seeds']} seed{'s' if row['seeds'] > 1 else ''} and {row['images']} images"
    if row["kind"] != "single":
        name, base = f"the {row['kind']} of {name}", f"that of {base}"
        seeds = f"{row['images']} images alone: of these networks, not of new trainings"
    elif row["seeds"] == 1:
        seeds += ", so the interval is about the images alone"
    found = f"{metric.text(abs(row['difference']))} {_bounds(row)}"
    if _better(row):
        text = f"{name} lowers {what} by {found} against {base} over {seeds} ({_p(row)})"
    elif row["p_holm"] < ALPHA:
        text = f"{name} raises {what} by {found} against {base} over {seeds} ({_p(row)})"
    else:
        text = (
            f"{name} changes {what} by {metric.text(row['difference'], '+')} {_bounds(row, signed=True)} against {base} over"
            f" {seeds}, which is not distinguishable from 0 ({_p(row)}; this design finds differences of"
            f" {metric.text(row['detectable'])} or more with a power of 80%)"
        )
    return f"{text}{_after_temperature(setting, row, after)}."


def _bounds(row: dict, signed: bool = False) -> str:
    """The interval; of the size of a difference whose sign is said in words, unless `signed`."""
    metric = METRICS[METRIC]
    if signed:
        return f"[{metric.text(row['low'], '+')}, {metric.text(row['high'], '+')}]"
    low, high = sorted((row["low"], row["high"]), key=abs) if row["low"] * row["high"] > 0 else (row["low"], row["high"])
    sign = -1 if row["difference"] < 0 else 1
    return f"[{metric.text(sign * low)}, {metric.text(sign * high)}]"


def _p_holm(row: dict) -> str:
    return "p < 0.001 after Holm" if row["p_holm"] < 0.001 else f"p = {row['p_holm']:.3f} after Holm"


def _p(row: dict) -> str:
    flip = ""
    if np.isfinite(row["sign_flip"]) and row["difference"] < 0:  # that test is one-sided, for a lower NLL
        flip = f"; sign-flip test p = {row['sign_flip']:.3g}, at least {max(2.0 ** -row['seeds'], 1e-4):.3g} with so many seeds"
    return f"{_p_holm(row)}{flip}"


def _after_temperature(setting: Setting, row: dict, after: pd.DataFrame) -> str:
    assert setting.baseline is not None
    key = (row["mechanism"], row["kind"])
    if key not in after.index or not np.isfinite(after.loc[key]["difference"]):
        return "" if after.empty else "; no temperature could be fitted to both"
    scaled, metric = after.loc[key].to_dict(), METRICS[METRIC]
    number = f"{metric.text(scaled['difference'], '+')} [{metric.text(scaled['low'], '+')}, {metric.text(scaled['high'], '+')}]"
    fewer = "" if scaled["seeds"] == row["seeds"] else f" over {scaled['seeds']} of these seeds"
    against = (
        f"after temperature scaling of both{_temperatures(setting, row)} the difference{fewer} is {number}, {_p_holm(scaled)}"
    )
    if _better(scaled):
        meaning = "it still wins, so this is not only a temperature" if _better(row) and not fewer else "it wins then"
    elif scaled["p_holm"] < ALPHA:
        meaning = "it loses"
    else:
        meaning = (
            "no longer distinguishable from 0, so a temperature may do as much"
            if _better(row)
            else "not distinguishable from 0"
        )
    return f"; {against}: {meaning}"


def _temperatures(setting: Setting, row: dict) -> str:
    """The mean temperatures of the mechanism and of the baseline, in words, for single networks."""
    group = next((each for each in setting.groups if (each.mechanism, each.kind) == (row["mechanism"], row["kind"])), None)
    if group is None or setting.baseline is None:
        return ""
    base = next(each for each in setting.groups if (each.mechanism, each.kind) == (setting.baseline.mechanism, row["kind"]))
    both = [(group.runs[seed].temperature, base.runs[seed].temperature) for seed in group.runs if seed in base.runs]
    known = [pair for pair in both if None not in pair]
    if not known:
        return ""
    means = np.mean(np.array(known, dtype=np.float64), axis=0)
    return f" (T = {means[0]:.2f} against {means[1]:.2f})"


def _limits(setting: Setting, compared: pd.DataFrame, after: pd.DataFrame) -> list[str]:
    sentences = []
    if after.empty:
        sentences.append(
            f"{setting.name}: whether a temperature would do as much as a mechanism is unknown, because no temperature could be"
            " fitted: that takes clean records with logits (records.logits=true) and some errors."
        )
    if compared["seeds"].max() == 1:
        sentences.append(
            f"{setting.name}: one seed, so the intervals are about the draw of the images alone; another training of the same"
            " mechanism may well come out on the other side."
        )
    elif compared["seeds"].max() < 5:
        sentences.append(
            f"{setting.name}: {compared['seeds'].max()} seeds; the intervals include the spread over seeds, which so few tell"
            " only roughly."
        )
    return sentences
