"""Compare finished runs: python report.py 'runs=[runs/*]' output=results/x"""

from gch_bench.apps.cli import DictConfig, entry, hydra, report_config, reported


@hydra.main(version_base="1.3", config_path="configs", config_name="report")
def main(config: DictConfig) -> None:
    with reported():
        values = report_config(config)
        from gch_bench.apps.report import report  # after --help: pandas and scipy take seconds to import

        report(values)


if __name__ == "__main__":
    entry(main)
