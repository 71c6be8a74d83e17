"""Computes the table of results, `study.ROWS`, of one setting: every metric of every group on every part of the evaluation.

Legend: N images, K cells, R resamples, M metrics with an interval, C scopes (cells over which is averaged), S seeds.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from gch_bench.metrics import CLEAN, METRICS, summarize
from gch_bench.report.runs import parallel_map
from gch_bench.report.statistics import (
    Resampled,
    atoms_of,
    combine,
    draw_counts,
    holm,
    image_variance,
    metrics_with_interval,
    resample,
    sign_flip,
)
from gch_bench.report.study import CALIBRATED, MEAN, RAW, ROWS, Group, Run, Setting
from gch_bench.results.records import CELL_CLEAN, Cell


class Scope(NamedTuple):
    """A part of the evaluation that has a row: a corruption and severity as in ROWS, and the cells that are averaged."""

    corruption: str
    severity: int | None
    cells: tuple[Cell, ...]


class _Measured(NamedTuple):
    """One run, raw or after temperature scaling: its metrics in each cell, and its resampled deviations."""

    values: dict[Cell, dict[str, float]]
    cells: list[Cell]  # the order of the axis K
    keys: list[str]  # the metrics of the axis M
    resampled: Resampled

    def mean(self, scope: Scope, key: str) -> float:
        return float(np.mean([self.values[cell][key] for cell in scope.cells]))

    def over(self, scope: Scope, keys: Sequence[str]) -> Resampled:
        mean = self.resampled.over([self.cells.index(cell) for cell in scope.cells])
        return mean._replace(values=mean.values[:, [self.keys.index(key) for key in keys]])


def scopes_of(cells: Sequence[Cell], others: Iterable[Cell] = ()) -> list[Scope]:
    """Clean; then the mean over all cells, over each corruption's severities, over the corruptions at each severity, and each
    cell by itself. Of `others`, which are in no mean over corruptions, each corruption's mean and each cell."""
    scopes = [Scope(CLEAN, 0, (CELL_CLEAN,))]
    if cells:
        scopes.append(Scope(MEAN, None, tuple(cells)))
    levels = dict.fromkeys(cell.severity for cell in sorted(cells, key=lambda cell: cell.severity))
    scopes += [Scope(MEAN, level, tuple(cell for cell in cells if cell.severity == level)) for level in levels]
    for group in (list(cells), [cell for cell in others if cell.severity > 0 and cell not in set(cells)]):
        for name in dict.fromkeys(cell.corruption for cell in group):
            own = tuple(cell for cell in group if cell.corruption == name)
            scopes += [Scope(name, None, own), *(Scope(name, cell.severity, (cell,)) for cell in own)]
    return scopes


def rows_of(setting: Setting, num_resamples: int = 1000) -> pd.DataFrame:
    """The rows of one setting, with the columns ROWS. Means over corruptions are plain means over the setting's cells, which
    have the same severities for every corruption."""
    runs = {id(run): run for group in setting.groups for run in group.runs.values()}
    scopes = scopes_of(setting.cells, sorted({cell for run in runs.values() for cell in run.cells}))
    first = next(iter(runs.values())).cells[CELL_CLEAN]
    counts_RN = draw_counts(len(first), num_resamples)
    tables = []
    for temperature in (RAW, CALIBRATED):
        found = parallel_map(partial(_measured, temperature=temperature, counts_RN=counts_RN), list(runs.values()))
        measured = {key: each for key, each in zip(runs, found, strict=True) if each is not None}
        if measured:
            tables.append(_table(setting, scopes, temperature, measured))
    return pd.concat(tables, ignore_index=True)


def _measured(run: Run, temperature: str, counts_RN: NDArray[np.float32]) -> _Measured | None:
    frames = run.cells if temperature == RAW else run.calibrated
    if frames is None:
        return None
    cells = sorted(frames)
    classes = run.facts.data["num_classes"]
    values = {cell: summarize(frames[cell], classes) for cell in cells}
    keys = metrics_with_interval(set.intersection(*(set(frames[cell].columns) for cell in cells)))
    more = None
    if temperature == CALIBRATED and run.influence_N is not None and run.slopes is not None:
        more = [np.outer(run.influence_N, [run.slopes[cell].get(key, 0.0) for key in keys]) for cell in cells]
    return _Measured(values, cells, keys, resample([atoms_of(frames[cell]) for cell in cells], counts_RN, keys, more))


