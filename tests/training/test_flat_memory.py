"""Resident memory stays flat over the steps of a training and over the images of an evaluation.

Run as a program it does so for as many steps as it is told: python tests/training/test_flat_memory.py 10000
"""

import os
import sys
import tempfile
import threading
from pathlib import Path

import pytest
import torch
from conftest import TINY, configuration
from training_jobs import ALONE, make_job

from gch_bench.apps.run import train_and_evaluate
from gch_bench.training.loop import StepReport, train

MIB = 2**20


def resident() -> int:
    """Bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def memory_over_steps(folder: Path, steps: int) -> list[int]:
    """The resident memory after each epoch of 36 steps of a training with noise, EMA and mixup."""
    seen: list[int] = []

    def report(progress: StepReport) -> None:
        seen.append(resident())

    options = ("noise=gch", "recipe.batch_size=2", f"recipe.epochs={steps // 36}", "recipe.ema_decay=0.9", "recipe.mixup=0.2")
    job = make_job(folder, *options, world=ALONE)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        train(job, report, [], warn=print)
    finally:
        torch.set_num_threads(threads)
    return seen


def test_over_the_steps_of_a_training(tmp_path: Path) -> None:
    """One kept batch of two float images per step is 24 KiB, in 600 steps 14 MiB."""
    seen = memory_over_steps(tmp_path, 900)
    assert seen[-1] - seen[len(seen) // 3] < 4 * MIB, [each // MIB for each in seen]


def test_over_the_images_of_an_evaluation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One kept uint8 batch of 8 images is 24 KiB; 11,160 images are evaluated, which would be 33 MiB.

    A process holds the rows of one shard, so the shards are made small.
    """
    monkeypatch.setattr("gch_bench.evaluation.run.SHARD_IMAGES", 24)
    seen: list[int] = []
    done = threading.Event()

    def sample() -> None:
        while not done.wait(0.02):
            run = tmp_path / "run"  # the checkpoint is written when training has ended, images.csv after the last shard
            if (run / "checkpoints" / "last.pt").exists() and not (run / "images.csv").exists():
                seen.append(resident())

    watcher = threading.Thread(target=sample)
    watcher.start()
    try:
        options = ("recipe.epochs=1", "corruptions=c15", "corruptions.severities=[1,2]", "evaluation.batch_size=8")
        train_and_evaluate(configuration(*TINY, *options, "data.workers=0", f"output={tmp_path / 'run'}"))
    finally:
        done.set()
        watcher.join()
    half = len(seen) // 2
    assert half > 20
    assert max(seen[half:]) - max(seen[:half]) < 8 * MIB, [each // MIB for each in seen[::20]]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        found = memory_over_steps(Path(place), int(sys.argv[1]))
    for part in range(11):
        index = min(part * len(found) // 10, len(found) - 1)
        print(f"step {36 * (index + 1)}: {found[index] / MIB:.1f} MiB")
