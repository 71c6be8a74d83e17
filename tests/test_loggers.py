"""metrics.csv that cannot be read again ends in one line."""

from pathlib import Path

import pytest

from gch_bench.errors import UserError
from gch_bench.loggers import CsvLogger


@pytest.mark.parametrize("row", ["1,train/loss", "1.0,train/loss,2", "1,train/loss,", "1,train/loss,2,3"])
def test_a_damaged_file_is_named(row: str, tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text(f"step,name,value\n{row}\n")
    with pytest.raises(UserError, match=r"metrics.csv is damaged"):
        CsvLogger(tmp_path)
    assert row in (tmp_path / "metrics.csv").read_text()