def _table(setting: Setting, scopes: Sequence[Scope], temperature: str, measured: Mapping[int, _Measured]) -> pd.DataFrame:
    """The rows of a setting, raw or after temperature scaling."""
    rows: list[dict[str, Any]] = []
    for group in setting.groups:
        for scope in scopes:
            rows += _rows(setting, group, scope, temperature, measured)
    table = pd.DataFrame(rows)
    for name in ("difference", "low", "high", "p", "detectable", "sign_flip"):
        table[name] = np.nan
    for seeds in sorted({len(each) for each in table["estimates"]} - {0}):
        some = table["estimates"].map(len) == seeds
        estimate_SX = np.stack(table.loc[some, "estimates"].to_list(), axis=1)
        found = combine(estimate_SX, table.loc[some, "variance"].to_numpy(np.float64))
        table.loc[some, "difference"] = found.estimate
        valid = some & table["variance"].notna()
        for name in ("low", "high", "p", "detectable"):
            table.loc[some, name] = getattr(found, name)
        better = table.loc[some, "metric"].map(lambda key: METRICS[key].better)
        table.loc[some, "sign_flip"] = sign_flip(np.where(better == "higher", estimate_SX, -estimate_SX))
        table.loc[some & ~valid | some & table["metric"].map(lambda key: METRICS[key].better is None), "sign_flip"] = np.nan
    families = table.groupby(["kind", "corruption", "severity", "metric"], dropna=False)["p"]
    table["p_holm"] = families.transform(lambda p: holm(p.to_numpy()))
    table["severity"] = table["severity"].astype("Int64")
    return table.reindex(columns=list(ROWS))


def _rows(
    setting: Setting, group: Group, scope: Scope, temperature: str, measured: Mapping[int, _Measured]
) -> list[dict[str, Any]]:
    """One row for each metric of a group in a scope, from the runs that have all of its cells; [] if none has."""

    def runs_with_all_cells(of: Group) -> dict[int, _Measured]:
        found = {seed: measured.get(id(run)) for seed, run in of.runs.items()}
        return {seed: run for seed, run in found.items() if run is not None and set(scope.cells) <= set(run.cells)}

    own = runs_with_all_cells(group)
    if not own:
        return []
    of = setting.baseline_of(group)
    baseline = runs_with_all_cells(of) if of is not None else {}
    shared = [seed for seed in own if seed in baseline]
    everyone = [*own.values(), *(baseline[seed] for seed in shared)]
    keys = [key for key in METRICS if all(key in each.values[cell] for each in everyone for cell in scope.cells)]
    with_interval = [key for key in keys if all(key in run.keys for run in everyone)]
    alone = [run.over(scope, with_interval) for run in own.values()]
    of_value = dict(zip(with_interval, image_variance(alone, with_interval), strict=True))
    of_difference = {}
    if shared:
        one, two = ([runs[seed].over(scope, with_interval) for seed in shared] for runs in (baseline, own))
        differences = [second.less(first) for first, second in zip(one, two, strict=True)]
        of_difference = dict(zip(with_interval, image_variance(differences, with_interval), strict=True))
    noise = group.noise
    fixed = {
        "setting": setting.name, "mechanism": group.mechanism, "noise": noise["name"],
        "stages": "+".join(noise["stages"]) if noise.get("law") else "", "kind": group.kind, "corruption": scope.corruption,
        "severity": scope.severity, "temperature": temperature, "seeds": len(shared) or len(own),
        "images": len(next(iter(group.runs.values())).cells[CELL_CLEAN]),
    }  # fmt: skip
    rows = []
    for key in keys:
        values = {seed: run.mean(scope, key) for seed, run in own.items()}
        rows.append(fixed | {
            "metric": key,
            "value": np.mean(list(values.values())),
            "sd": np.std(list(values.values()), ddof=1) if len(values) > 1 else np.nan,
            "se_images": of_value.get(key, np.nan) ** 0.5,
            "estimates": [values[seed] - baseline[seed].mean(scope, key) for seed in shared if METRICS[key].compared],
            "variance": of_difference.get(key, np.nan),
        })  # fmt: skip
    return rows
