"""scripts/make_imagenet_c.py: refusals, full disks, verification."""

import errno
import fcntl
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from made_tree import FEW, dest, files, make, refuse, src, times, whole  # noqa: F401 - fixtures

from gch_bench.corruptions import CORRUPTIONS
from gch_bench.corruptions.table import Corruption


def test_as_typed(src: Path, tmp_path: Path, cli: Callable[..., subprocess.CompletedProcess]) -> None:
    done = cli("scripts/make_imagenet_c.py", str(src), "dest", "--corruptions", "fogg")
    assert done.returncode == 2
    assert done.stderr.startswith("error: unknown corruption 'fogg'")
    assert len(done.stderr.splitlines()) == 1


WRONG: dict[tuple[str, ...], list[str]] = {  # after SRC and DEST
    ("--corruptions", "fogg"): ["unknown corruption 'fogg'", *CORRUPTIONS],
    ("--severities", "0"): ["--severities", "1..5", "got 0"],
    ("--severities", "3", "6"): ["--severities", "1..5", "got 6"],
    ("--severities", "two"): ["--severities", "'two'"],
    ("--workers", "0"): ["--workers", ">= 1", "got 0"],
    ("--seed", "-1"): ["--seed", ">= 0", "got -1"],
    ("--quality", "0"): ["--quality", "1..100", "got 0"],
    ("--device", "tpu"): ["--device", "'tpu'", "cpu"],
    ("--qualty", "3"): ["--qualty"],
}  # fmt: skip


@pytest.mark.parametrize(("options", "said"), WRONG.items(), ids=[" ".join(options) for options in WRONG])
def test_wrong_options(
    src: Path, tmp_path: Path, refuse: Callable[..., str], options: tuple[str, ...], said: list[str]
) -> None:
    message = refuse(src, tmp_path / "dest", *options)
    assert all(part in message for part in said), message
    assert not (tmp_path / "dest").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_no_gpu(src: Path, tmp_path: Path, refuse: Callable[..., str]) -> None:
    assert "--device cuda needs a GPU" in refuse(src, tmp_path / "dest", "--device", "cuda")


def test_wrong_source(src: Path, tmp_path: Path, refuse: Callable[..., str]) -> None:
    dest = tmp_path / "dest"
    assert f"SRC must be an existing folder that holds CLASS/* images, got {tmp_path / 'no'}" in refuse(tmp_path / "no", dest)
    (tmp_path / "file").touch()
    assert "SRC must be an existing folder" in refuse(tmp_path / "file", dest)
    flat = tmp_path / "flat"
    flat.mkdir()
    assert "SRC" in refuse(flat, dest)
    shutil.copy(src / "ant" / "grey.png", flat)
    assert "must hold one folder per class, got 1 images directly inside" in refuse(flat, dest)
    (tmp_path / "empty" / "ant").mkdir(parents=True)
    assert "SRC: " in refuse(tmp_path / "empty", dest)
    twins = Path(shutil.copytree(src, tmp_path / "twins"))
    shutil.copy(twins / "ant" / "grey.png", twins / "ant" / "big.png")
    message = refuse(twins, dest)
    assert "ant/big.jpg and ant/big.png, both ant/big.JPEG" in message
    assert not dest.exists()


