"""run.json is written and read by one type, and says which version wrote it."""

import json
import math
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from gch_bench.distributed import World
from gch_bench.errors import UserError
from gch_bench.results.runfacts import FORMAT, RunFile, Timings, differences, read_run_facts

WORLD = World(0, 1, torch.device("cpu"))
DESCRIBED = {
    "protocol_id": "p", "protocol": {}, "mechanism": "none", "stages": [], "warnings": [], "data": {"num_classes": 3},
    "parameters": 7, "config": {"seed": 0},
}  # fmt: skip


def written(folder: Path) -> dict:
    status = RunFile(folder, {"seed": 0}, "auto", WORLD)
    status.begin(**DESCRIBED)
    assert not read_run_facts(folder).finished
    assert status.note_skipped("val", [("b.png", "cut"), ("a.png", "empty")]) == 2
    status.finish("digest", Timings(1.5, 2.5, 1))
    return json.loads((folder / "run.json").read_text())


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    content, facts = written(tmp_path), read_run_facts(tmp_path)
    assert asdict(facts) == content
    assert facts.finished
    assert facts.timings == {"train_seconds": 1.5, "evaluate_seconds": 2.5}
    assert [image["path"] for image in facts.skipped["val"]["images"]] == ["a.png", "b.png"]
    assert content["format"] == FORMAT


def test_the_gate_variance_is_the_mean_over_the_stages_that_have_one(tmp_path: Path) -> None:
    written(tmp_path)
    facts = read_run_facts(tmp_path)
    assert math.isnan(facts.gate_variance)
    facts.stages = [{"gate_variance": 0.1}, {"gate_variance": None}, {"gate_variance": 0.5}]
    assert facts.gate_variance == pytest.approx(0.3)


def test_sessions_add_up_and_another_identity_is_refused(tmp_path: Path) -> None:
    written(tmp_path)
    again = RunFile(tmp_path, {"seed": 0}, "auto", WORLD)
    again.begin(**{**DESCRIBED, "mechanism": "other"})
    again.finish("digest", Timings(0.0, 1.0, 2))
    facts = read_run_facts(tmp_path)
    assert len(facts.sessions) == 2
    assert facts.timings["evaluate_seconds"] == 3.5
    assert [session["evaluated_networks"] for session in facts.sessions] == [1, 2]
    assert facts.mechanism == "none", "a finished run keeps what made its weights"
    with pytest.raises(UserError, match=r"another run \(it differs in seed\)"):
        RunFile(tmp_path, {"seed": 1}, "auto", WORLD)
    with pytest.raises(UserError, match="already holds a run"):
        RunFile(tmp_path, {"seed": 0}, "never", WORLD)


def test_warnings_about_the_weights_outlive_their_session(tmp_path: Path) -> None:
    status = RunFile(tmp_path, {"seed": 0}, "auto", WORLD)
    status.begin(**{**DESCRIBED, "warnings": ["first"]})
    status.note_warning("continued")
    again = RunFile(tmp_path, {"seed": 0}, "auto", WORLD)  # the first session was stopped
    again.begin(**{**DESCRIBED, "warnings": ["second"]})
    assert again.warnings == read_run_facts(tmp_path).warnings == ["second", "continued"]
    again.finish("digest", Timings(0.0, 0.0, 1))
    third = RunFile(tmp_path, {"seed": 0}, "auto", WORLD)
    third.begin(**{**DESCRIBED, "warnings": ["third"]})
    assert read_run_facts(tmp_path).warnings == ["second", "continued"], "a finished run keeps what made its weights"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": FORMAT + 1}, rf"has format {FORMAT + 1}, this version reads up to {FORMAT}"),
        ({"format": "new"}, "has format 'new'"),
        ({"kind": "diagnosis"}, "holds a diagnosis"),
        ({"config": None}, "is no run's, it lacks config"),
    ],
)
def test_files_of_other_kinds_and_versions(tmp_path: Path, change: dict, message: str) -> None:
    content = {**written(tmp_path), **change}
    if change.get("config", content) is None:
        del content["config"]
    (tmp_path / "run.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=message):
        read_run_facts(tmp_path)


def test_the_first_version_and_later_fields_are_read(tmp_path: Path) -> None:
    content = written(tmp_path)
    del content["format"], content["timings"]
    (tmp_path / "run.json").write_text(json.dumps({**content, "field_of_a_later_version": 1}))
    assert read_run_facts(tmp_path).weights == "digest"


def test_differences_name_the_leaves() -> None:
    assert differences({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}, "d": 0}) == ["a.c", "d"]
    assert differences({"a": {"b": {"c": 1, "d": None}}}, {}) == ["a.b.c"]
    assert differences({"a": 1}, {"a": {"b": 1}}) == ["a"]
    assert differences({"a": 1}, {"a": 1, "b": None}) == [], "a field that is new and unset is no difference"
