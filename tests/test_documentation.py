"""README and docs: links lead to files, files that the code names are there, and the commands compose as typed."""

import re
import shlex
from pathlib import Path

import pytest
from conftest import REPOSITORY
from hydra import compose, initialize_config_dir

from gch_bench.apps.cli import argument, diagnosis_config, report_config, run_config, with_recipe

PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
CODE = re.compile(r"^ *```(\w*)\n(.*?)^ *```", re.DOTALL | re.MULTILINE)  # language, code
COMMAND = re.compile(r"(python|torchrun|sbatch) .*\b(train|evaluate|diagnose|report)\.(py|sbatch)")


def commands() -> list[str]:
    """Every command of an entry point in the pages' blocks of code, once, without its comment."""
    blocks = [code for page in PAGES for language, code in CODE.findall(page.read_text()) if language in ("", "bash")]
    lines = [line.strip() for code in blocks for line in code.split("\n")]
    return list(dict.fromkeys(re.sub(r"\s+# .*", "", line) for line in lines if COMMAND.match(line)))


def anchors(page: Path) -> set[str]:
    """The names by which GitHub links to the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page: Path) -> None:
    for target, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)\s]*))?\)", page.read_text()):
        if not target.startswith(("http:", "https:")):
            file = page.parent / target if target else page
            assert file.exists(), target
            assert not anchor or anchor in anchors(file), f"{target}#{anchor}"


def test_pages_that_the_code_names_are_there() -> None:
    folders = [REPOSITORY / name for name in ("gch_bench", "scripts", "configs")]
    files = [path for folder in folders for suffix in ("py", "yaml") for path in folder.rglob(f"*.{suffix}")]
    named = {name for path in files for name in re.findall(r"docs/[\w.]+\.md", path.read_text())}
    assert len(named) > 3
    assert not {name for name in named if not (REPOSITORY / name).exists()}


@pytest.mark.parametrize("line", commands())
def test_commands_compose(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A command of README or docs is a configuration that its entry point accepts; of a sweep, its first choices are."""
    monkeypatch.chdir(REPOSITORY)
    words = shlex.split(line)
    start = next(i for i, word in enumerate(words) if COMMAND.match(f"python {word}"))
    script = Path(words[start]).stem
    given = [word for word in words[start + 1 :] if word not in ("-m", "--help")]
    if "-m" in words:
        given = [re.sub(r"^(\w+)=([\w.]+),.*", r"\1=\2", word) for word in given]
    overrides = [argument(word, noise_list=script == "diagnose") for word in given]
    with initialize_config_dir(str(REPOSITORY / "configs"), version_base="1.3"):
        config = compose(script, overrides=with_recipe(overrides) if script in ("train", "evaluate") else overrides)
        if script == "diagnose":
            diagnosis_config(config)
        elif script == "report":
            report_config(config)
        else:
            run_config(config, train=script == "train")
