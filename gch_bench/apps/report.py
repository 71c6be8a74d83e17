"""Reads finished runs, computes the table of results, and shows and writes tables, figures and the page."""

import shutil
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import pandas as pd

from gch_bench import files
from gch_bench.checks import check_choice
from gch_bench.config.report import ReportConfig
from gch_bench.display import Display
from gch_bench.errors import UserError
from gch_bench.loggers import open_logger
from gch_bench.report import compatibility, render
from gch_bench.report.rows import rows_of
from gch_bench.report.runs import find_folders, read_runs, settings_of
from gch_bench.report.study import Group, Report, Setting
from gch_bench.report.tables import TABLES, tables, varies
from gch_bench.report.temperature import MIN_ERRORS, TooFewErrors, ensemble, with_temperature
from gch_bench.report.verdict import verdict
from gch_bench.results.records import CELL_CLEAN, has_logits
from gch_bench.results.runfacts import given_weights, stage_in_words

RESULTS = "results.csv"  # the whole table of results
PAGE = "report.html"
OWN = (RESULTS, PAGE, "tables", "figures", "wandb")  # what an output folder may hold; the rest is not ours


def report(config: ReportConfig) -> None:
    """Print the report on the runs of the configuration, and write it to `config.output`, if that is given.

    Raises:
        UserError: no run can be read, a pattern matches none, a name is unknown, `config.compatibility` is no such result, or a
            file cannot be written.
    """
    check_choice("table", config.table, TABLES)
    folder = Path(config.output).expanduser() if config.output else None
    if folder is not None:
        _check_output(folder)
    display = Display(main=True)
    compatible = compatibility.read(Path(config.compatibility).expanduser()) if config.compatibility is not None else None
    found = build(config, display)
    for table in tables(found, config.table):
        for part in render.terminal(table):
            display.table(*part)
    if compatible is not None:
        for part in compatibility.console_tables(compatible[1]):
            display.table(*part)
        for line in compatibility.flagged(compatible[1]["measurements"]):
            display.line(line)
    for heading, lines in (("Runs", found.notes), ("Left out", found.refused), ("Verdict", found.verdict)):
        if lines:
            display.line(f"\n{heading}")
        for line in lines:
            display.line(f"  {line}")
    if folder is None:
        display.line("\noutput=FOLDER also writes all tables, the figures and a page")
    else:
        written = _write(config, found, folder, compatible)
        display.line(f"\nwritten: {written} and, in the same folder, {RESULTS}, tables/ and figures/")


def build(config: ReportConfig, display: Display) -> Report:
    """Everything that the views show.

    Raises:
        UserError: no run can be read, a pattern matches none, or `baseline` names several mechanisms.
    """
    folders = find_folders(config.runs)
    display.line(f"reading {len(folders)} runs")
    found = read_runs(folders)
    settings, refused = settings_of(found.runs, config.baseline)
    if config.temperature:
        runs = [run for setting in settings for group in setting.groups for run in group.runs.values()]
        if any(has_logits(run.folder, CELL_CLEAN) for run in runs):
            with display.bar("temperature scaling", len(runs), "runs") as advance:
                settings = [_with_logits(setting, config.ensembles, refused, advance) for setting in settings]
    rows = pd.concat([rows_of(setting, config.resamples) for setting in settings], ignore_index=True)
    notes = [line for setting in settings for line in _notes(setting)]
    return Report(settings, rows, verdict(settings, rows), [*found.refused, *refused], notes)


def _with_logits(setting: Setting, ensembles: bool, refused: list[str], advance: Callable[[str, int], None]) -> Setting:
    """The setting with temperature scaling and ensembles, where the records hold logits. A mechanism whose seeds are not the
    baseline's has no ensemble, because a mean of more networks is better by itself. `advance` counts runs (Display.bar)."""
    groups, few, without = [], [], []
    for group in setting.groups:
        runs = {}
        for seed, run in group.runs.items():
            runs[seed] = run
            try:
                runs[seed] = with_temperature(run)
                without += [str(run.folder)] if runs[seed].temperature is None else []
            except TooFewErrors:
                few.append(str(run.folder))
            except UserError as error:
                refused.append(str(error))
            advance(group.mechanism, 1)
        groups.append(group._replace(runs=runs))
    scaled = any(run.temperature is not None for group in groups for run in group.runs.values())
    if few:
        refused.append(
            f"{setting.name}: no temperature is fitted where fewer than {MIN_ERRORS} clean images are predicted wrongly:"
            f" {_listed(few)}"
        )
    if without and (scaled or few):
        refused.append(f"{setting.name}: no temperature is fitted where no clean logits are recorded: {_listed(without)}")
    baseline = next((each for each in groups if setting.baseline and each.mechanism == setting.baseline.mechanism), None)
    if ensembles and baseline is not None:
        groups += _ensembles(groups, baseline, refused)
    return setting._replace(groups=groups, baseline=baseline)


