"""What is wanted, what can be made, and what counts as done."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from gch_bench.corruptions import CORRUPTIONS, Corruption
from gch_bench.errors import UserError
from gch_bench.evaluation.cells import missing_cells, try_corruptions
from gch_bench.results.records import CELL_CLEAN, COLUMNS, Cell, write_record

FOG, SNOW = Cell("fog", 1), Cell("snow", 3)
FACTS = {"protocol": "p", "weights": "w"}


def record(folder: Path, cell: Cell, **facts: str) -> None:
    write_record(folder, cell, pd.DataFrame({name: np.arange(2) for name in COLUMNS}), {**FACTS, **facts})


def test_missing_cells_have_no_record_of_these_facts(tmp_path: Path) -> None:
    record(tmp_path, CELL_CLEAN)
    record(tmp_path, SNOW, protocol="q")
    cells = [CELL_CLEAN, FOG, SNOW]
    assert missing_cells(tmp_path, cells, FACTS, {}) == [FOG, SNOW]
    assert missing_cells(tmp_path, cells, FACTS | {"protocol": "q"}, {}) == [CELL_CLEAN, FOG]


def test_records_of_other_stored_images_are_neither_reused_nor_overwritten(tmp_path: Path) -> None:
    record(tmp_path, FOG, images="a")
    assert missing_cells(tmp_path, [FOG, SNOW], FACTS, {FOG: "a", SNOW: "a"}) == [SNOW]
    with pytest.raises(UserError, match="fog-1 of other stored images than"):
        missing_cells(tmp_path, [FOG, SNOW], FACTS, {FOG: "b", SNOW: "b"})
    assert missing_cells(tmp_path, [FOG], {"protocol": "q"}, {FOG: "b"}) == [FOG]


def test_each_corruption_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise ValueError("images must be larger")

    said: list[str] = []
    rest = (16, "cifar_32", torch.device("cpu"), said.append)
    try_corruptions([CELL_CLEAN, FOG, SNOW], *rest)
    said.clear()
    monkeypatch.setitem(CORRUPTIONS, "snow", Corruption(refuse, refuse, group="weather"))
    monkeypatch.setattr("gch_bench.evaluation.cells.is_kept", lambda: True)
    try_corruptions([CELL_CLEAN, FOG], *rest)
    monkeypatch.setattr("gch_bench.evaluation.cells.is_kept", lambda: False)
    try_corruptions([CELL_CLEAN], *rest)
    assert said == []
    with pytest.raises(UserError, match="corruption snow of 16x16 images cannot be made: images must be larger"):
        try_corruptions([CELL_CLEAN, FOG, SNOW], *rest)
    assert said == ["compiling the corruptions for this machine: this takes up to a minute, once"]
