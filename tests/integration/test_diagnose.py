"""diagnose.py end to end: networks, weight files and runs; and what it refuses."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import TINY, configuration
from diagnoses import SMALL, files_in, named_only, resnet, run
from safetensors.torch import save_file

from gch_bench.apps.cli import reported
from gch_bench.apps.diagnosis.subjects import SafetensorsWeights, labels
from gch_bench.apps.run import train_and_evaluate

pytestmark = pytest.mark.usefixtures("few_figures")


@pytest.fixture
def few_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """The figures of a diagnosis are made but not drawn; `test_checkpoint_as_typed` has them all, in a process of its own."""
    monkeypatch.setattr("gch_bench.apps.diagnosis.run.save", named_only)


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """The one line of a refusal; nothing is written."""

    def call(*overrides: str) -> str:
        with pytest.raises(SystemExit) as stopped, reported():
            run(*overrides)
        lines = capsys.readouterr().err.splitlines()
        assert stopped.value.code == 2
        assert len(lines) == 1, lines
        return lines[0]

    return call


def test_checkpoint_as_typed(tmp_path: Path, cli) -> None:
    resnet(tmp_path / "a.pt")
    done = cli("diagnose.py", *SMALL[:2], "checkpoint=a.pt", "output=out")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "report: out/report.md" in done.stdout
    out = tmp_path / "out"
    facts = json.loads((out / "run.json").read_text())
    assert facts["subjects"][0]["chains"] == ["resnet"]
    assert facts["config"]["checkpoint"] == "a.pt"
    for name in ("summary", "factors", "interfaces", "certificates", "weights"):
        stored = pd.read_parquet(out / f"{name}.parquet")
        pd.testing.assert_frame_equal(pd.read_csv(out / f"{name}.csv"), stored, check_dtype=False)
    factors, interfaces = pd.read_csv(out / "factors.csv"), pd.read_csv(out / "interfaces.csv")
    assert list(factors["name"]) == [*(f"layer{i}.{j}" for i in range(1, 5) for j in range(2)), "fc"]
    assert factors["rows"].iloc[-1] == 7  # the classes, from the file
    assert factors["chart"].isin(["adequate", "not adequate", "not applicable"]).all()
    assert interfaces["form"].tolist() == ["block", "branch"] * 8
    channels = pd.read_parquet(out / "channels.parquet")
    rows = channels.groupby(["index", "form", "matrix"])["channel"].count().unstack("matrix")
    assert rows["physical"].tolist() == rows["source_mode"].tolist()
    assert rows.loc[(7, "branch"), "physical"] == 7
    for name in ("profile-resnet", "alignment_profile-resnet", "spectra-resnet18-resnet", "margins-resnet18-resnet",
                 "certificates-resnet18-resnet", "alignment-resnet18-resnet", "incidence-resnet18-resnet"):  # fmt: skip
        assert (out / "figures" / f"{name}.png").read_bytes()[:4] == b"\x89PNG"
        assert (out / "figures" / f"{name}.pdf").read_bytes()[:5] == b"%PDF-"
        assert "</svg>" in (out / "figures" / f"{name}.svg").read_text()[-20:]
        assert f"figures/{name}.svg" in (out / "report.md").read_text()
    headline = pd.read_csv(out / "geometry_headline.csv")
    summary = pd.read_csv(out / "summary.csv")
    assert headline[["subject", "chain"]].to_numpy().tolist() == [["resnet18", "resnet"]]
    for name in ("energy_gain", "angle_excess_z", "certified_share", "mean_exponent"):
        assert headline[name][0] == pytest.approx(summary[name][0])
    assert "| by chance" in (out / "geometry_headline.md").read_text()
    assert "\\begin{tabular}" in (out / "geometry_headline.tex").read_text()
    text = (out / "report.md").read_text()
    assert "diagnostics only" in text
    assert "## Headline" in text
    assert len(list((out / "wandb").glob("offline-run-*"))) == 1


def test_several_checkpoints(tmp_path: Path) -> None:
    paths = [resnet(tmp_path / "a.pt", 0), resnet(tmp_path / "b.safetensors.pt", 1)]
    run(*SMALL, f"checkpoints=[{','.join(paths)}]", f"output={tmp_path / 'out'}", "save_matrices=true", "logger=csv")
    factors = pd.read_csv(tmp_path / "out" / "factors.csv")
    assert set(factors["subject"]) == {"a", "b.safetensors"}
    assert len(factors) == 2 * 9
    assert len(list((tmp_path / "out" / "matrices").iterdir())) == 2 * 2 * 8  # subjects, forms, interfaces
    assert not list(tmp_path.glob(".*"))  # where they waited is gone
    matrices = np.load(tmp_path / "out" / "matrices" / "a-resnet-7-branch.npz")
    assert matrices["physical"].shape == (7, 16)
    logged = pd.read_csv(tmp_path / "out" / "metrics.csv").set_index("name")["value"]
    assert np.isfinite(logged["a/resnet/drift"])


def test_measured_jacobians(tmp_path: Path) -> None:
    path, out = resnet(tmp_path / "a.pt"), tmp_path / "out"
    small = ("size=16", "spectral.weights=false")
    run(*SMALL, f"checkpoint={path}", "jacobian.images=2", *small, f"output={out}", "save_matrices=true")
    factors = pd.read_csv(out / "factors.csv")
    images = ["digits-90", "digits-270"]
    assert set(factors["chain"]) == {"resnet", *(f"jacobian {image}" for image in images)}
    assert factors.groupby("kind")["name"].count().to_dict() == {"static weights": 9, "measured Jacobian": 2 * 8}
    assert len(list((out / "matrices").iterdir())) == 2 * 8 + 2 * 7  # measured Jacobians have no branches
    assert "Measured at these images: the Jacobians of the blocks" in (out / "report.md").read_text()
    composition = pd.read_csv(out / "composition.csv")
    assert composition[["subject", "image", "index"]].to_numpy().tolist() == [
        ["resnet18", image, index] for image in images for index in range(7)
    ]
    assert (composition["composition_defect"] < composition["composition_defect_null"]).mean() > 0.5
    assert composition["composition_defect_other_image"].notna().tolist() == [False] * 7 + [True] * 7
    over = pd.read_csv(out / "over_images.csv")
    assert set(over["table"]) == {"factors", "interfaces", "summary", "composition", "chain"}
    at = over.query("table == 'factors' and name == 'layer2.1' and quantity == 'exponent'").iloc[0]
    values = factors.query("kind == 'measured Jacobian' and name == 'layer2.1'")["exponent"]
    assert (at["images"], at["mean"], at["sd"]) == (2, pytest.approx(values.mean()), pytest.approx(values.std()))
    summary = pd.read_csv(out / "summary.csv").set_index("chain")["log_top"]
    whole = over.query("table == 'chain' and quantity == 'log_top_normalised'")["mean"].item()
    assert whole == pytest.approx(summary[[f"jacobian {image}" for image in images]].mean())


def test_same_numbers_again_and_another_run_is_kept(tmp_path: Path, refused, monkeypatch: pytest.MonkeyPatch) -> None:
    path = resnet(tmp_path / "a.pt")
    overrides = (*SMALL, f"checkpoint={path}", f"output={tmp_path / 'out'}")
    run(*overrides, "save_matrices=true", "logger=csv")
    first = files_in(tmp_path / "out")
    (tmp_path / "out" / "figures" / "old-figure.png").touch()
    monkeypatch.chdir(tmp_path)
    run(*SMALL, "checkpoint=a.pt", "output=out")  # the same in other words
    again = files_in(tmp_path / "out")
    gone = {name for name in first if name.startswith("matrices") or name == "metrics.csv"}
    assert len(gone) == 1 + 2 * 8
    assert first.keys() - again.keys() == gone, "nothing of the earlier one stays that the later one does not have"
    assert again.keys() <= first.keys()
    assert {name for name in again if again[name] != first[name]} == {"run.json", "report.md"}  # the command is another
    first = (tmp_path / "out" / "interfaces.parquet").read_bytes()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text("{}")
    said = refused(*SMALL, f"checkpoint={path}", f"output={tmp_path / 'run'}")
    assert "already holds something else than a diagnosis" in said
    said = refused(*overrides, "alignment.groups=4", "save_matrices=true")
    assert "holds another diagnosis (it differs in alignment.groups)" in said
    assert (tmp_path / "out" / "interfaces.parquet").read_bytes() == first
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "notes.txt").touch()
    assert "already holds something else (notes.txt)" in refused(*SMALL, f"checkpoint={path}", f"output={tmp_path / 'notes'}")
    resnet(tmp_path / "a.pt", seed=1)
    assert "holds a diagnosis of other weights or chains" in refused(*overrides)
    (tmp_path / "file").touch()
    assert "output must be a folder, got the file" in refused(*SMALL, f"checkpoint={path}", f"output={tmp_path / 'file'}")
    assert "holds a diagnosis" in refused(*SMALL, f"runs=[{tmp_path / 'out'}]", f"output={tmp_path / 'other'}")


@pytest.mark.parametrize("moment", ["gch_bench.apps.diagnosis.measure.weight_table", "gch_bench.files.write_json"])
def test_sigterm_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], moment: str
) -> None:
    """While measuring, and after everything but run.json was written."""

    def terminated(*arguments: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        signal.pause()

    overrides = (*SMALL, f"checkpoint={resnet(tmp_path / 'a.pt')}", "save_matrices=true")
    run(*overrides, f"output={tmp_path / 'out'}")
    there = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    capsys.readouterr()
    monkeypatch.setattr(moment, terminated)
    before = signal.getsignal(signal.SIGTERM)
    for output in ("out", "new"):
        with pytest.raises(SystemExit) as stopped, reported():
            run(*overrides, f"output={tmp_path / output}")
        assert stopped.value.code == 143
        assert capsys.readouterr().err == "stopped by SIGTERM\n"
        assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == there
    assert not (tmp_path / "new").exists()
    assert signal.getsignal(signal.SIGTERM) == before


def test_names_that_figures_would_share_are_numbered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert labels(["a b.pt", "a-b.pt"]) == labels([str(tmp_path / "a b.pt"), "a-b.pt"]) == ["0-a b", "1-a-b"]
    assert labels(["a b.pt", "a-c.pt"]) == ["a b", "a-c"]


def test_source_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shapes = {"mlp.c_fc": (16, 64), "mlp.c_proj": (64, 16), "attn.c_attn": (16, 48), "attn.c_proj": (16, 16)}
    files = [{f"h.{i}.{key}.weight": torch.randn(shape).half() for key, shape in shapes.items()} for i in (10, 2, 1)]
    save_file({key: value for state in files for key, value in state.items()}, "gpt.safetensors")
    run("source=gpt.safetensors", "chain=gpt2_mlp", "logger=none", "spectral.weights=false")
    (out,) = Path("runs").glob("diagnose-gpt-*")
    whole = pd.read_csv(out / "factors.csv")
    assert list(whole["name"]) == ["h.1", "h.2", "h.10"]
    Path("parts").mkdir()
    for i, state in enumerate(files):
        save_file(state, f"parts/model-{i}.safetensors")
    index = {"weight_map": {key: f"model-{i}.safetensors" for i, state in enumerate(files) for key in state}}
    Path("parts/model.safetensors.index.json").write_text(json.dumps(index))
    run("source=parts/model.safetensors.index.json", "logger=none", "output=parts-out", "spectral.weights=false")
    other = pd.read_csv("parts-out/factors.csv")
    assert set(other["chain"]) == {"gpt2_mlp", "gpt2_ov"}
    assert list(other["exponent"][:3]) == list(whole["exponent"])
    parts, one = SafetensorsWeights("parts"), SafetensorsWeights("gpt.safetensors")
    assert list(parts) == list(one)
    assert [name for name in one if "c_fc" in name] == [f"h.{i}.mlp.c_fc.weight" for i in (1, 2, 10)]
    assert all(torch.equal(parts[name], one[name]) for name in one)


def test_runs_against_their_reliability(tmp_path: Path, refused) -> None:
    tiny = [*(item for item in TINY if not item.startswith("recipe.epochs")), "corruptions.names=[brightness,contrast]"]
    folders = []
    for noise, seed in (("none", 0), ("gch", 0), ("none", 1)):
        folders.append(str(tmp_path / f"{noise}-{seed}"))
        train_and_evaluate(configuration(*tiny, f"noise={noise}", f"seed={seed}", "recipe.epochs=1", f"output={folders[-1]}"))
    (tmp_path / "none-1.txt").touch()
    run(f"runs=[{tmp_path}/none-0,{tmp_path}/gch-*,{tmp_path}/none-*]", "random_initialisation=true", "logger=none",
        f"output={tmp_path / 'out'}")  # fmt: skip
    subjects = json.loads((tmp_path / "out" / "run.json").read_text())["subjects"]
    assert [each["label"] for each in subjects] == ["none-0", "gch-0", "none-1", "custom random"]
    table = pd.read_csv(tmp_path / "out" / "comparison.csv")
    assert list(table["run"]) == ["none-0", "gch-0", "none-1"]
    summary = pd.read_csv(tmp_path / "none-0" / "summary.csv")
    shifted = summary[summary["corruption"] != "clean"].groupby("corruption")["ece"].mean().mean()
    assert table["shift_ece"][0] == pytest.approx(shifted)
    text = (tmp_path / "out" / "report.md").read_text()
    assert "WARNING: n = 3 is small" in text
    assert (tmp_path / "out" / "figures" / "comparison.png").exists()
    displacement = pd.read_csv(tmp_path / "out" / "summary.csv").set_index("subject")["displacement"]
    assert table["displacement"][1] == displacement["gch-0"]
    # a checkpoint inside a run knows its image size and classes
    run(*[item for item in tiny if item.startswith("model")], f"checkpoint={folders[0]}/checkpoints/last.pt", "logger=none",
        f"output={tmp_path / 'one'}")  # fmt: skip
    assert json.loads((tmp_path / "one" / "run.json").read_text())["subjects"][0]["size"] == 32
    (tmp_path / "none-1" / "checkpoints" / "last.pt").unlink()
    assert "no checkpoints/last.pt" in refused(f"runs=[{folders[2]}]", "logger=none", f"output={tmp_path / 'x'}")
    assert not (tmp_path / "x").exists()


def test_no_chain_fits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_file({"a.weight": torch.randn(4, 3), "b.weight": torch.randn(4, 3)}, tmp_path / "odd.safetensors")
    run(f"source={tmp_path / 'odd.safetensors'}", "logger=none", f"output={tmp_path / 'out'}")
    assert "no built-in chain fits these weights" in capsys.readouterr().out
    assert len(pd.read_csv(tmp_path / "out" / "weights.csv")) == 2
    assert not (tmp_path / "out" / "factors.csv").exists()


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ([], "diagnose.py needs weights"),
        (["checkpoint=nowhere.pt"], "error: checkpoint=nowhere.pt: no such file"),
        (["model.checkpoint=nowhere.pt"], "error: model.checkpoint=nowhere.pt: no such file"),
        (["checkpoint=a.pt", "source=b.safetensors"], "exclude each other"),
        (["checkpoint=a.pt", "model.pretrained=true"], "drop one of them"),
        (["source=nowhere.safetensors"], "cannot be read as safetensors"),
        (["source=FILE"], "cannot be read as safetensors"),
        (["source=EMPTY"], "holds no .safetensors file"),
        (["checkpoint=FILE"], "cannot be read, it is truncated or no state dict"),
        (["source=x.safetensors", "jacobian.images=1"], "jacobian.images goes with model="),
        (["runs=[x]", "jacobian.images=1"], "jacobian.images goes with model="),
        (["checkpoint=GOOD", "chain=[resnet,resnet]"], "chain must be auto, a name"),
        (["checkpoint=GOOD", "chain=[auto,layers]"], "chain must be auto, a name"),
        (["checkpoint=GOOD", "seed=-1"], "seed must be >= 0"),
        (["source=LIST"], "it holds no mapping"),
        (["checkpoint=GOOD", "chain=resnet51"], "chain: unknown chain 'resnet51': choose one of"),
        (["checkpoint=GOOD", "chain=nowhere.yaml"], "chain file nowhere.yaml cannot be read"),
        (["checkpoint=GOOD", "chain=layers"], "does not compose"),
        (["checkpoint=GOOD", "chain=gpt2_mlp"], "needs at least two blocks"),
        (["checkpoint=GOOD", "jacobian.images=1", "jacobian.token=-1", "size=0"], "size must be >= 1 or null, got 0"),
        (["checkpoint=GOOD", "spectral.eta=0"], "spectral.eta must be in (0, 1], got 0"),
        (["checkpoint=GOOD", "spectral.exponent_uncertainty=-1"], "spectral.exponent_uncertainty must be >= 0"),
        (["checkpoint=GOOD", "alignment.groups=0"], "alignment.groups must be >= 1, got 0"),
        (["checkpoint=GOOD", "alignment.density=-1"], "alignment.density must be in (0, 1), got -1"),
        (["checkpoint=GOOD", "alignment.kappa=0"], "alignment.kappa must be > 0, got 0"),
        (["checkpoint=GOOD", "alignment.density=0"], "alignment.density must be in (0, 1), got 0"),
        (["checkpoint=GOOD", "alignment.density=1"], "alignment.density must be in (0, 1), got 1"),
        (["checkpoint=GOOD", "alignment.edge_density=0"], "alignment.edge_density must be in (0, 1), got 0"),
        (["checkpoint=GOOD", "alignment.hub_degree=0"], "alignment.hub_degree must be >= 1, got 0"),
        (["checkpoint=GOOD", "alignment.grouping=x"], "alignment.grouping must be one of clusters, contiguous, got 'x'"),
        (["checkpoint=GOOD", "alignment.tau=0.1"], "no field"),
        (["checkpoint=GOOD", "spectral.residual_scale=0"], "spectral.residual_scale must be > 0, got 0"),
        (["checkpoint=GOOD", "spectral.residual_scale=inf"], "spectral.residual_scale must be > 0, got inf"),
        (["checkpoint=GOOD", "random_initialisation=maybe"], "random_initialisation must be"),
        (["source=x.safetensors", "random_initialisation=true"], "random_initialisation needs a network"),
        (["mode=compatibility", "random_initialisation=true"], "random_initialisation is for mode=geometry"),
        (["checkpoints=[EMPTY/*]"], "checkpoints must match at least one file of weights"),
        (["runs=[EMPTY/*]"], "runs must match at least one run folder"),
        (["checkpoint=GOOD", "alignment.noise_budget=-1"], "alignment.noise_budget must be >= 0 or null"),
        (["checkpoint=GOOD", "jacobian.images=-1"], "jacobian.images must be >= 0, got -1"),
        (["checkpoint=GOOD", "device=tpu"], "device must be one of auto, cpu, cuda, got 'tpu'"),
        (["checkpoint=GOOD", "num_classes=3"], "has 7 classes and the data 3"),
        (["checkpoint=DEAD", "chain=OWN"], "factor layer1.0: singular_values must have a positive one"),
        (["checkpoint=NAN"], "layer2.0.conv1.weight must be finite"),
        (["checkpoint=NAN", "chain=resnet"], "layer2.0.conv1.weight must be finite"),
        (["runs=[nowhere]"], "nowhere is no run folder"),
        (["checkpoint=GOOD", "spektral.eta=0.5"], "no field"),
        (["checkpoint=GOOD", "jacobian.images=361"], "jacobian.images must be at most 360, the validation images of digits"),
        (["checkpoints=[GOOD,GOOD]"], "checkpoints must be a list of different ones"),
        (["checkpoint=NAN", "chain=convnext"], "chain convnext needs at least two blocks"),
    ],
)
def test_mistakes_are_one_line_and_write_nothing(tmp_path: Path, refused, overrides: list[str], said: str) -> None:
    good = resnet(tmp_path / "good.pt")
    state = torch.load(good)
    torch.save(state | {"layer1.0.bn2.weight": torch.zeros(4)}, tmp_path / "dead.pt")
    torch.save(state | {key: torch.full_like(state[key], torch.nan) for key in ("layer2.0.conv1.weight", "fc.weight")},
               tmp_path / "nan.pt")  # fmt: skip
    (tmp_path / "list.safetensors.index.json").write_text("[]")
    own = tmp_path / "own.yaml"  # branches without their shortcuts: a dead one is nothing
    own.write_text("units: [{block: 'layer(\\d+)\\.0', order: ['\\1'], product: [{key: 'conv2\\.weight', norm: bn2}]}]")
    (tmp_path / "file").write_bytes(b"nothing that one could read")
    (tmp_path / "empty").mkdir()
    names = {"GOOD": good, "FILE": tmp_path / "file", "EMPTY": tmp_path / "empty", "DEAD": tmp_path / "dead.pt",
             "NAN": tmp_path / "nan.pt", "OWN": own, "LIST": tmp_path / "list.safetensors.index.json"}  # fmt: skip
    for word, path in names.items():
        overrides = [item.replace(word, str(path)) for item in overrides]
    assert said in refused(*SMALL, *overrides, f"output={tmp_path / 'new' / 'out'}")
    assert not (tmp_path / "new").exists()
