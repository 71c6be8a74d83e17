"""What a diagnosis measured: the tables of each chain, and small pictures of its interfaces."""

from dataclasses import dataclass, field
from typing import NamedTuple

import pandas as pd
from torch import Tensor

STATIC, MEASURED = "static weights", "measured Jacobian"
PICTURE = 128  # largest side of a kept picture
PHYSICAL, SOURCE = "physical", "source_mode"


class Picture(NamedTuple):
    """Small arrays of one interface for its figure."""

    interface: int
    title: str
    energy: Tensor  # (<= PICTURE, <= PICTURE): root mean square of |M| on a grid of cells
    norms: Tensor  # (q, n): block norms, columns in descending order of their largest
    tau: float


@dataclass
class ChainReport:
    """What was measured on one chain of one network."""

    chain: str
    kind: str  # STATIC or MEASURED
    description: str
    factors: pd.DataFrame = field(default_factory=pd.DataFrame)
    interfaces: pd.DataFrame = field(default_factory=pd.DataFrame)
    channels: pd.DataFrame = field(default_factory=pd.DataFrame)  # of the physical matrices' rows
    columns: pd.DataFrame = field(default_factory=pd.DataFrame)  # of their columns: supports and hubs
    edges: pd.DataFrame = field(default_factory=pd.DataFrame)  # incidence, with the size of the SRS sets
    spectra: pd.DataFrame = field(default_factory=pd.DataFrame)
    pictures: list[Picture] = field(default_factory=list)
    summary: dict[str, float] = field(default_factory=dict)
