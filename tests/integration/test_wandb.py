"""logger=wandb, offline: the run file that wandb wrote holds the numbers of summary.csv, the configuration and the artifact."""

import json
import os
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from conftest import REPOSITORY, TINY, environment
from wandb.proto.wandb_internal_pb2 import Record

BLOCK, HEADER = 32768, 7  # LevelDB's log format: blocks of chunks (crc32, length, type), after wandb's 7 bytes of its own


def wandb_records(path: Path) -> Iterator[Record]:
    data = path.read_bytes()
    assert data[:4] == b":W&B"
    position, parts = 7, b""
    while position + HEADER <= len(data):
        room = BLOCK - position % BLOCK
        if room < HEADER:
            position += room
            continue
        _, length, kind = struct.unpack("<IHB", data[position : position + HEADER])
        parts += data[position + HEADER : position + HEADER + length]
        position += HEADER + length
        if kind in (1, 4):  # full, last
            record = Record()
            record.ParseFromString(parts)
            yield record
            parts = b""


def stored_files(record: Record) -> dict[str, str]:
    """The files of the artifact in a record, name -> where they lie; empty if it holds none."""
    kind = record.WhichOneof("record_type")
    if kind == "artifact" or (kind == "request" and record.request.HasField("log_artifact")):
        artifact = record.artifact if kind == "artifact" else record.request.log_artifact.artifact
        return {entry.path: entry.local_path for entry in artifact.manifest.contents}
    return {}


