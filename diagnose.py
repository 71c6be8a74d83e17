"""Spectra, transport and static channels of a network: python diagnose.py model=resnet50 checkpoint=FILE"""

import hydra
from omegaconf import DictConfig

from gch_bench.apps.cli import diagnosis_config, entry, reported


@hydra.main(version_base="1.3", config_path="configs", config_name="diagnose")
def main(config: DictConfig) -> None:
    with reported():
        values = diagnosis_config(config)
        from gch_bench.apps.diagnosis.run import diagnose  # after --help: torch takes seconds to import

        diagnose(values)


if __name__ == "__main__":
    entry(main)
