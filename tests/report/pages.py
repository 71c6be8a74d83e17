"""Reports with hostile names and figures, for tests of the page."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from reports import NONE, Mechanism, make_report, make_setting

from gch_bench.report.html import Origin, page
from gch_bench.report.study import Report, Run, Setting
from gch_bench.report.tables import TABLES, tables

EVIL = "<script>alert(1)</script>"  # a name that a page must show as it is, and not obey
ORIGIN = Origin("2026-01-02 03:04 UTC", "01234567" * 5, f"report.py 'runs=[runs/{EVIL}]'")


def a_report(mechanisms: int = 3, settings: int = 1, corruptions: int = 2, severities: int = 2) -> Report:
    """Its first mechanism is none, the baseline, and its last is called EVIL. Their values are in no order."""
    effects = np.random.default_rng(0).normal(0, 0.02, mechanisms)
    middle = [
        Mechanism(f"gch gamma={i} beta=1 L{i % 4 + 1}", "gch", f"L{i % 4 + 1}", effects[i], 0.001 if effects[i] < 0 else 0.4)
        for i in range(1, mechanisms - 1)
    ]
    made = [
        make_setting(
            [NONE, *middle, Mechanism(EVIL, EVIL, "L4", -0.03, 0.001)],
            name=f"setting {number}",
            corruptions=[f"corruption_{i}" for i in range(corruptions)],
            severities=range(1, severities + 1),
        )
        for number in range(settings)
    ]
    report = make_report(*((with_evil_runs(setting), rows) for setting, rows in made))
    return report._replace(
        verdict=[f"{EVIL} lowers mean corrupted NLL by 0.0421 [0.0310, 0.0533] over 3 seeds.", "A second sentence."],
        refused=[f"runs/{EVIL}: unfinished, so it is left out"],
        notes=[f"WARNING: none s1 differs from {EVIL} in more than its noise", f"360 images of {EVIL}"],
    )


def with_evil_runs(setting: Setting) -> Setting:
    """The setting with EVIL in each fact of its runs, a warning in those of its last group, and other values of gamma."""
    groups = []
    for number, group in enumerate(setting.groups):
        warnings = [f"a warning about {EVIL}"] if group is setting.groups[-1] else []
        runs = {seed: _evil(run, 0.5 * number, warnings) for seed, run in group.runs.items()}
        groups.append(group._replace(runs=runs))
    return setting._replace(groups=groups, baseline=groups[0])


def _evil(run: Run, gamma: float, warnings: list[str]) -> Run:
    facts = run.facts
    facts.command, facts.versions, facts.warnings = f"train.py noise={EVIL} noise.gamma={gamma}", {"torch": EVIL}, warnings
    facts.config["noise"] = {"name": EVIL, "gamma": gamma}
    return run._replace(folder=Path("runs") / f"{EVIL}-{gamma}", temperature=1.0 + gamma)


def a_figure(power: int = 1, points: int = 30, wide: bool = False) -> Figure:
    figure = Figure(figsize=(6.9 if wide else 3.3, 2.4), layout="constrained")
    axis = figure.subplots()
    x = np.linspace(0, 1, points)
    axis.plot(x, x**power, ".-", label=f"{EVIL} {power}")
    axis.fill_between(x, x**power - 0.1, x**power + 0.1, alpha=0.2)
    axis.set_xlabel("confidence")
    axis.legend()
    figure.set_label(f"Reliability of {EVIL}, power {power}")
    return figure


def a_page(report: Report | None = None, names: Sequence[str] = ("clean", "shift", "cells"), figures: int = 2) -> str:
    """The text of a page with these kinds of tables and so many figures, every third of them wide."""
    report = report or a_report()
    drawn = {f"figure {i}": a_figure(i, wide=i % 3 == 2) for i in range(figures)}
    shown = [table for name in names or TABLES for table in tables(report, name)]
    return page(report, shown, drawn, ORIGIN, "all rows.csv")
