"""Ways to a wrong number, a lost result or a hang that a reader of the code could think of."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import TINY, configuration
from PIL import Image

from gch_bench.apps.run import train_and_evaluate
from gch_bench.errors import UserError
from gch_bench.results.records import CELL_CLEAN, read_record
from gch_bench.training.checkpoint import rng_state, set_rng_state

Refused = Callable[..., str]
TWO_PROCESSES = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
QUICK = (*TINY, "recipe.epochs=1", "corruptions=none")


def run(folder: Path, *overrides: str, name: str = "train") -> dict:
    train_and_evaluate(configuration(*QUICK, f"output={folder}", *overrides, name=name))
    return json.loads((folder / "run.json").read_text())


def make_tree(root: Path, shade: int) -> Path:
    for split, count in (("train", 8), ("val", 4)):
        for number, name in enumerate(("cat", "dog")):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                Image.new("RGB", (16, 16), (100 * number + shade, 10 * i, 7)).save(root / split / name / f"{i}.png")
    return root


def tree_options(root: Path) -> tuple[str, ...]:
    return (
        "data=folder",
        f"data.root={root}",
        "data.size=null",
        "data.workers=0",
        "recipe=digits",
        "recipe.batch_size=4",
        "recipe.epochs=1",
    )


def test_other_images_are_another_run(tmp_path: Path, refused: Refused) -> None:
    """The same configuration over other pixels must not inherit the first images' weights."""
    first, second = make_tree(tmp_path / "a", 3), make_tree(tmp_path / "b", 4)
    run(tmp_path / "run", *tree_options(first))
    message = refused(*QUICK, *tree_options(second), f"output={tmp_path / 'run'}")
    assert "inputs.images" in message
    shutil.move(first, tmp_path / "moved")
    run(tmp_path / "run", *tree_options(tmp_path / "moved"))  # the same images elsewhere are the same run


def test_evaluation_follows_the_weights_not_their_path(tmp_path: Path, refused: Refused) -> None:
    run(tmp_path / "one")
    run(tmp_path / "two", "seed=1")
    weights = tmp_path / "weights.pt"
    shutil.copy(tmp_path / "one" / "checkpoints" / "last.pt", weights)
    before = run(tmp_path / "e", f"model.checkpoint={weights}", name="evaluate")
    shutil.copy(tmp_path / "two" / "checkpoints" / "last.pt", weights)
    message = refused(*QUICK, f"model.checkpoint={weights}", f"output={tmp_path / 'e'}", name="evaluate")
    assert "inputs.weights" in message
    after = run(tmp_path / "e2", f"model.checkpoint={weights}", name="evaluate")
    assert before["weights"] != after["weights"]


def test_two_processes_with_an_unreadable_image_stay_in_step(tmp_path: Path, cli) -> None:
    tree = make_tree(tmp_path / "tree", 3)
    (tree / "train" / "cat" / "2.png").write_bytes(b"no image")
    options = [
        *QUICK,
        *tree_options(tree),
        "recipe.batch_size=2",
        "recipe.epochs=2",
        "data.skip_bad=true",
        f"output={tmp_path / 'run'}",
    ]
    done = cli("train.py", *options, launcher=TWO_PROCESSES, timeout=120)
    assert done.returncode == 0, done.stderr
    facts = json.loads((tmp_path / "run" / "run.json").read_text())
    assert [Path(image["path"]).name for image in facts["skipped"]["train"]["images"]] == ["2.png"]


@pytest.mark.parametrize("option", ["recipe.mixup=0.8", "recipe.cutmix=1.0"])
def test_mixing_needs_pairs(tmp_path: Path, refused: Refused, option: str) -> None:
    message = refused(*QUICK, option, "recipe.batch_size=33", f"output={tmp_path / 'run'}")
    assert "even" in message
    assert "33" in message


def test_non_finite_weights_never_replace_a_good_checkpoint(tmp_path: Path, refused: Refused) -> None:
    """The loss is finite and its gradient is not: only the weights show it."""
    message = refused(*QUICK, "model.factory=tinynet:broken_gradient", "recipe.epochs=4", f"output={tmp_path / 'run'}")
    assert "non-finite" in message or "not finite" in message
    content = torch.load(tmp_path / "run" / "checkpoints" / "last.pt", weights_only=True)
    assert all(torch.isfinite(value).all() for value in content["model"].values())


def test_untrained_classifiers_are_not_evaluated(tmp_path: Path, refused: Refused) -> None:
    run(tmp_path / "run")
    weights = tmp_path / "run" / "checkpoints" / "last.pt"
    assert "train.py" in refused(
        *QUICK, f"model.checkpoint={weights}", "model.reset_head=true", f"output={tmp_path / 'e'}", name="evaluate"
    )


def test_numpy_state_is_whole() -> None:
    """Beta draws with alpha > 1 (mixup) use numpy's cached normal."""
    np.random.seed(0)
    np.random.standard_normal(1)
    state = rng_state(torch.device("cpu"))
    expected = np.random.standard_normal(3)
    np.random.seed(9)
    set_rng_state(state, torch.device("cpu"))
    np.testing.assert_array_equal(np.random.standard_normal(3), expected)


def test_uneven_severities(tmp_path: Path, cli) -> None:
    """More cells at other severities: recorded, without a common mean, and still reportable."""
    run(tmp_path / "run", "corruptions.names=[brightness]", "corruptions.severities=[1,3]", "logger=csv")
    run(tmp_path / "run", "corruptions.names=[contrast]", "corruptions.severities=[3]", "logger=csv")
    assert len(pd.read_csv(tmp_path / "run" / "summary.csv")) == 1 + 2 + 1
    done = cli("report.py", f"runs=[{tmp_path / 'run'}]")
    assert done.returncode == 0, done.stderr
    assert "shift: mean over severities 3, then over brightness, contrast" in done.stdout


