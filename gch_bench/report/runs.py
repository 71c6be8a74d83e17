"""Finds run folders, reads them, and sorts them into settings and groups. What cannot be compared is left out, with the reason.

Two runs share a setting if nothing but noise and seed tells them apart: network, recipe, data, protocol and the images
themselves. Only within a setting are differences computed and seeds averaged.
"""

import glob
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gch_bench.cores import usable_cores
from gch_bench.errors import UserError
from gch_bench.files import read_json
from gch_bench.metrics import SHOWN, averaged, mean_corruption, summarize
from gch_bench.noise.table import FORMER_NAMES, option_defaults
from gch_bench.report.study import Group, Run, Setting
from gch_bench.results.records import CELL_CLEAN, Cell, read_record, record_facts, recorded_cells
from gch_bench.results.runfacts import RunFacts, differences, read_run_facts

STRENGTHS = ("gamma", "beta", "energy", "p", "block_size", "sigma")  # options of the noise that a run's label shows
FREE = ("noise", "seed")  # the parts of a run's identity in which the runs of a setting may differ


class Found(NamedTuple):
    """The runs that could be read, and one line for each folder that could not or is not used."""

    runs: list[Run]
    refused: list[str]


def find_folders(patterns: Sequence[str]) -> list[Path]:
    """The folders that the patterns name, each once: folders as they are, patterns such as `runs/*` by the runs they match.

    Files, folders without run.json and diagnoses that a pattern matches are passed over.

    Raises:
        UserError: there is no pattern, or one matches no run.
    """
    if not patterns:
        raise UserError("runs must be a list of run folders, got []; pass 'runs=[FOLDER,FOLDER]' or 'runs=[runs/*]'")
    folders: list[Path] = []
    for pattern in patterns:
        text = str(Path(pattern).expanduser())
        if not glob.has_magic(text) or Path(text).exists():
            folders.append(Path(text))
            continue
        matched = [Path(each) for each in sorted(glob.glob(text, recursive=True))]
        runs = [each for each in matched if (each / "run.json").is_file() and not _is_diagnosis(each)]
        if not runs:
            deeper = [path.parent for each in matched for path in sorted(each.glob("*/**/run.json"))]
            hint = f"; there is one at {deeper[0]}" if deeper else ""
            raise UserError(f"runs must name run folders, got {pattern}, which matches none (they hold run.json){hint}")
        folders += runs
    return list({folder.resolve(): folder for folder in folders}.values())


def _is_diagnosis(folder: Path) -> bool:
    try:
        return read_json(folder / "run.json").get("kind") in ("diagnosis", "compatibility")
    except UserError:  # reported when the run is read
        return False


def read_run(folder: Path) -> Run:
    """Read a finished run from its folder.

    Raises:
        UserError: if the folder holds no run or an unfinished one, or a file cannot be read.
    """
    facts = read_run_facts(folder)
    if not facts.finished or facts.weights is None:
        raise UserError(f"{folder} holds an unfinished run: finish it with the command it was started with, {facts.command}")
    damaged = [path.name for path in sorted((folder / "records").glob("*-[0-5].parquet")) if _damaged(folder, path)]
    if damaged:
        raise UserError(
            f"{folder} has damaged records ({', '.join(damaged)}): delete them and run its command again, {facts.command}"
        )
    found = recorded_cells(folder, {"protocol": facts.protocol_id, "weights": facts.weights})
    if CELL_CLEAN not in found:
        raise UserError(f"{folder} has no clean record: run its command again, {facts.command}")
    images = {cell: (record_facts(folder, cell) or {}).get("images") for cell in found}
    return Run(folder, facts, {cell: read_record(folder, cell) for cell in found}, images)


def _damaged(folder: Path, path: Path) -> bool:
    name, severity = path.stem.rsplit("-", 1)
    return record_facts(folder, Cell(name, int(severity))) is None


def read_runs(folders: Sequence[Path]) -> Found:
    """All runs that can be read, in the order of the folders.

    Raises:
        UserError: none can be read; the message is that of the first.
    """

    def read(folder: Path) -> Run | str:
        try:
            return read_run(folder)
        except UserError as error:
            return str(error)

    with ThreadPoolExecutor(usable_cores()) as pool:
        results = list(pool.map(read, folders))
    runs = [each for each in results if isinstance(each, Run)]
    refused = [each for each in results if isinstance(each, str)]
    if not runs:
        raise UserError(refused[0])
    return Found(runs, refused)


