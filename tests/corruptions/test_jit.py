"""Compiled code is kept on disk soundly: old code is never used for new sources, and no state of the disk makes a call fail."""

import errno
import fcntl
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import environment
from corruption_references import Draws
from numba.core.caching import FunctionCache

from gch_bench.corruptions import compiled, draws
from gch_bench.corruptions.compiled import jit


def twice(x):
    return 2 * x


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(jit, "CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_second_process_uses_the_code_of_the_first(cache: Path) -> None:
    first, second = jit.jit(twice), jit.jit(twice)
    assert first(3) == second(3) == 6
    assert not first.stats.cache_hits
    assert second.stats.cache_hits
    assert list(cache.glob("*/test_jit.twice*.nbc"))


def test_any_change_of_the_sources_or_of_numbas_settings_gives_another_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert {Path(jit.__file__), Path(compiled.__file__), Path(draws.__file__)} < set(jit.SOURCES)
    source = tmp_path / "source.py"
    source.write_text("A = 1")
    before = jit.cache_folder([source])
    assert jit.cache_folder([source]) == before
    source.write_text("A = 2")
    after = jit.cache_folder([source])
    assert after != before
    monkeypatch.setenv("NUMBA_BOUNDSCHECK", "1")
    assert jit.cache_folder([source]) not in (before, after)


def test_the_folder_lies_where_the_user_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for value in ("relative", ""):  # a relative folder would be another one after a change of the working folder
        monkeypatch.setenv("XDG_CACHE_HOME", value)
        assert Path(jit.cache_folder([])).parent == tmp_path / "home" / ".cache" / "gch-bench"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert Path(jit.cache_folder([])).parent == tmp_path / "xdg" / "gch-bench"
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "numba"))
    assert Path(jit.cache_folder([])).parent == tmp_path / "numba" / "gch-bench"


def test_a_user_without_a_home_compiles_in_every_process(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> None:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(jit, "CACHE", jit.cache_folder([]))
    assert jit.CACHE is None
    assert jit.jit(twice)(3) == 6


def test_a_folder_that_cannot_be_written_is_replaced_by_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file"
    file.touch()
    monkeypatch.setattr(jit, "CACHE", str(file / "cache"))
    assert jit.jit(twice)(3) == 6
    assert not list(Path(__file__).parent.rglob("*.nbi"))


def test_a_full_disk_does_not_matter(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(FunctionCache, "save_overload", full)
    assert jit.jit(twice)(3) == 6


def test_one_process_writes_at_a_time_and_nobody_waits(cache: Path) -> None:
    function = jit.jit(twice)
    (folder,) = cache.iterdir()
    with open(folder / "lock", "wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert function(3) == 6
    assert not list(folder.glob("*.nbc"))
    assert function(3.0) == 6.0
    assert list(folder.glob("*.nbc"))


@pytest.mark.parametrize("kind", ["nbi", "nbc"])
def test_a_damaged_file_does_not_matter(cache: Path, kind: str) -> None:
    jit.jit(twice)(3)
    (file,) = cache.rglob(f"*.{kind}")
    file.write_bytes(b"")
    assert jit.jit(twice)(3) == 6
    after = jit.jit(twice)
    assert after(3) == 6
    assert after.stats.cache_hits


def test_windows_has_another_lock(tmp_path: Path) -> None:
    """Windows lacks fcntl. Here a module takes the place of msvcrt and writes down what it locks."""
    program = """
import sys, types
import numba, torch
taken = []
sys.modules["fcntl"] = None
sys.modules["msvcrt"] = types.SimpleNamespace(LK_NBLCK=2, locking=lambda *call: taken.append(call[1:]))
sys.platform = "win32"
from gch_bench.corruptions.compiled.draws import words
words(5, 1, 6)
print(set(taken))
"""
    windows = {**environment(), "XDG_CACHE_HOME": str(tmp_path)}
    windows.pop("NUMBA_CACHE_DIR", None)
    run = subprocess.run([sys.executable, "-c", program], env=windows, capture_output=True, text=True)
    assert run.stdout == "{(2, 1)}\n", run.stderr
    assert list(tmp_path.rglob("*.nbc"))


def test_numba_can_be_switched_off() -> None:
    program = "from gch_bench.corruptions.compiled.draws import words; print(words.__class__.__name__, *words(5, 1, 6))"
    switched_off = {**environment(), "NUMBA_DISABLE_JIT": "1"}
    run = subprocess.run([sys.executable, "-c", program], env=switched_off, capture_output=True, text=True, check=True)
    kind, *words = run.stdout.split()
    assert kind == "function"
    assert np.array_equal(np.array(words, np.uint32), Draws(5).words(1, 6))
