"""Loggers: where metrics go besides the run folder's own files.

The names of a run's metrics are train/loss, train/top1, train/lr and train/images_per_second; for every KEY of metrics.SHOWN,
such as top1, clean/KEY, shift/<corruption>/<severity>/KEY and shift/mean/KEY, the mean over severities and then corruptions;
and for ImageNet-1k shift/mean/mce and shift/mean/relative_mce.
"""

import contextlib
import csv
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from gch_bench.config.run import LoggerConfig
from gch_bench.errors import UserError
from gch_bench.files import writing


class Logged(Protocol):
    """The configuration that a logger reads and records: a Config or a DiagnoseConfig."""

    @property
    def logger(self) -> LoggerConfig: ...

    def as_dict(self) -> dict[str, Any]: ...


class Logger(Protocol):
    def metrics(self, values: dict[str, float], step: int) -> None: ...

    def artifact(self, folder: Path, kind: str, names: Sequence[str]) -> None: ...

    def pictures(self, paths: Sequence[Path]) -> None: ...

    def close(self) -> None: ...


class NoLogger:
    """logger=none: nothing is logged beyond the run folder's own files."""

    def metrics(self, values: dict[str, float], step: int) -> None:
        pass

    def artifact(self, folder: Path, kind: str, names: Sequence[str]) -> None:
        pass

    def pictures(self, paths: Sequence[Path]) -> None:
        pass

    def close(self) -> None:
        pass


class CsvLogger(NoLogger):
    """logger=csv: metrics.csv in the run folder, with a row for every metric of every logged step.

    A resumed run appends its rows. After a kill it repeats the steps since the last checkpoint, which then have two rows each.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "metrics.csv"

    def metrics(self, values: dict[str, float], step: int) -> None:
        with writing(self.path), open(self.path, "a", newline="") as file:
            rows = csv.writer(file)
            if file.tell() == 0:
                rows.writerow(["step", "name", "value"])
            rows.writerows([step, name, value] for name, value in values.items())


class WandbLogger:
    """logger=wandb: Weights & Biases. The default mode, offline, needs no account or network; `wandb sync` uploads it later."""

    def __init__(self, config: Logged, folder: Path) -> None:
        if config.logger.mode == "offline":  # then wandb must not send crash reports either
            os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        self.wandb = wandb
        try:
            self.run = wandb.init(
                project=config.logger.project,
                entity=config.logger.entity,
                mode=config.logger.mode,  # type: ignore[arg-type]
                name=folder.name,
                dir=str(folder),
                config=config.as_dict(),
                settings=wandb.Settings(console="off", silent=True, x_disable_stats=True, disable_git=True, save_code=False),
            )
        except (wandb.errors.Error, OSError) as error:
            raise UserError(f"wandb could not start ({error}): choose logger=csv or logger=none") from error

    def metrics(self, values: dict[str, float], step: int) -> None:
        self.run.log(values, step=step)

    def artifact(self, folder: Path, kind: str, names: Sequence[str]) -> None:
        artifact = self.wandb.Artifact(re.sub(r"[^\w.-]+", "_", f"{kind}-{folder.name}"), type=kind)
        for path in (folder / name for name in names):
            if path.is_dir():
                with open(os.devnull, "w") as quiet, contextlib.redirect_stderr(quiet):  # wandb prints a line per folder
                    artifact.add_dir(str(path), name=path.name)
            else:
                artifact.add_file(str(path))
        self.run.log_artifact(artifact)

    def pictures(self, paths: Sequence[Path]) -> None:
        self.run.log({path.stem: self.wandb.Image(str(path)) for path in paths})

    def close(self) -> None:
        self.run.finish()


def open_logger(config: Logged, folder: Path, main: bool) -> Logger:
    """The logger that the configuration names on the main process, a NoLogger on all others.

    Raises:
        UserError: wandb cannot start.
    """
    if not main or config.logger.name == "none":
        return NoLogger()
    return CsvLogger(folder) if config.logger.name == "csv" else WandbLogger(config, folder)