def test_unreadable_images(src: Path, whole: Path, tmp_path: Path, refuse: Callable[..., str]) -> None:
    mine, dest = Path(shutil.copytree(src, tmp_path / "val")), tmp_path / "dest"
    bad = mine / "cat" / "224.jpg"
    good = bad.read_bytes()
    bad.write_bytes(good[:-1000])
    (mine / "ant" / "zero.png").touch()
    for workers in (1, 2):
        message = refuse(mine, dest, *FEW, "--workers", workers)
        assert str(mine / "ant" / "zero.png") in message
        assert "and 1 more" in message
        assert "replace or remove it" in message
        assert not dest.exists(), "nothing is written"
    (mine / "ant" / "zero.png").unlink()
    assert f"unreadable image {bad}: image file is truncated" in refuse(mine, dest, *FEW)
    bad.write_bytes(good)
    make(mine, dest, *FEW)
    assert files(dest) == files(whole)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_corruption_that_cannot_be_made(
    src: Path, tmp_path: Path, refuse: Callable[..., str], monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    """As frost without its photographs. Nothing is written, not even in the cells before it."""

    def fail(*arguments: object) -> None:
        raise ValueError("frost needs photographs")

    monkeypatch.setitem(CORRUPTIONS, "frost", Corruption(fail, fail, group="weather"))
    chosen = ("--corruptions", "contrast", "frost", "--severities", 1)
    message = refuse(src, tmp_path / "dest", *chosen, "--workers", workers)
    assert "corruption frost of 224x224 images cannot be made: frost needs photographs" in message
    assert not (tmp_path / "dest").exists()


@pytest.mark.parametrize("workers", [1, 2])
def test_image_that_breaks_later(src: Path, whole: Path, tmp_path: Path, refuse: Callable[..., str], workers: int) -> None:
    """Its size and first 4 KiB, which the fingerprint sees, are as before."""
    mine, dest = Path(shutil.copytree(src, tmp_path / "val")), tmp_path / "dest"
    bad = mine / "ant" / "dots.in.name.png"
    good = bad.read_bytes()
    assert len(good) > 6000
    make(mine, dest, "--corruptions", "contrast", "--severities", 1)
    bad.write_bytes(good[:4500] + b"\xff" * (len(good) - 4500))
    message = refuse(mine, dest, *FEW, "--workers", workers)
    assert f"unreadable image {bad}: " in message
    assert "restore it, the same command continues" in message
    bad.write_bytes(good)
    make(mine, dest, *FEW)
    assert files(dest) == files(whole)


def test_dest_inside_src(src: Path, tmp_path: Path, refuse: Callable[..., str]) -> None:
    (tmp_path / "link").symlink_to(src)
    for inside in (src, src / "out", src / "ant" / ".." / "out", tmp_path / "link" / "out"):
        assert "DEST must lie outside SRC" in refuse(src, inside)
    assert not (src / "out").exists()


def test_foreign_dest(src: Path, dest: Path, tmp_path: Path, refuse: Callable[..., str]) -> None:
    foreign = tmp_path / "foreign"
    (foreign / "fog" / "1").mkdir(parents=True)
    (foreign / "fog" / "1" / "x.JPEG").touch()
    assert f"got {foreign / 'fog' / '1' / 'x.JPEG'}" in refuse(src, foreign, *FEW)
    assert list(files(foreign)) == ["fog/1/x.JPEG"]
    (tmp_path / "file").touch()
    assert "DEST must be a folder, got the file" in refuse(src, tmp_path / "file", *FEW)
    for name in ("notes.txt", "contrast/1/ant/other.JPEG", "contrast/2/ant/big.JPEG", "contrast/1/ant/.other.JPEG.7.tmp"):
        path = dest / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        assert f"got {path}: choose an empty or new DEST" in refuse(src, dest, *FEW)
        assert path.exists()
        path.unlink()
    make(src, dest, *FEW)


def test_dest_of_something_else(src: Path, dest: Path, tmp_path: Path, refuse: Callable[..., str]) -> None:
    before = times(dest)
    assert f"{dest} was made with seed 0, got 1: choose another DEST or the same seed" in refuse(src, dest, "--seed", 1)
    assert "was made with quality 85, got 90" in refuse(src, dest, "--quality", 90)
    other = Path(shutil.copytree(src, tmp_path / "other"))
    shutil.copy(other / "ant" / "grey.png", other / "cat" / "grey.png")
    assert "was made with source_fingerprint" in refuse(other, dest)
    manifest = dest / "manifest.json"
    text = manifest.read_text()
    for damage, said in (
        (text[:50], "cannot be read"),
        ("[]", "must be of the format"),
        ('{"format": "other"}', "of the format"),
    ):
        manifest.write_text(damage)
        assert said in refuse(src, dest, *FEW)
        assert said in refuse(src, dest, "--verify")
    manifest.write_text(text)
    assert {**before, manifest: 0} == {**times(dest), manifest: 0}


def test_two_runs_at_once(src: Path, dest: Path, refuse: Callable[..., str]) -> None:
    descriptor = os.open(dest / ".lock", os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        assert f"another run is at work in {dest}" in refuse(src, dest)
    finally:
        os.close(descriptor)
    make(src, dest, *FEW)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("workers", [1, 2])
def test_full_disk(src: Path, whole: Path, tmp_path: Path, refuse: Callable[..., str], number: int, workers: int) -> None:
    dest = tmp_path / "dest"
    replace, left = os.replace, [9]

    def full(old: str, new: str) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(number, os.strerror(number))
        replace(old, new)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "replace", full)
        message = refuse(src, dest, *FEW, "--workers", workers)
    assert message.startswith(f"error: cannot write {dest}/")
    assert f"{os.strerror(number)}; free space there or choose another DEST; the same command continues" in message
    done = files(dest)
    assert 8 <= len(done) <= 16
    assert all(files(whole)[name] == data for name, data in done.items()), "nothing half-written"
    make(src, dest, *FEW, "--workers", 1)
    assert files(dest) == files(whole)


@pytest.mark.parametrize("below", [".", "new"])
def test_no_permission(src: Path, tmp_path: Path, refuse: Callable[..., str], below: str) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o555)
    if os.access(closed, os.W_OK):
        pytest.skip("root may write everywhere")
    assert "Permission denied; free space there or choose another DEST" in refuse(src, closed / below)


