"""Typed configuration: what the YAML groups say, checked once at the door. No torch here, so that --help is quick.

`parse(mapping, Config)` turns the plain dictionary of a composed Hydra config into a `Config`; nothing downstream re-checks it.
"""

import re
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from gch_bench.checks import check, check_choice
from gch_bench.config.data import AugmentConfig, DataConfig
from gch_bench.config.parse import NOT_IN_IDENTITY, identity_of
from gch_bench.errors import FieldError, UserError

DEVICES = ("auto", "cpu", "cuda")
MEMORY = ("auto", "system")


@dataclass(frozen=True)
class ModelConfig:
    """The backbone: a timm name, or `factory="package.module:function"` called with `kwargs` (and num_classes)."""

    name: str
    pretrained: bool = False
    # A state dict (.pt, .pth, .safetensors), nested or prefixed as usual.
    checkpoint: str | None = field(default=None, metadata=NOT_IN_IDENTITY)
    reset_head: bool = False  # drop the checkpoint's classifier when it has another number of classes
    output_stride: int | None = None  # dilate so that the last map is size / output_stride, where the backbone can
    factory: str | None = None
    kwargs: dict[str, Any] | None = None  # further arguments of the constructor

    def __post_init__(self) -> None:
        check(self.output_stride in (None, 8, 16, 32), "output_stride", "8, 16, 32 or null", self.output_stride)
        check(
            self.factory is None or re.fullmatch(r"[\w.]+:\w+", self.factory) is not None,
            "factory", "package.module:function", self.factory,
        )  # fmt: skip
        if self.pretrained and (self.checkpoint or self.factory):
            raise UserError("model.pretrained=true goes with neither model.checkpoint nor model.factory: drop one of them")


NO_OPTION = {"option": False}  # the metadata of a field of NoiseConfig that is no option of a law or kernel


@dataclass(frozen=True)
class NoiseConfig:
    """Law x kernel x injection, where and when. Ranges are checked by the mechanism itself (gch_bench.noise)."""

    name: str = field(metadata=NO_OPTION)
    law: str | None = field(default=None, metadata=NO_OPTION)  # a law of gch_bench/noise/mechanism.py; null: no noise
    # A kernel of gch_bench/noise/kernels.py, for the laws that take one.
    kernel: str = field(default="dirichlet_green", metadata=NO_OPTION)
    stages: list[str] = field(default_factory=lambda: ["L4"], metadata=NO_OPTION)  # L1..L4 (early..late), or module names
    train: bool = field(default=True, metadata=NO_OPTION)  # noise in training
    eval: bool = field(default=False, metadata=NO_OPTION)  # noise at test time
    # Test-time passes whose softmax outputs are averaged; needs eval: true.
    mc_samples: int = field(default=1, metadata=NO_OPTION)
    # Every further field is an option of a law or kernel; null: its own default.
    gamma: float | None = None
    beta: float | None = None
    energy: float | None = None
    boundary: str | None = None
    mass: float | None = None
    match_variance: bool | None = None
    per_channel: bool | None = None
    p: float | None = None
    block_size: int | None = None
    sigma: float | None = None
    relative: bool | None = None

    def __post_init__(self) -> None:
        check(self.mc_samples >= 1, "mc_samples", ">= 1", self.mc_samples)
        if self.mc_samples > 1 and not (self.eval and self.law):
            raise FieldError("mc_samples", f"= {self.mc_samples} needs noise at test time: set noise.eval=true and a noise")

    @property
    def options(self) -> dict[str, Any]:
        """What is set of the law's and kernel's options: every field that is not marked as NO_OPTION."""
        named = {each.name: getattr(self, each.name) for each in fields(self) if each.metadata.get("option", True)}
        return {name: value for name, value in named.items() if value is not None}


