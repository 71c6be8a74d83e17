"""The table of data sets: every row has its YAML file, takes its root from configs/local, and fills what a run leaves open."""

import pytest
from conftest import REPOSITORY, configuration
from omegaconf import OmegaConf

from gch_bench.data import sets
from gch_bench.data.sets import DATASETS


def test_every_row_has_a_file_and_every_file_a_row() -> None:
    assert sorted(DATASETS) == sorted(path.stem for path in (REPOSITORY / "configs" / "data").glob("*.yaml"))


@pytest.mark.parametrize("name", DATASETS)
def test_roots_come_from_this_machines_file(name: str) -> None:
    data = OmegaConf.load(REPOSITORY / "configs" / "data" / f"{name}.yaml").data
    assert data.name == name
    assert OmegaConf.create({"data": data}).data.get("root") is None
    assert OmegaConf.create({"data": data, "roots": {name: "/mine"}}).data.get("root") == (
        "/mine" if DATASETS[name].root else None
    )


@pytest.mark.parametrize("name", DATASETS)
def test_what_a_run_leaves_open_is_the_data_sets_own(name: str) -> None:
    row = DATASETS[name]
    root = ["data.root=/x"] if row.root else []
    filled = sets._fitting(configuration(f"data={name}", *root).data)
    assert (filled.size, filled.resize, filled.num_classes) == (row.size, row.resize, row.num_classes)
    own = sets._fitting(configuration(f"data={name}", *root, "data.size=48", "data.resize=50", "data.num_classes=3").data)
    assert (own.size, own.resize, own.num_classes) == (48, 50, 3)
