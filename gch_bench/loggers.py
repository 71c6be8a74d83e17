"""Loggers: where metrics go besides the run folder's own files.

The names of a run's metrics are train/loss, train/top1, train/lr and train/images_per_second; for every KEY of metrics.SHOWN,
such as top1, clean/KEY, shift/<corruption>/<severity>/KEY and shift/mean/KEY, the mean over severities and then corruptions;
and for ImageNet-1k shift/mean/mce and shift/mean/relative_mce.
"""

import contextlib
import csv
import os
import re
import secrets
import shutil
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, Protocol

import pandas as pd

from gch_bench.config.run import LoggerConfig
from gch_bench.errors import UserError
from gch_bench.files import slug, write_atomic, writing


class Logged(Protocol):
    """The configuration that a logger reads and records: a Config or a DiagnoseConfig."""

    @property
    def logger(self) -> LoggerConfig: ...

    def as_dict(self) -> dict[str, Any]: ...


class Logger(Protocol):
    def metrics(self, values: dict[str, float], step: int) -> None: ...

    def artifact(self, folder: Path, kind: str, names: Sequence[str]) -> None: ...

    def pictures(self, paths: Sequence[Path]) -> None: ...

    def tables(self, tables: Mapping[str, pd.DataFrame]) -> None: ...

    def close(self) -> None: ...


class NoLogger:
    """logger=none: nothing is logged beyond the run folder's own files."""

    def metrics(self, values: dict[str, float], step: int) -> None:
        pass

    def artifact(self, folder: Path, kind: str, names: Sequence[str]) -> None:
        pass

    def pictures(self, paths: Sequence[Path]) -> None:
        pass

    def tables(self, tables: Mapping[str, pd.DataFrame]) -> None:
        pass

    def close(self) -> None:
        pass


class CsvLogger(NoLogger):
    """logger=csv: metrics.csv in the run folder, with one row for every metric of every logged step.

    A run that is continued appends its rows. The steps that it takes again since its last checkpoint are not logged again. A
    result that has changed, because more corruptions were evaluated, replaces the old row.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "metrics.csv"
        self.logged: dict[tuple[int, str], float] = {}
        with writing(self.path):
            if self.path.exists():
                *lines, cut = self.path.read_text().split("\n")
                if cut:  # half a row, of a process that was killed
                    write_atomic(self.path, lambda file: file.write("".join(f"{line}\n" for line in lines).encode()))
                try:
                    self.logged = {(int(step), name): float(value) for step, name, value in list(csv.reader(lines))[1:]}
                except ValueError as error:
                    raise UserError(f"{self.path} is damaged ({error}): move it away, and a new one begins") from error

    def metrics(self, values: dict[str, float], step: int) -> None:
        self.log_new(values, step)

    def log_new(self, values: dict[str, float], step: int) -> dict[str, float]:
        """Log what is not logged yet, and return it."""
        changed = {
            name: value
            for name, value in values.items()
            if (before := self.logged.get((step, name))) is not None and before != value and not name.startswith("train/")
        }
        new = {name: value for name, value in values.items() if (step, name) not in self.logged}
        self.logged |= {(step, name): float(value) for name, value in (new | changed).items()}
        rows = [(step, name, value) for name, value in new.items()]
        with writing(self.path):
            if changed or not self.path.exists():
                text = "".join(f"{at},{name},{value}\n" for (at, name), value in self.logged.items())
                write_atomic(self.path, lambda file: file.write(f"step,name,value\n{text}".encode()))
            elif rows:
                with open(self.path, "a", newline="") as file:
                    csv.writer(file, lineterminator="\n").writerows(rows)
        return new | changed


class WandbLogger:
    """logger=wandb: Weights & Biases. The default mode, offline, needs no account or network; `wandb sync` uploads it later.

    A run folder has one wandb run, whose id lies in wandb/id.txt, however often it is continued. wandb loses what it has not
    written yet when the process is killed, and an offline run cannot be continued. Therefore metrics.csv is kept, too, and an
    offline session begins with everything that is logged there, and replaces the sessions before it.
    """

    def __init__(self, config: Logged, folder: Path) -> None:
        if config.logger.mode == "offline":  # then wandb must not send crash reports either
            os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        self.wandb = wandb
        self.csv = CsvLogger(folder)
        place = folder / "wandb" / "id.txt"
        with writing(place):
            if not place.exists():
                write_atomic(place, lambda file: file.write(secrets.token_hex(4).encode()))
            name = place.read_text().strip()
        try:
            self.run = wandb.init(
                project=config.logger.project,
                entity=config.logger.entity,
                mode=config.logger.mode,  # type: ignore[arg-type]
                name=folder.name,
                id=name,
                resume="allow",
                dir=str(folder),
                config=config.as_dict(),
                settings=wandb.Settings(console="off", silent=True, x_disable_stats=True, disable_git=True, save_code=False),
            )
        except (wandb.errors.Error, OSError) as error:
            raise UserError(f"wandb could not start ({error}): choose logger=csv or logger=none") from error
        if config.logger.mode == "offline":
            for step, each in groupby(sorted(self.csv.logged.items()), key=lambda item: item[0][0]):
                self.run.log({name: value for (_, name), value in each}, step=step)
            current = Path(self.run.dir).parent.resolve()
            for earlier in (folder / "wandb").glob(f"offline-run-*-{name}"):
                if earlier.resolve() != current:
                    shutil.rmtree(earlier, ignore_errors=True)

    def metrics(self, values: dict[str, float], step: int) -> None:
        if new := self.csv.log_new(values, step):
            self.run.log(new, step=max(step, self.run.step))  # a run that goes on online takes no step before its last one

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

    def tables(self, tables: Mapping[str, pd.DataFrame]) -> None:
        """Log each table as a wandb.Table under its name. wandb would silently drop all rows of a logged table beyond its first
        10,000, so a longer one becomes an artifact of kind `table`, which holds 200,000.

        Raises:
            UserError: a table has more rows than that.
        """
        for name, frame in tables.items():
            table = self.wandb.Table(dataframe=frame.astype(object).where(frame.notna(), None))
            if len(frame) > table.MAX_ARTIFACT_ROWS:
                raise UserError(
                    f"wandb takes {table.MAX_ARTIFACT_ROWS} rows a table, {name} has {len(frame)}: report on fewer runs"
                )
            if len(frame) > table.MAX_ROWS:
                artifact = self.wandb.Artifact(f"{slug(name)}-{self.run.id}", type="table")
                artifact.add(table, name)
                self.run.log_artifact(artifact)
            else:
                self.run.log({name: table})

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
