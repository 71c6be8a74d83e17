"""What the tests of scripts/make_imagenet_c.py share: a source of odd images, the tree made from it, refusals."""

import importlib.util
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import REPOSITORY, one_line
from PIL import Image

SCRIPT = REPOSITORY / "scripts" / "make_imagenet_c.py"
FEW = ("--corruptions", "gaussian_noise", "contrast", "pixelate", "--severities", "1", "5")
CELLS = [(name, severity) for name in ("gaussian_noise", "contrast", "pixelate") for severity in (1, 5)]
LONG = ("--corruptions", "zoom_blur", "shot_noise", "saturate", "gaussian_blur", "brightness")  # x 5 severities
IMAGES = {  # in the order of their ids
    "ant/big.jpg": ((300, 260), "RGB"),
    "ant/dots.in.name.png": ((90, 60), "RGB"),
    "ant/grey.png": ((40, 70), "L"),
    "bee/alpha.png": ((64, 64), "RGBA"),
    "bee/cmyk.JPG": ((70, 50), "CMYK"),
    "bee/palette.png": ((33, 61), "P"),
    "cat/224.jpg": ((224, 224), "RGB"),
    "cat/turned.jpg": ((50, 90), "RGB"),  # EXIF says so; the reference does not turn it
}


def load_script():
    spec = importlib.util.spec_from_file_location("make_imagenet_c", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


script = load_script()


def make(*arguments: object) -> None:
    script.main([str(argument) for argument in arguments])


def files(folder: Path) -> dict[str, bytes]:
    """Everything below the folder but the manifest, which has times in it."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "manifest.json"
    }


def times(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def target(name: str) -> str:
    return os.path.splitext(name)[0] + ".JPEG"


@pytest.fixture
def refuse(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """The one line and exit code 2 of a refusal."""

    def run(*arguments: object) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            make(*arguments)
        return one_line(stopped.value, capsys)

    return run


@pytest.fixture(scope="module")
def src(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("source") / "val"
    rng = np.random.default_rng(0)
    for name, (size, mode) in IMAGES.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = rng.integers(0, 256, (size[1] // 4 + 1, size[0] // 4 + 1, 4), dtype=np.uint8)
        image = Image.fromarray(noise, "RGBA").resize(size, Image.Resampling.BICUBIC)
        image = image if mode == "RGBA" else image.convert("RGB").convert(mode)
        exif = Image.Exif()
        exif[0x0112] = 6 if "turned" in name else 1
        image.save(path, **({"exif": exif} if path.suffix == ".jpg" else {}))
    (root / "bee" / "notes.txt").write_text("not an image")
    return root


@pytest.fixture(scope="module")
def whole(src: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    dest = tmp_path_factory.mktemp("whole") / "new" / "dest"
    make(src, dest, *FEW, "--workers", 1)
    return dest


@pytest.fixture
def dest(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "dest"))
