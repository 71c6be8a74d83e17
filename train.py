"""Train a backbone with internal noise, evaluate it clean and under corruption: python train.py noise=gch model=resnet50"""

from gch_bench.apps.cli import DictConfig, entry, hydra, reported, run_config


@hydra.main(version_base="1.3", config_path="configs", config_name="train")
def main(config: DictConfig) -> None:
    with reported():
        values = run_config(config)
        from gch_bench.apps.run import train_and_evaluate  # after --help: torch takes seconds to import

        train_and_evaluate(values)


if __name__ == "__main__":
    entry(main)
