"""The long tables of an interface against loops over its rows, columns and pairs of groups."""

import pytest
from geometry_chains import plain, power_law, report

from gch_bench.config.diagnosis import AlignmentConfig
from gch_bench.geometry.analysis import Options
from gch_bench.geometry.channel_tables import channel_tables
from gch_bench.geometry.channels import Channels, channels_of
from gch_bench.spectral.labels import LABELS
from gch_bench.spectral.linalg import decompose
from gch_bench.spectral.transport import transport_of


def channels(windows: tuple[int, int] = (8, 9), groups: int = 4) -> Channels:
    parts = decompose(power_law(14, 12, 1.5, 0)), decompose(power_law(20, 14, 1.5, 3))
    return channels_of(*parts, transport_of(*parts, *windows), AlignmentConfig(groups=groups)).physical


@pytest.mark.parametrize("windows", [(8, 9), (12, 14)])
def test_tables_against_loops(windows: tuple[int, int]) -> None:
    found = channels(windows)
    made, certain, tables = found.alignment, found.certificate, channel_tables(found)
    for i, row in enumerate(tables["channels"].to_dict("records")):
        assert (row["channel"], row["group"]) == (i, int(made.group[i]))
        assert row["label"] == LABELS[int(found.labels.label[i])]
        known = int(found.certain_labels[i])
        assert row["certain_label"] == (LABELS[known] if known >= 0 else "?")
        assert row["core"] ** 2 + row["overlap"] ** 2 + row["noise"] ** 2 == pytest.approx(row["row"] ** 2)
    assert len(tables["columns"]) == 12
    for j, row in enumerate(tables["columns"].to_dict("records")):
        for name, truth in (
            ("supports", lambda g, j=j: bool(made.supports[g, j])),
            ("certainly_in", lambda g, j=j: int(certain.blocks[g, j]) == 1),
            ("undecided_in", lambda g, j=j: int(certain.blocks[g, j]) == 0),
        ):
            assert row[name] == ",".join(str(g) for g in range(4) if truth(g))
        assert (row["degree"], row["hub"]) == (int(made.degree[j]), bool(made.hubs[j]))
        assert row["certain_hub"] == int(certain.hubs[j])
    pairs = {(g, h) for g in range(4) for h in range(g + 1, 4) if made.edges[g, h] or int(certain.edges[g, h]) >= 0}
    edges = tables["edges"].to_dict("records")
    assert pairs
    assert {(row["one"], row["other"]) for row in edges} == pairs
    for row in edges:
        g, h = row["one"], row["other"]
        assert row["strength"] == pytest.approx(float(made.overlap[g, h]))
        assert (row["edge"], row["certain_edge"]) == (bool(made.edges[g, h]), int(certain.edges[g, h]))
        both = [(int(certain.blocks[g, j]), int(certain.blocks[h, j])) for j in range(12)]
        assert row["shared"] == sum(bool(made.supports[g, j] and made.supports[h, j]) for j in range(12))
        assert row["certainly_shared"] == sum(pair == (1, 1) for pair in both)
        assert row["possibly_shared"] == sum(-1 not in pair for pair in both)
        assert row["certainly_shared"] <= row["shared"] <= row["possibly_shared"]


def test_nothing_truncated_is_nothing_undecided() -> None:
    tables = channel_tables(channels((12, 14)))
    assert (tables["columns"]["undecided_in"] == "").all()
    assert (tables["columns"]["supports"] == tables["columns"]["certainly_in"]).all()
    assert (tables["edges"]["shared"] == tables["edges"]["certainly_shared"]).all()
    assert set(tables["edges"]["certain_edge"]) <= {1, -1}


def test_one_group_has_no_edges_but_the_columns_of_the_table() -> None:
    tables = channel_tables(channels(groups=1))
    assert len(tables["edges"]) == 0
    assert list(tables["edges"].columns) == list(channel_tables(channels())["edges"].columns)
    made = report(plain(), Options(alignment=AlignmentConfig(groups=1)))
    assert len(made.edges) == 0
    assert {"chain", "kind", "index", "form", "matrix", "shared"} <= set(made.edges.columns)


def test_every_row_says_which_matrix_it_is_of() -> None:
    made = report(plain())
    for table in (made.channels, made.columns, made.edges, made.certificates):
        assert set(table["matrix"]) == {"physical", "source_mode"}
        assert set(table["form"]) == {"block"}
    counts = made.channels.groupby(["index", "matrix"])["channel"].count()
    assert counts.tolist() == [10, 10, 10, 10, 30, 30]
    columns = made.columns.groupby(["index", "matrix"])["column"].count()
    assert columns.tolist() == [9, 9, 12, 10, 10, 10]  # inputs of the first factor, or its modes