def _ensembles(groups: list[Group], baseline: Group, refused: list[str]) -> list[Group]:
    """The ensembles of the mechanisms that have the baseline's seeds, its own first; [] if there is none to compare it with."""
    found, others = [], []
    for group in groups:
        if set(group.runs) != set(baseline.runs):
            others.append(group.mechanism)
            continue
        try:
            found += [each for each in [ensemble(group)] if each is not None]
        except UserError as error:
            refused.append(str(error))
    if len(found) < 2 or found[0].mechanism != baseline.mechanism:
        return []
    if others:
        refused.append(f"no ensemble where the seeds are not those of {baseline.mechanism}: {_listed(others)}")
    return found


def _listed(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _notes(setting: Setting) -> list[str]:
    """What a reader must know of the runs: where they lie, what made them, what their noise does, what they warned of."""
    facts = [run.facts for group in setting.groups for run in group.runs.values()]
    made: dict[str, set[str | None]] = {
        "commit": {each.commit for each in facts},
        "torch": {each.versions.get("torch") for each in facts},
        "device": {each.device for each in facts},
    }
    notes = [
        f"WARNING: {setting.name}: runs of different {name} are compared: {', '.join(sorted(map(str, values)))}"
        for name, values in made.items()
        if len(values) > 1
    ]
    for group in (group for group in setting.groups if group.kind == "single"):
        runs = [run for _, run in sorted(group.runs.items())]
        for seed, run in sorted(group.runs.items()):
            weights = f", weights {given}" if (given := given_weights(run.facts.config)) else ""
            scaled = f", T = {run.temperature:.3f}" if run.temperature is not None else ""
            notes.append(f"{group.mechanism}, seed {seed}: {run.folder}{weights}, commit {str(run.facts.commit)[:10]}{scaled}")
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
        names = sorted(path.name for path in folder.iterdir() if not path.name.endswith(".tmp"))
        # A report writes RESULTS first: tables and figures without it are somebody else's, and would be deleted.
        foreign = [name for name in names if name not in OWN or RESULTS not in names]
        if foreign:
            raise UserError(f"{folder} already holds something else than a report ({foreign[0]}): choose another output=")


def _write(
    config: ReportConfig, found: Report, folder: Path, compatible: tuple[dict[str, Any], dict[str, pd.DataFrame]] | None
) -> Path:
    """Write results.csv, tables, figures and, last, the page, whose path is returned."""
    from gch_bench.report import compatibility_figures
    from gch_bench.report.figure_style import save  # here, because matplotlib takes a second to import
    from gch_bench.report.figures import all_figures
    from gch_bench.report.html import page
    from gch_bench.report.page_parts import this_command

    with files.making(folder):
        for name in ("tables", "figures"):  # those of an earlier report may be of other settings
            shutil.rmtree(folder / name, ignore_errors=True)
        text = found.rows.to_csv(index=False, float_format="%.7g")
        files.write_atomic(folder / RESULTS, lambda file: file.write(text.encode()))
        wanted = [name for name in TABLES if name == config.table or varies(found, name)]
        made = [table for name in wanted for table in tables(found, name) if table.rows]
        for table in made:
            render.write(table, folder / "tables", config.latex_prefix)
        figures = all_figures(found)
        save(figures, folder / "figures")
        overview = None
        if compatible is not None:
            more = compatibility_figures.all_figures(compatible[1])
            save({f"compatibility-{name}": figure for name, figure in more.items()}, folder / "figures")
            overview = compatibility.overview(compatibility.Section(*compatible, more), "compatibility")
        html = page(found, made, figures, this_command(), RESULTS, overview)
        files.write_atomic(folder / PAGE, lambda file: file.write(html.encode()))
        logger = open_logger(config, folder, main=True)
        logger.tables({RESULTS: found.rows, **{table.key: pd.read_csv(StringIO(render.csv(table))) for table in made}})
        logger.close()
    return folder / PAGE
