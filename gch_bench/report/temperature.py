"""Is it only a temperature? Temperature scaling of recorded logits (Guo et al. 2017), and ensembles of networks.

One temperature per run is fitted on its clean images and divides the logits of all its cells. So that no image is scored by a
temperature that was fitted on it, the clean images are split at random into FOLDS parts, the same for all runs on them; the
images of a part are divided, in every cell, by the temperature that fits the clean images of the other parts. The temperature
that is shown is that of all clean images.

Legend: N images, C classes, S networks.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import logsumexp, softmax

from gch_bench.calibration import classwise_calibration_error
from gch_bench.errors import UserError
from gch_bench.metrics import METRICS, sample_atoms
from gch_bench.report.runs import parallel_map
from gch_bench.report.statistics import atoms_of, metrics_with_interval
from gch_bench.report.study import Group, Run
from gch_bench.results.records import CELL_CLEAN, COLUMNS, Cell, has_logits, read_logits

Floats = NDArray[np.float64]
Logits = NDArray[np.floating]

FOLDS = 5
# A temperature that is fitted on fewer errors follows these few images: with none it would be 0.
MIN_ERRORS = 20
LOWEST, HIGHEST = 0.01, 100.0  # bounds of a temperature
SOME = 5000  # images from which slopes, and the temperature that is best for a cell, are estimated; both need no more
STEP = 0.05  # half the distance in log T over which slopes are measured
CHUNK = 4_000_000  # logits that are worked on at a time


class TooFewErrors(ValueError):
    """A network makes fewer errors on clean images than MIN_ERRORS."""


class Scaled(NamedTuple):
    """A run's records with and without temperature scaling; the frames have a row per image."""

    temperature: float
    raw: dict[Cell, pd.DataFrame]  # with the columns nll_refined, brier_refined and classwise_ce
    calibrated: dict[Cell, pd.DataFrame]  # after temperature scaling, with these columns, too
    slopes: dict[Cell, dict[str, float]]  # metric -> its derivative by log T
    influence_N: Floats  # of each clean image on log T: how far the image's weight 1 + h changes log T, per h / N


def fit_temperature(logits: Logits, labels: NDArray[np.int64]) -> float:
    """The temperature T in [LOWEST, HIGHEST] for which the mean NLL of softmax(logits / T) is least.

    Args:
        logits: (N, C). labels: (N,) in 0..C-1.

    Raises:
        ValueError: there are no images, the shapes do not fit, a label is out of range, or a logit is not finite.
    """
    _check(logits, labels)
    return 1 / _inverse_temperature(logits, labels)


def _check(logits: Logits, labels: NDArray[np.int64]) -> None:
    if logits.ndim != 2 or not logits.size or labels.shape != logits.shape[:1]:
        raise ValueError(f"logits must be (N, C) and labels (N,), not empty, got shapes {logits.shape} and {labels.shape}")
    if labels.min() < 0 or labels.max() >= logits.shape[1]:
        raise ValueError(f"labels must be in 0..{logits.shape[1] - 1}, got {labels.min()}..{labels.max()}")
    if not np.isfinite(logits).all():
        raise ValueError("logits must be finite, got others: were they recorded beyond the range of float16?")


def _inverse_temperature(logits: Logits, labels: NDArray[np.int64], inverse: float = 1.0) -> float:
    """The inverse temperature of least NLL, which is convex in it: Newton steps within a bracket that shrinks."""
    low, high = 1 / HIGHEST, 1 / LOWEST
    for _ in range(60):
        score_N, curvature = _score(logits, labels, inverse)
        score = score_N.mean()
        low, high = (low, inverse) if score > 0 else (inverse, high)
        step = inverse - score / curvature if curvature > 0 else np.nan
        new = step if low < step < high else np.sqrt(low * high)
        if abs(np.log(new / inverse)) < 1e-9 or high / low < 1 + 1e-9:
            break
        inverse = new
    return float(inverse)


def _score(logits: Logits, labels: NDArray[np.int64], inverse: float) -> tuple[Floats, float]:
    """The derivative of each image's NLL by the inverse temperature (N,), and the mean of the second derivatives."""
    score_N, curvature = np.empty(len(logits)), 0.0
    for rows in _chunks(logits):
        some = logits[rows].astype(np.float64)
        p = softmax(some * inverse, axis=1)
        mean = np.einsum("nc,nc->n", p, some)
        score_N[rows] = mean - some[np.arange(len(some)), labels[rows]]
        curvature += float((np.einsum("nc,nc,nc->n", p, some, some) - mean**2).sum())
    return score_N, curvature / len(logits)


