"""scripts/corruption_peers.py and bench_corruptions.py: how peers are loaded, compared and timed, with made-up peers."""

import subprocess
import sys
from pathlib import Path

import bench_corruptions
import corruption_peers
import corruption_tasks
import numpy as np
import pytest
import torch
from bench_corruptions import OneCore, measure_one_core, one_core_goals, one_core_line, shared_work
from corruption_peers import PACKAGES, Likeness, Peer, likeness, load, load_all
from torch import Tensor

from gch_bench.errors import UserError

SCRIPT = Path(__file__).parents[2] / "scripts" / "bench_corruptions.py"
NOISE, DETERMINISTIC = "gaussian_noise", "contrast"


def half(image: np.ndarray, name: str, severity: int) -> np.ndarray:
    """A made-up corruption: half of the levels, and for `gaussian_noise` noise from NumPy's global state."""
    return image // 2 + (np.random.randint(0, 20, image.shape) if name == NOISE else 0)


@pytest.fixture(autouse=True)
def ours(monkeypatch: pytest.MonkeyPatch) -> None:
    def corrupt(images: Tensor, name: str, severity: int, ids: Tensor, seed: int = 0) -> Tensor:
        return torch.from_numpy(np.uint8([half(image, name, severity) for image in images.numpy()]))

    def corrupt_all(images: Tensor, cells: list[tuple[str, int]], ids: Tensor) -> list[Tensor]:
        return [corrupt(images, *cell, ids) for cell in cells]

    for module in (corruption_peers, corruption_tasks):
        monkeypatch.setattr(module, "corrupt", corrupt)
    monkeypatch.setattr(corruption_tasks, "corrupt_all", corrupt_all)
    monkeypatch.setattr(corruption_tasks, "CALLS_SECONDS", 0.001)
    np.random.seed(0)


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """A folder like the one that `make peers` fills. Each package says under which name it was imported."""
    for name, module in PACKAGES.items():
        package = tmp_path / name / module
        package.mkdir(parents=True)
        (package / "__init__.py").write_text("from .corruptions import *\n")
        (package / "corruptions.py").write_text(
            "import pkg_resources\n"
            "def corrupt(image, severity=1, corruption_name=None):\n"
            "    return __name__, pkg_resources.resource_filename(__name__, './frost/frost1.png'), severity, corruption_name\n"
        )
        about = tmp_path / name / f"{module}-1.2.3.dist-info"
        about.mkdir()
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2.3\n")
    return tmp_path


def test_peers_are_loaded_each_from_its_folder_and_nothing_else_changes(
    installed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "modules", sys.modules.copy())
    path, modules = list(sys.path), set(sys.modules)
    peers = load_all(installed)
    assert [(peer.name, peer.version) for peer in peers] == [(name, "1.2.3") for name in PACKAGES]
    for peer in peers:
        module, frost, *arguments = peer.corrupt(np.zeros((4, 4, 3), np.uint8), "fog", 3)
        assert arguments == [3, "fog"]
        assert frost == str(installed / peer.name / PACKAGES[peer.name] / "frost/frost1.png")
        assert module != "imagecorruptions.corruptions"  # the name of the package that has our photographs of frost
    assert sys.path == path
    assert not {"imagecorruptions", "pkg_resources"} & (set(sys.modules) - modules)


def test_a_missing_peer_is_one_line(installed: Path) -> None:
    (installed / "imgcorr/imgcorr/__init__.py").unlink()
    with pytest.raises(UserError, match=r"lacks the package imgcorr: .* `make peers`$"):
        load(installed, "imgcorr")
    command = [sys.executable, str(SCRIPT), "--device", "cpu", "--peers", str(installed)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {installed} lacks the package imgcorr")
    assert done.stderr.count("\n") == 1


@pytest.fixture
def images() -> Tensor:
    return corruption_tasks.photographs(40, 4)


def test_outputs_of_deterministic_corruptions_agree_within_one_level(images: Tensor) -> None:
    def far(image: np.ndarray, name: str, severity: int) -> np.ndarray:
        out = half(image, name, severity).astype(float)
        out[:2] += 1.99 if severity < 5 else 2  # 1 in 20 of the values
        return out

    same, one_off, far_off = likeness([half, lambda *each: half(*each) + 1.5, far], DETERMINISTIC, images)
    assert same == Likeness(True, "100.00%")
    assert one_off == Likeness(True, "100.00%")
    assert far_off == Likeness(False, "95.00%")


def test_outputs_of_random_corruptions_agree_by_their_features(images: Tensor) -> None:
    def brighter(image: np.ndarray, name: str, severity: int) -> np.ndarray:
        return half(image, name, severity) + (12 if severity == 2 else 0)

    same, other = likeness([half, brighter], NOISE, images, draws=8)
    assert same.agree
    assert same.figure.startswith("0 of 100 off")
    assert not other.agree


def measured(ours: float, one: float, agree: tuple[bool, ...], **peers: float) -> OneCore:
    turns = {key: [ms, ms] for key, ms in {"ours": ours, "one": one, **peers}.items()}
    names = [name for name in peers if name != "Pillow"]
    return OneCore(turns, {name: Likeness(each, "") for name, each in zip(names, agree, strict=True)}, 1.0)


def test_goals_of_one_core() -> None:
    quick = measured(1, 2, (True, False), imgcorr=12, other=3)
    assert (quick.best, quick.agreeing, quick.ahead, quick.one_is_quick) == ("other", [12], True, True)
    slow = measured(4, 5, (True, False), imgcorr=8, other=3)
    assert (slow.ahead, slow.one_is_quick) == (True, False)  # behind only where the outputs do not agree
    assert not measured(4, 5, (True, True), imgcorr=8, other=3).ahead
    jpeg = measured(1.04, 1.06, (True,), imgcorr=1.0, Pillow=1.0)
    assert (jpeg.ahead, jpeg.one_is_quick) == (True, False)
    text = "".join(one_core_goals({"fog": quick, "snow": slow}))
    assert "ratio to imgcorr: 4.90 over 2 corruptions (goal 10: NO)" in text
    assert "ratio to best: 1.50 over 2 corruptions (goal 6: NO)" in text
    assert "whose outputs agree: 4.90" in text
    assert "Ahead of every peer whose outputs agree: yes." in text
    assert "A batch of 1 no slower than the best peer: NO: snow." in text


@pytest.mark.parametrize("name", [DETERMINISTIC, "jpeg_compression"])
def test_one_core_is_measured(name: str, images: Tensor) -> None:
    peers = [Peer("imgcorr", "1", half), Peer("other", "1", half)]
    found = measure_one_core(name, images, 2, peers)
    assert set(found.turns) == {"ours", "one", "imgcorr", "other"} | ({"Pillow"} if name == "jpeg_compression" else set())
    assert all(len(turns) == 2 and min(turns) > 0 for turns in found.turns.values())
    columns = bench_corruptions.ONE_CORE.splitlines()[-1]
    assert one_core_line(name, found).count("|") == columns.format(columns=2 * len(peers) * "---:|").count("|")


def test_shared_work_is_measured(images: Tensor) -> None:
    lines = list(shared_work([NOISE, "saturate"], images, 2))
    assert [each.split("|")[1].strip() for each in lines[1:]] == [
        f"{NOISE}, 5 severities", "saturate, 5 severities", "all 5 cells of 1 corruptions",
    ]  # fmt: skip