def test_offline_run_file_holds_the_summary(tmp_path: Path, cli) -> None:
    overrides = [item for item in TINY if not item.startswith("logger")]
    done = cli("train.py", *overrides, "noise=gch", "recipe.epochs=1", f"output={tmp_path / 'run'}")
    assert done.returncode == 0, done.stderr
    (file,) = (tmp_path / "run" / "wandb").glob("offline-run-*/run-*.wandb")
    logged: dict[str, float] = {}
    config: dict[str, dict] = {}
    artifacts = []
    for record in wandb_records(file):
        kind = record.WhichOneof("record_type")
        if kind == "history":
            logged |= {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        if kind == "run":
            config |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
        artifacts += list(stored_files(record))
    summary = pd.read_csv(tmp_path / "run" / "summary.csv")
    assert len(summary) == 13  # clean, and corruptions=quick: four corruptions at three severities
    for row in summary.itertuples():
        prefix = "clean" if row.corruption == "clean" else f"shift/{row.corruption}/{row.severity}"
        for key in ("top1", "ece", "nll"):
            assert logged[f"{prefix}/{key}"] == pytest.approx(getattr(row, key), rel=1e-9)
    shifted = summary[summary["corruption"] != "clean"].groupby("corruption")["ece"].mean().mean()
    assert logged["shift/mean/ece"] == pytest.approx(shifted, rel=1e-9)
    assert logged["train/loss"] > 0
    assert config["noise"]["gamma"] == 1.0
    assert {"records/clean-0.parquet", "summary.csv", "run.json"} <= set(artifacts)


def histories(folder: Path) -> list[list[tuple[int, str]]]:
    """For each session of a run folder its (step, metric) in the order in which they were logged."""
    found = []
    for file in sorted((folder / "wandb").glob("offline-run-*/run-*.wandb")):
        history = [record.history for record in wandb_records(file) if record.WhichOneof("record_type") == "history"]
        names = [(each.step.num, [item.key or "/".join(item.nested_key) for item in each.item]) for each in history]
        found.append([(step, name) for step, each in names for name in each if not name.startswith("_")])
    return found


# Logs like a run, in the way its arguments say: the first and the last step, and whether it is killed.
SESSION = """
import os, sys
from pathlib import Path
from conftest import configuration
from gch_bench.loggers import open_logger
first, last, killed = int(sys.argv[2]), int(sys.argv[3]), sys.argv[4] == "killed"
logger = open_logger(configuration("logger=wandb"), Path(sys.argv[1]), True)
for step in range(first, last + 1):
    logger.metrics({"train/loss": 1 / step, "train/images_per_second": float(os.getpid())}, step)
if killed:
    os.kill(os.getpid(), 9)
logger.metrics({"clean/top1": 0.5, "shift/mean/top1": last / 100}, last)
logger.close()
"""


def session(folder: Path, first: int, last: int, how: str) -> int:
    command = [sys.executable, "-c", SESSION, str(folder), str(first), str(last), how]
    return subprocess.run(command, env=environment(), capture_output=True, timeout=100).returncode


def test_one_wandb_run_per_run_folder(tmp_path: Path) -> None:
    """Killed, continued from some steps before, continued once more: one session that holds each step once, under one id."""
    folder = tmp_path / "a run's folder"
    folder.mkdir()
    assert session(folder, 1, 6, "killed") == -signal.SIGKILL
    with open(folder / "metrics.csv", "a") as damaged:
        damaged.write("7,train/lo")
    assert session(folder, 4, 12, "finished") == 0
    name = (folder / "wandb" / "id.txt").read_text()
    for last in (12, 13):
        (history,) = histories(folder)
        (file,) = (folder / "wandb").glob(f"offline-run-*-{name}/run-{name}.wandb")
        assert sorted(set(history)) == sorted(history), "nothing twice"
        assert {step for step, key in history if key == "train/loss"} == set(range(1, last + 1))
        rows = pd.read_csv(folder / "metrics.csv")
        assert not rows.duplicated(["step", "name"]).any()
        assert rows["value"].iloc[-1] == last / 100
        if last == 12:
            assert len(rows) == 2 * 12 + 2
            assert session(folder, 11, 13, "finished") == 0
            assert not file.exists(), "the newest session holds everything"
    sync = [str(REPOSITORY / "scripts" / "wandb_sync.sh"), str(folder)]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # where the script finds wandb
    done = subprocess.run([*sync, "--dry-run"], env=environment() | {"PATH": path}, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert "offline-run-" in done.stdout + done.stderr


TABLES = """
import sys
from pathlib import Path
import pandas as pd
from conftest import configuration
from gch_bench.loggers import open_logger
logger = open_logger(configuration("logger=wandb"), Path(sys.argv[1]), True)
short = pd.DataFrame({"mechanism": ["none", "gch"], "value": [0.25, float("nan")]})
short["severity"] = pd.array([3, None], "Int64")
logger.tables({"clean images": short, "all rows": pd.DataFrame({"row": range(12_345)})})
logger.close()
"""


def test_tables_hold_all_their_rows(tmp_path: Path) -> None:
    folder = tmp_path / "report"
    folder.mkdir()
    done = subprocess.run([sys.executable, "-c", TABLES, str(folder)], env=environment(), capture_output=True, timeout=100)
    assert done.returncode == 0, done.stderr
    (session,) = (folder / "wandb").glob("offline-run-*")
    (file,) = session.glob("run-*.wandb")
    logged, stored = {}, {}
    for record in wandb_records(file):
        if record.WhichOneof("record_type") == "history":
            logged |= {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        stored |= stored_files(record)
    assert not [name for name in logged if name.startswith("all rows")]
    shown = json.loads((session / "files" / logged["clean images/path"]).read_text())
    assert shown["columns"] == ["mechanism", "value", "severity"]
    assert shown["data"] == [["none", 0.25, 3], ["gch", None, None]]
    long = json.loads(Path(stored["all rows.table.json"]).read_text())
    assert long["data"] == [[row] for row in range(12_345)]


def test_wandb_sync_refuses_in_one_line(tmp_path: Path) -> None:
    for arguments, said in (
        ((), "usage"),
        (("--dry-run",), "usage"),
        ((str(tmp_path / "no"),), "run folder"),
        ((str(tmp_path),), "no offline"),
    ):
        command = [str(REPOSITORY / "scripts" / "wandb_sync.sh"), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
        assert done.returncode == 2
        (line,) = done.stderr.splitlines()
        assert line.startswith("error: ")
        assert said in line
