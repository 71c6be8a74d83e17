"""How much the protocol moves a network's numbers: python scripts/protocol_sensitivity.py RUN [RUN ...] FIELD=VALUE ...

The networks of finished runs are evaluated on the same images under each protocol of PROTOCOLS, in one pass as by evaluate.py,
whose arguments FIELD=VALUE are. In each comparison one thing differs. The table has the change averaged over the networks with
its interval over images, beside the standard error that a number has because the images are finitely many, and the spread over
training seeds. The same command continues what was interrupted. For example:
  python scripts/protocol_sensitivity.py runs/none-s0 runs/none-s1 runs/gch-s0 runs/gch-s1 data=folder data.root=PHOTOGRAPHS
"""

import argparse
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from hydra import compose, initialize_config_dir
from matplotlib.figure import Figure
from measure import machine, write_report
from numpy.typing import NDArray

from gch_bench.apps.cli import argument, register_defaults, reported, run_config
from gch_bench.apps.make_imagenet_c import generate
from gch_bench.apps.run import train_and_evaluate
from gch_bench.cores import usable_cores
from gch_bench.errors import UserError
from gch_bench.files import write_csv
from gch_bench.metrics import METRICS
from gch_bench.report.figure_style import COLORS, DOUBLE, quantity, save, scale, styled, wrapped
from gch_bench.report.runs import mechanism_label, read_run, shared_cells
from gch_bench.report.statistics import Resampled, atoms_of, check_images, combine, draw_counts, holm, image_variance, resample
from gch_bench.report.study import Run
from gch_bench.report.text_table import markdown_rows
from gch_bench.results.records import CELL_CLEAN, Cell

REPOSITORY = Path(__file__).parents[1]
STORED = "corruptions.root={stored}"
# name -> what is added to the user's arguments of evaluate.py. All others add one thing to the protocol `memory`.
PREPARED = ("data.preprocess=imagenet256", "data.size=224")  # as ImageNet-C
PROTOCOLS = {
    "memory": PREPARED,
    "stored": (*PREPARED, STORED),
    "jpeg": (*PREPARED, "corruptions.jpeg_roundtrip=true"),
    "resized": (*PREPARED, STORED, "corruptions.resize=true"),
    "timm": ("data.preprocess=timm",),
    "bf16": (*PREPARED, "evaluation.precision=bf16"),
    "draws1": (*PREPARED, "corruptions.seed=1"),
    "draws2": (*PREPARED, "corruptions.seed=2"),
}
DRAWS = ("memory", "draws1", "draws2")
# (protocol, against which): the comparison in words
COMPARISONS = {
    ("stored", "memory"): "stored JPEGs against images generated in memory",
    ("jpeg", "memory"): "JPEG round trip in memory against none",
    ("stored", "jpeg"): "stored JPEGs against the round trip in memory",
    ("resized", "stored"): "stored JPEGs resized and cropped once more against as they are",
    ("timm", "memory"): "preparation timm against imagenet256",
    ("bf16", "memory"): "bf16 against fp32",
    ("draws1", "memory"): "corruptions.seed=1 against 0",
    ("draws2", "memory"): "corruptions.seed=2 against 0",
}
# Arguments of evaluate.py that this script or its protocols set.
OWNED = ("checkpoints", "output", "data.preprocess", "data.size", "evaluation.precision",
         *(f"corruptions.{name}" for name in ("seed", "root", "resize", "jpeg_roundtrip")))  # fmt: skip
WITH_INTERVAL = ["top1", "nll", "ce2_debiased"]
EXCESS = "ece_excess"
SHOWN = ["top1", "nll", "ece", EXCESS, "ce2_debiased"]
MEAN = "mean of the networks"


class Part(NamedTuple):
    """One network, or a difference of two, on one part of the evaluation: its metrics, averaged over the part's cells, and
    how far the resamples of the images lie from them."""

    values: dict[str, float]  # SHOWN -> value
    deviations: Resampled  # of WITH_INTERVAL, (R, 3)

    def less(self, other: "Part") -> "Part":
        values = {key: self.values[key] - other.values[key] for key in SHOWN}
        return Part(values, self.deviations.less(other.deviations))


