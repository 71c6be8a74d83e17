"""scripts/make_imagenet_c.py: the tree, its bytes against an independent pipeline, stopping and continuing."""

import hashlib
import io
import json
import multiprocessing
import os
import runpy
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from corruption_references import notes_of_work
from made_tree import CELLS, FEW, IMAGES, LONG, SCRIPT, dest, files, make, src, target, times, whole  # noqa: F401 - fixtures
from PIL import Image
from torchvision.datasets import ImageFolder

from gch_bench.apps.make_imagenet_c import generate
from gch_bench.apps.make_imagenet_c.tree import Tree
from gch_bench.corruptions import corrupt, jpeg_roundtrip
from gch_bench.data.folders import fingerprint_of, image_folder


def test_the_tree(whole: Path) -> None:
    expected = {f"{name}/{severity}/{target(image)}" for name, severity in CELLS for image in IMAGES}
    assert set(files(whole)) == expected | {f"{name}/{severity}.sha256" for name, severity in CELLS}
    manifest = json.loads((whole / "manifest.json").read_text())
    assert manifest["identity"]["images"] == len(IMAGES)
    assert manifest["identity"]["seed"] == 0
    assert set(manifest["cells"]) == {f"{name}/{severity}" for name, severity in CELLS}
    for cell, facts in manifest["cells"].items():
        size = sum(path.stat().st_size for path in (whole / cell).rglob("*.JPEG"))
        assert facts == {
            "files": len(IMAGES),
            "bytes": size,
            "sha256": hashlib.sha256((whole / f"{cell}.sha256").read_bytes()).hexdigest(),
        }


@pytest.mark.parametrize("number", range(len(IMAGES)), ids=list(IMAGES))
def test_each_image_is_the_pipelines(src: Path, whole: Path, number: int) -> None:
    name = list(IMAGES)[number]
    with Image.open(src / name) as file:
        image = file.convert("RGB")
    width, height = image.size
    short = min(width, height)
    width, height = int(256 * width / short), int(256 * height / short)
    left, top = round((width - 224) / 2), round((height - 224) / 2)
    image = image.resize((width, height), Image.Resampling.BILINEAR).crop((left, top, left + 224, top + 224))
    pixels = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)[None]
    for cell, severity in CELLS:
        corrupted = corrupt(pixels, cell, severity, torch.tensor([number]), seed=0, parameters="imagenet_224")
        expected = io.BytesIO()
        Image.fromarray(corrupted[0].permute(1, 2, 0).numpy()).save(expected, "JPEG", quality=85, optimize=True)
        stored = whole / cell / str(severity) / target(name)
        assert stored.read_bytes() == expected.getvalue()
        with Image.open(stored) as file:  # what an evaluation that generates the corruptions sees with jpeg_roundtrip
            assert np.array_equal(np.asarray(file), jpeg_roundtrip(corrupted)[0].permute(1, 2, 0).numpy())


def test_ids_are_those_of_an_evaluation(src: Path) -> None:
    """So a stored tree has the draws that evaluate.py makes on the fly."""
    images = image_folder(src.parent, "val", other=None).images
    assert images.names == list(IMAGES)
    options = generate.Options(src, src.parent / "dest", None, None, 0, 1, "cpu", 85, False)
    assert generate.read_source(options).identity["source_fingerprint"] == fingerprint_of(images, sizes=True)


def test_torchvision_reads_a_cell(whole: Path) -> None:
    data = ImageFolder(str(whole / "contrast" / "5"))
    assert data.classes == ["ant", "bee", "cat"]
    assert [label for _, label in data.samples] == [0, 0, 0, 1, 1, 1, 2, 2]
    assert all(image.size == (224, 224) for image, _ in data)


def test_workers_change_no_byte(src: Path, whole: Path, tmp_path: Path) -> None:
    make(src, tmp_path / "dest", *FEW, "--workers", 2)
    assert files(tmp_path / "dest") == files(whole)


def test_threads_of_the_gpu_path_change_no_byte(src: Path, whole: Path, dest: Path) -> None:
    options = generate.Options(src, dest, None, None, 0, 1, "cpu", 85, False)
    source, tree = generate.read_source(options), Tree(dest)
    found = {cell: np.zeros(len(IMAGES), dtype=bool) for cell in tree.cells}
    before = times(dest)
    with ThreadPoolExecutor(4) as pool:
        made = list(generate._Maker(tree, source, found, options, pool.map)(range(len(IMAGES))))
    assert sum(one.new for one in made) == len(CELLS) * len(IMAGES)
    assert files(dest) == files(whole)
    assert all(before[path] != now for path, now in times(dest).items() if path.suffix == ".JPEG")


def test_corruptions_are_added_later(src: Path, whole: Path, tmp_path: Path) -> None:
    dest = tmp_path / "dest"
    make(src, dest, "--corruptions", "contrast", "--severities", 5, "--workers", 1)
    first = times(dest / "contrast" / "5")
    make(src, dest, "--corruptions", "gaussian_noise", "pixelate", "--severities", 5, "--workers", 2)
    make(src, dest, *FEW, "--workers", 1)
    assert files(dest) == files(whole)
    assert first == times(dest / "contrast" / "5")
    assert len(json.loads((dest / "manifest.json").read_text())["sessions"]) == 3


