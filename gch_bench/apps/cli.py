"""What the entry points share: a user's mistake is one line on stderr and exit code 2, Ctrl-C exits 130."""

import contextlib
import os
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.errors import CompactHydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from gch_bench.config.diagnosis import DiagnoseConfig
from gch_bench.config.parse import defaults, parse
from gch_bench.config.run import Config
from gch_bench.errors import UserError

MORE = {  # what a group takes besides its choices
    "model": "; any other timm backbone: model.name=NAME",
    "corruptions": "; some corruptions: corruptions=[fog,snow]",
}


def register_defaults() -> None:
    """Give Hydra the dataclasses' defaults, as the configs `defaults_run` and `defaults_diagnosis` that YAML files build on."""
    store = ConfigStore.instance()
    store.store(name="defaults_run", node=defaults(Config))
    store.store(name="defaults_diagnosis", node=defaults(DiagnoseConfig))


def run_config(config: DictConfig, train: bool = True) -> Config:
    """The composed Hydra config as a checked Config, without a recipe unless `train`. Beyond this nothing sees Hydra."""
    values: Any = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    return parse(values if train else {**values, "recipe": None}, Config)


def diagnosis_config(config: DictConfig) -> DiagnoseConfig:
    """The same for diagnose.py."""
    values: Any = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    if isinstance(values["chain"], str):
        values["chain"] = [values["chain"]]
    return parse(values, DiagnoseConfig)


@contextlib.contextmanager
def reported() -> Iterator[None]:
    """Exit with one line and code 2 after a user's mistake, with 130 after Ctrl-C; other exceptions are bugs and pass."""
    try:
        yield
    except KeyboardInterrupt:
        sys.exit(130)
    except UserError as error:
        stop(str(error))
    except (CompactHydraException, OmegaConfBaseException) as error:
        stop(hydra_message(error))


def entry(main: Callable[[], Any]) -> None:
    """Run a hydra.main task; errors of composing its config are reported like its own."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra hands its errors to us instead of printing them
    with reported():
        sys.argv[1:] = with_recipe([argument(text) for text in sys.argv[1:]])
        register_defaults()
        main()


def argument(text: str) -> str:
    """A command-line argument as Hydra takes it. To Hydra a list given to a group is several choices merged, the last on top:
    `corruptions=[fog,snow]` becomes `corruptions.names=[fog,snow]`, and for another group it is refused."""
    group = re.match(r"(model|noise|data|corruptions|recipe|logger)=\[", text)
    if not group:
        return text
    if group[1] == "corruptions":
        return text.replace("corruptions=", "corruptions.names=", 1)
    raise UserError(f"{group[1]} must be one choice, got {text}; for one run each: -m {group[1]}=CHOICE,CHOICE")


def with_recipe(arguments: list[str]) -> list[str]:
    """The arguments with `recipe=finetune` where data=folder gets given weights and no recipe is chosen.

    The YAML of data=folder chooses a recipe that trains from scratch; Hydra's defaults lists cannot look at other fields."""
    values = {name.lstrip("+"): value for name, _, value in (text.partition("=") for text in arguments)}
    pretrained = values.get("model.pretrained", "false").lower() == "true"
    given = pretrained or values.get("model.checkpoint", "null") not in ("null", "")
    return [*arguments, "recipe=finetune"] if values.get("data") == "folder" and given and "recipe" not in values else arguments


def stop(message: str) -> None:
    print(f"error: {message}", file=sys.stderr, flush=True)
    sys.exit(2)


def hydra_message(error: Exception) -> str:
    """Hydra's many-line message as one line: what was asked for, and the choices."""
    text = str(error)
    if isinstance(error, MissingConfigException):
        choice = re.search(r"Could not find '([^']+)/([^'/]+)'", text)
        options = re.search(r"Available options in '[^']+':\n((?:\t.*\n?)+)", text)
        if choice and options:
            more = MORE.get(choice[1], "")
            return f"unknown {choice[1]} {choice[2]!r}: choose one of {', '.join(options[1].split())}{more}"
    field = re.search(r"Could not override '([^'@]+)'\.", text)
    if field:
        return f"no field {field[1]!r} in this configuration: --help lists the fields of the groups chosen"
    if error.__cause__ is not None and str(error.__cause__) not in text:
        text = f"{text} {error.__cause__}"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return " ".join(line for line in lines if not line.startswith(("full_key:", "object_type=", "reference_type=")))
