"""Several processes in one run, by torchrun; and a run that another number of processes continues."""

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import TINY, configuration
from PIL import Image

from gch_bench.apps.run import train_and_evaluate
from gch_bench.training import loop

QUICK = (*TINY, "corruptions=none")


def test_what_rank_0_lacks_ends_all_within_seconds(tmp_path: Path, cli: Callable) -> None:
    """Rank 1 has its data, and would wait for rank 0: both end, with one line on rank 0 alone."""
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            (tmp_path / "rank1" / split / name).mkdir(parents=True)
            Image.new("RGB", (16, 16)).save(tmp_path / "rank1" / split / name / "0.png")
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "--redirects=3", f"--log-dir={tmp_path}")
    started = time.monotonic()
    done = cli(
        "train.py", *QUICK, "data=folder", f"data.root={tmp_path}/rank${{oc.env:RANK}}", "data.size=16", "recipe=digits",
        f"output={tmp_path / 'run'}", launcher=launcher, timeout=200,
    )  # fmt: skip
    assert time.monotonic() - started < 120, "an idle machine takes ten seconds"
    assert done.returncode != 0
    first, second = (next(tmp_path.rglob(f"{rank}/stderr.log")).read_text().splitlines() for rank in (0, 1))
    (line,) = [text for text in first if not text.startswith("[W")]  # torch's own log lines
    assert line.startswith("error: data.root")
    assert not any("Traceback" in text or "error" in text for text in second)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("factory", ["groupnorm", "tinynet"])
def test_another_number_of_processes_continues(factory: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Continued by as many processes or another number, a run draws the same noise. With BatchNorm, which would have seen other
    batches, the run says so for as long as it lives."""
    options = (*QUICK, f"model.factory=tinynet:{factory}", "noise=gch", "recipe.epochs=2")
    kept, save = tmp_path / "kept.pt", loop._save

    def keep(job: loop.TrainingJob, position: loop.Position) -> None:
        save(job, position)
        if not kept.exists():
            shutil.copy(job.checkpoint, kept)

    def run(name: str) -> dict:
        train_and_evaluate(configuration(*options, f"output={tmp_path / name}"))
        return json.loads((tmp_path / name / "run.json").read_text())

    with monkeypatch.context() as patch:
        patch.setattr(loop, "_save", keep)
        unbroken = run("unbroken")
    content = torch.load(kept, weights_only=True)
    assert content["position"] == {"epoch": 1, "step": 0}
    for name, processes in (("same", 1), ("other", 2)):
        (tmp_path / name / "checkpoints").mkdir(parents=True)
        torch.save({**content, "rng": content["rng"] * processes}, tmp_path / name / "checkpoints" / "last.pt")
    same, other = run("same"), run("other")
    assert same["weights"] == unbroken["weights"] == other["weights"]
    assert same["warnings"] == []
    if factory == "groupnorm":
        assert other["warnings"] == []
        return
    (warning,) = other["warnings"]
    assert "continued with 1 instead of 2 processes at epoch 2, step 1" in warning
    assert "BatchNorm normalises over the images of one process" in warning
    assert other["sessions"][0]["warnings"] == [warning]
