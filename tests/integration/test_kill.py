"""A run that was killed at 20 moments and started again each time ends as one that was never disturbed, to the last bit."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pandas as pd
from conftest import REPOSITORY, TINY, environment

OPTIONS = ("noise=gch", "recipe.epochs=8", "recipe.ema_decay=0.9", "recipe.mixup=0.2", "logger=csv", "data.workers=0",
           "evaluation.batch_size=4")  # fmt: skip  # an evaluation of some seconds


def killed_run(folder: Path, kills: int) -> list[str]:
    """Make the run in `folder`/run, killed so many times: what the attempts came to."""
    folder.mkdir()
    script = REPOSITORY / "tests" / "integration" / "killed_runs.py"
    options = [*TINY, *OPTIONS, "recipe.checkpoint_minutes=0.001", f"output={folder / 'run'}"]
    command = [sys.executable, str(script), "0", str(kills), *options]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_killed_at_twenty_moments(tmp_path: Path) -> None:
    assert killed_run(tmp_path / "straight", 0) == ["end 0"]
    *attempts, last = killed_run(tmp_path / "killed", 20)
    assert last == "end 0", (tmp_path / "killed" / "log.txt").read_text()[-3000:]
    count = Counter(attempts)
    assert sum(count.values()) - count["ended"] >= 10, count
    assert min(count["step"], count["random"]) >= 1, count
    assert sum(count[kind] for kind in ("checkpoint", "shard", "record", "run.json")) >= 2, count
    of_this_run = attempts[len(attempts) - attempts[::-1].index("ended") :] if "ended" in attempts else attempts
    assert len(of_this_run) >= 5, attempts
    assert {"evaluation", "shard", "record"} & set(of_this_run), attempts
    straight, killed = tmp_path / "straight" / "run", tmp_path / "killed" / "run"
    first, second = (json.loads((folder / "run.json").read_text()) for folder in (straight, killed))
    assert (second["status"], second["warnings"]) == ("finished", first["warnings"])
    assert second["weights"] == first["weights"]
    records = sorted(path.name for path in (straight / "records").iterdir())
    assert sorted(path.name for path in (killed / "records").iterdir()) == records
    for name in (*(f"records/{record}" for record in records), "summary.csv", "means.csv", "images.csv"):
        assert (killed / name).read_bytes() == (straight / name).read_bytes(), name
    assert not list(killed.rglob("*.tmp"))
    assert "Traceback" not in (tmp_path / "killed" / "log.txt").read_text()
    rows = pd.read_csv(killed / "metrics.csv")
    assert not rows.duplicated(["step", "name"]).any()