@dataclass(frozen=True)
class CorruptionsConfig:
    """Which corrupted cells are evaluated, and where their images come from: generated here, or a stored ImageNet-C."""

    name: str = field(metadata=NOT_IN_IDENTITY)
    # All corruptions of these groups of the table, where no names are given.
    groups: list[str] = field(default_factory=list, metadata=NOT_IN_IDENTITY)
    names: list[str] = field(default_factory=list, metadata=NOT_IN_IDENTITY)  # these corruptions
    severities: list[int] = field(default_factory=lambda: [1, 2, 3, 4, 5], metadata=NOT_IN_IDENTITY)
    parameters: str = "auto"  # imagenet_224 | tiny_64 | cifar_32; auto: nearest to the image size
    seed: int = 0  # of the draws
    jpeg_roundtrip: bool = False  # generated images go through JPEG at quality 85, as the published ones did
    # Null: generated here; else the stored ROOT/CORRUPTION/SEVERITY/CLASS/*.JPEG.
    root: str | None = field(default=None, metadata=NOT_IN_IDENTITY)
    needs_root: bool = field(default=False, metadata=NOT_IN_IDENTITY)  # refuse to generate images where no root is given
    resize: bool = False  # stored images are resized and cropped like the clean ones: another protocol

    def __post_init__(self) -> None:
        check(set(self.severities) <= {1, 2, 3, 4, 5}, "severities", "a list out of 1..5", self.severities)
        check(not (self.names or self.groups) or bool(self.severities), "severities", "a list of some of 1..5", self.severities)
        for name in ("groups", "names", "severities"):
            values = getattr(self, name)
            check(len(set(values)) == len(values), name, "free of repetitions", values)
        if self.needs_root:
            rule = "the folder of CORRUPTION/SEVERITY/CLASS/*.JPEG, corruptions.root=/path"
            check(self.stored, "root", rule, self.root)
        if self.stored and (self.parameters, self.seed, self.jpeg_roundtrip) != ("auto", 0, False):
            raise UserError(
                "corruptions.parameters, seed and jpeg_roundtrip are of images generated here: leave them out with"
                f" corruptions.root={self.root}"
            )
        if self.resize and not self.stored:
            raise FieldError("resize", "= true is for stored images: give corruptions.root=/path, or leave it out")

    @property
    def stored(self) -> bool:
        """Whether the corrupted images are read from `root`, not generated."""
        return bool(self.root)


@dataclass(frozen=True)
class EvaluationConfig:
    """How the forward passes of an evaluation run."""

    batch_size: int = field(default=64, metadata=NOT_IN_IDENTITY)
    precision: str = "fp32"  # fp32 | bf16 (autocast)

    def __post_init__(self) -> None:
        check(self.batch_size >= 1, "batch_size", ">= 1", self.batch_size)
        check_choice("precision", self.precision, ("fp32", "bf16"))