def settings_of(runs: Sequence[Run], baseline: str) -> tuple[list[Setting], list[str]]:
    """Sort the runs into settings and groups.

    Args:
        baseline: name or label of the mechanism from which differences are taken.

    Returns:
        The settings, those with most runs first, and one line for each run or difference that is left out.

    Raises:
        UserError: `baseline` names several groups of a setting, or is neither a mechanism of the runs nor "none".
    """
    by_key: dict[str, list[Run]] = {}
    for run in runs:
        by_key.setdefault(json.dumps(setting_key(run.facts), sort_keys=True), []).append(run)
    members = sorted(by_key.values(), key=lambda own: -len(own))
    refused: list[str] = []
    settings = []
    for name, own in zip(_names(members), members, strict=True):
        kept = _same_images(_same_noise(own, refused), refused)
        if not kept:
            continue
        groups = _groups(kept, refused)
        base = _baseline(groups, baseline)
        ordered = _ordered(groups, base)
        cells = _cells(kept)
        refused += _missing(kept, cells)
        settings.append(Setting(name, ordered, base, cells))
    labels = dict.fromkeys(group.mechanism for setting in settings for group in setting.groups)
    if baseline != "none" and not any(setting.baseline for setting in settings):
        raise UserError(f"baseline must be a mechanism of the runs, got {baseline}: choose one of {'; '.join(labels)}")
    refused += _refused_differences(settings, baseline)
    return settings, refused


def setting_key(facts: RunFacts) -> dict[str, Any]:
    """Everything that the runs of a setting share, as plain values."""
    protocol = {name: value for name, value in facts.protocol.items() if name != "noise_at_test"}
    # The draws of noise at test time are left out, as that noise is; those of generated images stay: "philox, cpu" -> "philox".
    protocol["draws"] = protocol.get("draws", "").partition(",")[0] if protocol.get("source") == "generated" else None
    key = {"protocol": protocol, **_without_noise(facts.identity)}
    if facts.origin is not None:  # an evaluation of a run's weights: what that run shares replaces the digest of its weights
        key["trained"] = _without_noise(facts.origin)
        key["inputs"] = {**key.get("inputs", {}), "weights": None}
        key["model"] = {name: value for name, value in key.get("model", {}).items() if name != "checkpoint"}
    return key


def _without_noise(identity: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in identity.items() if name not in FREE}


def _names(members: Sequence[Sequence[Run]]) -> list[str]:
    """A name for each setting: data and network, and, where these are the same, the first values in which settings differ.

    What cannot be read at a glance stays out of a name: digests, and how the networks were trained where another
    setting is itself a training.
    """
    keys = [setting_key(own[0].facts) for own in members]
    short = [f"{own[0].facts.protocol['data']} {own[0].facts.config['model']['name']}" for own in members]
    names = []
    for key, own, name in zip(keys, members, short, strict=True):
        alike = [other for other, its in zip(keys, short, strict=True) if its == name and other is not key]
        fields = list(dict.fromkeys(field for other in alike for field in differences(key, other)))
        hidden = ["inputs.", "protocol.data_fingerprint"]  # inputs: digests, and what the protocol has, too
        if any(("trained" in key) != ("trained" in other) for other in alike):
            hidden.append("trained.")
        words = [f"{field}={fact(own[0], field)}" for field in fields if not field.startswith(tuple(hidden))]
        names.append(" ".join([name, *words[:3]]))
    return [f"{name} ({number})" if names.count(name) > 1 else name for number, name in enumerate(names, 1)]


def fact(run: Run, name: str) -> Any:
    """The value of a dotted name in a run's configuration, which also has the defaults, else in what it shares; or None."""
    for plain in (run.facts.config, setting_key(run.facts)):
        value: Any = plain
        for part in name.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        if value is not None:
            return value
    return None


def _same_noise(runs: Sequence[Run], refused: list[str]) -> list[Run]:
    """The runs without the evaluations of a run's weights under another noise or seed than they were trained with, which would
    be taken for another mechanism; a line in `refused` for each."""
    kept = []
    for run in runs:
        trained = run.facts.origin
        at_test = ("draws", "eval", "mc_samples")
        noises = [
            {key: value for key, value in identity.get("noise", {}).items() if key not in at_test}
            for identity in (run.facts.identity, trained or run.facts.identity)
        ]
        seeds = [identity.get("seed", 0) for identity in (run.facts.identity, trained or run.facts.identity)]
        if noises[0] == noises[1] and seeds[0] == seeds[1]:
            kept.append(run)
        else:
            own, theirs = ((noise.get("name"), seed) for noise, seed in zip(noises, seeds, strict=True))
            refused.append(
                f"{run.folder} is left out: it evaluates weights of a run with noise {theirs[0]} and seed {theirs[1]} as noise"
                f" {own[0]} and seed {own[1]}; evaluate them with checkpoints=[RUN]"
            )
    return kept


