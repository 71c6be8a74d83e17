"""The typed configuration against the YAML groups, and what parsing refuses."""

from dataclasses import dataclass, field, fields, make_dataclass, replace

import pytest
import yaml
from conftest import REPOSITORY, configuration

from gch_bench.apps.cli import argument, with_recipe
from gch_bench.config.parse import NOT_IN_IDENTITY, defaults, identity_of, parse
from gch_bench.config.run import Config, NoiseConfig
from gch_bench.corruptions import CORRUPTIONS
from gch_bench.errors import UserError
from gch_bench.evaluation.cells import wanted_cells
from gch_bench.suites import SUITES

GROUPS = ("model", "noise", "corruptions", "recipe", "logger")
CHOICES = [f"{group}={file.stem}" for group in GROUPS for file in sorted((REPOSITORY / "configs" / group).glob("*.yaml"))]


@pytest.mark.parametrize("choice", CHOICES)
def test_every_choice_composes(choice: str) -> None:
    stored = {f"corruptions={name}": ["corruptions.root=/c"] for name in ("stored", *SUITES)}
    needs = {"model=custom": ["model.factory=tinynet:tinynet"], **stored}
    more = needs.get(choice, [])
    group, name = choice.split("=")
    config = configuration(choice, *more)
    assert group == "model" or getattr(config, group).name == name


@pytest.mark.parametrize(("data", "recipe"), [("digits", "digits"), ("imagenet", "imagenet_90ep"), ("pets", "finetune")])
def test_data_chooses_its_recipe_unless_told(data: str, recipe: str) -> None:
    root = [] if data == "digits" else ["data.root=/x"]
    assert configuration(f"data={data}", *root).recipe.name == recipe
    assert configuration(f"data={data}", "recipe=cifar10", *root).recipe.name == "cifar10"
    assert configuration(f"data={data}", *root, name="evaluate").recipe is None


def test_corruption_groups_are_the_published_ones() -> None:
    names = {
        name: list(dict.fromkeys(cell.corruption for cell in wanted_cells(configuration(f"corruptions={name}").corruptions)))[
            1:
        ]
        for name in ("c15", "extra4", "c19", "quick", "none")
    }
    assert names["none"] == []
    assert names["c15"] == [name for name, corruption in CORRUPTIONS.items() if corruption.group != "extra"]
    assert len(names["c15"]) == 15
    assert names["extra4"] == [name for name, corruption in CORRUPTIONS.items() if corruption.group == "extra"]
    assert names["c19"] == names["c15"] + names["extra4"]
    assert [CORRUPTIONS[name].group for name in names["quick"]] == ["noise", "blur", "weather", "digital"]


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("corruptions=[fog,snow]", "corruptions.names=[fog,snow]"),
        ("corruptions=[fog],[snow]", "corruptions.names=[fog],[snow]"),
        ("corruptions=c19", "corruptions=c19"),
        ("noise.stages=[L3,L4]", "noise.stages=[L3,L4]"),
        ("-m", "-m"),
    ],
)
def test_a_list_of_corruptions(typed: str, meant: str) -> None:
    assert argument(typed) == meant


@pytest.mark.parametrize(
    ("typed", "finetune"),
    [
        (["data=folder", "model.pretrained=true"], True),
        (["data=folder", "model.pretrained=True", "recipe.epochs=3"], True),
        (["data=folder", "++model.checkpoint=w.pt"], True),
        (["-m", "data=folder", "model.checkpoint=a.pt,b.pt"], True),
        (["data=folder", "model.pretrained=true", "recipe=digits"], False),
        (["data=folder", "model.pretrained=false", "model.checkpoint=null"], False),
        (["data=folder"], False),
        (["data=imagenet", "model.pretrained=true"], False),
    ],
)
def test_a_folder_with_given_weights_is_finetuned(typed: list[str], finetune: bool) -> None:
    assert with_recipe(typed) == [*typed, *(["recipe=finetune"] if finetune else [])]


def test_two_choices_are_not_merged() -> None:
    with pytest.raises(UserError, match="model must be one choice, got model="):
        argument("model=[resnet18,resnet50]")