class Network(NamedTuple):
    """What tells the networks apart."""

    mechanism: str
    seed: int

    def __str__(self) -> str:
        return f"{self.mechanism}, seed {self.seed}"


def evaluate(name: str, options: argparse.Namespace, overrides: Sequence[str]) -> dict[Network, Run]:
    """Evaluate all networks under a protocol, or read what an earlier call left. Raises UserError on networks of one name."""
    folder = options.work / name
    own = [text.format(stored=options.stored) for text in PROTOCOLS[name]]
    arguments = [*overrides, *own, f"checkpoints=[{','.join(options.runs)}]", f"output={folder}", "logger=none"]
    print(f"== {name}: evaluate.py {shlex.join(arguments)}", flush=True)
    with initialize_config_dir(str(REPOSITORY / "configs"), version_base="1.3"):
        config = run_config(compose("evaluate", overrides=[argument(each) for each in arguments]), train=False)
    train_and_evaluate(config)
    runs = [read_run(path.parent) for path in sorted(folder.glob("*/run.json"))]
    found = {Network(mechanism_label(run.facts.config["noise"]), int(run.facts.config["seed"])): run for run in runs}
    if not len(found) == len(runs) == len(options.runs):
        raise UserError(
            f"{folder} must hold one run for each mechanism and seed, got {len(runs)} for {len(options.runs)} runs named:"
            " name runs that differ in mechanism or seed, or choose another --work"
        )
    return found


def make_stored(folder: Path, run: Run) -> None:
    """Store the corrupted images of an evaluation under the protocol `memory` as ImageNet-C is stored."""
    root, cells = run.facts.config["data"]["root"], [cell for cell in run.cells if cell.severity > 0]
    if root is None:
        raise UserError("protocols with stored images need data.root with val/CLASS/*: leave them out with --protocols")
    generate.generate(
        generate.Options(
            src=Path(root).expanduser() / "val",
            dest=folder,
            corruptions=sorted({cell.corruption for cell in cells}),
            severities=sorted({cell.severity for cell in cells}),
            seed=0,
            workers=usable_cores(),
            device="cpu",
            quality=85,
            verify=False,
        )
    )


def measured(run: Run, cells: Sequence[Cell], counts_RN: NDArray[np.float32]) -> Part:
    """A network's metrics averaged over these cells."""
    atoms = [atoms_of(run.cells[cell]) for cell in cells]
    keys = (*(key for key in SHOWN if key != EXCESS), "ece_floor")
    values = {key: float(np.mean([METRICS[key].formula(each) for each in atoms])) for key in keys}
    values[EXCESS] = values["ece"] - values.pop("ece_floor")
    return Part(values, resample(atoms, counts_RN, WITH_INTERVAL).over(range(len(cells))))


def quantities(parts: Mapping[Network, Part]) -> dict[str, list[Part]]:
    """What a comparison is made of: each network, their mean, and each mechanism less `none` at equal seeds."""
    found = {MEAN: list(parts.values())} | {str(network): [part] for network, part in parts.items()}
    for mechanism in dict.fromkeys(network.mechanism for network in parts if network.mechanism != "none"):
        seeds = [each.seed for each in parts if each.mechanism == mechanism and Network("none", each.seed) in parts]
        if seeds:
            found[f"{mechanism} - none"] = [
                parts[Network(mechanism, seed)].less(parts[Network("none", seed)]) for seed in seeds
            ]
    return found


def seed_spread(parts: Mapping[Network, Part], key: str) -> float:
    """The standard deviation over training seeds within mechanisms, pooled; NaN where each mechanism has one seed."""
    groups: dict[str, list[float]] = {}
    for network, part in parts.items():
        groups.setdefault(network.mechanism, []).append(part.values[key])
    freedom = sum(len(values) - 1 for values in groups.values())
    squares = sum(float(np.var(values)) * len(values) for values in groups.values())
    return (squares / freedom) ** 0.5 if freedom else np.nan