def _same_images(runs: Sequence[Run], refused: list[str]) -> list[Run]:
    """The runs whose images, labels and stored images equal those of most runs; a line in `refused` for each other one."""

    def signature(run: Run) -> tuple[Any, ...]:
        clean = run.cells[CELL_CLEAN]
        labels = () if run.facts.data.get("several_labels") else clean["label"].to_numpy().tobytes()
        return clean["id"].to_numpy().tobytes(), labels

    if not runs:
        return []
    common = Counter(map(signature, runs)).most_common(1)[0][0]
    cells = sorted({cell for run in runs for cell in run.cells})
    stored = {cell: Counter(run.images.get(cell) for run in runs if cell in run.cells).most_common(1)[0][0] for cell in cells}
    kept = []
    for run in runs:
        reason = "" if signature(run) == common else f"its {len(run.cells[CELL_CLEAN])} images or labels are others"
        ids_N = np.frombuffer(common[0], dtype=np.int64)
        for cell, table in run.cells.items():
            if not reason and not np.array_equal(table["id"].to_numpy(), ids_N):
                reason = f"the images of {cell.corruption}-{cell.severity} are not those of its clean cell"
            if not reason and stored[cell] != run.images.get(cell):
                reason = f"its stored images of {cell.corruption}-{cell.severity} are others"
        if reason:
            refused.append(
                f"{run.folder} is left out: {reason}, so it cannot be compared image by image with the runs of its setting"
            )
        else:
            kept.append(run)
    return kept


def _groups(runs: Sequence[Run], refused: list[str]) -> list[Group]:
    """The runs by mechanism and seed, in the order of the runs. A second run of the same seed is left out, with a line."""
    found = [complete_noise(run.facts.config["noise"]) for run in runs]
    noises = list({json.dumps(noise, sort_keys=True): noise for noise in found}.values())
    groups = [Group(label, noise, {}) for label, noise in zip(_labels(noises), noises, strict=True)]
    for run, noise in zip(runs, found, strict=True):
        group = next(each for each in groups if each.noise == noise)
        seed = int(run.facts.config["seed"])
        if seed in group.runs:
            other = group.runs[seed]
            same = ", with the same weights" if other.facts.weights == run.facts.weights else ""
            refused.append(
                f"{run.folder} is left out: {other.folder} is a run of {group.mechanism} with seed {seed}, too{same}; name only"
                " one of them in runs="
            )
        else:
            group.runs[seed] = run
    return groups


def complete_noise(section: Mapping[str, Any]) -> dict[str, Any]:
    """The section `noise` of a configuration, with the defaults of what it leaves open: boundary=null is outside.
    Strengths stay open, because energy may take beta's place."""
    noise = {name: value for name, value in section.items() if value is not None}
    defaults = option_defaults(noise.get("law"), noise.get("kernel", ""), noise.get("injection"))
    if noise.get("law") in FORMER_NAMES:
        noise["law"] = FORMER_NAMES[noise["law"]]
    return noise | {name: value for name, value in defaults.items() if name not in STRENGTHS and noise.get(name) is None}


def _labels(noises: Sequence[Mapping[str, Any]]) -> list[str]:
    """A label for each mechanism; where two would be the same, with the options in which they differ."""
    short = [mechanism_label(noise) for noise in noises]
    labels = []
    for label, noise in zip(short, noises, strict=True):
        alike = [other for other, its in zip(noises, short, strict=True) if its == label and other is not noise]
        fields = dict.fromkeys(name for other in alike for name in differences(noise, other))
        labels.append(" ".join([label, *(f"{name}={noise.get(name)}" for name in fields)]))
    return labels


def mechanism_label(noise: Mapping[str, Any]) -> str:
    """Name, strength, stages and noisy passes at test time, from the section `noise` of a configuration."""
    if not noise.get("law"):
        return str(noise["name"])
    strength = [f"{name}={noise[name]:g}" for name in STRENGTHS if noise.get(name) is not None]
    at_test = [f"MC {noise['mc_samples']}"] if noise.get("eval") else []
    return " ".join([noise["name"], *strength, "+".join(noise["stages"]), *at_test])


