"""The headline quantities of chains over epochs: the table's order and gaps, and the figure."""

import math
from pathlib import Path

import numpy as np
import pytest

from gch_bench.report.figure_style import save
from gch_bench.report.geometry_trajectory import QUANTITIES, SCORES, trajectories


def summaries(epochs: list[int | None], shift: float = 0.0) -> list[tuple[str, int | None, dict[str, float]]]:
    found = []
    for number, epoch in enumerate(epochs):
        at = number if epoch is None else epoch
        values = {key: shift + at + 0.1 * i for i, key in enumerate(QUANTITIES)}
        found.append((f"epoch-{at}", epoch, values | dict.fromkeys(SCORES.values(), at - 2.5) | {"factors": 3.0}))
    return found


def test_the_table_is_by_epoch() -> None:
    table, figure = trajectories({"resnet": summaries([10, 2, 0])})
    assert list(table["epoch"]) == [0, 2, 10]
    assert list(table["label"]) == ["epoch-0", "epoch-2", "epoch-10"]
    assert list(table["energy_gain"]) == [0, 2, 10]
    assert list(table["energy_gain_z"]) == [-2.5, -0.5, 7.5]
    assert set(table) == {"chain", "label", "epoch", *QUANTITIES, *SCORES.values()}
    assert figure is not None


def test_what_a_summary_lacks_is_nan() -> None:
    own = summaries([0, 1])
    for _, _, values in own:
        del values["spikes"]
    del own[1][2]["energy_gain_z"]
    table, figure = trajectories({"": own})
    assert table["spikes"].isna().all()
    assert math.isnan(table["energy_gain_z"][1])
    assert figure is not None
    titles = [axis.get_title() for axis in figure.axes]
    assert QUANTITIES["spikes"][0] not in titles
    assert QUANTITIES["energy_gain"][0] in titles


def test_unknown_epochs_are_numbered() -> None:
    table, figure = trajectories({"a": summaries([5, None]), "b": summaries([3, 4])})
    assert list(table["chain"]) == ["a", "a", "b", "b"]
    assert list(table["epoch"]) == [0, 1, 0, 1]
    assert figure is not None
    assert "checkpoint" in {axis.get_xlabel() for axis in figure.axes}


def test_nothing_to_draw() -> None:
    assert trajectories({"": []})[1] is None
    assert list(trajectories({"": []})[0]["epoch"]) == []
    table, figure = trajectories({"": summaries([7])})
    assert len(table) == 1
    assert figure is None
    assert trajectories({"": summaries([7, 7])})[1] is None
    assert trajectories({"": [("a", 0, {}), ("b", 1, {})]})[1] is None


def test_the_figure(tmp_path: Path) -> None:
    table, figure = trajectories({"resnet": summaries([0, 1, 2, 5, 6]), "resnet_branch": summaries([0, 1, 2, 5, 6], 1.0)})
    assert list(dict.fromkeys(table["chain"])) == ["resnet", "resnet_branch"]
    assert figure is not None
    panels = {axis.get_title(): axis for axis in figure.axes}
    assert list(panels) == [heading for heading, _ in QUANTITIES.values()]
    for heading, chance in QUANTITIES.values():
        dashed = [line for line in panels[heading].lines if line.get_label() == "by chance"]
        assert [line.get_ydata()[0] for line in dashed] == ([] if chance is None else [chance])
    lines = {line.get_label(): line for line in panels["energy gain"].lines}
    assert lines["resnet"].get_xydata() == pytest.approx(np.array([[0, 0], [1, 1], [2, 2], [5, 5], [6, 6]]))
    opened = [line for line in panels["energy gain"].lines if line.get_markerfacecolor() == "white"]
    assert [list(line.get_xdata()) for line in opened] == [[1, 2], [1, 2]]  # z is epoch - 2.5
    assert not [line for line in panels["spikes"].lines if line.get_markerfacecolor() == "white"]
    assert min(text.get_fontsize() for axis in figure.axes for text in (axis.title, *axis.get_xticklabels())) >= 6
    save({"trajectory": figure}, tmp_path, ("png",), dpi=150)
    assert (tmp_path / "trajectory.png").stat().st_size > 10_000
