"""How much the protocol moves the numbers of the same networks: python scripts/protocol_sensitivity.py NAME=FOLDER ...

Each FOLDER is an output= of evaluate.py: the same networks under the protocol NAME, one of memory, jpeg, stored, resized, timm,
bf16 and draws1 (results/protocol_sensitivity/README.md; protocol_sensitivity.sh evaluates them). Those of COMPARISONS are made
whose two protocols are given. Among the networks there may be some with noise: then it is also asked how far the protocol moves
their difference from those without noise. Writes table.csv, mechanisms.csv (of that difference), table.md and figure.svg to
--output.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from measure import machine, write_report

from gch_bench.apps.cli import reported
from gch_bench.errors import UserError
from gch_bench.files import write_csv
from gch_bench.metrics import METRICS, CellAtoms
from gch_bench.report.figure_style import DOUBLE, save, styled
from gch_bench.report.runs import find_folders, mechanism_label, read_run, setting_key, shared_cells
from gch_bench.report.statistics import atoms_of, draw_counts, image_variance, paired_differences, resample
from gch_bench.report.study import Run
from gch_bench.report.text_table import markdown_rows
from gch_bench.results.records import CELL_CLEAN, Cell

# (against which, protocol) -> the comparison in words
COMPARISONS = {
    ("memory", "stored"): "stored JPEGs against images generated in memory",
    ("memory", "jpeg"): "JPEG round trip in memory against none",
    ("jpeg", "stored"): "stored JPEGs against the round trip in memory",
    ("stored", "resized"): "stored JPEGs resized and cropped once more against as they are",
    ("memory", "timm"): "preparation timm against imagenet256",
    ("memory", "bf16"): "bf16 against fp32",
    ("memory", "draws1"): "corruptions.seed=1 against 0",
}
TESTED = ("top1", "nll", "ce2_debiased")  # the metrics whose changes have an interval
EXCESS = "ece_excess"  # ECE - floor
Found = Mapping[str, Mapping[str, Run]]  # protocol -> name of the network's folder -> its run


def value(key: str, cell: CellAtoms) -> float:
    if key == EXCESS:
        return value("ece", cell) - value("ece_floor", cell)
    return float(METRICS[key].formula(cell))


def mean(key: str, cells: Sequence[CellAtoms]) -> float:
    return float(np.mean([value(key, cell) for cell in cells]))


def read(arguments: Sequence[str]) -> dict[str, dict[str, Run]]:
    """The runs of each NAME=FOLDER. UserError: not this form, a name twice, or folders that do not hold the same networks."""
    known = {name: None for pair in COMPARISONS for name in pair}
    folders: dict[str, str] = {}
    for argument in arguments:
        name, _, folder = argument.partition("=")
        if name not in known or not folder:
            raise UserError(f"an argument must be NAME=FOLDER with NAME one of {', '.join(known)}, got {argument}")
        if name in folders:
            raise UserError(f"each NAME must be given once, got {name}={folders[name]} and {argument}")
        folders[name] = folder
    found = {name: {path.name: read_run(path) for path in find_folders([f"{folder}/*"])} for name, folder in folders.items()}
    networks = {name: sorted(runs) for name, runs in found.items()}
    for name, own in networks.items():
        if own != next(iter(networks.values())):
            raise UserError(f"all folders must hold the same networks, got others in {folders[name]}: {', '.join(own)}")
    return found


def compare(first: Sequence[pd.DataFrame], second: Sequence[pd.DataFrame], level: float) -> list[dict[str, object]]:
    """A row for each metric of the change from `first` to `second`, which are records of the same cells in the same order.

    A cell of another network counts as another cell, so that all numbers are means over networks and over their cells.
    """
    intervals = paired_differences(first, second, level=level)
    one, two = ([atoms_of(cell) for cell in cells] for cells in (first, second))
    counts_RN = draw_counts(len(first[0]))
    errors = image_variance([resample(one, counts_RN, TESTED).over(range(len(one)))], TESTED) ** 0.5
    pairs = list(zip(first, second, strict=True))
    shared = {
        "changed": float(np.mean([(a["prediction"] != b["prediction"]).mean() for a, b in pairs])),
        "identical": all(a.equals(b) for a, b in pairs),
    }
    rows: list[dict[str, object]] = []
    for key in (*TESTED, "ece", EXCESS):
        before, after = mean(key, one), mean(key, two)
        row = {"metric": key, "before": before, "after": after, "change": after - before, "low": np.nan, "high": np.nan}
        if key in TESTED:
            row |= {"low": intervals[key].low, "high": intervals[key].high, "se_images": errors[TESTED.index(key)]}
        rows.append(row | shared)
    return rows


class Plan(NamedTuple):
    """What is compared: pairs of protocols (against, protocol), and the cells of each part."""

    pairs: list[tuple[str, str]]
    parts: dict[str, list[Cell]]

    def level(self, more: int = 1) -> float:
        """The level at which the intervals of all pairs, parts and tested metrics, times `more`, hold together with 95%."""
        return 1 - 0.05 / (len(self.pairs) * len(self.parts) * len(TESTED) * more)


def planned(found: Found) -> Plan:
    pairs = [pair for pair in COMPARISONS if set(pair) <= set(found)]
    if not pairs:
        raise UserError(f"folders must hold both protocols of a comparison, got {', '.join(found)}")
    cells = {"shift": shared_cells([run for runs in found.values() for run in runs.values()]), "clean": [CELL_CLEAN]}
    return Plan(pairs, {part: own for part, own in cells.items() if own})


def rows_of(found: Found) -> pd.DataFrame:
    """A row for each comparison, part (shift, clean) and metric; fractions and nats. UserError: the images differ, or there is
    nothing to compare.

    before and after: the metric, averaged over networks and over the part's cells; low and high: interval of the change over
    images, at a level that makes all intervals of the table hold together with 95% (Bonferroni); se_images: the standard error
    of `before` over images; changed: the share of other predictions; identical: all records are equal bit for bit.
    """
    plan = planned(found)
    level = plan.level()
    rows = []
    for part, own in plan.parts.items():
        frames = {name: [run.cells[cell] for _, run in sorted(runs.items()) for cell in own] for name, runs in found.items()}
        for against, name in plan.pairs:
            try:
                measured = compare(frames[against], frames[name], level)
            except ValueError as error:
                raise UserError(f"{against} and {name} must be evaluated on the same images: {error}") from error
            rows += [{"against": against, "protocol": name, "part": part, "level": level, **row} for row in measured]
    return pd.DataFrame(rows)


def with_and_without(runs: Mapping[str, Run]) -> dict[str, list[tuple[Run, Run]]]:
    """For each noise, by its label, the networks (without, with) it that are alike in all else, seed included."""

    def all_else(run: Run) -> str:
        return json.dumps([setting_key(run.facts), run.facts.config["seed"]], sort_keys=True)

    labels = {name: mechanism_label(run.facts.config["noise"]) for name, run in sorted(runs.items())}
    without = {all_else(runs[name]): runs[name] for name, label in labels.items() if label == "none"}
    pairs: dict[str, list[tuple[Run, Run]]] = defaultdict(list)
    for name, label in labels.items():
        if label != "none" and all_else(runs[name]) in without:
            pairs[label].append((without[all_else(runs[name])], runs[name]))
    return pairs


def mechanism_rows(found: Found) -> pd.DataFrame:
    """A row for each comparison, part, noise and metric: what the protocol changes in the difference that the noise makes.

    before and after: the metric with the noise less that without at equal seed, averaged over seeds and cells; before_low and
    before_high: interval of the former, low and high: interval of after - before, both over images, at a level that makes all
    intervals of this table hold together with 95%; identical: the protocol changes no record of these networks. Empty if no
    network has noise, or none without noise has the same seed.
    """
    plan = planned(found)
    noises = {name: with_and_without(runs) for name, runs in found.items()}
    rows = []
    for against, protocol in plan.pairs:
        for part, cells in plan.parts.items():
            for noise in noises[against]:
                before, after = (
                    [[pair[side].cells[cell] for pair in noises[name][noise] for cell in cells] for side in (0, 1)]
                    for name in (against, protocol)
                )
                shared = {"against": against, "protocol": protocol, "part": part, "noise": noise}
                level = plan.level(2 * len(noises[against]))
                rows += [{**shared, **row} for row in compare_differences(before, after, level)]
    return pd.DataFrame(rows)


def compare_differences(
    before: Sequence[Sequence[pd.DataFrame]], after: Sequence[Sequence[pd.DataFrame]], level: float
) -> list[dict[str, object]]:
    """A row for each tested metric of the difference with noise - without under two protocols, and of its change.

    Args:
        before, after: the records (without, with) noise of the same networks in the same cells.
    """
    (without, with_), (without_after, with_after) = before, after
    own = paired_differences(without, with_, level=level)
    # The mean over these lists, second - first, is half of (with_after - without_after) - (with_ - without).
    moved = paired_differences([*without_after, *with_], [*with_after, *without], level=level)
    same = all(a.equals(b) for a, b in zip([*without, *with_], [*without_after, *with_after], strict=True))
    atoms = [[atoms_of(cell) for cell in cells] for cells in (without, with_, without_after, with_after)]
    rows: list[dict[str, object]] = []
    for key in TESTED:
        means = [mean(key, cells) for cells in atoms]
        first, second = means[1] - means[0], means[3] - means[2]
        values = {"metric": key, "before": first, "after": second, "change": second - first}
        bounds = {
            "before_low": own[key].low,
            "before_high": own[key].high,
            "low": 2 * moved[key].low,
            "high": 2 * moved[key].high,
        }
        rows.append({**values, **bounds, "identical": same})
    return rows


def lines(table: pd.DataFrame, found: Found) -> list[str]:
    """The table in words: one line for each comparison and part, and what its columns are."""
    shown = []
    for (against, name, part), rows in table.groupby(["against", "protocol", "part"], sort=False):
        by = rows.set_index("metric").to_dict("index")
        changes = [METRICS[key].interval((by[key]["change"], by[key]["low"], by[key]["high"])) for key in TESTED]
        changes += [METRICS["ece"].text(by[key]["change"], "+") for key in ("ece", EXCESS)]
        changed = f"{100 * by['top1']['changed']:.2f}"
        if by["top1"]["identical"]:
            changed, changes = "identical", [""] * len(changes)
        errors = " / ".join(METRICS[key].text(by[key]["se_images"]) for key in TESTED)
        shown.append([COMPARISONS[against, name], part, changed, *changes, errors])
    heads = [METRICS[key].header for key in (*TESTED, "ece")]
    runs = [run for own in found.values() for run in own.values()]
    networks, images, cells = sorted(next(iter(found.values()))), len(runs[0].cells[CELL_CLEAN]), shared_cells(runs)
    corruptions, severities = len({cell.corruption for cell in cells}), sorted({cell.severity for cell in cells})
    return [
        *markdown_rows(
            ["", "part", "changed %", *heads, "ECE - floor %", f"standard error: {' / '.join(heads[:3])}"], shown, heads=2
        ),
        "",
        f"- Changes, averaged over the networks {', '.join(networks)} and over the cells of a part. shift:"
        f" {corruptions} corruptions at severities {severities}.",
        f"- [ ]: interval over images, paired, at {100 * table['level'].iloc[0]:.2f}%, so that all of the table hold together"
        " with 95%. No interval of a difference of ECEs is valid.",
        f"- standard error: of the number itself over the draw of {images} images. changed: predictions of another class."
        " identical: all records are equal bit for bit.",
        *(f"- {name}: {next(iter(own.values())).facts.protocol_id}" for name, own in found.items()),
        f"- The table was made on {machine(torch.device('cpu'))}.",
    ]


def mechanism_lines(table: pd.DataFrame) -> list[str]:
    """The table of `mechanism_rows` in words."""
    shown = []
    for (against, name, part, noise), rows in table.groupby(["against", "protocol", "part", "noise"], sort=False):
        by = rows.set_index("metric").to_dict("index")
        cells = []
        for key in TESTED:
            row = by[key]
            cells.append(METRICS[key].interval((row["before"], row["before_low"], row["before_high"])))
            same = "identical" if row["identical"] else METRICS[key].interval((row["change"], row["low"], row["high"]))
            cells.append(same)
        shown.append([COMPARISONS[against, name], part, noise, *cells])
    heads = [text for key in TESTED for text in (METRICS[key].header, "change")]
    return [
        "",
        "Networks with noise less those without at equal seed, and what the protocol changes in this difference:",
        "",
        *markdown_rows(["", "part", "noise", *heads], shown, heads=3),
        "",
        "- The difference under the protocol that is compared with, and its change; [ ]: intervals over images, at a level that"
        " makes all of this table hold together with 95%. They speak of these networks, not of new trainings.",
    ]


@styled
def figure(table: pd.DataFrame) -> Figure:
    """The changes of the first part, which is shift if there is any, with their intervals: a panel for each tested metric."""
    own = table[table["part"] == table["part"].iloc[0]]
    made = Figure(figsize=(DOUBLE, 2.6), layout="constrained")
    for axis, key in zip(made.subplots(1, len(TESTED), sharey=True), TESTED, strict=True):
        metric, rows = METRICS[key], own[own["metric"] == key]
        names = [COMPARISONS[pair] for pair in zip(rows["against"], rows["protocol"], strict=True)]
        scale = 100 if metric.percent else 1
        change, low, high, error = (scale * rows[name].to_numpy() for name in ("change", "low", "high", "se_images"))
        axis.barh(names, 2 * error, left=-error, color="0.9")
        axis.errorbar(change, names, xerr=(change - low, high - change), fmt="o", ms=3, lw=1)
        axis.axvline(0, color="0.5", lw=0.6)
        axis.set_xlabel(f"change of\n{metric.header}")
    axis.invert_yaxis()
    made.set_label(
        "What a choice of the evaluation changes under shift, with intervals over images that hold together with 95%; grey: one"
        " standard error of the number itself to each side."
    )
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", metavar="NAME=FOLDER")
    parser.add_argument("--output", type=Path, default=Path("results/protocol_sensitivity"))
    options = parser.parse_args()
    with reported():
        found = read(options.folders)
        table = rows_of(found)
        options.output.mkdir(parents=True, exist_ok=True)
        write_csv(options.output / "table.csv", table)
        save({"figure": figure(table)}, options.output, ("svg",))
        said = lines(table, found)
        if not (moved := mechanism_rows(found)).empty:
            write_csv(options.output / "mechanisms.csv", moved)
            said += mechanism_lines(moved)
        write_report(options.output / "table.md", "Protocol sensitivity", said)
        print("\n".join(said))


if __name__ == "__main__":
    main()
