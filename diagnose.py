"""The geometry of weights, or what noise would do to a network: python diagnose.py model=resnet50 checkpoint=FILE"""

from gch_bench.apps.cli import DictConfig, diagnosis_config, entry, hydra, reported


@hydra.main(version_base="1.3", config_path="configs", config_name="diagnose")
def main(config: DictConfig) -> None:
    with reported():
        values = diagnosis_config(config)
        from gch_bench.apps.diagnosis.modes import MODES  # after --help: torch takes seconds to import

        MODES[values.mode](values)


if __name__ == "__main__":
    entry(main, diagnosis=True)