def _chunks(logits: Logits) -> Iterator[slice]:
    size = max(1, CHUNK // logits.shape[1])
    return (slice(start, start + size) for start in range(0, len(logits), size))


def scaled(logits_of: Callable[[Cell], Logits], cells: dict[Cell, pd.DataFrame]) -> Scaled:
    """Scale a run's logits by its temperature.

    Args:
        logits_of: returns the logits (N, C) of a cell, one row for each row of the cell's frame.
        cells: the records of the cells that have logits, with the columns `results.records.COLUMNS`; clean must be among them.

    Raises:
        TooFewErrors: fewer than MIN_ERRORS clean images are predicted wrongly.
        ValueError: see `fit_temperature`, or the logits of a cell are not those of its record.
    """
    clean, labels = logits_of(CELL_CLEAN), cells[CELL_CLEAN]["label"].to_numpy()
    errors = int((cells[CELL_CLEAN]["prediction"].to_numpy() != labels).sum())
    if errors < MIN_ERRORS:
        raise TooFewErrors(f"only {errors} clean images are predicted wrongly, and a temperature needs {MIN_ERRORS} of them")
    _check(clean, labels)
    inverse = _inverse_temperature(clean, labels)
    fold_N = np.random.default_rng(0).permutation(len(clean)) % FOLDS
    near = float(np.clip(inverse, 1.01 / HIGHEST, 0.99 / LOWEST))  # where the temperatures of the folds will be, too

    def without(k: int) -> float:
        return _inverse_temperature(clean[fold_N != k], labels[fold_N != k], near)

    folds = parallel_map(without, range(FOLDS)) if len(clean) > FOLDS else []
    inverse_N = np.array(folds)[fold_N] if folds else np.full(len(clean), inverse)
    score_N, curvature = _score(clean, labels, inverse)
    bounded = not 1 / HIGHEST * 1.001 < inverse < 1 / LOWEST * 0.999 or curvature <= 0
    influence_N = np.zeros(len(clean)) if bounded else (score_N - score_N.mean()) / (inverse * curvature)

    def of(cell: Cell) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, float]]:
        return _scaled_cell(logits_of(cell), cells[cell], inverse_N, cell)

    found = dict(zip(cells, parallel_map(of, list(cells)), strict=True))
    raw, calibrated, slopes = ({cell: each[i] for cell, each in found.items()} for i in range(3))
    return Scaled(1 / inverse, raw, calibrated, slopes, influence_N)