@dataclass(frozen=True)
class RecipeConfig:
    """How to train. Optimiser, schedule, EMA, mixing and augmentation are timm's, under timm's names."""

    name: str
    epochs: int
    batch_size: int  # images per optimiser step, over all processes and accumulation steps
    lr: float  # at batch_size = lr_batch; scaled linearly with batch_size when lr_batch is set
    lr_batch: int | None = None
    optimizer: str = "sgd"
    momentum: float = 0.9
    weight_decay: float = 1e-4
    schedule: str = "cosine"  # cosine | multistep | step | ... (timm)
    milestones: list[int] = field(default_factory=list)  # epochs, for multistep
    decay_rate: float = 0.1
    min_lr: float = 0.0
    warmup_epochs: int = 0
    label_smoothing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    ema_decay: float | None = None  # null: no EMA; else the EMA weights are what is evaluated. The decay warms up to this value
    grad_clip: float | None = None  # largest gradient norm
    grad_accumulation: int = 1
    amp: str = "none"  # none | bf16 | fp16
    channels_last: bool = False
    compile: bool = False
    freeze: str | None = None  # train only what lies after this stage (L1..L4 or a module's name); null: train everything
    recalibrate_bn: bool = False  # re-estimate BatchNorm's running statistics without noise before the evaluation
    expects_weights: bool = False  # made for given weights (model.pretrained, model.checkpoint): warn of random ones
    augment: AugmentConfig = field(default_factory=AugmentConfig)

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "grad_accumulation"):
            check(getattr(self, name) >= 1, name, ">= 1", getattr(self, name))
        for name in ("lr", "weight_decay", "mixup", "cutmix", "min_lr", "warmup_epochs", "momentum"):
            check(0 <= getattr(self, name) < float("inf"), name, "finite and >= 0", getattr(self, name))
        check(0 <= self.label_smoothing < 1, "label_smoothing", "in [0, 1)", self.label_smoothing)
        check(self.ema_decay is None or 0 < self.ema_decay < 1, "ema_decay", "in (0, 1) or null", self.ema_decay)
        check(self.grad_clip is None or self.grad_clip > 0, "grad_clip", "> 0 or null", self.grad_clip)
        check_choice("amp", self.amp, ("none", "bf16", "fp16"))
        check(
            self.batch_size % self.grad_accumulation == 0,
            "batch_size", f"a multiple of grad_accumulation={self.grad_accumulation}", self.batch_size,
        )  # fmt: skip

    @property
    def scaled_lr(self) -> float:
        return self.lr if self.lr_batch is None else self.lr * self.batch_size / self.lr_batch


@dataclass(frozen=True)
class LoggerConfig:
    """Where metrics go besides the run folder: wandb, csv (metrics.csv) or none."""

    name: str
    project: str = "gch-bench"
    entity: str | None = None
    mode: str = "offline"

    def __post_init__(self) -> None:
        check_choice("name", self.name, ("wandb", "csv", "none"))
        check_choice("mode", self.mode, ("offline", "online", "disabled"))


@dataclass(frozen=True)
class Config:
    """One run. `recipe` is null for evaluate.py, which trains nothing."""

    model: ModelConfig
    noise: NoiseConfig
    data: DataConfig
    corruptions: CorruptionsConfig
    logger: LoggerConfig = field(metadata=NOT_IN_IDENTITY)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    recipe: RecipeConfig | None = None
    seed: int = 0
    device: str = field(default="auto", metadata=NOT_IN_IDENTITY)  # auto | cpu | cuda
    threads: int | None = field(default=None, metadata=NOT_IN_IDENTITY)  # CPU threads; null: torch's choice
    # auto: freed memory is kept and reused (Linux with glibc), which is faster | system: as the system has it.
    memory: str = field(default="auto", metadata=NOT_IN_IDENTITY)
    # Run folder; null: runs/<data>-<model>-<noise>-s<seed>-<hash of the identity>.
    output: str | None = field(default=None, metadata=NOT_IN_IDENTITY)
    # Auto: continue what the run folder holds | never: refuse a folder that holds a run.
    resume: str = field(default="auto", metadata=NOT_IN_IDENTITY)

    def __post_init__(self) -> None:
        check_choice("resume", self.resume, ("auto", "never"))
        check_choice("device", self.device, DEVICES)
        check(0 <= self.seed < 2**63, "seed", ">= 0 and < 2^63", self.seed)
        check_choice("memory", self.memory, MEMORY)
        check(self.threads is None or 1 <= self.threads <= 1024, "threads", "in 1..1024 or null", self.threads)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def identity(self) -> dict[str, Any]:
        """What determines the weights and each cell, where it differs from the defaults. Plain values."""
        return {**identity_of(self), "stored": self.corruptions.stored}

    @property
    def run_name(self) -> str:
        """<data>-<model>-<noise>-s<seed>: the readable part of a run folder's name."""
        model = re.sub(r"[^\w.]+", "_", self.model.factory or self.model.name)
        kind = "" if self.recipe else "eval-"
        return f"{kind}{self.data.name}-{model}-{self.noise.name}-s{self.seed}"
