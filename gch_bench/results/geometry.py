"""The results of a diagnosis: the tables of each chain of layers, and the arrays of small figures of its interfaces."""

from dataclasses import dataclass, field
from typing import NamedTuple

import pandas as pd
from torch import Tensor

STATIC, MEASURED = "static weights", "measured Jacobian"
PICTURE = 128  # largest number of rows or columns of a picture's array
PHYSICAL, SOURCE = "physical", "source_mode"
BLOCK, BRANCH = "block", "branch"  # forms of an interface: two factors of the chain; what one branch writes and the next reads
# Verdicts on the chart of a spectrum; there is none on a flat spectrum, or on one of a few ranks.
ADEQUATE, NOT_ADEQUATE, NOT_APPLICABLE = "adequate", "not adequate", "not applicable"
BEYOND = 2.0  # |z| from which an energy gain is also beyond what permutations of the shared channels give
ROTATED = f"{PHYSICAL}_certified_95_rotated"  # column of interfaces.csv with the null of the certified share
ALIGNED = 97.5  # percentile of the null from which an interface counts as aligned: by chance 2.5% of them do


class Picture(NamedTuple):
    """The arrays for the figures of one interface, whose Physical Alignment Matrix is M (m, n) with q groups of rows.

    Rows are sorted by group, and within a group by their norm, largest first. Columns are sorted by the group that dominates
    them, which is the one with their largest block norm, and within it by that norm, largest first.
    """

    interface: int  # its number in the chain
    form: str  # BLOCK or BRANCH
    matrix: str  # PHYSICAL or SOURCE
    title: str
    energy: Tensor  # (r, c), both <= PICTURE: root mean square of the sorted |M| in each cell of a coarse grid
    row_ends: Tensor  # float64 (q,): where each group's rows end, in cells
    column_ends: Tensor  # float64 (q,): where the columns that each group dominates end, in cells
    blocks: Tensor  # (q, q): mean square of M in a group's rows and the columns that a group dominates, over that of all of M
    sizes: Tensor  # int64 (q,): number of rows of each group
    strengths: Tensor  # (q, q): overlap strengths of two groups, in units of ||M||
    edges: Tensor  # int8 (q, q): 1 certainly an edge, 0 undecided, -1 certainly none
    hubs: int  # number of hub columns
    columns: int  # n


@dataclass
class ChainReport:
    """The tables that were measured on one chain of one network."""

    chain: str  # its name
    kind: str  # STATIC or MEASURED
    description: str
    factors: pd.DataFrame = field(default_factory=pd.DataFrame)
    interfaces: pd.DataFrame = field(default_factory=pd.DataFrame)  # a row per interface and form (BLOCK, BRANCH)
    certificates: pd.DataFrame = field(default_factory=pd.DataFrame)  # certified shares of every interface over eta
    channels: pd.DataFrame = field(default_factory=pd.DataFrame)  # a row per row of the physical alignment matrices
    columns: pd.DataFrame = field(default_factory=pd.DataFrame)  # a row per column of these matrices: supports and hubs
    edges: pd.DataFrame = field(default_factory=pd.DataFrame)  # a row per edge of the incidence graph, with its SRS set's size
    spectra: pd.DataFrame = field(default_factory=pd.DataFrame)
    pictures: list[Picture] = field(default_factory=list)
    summary: dict[str, float] = field(default_factory=dict)


def headline_interfaces(interfaces: pd.DataFrame) -> pd.DataFrame:
    """One row per interface: that of its branch form, or of its only form."""
    branches = interfaces[interfaces["form"] == BRANCH]
    rest = interfaces[~interfaces["index"].isin(branches["index"])]
    return pd.concat([branches, rest]).sort_values("index", ignore_index=True)