def rows_of(found: Mapping[str, Mapping[Network, Run]], num_resamples: int = 1000) -> pd.DataFrame:
    """The table: one row for each comparison, part (clean, shift), quantity and metric. All numbers are fractions or nats.

    reference and value are the metric against which is compared and under the protocol; difference is value - reference with
    its 95% interval over images (none for the ECEs, docs/calibration.md); se_images the standard error of reference over the
    draw of images; sd_seeds its spread over training seeds; changed the share of images with another prediction; identical:
    whether all records are equal bit for bit; p_holm the p value of the mean over networks after Holm's correction over all
    of the table's changes of that kind.
    """
    everything = {f"{name}: {network}": run for name, runs in found.items() for network, run in runs.items()}
    cells = {"clean": [CELL_CLEAN], "shift": shared_cells(list(everything.values()))}
    both = [cell for part in cells.values() for cell in part]
    check_images({name: [run.cells[cell] for cell in both] for name, run in everything.items()}, ("id", "label"))
    first = next(iter(everything.values()))
    counts_RN = draw_counts(len(first.cells[CELL_CLEAN]), num_resamples)
    rows = []
    for part, own in cells.items():
        if not own:
            continue
        parts = {name: {each: measured(run, own, counts_RN) for each, run in runs.items()} for name, runs in found.items()}
        for name, against in COMPARISONS:
            if name in found and against in found:
                same = {"protocol": name, "against": against, "part": part}
                rows += [same | row for row in compared(parts[name], parts[against], found[name], found[against], own)]
    table = pd.DataFrame(rows)
    tested = (table["network"] == MEAN) & ~table["identical"]
    table.loc[tested, "p_holm"] = holm(table.loc[tested, "p"].to_numpy(np.float64))
    return table


def compared(
    parts: Mapping[Network, Part],
    against: Mapping[Network, Part],
    runs: Mapping[Network, Run],
    others: Mapping[Network, Run],
    cells: Sequence[Cell],
) -> list[dict[str, object]]:
    """The rows of one comparison on one part, without the columns that name them."""
    changed, equal = {}, {}
    for network, run in runs.items():
        pairs = [(run.cells[cell], others[network].cells[cell]) for cell in cells]
        changed[str(network)] = float(np.mean([(a["prediction"] != b["prediction"]).mean() for a, b in pairs]))
        equal[str(network)] = all(a.equals(b) for a, b in pairs)
    changed[MEAN], all_equal = float(np.mean(list(changed.values()))), all(equal.values())
    rows: list[dict[str, object]] = []
    second = quantities(against)
    for name, own in quantities(parts).items():
        theirs = second[name]
        moves = [a.less(b) for a, b in zip(own, theirs, strict=True)]
        errors = image_variance([each.deviations for each in theirs], WITH_INTERVAL) ** 0.5
        variance = image_variance([each.deviations for each in moves], WITH_INTERVAL)
        for key in SHOWN:
            at = WITH_INTERVAL.index(key) if key in WITH_INTERVAL else None
            # The mean over networks as one number: the interval is about these networks on other images.
            mean = np.array([[np.mean([each.values[key] for each in moves])]])
            move = combine(mean, np.array([np.nan if at is None else variance[at]]))
            spread = [each.values[key] for each in theirs]
            between = np.std(spread, ddof=1) if " - " in name and len(spread) > 1 else np.nan
            rows.append({
                "network": name, "metric": key, "reference": np.mean(spread),
                "value": np.mean([each.values[key] for each in own]), "difference": move.estimate[0], "low": move.low[0],
                "high": move.high[0], "p": move.p[0], "p_holm": np.nan, "se_images": np.nan if at is None else errors[at],
                "sd_seeds": between if " - " in name else seed_spread(against, key),
                "changed": changed.get(name, np.nan), "identical": equal.get(name, all_equal),
            })  # fmt: skip
    return rows


def text(key: str, value: float, sign: str = "") -> str:
    return f"{100 * value:{sign}.2f}" if key == EXCESS else METRICS[key].text(value, sign)


def heading(key: str) -> str:
    return "ECE - floor %" if key == EXCESS else METRICS[key].header


def verdict(rows: pd.DataFrame) -> str:
    """What the mean over networks says, in a few words; NOTES explains them."""
    if rows["identical"].all():
        return "identical"
    tested = rows[rows["metric"].isin(WITH_INTERVAL)]
    seen = tested[tested["p_holm"] < 0.05]
    if seen.empty:
        return "not seen"
    yardstick = seen[["se_images", "sd_seeds"]].max(axis=1)
    large = seen[seen["difference"].abs() > yardstick]
    names = ", ".join(METRICS[key].title for key in (seen if large.empty else large)["metric"])
    return f"{'seen, small' if large.empty else 'LARGE'}: {names}"


