"""Freed memory is kept and used again: the system sees fewer page faults, numbers stay equal, memory stays bounded."""

import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import TINY, configuration, environment

from gch_bench import memory
from gch_bench.apps.cli import diagnosis_config
from gch_bench.errors import UserError

GLIBC = platform.libc_ver()[0] == "glibc"
needs_glibc = pytest.mark.skipif(not GLIBC, reason="only glibc's allocator can be set")
# Twenty times 32 MiB are written and freed. Prints the page faults that this takes after the first time.
FAULTS = """
import resource
def faults() -> int:
    used = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for turn in range(21):
        if turn == 1:
            before = used()
        block = bytearray(b"1") * (32 << 20)
        del block
    return used() - before
"""
PAGES = 20 * (32 << 20) // os.sysconf("SC_PAGE_SIZE")  # of them, when each block is new


def fresh(code: str, *arguments: str, **variables: str) -> str:
    """What the code prints in a new process whose environment says nothing of the allocator but `variables`."""
    clean = {name: value for name, value in environment().items() if name not in (*memory.USERS_OWN, "GLIBC_TUNABLES")}
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, env=clean | variables, capture_output=True, text=True, check=True).stdout


@needs_glibc
def test_freed_blocks_are_used_again() -> None:
    code = (
        f"{FAULTS}\nimport sys; from gch_bench.memory import keep_freed_memory\nprint(keep_freed_memory(sys.argv[1]), faults())"
    )
    changed, count = fresh(code, "system").split()
    assert changed == "False"
    assert int(count) > 0.9 * PAGES
    changed, count = fresh(code, "auto").split()
    assert changed == "True"
    assert int(count) < 0.01 * PAGES


@needs_glibc
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_processes_that_are_started_keep_it_too(tmp_path: Path, method: str) -> None:
    (tmp_path / "measured.py").write_text(f"{FAULTS}\ndef tell(pipe) -> None:\n    pipe.send(faults())\n")
    code = """
import multiprocessing, sys
sys.path.insert(0, sys.argv[2])
if __name__ == "__main__":
    from gch_bench.memory import keep_freed_memory
    import measured
    keep_freed_memory(sys.argv[3])
    context = multiprocessing.get_context(sys.argv[1])
    ours, theirs = context.Pipe()
    process = context.Process(target=measured.tell, args=(theirs,))
    process.start()
    print(ours.recv())
    process.join()
"""
    assert int(fresh(code, method, str(tmp_path), "auto")) < 0.01 * PAGES
    assert int(fresh(code, method, str(tmp_path), "system")) > 0.9 * PAGES


@needs_glibc
@pytest.mark.parametrize(
    "variables",
    [
        {"MALLOC_TRIM_THRESHOLD_": "200000"},
        {"MALLOC_MMAP_THRESHOLD_": "300000"},
        {"GLIBC_TUNABLES": "glibc.malloc.top_pad=100000"},
    ],
)
def test_a_users_own_settings_stay(variables: dict[str, str]) -> None:
    code = """
import json, os; from gch_bench.memory import keep_freed_memory
print(json.dumps([keep_freed_memory(), keep_freed_memory(), dict(os.environ)]))
"""
    first, second, seen = json.loads(fresh(code, **variables))
    assert not first
    assert not second
    assert {name: seen[name] for name in seen if name in memory.USERS_OWN or name == "GLIBC_TUNABLES"} == variables
    first, second, seen = json.loads(fresh(code, MALLOC_ARENA_MAX="2"))  # of another matter: clusters set it for everyone
    assert first
    assert not second, "once is enough"


@pytest.mark.parametrize("answer", [None, "musl", ValueError, AttributeError])
def test_other_c_libraries_are_left_alone(monkeypatch: pytest.MonkeyPatch, answer: str | type[Exception] | None) -> None:
    def confstr(name: str) -> str | None:
        if isinstance(answer, type):
            raise answer(name)
        return answer

    def refuse(name: None) -> None:
        raise AssertionError("the C library must not be touched")

    environ: dict[str, str] = {}
    monkeypatch.setattr(memory, "os", SimpleNamespace(confstr=confstr, environ=environ))
    monkeypatch.setattr(memory.ctypes, "CDLL", refuse)
    assert not memory.keep_freed_memory()
    assert environ == {}


def test_the_field_is_checked_and_changes_no_identity(tmp_path: Path) -> None:
    assert configuration("memory=system").identity == configuration().identity
    with pytest.raises(UserError, match=r"memory must be one of auto, system, got 'glibc'"):
        configuration("memory=glibc")
    from hydra import compose, initialize_config_dir

    with initialize_config_dir(str(Path(__file__).parents[1] / "configs"), version_base="1.3"):
        assert diagnosis_config(compose("diagnose")).memory == "auto"
        with pytest.raises(UserError, match="memory must be one of auto, system"):
            diagnosis_config(compose("diagnose", overrides=["memory=glibc"]))


@needs_glibc
def test_a_run_gives_the_same_bytes(tmp_path: Path) -> None:
    """A job called by itself, as in a sweep on a cluster, keeps memory; weights and records do not tell."""
    code = """
import os, sys
from conftest import configuration
from gch_bench.apps.run import train_and_evaluate
train_and_evaluate(configuration(*sys.argv[1:]))
print("kept" if "MALLOC_MMAP_MAX_" in os.environ else "as it was")
"""
    for choice, said in (("auto", "kept"), ("system", "as it was")):
        assert fresh(code, *TINY, "recipe.epochs=1", f"memory={choice}", f"output={tmp_path / choice}").endswith(said + "\n")
    ours, theirs = (
        {path.relative_to(tmp_path / choice): path.read_bytes() for path in (tmp_path / choice).glob("records/**/*.parquet")}
        for choice in ("auto", "system")
    )
    assert len(ours) > 1
    assert ours == theirs


@needs_glibc
def test_memory_stays_bounded() -> None:
    """300 training steps of changing batches among blocks of random sizes: the second half adds less than 10%."""
    code = (
        "import json; from bench_memory import *\nkeep_freed_memory(); torch.set_num_threads(1); print(json.dumps(grow(300)))"
    )
    resident = json.loads(fresh(code, PYTHONPATH=os.pathsep.join(sys.path)))
    assert len(resident) == 10
    assert max(resident) < 1.1 * max(resident[:5])
