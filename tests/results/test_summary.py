"""summary.csv and means.csv against their own arithmetic, and derived again when a metric is new."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import TINY, configuration

from gch_bench import metrics
from gch_bench.apps.run import train_and_evaluate
from gch_bench.metrics import Metric
from gch_bench.results.records import CELL_CLEAN, Cell, write_record
from gch_bench.results.summary import ALEXNET, ALEXNET_CLEAN, MEAN, logged_metrics, means, write_summary

SEVERITIES = (1, 2, 3, 4, 5)


def record(folder: Path, cell: Cell, error: float) -> None:
    rng, labels = np.random.default_rng(0), np.zeros(100, dtype=int)
    rows = {
        "id": np.arange(100),
        "label": labels,
        "prediction": (np.arange(100) < round(100 * error)).astype(int),
        "top5": True,
    }
    rows |= {key: rng.random(100) for key in ("confidence", "nll", "brier", "entropy")}
    write_record(folder, cell, pd.DataFrame(rows), {})


@pytest.fixture
def summary(tmp_path: Path) -> pd.DataFrame:
    """A run whose error is 0.3 clean and AlexNet's, rounded to percent, under every corruption."""
    errors = {Cell(name, severity): round(ALEXNET[name], 2) for name in ALEXNET for severity in SEVERITIES}
    for cell, error in {CELL_CLEAN: 0.3, **errors}.items():
        record(tmp_path, cell, error)
    return write_summary(tmp_path, [CELL_CLEAN, *errors], 2, imagenet_1k=True)


def test_means_and_corruption_errors(summary: pd.DataFrame, tmp_path: Path) -> None:
    table = means(summary, imagenet_1k=True).set_index("corruption")
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "means.csv", index_col="corruption"), table)
    assert list(table.index) == ["clean", *ALEXNET, MEAN]
    assert table.loc["fog", "ce"] == pytest.approx(round(ALEXNET["fog"], 2) / ALEXNET["fog"])
    assert table.loc[MEAN, "ce"] == pytest.approx(np.mean([round(error, 2) / error for error in ALEXNET.values()]))
    relative = [(round(error, 2) - 0.3) / (error - ALEXNET_CLEAN) for error in ALEXNET.values()]
    assert table.loc[MEAN, "relative_ce"] == pytest.approx(np.mean(relative))
    logged = logged_metrics(summary, imagenet_1k=True)
    assert logged["shift/mean/mce"] == table.loc[MEAN, "ce"]
    assert logged["shift/mean/relative_mce"] == table.loc[MEAN, "relative_ce"]
    assert logged["shift/mean/top1"] == pytest.approx(1 - np.mean([round(error, 2) for error in ALEXNET.values()]))


def test_corruption_errors_only_where_they_are_defined(summary: pd.DataFrame) -> None:
    elsewhere = means(summary, imagenet_1k=False)
    assert "ce" not in elsewhere
    assert not any("mce" in name for name in logged_metrics(summary, imagenet_1k=False))
    some = means(summary[summary["corruption"] != "fog"], imagenet_1k=True).set_index("corruption")
    assert some.loc["snow", "ce"] > 0
    assert np.isnan(some.loc[MEAN, "ce"]), "a mean over fewer than the 15 is no mCE"
    fewer = means(summary[summary["severity"] < 5], imagenet_1k=True).set_index("corruption")
    assert fewer["ce"].isna().all(), "AlexNet's errors are means over five severities"


def test_a_new_metric_appears_without_a_forward_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = (*TINY, "recipe.epochs=1", "corruptions.names=[brightness]", f"output={tmp_path / 'run'}")
    train_and_evaluate(configuration(*options))
    before = (tmp_path / "run" / "summary.csv").read_text()
    mean_label = Metric("mean label", "mean number of the label", lambda atoms: atoms.label.mean(), percent=False)
    monkeypatch.setitem(metrics.METRICS, "mean_label", mean_label)

    def no_forward_pass(*arguments: object) -> None:
        raise AssertionError("a finished run needs no forward pass over its images")

    monkeypatch.setattr("gch_bench.apps.run.evaluate", no_forward_pass)
    train_and_evaluate(configuration(*options))
    table = pd.read_csv(tmp_path / "run" / "summary.csv")
    labels = pd.read_csv(tmp_path / "run" / "images.csv")["label"]
    assert table["mean_label"].tolist() == pytest.approx([labels.mean()] * len(table))
    monkeypatch.delitem(metrics.METRICS, "mean_label")
    train_and_evaluate(configuration(*options))
    assert (tmp_path / "run" / "summary.csv").read_text() == before
