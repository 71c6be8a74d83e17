"""Reports with known numbers, for the tests of everything that shows one: no statistics are computed, p values are given."""

import math
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from gch_bench.metrics import CLEAN, METRICS
from gch_bench.report.study import CALIBRATED, MEAN, RAW, ROWS, Group, Report, Run, Setting
from gch_bench.results.records import Cell
from gch_bench.results.runfacts import RunFacts

# No valid interval is known for the differences of these.
WITHOUT_INTERVAL = (
    "ece", "ece_floor", "ece_equal_mass", "ece_top_label", "max_ce", "smece", "classwise_ce", "nll_calibration",
    "brier_calibration",
)  # fmt: skip


class Mechanism(NamedTuple):
    """A mechanism of a synthetic report: all its differences from the baseline are `effect`, with p value `p`."""

    label: str
    noise: str
    stages: str
    effect: float = 0.0
    p: float = 0.5
    kind: str = "single"
    gate_variance: float = 0.25


NONE = Mechanism("none", "none", "")
GCH = Mechanism("gch gamma=1 beta=1 L4", "gch", "L4", effect=-0.02, p=0.001)
DROPBLOCK = Mechanism("dropblock p=0.1 block_size=3 L4", "dropblock", "L4", effect=0.01, p=0.2)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's correction of a family, by its definition: the largest of (m - rank) p over all p values up to this one."""
    count = len(p_values)
    steps = {p: (count - rank) * p for rank, p in reversed(list(enumerate(sorted(p_values))))}
    return [min(1.0, max(step for other, step in steps.items() if other <= p)) for p in p_values]


def expected_value(metric: str, corruption: str, severity: int | None, temperature: str, effect: float) -> float:
    """The value in the report: different for each metric and part, worse at higher severities, larger by `effect` for the
    mechanism, and smaller after temperature scaling."""
    worse = 0.002 * len(corruption) + 0.03 * (3 if severity is None else severity)
    index = list(METRICS).index(metric)
    base = 0.8 - 0.01 * index - worse if METRICS[metric].better == "higher" else 0.1 + 0.01 * index + worse
    return base + effect - (0.05 if temperature == CALIBRATED else 0.0)


def make_rows(
    name: str, mechanisms: Sequence[Mechanism], baseline: str | None, cells: Sequence[Cell], seeds: int, logits: bool
) -> pd.DataFrame:
    """The rows of ROWS of one setting: every metric of METRICS in the clean cell, `cells`, and means over them."""
    parts: list[tuple[str, int | None]] = [(CLEAN, 0), *cells]
    if cells:
        parts += [*((corruption, None) for corruption in dict.fromkeys(cell.corruption for cell in cells)), (MEAN, None)]
    others = [each for each in mechanisms if each.label != baseline]
    corrected = dict(zip((each.label for each in others), holm([each.p for each in others]), strict=True))
    rows = []
    temperatures = (RAW, CALIBRATED) if logits else (RAW,)
    for each, (corruption, severity), metric, temperature in product(mechanisms, parts, METRICS, temperatures):
        row: dict[str, Any] = dict.fromkeys(ROWS, math.nan)
        row |= {"setting": name, "mechanism": each.label, "noise": each.noise, "stages": each.stages, "kind": each.kind}
        row |= {"corruption": corruption, "severity": severity, "metric": metric, "temperature": temperature}
        row |= {"value": expected_value(metric, corruption, severity, temperature, each.effect), "seeds": seeds, "images": 360}
        row["sd"] = 0.003 if seeds > 1 else math.nan
        if baseline is not None and each.label != baseline:
            row["difference"] = each.effect
            if metric not in WITHOUT_INTERVAL:
                half = abs(each.effect) * (0.9 if each.p < 0.05 else 1.1)
                row |= {"low": each.effect - half, "high": each.effect + half, "p": each.p, "p_holm": corrected[each.label]}
                row |= {"detectable": 0.015, "sign_flip": 2.0**-seeds}
        rows.append(row)
    table = pd.DataFrame(rows, columns=list(ROWS))
    return table.astype({"severity": "Int64"})


def make_run(mechanism: Mechanism, seed: int, data: Mapping[str, Any], config: Mapping[str, Any]) -> Run:
    stages = [{"stage": stage, "gate_variance": mechanism.gate_variance} for stage in mechanism.stages.split("+") if stage]
    facts = RunFacts(
        status="finished", started="", command="train.py", processes=1, device="cpu", commit="c", versions={}, hardware={},
        protocol_id="generated-digits_64px", protocol={}, mechanism=mechanism.noise, stages=stages, warnings=[],
        data={"num_classes": 10, **data}, parameters=1, weights="w", identity={"seed": seed},
        config={"model": {"name": "resnet18"}, "data": {"name": "digits"}, "seed": seed, **config},
    )  # fmt: skip
    return Run(Path("runs") / f"{mechanism.noise}-s{seed}", facts, {}, {})


def make_setting(
    mechanisms: Sequence[Mechanism] = (NONE, GCH, DROPBLOCK),
    *,
    name: str = "digits resnet18",
    baseline: str | None = "none",
    corruptions: Sequence[str] = ("fog", "gaussian_noise"),
    severities: Sequence[int] = (1, 2),
    seeds: int = 3,
    logits: bool = True,
    data: Mapping[str, Any] | None = None,
    config: Mapping[str, Any] | None = None,
) -> tuple[Setting, pd.DataFrame]:
    """A setting and its rows. `baseline` is the label of one of the mechanisms, or None."""
    groups = [
        Group(
            each.label, {"name": each.noise}, {s: make_run(each, s, data or {}, config or {}) for s in range(seeds)}, each.kind
        )
        for each in mechanisms
    ]
    cells = [Cell(corruption, severity) for corruption in corruptions for severity in severities]
    base = next((group for group in groups if group.mechanism == baseline), None)
    return Setting(name, groups, base, cells), make_rows(name, mechanisms, baseline, cells, seeds, logits)


def make_report(*settings: tuple[Setting, pd.DataFrame]) -> Report:
    """A report of the settings that `make_setting` made; without any, of its default one."""
    settings = settings or (make_setting(),)
    rows = pd.concat([rows for _, rows in settings], ignore_index=True)
    return Report([setting for setting, _ in settings], rows, ["GCh lowers the NLL."], [], ["One note."])
