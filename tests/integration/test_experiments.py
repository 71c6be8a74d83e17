"""The named experiments: every point of their sweeps is a run, and each goes from end to end on the embedded data."""

import json
import re
import runpy
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from math import expm1, nan
from pathlib import Path

import pandas as pd
import pytest
import yaml
from conftest import REPOSITORY, configuration
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser

from gch_bench.config.run import NoiseConfig
from gch_bench.errors import UserError
from gch_bench.metrics import EXTRA
from gch_bench.noise.strength import realised
from gch_bench.noise.table import make_mechanism
from gch_bench.results.runfacts import read_run_facts

sys.path.insert(0, str(REPOSITORY / "scripts"))

from choose_strength import Tuned, among, as_override, best, matched, read, strengths

FILES = {file.stem: file for file in sorted((REPOSITORY / "configs" / "experiment").glob("*.yaml"))}
PHOTOS, CIFAR = "late_stage_photos", "cifar10_scratch"
TUNED = ("matched_strength", PHOTOS)  # their strengths are chosen on the extra corruptions
ROOTS = {"full": ["data.root=/x"], "small": []}
# A run of a second: the smallest network, few images.
TINY = (
    "recipe.epochs=1", "recipe.batch_size=128", "model.kwargs.channels=[4,4,4,4]", "data.size=32", "corruptions.subset=50",
    "threads=1", "data.workers=0", "seed=0",
)  # fmt: skip


def sweep_points(name: str) -> dict[str, list[str]]:
    """What the experiment's file sweeps over: {"noise": [one override for each mechanism], "seed": [...]}."""
    params = yaml.safe_load(FILES[name].read_text())["hydra"]["sweeper"]["params"]
    parsed = OverridesParser.create().parse_overrides([f"{key}={value}" for key, value in params.items()])
    return {override.key_or_group: [job[0] for job in BasicSweeper.split_arguments([override], None)[0]] for override in parsed}


@cache
def noises(name: str) -> list[NoiseConfig]:
    return [configuration(f"experiment={name}", "data.root=/x", point).noise for point in sweep_points(name)["noise"]]


@cache
def preset(name: str) -> NoiseConfig:
    return configuration(f"noise={name}").noise


@pytest.mark.parametrize("scale", ["full", "small"])
@pytest.mark.parametrize("name", FILES)
def test_every_point_is_a_run(name: str, scale: str) -> None:
    points = sweep_points(name)
    assert points["seed"] == ["seed=0", "seed=1", "seed=2"][: 2 if name == PHOTOS else 3]
    configs = [configuration(f"experiment={name}", f"scale={scale}", *ROOTS[scale], point) for point in points["noise"]]
    for config in configs:
        assert config.output_parent == f"runs/{name}/{scale}"
        if config.noise.law:
            make_mechanism(config.noise.law, config.noise.kernel, config.noise.options)
    identities = [json.dumps(config.identity, sort_keys=True) for config in configs]
    assert len(set(identities)) == len(identities), "no run is made twice"
    assert [config.noise.name for config in configs].count("none") == 1, "there is one baseline"


@pytest.mark.parametrize("name", FILES)
def test_the_scales(name: str) -> None:
    full, small = (configuration(f"experiment={name}", f"scale={scale}", *ROOTS[scale]) for scale in ("full", "small"))
    assert full.model.name == {PHOTOS: "tf_efficientnet_lite0", CIFAR: "resnet18_cifar_eighth"}.get(name, "resnet50")
    assert (small.data.name, small.model.pretrained, small.recipe.name) == ("digits", False, "digits")
    assert full.corruptions.groups == small.corruptions.groups, "the experiment's corruptions stay"
    assert small.recipe.freeze is None, "random weights are not frozen"
    expected = {
        "table11_pets": ("pets", True, "finetune", 6),
        PHOTOS: ("folder", True, "finetune", 4),
        CIFAR: ("folder", False, "cifar10", 15),
    }.get(name, ("imagenet", False, "imagenet_90ep", 90))
    assert (full.data.name, full.model.pretrained, full.recipe.name, full.recipe.epochs) == expected
    assert full.records.logits == (name not in TUNED), "the strengths are tuned without logits"
    assert configuration(f"experiment={name}", "scale=small", "recipe.epochs=9").recipe.epochs == 9, "the user's word is last"


