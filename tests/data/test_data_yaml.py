import dataclasses
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from gch_bench.config.data import ROOTS, DataConfig

CONFIGS = Path(__file__).parents[2] / "configs" / "data"


@pytest.mark.parametrize("name", ROOTS)
def test_yaml_gives_every_field_and_takes_its_root_from_local(name):
    fields = OmegaConf.load(CONFIGS / f"{name}.yaml")
    fields.pop("defaults", None)  # Hydra's, resolved before the fields are read
    tree = OmegaConf.create({"data": fields})
    assert list(OmegaConf.to_container(fields, resolve=False)) == [field.name for field in dataclasses.fields(DataConfig)]
    assert tree.data.root is None
    if name != "digits":
        tree = OmegaConf.create({"data": fields, "roots": {name: "/mine"}})
        assert tree.data.root == "/mine"
    assert DataConfig(**OmegaConf.to_container(tree.data, resolve=True)).name == name
