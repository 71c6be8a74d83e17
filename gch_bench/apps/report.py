"""Reads finished runs, computes the table of results, and shows and writes tables, figures and the page."""

from io import StringIO
from pathlib import Path

import pandas as pd

from gch_bench import files
from gch_bench.checks import check_choice
from gch_bench.config.report import ReportConfig
from gch_bench.display import Display
from gch_bench.errors import UserError
from gch_bench.loggers import open_logger
from gch_bench.report import render
from gch_bench.report.rows import rows_of
from gch_bench.report.runs import find_folders, read_runs, settings_of
from gch_bench.report.study import Report, Setting
from gch_bench.report.tables import TABLES, tables
from gch_bench.report.temperature import ensemble, with_temperature
from gch_bench.report.verdict import verdict
from gch_bench.results.runfacts import given_weights, stage_in_words

RESULTS = "results.csv"  # the whole table of results
PAGE = "report.html"
OWN = (RESULTS, PAGE, "tables", "figures", "report.json", "wandb")  # what an output folder may hold; the rest is not ours


def report(config: ReportConfig) -> None:
    """Print the report on the runs of the configuration, and write it to `config.output`, if that is given.

    Raises:
        UserError: no run can be read, a pattern matches none, a name is unknown, or a file cannot be written.
    """
    check_choice("table", config.table, TABLES)
    folder = Path(config.output).expanduser() if config.output else None
    if folder is not None:
        _check_output(folder)
    display = Display(main=True)
    found = build(config)
    for table in tables(found, config.table):
        for part in render.terminal(table):
            display.table(*part)
    for heading, lines in (("Verdict", found.verdict), ("Left out", found.refused), ("Runs", found.notes)):
        if lines:
            display.line(f"\n{heading}")
        for line in lines:
            display.line(f"  {line}")
    if folder is not None:
        written = _write(config, found, folder)
        display.line(f"\nwritten: {written} and, in the same folder, {RESULTS}, tables/ and figures/")


def build(config: ReportConfig) -> Report:
    """Everything that the views show.

    Raises:
        UserError: no run can be read, a pattern matches none, or `baseline` names several mechanisms.
    """
    found = read_runs(find_folders(config.runs))
    settings, refused = settings_of(found.runs, config.baseline)
    if config.temperature:
        settings = [_with_logits(setting, config.ensembles, refused) for setting in settings]
    rows = pd.concat([rows_of(setting, config.resamples) for setting in settings], ignore_index=True)
    notes = [line for setting in settings for line in _notes(setting)]
    return Report(settings, rows, verdict(settings, rows), [*found.refused, *refused], notes)


def _with_logits(setting: Setting, ensembles: bool, refused: list[str]) -> Setting:
    """The setting with temperature scaling and ensembles, where the records hold logits. A mechanism whose seeds are not the
    baseline's has no ensemble, because a mean of more networks is better by itself."""
    groups, reasons = [], []
    for group in setting.groups:
        runs = {}
        for seed, run in group.runs.items():
            try:
                runs[seed] = with_temperature(run)
            except UserError as error:
                reasons.append(str(error))
                runs[seed] = run
        groups.append(group._replace(runs=runs))
    if reasons:
        refused.append(reasons[0] + (f" (and {len(reasons) - 1} other runs of {setting.name})" if len(reasons) > 1 else ""))
    baseline = next((each for each in groups if setting.baseline and each.mechanism == setting.baseline.mechanism), None)
    if ensembles and baseline is not None:
        alike = [group for group in groups if set(group.runs) == set(baseline.runs)]
        groups += [found for group in alike if (found := ensemble(group)) is not None]
    return setting._replace(groups=groups, baseline=baseline)


def _notes(setting: Setting) -> list[str]:
    """What a reader must know of the runs: where they lie, what made them, what their noise does, what they warned of."""
    notes = []
    for group in (group for group in setting.groups if group.kind == "single"):
        runs = [run for _, run in sorted(group.runs.items())]
        for seed, run in sorted(group.runs.items()):
            weights = f", weights {given}" if (given := given_weights(run.facts.config)) else ""
            scaled = f", T = {run.temperature:.3f}" if run.temperature is not None else ""
            notes.append(f"{group.mechanism}, seed {seed}: {run.folder}{weights}, commit {run.facts.commit}{scaled}")
        trains = runs[0].facts.config.get("recipe") is not None
        stages = [stage for stage in runs[0].facts.stages if "logit_change" in stage]
        notes += [f"{group.mechanism}: noise at {stage_in_words(stage, trains)}" for stage in stages]
        warnings = dict.fromkeys(warning for run in runs for warning in run.facts.warnings)
        notes += [f"WARNING: {group.mechanism}: {warning}" for warning in warnings]
    return notes


def _check_output(folder: Path) -> None:
    """Raise UserError if `folder` is a file or holds anything but an earlier report."""
    if folder.suffix in (".md", ".csv", ".html", ".tex") or (folder.exists() and not folder.is_dir()):
        raise UserError(f"output must be a folder, got {folder}: it will hold tables/, figures/, {RESULTS} and {PAGE}")
    if folder.is_dir():
        foreign = sorted(path.name for path in folder.iterdir() if path.name not in OWN and not path.name.endswith(".tmp"))
        if foreign:
            raise UserError(f"{folder} already holds something else than a report ({foreign[0]}): choose another output=")


def _write(config: ReportConfig, found: Report, folder: Path) -> Path:
    """Write results.csv, tables, figures and, last, the page, whose path is returned."""
    from gch_bench.report.figure_style import save  # here, because matplotlib takes a second to import
    from gch_bench.report.figures import all_figures
    from gch_bench.report.html import page, this_command

    with files.making(folder):
        text = found.rows.to_csv(index=False, float_format="%.7g")
        files.write_atomic(folder / RESULTS, lambda file: file.write(text.encode()))
        made = [table for name in TABLES for table in tables(found, name) if table.rows]
        for table in made:
            render.write(table, folder / "tables")
        figures = all_figures(found)
        save(figures, folder / "figures")
        html = page(found, made, figures, this_command(), RESULTS)
        files.write_atomic(folder / PAGE, lambda file: file.write(html.encode()))
        logger = open_logger(config, folder, main=True)
        logger.tables({RESULTS: found.rows, **{table.key: pd.read_csv(StringIO(render.csv(table))) for table in made}})
        logger.close()
    return folder / PAGE