@pytest.mark.parametrize("name", FILES)
def test_the_head_says_command_cost_and_expected_result(name: str) -> None:
    text = FILES[name].read_text()
    points = sweep_points(name)
    seeds = len(points["seed"])
    assert f"python train.py -m experiment={name} data.root=" in text
    assert re.search(r"^# Expected: \S", text, re.MULTILINE)
    assert name in (PHOTOS, CIFAR) or re.search(r"GPU hours,\s+(#\s+)?ESTIMATED", text)
    assert f"x {seeds} seeds = {seeds * len(points['noise'])} runs" in text
    assert f"scale=small: {2 * len(points['noise'])} runs of 4 epochs" in text
    assert "public" in text


@pytest.mark.parametrize("name", [name for name, file in FILES.items() if "{name:" in file.read_text()])
def test_points_are_presets_but_for_strength_and_stage(name: str) -> None:
    for noise in noises(name):
        changed = {key: getattr(noise, key) for key in ("p", "gamma", "sigma", "boundary", "stages")}
        assert noise == replace(preset(noise.name), **changed)
        assert noise.options.keys() - {"boundary"} == preset(noise.name).options.keys()


def test_the_depths() -> None:
    stages = defaultdict(list)
    for noise in noises("table5_depth"):
        stages[noise.name] += noise.stages
    assert stages == {"none": ["L4"], "gch": ["L1", "L2", "L3", "L4"], "dropblock": ["L1", "L2", "L3", "L4"]}


def gate_variance(noise: NoiseConfig, side: int = 7) -> float:
    """On a map of side x side sites; in closed form where it is one line, else measured."""
    if noise.p is not None and noise.law in ("bernoulli", "bernoulli_channel", "gaussian"):
        return noise.p / (1 - noise.p)
    if noise.law == "gaussian":
        return noise.sigma**2
    if noise.law == "wick" and noise.kernel == "white":
        return expm1(noise.gamma**2 / noise.beta)
    return realised(make_mechanism(noise.law, noise.kernel, noise.options, noise.injection), side, side).gate_variance


@pytest.mark.parametrize(
    ("name", "sides", "mechanisms", "targets"),
    [
        ("matched_strength", {"L4": 7}, 6, [0.1, 0.2, 0.4, 0.8]),
        (PHOTOS, {"L4": 4}, 11, [0.1, 0.3, 0.9, 2.7]),
        (CIFAR, {"L4": 4, "L3": 4, "L2": 8}, 15, [0.3]),
    ],
)
def test_strengths_are_matched(name: str, sides: dict[str, int], mechanisms: int, targets: list[float]) -> None:
    variances = defaultdict(list)
    for noise in noises(name)[1:]:
        (stage,) = noise.stages
        variances[noise.name, stage].append(gate_variance(noise, sides[stage]))
    assert len(variances) == mechanisms
    for (mechanism, stage), found in variances.items():
        expected = targets[: len(found)]
        if mechanism == "hard_mask":  # it drops whole sites
            sites = sides[stage] ** 2
            possible = [dropped / (sites - dropped) for dropped in range(1, sites)]
            expected = [min(possible, key=lambda each, target=target: abs(each - target)) for target in expected]
        assert found == pytest.approx(expected, rel=0.015), (mechanism, stage)
        assert len(found) >= min(3, len(targets)), (mechanism, stage)


def test_additive_noise_is_as_strong_as_gch() -> None:
    white, green, gch = (gate_variance(noise) for noise in noises("additive_ablation")[1:])
    assert white == green == pytest.approx(gch, rel=0.01)


@pytest.mark.parametrize("boundary", ["outside", "inside"])
def test_the_strength_sweep_reaches_the_failure(boundary: str) -> None:
    swept = [noise for noise in noises("strength_sweep")[1:] if noise.boundary == boundary]
    assert [noise.gamma for noise in swept] == [0.25, 0.5, 1, 2, 4, 8]
    assert gate_variance(swept[-1]) > 0.5 * 49 * (1 - 1 / 49), "near the 48 of a gate that is open at one site alone"


def test_an_unknown_choice_is_one_line(refused: Callable[..., str]) -> None:
    assert refused("experiment=table1") == f"error: unknown experiment 'table1': choose one of {', '.join(FILES)}"
    assert refused("scale=tiny") == "error: unknown scale 'tiny': choose one of full, small"