def changes(table: pd.DataFrame, quantity_: str) -> list[list[str]]:
    """The lines of a table in words: one for each comparison and part."""
    lines = []
    own = table[table["network"] == quantity_]
    for (name, against, part), rows in own.groupby(["protocol", "against", "part"], sort=False):
        by = rows.set_index("metric")
        cells = []
        for key in SHOWN:
            number = text(key, by.loc[key, "difference"], "+")
            if key in WITH_INTERVAL:
                number += f" [{text(key, by.loc[key, 'low'], '+')}, {text(key, by.loc[key, 'high'], '+')}]"
            cells.append("0" if by.loc[key, "identical"] else number)
        flips = rows["changed"].iloc[0]
        last = verdict(rows) if quantity_ == MEAN else ""
        lines.append([COMPARISONS[name, against], part, "" if np.isnan(flips) else f"{100 * flips:.2f}", *cells, last])
    return sorted(lines, key=lambda line: line[1] == "clean")


def yardsticks(table: pd.DataFrame, images: int) -> list[list[str]]:
    """The lines with what a change must be compared to: the values, their standard error, the spreads over seeds and draws."""
    lines = []
    own = table[(table["network"] == MEAN) & (table["against"] == "memory")]
    for part in ("shift", "clean"):
        rows = own[own["part"] == part].drop_duplicates("metric").set_index("metric")
        if rows.empty:
            continue
        lines.append(
            ["value in memory, mean of the networks", part, "", *(text(key, rows.loc[key, "reference"]) for key in SHOWN), ""]
        )
        for name, column in (
            (f"standard error of {images} images", "se_images"),
            ("standard deviation over training seeds", "sd_seeds"),
        ):
            cells = [text(key, rows.loc[key, column]) if np.isfinite(rows.loc[key, column]) else "" for key in SHOWN]
            lines.append([name, part, "", *cells, ""])
        drawn = own[(own["part"] == part) & own["protocol"].isin(DRAWS)]
        values = {key: [0.0, *drawn.loc[drawn["metric"] == key, "difference"]] for key in SHOWN}
        if part == "shift" and len(values["nll"]) > 1:
            name = f"standard deviation over {len(values['nll'])} draws of the corruptions"
            lines.append([name, part, "", *(text(key, float(np.std(values[key], ddof=1))) for key in SHOWN), ""])
    return lines


def notes(table: pd.DataFrame, networks: Sequence[Network], cells: Sequence[Cell], images: int) -> list[str]:
    severities = ", ".join(map(str, sorted({cell.severity for cell in cells})))
    corruptions = len({cell.corruption for cell in cells})
    return [
        f"networks: {'; '.join(map(str, networks))}; {images} images in each cell",
        f"shift: mean over severities {severities}, then over {corruptions} corruptions",
        "numbers marked % are percent or percent points; [ ]: 95% interval over images, paired; no valid interval is known for"
        " the ECEs",
        "changed: images, in percent, with another prediction",
        "identical: all records are equal bit for bit; not seen: no interval of top-1, NLL and debiased squared CE excludes 0"
        " after Holm's correction over the table; small: no change that is seen is larger than both the standard error and the"
        " standard deviation over training seeds; LARGE: one is",
    ]