def _baseline(groups: Sequence[Group], baseline: str) -> Group | None:
    matching = [group for group in groups if baseline in (group.mechanism, group.noise["name"])]
    exact = [group for group in matching if group.mechanism == baseline]
    if len(matching) > 1 and not exact:
        names = "', '".join(group.mechanism for group in matching)
        raise UserError(f"baseline must name one mechanism, got {baseline}, which is '{names}': give one of these labels")
    return next(iter(exact or matching), None)


def _cells(runs: Sequence[Run]) -> list[Cell]:
    """The corrupted cells that the mean is over: those of most runs, of corruptions that are averaged (metrics.averaged) at the
    severities that all of these corruptions have."""
    sets = Counter(tuple(averaged_cells(run.cells)) for run in runs)
    most = max(sets, key=lambda cells: (bool(cells), sets[cells], len(cells)))
    return list(most)


def averaged_cells(cells: Mapping[Cell, Any]) -> list[Cell]:
    names = averaged(sorted(cell.corruption for cell in cells))
    found = {cell for cell in cells if cell.corruption in names}
    levels = [{cell.severity for cell in found if cell.corruption == name} for name in {cell.corruption for cell in found}]
    common = set.intersection(*levels) if levels else set()
    return sorted(cell for cell in found if cell.severity in common)


def _ordered(groups: Sequence[Group], baseline: Group | None) -> list[Group]:
    """The baseline first, then by mechanism in the order of the runs, stages and strength."""
    names = list(dict.fromkeys(group.noise["name"] for group in groups))

    def key(group: Group) -> tuple[bool, int, str, list[float], str]:
        noise = group.noise
        strength = [float(noise[name]) for name in STRENGTHS if noise.get(name) is not None]
        return group is not baseline, names.index(noise["name"]), "+".join(noise["stages"]), strength, group.mechanism

    return sorted(groups, key=key)


def _missing(runs: Sequence[Run], cells: Sequence[Cell]) -> list[str]:
    lines = []
    for run in runs:
        lacking = [f"{cell.corruption}-{cell.severity}" for cell in cells if cell not in run.cells]
        if lacking:
            shown = ", ".join(lacking[:4]) + (", ..." if len(lacking) > 4 else "")
            lines.append(
                f"{run.folder} has no record of {len(lacking)} of the {len(cells)} corrupted cells ({shown}): it is left out of"
                f" every mean and difference that needs them; evaluate them with its command, {run.facts.command}"
            )
    return lines


def _refused_differences(settings: Sequence[Setting], baseline: str) -> list[str]:
    """A line for each setting without the baseline or without one of its seeds, which says why no difference is computed."""
    lines = []
    for setting in settings:
        base = setting.baseline
        if base is None:
            other = next((each for each in settings if each.baseline is not None), None)
            why = f"no run has noise={baseline}"
            if other is not None and other.baseline is not None:
                own, theirs = (next(iter(group.runs.values())) for group in (setting.groups[0], other.baseline))
                fields = differences(setting_key(own.facts), setting_key(theirs.facts))
                named = "; ".join(f"{name}: {fact(own, name)} | {fact(theirs, name)}" for name in fields[:6])
                why += f", and that of {other.name} differs in more than noise ({named})"
            lines.append(f"{setting.name}: no difference from {baseline} is computed, because {why}")
            continue
        for group in setting.groups:
            unpaired = sorted(set(group.runs) - set(base.runs))
            if unpaired:
                lines.append(
                    f"{setting.name}: {group.mechanism} with seed {', '.join(map(str, unpaired))} is left out of the"
                    f" differences, because {base.mechanism} has no run with that seed"
                )
    return lines


def parallel_map(function: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
    """`function` of each item, in threads: NumPy and pyarrow release the interpreter for most of their work."""
    with ThreadPoolExecutor(usable_cores()) as pool:
        return list(pool.map(function, items))


def shared_cells(runs: Sequence[Run]) -> list[Cell]:
    """The corrupted cells that all of these runs have and that the mean over corruptions is of, see `averaged_cells`."""
    common = set.intersection(*(set(run.cells) for run in runs))
    return averaged_cells(dict.fromkeys(common))


def means(run: Run, cells: Sequence[Cell]) -> dict[str, float]:
    """Metric -> value of the clean cell, if `cells` has it; else averaged over `cells` by `mean_corruption`."""
    classes = run.facts.data["num_classes"]
    rows = {cell: summarize(run.cells[cell], classes) for cell in cells}
    return rows[CELL_CLEAN] if CELL_CLEAN in rows else mean_corruption(rows, SHOWN)
