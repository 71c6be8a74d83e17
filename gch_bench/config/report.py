"""The typed options of report.py, checked once when they are read. Imports no pandas, so that --help stays quick."""

import re
from dataclasses import asdict, dataclass, field
from typing import Any

from gch_bench.checks import check
from gch_bench.config.run import LoggerConfig


@dataclass(frozen=True)
class ReportConfig:
    """One report on finished runs. Raises FieldError on a value out of its range."""

    logger: LoggerConfig
    runs: list[str] = field(default_factory=list)  # run folders, or patterns of them such as runs/*
    # Folder for the tables (CSV, Markdown, LaTeX), the figures (SVG, PNG, PDF), results.csv and report.html; null: print only.
    output: str | None = None
    latex_prefix: str = ""  # begins the labels of the LaTeX tables: with photos, tab:photos-shift in place of tab:shift
    table: str = "mechanisms"  # the table that is printed: a name in gch_bench/report/tables.py; with output= all are written
    baseline: str = "none"  # the mechanism from which differences are taken: a name such as none, or a label of the report
    resamples: int = 1000  # of the bootstrap over images
    temperature: bool = True  # where the records hold logits: also show every number after temperature scaling
    ensembles: bool = True  # where the records hold logits: also show the ensemble of each mechanism's seeds

    compatibility: str | None = None  # a folder of diagnose.py mode=compatibility, which the page then shows, too

    def __post_init__(self) -> None:
        check(self.resamples >= 100, "resamples", ">= 100", self.resamples)
        check(self.logger.name != "csv", "logger", "none or wandb, because the tables are written as CSV anyway", "csv")
        check(
            self.logger.name == "none" or bool(self.output), "output", f"a folder with logger={self.logger.name}", self.output
        )
        good = re.fullmatch(r"[A-Za-z0-9-]*", self.latex_prefix) is not None
        check(good, "latex_prefix", "letters, digits and hyphens", self.latex_prefix)
        check(bool(self.baseline), "baseline", "the name of a mechanism", self.baseline)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)
