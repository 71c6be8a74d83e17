"""logger=wandb, offline: the run file that wandb wrote holds the numbers of summary.csv, the configuration and the artifact."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from conftest import TINY
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
        if kind == "artifact" or (kind == "request" and record.request.HasField("log_artifact")):
            artifact = record.artifact if kind == "artifact" else record.request.log_artifact.artifact
            artifacts += [entry.path for entry in artifact.manifest.contents]
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
