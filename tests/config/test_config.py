"""The typed configuration against the YAML groups, and what parsing refuses."""

import pytest
from conftest import REPOSITORY, configuration

from gch_bench.apps.cli import argument, with_recipe
from gch_bench.config.parse import parse
from gch_bench.config.run import Config
from gch_bench.corruptions import CORRUPTIONS
from gch_bench.errors import UserError

GROUPS = ("model", "noise", "corruptions", "recipe", "logger")
CHOICES = [f"{group}={file.stem}" for group in GROUPS for file in sorted((REPOSITORY / "configs" / group).glob("*.yaml"))]


@pytest.mark.parametrize("choice", CHOICES)
def test_every_choice_composes(choice: str) -> None:
    needs = {"model=custom": ["model.factory=tinynet:tinynet"], "corruptions=stored": ["corruptions.root=/c"]}
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
    names = {name: configuration(f"corruptions={name}").corruptions.names for name in ("c15", "extra4", "c19", "quick")}
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
        ({"noise": {"name": "gch"}}, "noise.law is missing: set noise.law=..."),
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
