"""Reads finished runs, computes the table of results, and shows and writes tables, figures and the page."""

import pandas as pd

from gch_bench.config.report import ReportConfig
from gch_bench.display import Display
from gch_bench.report.rows import rows_of
from gch_bench.report.runs import find_folders, read_runs, settings_of
from gch_bench.report.study import Report
from gch_bench.report.verdict import verdict


def report(config: ReportConfig) -> None:
    """Print the report on the runs of the configuration, and write it to `config.output`, if that is given.

    Raises:
        UserError: no run can be read, a pattern matches none, a name is unknown, or a file cannot be written.
    """
    display = Display(main=True)
    found = build(config, display)
    for line in found.verdict:
        display.line(line)
    for line in found.refused:
        display.warn(line)
    for line in found.notes:
        display.line(line)


def build(config: ReportConfig, display: Display) -> Report:
    """Everything that the views show."""
    found = read_runs(find_folders(config.runs))
    settings, refused = settings_of(found.runs, config.baseline)
    rows = pd.concat([rows_of(setting, config.resamples) for setting in settings], ignore_index=True)
    return Report(settings, rows, verdict(settings, rows), [*found.refused, *refused], [])
