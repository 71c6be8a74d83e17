"""A run changes nothing that is global to its process: the next run of a sweep in the same process is as if it were alone."""

import os
import random
import signal
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import TINY, configuration
from hydra import compose, initialize_config_dir

from gch_bench.apps.cli import diagnosis_config
from gch_bench.apps.diagnosis.run import diagnose
from gch_bench.apps.run import train_and_evaluate
from gch_bench.errors import UserError
from gch_bench.evaluation.predict import FP32_PRECISIONS, exact_fp32
from gch_bench.memory import keep_freed_memory
from gch_bench.threads import torch_threads

REPOSITORY = Path(__file__).parents[2]
QUICK = (*TINY, "recipe.epochs=1")
ALL_PRECISIONS = [("generic", "all"), ("cuda", "all"), ("mkldnn", "all"), *FP32_PRECISIONS]


def global_state() -> dict[str, Any]:
    """Everything global to a process that a run could change.

    Not the states of the global random generators: a run seeds them for itself, and no run reads them before it has.
    """
    backends = torch.backends
    return {
        "threads": torch.get_num_threads(),
        "interop threads": torch.get_num_interop_threads(),
        "deterministic": (torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()),
        "cudnn": (backends.cudnn.enabled, backends.cudnn.benchmark, backends.cudnn.deterministic, backends.cudnn.allow_tf32),
        "matmul": (torch.get_float32_matmul_precision(), backends.cuda.matmul.allow_tf32),
        "reduced": (
            backends.cuda.matmul.allow_fp16_reduced_precision_reduction,
            backends.cuda.matmul.allow_bf16_reduced_precision_reduction,
        ),
        "fp32 precision": {each: torch._C._get_fp32_precision_getter(*each) for each in ALL_PRECISIONS},
        "mkldnn": (backends.mkldnn.enabled, backends.mkldnn.deterministic),
        "default dtype": torch.get_default_dtype(),
        "default device": torch.get_default_device(),
        "grad": (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_anomaly_enabled()),
        "autocast": [(torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in ("cpu", "cuda")],
        "autocast cache": torch.is_autocast_cache_enabled(),
        "flush denormal": (torch.tensor(1e-39) * 1).item() != 0,
        "sharing": torch.multiprocessing.get_sharing_strategy(),
        "start method": torch.multiprocessing.get_start_method(allow_none=True),
        "process group": torch.distributed.is_initialized(),
        "printing": repr(torch._tensor_str.PRINT_OPTS),
        "numpy errors": np.geterr(),
        "environment": dict(os.environ),
        "signals": {
            each: signal.getsignal(each) for each in signal.valid_signals() if each not in (signal.SIGKILL, signal.SIGSTOP)
        },
        "warnings": list(warnings.filters),
        "sys.path": list(sys.path),
        "arguments": list(sys.argv),
        "streams": (sys.stdout, sys.stderr, sys.excepthook),
        "folder": os.getcwd(),
        "umask": _umask(),
    }


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@pytest.fixture(autouse=True)
def two_threads() -> Any:
    """The runs below ask for one thread: without this, a machine with one core would not see what they leave."""
    with torch_threads(2):
        yield


@pytest.fixture(scope="module")
def first_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One run before all others; it, too, leaves what is global as it was."""
    folder = tmp_path_factory.mktemp("first") / "run"
    keep_freed_memory()  # the one thing that a first run changes for good (gch_bench/memory.py)
    before = global_state()
    with torch_threads(2):
        train_and_evaluate(configuration(*QUICK, "noise=gch", f"output={folder}"))
    assert global_state() == before
    return folder


def test_two_runs_in_one_process(first_run: Path, tmp_path: Path) -> None:
    """The settings are as before after each run, and the second run's numbers are those of the first, which ran alone."""
    before = global_state()
    train_and_evaluate(configuration(*QUICK, "noise=dropout", "evaluation.precision=bf16", f"output={tmp_path / 'other'}"))
    assert global_state() == before
    train_and_evaluate(configuration(*QUICK, "noise=gch", f"output={tmp_path / 'again'}"))
    assert global_state() == before
    for file in (first_run / "records").glob("*.parquet"):
        pd.testing.assert_frame_equal(pd.read_parquet(file), pd.read_parquet(tmp_path / "again" / "records" / file.name))


def test_evaluation_and_diagnosis(first_run: Path, tmp_path: Path) -> None:
    weights = first_run / "checkpoints" / "last.pt"
    before = global_state()
    train_and_evaluate(configuration(*QUICK, f"model.checkpoint={weights}", f"output={tmp_path / 'e'}", name="evaluate"))
    assert global_state() == before
    with initialize_config_dir(str(REPOSITORY / "configs"), version_base="1.3"):
        config = compose("diagnose", overrides=[f"runs=[{first_run}]", "threads=1", f"output={tmp_path / 'd'}", "logger=none"])
    diagnose(diagnosis_config(config))
    assert global_state() == before


@pytest.mark.parametrize("mistake", ["model.checkpoint=nowhere.pt", "recipe.lr=1e30"])
def test_a_run_that_fails(first_run: Path, tmp_path: Path, mistake: str) -> None:
    """One is refused at the door, one breaks in training."""
    before = global_state()
    with pytest.raises(UserError):
        train_and_evaluate(configuration(*QUICK, mistake, f"output={tmp_path / 'run'}"))
    assert global_state() == before


def test_a_run_keeps_the_settings_of_whoever_calls_it(first_run: Path, tmp_path: Path) -> None:
    """Settings that are not torch's defaults are kept, too, and the global generators are free to move."""
    random.seed(0)
    torch.set_float32_matmul_precision("high")
    try:
        before = global_state()
        train_and_evaluate(configuration(*QUICK, f"output={tmp_path / 'run'}"))
        assert global_state() == before
    finally:
        torch.set_float32_matmul_precision("highest")


SETTINGS = {
    "torch's defaults": lambda: None,
    "high": lambda: torch.set_float32_matmul_precision("high"),
    "medium": lambda: torch.set_float32_matmul_precision("medium"),
    "no TF32": lambda: setattr(torch.backends.cudnn, "allow_tf32", False),
    "convolutions by the newer switch": lambda: setattr(torch.backends.cudnn.conv, "fp32_precision", "ieee"),
}


def test_exact_fp32_is_exact_and_leaves_no_trace(cli: Any, tmp_path: Path) -> None:
    """Each setting in a process of its own, as the switches remember which of their two kinds was used."""
    script = tmp_path / "switches.py"
    script.write_text(
        f"import os, sys\nsys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from test_global_state import SETTINGS, check\n"
        "for setting in SETTINGS:\n"
        "    if not os.fork():\n"
        "        check(setting)\n"
        "        os._exit(0)  # at once: the ends of torch and its like take seconds\n"
        "    assert os.wait()[1] == 0, setting\n"
    )
    done = cli(str(script))
    assert done.returncode == 0, done.stderr


def check(setting: str) -> None:
    SETTINGS[setting]()
    before = precisions()
    with exact_fp32():
        inside = precisions()
        assert {inside[each] for each in FP32_PRECISIONS} == {"ieee"}, inside
        assert inside["matmul"] == (False, "highest")
        assert inside["cudnn"] is False or setting.startswith("convolutions")
    assert precisions() == before


def precisions() -> dict[Any, Any]:
    found: dict[Any, Any] = {each: torch._C._get_fp32_precision_getter(*each) for each in ALL_PRECISIONS}
    found["matmul"] = (torch.backends.cuda.matmul.allow_tf32, torch.get_float32_matmul_precision())
    try:
        found["cudnn"] = torch.backends.cudnn.allow_tf32
    except RuntimeError:
        found["cudnn"] = "contradictory"
    return found


def test_predictions_are_made_in_exact_fp32(first_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seen from inside the network, while torch's default allows TF32 in convolutions."""
    seen: list[dict[Any, Any]] = []
    forward = torch.nn.Conv2d.forward

    def spy(self: torch.nn.Conv2d, inputs: torch.Tensor) -> torch.Tensor:
        if torch.is_inference_mode_enabled():
            seen.append(precisions())
        return forward(self, inputs)

    monkeypatch.setattr(torch.nn.Conv2d, "forward", spy)
    weights = first_run / "checkpoints" / "last.pt"
    train_and_evaluate(configuration(*QUICK, f"model.checkpoint={weights}", f"output={tmp_path / 'e'}", name="evaluate"))
    assert seen
    assert {precision for found in seen for each, precision in found.items() if each in FP32_PRECISIONS} == {"ieee"}