@pytest.fixture
def entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """An entry point with its command line, Hydra's sweeper included, in this process and in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")  # as gch_bench.apps.cli.entry sets it; taken back after the test

    def run(script: str, *arguments: str) -> None:
        monkeypatch.setattr(sys, "argv", [script, *arguments])
        runpy.run_path(str(REPOSITORY / script), run_name="__main__")

    return run


def small_sweep(name: str, *indices: int) -> list[str]:
    """The experiment at its small scale with some of its points and little work for each."""
    values = ",".join(sweep_points(name)["noise"][index].removeprefix("noise=") for index in indices)
    cells = [] if name in ("table3_clean_l4", *TUNED) else ["corruptions=[fog]"]
    return [f"experiment={name}", "scale=small", f"noise={values}", *TINY, *cells]


@pytest.mark.parametrize("name", [name for name in FILES if name not in TUNED])
def test_each_experiment_from_end_to_end(name: str, entry: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    entry("train.py", *(["-m"] if name == "table7_shift" else []), *small_sweep(name, 0, -1))  # sweeps without -m, too
    folders = sorted(Path(f"runs/{name}/small").iterdir())
    facts = [json.loads((folder / "run.json").read_text()) for folder in folders]
    mechanism = "dropblock" if name == "table5_depth" else "gch"
    assert [each["config"]["noise"]["name"] for each in facts] == [mechanism, "none"]
    assert {each["status"] for each in facts} == {"finished"}
    cells = {"clean-0"} if name == "table3_clean_l4" else {"clean-0", "fog-3"}
    for folder in folders:
        assert {file.stem for file in (folder / "records").iterdir()} == cells
        assert "logits" in pd.read_parquet(folder / "records" / "clean-0.parquet")
    if name == "table7_shift":
        capsys.readouterr()
        entry("train.py", "-m", *small_sweep(name, 0, -1))
        assert capsys.readouterr().out.count("nothing left to do") == 2
        assert sorted(Path(f"runs/{name}/small").iterdir()) == folders


@pytest.fixture
def chosen(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[str, list[str]]]:
    """What choose_strength.py prints: its answer, and the lines of its table that say what was chosen."""

    def run(*arguments: object) -> tuple[str, list[str]]:
        monkeypatch.setattr(sys, "argv", ["choose_strength.py", *map(str, arguments)])
        capsys.readouterr()
        runpy.run_path(str(REPOSITORY / "scripts/choose_strength.py"), run_name="__main__")
        printed = capsys.readouterr()
        return printed.out.strip(), [line for line in printed.err.splitlines() if "<- chosen" in line]

    return run


def listed(text: str) -> set[str]:
    return set(text.strip("[]").split(","))


def tuned_nll(folder: Path) -> float:
    return pd.read_csv(folder / "summary.csv").query("corruption != 'clean'").groupby("corruption")["nll"].mean().mean()


def test_strengths_are_tuned_on_the_extra_corruptions_alone(
    entry: Callable[..., None], capsys: pytest.CaptureFixture[str], chosen: Callable[..., tuple[str, list[str]]]
) -> None:
    entry("train.py", *small_sweep("matched_strength", 0, -4, -1))
    folders = sorted(Path("runs/matched_strength/small").iterdir())
    assert len(folders) == 3
    evaluated = [set(pd.read_csv(folder / "summary.csv")["corruption"]) for folder in folders]
    assert evaluated == 3 * [{"clean", *EXTRA}], "the 15 are not even evaluated"
    best_gch = min((folder for folder in folders if "-gch-" in folder.name), key=tuned_nll)
    (none,) = (folder for folder in folders if "-none-" in folder.name)
    answer, lines = chosen(*folders)
    assert listed(answer) == {str(best_gch), str(none)}
    assert [line.endswith("<- chosen: best") for line in lines] == [True, True]
    check_choice(folders, best_gch)
    capsys.readouterr()
    entry("evaluate.py", *reported_on_fog("matched_strength", answer), "output=chosen")
    assert "nothing left to do" not in capsys.readouterr().out, "evaluate.py does not sweep over the experiment's runs"
    reported = [json.loads((folder / "run.json").read_text()) for folder in sorted(Path("chosen").iterdir())]
    assert [each["config"]["noise"]["name"] for each in reported] == ["gch", "none"]


def reported_on_fog(name: str, checkpoints: str) -> list[str]:
    """Arguments of evaluate.py for the last evaluation of an experiment at its small scale, on one corruption."""
    tiny = [each for each in TINY if not each.startswith(("seed", "recipe", "model"))]
    return [f"experiment={name}", "scale=small", "corruptions=[fog]", *tiny, f"checkpoints={checkpoints}"]


def check_choice(folders: list[Path], best_gch: Path) -> None:
    """The choice follows the extra rows of summary.csv and no others; runs that cannot be compared are refused."""

    def chosen_gch(runs: list[Tuned]) -> list[list[Path]]:
        table = strengths(runs)
        return table[best(table) & (table["mechanism"] == "gch")]["runs"].tolist()

    for folder in folders:
        table = pd.read_csv(folder / "summary.csv")
        worst = table.assign(corruption="fog", nll=99.0 if folder == best_gch else 0.0)
        pd.concat([table, worst]).to_csv(folder / "summary.csv", index=False)
    runs = [read(folder) for folder in folders]
    assert chosen_gch(runs) == [[best_gch]]
    assert chosen_gch([run._replace(nll=99.0) if run.folder == best_gch else run for run in runs]) != [[best_gch]]
    for changed, message in (
        (runs[0]._replace(seed=5), "all strengths must have the seeds"),
        (runs[0]._replace(cells=frozenset()), "runs must differ in noise and seed alone"),
        (runs[0]._replace(others=""), "runs must differ in noise and seed alone"),
    ):
        with pytest.raises(UserError, match=message):
            strengths([*runs[1:], changed])
    with pytest.raises(UserError, match="each seed of a strength must be there once"):
        strengths([*runs, runs[0]])
    copy = folders[0].parent / "copy"
    shutil.copytree(folders[0], copy)
    table = pd.read_csv(copy / "summary.csv")
    table[table["corruption"] != "spatter"].to_csv(copy / "summary.csv", index=False)
    with pytest.raises(UserError, match=r"must be evaluated with corruptions=extra4 \(or c19\), it lacks spatter"):
        read(copy)


def test_the_nearest_variance_is_in_the_logarithm() -> None:
    one = Tuned(Path("x"), "gch", "L4", "", 0.0, 0, frozenset(), "", 1.0)
    runs = [one._replace(noise=f"{variance}", variance=variance, nll=variance) for variance in (0.1, 0.3, 0.9)]
    none = one._replace(mechanism="none", noise="none", variance=nan)
    for wanted, index in ((0.16, 0), (0.18, 1), (0.5, 1), (0.55, 2), (9.0, 2)):  # 0.52 is the middle of 0.3 and 0.9
        assert matched(strengths([*runs, none]), wanted).tolist() == [*(i == index for i in range(3)), True]
    third = [run._replace(stages="L3", noise=f"{run.noise} L3", nll=run.nll + 1) for run in runs]
    both = strengths([*runs, *third, none])
    assert best(both).tolist() == [True, False, False, True, False, False, True], "each stage has strengths of its own"
    assert matched(both, 0.5).tolist() == [False, True, False, False, True, False, True]
    with pytest.raises(UserError, match=r"--variance must be > 0, got 0\.0"):
        matched(strengths(runs), 0.0)
    with pytest.raises(UserError, match=r"needs mechanisms that have a gate variance, 0\.1 has none"):
        matched(strengths([runs[0]._replace(variance=nan), *runs[1:]]), 0.3)


@pytest.mark.parametrize("name", TUNED)
def test_a_chosen_noise_is_trained_again_as_it_was(name: str) -> None:
    written = [
        as_override(configuration(f"experiment={name}", "data.root=/x", p).identity["noise"])
        for p in sweep_points(name)["noise"]
    ]
    again = [configuration(f"experiment={name}", "data.root=/x", f"noise={noise}").noise for noise in written]
    assert again == noises(name)


def test_photographs_are_tuned_and_reported(
    entry: Callable[..., None], chosen: Callable[..., tuple[str, list[str]]], capsys: pytest.CaptureFixture[str]
) -> None:
    """The commands of scripts/reproduce_tables.sh late_stage_photos, with few points and little work."""
    sweep = small_sweep(PHOTOS, 0, -3, -2, -1)
    entry("train.py", *sweep)
    folders = sorted(Path(f"runs/{PHOTOS}/small").iterdir())
    every = f"[{','.join(map(str, folders))}]"
    arguments = [each for each in reported_on_fog(PHOTOS, every) if "fog" not in each]
    entry("evaluate.py", *arguments, "corruptions=extra4", "model.pretrained=false", "output=tune")
    tuned = sorted(Path("tune").iterdir())
    assert [read_run_facts(folder).config["noise"]["name"] for folder in tuned] == ["gch_wick", "gch_wick", "gch_wick", "none"]
    facts = {folder: read_run_facts(folder) for folder in tuned[:3]}
    gamma_best, gamma_worst = (f"gamma: {facts[f(facts, key=tuned_nll)].config['noise']['gamma']}," for f in (min, max))
    variance = 1.05 * facts[max(facts, key=tuned_nll)].stages[0]["gate_variance"]  # not the best strength's
    options = (*tuned, "--best", "--variance", variance)
    both, lines = chosen(*options, "--noise")
    assert {line.split(" <- chosen: ")[1][:8] for line in lines if gamma_best in line} == {"best"}
    assert {line.split(" <- chosen: ")[1][:8] for line in lines if gamma_worst in line} == {"variance"}
    assert all(noise in both for noise in (gamma_best, gamma_worst, "{name: none}"))
    assert len(lines) == 3
    again = [f"noise={both}" if each.startswith("noise=") else each for each in sweep]
    capsys.readouterr()
    entry("train.py", *["seed=0,1" if each == "seed=0" else each for each in again])
    assert capsys.readouterr().out.count("nothing left to do") == 3, "the runs of seed 0 are there already"
    final, _ = chosen(*options, "--among", f"runs/{PHOTOS}/small/*")
    assert sorted(name.split("-")[3] for name in listed(final)) == 3 * ["s0"] + 3 * ["s1"]
    entry("evaluate.py", *reported_on_fog(PHOTOS, final), "output=reported", "records.logits=true")
    reported = sorted(Path("reported").iterdir())
    assert len(reported) == 6
    for rule in (("--best",), ("--variance", variance)):
        answer, _ = chosen("tune/*", *rule, "--among", *reported)
        entry("report.py", f"runs={answer}", "temperature=false")
        assert len(listed(answer)) == 4
        assert "of 1 mechanism compared with none" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"--among must name a run of each chosen noise, \{name: none\} has none"):
        among(reported[:1], ["{name: none}"])


def reproduce(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([REPOSITORY / "scripts/reproduce_tables.sh", *arguments], capture_output=True, text=True)


def test_the_script_knows_every_experiment() -> None:
    lines = reproduce("--dry-run", "--scale", "small", "data.workers=0").stdout.splitlines()
    swept = [line for line in lines if "train.py" in line]
    first = {name: f"+ python train.py -m experiment={name} scale=small data.workers=0" for name in FILES}
    assert {line for line in swept if "seed=" not in line} == set(first.values())
    (more,) = (line for line in swept if "seed=" in line)
    assert more.startswith(f'{first[PHOTOS]} seed=0\\,1\\,2 "noise=$(python scripts/choose_strength.py ')
    assert more.endswith('--noise)"'), "it can be pasted"
    assert len([line for line in lines if line.startswith("+ python report.py")]) == len(FILES) + 1
    (tuned, reported) = (line for line in reproduce("--dry-run", PHOTOS).stdout.splitlines() if "evaluate.py" in line)
    assert ["severities" in line for line in (tuned, reported)] == [True, False], "strengths are chosen at one severity"
    assert "FIELD=VALUE" in reproduce("--help").stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["table1"], "unknown experiment 'table1': choose some of table3_clean_l4"),
        (["--scale", "tiny"], "--scale must be full or small, got 'tiny'"),
        (["--quick"], "unknown option --quick: see --help"),
    ],
)
def test_the_script_refuses(arguments: list[str], message: str) -> None:
    done = reproduce("--dry-run", *arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith(f"error: {message}")
    assert len(done.stderr.splitlines()) == 1
