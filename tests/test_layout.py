"""The floor plan holds: imports point one way, files stay short, and the README's map is the tree."""

import ast
import re
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
PACKAGE = REPOSITORY / "gch_bench"
MODULES = {
    ".".join(path.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}
# What each part of the package may import besides itself. The ground imports nothing above it.
GROUND = {
    "errors", "checks", "rng", "memory", "threads", "calibration", "risk_coverage", "metrics",
    "files", "provenance", "distributed", "cores",
    "heartbeat", "stopping", "suites",
}  # fmt: skip
CONFIG = {"errors", "checks", "suites", "config"}
LOW = GROUND | CONFIG
ALLOWED = {
    **dict.fromkeys(GROUND, GROUND),
    "config": CONFIG,
    "noise": LOW,
    "corruptions": LOW,
    "spectral": GROUND,
    "geometry": LOW | {"spectral", "results"},
    "data": LOW | {"corruptions"},
    "model": LOW | {"noise", "data"},
    "results": LOW | {"corruptions"},
    "loggers": LOW,
    "display": LOW,
    "report": LOW | {"results", "noise"},
    "training": LOW | {"noise", "data", "model", "results"},
    "evaluation": LOW | {"noise", "corruptions", "data", "model", "results"},
    "apps": {
        *LOW, "noise", "corruptions", "spectral", "geometry", "data", "model", "results", "loggers", "display", "report",
        "training", "evaluation",
    },
}  # fmt: skip
# Imports against the arrows: (module, what it imports). `spectral.diagnose` is a facade: those who have a network find
# its whole geometry where they find the formulas. It is imported inside the function, so that the formulas need nothing above.
EXCEPTIONS = {("gch_bench.spectral", "gch_bench.geometry.network")}
LIGHT = {"display": {"torch", "timm"}, "loggers": {"torch", "timm"}, "report": {"timm"}, "config": {"torch", "timm", "numpy"}}


def part(module: str) -> str:
    """The part of the package that a module belongs to: `gch_bench.data.sets` is in `data`."""
    return module.split(".")[1] if "." in module else ""


def imported(path: Path) -> set[str]:
    """The names of all modules that a file imports, wherever in the file, and of `from package import module` both."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def test_every_part_of_the_package_has_its_place() -> None:
    assert {part(module) for module in MODULES} - {""} <= set(ALLOWED)
    assert all(name in imported(MODULES[module]) for module, name in EXCEPTIONS)


@pytest.mark.parametrize("module", sorted(set(MODULES) - {"gch_bench"}))
def test_imports_point_one_way(module: str) -> None:
    own = part(module)
    excepted = {name for importer, name in EXCEPTIONS if importer == module}
    for name in imported(MODULES[module]) & set(MODULES) - {"gch_bench"} - excepted:
        assert part(name) in ALLOWED[own] | {own}, f"{module} imports {name}, which lies above it"


@pytest.mark.parametrize(("own", "heavy"), LIGHT.items())
def test_light_parts_know_no_heavy_library(own: str, heavy: set[str]) -> None:
    for module, path in MODULES.items():
        if part(module) == own:
            assert not {name.split(".")[0] for name in imported(path)} & heavy, module


@pytest.mark.parametrize(("module", "heavy"), [("loggers", "torch"), ("display", "torch"), ("report.tables", "timm")])
def test_light_parts_load_no_heavy_library_through_others(module: str, heavy: str) -> None:
    code = f"import sys, gch_bench.{module}; sys.exit({heavy!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY).returncode == 0


def test_formulas_load_nothing_above_them() -> None:
    code = "import sys, gch_bench.spectral.nulls; sys.exit('gch_bench.geometry' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY).returncode == 0


def test_files_stay_short() -> None:
    folders = [PACKAGE, REPOSITORY / "scripts", REPOSITORY / "tests", *REPOSITORY.glob("*.py")]
    files = [path for folder in folders for path in ([folder] if folder.is_file() else folder.rglob("*.py"))]
    long = {str(path): lines for path in files if (lines := len(path.read_text().splitlines())) > 400}
    assert len(files) > 100
    assert not long


def test_the_readme_names_every_file() -> None:
    text = (REPOSITORY / "README.md").read_text()
    named = re.findall(r"[\w*]+\.py", text[text.index("## Where things are") :])
    files = {path.name for path in PACKAGE.rglob("*.py")} - {"__init__.py"}
    missing = {name for name in files if not any(fnmatch(name, pattern) for pattern in named)}
    assert not missing, "the README's map lacks these"
    there = {path.name for folder in (PACKAGE, REPOSITORY / "scripts", REPOSITORY / "tests") for path in folder.rglob("*.py")}
    there |= {path.name for path in REPOSITORY.glob("*.py")}
    gone = {pattern for pattern in named if not any(fnmatch(name, pattern) for name in there)}
    assert not gone, "the README's map names files that are not there"
