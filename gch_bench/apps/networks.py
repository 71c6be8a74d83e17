"""The networks of one evaluation: turns `checkpoints=[...]` into one configuration for each network."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from gch_bench.apps.patterns import is_run, is_weights, matches, resolved
from gch_bench.config.parse import parse
from gch_bench.config.run import Config, ModelConfig, NoiseConfig
from gch_bench.errors import FieldError, UserError
from gch_bench.files import slug
from gch_bench.model.packaged import packaged_name
from gch_bench.results.records import LAST_CHECKPOINT
from gch_bench.results.runfacts import RunFacts, read_run_facts

TIMM = "timm:"


def configurations(config: Config) -> list[Config]:
    """One configuration per network of `config.checkpoints`, with its entry alone; `[config]` where that is empty.

    An entry is one of:
    - the folder of a finished run: its last checkpoint, with the network, noise and seed of its run.json;
    - a checkpoint file inside a run folder's checkpoints/: the same for this file;
    - any other file of weights: for the network that `model` chooses;
    - a pattern such as runs/x/*: all run folders and files of weights that match, in natural order of their names;
    - timm:NAME: timm's network of this name with its trained weights. Where model/packaged.py knows the name, it is the
      network whose weights an installed package has.
    Whether the noise acts at test time, and in how many passes, is taken from `config` for all of them.

    Raises:
        UserError: an entry that is none of these, a pattern that matches nothing, or two entries that are the same.
    """
    if not config.checkpoints:
        return [config]
    kind = "run folder or file of weights"
    found = matches("checkpoints", config.checkpoints, kind, lambda path: is_run(path) or is_weights(path))
    config = replace(config, checkpoints=found)
    first: dict[str, str] = {}
    for entry in config.checkpoints:
        place = entry if entry.startswith(TIMM) else resolved(entry)
        if place in first:
            again = "twice" if first[place] == entry else f"and {entry}, which are the same"
            raise UserError(f"checkpoints must name each network once, got {first[place]} {again}")
        first[place] = entry
    if config.model.checkpoint or config.model.pretrained:
        raise UserError("checkpoints goes with neither model.checkpoint nor model.pretrained: write timm:NAME into the list")
    noise = config.noise if config.noise.law else replace(config.noise, eval=False, mc_samples=1)
    bases = [replace(config, checkpoints=[entry], noise=noise) for entry in config.checkpoints]
    made = [_of_entry(base, base.checkpoints[0], config.noise) for base in bases]
    if config.output is None:
        return made
    names = _names(config.checkpoints)
    return [replace(each, output=str(Path(config.output) / name)) for each, name in zip(made, names, strict=True)]


def _names(entries: list[str]) -> list[str]:
    """The names of the networks' folders below `output`: timm-NAME, or those of run folders or files.

    Names that are equal get the parent folders' names in front, as many as it takes until they differ.
    """
    parts = [(entry,) if entry.startswith(TIMM) else _place(entry).parts[1:] for entry in entries]
    names = [slug(each[-1]) for each in parts]
    for length in range(2, max(map(len, parts)) + 1):
        longer = [slug("-".join(each[-length:])) for each in parts]
        names = [long if names.count(name) > 1 else name for name, long in zip(names, longer, strict=True)]
    return names


def _place(entry: str) -> Path:
    """The run folder that an entry lies in, or the entry's own path."""
    path = Path(entry).expanduser().resolve()
    return run_of(str(path)) or path


def run_of(checkpoint: str) -> Path | None:
    """The run folder that a checkpoint file lies in, RUN/checkpoints/FILE; None if it lies in none."""
    folder = Path(checkpoint).parent
    return folder.parent if folder.name == "checkpoints" and (folder.parent / "run.json").is_file() else None


def origin(config: Config) -> RunFacts | None:
    """run.json of the run that made the network's weights; None if they lie in no run folder."""
    folder = run_of(config.model.checkpoint) if config.model.checkpoint else None
    return read_run_facts(folder) if folder else None


def frozen_stage(config: Config) -> str | None:
    """The stage up to which the network's weights were frozen when it was trained, as far as its run folder says so."""
    facts = origin(config)
    stage: str | None = ((facts.config if facts else {}).get("recipe") or {}).get("freeze")
    return stage


def origin_warnings(config: Config, inputs: Mapping[str, Any]) -> list[str]:
    """What the reader should know where a network is evaluated otherwise than in its own run.

    Args:
        inputs: size, geometry and digest of the weights as in this evaluation's identity, see apps.job.run_identity.
    """
    facts, file = origin(config), config.model.checkpoint
    if facts is None or file is None:
        return []
    warnings = []
    theirs = {**inputs, **facts.identity.get("inputs", {})}
    if any(theirs[name] != inputs[name] for name in ("size", "geometry")):
        warnings.append(
            f"{file} was trained on images of {theirs['size']} pixels ({theirs['geometry']}) and is evaluated on"
            f" {inputs['size']} pixels ({inputs['geometry']}): data.size and data.preprocess decide that"
        )
    if facts.finished and facts.weights != inputs["weights"] and Path(file).name == LAST_CHECKPOINT.name:
        warnings.append(
            f"{file} holds other weights ({inputs['weights']}) than its run was evaluated with ({facts.weights}): its"
            " numbers will differ from the run's"
        )
    return warnings


def _of_entry(config: Config, entry: str, at_test: NoiseConfig) -> Config:
    """The configuration of one entry; `at_test` says whether a run's noise acts at test time."""
    if entry.startswith(TIMM):
        return replace(config, model=ModelConfig(name=packaged_name(entry.removeprefix(TIMM)), pretrained=True))
    path = Path(entry).expanduser()
    file = path / LAST_CHECKPOINT if path.is_dir() else path
    if not file.is_file():
        lacks = f"a folder without {file.relative_to(path)}" if path.is_dir() else "no such file or folder"
        raise FieldError("checkpoints", f"must name run folders, files of weights or timm:NAME, got {entry} ({lacks})")
    folder = run_of(str(file))
    if folder is None:
        return replace(config, model=replace(config.model, checkpoint=str(file)))
    facts = read_run_facts(folder)
    if path.is_dir() and not facts.finished:
        raise FieldError("checkpoints", f"must name finished runs, got {entry}: finish it with {facts.command}, or name {file}")
    return _of_run(config, facts, file, at_test)


def _of_run(config: Config, facts: RunFacts, checkpoint: Path, at_test: NoiseConfig) -> Config:
    """The configuration that evaluates weights of a run."""
    try:
        model = parse(facts.config["model"], ModelConfig)
        noise = parse(facts.config["noise"], NoiseConfig)
        seed = int(facts.config["seed"])
    except (KeyError, UserError) as error:
        raise FieldError(
            "checkpoints", f"{checkpoint} lies in a run whose run.json does not tell its network: {error}"
        ) from error
    model = replace(model, checkpoint=str(checkpoint), pretrained=False, reset_head=False)
    if noise.law:
        noise = replace(noise, eval=at_test.eval, mc_samples=at_test.mc_samples)
    return replace(config, model=model, noise=noise, seed=seed)
