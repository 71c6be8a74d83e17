"""The figures show the rows of the table, are legible at their size, and are written as valid, equal files."""

import itertools
import re
import warnings
from pathlib import Path
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest
from made_report import NONE, made_report, noise
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.text import Text
from PIL import Image

from gch_bench.errors import UserError
from gch_bench.report.figure_style import DOUBLE, pick, short_names
from gch_bench.report.figures import all_figures, difference_map, forest, over_severities, save
from gch_bench.report.study import Group, Report, Setting
from gch_bench.report.sweep_figures import _families, depth, strength
from gch_bench.results.records import Cell

CELLS = [Cell(name, severity) for name in ("fog", "gaussian_noise") for severity in (1, 2, 3)]
SWEEP = [
    NONE,
    *(noise("gch", gamma=gamma, beta=1.0) for gamma in (0.5, 1.0, 3.0)),
    *(noise("gch", stages, gamma=1.0, beta=1.0) for stages in ("L1", "L3")),
    *(noise("dropblock", p=p, block_size=3.0) for p in (0.1, 0.3)),
]
MANY = [
    *SWEEP,
    *(noise(name, stages) for name in ("dropblock_channel", "additive_green", "hard_mask") for stages in ("L4", "L3+L4")),
]
LONG = [
    NONE,
    *(noise("dropblock_channel", stages, p=p, block_size=size)
      for stages in ("L4", "L3+L4") for p in (0.1234, 0.3456) for size in (3.0, 5.0)),
]  # fmt: skip
ROWS = {"forest", "differences-nll", "differences-top1"}
RECORDS = {"reliability", "accuracy-coverage"}
SEVERITIES = {"severity-nll", "severity-top1"}
SWEEPS = {"strength", "depth"}


@pytest.fixture(scope="module")
def sweep() -> Report:
    return made_report(SWEEP, CELLS)


