"""Train a backbone with internal noise, evaluate it clean and under corruption: python train.py noise=gch model=resnet50"""

import hydra
from omegaconf import DictConfig

from gch_bench.cli import entry, plain, reported


@hydra.main(version_base="1.3", config_path="configs", config_name="train")
def main(config: DictConfig) -> None:
    with reported():
        values = plain(config)
        from gch_bench.job import train_and_evaluate  # after --help: torch takes seconds to import

        train_and_evaluate(values)


if __name__ == "__main__":
    entry(main)
