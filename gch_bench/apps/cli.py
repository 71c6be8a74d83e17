"""What the entry points share: reading the Hydra configuration, and ending with one line and an exit code after an error.

A user's mistake prints one line on stderr and exits with code 2; Ctrl-C exits with code 130.
"""

import contextlib
import os
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from hydra.errors import CompactHydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from gch_bench.config.diagnosis import DiagnoseConfig
from gch_bench.config.parse import defaults, parse
from gch_bench.config.report import ReportConfig
from gch_bench.config.run import Config
from gch_bench.errors import UserError

MORE = {  # group -> what else may be written besides its choices; appended to the error that lists the choices
    "model": "; any other timm backbone: model.name=NAME",
    "corruptions": "; some corruptions: corruptions=[fog,snow]",
}


def register_defaults() -> None:
    """Register the dataclasses' defaults with Hydra, as the configs `defaults_run`, `defaults_diagnosis` and `defaults_report`.

    The YAML files of the entry points name them first in their defaults lists.
    """
    store = ConfigStore.instance()
    store.store(name="defaults_run", node=defaults(Config))
    store.store(name="defaults_diagnosis", node=defaults(DiagnoseConfig))
    store.store(name="defaults_report", node=defaults(ReportConfig))


def run_config(config: DictConfig, train: bool = True) -> Config:
    """The composed Hydra config as a checked Config; its recipe is None unless `train`. The code behind this knows no Hydra.

    Raises:
        UserError: see `config.parse.parse`.
    """
    values: Any = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    return parse(values if train else {**values, "recipe": None}, Config)


def diagnosis_config(config: DictConfig) -> DiagnoseConfig:
    """The composed Hydra config of diagnose.py as a checked DiagnoseConfig.

    Raises:
        UserError: see `config.parse.parse`.
    """
    values: Any = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    for name in ("chain", "stages"):
        if isinstance(values[name], str):
            values[name] = [values[name]]
    values["mechanisms"] = [noise_preset(entry) for entry in values["mechanisms"]]
    return parse(values, DiagnoseConfig)


def noise_preset(entry: Any) -> dict[str, Any]:
    """The section `noise` of a preset in configs/noise/.

    Args:
        entry: the preset's name, or a mapping with its name and options that replace its own: {name: gch, gamma: 2}.

    Raises:
        UserError: the entry is neither.
    """
    options = entry if isinstance(entry, dict) else {"name": entry}
    if not isinstance(options.get("name"), str):
        raise UserError(f"noise must be a list of names such as gch, or of {{name: gch, gamma: 2}}, got {entry}")
    composed = hydra.compose("diagnose", overrides=[f"noise={options['name']}"])
    values: Any = OmegaConf.to_container(composed.noise, resolve=True)
    return {**values, **options}


def report_config(config: DictConfig) -> ReportConfig:
    """The composed Hydra config of report.py as a checked ReportConfig.

    Raises:
        UserError: see `config.parse.parse`.
    """
    values: Any = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    if isinstance(values["runs"], str):  # runs=runs/* without brackets
        values["runs"] = [values["runs"]]
    return parse(values, ReportConfig)


@contextlib.contextmanager
def reported() -> Iterator[None]:
    """Within the context a user's mistake exits with one line and code 2, and Ctrl-C with code 130.

    Any other exception is a bug and is raised unchanged, with its traceback.
    """
    try:
        yield
    except KeyboardInterrupt:
        sys.exit(130)
    except UserError as error:
        stop(str(error))
    except (CompactHydraException, OmegaConfBaseException) as error:
        stop(hydra_message(error))


def entry(main: Callable[[], Any], diagnosis: bool = False) -> None:
    """Run `main`, a function decorated with hydra.main. Errors in composing its config are reported like errors of the task.

    Args:
        diagnosis: whether this is diagnose.py, where noise=[gch,dropout] becomes the field `mechanisms`; it trains nothing.
    """
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises its errors instead of printing them
    with reported():
        arguments = [argument(text, diagnosis) for text in sys.argv[1:]]
        sys.argv[1:] = arguments if diagnosis else with_recipe(arguments)
        register_defaults()
        main()


def argument(text: str, noise_list: bool = False) -> str:
    """A command-line argument as Hydra must get it: `corruptions=[fog,snow]` becomes `corruptions.names=[fog,snow]`.

    Hydra itself would read a list for a group as several choices to merge, the last on top. With `noise_list`,
    `noise=[gch,dropout]` becomes `mechanisms=[gch,dropout]`. For the other groups a list raises UserError.
    """
    if text.startswith("="):
        raise UserError(no_pair(text))
    group = re.match(r"(model|noise|data|corruptions|recipe|logger)=\[", text)
    if not group:
        return text
    if group[1] == "corruptions":
        return text.replace("corruptions=", "corruptions.names=", 1)
    if group[1] == "noise" and noise_list:
        return text.replace("noise=", "mechanisms=", 1)
    raise UserError(f"{group[1]} must be one choice, got {text}; for one run each: -m {group[1]}=CHOICE,CHOICE")


def with_recipe(arguments: list[str]) -> list[str]:
    """The arguments, with `recipe=finetune` added where data=folder is trained from given weights and no recipe is chosen.

    configs/data/folder.yaml chooses a recipe that trains from scratch, and Hydra's defaults lists cannot depend on a field.
    """
    values = {name.lstrip("+"): value for name, _, value in (text.partition("=") for text in arguments)}
    pretrained = values.get("model.pretrained", "false").lower() == "true"
    given = pretrained or values.get("model.checkpoint", "null") not in ("null", "")
    return [*arguments, "recipe=finetune"] if values.get("data") == "folder" and given and "recipe" not in values else arguments


def no_pair(text: str) -> str:
    """The message on an argument that is no override."""
    return f"arguments must be NAME=VALUE, got {text!r}"


def stop(message: str) -> None:
    print(f"error: {message}", file=sys.stderr, flush=True)
    sys.exit(2)


def hydra_message(error: Exception) -> str:
    """Hydra's message of many lines as one line that says what was asked for and which choices there are."""
    text = str(error)
    if isinstance(error, MissingConfigException):
        choice = re.search(r"Could not find '([^']+)/([^'/]+)'", text)
        options = re.search(r"Available options in '[^']+':\n((?:\t.*\n?)+)", text)
        if choice and options:
            more = MORE.get(choice[1], "")
            return f"unknown {choice[1]} {choice[2]!r}: choose one of {', '.join(options[1].split())}{more}"
    bare = re.search(r"Error parsing override '([^'=]*)'", text)
    if bare:
        return no_pair(bare[1])
    field = re.search(r"Could not override '([^'@]+)'\.", text)
    if field:
        return f"no field {field[1]!r} in this configuration: --help lists the fields of the groups chosen"
    if error.__cause__ is not None and str(error.__cause__) not in text:
        text = f"{text} {error.__cause__}"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return " ".join(line for line in lines if not line.startswith(("full_key:", "object_type=", "reference_type=")))