def test_a_finished_run_stays_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More cells that fail leave the results, their provenance and the status as they were."""
    before = run(tmp_path / "run")

    def full(*arguments: object) -> None:
        raise UserError("cannot write: disk full")

    monkeypatch.setattr("gch_bench.results.shards.write_record", full)
    with pytest.raises(UserError):
        run(tmp_path / "run", "corruptions.names=[contrast]", "corruptions.severities=[1]")
    after = json.loads((tmp_path / "run" / "run.json").read_text())
    assert len(after["sessions"]) == 2
    assert {**after, "sessions": None} == {**before, "sessions": None}
    assert len(read_record(tmp_path / "run", CELL_CLEAN)) == 360


def test_summary_is_derived_again_and_foreign_files_are_ignored(tmp_path: Path) -> None:
    run(tmp_path / "run")
    expected = (tmp_path / "run" / "summary.csv").read_bytes()
    (tmp_path / "run" / "summary.csv").unlink()
    pd.DataFrame({"a": [1]}).to_parquet(tmp_path / "run" / "records" / "notes.parquet")
    pd.DataFrame({"a": [1]}).to_parquet(tmp_path / "run" / "records" / "notes-3.parquet")
    run(tmp_path / "run")
    assert (tmp_path / "run" / "summary.csv").read_bytes() == expected


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without a GPU")
def test_no_gpu(tmp_path: Path, refused: Refused) -> None:
    assert "device=cpu" in refused(*QUICK, "device=cuda", f"output={tmp_path / 'run'}")


def test_folders_without_permission(tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root may read everything, so the refusal of the kernel is played by os.access and Path.exists."""
    tree = make_tree(tmp_path / "tree", 3)
    with monkeypatch.context() as patch:
        patch.setattr(os, "access", lambda *arguments, **options: False)
        assert "permission" in refused(*QUICK, *tree_options(tree), f"output={tmp_path / 'run'}")

    exists = Path.exists

    def denied(self: Path, **options: bool) -> bool:
        if self.name == "run.json":
            raise PermissionError(13, "Permission denied")
        return exists(self, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "exists", denied)
        message = refused(*QUICK, f"output={tmp_path / 'run'}")
    assert "Permission denied" in message
    assert "output=" in message


def test_wide_tables_are_whole_in_a_pipe(tmp_path: Path, cli) -> None:
    for number in range(3):
        run(tmp_path / f"a_run_with_quite_a_long_name_{number}", f"recipe.lr=0.0{number + 1}")
    folders = ",".join(str(path) for path in sorted(tmp_path.glob("a_run*")))
    done = cli("report.py", f"runs=[{folders}]")
    assert done.returncode == 0, done.stderr
    for number in (1, 2, 3):
        assert f"recipe.lr=0.0{number}" in done.stdout, "what differs beside the noise is named"
    assert "…" not in done.stdout


def test_missing_checkpoint_is_one_line(tmp_path: Path, cli) -> None:
    done = cli("evaluate.py", *QUICK, "model.checkpoint=nowhere.pt")
    assert done.returncode == 2
    assert done.stderr.splitlines() == ["error: model.checkpoint=nowhere.pt: no such file"]


def test_a_folder_with_given_weights_is_finetuned(tmp_path: Path, cli, capsys: pytest.CaptureFixture[str]) -> None:
    """On the real command line; the banner says which recipe it is. tests/config/test_config.py has all cases."""
    run(tmp_path / "source")
    assert "recipe:   digits (1 epochs, all weights)" in capsys.readouterr().out
    tree = make_tree(tmp_path / "tree", 3)
    weights = f"model.checkpoint={tmp_path / 'source' / 'checkpoints' / 'last.pt'}"
    options = [item for item in (*QUICK, *tree_options(tree)) if item != "recipe=digits"]
    more = [weights, "model.reset_head=true", "recipe.freeze=early", f"output={tmp_path / 'given'}"]
    done = cli("train.py", *options, *more)
    assert done.returncode == 0, done.stderr
    assert "recipe:   finetune (1 epochs, what lies after early)" in done.stdout
    facts = json.loads((tmp_path / "given" / "run.json").read_text())
    assert facts["config"]["recipe"]["name"] == "finetune"
    assert not facts["warnings"]


def test_recipes_expect_weights_by_a_field_and_not_by_their_name(tmp_path: Path) -> None:
    assert not run(tmp_path / "run", "recipe=finetune", "recipe.epochs=1", "recipe.expects_weights=false")["warnings"]


def test_ema_that_is_too_slow_is_said(tmp_path: Path) -> None:
    (warning,) = run(tmp_path / "run", "recipe.ema_decay=0.9999")["warnings"]
    assert "recipe.ema_decay=0.9999 is too slow for 22 steps" in warning


def test_what_cannot_be_frozen_is_one_line(tmp_path: Path, refused: Refused) -> None:
    for stage, said in (("head", "no parameter to train"), ("L9", "unknown stage 'L9'"), ("late", "does not act")):
        message = refused(*QUICK, "noise=gch", f"recipe.freeze={stage}", f"output={tmp_path / 'run'}")
        assert f"recipe.freeze={stage}" in message
        assert said in message
    assert not (tmp_path / "run").exists()


def test_finetune_from_nothing_is_said(tmp_path: Path) -> None:
    (warning,) = run(tmp_path / "run", "recipe=finetune", "recipe.epochs=1")["warnings"]
    assert "random weights" in warning
