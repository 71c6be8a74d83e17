"""Runs train.py again and again, each time in a new process that is killed at some moment, until it has finished.

It is a program of its own: it imports everything once and forks a process per attempt, in which the real entry point runs. Its
arguments: a seed, the number of kills, and the arguments of train.py. Its output: a line per attempt that says at what moment
the process was killed, `ended` where the moment did not come, after which a new run begins, or `end` and its exit code. What
train.py prints goes to log.txt beside the run folder.
"""

import importlib
import os
import random
import runpy
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from conftest import REPOSITORY

for module in ("gch_bench.apps.run", "tinynet"):
    importlib.import_module(module)

EVALUATION = {"evaluation", "shard", "record"}  # kinds of moments that lie in the evaluation for certain
Moment = Callable[[int], bool]  # of a process id: whether the moment has come


def attempt(arguments: list[str], log: Path) -> int:
    """Start train.py in a new process: its id."""
    child = os.fork()
    if child:
        return child
    code: object = 1
    try:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.argv = [str(REPOSITORY / "train.py"), *arguments]
        runpy.run_path(sys.argv[0], run_name="__main__")
        code = 0
    except SystemExit as ended:
        code = ended.code
    finally:
        os._exit(code if isinstance(code, int) else 1)


def after(seconds: float) -> Moment:
    deadline = time.monotonic() + seconds
    return lambda child: time.monotonic() > deadline


def while_writing(path: Path) -> Moment:
    """While the process writes the file, or any file in the folder `path`: its temporary file is there."""

    def now(child: int) -> bool:
        folder, name = (path, "") if path.is_dir() else (path.parent, path.name)
        try:
            return any(entry.startswith(f".{name}") and entry.endswith(f".{child}.tmp") for entry in os.listdir(folder))
        except FileNotFoundError:
            return False

    return now


def written(path: Path) -> float:
    return path.stat().st_mtime if path.exists() else 0.0


def in_training(last: Path, wait: float, then: Moment = lambda child: True) -> Moment:
    """Once this process has written a checkpoint, `wait` seconds have passed since, and `then` comes."""
    before, since = written(last), list[float]()

    def now(child: int) -> bool:
        if not since and written(last) != before:
            since.append(time.monotonic())
        return bool(since) and time.monotonic() - since[0] >= wait and then(child)

    return now


def more_files(folder: Path) -> Moment:
    """Once there are more complete files in the folder than now."""

    def count() -> int:
        return len(list(folder.glob("*.parquet")))

    before = count()
    return lambda child: count() > before


def killed(child: int, now: Moment) -> bool:
    """Kill the process at the moment: whether it came before the process had ended by itself."""
    while not now(child):
        if os.waitpid(child, os.WNOHANG)[0]:
            return False
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return True


def main(seed: int, kills: int, arguments: list[str]) -> None:
    folder = Path(next(text for text in arguments if text.startswith("output=")).removeprefix("output="))
    log, draw = folder.parent / "log.txt", random.Random(seed)
    last = folder / "checkpoints" / "last.pt"
    moments: dict[str, Callable[[], Moment]] = {
        "random": lambda: after(draw.uniform(0.4, 1.2)),
        "step": lambda: in_training(last, draw.uniform(0, 0.2)),
        "checkpoint": lambda: in_training(last, 0, while_writing(last)),
        "evaluation": lambda: more_files(folder / "records" / "shards"),  # seconds before it is finished
        "shard": lambda: while_writing(folder / "records" / "shards"),
        "record": lambda: while_writing(folder / "records"),
        "run.json": lambda: while_writing(folder / "run.json"),
    }
    kinds = ["step", "checkpoint", "random", "step", "checkpoint", "run.json"]
    # Most kills come in training, then some in the evaluation, and the last ones when its shards are joined to records.
    late = ["shard", "evaluation", "random", "shard", "random", "random", "record", "record"]
    plan = [*(kinds * kills)[: max(0, kills - len(late))], *late] if kills else []
    hits: list[str] = []  # the kills of the run that is in the folder now

    def strike(kind: str) -> None:
        hit = killed(attempt(arguments, log), moments[kind]())
        print(kind if hit else "ended", flush=True)
        hits.append(kind)
        if not hit:  # on a busy machine a short moment may be missed: the run is finished, and the next kills hit a new one
            shutil.rmtree(folder, ignore_errors=True)
            hits.clear()

    for kind in plan:
        strike(kind)
    if kills and (len(hits) < 5 or not EVALUATION & set(hits)):  # too many were missed: moments that last make a new run
        shutil.rmtree(folder, ignore_errors=True)
        print("ended", flush=True)
        for kind in ["step", "checkpoint", "step", "random", "evaluation"]:
            strike(kind)
    print("end", os.waitstatus_to_exitcode(os.waitpid(attempt(arguments, log), 0)[1]), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
