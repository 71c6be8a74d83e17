import subprocess
import sys

import pytest

from gch_bench.config.data import AugmentConfig, DataConfig
from gch_bench.errors import UserError


def test_options_import_no_torch():
    code = "import sys, gch_bench.config.run; sys.exit('torch' in sys.modules or 'sklearn' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "mnist"}, "data.name must be one of digits, imagenet, folder, cifar10, pets, got 'mnist'"),
        (
            {"name": "imagenet"},
            "data.root must be the folder that holds train/CLASS/* and val/CLASS/* for data=imagenet, got None; "
            "pass data.root=/path",
        ),
        (
            {"name": "cifar10", "root": " "},
            "data.root must be the folder that holds cifar-10-batches-py/ for data=cifar10, got ' '; pass data.root=/path",
        ),
        (
            {"name": "digits", "root": "/x"},
            "data.root must be null for data=digits, got '/x'; "
            "to use that folder choose data from imagenet, folder, cifar10, pets",
        ),
        ({"name": "digits", "size": 0}, "data.size must be an integer >= 1, got 0"),
        ({"name": "digits", "size": "big"}, "data.size must be an integer >= 1, got 'big'"),
        ({"name": "digits", "num_classes": True}, "data.num_classes must be an integer >= 1, got True"),
        ({"name": "digits", "workers": -1}, "data.workers must be an integer >= 0, got -1"),
        ({"name": "digits", "interpolation": "area"}, "data.interpolation must be one of bilinear, bicubic, got 'area'"),
        ({"name": "digits", "skip_bad": "yes"}, "data.skip_bad must be true or false, got 'yes'"),
        (
            {"name": "digits", "download": True},
            "data.download must be false for data=digits (only cifar10, pets can be downloaded), got true",
        ),
        (
            {"name": "folder", "root": "/x", "resize": 256},
            "data.resize needs data.size for data=folder, got resize 256; pass data.size=PIXELS",
        ),
        (
            {"name": "digits", "resize": 32},
            "data.resize must be at least data.size (64), or the centre crop has no pixels, got 32",
        ),
    ],
)
def test_bad_data_config_is_one_line(fields, message):
    with pytest.raises(UserError) as caught:
        DataConfig(**fields)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"scale": (0.0, 1.0)}, "augment.scale must be two numbers with 0 < low <= high <= 1, got [0.0, 1.0]"),
        ({"scale": (0.5,)}, "augment.scale must be two numbers with 0 < low <= high <= 1, got [0.5]"),
        ({"ratio": (2, 1)}, "augment.ratio must be two numbers with 0 < low <= high <= inf, got [2, 1]"),
        ({"hflip": 1.5}, "augment.hflip must be a probability in [0, 1], got 1.5"),
        ({"random_erasing": -0.1}, "augment.random_erasing must be a probability in [0, 1], got -0.1"),
        ({"color_jitter": 3}, "augment.color_jitter must be in [0, 1], got 3"),
        (
            {"auto_augment": "lots"},
            "augment.auto_augment must be null or a timm string such as rand-m9-mstd0.5, got 'lots'",
        ),
        (
            {"auto_augment": "rand-m9", "color_jitter": 0.4},
            "augment.color_jitter must be 0 with auto_augment=rand-m9 (timm would turn it off), got 0.4",
        ),
    ],
)
def test_bad_augment_config_is_one_line(fields, message):
    with pytest.raises(UserError) as caught:
        AugmentConfig(**fields)
    assert str(caught.value) == message


def test_lists_from_yaml_become_tuples():
    assert AugmentConfig(scale=[0.2, 1.0]) == AugmentConfig(scale=(0.2, 1.0))  # type: ignore[arg-type]