@pytest.mark.parametrize(
    ("report", "expected"),
    [
        (made_report(SWEEP, CELLS), ROWS | RECORDS | SEVERITIES | SWEEPS | {"reliability-after-t"}),
        (made_report(SWEEP, CELLS, seeds=1, logits=False), ROWS | RECORDS | SEVERITIES | SWEEPS),
        (made_report(MANY, CELLS, baseline=False, logits=False), RECORDS | SEVERITIES | SWEEPS),
        (made_report(MANY[:13], CELLS, seeds=1), ROWS | RECORDS | SEVERITIES | SWEEPS | {"reliability-after-t"}),
        (made_report([NONE, SWEEP[2]], [Cell("fog", 3), Cell("snow", 3)], logits=False), ROWS | RECORDS),
        (made_report(LONG, [Cell("fog", 3), Cell("snow", 3)], seeds=1, logits=False), ROWS | RECORDS | SWEEPS),
        (made_report([NONE, SWEEP[2]], [], seeds=1, logits=False), {"forest"} | RECORDS),
        (made_report([NONE], CELLS[:3], seeds=1, baseline=False, logits=False), RECORDS | SEVERITIES),
    ],
    ids=["sweep", "one seed", "no baseline", "many", "one severity", "long names", "clean only", "one run"],
)
def test_each_figure_is_made_where_its_data_exist_and_is_legible(report: Report, expected: set[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figures = all_figures(report)
        for name, figure in figures.items():
            figure.draw_without_rendering()
            assert_legible(name, figure)
    assert set(figures) == expected


def assert_legible(name: str, figure: Figure) -> None:
    """Type of 7 points or more, nothing cut at the edge, nothing written over something else, and a caption."""
    assert figure.get_figwidth() <= DOUBLE
    assert str(figure.get_label()).endswith("."), name
    boxes = {}
    for text in drawn_texts(figure):
        box = text.get_window_extent()
        boxes[text] = box
        assert text.get_fontsize() >= 7, (name, text)
        assert min(box.x0, box.y0) >= -1, (name, text)
        assert box.x1 <= figure.bbox.x1 + 1, (name, text)
        assert box.y1 <= figure.bbox.y1 + 1, (name, text)
    for (one, first), (two, second) in itertools.combinations(boxes.items(), 2):
        overlap = min(first.x1, second.x1) - max(first.x0, second.x0), min(first.y1, second.y1) - max(first.y0, second.y0)
        assert min(overlap) < 2, (name, one, two)


def drawn_texts(figure: Figure) -> list[Text]:
    """All texts but those of ticks outside their axis's view, which matplotlib keeps and does not draw."""
    hidden: set[Text] = set()
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            for tick in [*axis.get_major_ticks(), *axis.get_minor_ticks()]:
                if not (axes.axison and low <= tick.get_loc() <= high):
                    hidden |= {tick.label1, tick.label2}
    texts = figure.findobj(lambda artist: isinstance(artist, Text) and artist.get_visible() and artist.get_text().strip())
    return [text for text in texts if text not in hidden and (text.axes is None or text.axes.axison)]  # type: ignore[union-attr]


def test_files_are_valid_and_equal_at_every_call(tmp_path: Path, sweep: Report) -> None:
    for folder in ("one", "two"):
        setting = sweep.settings[0]
        figures = {"forest": forest(setting, sweep.rows), "depth": depth(setting, sweep.rows)}
        paths = save(figures, tmp_path / folder)  # type: ignore[arg-type]
    assert sorted(path.name for path in paths) == sorted(path.name for path in (tmp_path / "one").iterdir())
    for path in paths:
        assert path.read_bytes() == (tmp_path / "one" / path.name).read_bytes()
    svg = ElementTree.parse(tmp_path / "one" / "forest.svg")
    texts = {element.text for element in svg.iter("{http://www.w3.org/2000/svg}text")}
    assert {"gch gamma=0.5 L4", "shift NLL (nats)", "lower is better"} <= texts
    assert "Filled: p &lt; .05" in (tmp_path / "one" / "forest.svg").read_text()  # the caption
    with Image.open(tmp_path / "one" / "forest.png") as image:
        assert image.width == pytest.approx(DOUBLE * 300, abs=1)
        assert image.info["dpi"] == pytest.approx((300, 300), abs=0.1)
    pdf = (tmp_path / "one" / "forest.pdf").read_bytes()
    assert pdf.startswith(b"%PDF")
    assert pdf.rstrip().endswith(b"%%EOF")
    assert b"/FontFile2" in pdf
    assert b"/Type3" not in pdf
    assert b"CreationDate" not in pdf


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path, sweep: Report) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        save({"depth": depth(sweep.settings[0], sweep.rows)}, tmp_path / "file")  # type: ignore[dict-item]


def test_settings_of_matplotlib_stay_as_they_are(sweep: Report) -> None:
    before = dict(matplotlib.rcParams)
    depth(sweep.settings[0], sweep.rows)
    assert dict(matplotlib.rcParams) == before


@pytest.mark.parametrize("metric", ["nll", "top1"])
def test_maps_hold_the_rows_and_blue_is_better(sweep: Report, metric: str) -> None:
    figure = difference_map(sweep.settings[0], sweep.rows, metric)
    assert figure is not None
    maps = [axis for axis in figure.axes if axis.images]
    assert len(maps) == len(SWEEP) - 1
    factor = 100 if metric == "top1" else 1
    for axis, group in zip(maps, sweep.settings[0].groups[1:], strict=True):
        shown, hatched = np.asarray(axis.images[0].get_array()), 0
        colors = axis.images[0].to_rgba(axis.images[0].get_array())
        for cell in CELLS:
            row = pick(sweep.rows, metric, cell.corruption, cell.severity).loc[group.mechanism]
            at = ["fog", "gaussian_noise"].index(cell.corruption), cell.severity - 1
            assert shown[at] == pytest.approx(factor * row["difference"])
            hatched += row["low"] <= 0 <= row["high"]
            if abs(shown[at]) > 0.1 * axis.images[0].norm.vmax:
                better = (row["difference"] < 0) == (metric == "nll")
                assert (colors[at][2] > colors[at][0]) == better
        assert sum(isinstance(patch, Rectangle) and patch.get_hatch() is not None for patch in axis.patches) == hatched
        assert len(axis.texts) == len(CELLS) - hatched


def test_forest_shows_differences_intervals_and_corrected_significance(sweep: Report) -> None:
    figure = forest(sweep.settings[0], sweep.rows)
    assert figure is not None
    axis, found = figure.axes[0], pick(sweep.rows, "nll", "mean")
    labels = [label.get_text() for label in axis.get_yticklabels()]
    assert labels[:3] == ["gch gamma=0.5 L4", "gch gamma=1 L4", "gch gamma=3 L4"]
    points = [line for line in axis.lines if line.get_marker() == "o"]
    bars = [line for line in axis.lines if line.get_marker() == "None" and line.get_color() != "0.5"]
    assert len(bars) == 2 * len(points)  # raw and after T
    for line, bar, group in zip(points, bars, sweep.settings[0].groups[1:], strict=False):
        row = found.loc[group.mechanism]
        assert line.get_xdata()[0] == pytest.approx(row["difference"])
        assert list(bar.get_xdata()) == pytest.approx([row["low"], row["high"]])
        assert (line.get_markerfacecolor() != "white") == (row["p_holm"] < 0.05)
    assert {row["p_holm"] < 0.05 for _, row in found.iterrows() if row["p_holm"] > 0} == {True, False}


@pytest.mark.parametrize("seeds", [1, 2])
def test_severities_are_lines_with_bands(seeds: int) -> None:
    report = made_report(SWEEP[:3], CELLS, seeds=seeds)
    figure = over_severities(report.settings[0], report.rows, "top1")
    assert figure is not None
    assert [axis.get_title() for axis in figure.axes] == ["fog", "gaussian noise"]
    for axis in figure.axes:
        assert len(axis.lines) == 3
        assert len(axis.collections) == 3
        if seeds == 1:
            low, high = axis.collections[0].get_paths()[0].get_extents().intervaly
            values = axis.lines[0].get_ydata()
            assert [low, high] == pytest.approx([values.min() - 1.96, values.max() + 1.96], abs=1e-3), "1.96 x 1%"
    expected = [100 * pick(report.rows, "top1", "fog", severity).loc["none", "value"] for severity in (1, 2, 3)]
    assert figure.axes[0].lines[0].get_ydata() == pytest.approx(expected)
    assert ("95% intervals over images" in str(figure.get_label())) == (seeds == 1)


def test_strength_has_the_option_of_one_sweep_and_else_the_gate_variance(sweep: Report) -> None:
    alone = made_report(SWEEP[:4], CELLS)
    for report, name, positions in (
        (alone, "gamma", [[0.5, 1, 3]]),
        (sweep, "gate variance (realised)", [[0.25, 0.5, 1.5], [0.05, 0.15]]),
    ):
        figure = strength(report.settings[0], report.rows)
        assert figure is not None
        assert figure.get_supxlabel() == f"strength: {name}"
        lines = [line for line in figure.axes[1].lines if line.get_linestyle() not in ("None", "-")]
        assert [list(line.get_xdata()) for line in lines] == positions


def test_the_failure_regime_is_what_the_tables_mark_as_worse(sweep: Report) -> None:
    rows = sweep.rows.copy()
    nll = (rows["metric"] == "nll") & (rows["corruption"] == "mean") & (rows["temperature"] == "raw")
    top1 = (rows["metric"] == "top1") & (rows["corruption"] == "clean") & (rows["temperature"] == "raw")
    failing = rows["mechanism"] == "gch gamma=3 beta=1 L4"
    uncorrected = rows["mechanism"] == "gch gamma=1 beta=1 L4"
    numbers = ["difference", "low", "high", "p_holm"]
    for metric, sign in ((nll, 1), (top1, -1)):
        bounds = sorted((0.1 * sign, 0.2 * sign))
        rows.loc[metric, numbers] = 0.0, -0.1, 0.1, 1.0
        rows.loc[metric & failing, numbers] = 0.15 * sign, *bounds, 0.01
        rows.loc[metric & uncorrected, numbers] = 0.15 * sign, *bounds, 0.06
    figure = strength(sweep.settings[0], rows)
    assert figure is not None
    for axis in figure.axes:
        crosses = [line for line in axis.lines if line.get_marker() == "x"]
        assert [list(line.get_xdata()) for line in crosses] == [[1.5]]
        assert crosses[0].get_label() == "worse than none"


def test_depth_has_a_line_over_stages_and_the_baseline(sweep: Report) -> None:
    figure = depth(sweep.settings[0], sweep.rows)
    assert figure is not None
    axis, found = figure.axes[1], pick(sweep.rows, "nll", "mean")["value"]
    assert [label.get_text() for label in axis.get_xticklabels()] == ["L1", "L3", "L4"]
    line = next(line for line in axis.lines if line.get_label() == "gch gamma=1")
    assert list(line.get_xdata()) == [0, 1, 2]
    assert line.get_ydata() == pytest.approx([found[f"gch gamma=1 beta=1 {stage}"] for stage in ("L1", "L3", "L4")])
    level = next(line for line in axis.lines if line.get_label() == "none")
    assert level.get_ydata()[0] == pytest.approx(found["none"])


def test_depth_joins_strengths_that_are_matched_to_the_stages() -> None:
    """gch has one strength at each stage, and they differ; dropblock two at L4, of which one is at another stage, too."""
    matched = [noise("gch", stages, gamma=gamma, beta=1.0) for stages, gamma in (("L2", 0.5), ("L3", 1.0), ("L4", 1.0))]
    other = [noise("dropblock", stages, p=p) for stages, p in (("L3", 0.1), ("L4", 0.1), ("L4", 0.2))]
    report = made_report([NONE, *matched, *other], CELLS)
    figure = depth(report.settings[0], report.rows)
    assert figure is not None
    lines = {line.get_label(): list(line.get_xdata()) for line in figure.axes[0].lines}
    assert lines["gch"] == [0, 1, 2]
    assert lines["dropblock p=0.1"] == [1, 2]
    assert "dropblock p=0.2" not in lines


def test_boundaries_are_lines_of_their_own() -> None:
    words = [f"gch gamma={gamma} beta=1 L4 boundary={side}" for gamma in (1, 2) for side in ("inside", "outside")]
    groups = [Group(word, {"name": "gch", "law": "samplewise", "stages": ["L4"]}, {}) for word in words]
    families = _families(Setting("s", groups, None, []), drop="strength")
    assert [[group.mechanism for group in own] for own in families.values()] == [words[::2], words[1::2]]
    assert (
        short_names([*groups, *(group._replace(kind="ensemble") for group in groups)])[words[0]]
        == "gch gamma=1 boundary=inside"
    )


def test_short_names_keep_what_tells_mechanisms_apart(sweep: Report) -> None:
    names = short_names(sweep.settings[0].groups)
    assert names["gch gamma=0.5 beta=1 L4"] == "gch gamma=0.5 L4"
    assert names["dropblock p=0.3 block_size=3 L4"] == "dropblock p=0.3 L4"
    assert short_names(sweep.settings[0].groups[:3]) == {
        "none": "none",
        "gch gamma=0.5 beta=1 L4": "gch gamma=0.5",
        "gch gamma=1 beta=1 L4": "gch gamma=1",
    }
    figure = forest(sweep.settings[0], sweep.rows)
    assert figure is not None
    assert re.search(r"gch gamma=0.5 L4: gch gamma=0.5 beta=1 L4", str(figure.get_label()))
