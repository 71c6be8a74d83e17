"""The typed configuration against the YAML groups, and what parsing refuses."""

import pytest
from conftest import REPOSITORY, configuration

from gch_bench.config import Config, parse
from gch_bench.errors import UserError

GROUPS = ("model", "noise", "corruptions", "recipe", "logger")
CHOICES = [f"{group}={file.stem}" for group in GROUPS for file in sorted((REPOSITORY / "configs" / group).glob("*.yaml"))]


@pytest.mark.parametrize("choice", CHOICES)
def test_every_choice_composes(choice: str) -> None:
    more = ["model.factory=tinynet:tinynet"] if choice == "model=custom" else []
    group, name = choice.split("=")
    config = configuration(choice, *more)
    assert group == "model" or getattr(config, group).name == name


@pytest.mark.parametrize(("data", "recipe"), [("digits", "digits"), ("imagenet", "imagenet_90ep"), ("pets", "finetune")])
def test_data_chooses_its_recipe_unless_told(data: str, recipe: str) -> None:
    root = [] if data == "digits" else ["data.root=/x"]
    assert configuration(f"data={data}", *root).recipe.name == recipe
    assert configuration(f"data={data}", "recipe=cifar10", *root).recipe.name == "cifar10"
    assert configuration(f"data={data}", *root, name="evaluate").recipe is None


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
    assert isinstance(parse(good), Config)
    with pytest.raises(UserError, match=message):
        parse({**good, **change})
