"""A small report with made-up records, whose table of results is computed from them; the intervals are made up."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from gch_bench.metrics import CLEAN, sample_atoms, summarize
from gch_bench.report.study import CALIBRATED, MEAN, RAW, ROWS, Group, Report, Run, Setting
from gch_bench.results.records import CELL_CLEAN, Cell
from gch_bench.results.runfacts import RunFacts

IMAGES, CLASSES = 40, 4
KEYS = ("nll", "top1", "ece", "aurc")
NONE: dict[str, Any] = {"name": "none", "law": None, "stages": ["L4"]}


def noise(name: str, stages: str = "L4", **options: float) -> dict[str, Any]:
    return {"name": name, "law": "made up", "stages": stages.split("+"), **options}


def label(own: dict[str, Any]) -> str:
    options = [f"{key}={value:g}" for key, value in own.items() if key not in NONE]
    return " ".join([own["name"], *options, "+".join(own["stages"])]) if own["law"] else own["name"]


def made_group(own: dict[str, Any], cells: list[Cell], seeds: int, logits: bool) -> Group:
    runs = {}
    for seed in range(seeds):
        rng = np.random.default_rng([seed, *label(own).encode()])
        classes = np.random.default_rng(0).integers(0, CLASSES, IMAGES)
        raw, calibrated = {}, {}
        for cell in [CELL_CLEAN, *cells]:
            logits_NC = rng.normal(0, 1, (IMAGES, CLASSES)) + (4 - 0.5 * cell.severity) * np.eye(CLASSES)[classes]
            for target, temperature in ((raw, 1.0), (calibrated, 2.0)):
                logp_NC = logits_NC / temperature
                logp_NC = logp_NC - np.log(np.exp(logp_NC).sum(axis=1, keepdims=True))
                atoms = sample_atoms(logp_NC, classes)._asdict()
                target[cell] = pd.DataFrame({"id": np.arange(IMAGES), "label": classes, **atoms})
        stages = [{"stage": stage, "gate_variance": float(own.get("gamma", own.get("p", 1))) / 2} for stage in own["stages"]]
        facts = RunFacts(
            status="finished", started="", command="", processes=1, device="cpu", commit=None, versions={}, hardware={},
            protocol_id="made up", protocol={}, mechanism=own["name"], stages=stages if own["law"] else [], warnings=[],
            data={"num_classes": CLASSES}, parameters=1, config={"noise": own, "seed": seed}, identity={},
        )  # fmt: skip
        more = {"temperature": 2.0, "calibrated": calibrated} if logits else {}
        runs[seed] = Run(Path(f"{own['name']}-{seed}"), facts, raw, {}, **more)  # type: ignore[arg-type]
    return Group(label(own), own, runs)


def made_report(
    noises: list[dict[str, Any]], cells: list[Cell], seeds: int = 2, baseline: bool = True, logits: bool = True
) -> Report:
    """A report with one setting; the first of the noises is the baseline."""
    groups = [made_group(own, cells, seeds, logits) for own in noises]
    setting = Setting("made up", groups, groups[0] if baseline else None, cells)
    parts: list[tuple[str, int | None, list[Cell]]] = [(CLEAN, 0, [CELL_CLEAN])]
    parts += [(MEAN, None, cells)] if cells else []
    parts += [(cell.corruption, cell.severity, [cell]) for cell in cells]
    rows = []
    for temperature in (RAW, CALIBRATED) if logits else (RAW,):
        values = {group.mechanism: _values(group, temperature) for group in groups}
        for group in groups:
            for corruption, severity, own in parts:
                part = {"setting": "made up", "mechanism": group.mechanism, "kind": "single", "temperature": temperature}
                part |= {"corruption": corruption, "severity": severity, "seeds": seeds, "images": IMAGES}
                for key in KEYS:
                    value = np.array([np.mean([each[cell][key] for cell in own]) for each in values[group.mechanism]])
                    base = np.array([np.mean([each[cell][key] for cell in own]) for each in values[groups[0].mechanism]])
                    row = {**part, "metric": key, "value": value.mean(), "sd": value.std(ddof=1) if seeds > 1 else np.nan}
                    row["se_images"] = 0.01
                    if baseline and group is not groups[0]:
                        difference, half = (value - base).mean(), 0.02 + 0.01 * value.mean()
                        row |= {"difference": difference, "low": difference - half, "high": difference + half}
                        row["p_holm"] = 0.01 if abs(difference) > half else 0.4
                    rows.append(row)
    table = pd.DataFrame(rows, columns=list(ROWS))
    return Report([setting], table.astype({"severity": "Int64"}), [], [], [])


def _values(group: Group, temperature: str) -> list[dict[Cell, dict[str, float]]]:
    sources = [run.cells if temperature == RAW else run.calibrated for run in group.runs.values()]
    return [{cell: summarize(frame, CLASSES) for cell, frame in source.items()} for source in sources if source]
