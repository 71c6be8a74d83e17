"""What a run prints: its table from the rows of summary.csv, and how its images are prepared."""

from pathlib import Path

import pandas as pd
import pytest
from conftest import TINY, configuration

from gch_bench.apps.run import train_and_evaluate
from gch_bench.apps.show import results_table
from gch_bench.metrics import SHOWN
from gch_bench.results.records import CELL_CLEAN, Cell


def summary(*cells: Cell) -> pd.DataFrame:
    return pd.DataFrame([{**cell._asdict(), **dict.fromkeys(SHOWN, 0.5)} for cell in (CELL_CLEAN, *cells)])


def test_columns_and_rows_without_content_are_left_out() -> None:
    columns, rows = results_table(summary(), imagenet_1k=True)
    assert [row[0] for row in rows] == ["clean"]
    assert not any("CE %" in name and name != "ECE %" for name in columns)
    fog = [Cell("fog", severity) for severity in range(1, 6)]
    columns, rows = results_table(summary(*fog), imagenet_1k=True)
    assert columns[-2:] == ["CE %", "relative CE %"]
    assert [row[0] for row in rows] == ["clean", "fog"]
    assert rows[1][-2] == f"{100 * 0.5 / 0.819324:.2f}", "AlexNet's published error under fog is 81.93%"
    columns, rows = results_table(summary(*fog, *(Cell("snow", severity) for severity in range(1, 6))), imagenet_1k=False)
    assert "CE %" not in columns
    assert [row[0] for row in rows] == ["clean", "fog", "snow", "mean over 2 corruptions"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("data.size=32", "data.resize=40"), "images:   resize40-bilinear-centercrop32\n"),
        (("data.size=32",), "images:   as they are, neither resized nor cropped\n"),
    ],
)
def test_the_preparation_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], said: str
) -> None:
    tiny = [item for item in TINY if not item.startswith("data.size")]
    train_and_evaluate(configuration(*tiny, *options, "recipe.epochs=1", "corruptions=none", f"output={tmp_path / 'run'}"))
    assert said in capsys.readouterr().out
