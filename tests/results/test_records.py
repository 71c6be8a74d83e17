"""The records of a run, read as docs/evaluation.md shows it."""

import re
import textwrap
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import REPOSITORY

from gch_bench.results.records import Cell, write_record


def test_the_example_of_the_docs_reads_logits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logits = np.arange(6, dtype=np.float16).reshape(2, 3)
    atoms = pd.DataFrame({"id": [0, 1], "label": [0, 1], "prediction": [2, 2], "top5": True}).assign(
        confidence=0.5, nll=1.0, brier=0.5, entropy=0.1
    )
    write_record(tmp_path / "runs" / "RUN", Cell("fog", 3), atoms, {}, logits)
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^ *```python\n(.*?)```", (REPOSITORY / "docs/evaluation.md").read_text(), re.DOTALL | re.MULTILINE)
    (block,) = [textwrap.dedent(block) for block in blocks if "read_logits" in block]
    names: dict[str, object] = {}
    exec(block, names)
    assert np.array_equal(names["logits"], logits)  # type: ignore[arg-type]
