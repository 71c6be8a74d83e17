"""The typed options of diagnose.py, checked once when they are read. Imports no torch, so that --help stays quick."""

import os
from dataclasses import asdict, dataclass, field
from typing import Any

from gch_bench.checks import check, check_choice
from gch_bench.config.data import DataConfig
from gch_bench.config.parse import NOT_IN_IDENTITY
from gch_bench.config.run import DEVICES, MEMORY, LoggerConfig, ModelConfig, NoiseConfig
from gch_bench.errors import UserError

MODES = ("geometry", "describe", "match", "compatibility")
QUANTITIES = ("gate_variance", "log_variance")
GROUPINGS = ("clusters", "contiguous")


@dataclass(frozen=True)
class SpectralConfig:
    """Options of the spectra and of the Gibbs-Cartan charts fitted to them. Raises FieldError on a value out of its range."""

    # The effective rank R_eta is the number of leading modes that hold this share of the spectral energy. The transport
    # matrices are truncated to the R_eta of the fitted charts.
    eta: float = 0.95
    exponent_uncertainty: float = 0.1  # half the width of the exponent's interval from which a rank window is computed
    # Scale of the branch in a residual block: identity + residual_scale x branch. A pre-norm network divides the branch's
    # input by the residual stream's size, which static weights do not know; 1 means that the stream has RMS 1.
    residual_scale: float = 1.0
    weights: bool = True  # also analyse every weight by itself, convolutions one kernel position at a time

    def __post_init__(self) -> None:
        check(0 < self.eta <= 1, "eta", "in (0, 1]", self.eta)
        check(self.exponent_uncertainty >= 0, "exponent_uncertainty", ">= 0", self.exponent_uncertainty)
        scale = self.residual_scale
        check(0 < scale < float("inf"), "residual_scale", "> 0", scale)


@dataclass(frozen=True)
class AlignmentConfig:
    """Options of the analysis of an interface's Physical Alignment Matrix M (m, n), whose rows form q groups.

    The analysis finds supports, incidence, certificate and channel labels; docs/geometry.md defines them. Raises FieldError on
    a value out of its range.
    """

    groups: int = 8  # q, number of groups of rows, where the chain sets no group_size (such as that of heads)
    grouping: str = "clusters"  # how such groups are made: clusters of rows with like profiles, or contiguous rows
    density: float = 0.15  # share of active blocks, by which tau is chosen
    edge_density: float = 0.5  # share of edges among the pairs of groups that share an active column, by which omega is chosen
    hub_degree: int = 2  # a column that is active in at least so many groups is a hub
    noise_budget: float | None = None  # nu: the certificate then also guarantees that the noise part stays within nu ||M||
    # Least |cosine| between a channel and its group's mean profile for the labels SC and SA, in units of its value by chance,
    # 1 / sqrt(rows of the group), but at most half way from there to 1.
    kappa: float = 2.0

    def __post_init__(self) -> None:
        for name in ("groups", "hub_degree"):
            check(getattr(self, name) >= 1, name, ">= 1", getattr(self, name))
        check_choice("grouping", self.grouping, GROUPINGS)
        for name in ("density", "edge_density"):
            check(0 < getattr(self, name) < 1, name, "in (0, 1)", getattr(self, name))
        budget = self.noise_budget
        check(budget is None or 0 <= budget < float("inf"), "noise_budget", ">= 0 or null", budget)
        check(0 < self.kappa < float("inf"), "kappa", "> 0", self.kappa)


@dataclass(frozen=True)
class JacobianConfig:
    """Options of the block Jacobians, measured on validation images of data=. Raises FieldError on a value out of its range."""

    images: int = 0  # number of images; 0: analyse the static weights only
    token: int | None = None  # token at which a token model's Jacobian is measured; null: the middle one
    chunk_mib: int = 256  # MiB of tangents that are propagated at a time

    def __post_init__(self) -> None:
        check(self.images >= 0, "images", ">= 0", self.images)
        check(self.chunk_mib >= 1, "chunk_mib", ">= 1", self.chunk_mib)


@dataclass(frozen=True)
class CompatibilityConfig:
    """How much mode=compatibility measures. Raises FieldError on a value out of its range."""

    images: int = 64  # validation images of data= whose activations are looked at, spread evenly over the set
    passes: int = 8  # noisy forward passes of each image
    gates: int = 4096  # draws for what concerns the gate alone

    def __post_init__(self) -> None:
        check(self.images >= 8, "images", ">= 8", self.images)
        check(self.passes >= 2, "passes", ">= 2", self.passes)
        check(self.gates >= 256, "gates", ">= 256", self.gates)