@styled
def figure(table: pd.DataFrame, images: int) -> Figure:
    """The changes under shift: each network as a dot, their mean with its interval, and the yardsticks as bands."""
    own = table[table["part"] == "shift"]
    names = [pair for pair in COMPARISONS if ((own["protocol"] == pair[0]) & (own["against"] == pair[1])).any()]
    drawn = Figure(figsize=(DOUBLE, 0.6 + 0.34 * len(names)), layout="constrained")
    for axis, key in zip(drawn.subplots(1, len(WITH_INTERVAL), sharey=True), WITH_INTERVAL, strict=True):
        rows, unit = own[own["metric"] == key], scale(key)
        mean = rows[rows["network"] == MEAN]
        for column, color, label in (("se_images", "0.85", f"± standard error of {images} images"),
                                     ("sd_seeds", COLORS[5], "± standard deviation over training seeds")):  # fmt: skip
            half = unit * mean[column].iloc[0]
            if np.isfinite(half):
                filled = column == "se_images"
                axis.axvspan(-half, half, lw=0 if filled else 0.8, ls="--", fill=filled, color=color, zorder=0, label=label)
        for at, (name, against) in enumerate(names):
            pair = rows[(rows["protocol"] == name) & (rows["against"] == against) & ~rows["network"].str.contains(" - ")]
            single, all_ = pair[pair["network"] != MEAN], pair[pair["network"] == MEAN].iloc[0]
            axis.plot(unit * single["difference"], [at] * len(single), ".", color=COLORS[1], ms=3, zorder=2,
                      label=None if at else "one network")  # fmt: skip
            half = unit * (all_["high"] - all_["difference"])
            axis.errorbar(unit * all_["difference"], at, xerr=half, fmt="D", ms=3, color="black", elinewidth=1, zorder=3,
                          label=None if at else "mean of the networks, 95% interval over images")  # fmt: skip
        axis.axvline(0, color="0.4", lw=0.6)
        axis.set_xlabel(f"change of {quantity(key, 'mean')}")
    axis.set_yticks(range(len(names)), [wrapped(COMPARISONS[pair], 2.0) for pair in names])
    axis.invert_yaxis()
    handles, labels = axis.get_legend_handles_labels()
    drawn.legend(handles, labels, loc="outside upper center", ncols=2)
    drawn.set_label("How much the protocol moves the numbers of the same networks on the same corrupted images.")
    return drawn


def arguments_of(given: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """The options with the runs, and the arguments of evaluate.py."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("arguments", nargs="+", metavar="RUN|FIELD=VALUE")
    parser.add_argument("--protocols", nargs="+", choices=list(PROTOCOLS), default=list(PROTOCOLS), metavar="NAME",
                        help=f"default: all of {', '.join(PROTOCOLS)}")  # fmt: skip
    parser.add_argument("--stored", type=Path, metavar="FOLDER", help="a stored ImageNet-C; default: one is made in --work")
    parser.add_argument("--work", type=Path, default=Path("runs/protocol_sensitivity"), help="folder of the evaluations")
    parser.add_argument("--output", type=Path, default=Path("results/protocol_sensitivity"))
    options = parser.parse_intermixed_args(given)
    overrides = [each for each in options.arguments if "=" in each]
    options.runs = [each for each in options.arguments if "=" not in each]
    taken = [each for each in overrides if each.split("=")[0] in OWNED]
    if taken or not options.runs:
        got = f"{taken[0]}, which the protocols set" if taken else "no run"
        raise UserError(f"arguments must be runs and fields of evaluate.py that no protocol sets, got {got}")
    return options, overrides


def main() -> None:
    with reported():
        options, overrides = arguments_of(None)
        register_defaults()
        found: dict[str, dict[Network, Run]] = {}
        made = options.stored is None
        options.stored = options.stored or options.work / "stored"
        for name in dict.fromkeys(["memory", *(each for each in PROTOCOLS if each in options.protocols)]):
            if made and STORED in PROTOCOLS[name]:
                make_stored(options.stored, next(iter(found["memory"].values())))
            found[name] = evaluate(name, options, overrides)
        table = rows_of(found)
        run = next(iter(found["memory"].values()))
        images, cells = len(run.cells[CELL_CLEAN]), shared_cells([run])
        columns = ["", "part", "changed %", *map(heading, SHOWN), "in words"]
        lines = markdown_rows(columns, [*yardsticks(table, images), *changes(table, MEAN)], heads=2)
        for name in [each for each in table["network"].unique() if " - " in each]:
            lines += ["", f"Change of the difference {name}:", ""]
            lines += markdown_rows(columns[:-1], [line[:-1] for line in changes(table, name)], heads=2)
        options.output.mkdir(parents=True, exist_ok=True)
        write_csv(options.output / "table.csv", table)
        save({"figure": figure(table, images)}, options.output, kinds=("svg",))
        lines += [
            "",
            machine(torch.device("cpu")) + ".",
            *("- " + note for note in notes(table, list(found["memory"]), cells, images)),
        ]
        write_report(options.output / "table.md", "Protocol sensitivity", lines)
        print("\n".join(lines))


if __name__ == "__main__":
    main()
