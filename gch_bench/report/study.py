"""What a report is about: finished runs, grouped by setting and mechanism, and the table of results that every view reads.

A setting is everything that two runs must share to be compared: data, protocol, network and recipe; only noise and seed may
differ. A group holds the runs of one mechanism in one setting, one run for each seed. Tables, figures and the page read `ROWS`
and compute no statistics of their own.
"""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from gch_bench.results.records import Cell
from gch_bench.results.runfacts import RunFacts

MEAN = "mean"  # in the column corruption: the mean over severities, and then over the setting's corruptions
RAW, CALIBRATED = "raw", "after T"  # the values of the column temperature

# The columns of the table of results. One row is one metric of one group of runs on one part of the evaluation. The difference
# is group - baseline at equal seed on equal images; it and all after it are NaN for the baseline itself.
ROWS = {
    "setting": "name of the setting",
    "mechanism": "label of the group, unique in its setting, such as `gch gamma=1 beta=1 L4`",
    "noise": "name of the mechanism, such as gch",
    "stages": "stages with noise, joined by +; empty without noise",
    "kind": "single: networks by themselves; ensemble: the mean of the softmax outputs of all seeds' networks",
    "corruption": "clean, the name of a corruption, or mean",
    "severity": "1..5, 0 for clean, or missing (NA) for the mean over severities",
    "metric": "key of METRICS",
    "temperature": "raw, or after T: logits divided by the run's temperature",
    "value": "mean over seeds",
    "sd": "standard deviation over seeds; NaN for one seed",
    "se_images": "standard error of the value over the draw of images; NaN for a metric for which none is known to be valid",
    "seeds": "number of seeds; for a difference those that both groups have; 1 for an ensemble, which is one predictor",
    "images": "number of images",
    "difference": "mean over the shared seeds of group - baseline",
    "low": "lower bound of the 95% interval; NaN for a metric that has no valid interval",
    "high": "upper bound",
    "p": "two-sided p value of the difference",
    "p_holm": "p after Holm's correction over the setting's mechanisms, for this metric, part and temperature",
    "detectable": "smallest difference that this design detects with a power of 80% at the 5% level",
    "sign_flip": "one-sided exact p of the sign-flip test over seeds, in the better direction; its floor is 2^-seeds",
}


class Run(NamedTuple):
    """A finished run: its folder, the facts in run.json, the records of each cell (a row per image), and, for cells of stored
    images, the fingerprint of those images (None elsewhere). Runs with logits also have their temperature, fitted on all clean
    images, the records after temperature scaling, and what the intervals need to include the uncertainty of the temperature
    (report/temperature.py: the slopes of the metrics, and the images' influence); None otherwise."""

    folder: Path
    facts: RunFacts
    cells: dict[Cell, pd.DataFrame]
    images: dict[Cell, str | None]
    temperature: float | None = None
    calibrated: dict[Cell, pd.DataFrame] | None = None
    slopes: dict[Cell, dict[str, float]] | None = None
    influence_N: NDArray[np.float64] | None = None


class Group(NamedTuple):
    """The runs of one mechanism in one setting, by seed."""

    mechanism: str  # its label
    noise: dict[str, Any]  # the section `noise` of the configuration
    runs: dict[int, Run]
    kind: str = "single"


class Setting(NamedTuple):
    """Groups whose runs differ only in noise and seed."""

    name: str
    groups: list[Group]
    baseline: Group | None  # one of the groups; None: no difference can be computed
    cells: list[Cell]  # the corrupted cells that the mean is over

    def baseline_of(self, group: Group) -> Group | None:
        """The group from which the differences of `group` are taken: an ensemble's is the ensemble of the baseline's networks.
        None for the baseline itself, and where there is none."""
        if self.baseline is None or group.mechanism == self.baseline.mechanism:
            return None
        alike = (each for each in self.groups if each.kind == group.kind and each.mechanism == self.baseline.mechanism)
        return next(alike, None)


class Report(NamedTuple):
    """What all views show."""

    settings: list[Setting]
    rows: pd.DataFrame  # columns ROWS
    verdict: list[str]  # sentences, the most important first
    refused: list[str]  # one line per run or difference that was left out, with the reason
    notes: list[str]  # protocol, images, corruptions, differences of configuration, warnings, provenance in words
