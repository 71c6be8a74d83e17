"""Compare finished runs: python report.py 'runs=[runs/demo/none,runs/demo/gch]'"""

from pathlib import Path

import hydra
from omegaconf import DictConfig

from gch_bench.apps.cli import entry, reported


@hydra.main(version_base="1.3", config_path="configs", config_name="report")
def main(config: DictConfig) -> None:
    with reported():
        from gch_bench.display import Display  # after --help: these take a second to import
        from gch_bench.files import write_atomic
        from gch_bench.report.tables import compare, read_run

        comparison = compare([read_run(Path(folder)) for folder in config.runs])
        Display(main=True).table(*comparison)
        if config.output:
            write_atomic(Path(config.output), lambda file: file.write(comparison.markdown().encode()))


if __name__ == "__main__":
    entry(main)