def test_cells_share_work(src: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What severities compute of an image is computed once, also where cells lack the same images of a batch."""
    computed = notes_of_work(monkeypatch, ("contrast", "brightness"))
    arguments = ["--corruptions", "contrast", "brightness", "--workers", 1]
    make(src, tmp_path / "dest", *arguments)
    tried = 2  # each corruption, on a blank image before the work begins
    assert len(computed) == tried + 2 * len(IMAGES), "for five severities once"
    first, second, *_ = (target(image) for image in IMAGES)
    lost = [
        ("contrast/1", first),
        ("contrast/4", first),
        ("brightness/2", first),
        ("brightness/3", first),
        ("brightness/3", second),
    ]
    for cell, image in lost:
        (tmp_path / "dest" / cell / image).unlink()
    computed.clear()
    make(src, tmp_path / "dest", *arguments)
    assert len(computed) == tried + 1 + 1 + 2, "two cells of contrast lack the same image, two of brightness different ones"


def test_a_finished_tree_is_left_alone(src: Path, dest: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = times(dest)
    make(src, dest, *FEW)
    assert "nothing left to do" in capsys.readouterr().out
    assert before == times(dest)


def test_seed_and_quality_matter(src: Path, whole: Path, tmp_path: Path) -> None:
    make(src, tmp_path / "dest", "--corruptions", "gaussian_noise", "contrast", "--severities", 1, "--seed", 1, "--workers", 1)
    other = files(tmp_path / "dest")
    assert all((data == files(whole)[name]) == name.startswith("contrast") for name, data in other.items())


def children(pid: int) -> list[int]:
    """The processes that `pid` started and that still run."""
    stats = (path.read_text().split() for path in Path("/proc").glob("[0-9]*/stat") if running(int(path.parent.name)))
    return [int(stat[0]) for stat in stats if int(stat[3]) == pid]


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except OSError:
        return False


def slow_run(arguments: list[str], errors: Path) -> None:
    """The script as __main__, in a session of its own, at most 33 files a second and process."""
    os.setsid()
    sys.stdout, sys.stderr = open(os.devnull, "w"), open(errors, "w", buffering=1)  # noqa: SIM115
    replace = os.replace
    os.replace = lambda old, new: (time.sleep(0.03), replace(old, new))  # type: ignore[assignment]
    sys.argv = [str(SCRIPT), *arguments]
    runpy.run_path(str(SCRIPT), run_name="__main__")


def stopped_run(src: Path, dest: Path, how: str, whom: str) -> tuple[int | None, str]:
    """A run of LONG with two workers, signalled in its midst: (exit code, stderr), once nothing of it runs any more."""
    arguments = [str(src), str(dest), *LONG, "--workers", "2"]
    errors = dest.with_name("errors")
    process = multiprocessing.get_context("fork").Process(target=slow_run, args=(arguments, errors))
    process.start()
    deadline = time.monotonic() + 60
    while len(list(dest.glob("*/*/*/*.JPEG"))) < 10:
        assert time.monotonic() < deadline
        assert process.is_alive()
        time.sleep(0.01)
    workers = children(process.pid)
    assert len(workers) == 2
    number = getattr(signal, f"SIG{how}")
    if whom == "all":  # Ctrl-C in a terminal, scancel
        os.killpg(process.pid, number)
    else:
        os.kill(process.pid if whom == "main" else workers[0], number)
    process.join(30)
    while any(map(running, workers)) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not any(map(running, workers))
    return process.exitcode, errors.read_text()


@pytest.fixture(scope="module")
def long(src: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    dest = tmp_path_factory.mktemp("long") / "dest"
    make(src, dest, *LONG, "--workers", 2)
    return files(dest)


@pytest.mark.parametrize(
    ("how", "whom", "code", "said"),
    [
        ("INT", "all", 130, "stopped by SIGINT; the same command continues"),
        ("INT", "main", 130, "stopped by SIGINT; the same command continues"),
        ("TERM", "all", 143, "stopped by SIGTERM; the same command continues"),
        ("TERM", "main", 143, "stopped by SIGTERM; the same command continues"),
        ("KILL", "main", -9, ""),
        ("KILL", "worker", 2, "error: a worker process was killed"),
    ],
)
def test_stop_and_continue(
    src: Path, long: dict[str, bytes], tmp_path: Path, how: str, whom: str, code: int, said: str
) -> None:
    dest = tmp_path / "dest"
    returned, errors = stopped_run(src, dest, how, whom)
    assert returned == code, errors
    assert errors.startswith(said)
    assert len(errors.splitlines()) == bool(said), errors
    done = times(dest)
    del done[dest / "manifest.json"]
    early = files(dest)
    assert 10 <= len([name for name in early if name.endswith(".JPEG")]) < len(LONG[1:]) * 5 * len(IMAGES), "stopped midway"
    whole = [name for name in early if not name.endswith((".tmp", ".lock"))]
    assert all(early[name] == long[name] for name in whole), "whole files only"
    stale = dest / "zoom_blur" / "3" / "cat" / ".224.JPEG.99999.tmp"
    stale.parent.mkdir(parents=True, exist_ok=True)
    stale.write_bytes(b"half")
    cut = next(path for path in done if path.suffix == ".JPEG")
    cut.write_bytes(cut.read_bytes()[:-100])  # as a power failure may leave it
    make(src, dest, *LONG, "--workers", 1)
    assert files(dest) == long
    after = times(dest)
    assert all(after[path] == then for path, then in done.items() if path.suffix == ".JPEG" and path != cut)
