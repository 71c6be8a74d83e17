"""The choices of data and augmentation: what is refused, in one line that names the field as the user typed it."""

import subprocess
import sys

import pytest
from conftest import configuration

from gch_bench.config.data import AugmentConfig, DataConfig
from gch_bench.data.sets import DATASETS, load_data
from gch_bench.errors import FieldError, UserError


def test_options_import_no_torch() -> None:
    code = "import sys, gch_bench.apps.cli; sys.exit('torch' in sys.modules or 'sklearn' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "mnist"}, f"data.name must be one of {', '.join(DATASETS)}, got 'mnist'"),
        (
            {"name": "imagenet"},
            "data.root must be the folder that holds train/CLASS/* and val/CLASS/* for data=imagenet (pass data.root=/path),"
            " got None",
        ),
        (
            {"name": "cifar10", "root": " "},
            "data.root must be the folder that holds cifar-10-batches-py/ for data=cifar10 (pass data.root=/path), got ' '",
        ),
        (
            {"name": "digits", "root": "/x"},
            "data.root must be null for data=digits (to use a folder choose data from"
            f" {', '.join(name for name, row in DATASETS.items() if row.root)}), got '/x'",
        ),
        (
            {"name": "digits", "download": True},
            "data.download must be false for data=digits, as only cifar10, cifar100, pets can be downloaded, got True",
        ),
        (
            {"name": "folder", "root": "/x", "resize": 256},
            "data.resize must be null without data.size for data=folder (pass data.size=PIXELS), got 256",
        ),
        (
            {"name": "digits", "resize": 32},
            "data.resize must be at least data.size (64), or the centre crop has no pixels, got 32",
        ),
    ],
)
def test_choices_that_do_not_fit_the_data_set(fields: dict, message: str) -> None:
    with pytest.raises(UserError) as caught:
        load_data(DataConfig(**fields))
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.size=0", "data.size must be a whole number >= 1, got 0"),
        ("data.size=big", "data.size must be of type int, got 'big'"),
        ("data.num_classes=true", "data.num_classes must be of type int, got True"),
        ("data.workers=-1", "data.workers must be a whole number >= 0, got -1"),
        ("data.interpolation=area", "data.interpolation must be one of bilinear, bicubic, got 'area'"),
        ("data.skip_bad=yes_please", "data.skip_bad must be of type bool, got 'yes_please'"),
        ("recipe.augment.scale=[0,1]", "recipe.augment.scale must be two numbers with 0 < low <= high <= 1, got [0.0, 1.0]"),
        ("recipe.augment.scale=[0.5]", "recipe.augment.scale must be two numbers with 0 < low <= high <= 1, got [0.5]"),
        ("recipe.augment.ratio=[2,1]", "recipe.augment.ratio must be two numbers with 0 < low <= high <= inf, got [2.0, 1.0]"),
        ("recipe.augment.hflip=1.5", "recipe.augment.hflip must be a number in [0, 1], got 1.5"),
        ("recipe.augment.random_erasing=-0.1", "recipe.augment.random_erasing must be a number in [0, 1], got -0.1"),
        ("recipe.augment.color_jitter=3", "recipe.augment.color_jitter must be a number in [0, 1], got 3.0"),
        (
            "recipe.augment.auto_augment=lots",
            "recipe.augment.auto_augment must be null or a timm string such as rand-m9-mstd0.5, got 'lots'",
        ),
    ],
)
def test_bad_values_are_named_as_they_were_typed(override: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        configuration(override)
    assert str(caught.value) == message


def test_jitter_goes_with_no_auto_augmentation() -> None:
    with pytest.raises(FieldError, match="color_jitter must be 0 with auto_augment=rand-m9, where timm would turn it off"):
        AugmentConfig(auto_augment="rand-m9", color_jitter=0.4)


def test_lists_from_yaml_become_tuples() -> None:
    assert AugmentConfig(scale=[0.2, 1.0]) == AugmentConfig(scale=(0.2, 1.0))  # type: ignore[arg-type]


def test_real_labels_are_of_the_images_of_imagenet() -> None:
    choice = ("data=imagenet_real", "+roots.imagenet=/a")
    assert configuration(*choice, name="evaluate").data.root == "/a"
    assert configuration(*choice, "+roots.imagenet_real=/b", name="evaluate").data.root == "/b"
