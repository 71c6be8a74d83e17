"""What a run prints: what it is about to do, and the table of its results."""

import pandas as pd

from gch_bench.apps.job import Job
from gch_bench.metrics import CLEAN, METRICS, SHOWN
from gch_bench.report.statistics import paired_differences
from gch_bench.results.records import CELL_CLEAN, CELL_CLEAN_TIMM, read_record
from gch_bench.results.runfacts import given_weights, stage_in_words
from gch_bench.results.summary import MEAN, means

CORRUPTION_ERRORS = {"ce": "CE %", "relative_ce": "relative CE %"}  # column of means.csv -> header


def banner(job: Job) -> None:
    config, show = job.config, job.display
    kwargs = f" {config.model.kwargs}" if config.model.kwargs else ""
    show.line(f"data:     {job.data.description}")
    show.line(f"images:   {_geometry(job)}")
    show.line(
        f"model:    {config.model.factory or config.model.name}{kwargs}, output stride {config.model.output_stride or 'native'}"
    )
    if weights := given_weights(config.as_dict()):
        show.line(f"weights:  {weights}")
    off = ", off: evaluated without it" if job.noisy.stages and config.recipe is None and not config.noise.eval else ""
    show.line(f"noise:    {config.noise.name}{f': {job.noisy.mechanism}' if job.noisy.stages else ''}{off}")
    for stage in job.noisy.stages:
        show.line(f"          {stage_in_words(stage.facts(), config.recipe is not None)}")
    if config.recipe is not None:
        trained = f"what lies after {config.recipe.freeze}" if config.recipe.freeze else "all weights"
        show.line(f"recipe:   {config.recipe.name} ({config.recipe.epochs} epochs, {trained})")
    show.line(f"protocol: {job.protocol.id}")
    show.line(f"run:      {job.folder} (seed {config.seed}, {job.world.size} x {job.world.device})")
    for warning in job.noisy.warnings:
        show.warn(warning)


def show(job: Job, summary: pd.DataFrame) -> None:
    """Print the run's table: clean, each corruption's mean over severities, and the mean over corruptions."""
    columns, rows = results_table(summary, job.data.is_imagenet_1k)
    notes = [f"WARNING: {warning}" for warning in job.run_file.warnings]
    trains = job.config.recipe is not None
    notes += [f"noise at {stage_in_words(stage.facts(), trains)}" for stage in job.noisy.stages]
    if set(columns) & set(CORRUPTION_ERRORS.values()):
        notes.append("CE, relative CE: top-1 errors relative to AlexNet's published ones (100 is AlexNet); their means are mCE"
                     " and relative mCE (Hendrycks & Dietterich 2019)")  # fmt: skip
    if job.timm is not None:
        notes.append(_timm_note(job))
    if weights := given_weights(job.config.as_dict()):
        notes.append(f"weights: {weights}")
    images = int(summary.loc[0, "n"])  # type: ignore[arg-type]
    job.display.table(
        f"{job.folder.name}: {images} images per cell, mean over severities",
        columns,
        rows,
        [*notes, f"records: {job.folder}"],
    )


def results_table(summary: pd.DataFrame, imagenet_1k: bool) -> tuple[list[str], list[list[str]]]:
    """The columns and rows of the table, as text. Corruption errors are left out where none is defined, and the mean over
    corruptions where it would repeat the only one.

    Args:
        summary: the table of summary.csv.
        imagenet_1k: see `results.summary.means`.
    """
    table = means(summary, imagenet_1k)
    names = [name for name in table["corruption"] if name not in (CLEAN, MEAN)]
    if len(names) == 1:
        table = table[table["corruption"] != MEAN]
    errors = {key: title for key, title in CORRUPTION_ERRORS.items() if key in table and table[key].notna().any()}
    rows = []
    for row in table.to_dict("records"):
        name = f"mean over {len(names)} corruptions" if row["corruption"] == MEAN else str(row["corruption"])
        numbers = [metric.text(row[key]) for key, metric in SHOWN.items()]
        rows.append([name, *numbers, *("" if pd.isna(row[key]) else f"{100 * row[key]:.2f}" for key in errors)])
    return ["corruption", *(metric.header for metric in SHOWN.values()), *errors.values()], rows


def _geometry(job: Job) -> str:
    """How the images are prepared, in words."""
    clean = "as they are, neither resized nor cropped" if job.data.geometry == "none" else job.data.geometry
    return f"{clean}; the stored corrupted ones as they are" if job.stored and not job.config.corruptions.resize else clean


def _timm_note(job: Job) -> str:
    """Clean accuracy and NLL in timm's own preparation against those in the run's, with paired 95% intervals."""
    own, other = (read_record(job.folder, cell) for cell in (CELL_CLEAN, CELL_CLEAN_TIMM))
    several_labels = job.data.val.label_sets is not None
    differences = paired_differences([own], [other], several_labels=several_labels)
    shown = [f"{METRICS[key].header} {METRICS[key].interval(differences[key])}" for key in ("top1", "nll")]
    return (
        f"timm validates this network with another preparation of the images, {job.timm} instead of {job.data.geometry}; it"
        f" changes the clean numbers by: {', '.join(shown)} [95% intervals, paired bootstrap]; data.preprocess=timm uses it for"
        " all cells"
    )