def test_learning_rate_scales_with_the_batch() -> None:
    recipe = configuration("recipe=imagenet_90ep", "recipe.batch_size=1024").recipe
    assert recipe.scaled_lr == pytest.approx(0.4)
    assert configuration("recipe=digits", "recipe.batch_size=64").recipe.scaled_lr == 0.001


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"noise": {"law": "wick"}}, "noise.name is missing: set noise.name=..."),
        ({"noise": {"name": "gch", "law": "wick", "gama": 1}}, "unknown key noise.gama: choose one of name, law"),
        ({"seed": True}, "seed must be of type int, got True"),
        ({"noise": [1]}, "noise must be a mapping, got"),
        ({"evaluation": {"precision": "fp8"}}, "evaluation.precision must be one of fp32, bf16, got 'fp8'"),
    ],
)
def test_parse_refuses(change: dict, message: str) -> None:
    good = configuration().as_dict()
    assert isinstance(parse(good, Config), Config)
    with pytest.raises(UserError, match=message):
        parse({**good, **change}, Config)


def test_every_set_option_of_a_noise_reaches_the_mechanism() -> None:
    """A field that is new in NoiseConfig is an option by itself: no second list has to name it."""
    longer = make_dataclass("Longer", [("fresh", float | None, field(default=None))], bases=(NoiseConfig,), frozen=True)
    assert longer("gch", "samplewise", fresh=2.0).options == {"fresh": 2.0}
    everything = {each.name: 1 for each in fields(NoiseConfig) if each.metadata.get("option", True)}
    assert NoiseConfig("gch", "samplewise", **everything).options == everything


def test_a_new_field_with_a_default_changes_no_identity() -> None:
    @dataclass(frozen=True)
    class Inner:
        strength: float = 1.0

    @dataclass(frozen=True)
    class Before:
        name: str
        inner: Inner = field(default_factory=Inner)
        watched: str = field(default="a", metadata=NOT_IN_IDENTITY)

    after = make_dataclass("After", [("added", int, field(default=3))], bases=(Before,), frozen=True)
    old = identity_of(Before("x", Inner(2.0)))
    assert identity_of(after("x", Inner(2.0))) == old == {"schema": 1, "name": "x", "inner": {"strength": 2.0}}
    assert identity_of(after("x", Inner(2.0), added=4)) != old
    assert identity_of(Before("x", Inner(2.0), watched="b")) == old
    assert identity_of(Before("x", Inner(3.0))) != old


def test_identity_of_a_run_is_of_what_differs() -> None:
    config = configuration("noise=gch", "seed=3", "threads=2", "data.workers=5", "logger=csv", "corruptions=quick")
    assert config.identity["noise"] == {"name": "gch", "law": "samplewise", "gamma": 1.0, "beta": 1.0, "draws": 2}
    assert config.identity["seed"] == 3
    assert not {"threads", "logger", "device", "output"} & set(config.identity)
    assert config.identity == configuration("noise=gch", "seed=3").identity
    for other in (
        "noise.gamma=2",
        "recipe.lr=0.5",
        "evaluation.precision=bf16",
        "corruptions.seed=1",
        "recipe.augment.hflip=1",
    ):
        assert configuration("noise=gch", "seed=3", other).identity != config.identity, other


def test_yaml_files_repeat_no_default() -> None:
    """A default stands in its dataclass alone, so that it cannot come to differ."""
    ours = defaults(Config)
    for file in sorted((REPOSITORY / "configs").glob("*/*.yaml")):
        group, content = file.parent.name, yaml.safe_load(file.read_text()) or {}
        for name, value in content.items():
            undoes = name == "output_stride" and value is None  # that of data=cifar10, which is read before
            if group in ours and name not in ("defaults", "data", "model") and file.stem != "custom" and not undoes:
                assert value != ours[group].get(name), f"{file}: {name} has its default"


def test_names_of_presets_drive_nothing() -> None:
    """Two presets of other names and the same values are the same run but for the label."""
    stored = configuration("corruptions=stored", "corruptions.root=/c").corruptions
    assert wanted_cells(replace(stored, name="mine")) == wanted_cells(stored)
    with pytest.raises(UserError, match=r"corruptions.root must be the folder"):
        configuration("corruptions=c15", "corruptions.needs_root=true")