def test_read_only_dest(src: Path, dest: Path, refuse: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != dest)
    assert f"cannot write {dest}: Permission denied" in refuse(src, dest)
    make(src, dest, *FEW, "--verify")


def test_verify(src: Path, dest: Path, refuse: Callable[..., str], capsys: pytest.CaptureFixture[str]) -> None:
    make("no source", dest, "--verify", "--workers", 2)
    assert "all 48 images of 6 cells match" in capsys.readouterr().out
    flipped = dest / "pixelate" / "5" / "bee" / "cmyk.JPEG"
    good = flipped.read_bytes()
    flipped.write_bytes(good[:500] + bytes([good[500] ^ 1]) + good[501:])
    make(src, dest, "--verify", "--corruptions", "contrast")
    for options in ((), ("--workers", 2), ("--corruptions", "pixelate", "--severities", 5)):
        assert f"{flipped} does not match its checksum: delete it" in refuse(src, dest, "--verify", *options)
    flipped.unlink()
    assert f"{flipped} is missing" in refuse(src, dest, "--verify")
    make(src, dest, *FEW)
    assert flipped.read_bytes() == good
    make(src, dest, "--verify")
    assert "without fog" in refuse(src, dest, "--verify", "--corruptions", "fog")
    (dest / "pixelate" / "5.sha256").write_bytes(b"")
    assert "5.sha256 is not the one in the manifest" in refuse(src, dest, "--verify")
    assert "DEST must be a folder" in refuse(src, dest / "none", "--verify")


def test_a_damaged_file_gets_no_new_checksum(src: Path, dest: Path, whole: Path, refuse: Callable[..., str]) -> None:
    flipped = dest / "contrast" / "5" / "bee" / "cmyk.JPEG"
    good = flipped.read_bytes()
    flipped.write_bytes(good[:500] + bytes([good[500] ^ 1]) + good[501:])
    (dest / "contrast" / "5" / "ant" / "grey.JPEG").unlink()  # so the cell has to be finished again
    for _ in range(2):
        assert f"{flipped} differs from its checksum in {dest / 'contrast' / '5.sha256'}" in refuse(src, dest, *FEW)
    flipped.unlink()
    make(src, dest, *FEW)
    assert files(dest) == files(whole)


def test_a_cut_file_is_made_again(src: Path, dest: Path, whole: Path) -> None:
    """As a power failure may leave it; sizes are looked at on every start."""
    for name, left in (("contrast/1/ant/grey.JPEG", 0), ("pixelate/1/cat/224.JPEG", 900)):
        with open(dest / name, "r+b") as file:
            file.truncate(left)
    make(src, dest, *FEW)
    assert files(dest) == files(whole)


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="needs coreutils")
def test_sha256sum_agrees(dest: Path) -> None:
    command = ["sh", "-c", "sha256sum -c --quiet --strict */*.sha256"]
    assert subprocess.run(command, cwd=dest, capture_output=True).returncode == 0
    (dest / "contrast" / "5" / "bee" / "cmyk.JPEG").write_bytes(b"")
    assert "contrast/5/bee/cmyk.JPEG: FAILED" in subprocess.run(command, cwd=dest, capture_output=True, text=True).stdout


def test_other_versions_are_mentioned(src: Path, dest: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = json.loads((dest / "manifest.json").read_text())
    manifest["sessions"][0]["versions"]["pillow"] = "9.0"
    (dest / "manifest.json").write_text(json.dumps(manifest))
    make(src, dest, "--corruptions", "saturate", "--severities", 1)
    assert "holds files made with pillow 9.0, now it is" in capsys.readouterr().out
