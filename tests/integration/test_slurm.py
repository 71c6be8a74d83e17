"""In a real SLURM, where there is one: train.py in jobs with and without srun, sweeps, and a job that is preempted or runs out
of time.

`make test-slurm` runs these tests. The preemption needs the partitions low (jobs are requeued) and high (preempts low).
"""

import json
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
import pytest
from conftest import REPOSITORY, TINY, configuration, environment

from gch_bench.apps.run import train_and_evaluate


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


def repository(tmp_path: Path) -> Path:
    """A folder that looks like the repository, so that run folders come to lie there."""
    for name in ("train.py", "configs", "scripts", "gch_bench"):
        (tmp_path / name).symlink_to(REPOSITORY / name)
    return tmp_path


def call(*command: str | Path, cwd: Path) -> subprocess.CompletedProcess:
    """Run a command with this Python first in the path, which the jobs inherit."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(command, cwd=cwd, env=environment() | {"PATH": path}, capture_output=True, text=True, timeout=280)


def jobs_gone(timeout: float = 240) -> None:
    """Wait until no job is left.

    SLURM starts a job that was requeued after two minutes; here it starts after three seconds. If it started within the second
    in which it was requeued, SLURM would end it with "Job credential revoked".
    """
    deadline, hurried = time.monotonic() + timeout, set()
    while jobs := subprocess.run(["squeue", "-h", "-o", "%A %r"], capture_output=True, text=True).stdout.splitlines():
        assert time.monotonic() < deadline, jobs
        for job, reason in (line.split(" ", 1) for line in jobs):
            if reason == "BeginTime" and job not in hurried:
                hurried.add(job)
                subprocess.run(["scontrol", "update", f"JobId={job}", "StartTime=now+3"], check=True, capture_output=True)
        time.sleep(0.5)


def finished(folder: Path) -> dict[tuple[str, int], str]:
    """(noise, seed) -> weights of the runs in folder/runs, all of which have finished."""
    facts = [json.loads(path.read_text()) for path in folder.glob("runs/*/run.json")]
    assert all(each["status"] == "finished" for each in facts)
    return {(each["config"]["noise"]["name"], each["config"]["seed"]): each["weights"] for each in facts}


SUBMITIT = (
    "hydra/launcher=slurm", "hydra.launcher.gpus_per_node=null", "hydra.launcher.cpus_per_task=1",
    "hydra.launcher.partition=low", "hydra.launcher.timeout_min=5",
)  # fmt: skip
ALL_FOUR = {(noise, seed) for noise in ("none", "dropout") for seed in (0, 1)}
CHOICES = ("noise=none,dropout", "seed=0,1")
SHORT = (*(text for text in TINY if "epochs" not in text and "corruptions" not in text), "recipe.epochs=1", "corruptions=none")


def test_a_sweep_without_submitit_returns_at_once(tmp_path: Path) -> None:
    folder = repository(tmp_path)
    started = time.monotonic()
    done = call(folder / "scripts/slurm/sweep.sh", "--time=5", "--cpus-per-task=1", "--", *CHOICES, *SHORT, cwd=folder)
    assert time.monotonic() - started < 10
    assert done.returncode == 0, done.stderr
    assert "4 jobs" in done.stdout
    jobs_gone()
    assert set(finished(folder)) == ALL_FOUR, [path.read_text() for path in folder.glob("slurm-*.out")]


def test_a_sweep_with_submitit(tmp_path: Path) -> None:
    folder = repository(tmp_path)
    done = call(sys.executable, "train.py", "-m", *SUBMITIT, *CHOICES, *SHORT, cwd=folder)
    assert done.returncode == 0, done.stderr[-2000:]
    assert set(finished(folder)) == ALL_FOUR


LONG = (*TINY, "noise=gch", "recipe.epochs=10", "recipe.batch_size=32", "corruptions=none")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "undisturbed"
    train_and_evaluate(configuration(*LONG, f"output={folder}"))
    return folder


@pytest.mark.parametrize("how", ["preempted", "out of time", "out of time with submitit"])
def test_a_job_that_is_stopped_goes_on_and_ends_as_if_undisturbed(tmp_path: Path, how: str, undisturbed: Path) -> None:
    """Preempted by a job of higher priority, or signalled as sbatch's --signal does shortly before the time is over."""
    folder = repository(tmp_path)
    if how == "out of time with submitit":
        with ThreadPoolExecutor() as pool:
            launched = pool.submit(call, sys.executable, "train.py", "-m", *SUBMITIT, *LONG, cwd=folder)
            wait_for_checkpoints(folder)
            (job,) = subprocess.run(["squeue", "-h", "-o", "%A"], capture_output=True, text=True).stdout.split()
            subprocess.run(["scancel", "--signal=USR2", job], check=True)
            jobs_gone()
        assert launched.result().returncode == 0, launched.result().stderr
        compare(folder, undisturbed)
        return
    script = folder / "scripts/slurm/train.sbatch"
    done = call("sbatch", "--parsable", "--partition=low", "--time=5", "--cpus-per-task=1", script, *LONG, cwd=folder)
    assert done.returncode == 0, done.stderr
    job = done.stdout.strip()
    wait_for_checkpoints(folder)
    if how == "preempted":
        other = call("sbatch", "--partition=high", "--exclusive", "--time=1", "--wrap=sleep 1", cwd=folder)
        assert other.returncode == 0, other.stderr
    else:
        subprocess.run(["scancel", "--batch", "--signal=USR1", job], check=True)
    jobs_gone()
    compare(folder, undisturbed)


def wait_for_checkpoints(folder: Path) -> None:
    deadline = time.monotonic() + 120
    while not list(folder.glob("runs/*/checkpoints/previous.pt")):
        assert time.monotonic() < deadline, [path.read_text() for path in folder.glob("slurm-*.out")]
        time.sleep(0.2)


def compare(folder: Path, undisturbed: Path) -> None:
    """The one run in folder/runs took two sessions and ended as the undisturbed one."""
    (run,) = folder.glob("runs/*/run.json")
    facts, straight = json.loads(run.read_text()), json.loads((undisturbed / "run.json").read_text())
    assert (facts["status"], len(facts["sessions"])) == ("finished", 2), [
        path.read_text() for path in folder.glob("slurm-*.out")
    ]
    assert facts["weights"] == straight["weights"]
    records = [pd.read_parquet(each / "records" / "clean-0.parquet") for each in (run.parent, undisturbed)]
    pd.testing.assert_frame_equal(*records, check_exact=True)
    assert (run.parent / "summary.csv").read_bytes() == (undisturbed / "summary.csv").read_bytes()
