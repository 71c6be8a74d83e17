"""Does what a mechanism does to a layer predict what training with it does to reliability?

  python scripts/theory_beside_measurement.py RUN ... --noises
  python diagnose.py mode=compatibility 'runs=[NONE]' 'noise=LIST' 'stages=[L4]' output=FOLDER ...
  python scripts/theory_beside_measurement.py RUN ... --compatibility FOLDER ... --levels 0.1 0.3 0.9 --output OUT

RUN: evaluated runs that differ in noise and seed alone, some with noise=none. With --noises it prints the list of their
mechanisms for diagnose.py, which measures them on a network that was trained without noise, at all stages that the runs have.
The last command writes the effect
of each mechanism beside its compatibility numbers (OUT/table.csv), their rank correlations (correlations.csv, tables.md) and a
figure. --levels: the gate variances at which the mechanisms were matched, from which each takes the nearest one; without, the
gate variance rounded to one digit.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from correlation_report import figure, level_of, pair_lines, rows_at, write
from measure import machine

from gch_bench.apps.cli import reported
from gch_bench.config.overrides import written
from gch_bench.errors import UserError
from gch_bench.report import compatibility
from gch_bench.report.clustered import correlations
from gch_bench.report.networks import SHIFT, against_baseline, left_out, networks_table, read_setting, title
from gch_bench.report.runs import complete_noise, find_folders
from gch_bench.report.study import Setting
from gch_bench.report.text_table import markdown_rows
from gch_bench.results.runfacts import read_run_facts

# The numbers that were chosen before any network was evaluated, columns of the summary of mode=compatibility.
HEADLINE = {
    "singular_share": "singular ratios",  # statement 4 of theory: pairs of sites whose ratio of gates is 0 or infinite
    "clear_order_lost": "clear orders lost",  # statement 2: ranking stability
    "pooled_distortion": "pooled distortion",  # statement 4: what a classifier behind the pooling sees
    "logit_change": "change of the logits",
}
STRENGTH = "gate_variance"  # what they are compared with: strength alone
EFFECTS = ("nll", "ece", "smece", "top1")  # columns of SHIFT that are tested
NOT_USED = {
    "pooled_bias": "0 in expectation by construction, the gates have mean one",
    "map_distortion": "the root of the gate variance by construction, up to the contrast of the map",
    "surviving_share": "change of the logits over map distortion, so that at equal variance it says the same as the former",
    "positive": "says the same as singular ratios: none or some",
    "roughness": "defined for exponential gates alone",
    "top_class_flips": "a coarser form of the change of the logits",
}
PLACE = ("name", "stages", "train", "eval", "mc_samples")  # the fields of a noise that do not change its gate


def identity(noise: Mapping[str, Any]) -> str:
    """What makes a mechanism, without the name of its preset, its place and when it acts."""
    whole = complete_noise(noise)
    return json.dumps({name: value for name, value in whole.items() if name not in PLACE}, sort_keys=True)


def noise_list(patterns: Sequence[str]) -> str:
    """The mechanisms of the runs as diagnose.py noise= takes them, each once."""
    found = {}
    for folder in find_folders(patterns):
        noise = read_run_facts(folder).config["noise"]
        if noise["law"] is not None:
            options = {name: value for name, value in noise.items() if name not in PLACE[1:] and value is not None}
            found[identity(noise)] = written(options)
    return f"[{','.join(found.values())}]"


def compatibility_numbers(folders: Sequence[Path]) -> pd.DataFrame:
    """Columns stage, identity, STRENGTH and HEADLINE; the mean over the folders, which are of several networks.

    Raises:
        UserError: a folder holds no result of mode=compatibility.
    """
    parts = []
    for folder in folders:
        facts, tables = compatibility.read(folder)
        config = facts["config"]
        names = zip(facts["mechanisms"], config["mechanisms"] or [config["noise"]], strict=True)
        known = {name: identity(noise) for name, noise in names}
        summary = tables["summary"]
        parts.append(summary.assign(identity=summary["mechanism"].map(known))[["stage", "identity", STRENGTH, *HEADLINE]])
    return pd.concat(parts).groupby(["stage", "identity"], as_index=False).mean()


def networks_beside(setting: Setting, table: pd.DataFrame, numbers: pd.DataFrame, levels: Sequence[float]) -> pd.DataFrame:
    """Differences of the networks from the baseline, with their mechanism's compatibility numbers and level.

    Args:
        table: `networks_table` of the setting.

    Raises:
        UserError: a mechanism was not measured.
    """
    noises = {group.mechanism: identity(group.noise) for group in setting.groups}
    effects = against_baseline(table).drop(columns=STRENGTH)
    effects = effects.assign(identity=effects["mechanism"].map(noises))
    whole = effects.merge(numbers, "left", on=["stage", "identity"], indicator="measured")
    if (missing := whole.pop("measured") == "left_only").any():
        lacking = ", ".join(dict.fromkeys(whole.loc[missing, "mechanism"]))
        stages = ",".join(dict.fromkeys(whole["stage"]))
        raise UserError(
            f"--compatibility must hold every mechanism of the runs, it lacks {lacking}: measure with diagnose.py"
            f" 'stages=[{stages}]' and the noise= that --noises prints"
        )
    return whole.assign(level=level_of(whole, levels))


def points_of(networks: pd.DataFrame, effects: Sequence[str]) -> pd.DataFrame:
    """A row per mechanism and strength: its numbers, and of each effect mean and standard deviation over seeds."""
    keys = ["mechanism", "noise", "stage", "level", STRENGTH, *HEADLINE]
    groups = networks.groupby(keys, sort=False, dropna=False)
    mean, sd = groups[list(effects)].mean(), groups[list(effects)].std().add_suffix("_sd")
    return pd.concat([groups["seed"].count().rename("seeds"), mean, sd], axis=1).reset_index()


def lines(networks: pd.DataFrame, found: pd.DataFrame, effects: Sequence[str], notes: Sequence[str]) -> list[str]:
    points = points_of(networks, effects)
    heads = ["mechanism", "seeds", "gate variance", *HEADLINE.values(), *(title(each) for each in effects)]
    table = [
        [row["mechanism"], str(row["seeds"]), *(f"{row[name]:.3g}" for name in (STRENGTH, *HEADLINE)),
         *(f"{row[name]:+.4f}" for name in effects)]
        for row in points.to_dict("records")
    ]  # fmt: skip
    names, titles = {STRENGTH: "gate variance", **HEADLINE}, {name: title(name) for name in EFFECTS}
    return [
        f"{len(networks)} networks, {len(points)} mechanisms at a strength and stage, {networks['noise'].nunique()} mechanisms;"
        f" {machine(torch.device('cpu'))}.",
        "",
        *pair_lines(found, names, titles, int(found["p"].notna().sum())),
        "",
        "Not used: " + "; ".join(f"{name}: {why}" for name, why in NOT_USED.items()) + ".",
        "",
        "Effects under shift, mechanism - none at equal seed on equal images, mean over seeds:",
        "",
        *markdown_rows(heads, table),
        *([""] if notes else []),
        *(f"- {note}" for note in notes),
    ]


def study(options: argparse.Namespace) -> None:
    if options.noises:
        print(noise_list(options.runs))
        return
    if not options.compatibility or not options.output:
        raise UserError("give --noises, or --compatibility FOLDER and --output FOLDER")
    setting, notes = read_setting(options.runs)
    table = networks_table(setting)
    notes += left_out(table)
    networks = networks_beside(setting, table, compatibility_numbers(options.compatibility), options.levels)
    effects = [name for name in SHIFT if name in networks]
    rows = rows_at(networks, average=True)
    found = correlations(networks, (list(HEADLINE), EFFECTS), rows)
    if networks["level"].nunique() > 1:
        alone = correlations(networks, ([STRENGTH], EFFECTS), rows)
        alone[["within", "within_low", "within_high", "p", "q"]] = np.nan  # within one strength it does not vary
        found = pd.concat([alone, found], ignore_index=True)
    points = points_of(networks, effects)
    shown = {name: title(name) for name in ("nll", "smece")}
    made = figure(points, found, HEADLINE, shown, "effect on")
    made.set_label("Effects under shift over compatibility numbers, with rank correlations.")
    tables = {"table": points, "networks": networks.drop(columns=["folder", "identity"]), "correlations": found}
    write(options.output, "Compatibility and reliability", lines(networks, found, effects, notes), tables, {"figure": made})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", help="folders of evaluated runs, or patterns")
    parser.add_argument("--noises", action="store_true", help="print the list of mechanisms for diagnose.py")
    parser.add_argument("--compatibility", nargs="+", type=Path, help="folders of diagnose.py mode=compatibility")
    parser.add_argument("--levels", nargs="+", type=float, default=[], help="gate variances at which mechanisms were matched")
    parser.add_argument("--output", type=Path, help="folder of the results")
    with reported():
        study(parser.parse_args())


if __name__ == "__main__":
    main()
