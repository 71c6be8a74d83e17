"""check_imagenet_c.py says what a stored set holds and lacks: exit code 0, 1 or 2."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import REPOSITORY, environment
from PIL import Image

sys.path.insert(0, str(REPOSITORY / "scripts"))

from check_imagenet_c import main

from gch_bench.corruptions import CORRUPTIONS
from gch_bench.metrics import EXTRA
from gch_bench.suites import SUITES

FIFTEEN = [name for name in CORRUPTIONS if name not in EXTRA]
Check = Callable[..., tuple[int, str, str]]


@pytest.fixture
def check(capsys: pytest.CaptureFixture[str]) -> Check:
    def run(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main([str(each) for each in arguments])
        printed = capsys.readouterr()
        return int(ended.value.code or 0), printed.out, printed.err

    return run


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """ImageNet-C with two images, its noises in a group's folder; data/val holds the clean images."""
    for file in ("ant/0.JPEG", "bee/0.JPEG"):
        folders = [tmp_path / "data" / "val"]
        for name in FIFTEEN:
            group = tmp_path / "c" / "noise" if name.endswith("noise") else tmp_path / "c"
            folders += [group / name / str(severity) for severity in range(1, 6)]
        for folder in folders:
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8)).save(folder / file)
    return tmp_path / "c"


def test_a_complete_set(check: Check, root: Path) -> None:
    code, out, err = check(root)
    assert (code, err) == (0, "")
    assert "ImageNet-C's 15 corruptions (15 of 15 there)" in out
    assert out.count("[2 of 8x8]") == 75
    assert out.endswith("75 cells expected, 0 missing or wrong\n")
    assert check(root, "--clean", root.parent / "data", "--data", "folder")[0] == 0


def test_a_cell_of_another_size(check: Check, root: Path) -> None:
    for path in (root / "fog" / "2").rglob("*.JPEG"):
        Image.new("RGB", (12, 12)).save(path)
    code, out, _ = check(root)
    assert (code, "missing or wrong: fog/2: images of 12x12, other cells have 8x8\n" in out) == (1, True)
    code, out, _ = check(root, "--clean", root.parent / "data", "--data", "folder")
    assert (code, out.count("missing or wrong: "), "must be 8x8 pixels" in out) == (1, 1, True)


def test_a_part_of_the_corruptions(check: Check, root: Path) -> None:
    for name in FIFTEEN:
        if name not in ("fog", "snow"):
            shutil.rmtree(root / ("noise" if name.endswith("noise") else "") / name)
    shutil.rmtree(root / "fog" / "4")
    shutil.rmtree(root / "snow" / "4")
    code, out, _ = check(root)
    assert (code, out.count("missing or wrong: ")) == (1, 15)
    assert "missing or wrong: frost: no such folder\n" in out
    assert out.endswith("75 cells expected, 67 missing or wrong\n")
    code, out, _ = check(root, "--corruptions", "snow", "fog", "--severities", "1", "5")
    assert (code, out.endswith("4 cells expected, 0 missing or wrong\n")) == (0, True)
    assert check(root, "--corruptions", "snow", "fog")[0] == 1
    assert "--corruptions must be names out of" in check(root, "--corruptions", "mist")[2]


def test_what_is_missing_wrong_or_unexpected(check: Check, root: Path) -> None:
    shutil.rmtree(root / "fog" / "4")
    shutil.rmtree(root / "noise" / "shot_noise")
    (root / "snow" / "2" / "bee" / "0.JPEG").unlink()
    (root / "snow" / "copies").mkdir()
    (root / "mist" / "1").mkdir(parents=True)
    code, out, err = check(root)
    assert (code, err) == (1, "")
    assert "missing or wrong: fog/4: no such folder\n" in out
    assert "missing or wrong: snow/2: 1 images, other cells have 2" in out
    assert "missing or wrong: shot_noise: no such folder\n" in out
    assert "unexpected: mist\n" in out
    assert f"unexpected: {root}/snow/copies" in out
    assert out.endswith("75 cells expected, 7 missing or wrong\n")


def test_other_images_than_the_clean_ones(check: Check, root: Path) -> None:
    for folder in (root, root / "noise"):
        for name in FIFTEEN:
            for path in sorted((folder / name).glob("*/bee/0.JPEG")):
                path.rename(path.with_name("1.JPEG"))
    assert check(root)[0] == 0
    code, out, _ = check(root, "--clean", root.parent / "data", "--data", "folder")
    assert code == 1
    assert out.count("1 missing (first: bee/0) and 1 too many (first: bee/1.JPEG)") == 75


def test_no_such_folder_is_one_line(check: Check, root: Path, tmp_path: Path) -> None:
    for arguments, text in (
        ((tmp_path / "nowhere",), "ROOT must be an existing, readable folder"),
        ((tmp_path / "data",), "ROOT must hold folders CORRUPTION/SEVERITY/"),
        (
            (root, "--clean", tmp_path / "nowhere"),
            "cannot be read as --data=imagenet: data.root must be an existing folder",
        ),
        ((root, "--clean", root, "--data", "timm"), "--data must be one of imagenet, "),
        ((root, "--clean", root), "cannot be read as --data=imagenet: data.root must hold val/CLASS/* images"),
        ((), "the following arguments are required: ROOT"),
    ):
        code, out, err = check(*arguments)
        assert (code, out, len(err.splitlines())) == (2, "", 1)
        assert text in err


def test_a_suite_with_levels(check: Check, tmp_path: Path) -> None:
    for name in SUITES["imagenet_c_bar"]:
        for level in ("0.8", "1.6", "2.4", "4.0", "5.6"):
            (tmp_path / name / level / "ant").mkdir(parents=True)
            Image.new("RGB", (8, 8)).save(tmp_path / name / level / "ant" / "0.JPEG")
    assert check(tmp_path)[:1] == (0,)
    shutil.rmtree(tmp_path / "sparkles" / "5.6")
    code, out, _ = check(tmp_path)
    assert (code, out.count("missing or wrong: sparkles: ")) == (1, 1)


def test_arrays(check: Check, tmp_path: Path) -> None:
    np.save(tmp_path / "labels.npy", np.zeros(10, dtype=np.uint8))
    for name in FIFTEEN:
        np.save(tmp_path / f"{name}.npy", np.zeros((10, 32, 32, 3), dtype=np.uint8))
    assert check(tmp_path)[1].count("[2 of 32x32]") == 75
    (tmp_path / "fog.npy").unlink()
    np.save(tmp_path / "snow.npy", np.zeros((9, 32, 32, 3), dtype=np.uint8))
    code, out, _ = check(tmp_path)
    assert (code, out.count("no file fog.npy"), out.count("snow.npy must have 5 x N images")) == (1, 1, 1)


def test_it_runs_as_a_script(tmp_path: Path) -> None:
    command = [sys.executable, str(REPOSITORY / "scripts" / "check_imagenet_c.py"), str(tmp_path)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True)
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)


def test_a_closed_pipe_is_no_traceback(root: Path) -> None:
    command = f"'{sys.executable}' '{REPOSITORY / 'scripts' / 'check_imagenet_c.py'}' '{root}' | true"
    done = subprocess.run(command, shell=True, env=environment(), capture_output=True, text=True)
    assert done.stderr == ""
