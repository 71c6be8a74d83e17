"""What the jobs of diagnose.py share: how they run, and the folder of a diagnosis: what it may hold, and how a new result takes
the place of an earlier one, whole or not at all."""

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch

from gch_bench import distributed, files
from gch_bench.config.diagnosis import DiagnoseConfig
from gch_bench.errors import UserError
from gch_bench.memory import keep_freed_memory
from gch_bench.results.runfacts import differences
from gch_bench.threads import torch_threads


class Layout(NamedTuple):
    """What the folder of one kind of diagnosis holds."""

    kind: str  # as run.json names it
    files: tuple[str, ...]  # run.json first: a folder that has it is complete
    folders: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        return (*self.files, *self.folders)


def check_folder(folder: Path, layout: Layout, options: Mapping[str, Any]) -> None:
    """Raise UserError if `folder` holds anything but the same diagnosis, as far as its options tell.

    `check_identity` compares the weights after the measuring.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"output must be a folder, got the file {folder}: choose another output=")
    if (folder / "run.json").exists():
        facts = files.read_json(folder / "run.json")
        if facts.get("kind") != layout.kind:
            raise UserError(f"{folder} already holds something else than a {layout.kind}: choose another output=")
        if differing := differences(facts.get("options", {}), json.loads(json.dumps(options))):
            raise UserError(
                f"{folder} holds another {layout.kind} (it differs in {', '.join(differing)}): choose another output="
            )
    elif folder.is_dir():
        foreign = sorted(
            path.name for path in folder.iterdir() if path.name not in (*layout.names, "wandb") and path.suffix != ".tmp"
        )
        if foreign:
            raise UserError(f"{folder} already holds something else ({foreign[0]}): choose another output=")


def check_identity(folder: Path, layout: Layout, identity: str) -> None:
    """Raise UserError if `folder` holds a diagnosis of other weights."""
    if (folder / "run.json").exists() and files.read_json(folder / "run.json").get("identity") != identity:
        raise UserError(f"{folder} holds a {layout.kind} of other weights or chains: choose another output=")


def move(scratch: Path, folder: Path, layout: Layout) -> list[str]:
    """Replace an earlier diagnosis in `folder` by the files in `scratch`; returns their names.

    run.json is removed first and put in place last, so that a folder which has it is complete.
    """
    with files.writing(folder):
        folder.mkdir(exist_ok=True)
        for name in layout.files:
            (folder / name).unlink(missing_ok=True)
        for name in layout.folders:
            if (folder / name).is_dir():
                shutil.rmtree(folder / name)
        written = [name for name in reversed(layout.names) if (scratch / name).exists()]
        for name in written:
            os.replace(scratch / name, folder / name)
    return written


def as_job(config: DiagnoseConfig, run: Callable[[DiagnoseConfig, torch.device], None]) -> None:
    """Call `run` with the configuration and its device, with the memory and the threads that it asks for, in one process."""
    keep_freed_memory(config.memory)
    with distributed.group(config.device) as world, torch_threads(config.threads):
        if world.main:
            with _obeying_sigterm():
                run(config, world.device)


@contextmanager
def _obeying_sigterm() -> Iterator[None]:
    """Inside, SIGTERM, which schedulers send, ends the job with exit code 143; like Ctrl-C it leaves nothing behind."""

    def leave(number: int, frame: Any) -> None:
        print("stopped by SIGTERM", file=sys.stderr, flush=True)
        sys.exit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