@dataclass(frozen=True)
class DiagnoseConfig:
    """One diagnosis: of a network (model, with checkpoint or checkpoints), of a safetensors file (source), or of finished runs.

    Raises FieldError on a value out of its range, UserError on options that exclude each other.
    """

    model: ModelConfig
    data: DataConfig
    noise: NoiseConfig
    logger: LoggerConfig = field(metadata=NOT_IN_IDENTITY)
    # geometry: what weights look like. describe, match, compatibility: what noise is, how strong, and what it does.
    mode: str = "geometry"
    # The mechanisms of the modes but geometry, which noise=[gch,dropout] fills; empty: the one of noise=NAME.
    mechanisms: list[NoiseConfig] = field(default_factory=list)
    # Where they are looked at: L1..L4, or module names, one for mode=describe and match; null: noise.stages.
    stages: list[str] | None = None
    # Size of the map [HEIGHT,WIDTH] for mode=describe and match; null: that of the stage of the network.
    grid: list[int] | None = None
    reference: str = "gch"  # mode=match: a mechanism whose strength the others get, or the strength itself, such as 0.4
    quantity: str = "gate_variance"  # mode=match: the measure of strength, gate_variance | log_variance
    compatibility: CompatibilityConfig = field(default_factory=CompatibilityConfig)
    # File of a state dict for the network of model=; the same as model.checkpoint.
    checkpoint: str | None = field(default=None, metadata=NOT_IN_IDENTITY)
    # Several such files, which the report shows side by side.
    checkpoints: list[str] = field(default_factory=list, metadata=NOT_IN_IDENTITY)
    # A .safetensors file, a folder of such files, or an index file: weights are analysed without building a model.
    source: str | None = field(default=None, metadata=NOT_IN_IDENTITY)
    # Folders of finished runs, whose geometry is compared with their reliability.
    runs: list[str] = field(default_factory=list, metadata=NOT_IN_IDENTITY)
    # Names or YAML files of the chains of layers to analyse; null: the first family of built-in chains that fits the weights.
    chain: list[str] | None = field(default=None, metadata=NOT_IN_IDENTITY)
    head_dim: int | None = None  # rows per attention head; null: the network's own, or that of config.json beside the source
    num_classes: int | None = None  # number of classes of the classifier; null: that of the checkpoint
    size: int | None = None  # side in pixels of the images that the network is built for; null: the backbone's own
    spectral: SpectralConfig = field(default_factory=SpectralConfig)
    alignment: AlignmentConfig = field(default_factory=AlignmentConfig)
    jacobian: JacobianConfig = field(default_factory=JacobianConfig)
    # Also analyse the same network with random weights of `seed`: what is there before any training. Alone without weights.
    random_initialisation: bool = False
    # Also save the transport and alignment matrices themselves.
    save_matrices: bool = field(default=False, metadata=NOT_IN_IDENTITY)
    seed: int = 0
    device: str = field(default="auto", metadata=NOT_IN_IDENTITY)
    threads: int | None = field(default=None, metadata=NOT_IN_IDENTITY)
    memory: str = field(default="auto", metadata=NOT_IN_IDENTITY)  # auto | system, as in Config
    # Folder of the results; null: runs/diagnose-<what is diagnosed>.
    output: str | None = field(default=None, metadata=NOT_IN_IDENTITY)

    def __post_init__(self) -> None:
        check_choice("mode", self.mode, MODES)
        check_choice("quantity", self.quantity, QUANTITIES)
        self._check_noise()
        grid = self.grid
        check(grid is None or (len(grid) == 2 and min(grid) >= 1), "grid", "[HEIGHT,WIDTH], each >= 1, or null", grid)
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
        if self.random_initialisation and self.mode != "geometry":
            raise UserError(f"random_initialisation is for mode=geometry: leave it out with mode={self.mode}")
        if self.source and self.random_initialisation:
            raise UserError(
                "random_initialisation needs a network, which a file of weights does not say: give model=, not source"
            )

    @property
    def places(self) -> list[str]:
        """The stages at which mechanisms are looked at."""
        return self.stages or self.noise.stages

    def _check_noise(self) -> None:
        """Refuse what a mode would not read, so that no option is dropped in silence."""
        listed = f"noise=[{','.join(each.name for each in self.mechanisms)}]"
        if self.mechanisms and self.mode == "geometry":
            raise UserError(
                f"{listed} goes with mode=describe, match or compatibility, not with mode=geometry: choose one of them, or"
                " leave the noise out"
            )
        if self.mechanisms and (self.noise.law is not None or self.noise.options):
            raise UserError(
                f"options of noise have no effect beside {listed}: write them into it, as {{name: dropout, p: 0.3}}"
            )
        if self.stages is not None and any(each.stages != ["L4"] for each in (*self.mechanisms, self.noise)):
            raise UserError("noise.stages and stages say the same: give one of them")
        check(self.stages is None or bool(self.stages), "stages", "a list of stages such as [L4]", self.stages)
        if self.mode in ("describe", "match"):
            check(len(self.places) == 1, "stages", f"one stage for mode={self.mode}", self.places)
        elif self.grid is not None:
            raise UserError(f"grid is for mode=describe and match: leave it out with mode={self.mode}")
        if self.reference != "gch" and self.mode != "match":
            raise UserError(f"reference is for mode=match: leave it out with mode={self.mode}")

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)
