"""The results of a diagnosis: the tables of each chain of layers, and the arrays of small figures of its interfaces."""

from dataclasses import dataclass, field
from typing import NamedTuple

import pandas as pd
from torch import Tensor

STATIC, MEASURED = "static weights", "measured Jacobian"
PICTURE = 128  # largest number of rows or columns of a picture's array
PHYSICAL, SOURCE = "physical", "source_mode"
BLOCK, BRANCH = "block", "branch"  # forms of an interface: two factors of the chain; what one branch writes and the next reads


class Picture(NamedTuple):
    """The arrays for the figure of one interface, whose Physical Alignment Matrix is M (m, n) with q groups of rows."""

    interface: int  # its number in the chain
    title: str
    energy: Tensor  # (<= PICTURE, <= PICTURE): root mean square of |M| in each cell of a coarse grid
    norms: Tensor  # (q, n): block norms, with the columns in descending order of their largest norm
    tau: float  # block norm from which a block is active


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
