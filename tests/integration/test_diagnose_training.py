"""diagnose.py on what training changes: random weights beside trained ones, and the kept epochs of a run."""

from pathlib import Path

import pytest
import timm
import torch
from conftest import TINY, configuration
from diagnoses import SMALL, named_only, resnet, run, table

from gch_bench.apps.run import train_and_evaluate
from gch_bench.files import read_json
from gch_bench.model.weights import weights_digest


@pytest.fixture
def few_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gch_bench.apps.diagnosis.run.save", named_only)


@pytest.mark.usefixtures("few_figures")
def test_random_weights_beside_trained_ones(tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(
        *SMALL,
        f"checkpoint={resnet(tmp_path / 'a.pt', seed=3)}",
        "random_initialisation=true",
        "spectral.weights=false",
        f"output={out}",
    )
    trained, random = read_json(out / "run.json")["subjects"]
    assert (trained["label"], random["label"]) == ("resnet18", "resnet18 random")
    assert random["origin"] == "random weights of seed 0"
    assert trained["weights"] != random["weights"]
    factors, interfaces = table(out, "factors"), table(out, "interfaces")
    assert factors["subject"].tolist() == ["resnet18"] * 9 + ["resnet18 random"] * 9
    assert factors["rows"][:9].tolist() == factors["rows"][9:].tolist(), "as many classes, too"
    forms = interfaces.groupby("subject")["form"].apply(list)
    assert forms["resnet18 random"] == ["block", "branch"] * 8, "gains that start at 0 are switched on"
    assert factors.query("subject == 'resnet18 random' and name == 'layer2.1'")["identity_distance"].item() > 0
    assert set(table(out, "geometry_headline")["subject"]) == {"resnet18", "resnet18 random"}
    assert not (out / "trajectory.csv").exists(), "random weights are no epoch"


@pytest.mark.usefixtures("few_figures")
def test_random_weights_alone(tmp_path: Path) -> None:
    """They are those of the seed, as timm draws them, with gains of 1 where it starts with 0."""
    out = tmp_path / "out"
    run(*SMALL, "random_initialisation=true", "seed=1", "num_classes=5", "spectral.weights=false", f"output={out}")
    (only,) = read_json(out / "run.json")["subjects"]
    assert (only["label"], only["origin"]) == ("resnet18 random", "random weights of seed 1")
    by_hand = timm.create_model("resnet18", channels=[4, 8, 8, 16], num_classes=5)
    by_hand.load_state_dict(torch.load(resnet(tmp_path / "a.pt", seed=1, classes=5)))
    assert only["weights"] == weights_digest(by_hand)
    assert table(out, "factors")["rows"].iloc[-1] == 5
    assert abs(table(out, "summary")["energy_gain_z"][0]) < 3, "by chance"


def test_epochs_of_a_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real training of two epochs: its kept checkpoints are a trajectory, drawn in all forms."""
    folder, out = tmp_path / "run", tmp_path / "out"
    model = ("model=custom", "model.factory=tinynet:groupnorm")
    tiny = [item for item in TINY if not item.startswith("model")]
    train_and_evaluate(
        configuration(*tiny, *model, "noise=none", "recipe.keep_every=1", "corruptions.names=[brightness]", f"output={folder}")
    )
    epochs = [folder / "checkpoints" / f"epoch-{i}.pt" for i in range(3)]
    assert all(path.exists() for path in epochs)
    own = tmp_path / "own.yaml"
    own.write_text("units: [{block: 'early\\.0', product: [{key: weight}]}, {block: 'late\\.0', product: [{key: weight}]}]")
    monkeypatch.setattr("gch_bench.report.geometry_figures.all_figures", lambda reports: {})  # the trajectory's alone is drawn
    run(*model, "logger=none", "threads=1", f"checkpoints=[{folder}/checkpoints/*.pt]", f"chain={own}", f"output={out}")
    facts = read_json(out / "run.json")["subjects"]
    assert [each["label"] for each in facts] == ["epoch-0", "epoch-1", "epoch-2"]
    assert [each["epoch"] for each in facts] == [0, 1, 2]
    assert any("last.pt holds the same weights and was left out" in each for each in facts[2]["warnings"])
    found, summary = table(out, "trajectory"), table(out, "summary")
    assert found[["label", "epoch"]].to_numpy().tolist() == [[f"epoch-{i}", i] for i in range(3)]
    for name in ("energy_gain", "mean_exponent", "spikes", "slack_ratio_z"):
        assert found[name].tolist() == pytest.approx(summary[name].tolist(), nan_ok=True)
    assert found["mean_exponent"].nunique() == 3
    assert {path.name for path in (out / "figures").glob("trajectory.*")} == {
        f"trajectory.{kind}" for kind in ("svg", "png", "pdf")
    }
    assert "figures/trajectory.svg" in (out / "report.md").read_text()
    state = torch.load(epochs[0], weights_only=True)["model"]
    first = table(out, "weights").query("subject == 'epoch-0' and name == 'early.0'")
    assert first["norm"].item() == pytest.approx(float(state["early.0.weight"].norm()), rel=1e-6)