def _scaled_cell(
    logits: Logits, frame: pd.DataFrame, inverse_N: Floats, cell: Cell
) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, float]]:
    """The raw and the scaled records of a cell, and the slopes of its metrics."""
    labels = frame["label"].to_numpy()
    if len(logits) != len(frame):
        raise ValueError(f"{cell.corruption}-{cell.severity} must have logits of {len(frame)} images, got {len(logits)}")
    chosen_N = logits[np.arange(len(logits)), frame["prediction"].to_numpy()].astype(np.float64)
    # Where two logits are as close as float16 can tell, rounding may have changed their order.
    below = float((logits.max(axis=1) - chosen_N).max())
    if below > 2 * np.spacing(np.float16(np.abs(logits).max())):
        raise ValueError(f"{cell.corruption}-{cell.severity} has logits that contradict the predictions of its record")
    _check(logits, labels)
    more = _refined(logits, labels)
    raw = frame.assign(**more, classwise_ce=_classwise(logits, labels, np.ones(len(labels))))
    calibrated = _atoms(logits, frame, inverse_N).assign(**more, classwise_ce=_classwise(logits, labels, inverse_N))
    some = slice(None, None, -(-len(frame) // SOME))
    warmer, colder = (atoms_of(_atoms(logits[some], frame[some], inverse_N[some] * np.exp(-h))) for h in (STEP, -STEP))
    slopes = {
        key: float(METRICS[key].formula(warmer) - METRICS[key].formula(colder)) / (2 * STEP)
        for key in metrics_with_interval(COLUMNS)
    }
    return raw, calibrated, slopes


def _atoms(logits: Logits, frame: pd.DataFrame, inverse_N: Floats) -> pd.DataFrame:
    """The atoms of an image's logits times its inverse temperature, beside the id and label of `frame`."""
    parts = []
    for rows in _chunks(logits):
        z = logits[rows] * inverse_N[rows, None]
        parts.append(sample_atoms(z - logsumexp(z, axis=1, keepdims=True), frame["label"].to_numpy()[rows]))
    columns = {name: np.concatenate([getattr(part, name) for part in parts]) for name in parts[0]._fields}
    return frame[["id", "label"]].reset_index(drop=True).assign(**columns)


def _classwise(logits: Logits, labels: NDArray[np.int64], inverse_N: Floats) -> float:
    return classwise_calibration_error(softmax(logits * inverse_N[:, None].astype(np.float32), axis=1), labels)


def _refined(logits: Logits, labels: NDArray[np.int64]) -> dict[str, Floats]:
    """The NLL and Brier score of each image after the temperature that is best for this loss in this cell (Berta et al. 2025).

    What a loss falls by is its calibration part, what remains its refinement part.
    """
    some = slice(None, None, -(-len(labels) // SOME))
    inverse = _inverse_temperature(logits[some], labels[some])
    nll_N, brier_N = _losses(logits, labels, inverse)
    for _ in range(4):  # Newton's steps for the Brier score, whose best temperature is near that of the NLL
        at = [_losses(logits[some], labels[some], inverse * np.exp(h))[1].mean() for h in (-STEP, 0.0, STEP)]
        curvature = at[0] - 2 * at[1] + at[2]
        if not curvature > 0:
            break
        inverse *= np.exp(np.clip(STEP * (at[0] - at[2]) / (2 * curvature), -0.5, 0.5))
    other_N = _losses(logits, labels, inverse)[1]
    return {"nll_refined": nll_N, "brier_refined": other_N if other_N.mean() < brier_N.mean() else brier_N}


def _losses(logits: Logits, labels: NDArray[np.int64], inverse: float) -> tuple[Floats, Floats]:
    """NLL and Brier score of each image (N,) at an inverse temperature."""
    nll_N, brier_N = np.empty(len(labels)), np.empty(len(labels))
    for rows in _chunks(logits):
        z = logits[rows] * np.float64(inverse)
        logp = z - logsumexp(z, axis=1, keepdims=True)
        own, p = logp[np.arange(len(logp)), labels[rows]], np.exp(logp)
        nll_N[rows] = -own
        brier_N[rows] = np.einsum("nc,nc->n", p, p) - 2 * np.exp(own) + 1
    return nll_N, brier_N


def with_temperature(run: Run) -> Run:
    """The run with its temperature and calibrated records, if its clean record holds logits; else the run as it is.

    Raises:
        TooFewErrors: fewer than MIN_ERRORS clean images are predicted wrongly.
        UserError: the logits of a record are not its own, or not finite.
    """
    cells = {cell: frame for cell, frame in run.cells.items() if has_logits(run.folder, cell)}
    if CELL_CLEAN not in cells:
        return run
    try:
        found = scaled(lambda cell: read_logits(run.folder, cell), cells)
    except TooFewErrors:
        raise
    except ValueError as error:
        raise UserError(f"{run.folder} has no numbers after temperature scaling: {error}") from error
    return _with(run, found)


def _with(run: Run, found: Scaled) -> Run:
    return run._replace(
        temperature=found.temperature, cells=run.cells | found.raw, calibrated=found.calibrated, slopes=found.slopes,
        influence_N=found.influence_N,
    )  # fmt: skip


def ensemble(group: Group) -> Group | None:
    """The ensemble of a group's networks as a group of one run, in the cells in which all of them have logits.

    Its prediction is the mean of the networks' softmax outputs (Lakshminarayanan et al. 2017). None for a single network, where
    the clean logits are missing, and for images with several labels: which of them a record holds depends on its network.

    Raises:
        UserError: logits cannot be read, or are not finite.
    """
    runs = [run for _, run in sorted(group.runs.items())]
    shared = [cell for cell in runs[0].cells if all(cell in run.cells and has_logits(run.folder, cell) for run in runs)]
    if len(runs) < 2 or CELL_CLEAN not in shared or runs[0].facts.data.get("several_labels"):
        return None

    def logits_of(cell: Cell) -> Logits:
        return mean_log_softmax([read_logits(run.folder, cell) for run in runs])

    def raw(cell: Cell) -> pd.DataFrame:
        frame = runs[0].cells[cell]
        try:
            return _atoms(logits_of(cell), frame, np.ones(len(frame)))
        except ValueError as error:
            raise UserError(f"no ensemble of {group.mechanism}: {cell.corruption}-{cell.severity}: {error}") from error

    cells = dict(zip(shared, parallel_map(raw, shared), strict=True))
    run = Run(runs[0].folder, replace(runs[0].facts, warnings=[]), cells, runs[0].images)
    with contextlib.suppress(TooFewErrors):
        run = _with(run, scaled(logits_of, cells))
    return group._replace(runs={0: run}, kind="ensemble")


def mean_log_softmax(logits: Sequence[Logits]) -> NDArray[np.float32]:
    """The log (N, C) of the mean softmax output of S networks with logits (N, C). ValueError: some are not finite."""
    if not all(np.isfinite(each).all() for each in logits):
        raise ValueError("its logits must be finite")
    mean = np.zeros(logits[0].shape, dtype=np.float32)
    for each in logits:
        mean += softmax(each.astype(np.float32), axis=1) / len(logits)
    return np.log(np.maximum(mean, np.finfo(np.float32).tiny))
