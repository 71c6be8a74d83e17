"""Typed options of diagnose.py, checked once at the door. No torch here, so that --help is quick."""

import os
from dataclasses import asdict, dataclass, field
from typing import Any

from gch_bench.checks import check, check_choice
from gch_bench.config.data import DataConfig
from gch_bench.config.parse import NOT_IN_IDENTITY
from gch_bench.config.run import DEVICES, MEMORY, LoggerConfig, ModelConfig
from gch_bench.errors import UserError


@dataclass(frozen=True)
class SpectralConfig:
    """Spectra and their charts."""

    eta: float = 0.95  # share of the energy that a rank window holds; the windows of the transport are the charts' R_eta
    exponent_uncertainty: float = 0.1  # half width of the exponent's interval in the rank windows
    weights: bool = True  # also every weight by itself, convolutions tap by tap

    def __post_init__(self) -> None:
        check(0 < self.eta <= 1, "eta", "in (0, 1]", self.eta)
        check(self.exponent_uncertainty >= 0, "exponent_uncertainty", ">= 0", self.exponent_uncertainty)


@dataclass(frozen=True)
class AlignmentConfig:
    """Supports, incidence, certificate and labels of an interface's Physical Alignment Matrix M (m, n), q groups of rows."""

    groups: int = 8  # contiguous groups of rows, where a chain's file does not set a group_size (heads)
    tau: float | None = None  # in units of the root mean square block norm; null: the widest gap between block norms
    omega: float | None = None  # in units of ||M||; null: the widest gap between overlap strengths
    hub_degree: int = 2
    noise_budget: float | None = None  # nu: the certificate also holds that the noise stays within nu ||M||
    kappa: float = 0.5  # least |cosine| with the group's profile of a labelled channel

    def __post_init__(self) -> None:
        for name in ("groups", "hub_degree"):
            check(getattr(self, name) >= 1, name, ">= 1", getattr(self, name))
        for name in ("tau", "omega"):
            value = getattr(self, name)
            check(value is None or 0 < value < float("inf"), name, "> 0 or null", value)
        budget = self.noise_budget
        check(budget is None or 0 <= budget < float("inf"), "noise_budget", ">= 0 or null", budget)
        check(0 < self.kappa <= 1, "kappa", "in (0, 1]", self.kappa)


@dataclass(frozen=True)
class JacobianConfig:
    """Measured block Jacobians on validation images of data=; 0 images: static weights only."""

    images: int = 0
    token: int | None = None  # of a token model; null: the middle one
    chunk_mib: int = 256  # of tangents at a time

    def __post_init__(self) -> None:
        check(self.images >= 0, "images", ">= 0", self.images)
        check(self.chunk_mib >= 1, "chunk_mib", ">= 1", self.chunk_mib)


@dataclass(frozen=True)
class DiagnoseConfig:
    """One diagnosis: of a network (model, with checkpoint(s)), of a safetensors file (source), or of finished runs (runs)."""

    model: ModelConfig
    data: DataConfig
    logger: LoggerConfig = field(metadata=NOT_IN_IDENTITY)
    # A state dict for model=; the same as model.checkpoint.
    checkpoint: str | None = field(default=None, metadata=NOT_IN_IDENTITY)
    # Several, side by side.
    checkpoints: list[str] = field(default_factory=list, metadata=NOT_IN_IDENTITY)
    # A .safetensors file, a folder of them or an index: weights alone, no model.
    source: str | None = field(default=None, metadata=NOT_IN_IDENTITY)
    # Finished run folders: their geometry against their reliability.
    runs: list[str] = field(default_factory=list, metadata=NOT_IN_IDENTITY)
    # Chain names or YAML files; null: what fits.
    chain: list[str] | None = field(default=None, metadata=NOT_IN_IDENTITY)
    head_dim: int | None = None  # rows of an attention head; null: the network's, or what config.json beside the source says
    num_classes: int | None = None  # of the classifier; null: the checkpoint's
    size: int | None = None  # image side that the network is built for; null: the backbone's own
    spectral: SpectralConfig = field(default_factory=SpectralConfig)
    alignment: AlignmentConfig = field(default_factory=AlignmentConfig)
    jacobian: JacobianConfig = field(default_factory=JacobianConfig)
    # Also the transport and alignment matrices themselves.
    save_matrices: bool = field(default=False, metadata=NOT_IN_IDENTITY)
    seed: int = 0
    device: str = field(default="auto", metadata=NOT_IN_IDENTITY)
    threads: int | None = field(default=None, metadata=NOT_IN_IDENTITY)
    memory: str = field(default="auto", metadata=NOT_IN_IDENTITY)  # auto | system, as in Config
    # Folder; null: runs/diagnose-<what>.
    output: str | None = field(default=None, metadata=NOT_IN_IDENTITY)

    def __post_init__(self) -> None:
        check_choice("device", self.device, DEVICES)
        check_choice("memory", self.memory, MEMORY)
        check(self.threads is None or 1 <= self.threads <= 1024, "threads", "in 1..1024 or null", self.threads)
        check(self.num_classes is None or self.num_classes >= 1, "num_classes", ">= 1 or null", self.num_classes)
        check(self.size is None or self.size >= 1, "size", ">= 1 or null", self.size)
        check(self.head_dim is None or self.head_dim >= 1, "head_dim", ">= 1 or null", self.head_dim)
        check(0 <= self.seed < 2**63, "seed", ">= 0 and < 2^63", self.seed)
        chains = self.chain or []
        check(len(set(chains)) == len(chains) and ("auto" not in chains or len(chains) == 1),
              "chain", "auto, a name, a file, or a list of different ones", chains)  # fmt: skip
        for name in ("runs", "checkpoints"):
            paths = [os.path.realpath(path) for path in getattr(self, name)]
            check(len(set(paths)) == len(paths), name, "a list of different ones", getattr(self, name))
        given = [name for name in ("checkpoint", "checkpoints", "source", "runs") if getattr(self, name)]
        if len(given) > 1:
            raise UserError(f"{' and '.join(given)} exclude each other: give one of checkpoint, checkpoints, source and runs")
        if (self.checkpoint or self.checkpoints) and (self.model.pretrained or self.model.checkpoint):
            raise UserError(f"{given[0]} goes with neither model.pretrained=true nor model.checkpoint: drop one of them")
        if (self.source or self.runs) and self.jacobian.images:
            raise UserError("jacobian.images goes with model= and checkpoint= or checkpoints=, not with source or runs")

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)
