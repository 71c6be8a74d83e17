"""`pip install gch-bench` without extras gives the corruptions alone: they need no package of the harness, and import fast."""

import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions

import pytest
from conftest import REPOSITORY

from gch_bench.corruptions import CORRUPTIONS

PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
ENTRY_POINTS = ["train.py", "evaluate.py", "diagnose.py", "report.py", "scripts/make_imagenet_c.py"]
# Python then works as if the modules NAMES were not installed.
WITHOUT = """
import sys
class Without:
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in NAMES else self.finder.find_spec(name, path, target)
    def __getattr__(self, name):
        return getattr(self.finder, name)
sys.meta_path[:] = map(Without, sys.meta_path)
"""


def harness_modules() -> set[str]:
    """The top-level modules of the extra `harness`."""
    named = {re.match(r"[\w-]+", line)[0].lower() for line in PROJECT["optional-dependencies"]["harness"]}  # type: ignore[index]
    return {
        module for module, owners in packages_distributions().items() if named & {re.sub("_", "-", o).lower() for o in owners}
    }


def without_harness(code: str, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", f"NAMES = {harness_modules() | {'skimage', 'cv2'}!r}\n{WITHOUT}\n{code}", *arguments]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)


def test_the_corruptions_need_no_package_of_the_harness() -> None:
    assert {"timm", "hydra", "pandas", "scipy", "sklearn", "yaml", "matplotlib", "wandb"} <= harness_modules()
    code = """
import torch
from gch_bench.corruptions import CORRUPTIONS, ImageNetC, corrupt
images = torch.randint(0, 256, (2, 3, 33, 40), dtype=torch.uint8)
for name in CORRUPTIONS:
    print(name, *corrupt(images, name, 3, torch.arange(2)).shape)
print(*ImageNetC("fog", 3)(images).shape)
"""
    done = without_harness(code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [*(f"{name} 2 3 33 40" for name in CORRUPTIONS), "2 3 33 40"]


@pytest.mark.parametrize("script", ENTRY_POINTS)
def test_entry_points_name_the_harness(script: str) -> None:
    done = without_harness(f"import runpy; sys.path.insert(0, '.'); runpy.run_path({script!r}, run_name='__main__')")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "pip install 'gch-bench[harness]'" in line


def test_the_corruptions_load_little_besides_torch_and_numba() -> None:
    """So their import takes little longer than that of these two. torchvision is imported when ImageNetC is first used."""
    modules = "print(*{name.partition('.')[0] for name in sys.modules} - sys.stdlib_module_names)"
    code = "import sys, numba, PIL.Image, torch\n{}\nimport gch_bench.corruptions\n{}"
    done = subprocess.run(
        [sys.executable, "-c", code.format(modules, modules)], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    before, after = (set(line.split()) for line in done.stdout.splitlines())
    assert after - before == {"gch_bench"}
    assert "torchvision" not in after


def test_dependencies_are_named_once() -> None:
    names = [re.match(r"[\w-]+", line)[0] for line in PROJECT["dependencies"] + PROJECT["optional-dependencies"]["harness"]]  # type: ignore[index]
    assert len(names) == len(set(names))
