"""In a real SLURM, where there is one: what `python train.py` makes of an sbatch with and without srun."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY, TINY, environment


def slurm_works() -> bool:
    if not (shutil.which("sbatch") and shutil.which("sinfo")):
        return False
    try:
        states = subprocess.run(["sinfo", "-h", "-o", "%t"], capture_output=True, text=True, timeout=20)
    except subprocess.TimeoutExpired:
        return False
    return states.returncode == 0 and ("idle" in states.stdout or "mix" in states.stdout)


pytestmark = pytest.mark.skipif(not slurm_works(), reason="needs a SLURM with a free node")


def submit(tmp_path: Path, launcher: str, *overrides: str) -> tuple[int, str]:
    """(exit code, output) of a job of two tasks whose script starts train.py with this launcher."""
    options = " ".join(f"'{option}'" for option in (*TINY, "recipe.epochs=1", f"output={tmp_path / 'run'}", *overrides))
    script = tmp_path / "job.sh"
    script.write_text(f"#!/bin/bash\n{launcher} {sys.executable} {REPOSITORY / 'train.py'} {options}\n")
    command = ["sbatch", "--wait", "--ntasks=2", "--time=5", f"--output={tmp_path / 'output.txt'}", str(script)]
    done = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=280)
    return done.returncode, (tmp_path / "output.txt").read_text()


def test_without_srun_it_is_one_process(tmp_path: Path) -> None:
    code, output = submit(tmp_path, "")
    assert code == 0, output
    facts = json.loads((tmp_path / "run" / "run.json").read_text())
    assert facts["processes"] == 1
    (warning,) = facts["warnings"]
    assert "srun" in warning


def test_with_srun_each_task_is_a_rank(tmp_path: Path) -> None:
    code, output = submit(tmp_path, "srun")
    assert code == 0, output
    facts = json.loads((tmp_path / "run" / "run.json").read_text())
    assert facts["processes"] == 2
    assert facts["warnings"] == []


def test_with_srun_a_mistake_ends_all_tasks_with_one_line(tmp_path: Path) -> None:
    code, output = submit(tmp_path, "srun", "data=folder", f"data.root={tmp_path / 'nowhere'}", "recipe=digits")
    assert code == 2
    assert output.count("error: data.root") == 1
    assert "Traceback" not in output
