"""The typed configuration of train.py and evaluate.py: one dataclass per YAML group, checked once when it is made.

`parse(mapping, Config)` turns the plain dictionary of a composed Hydra config into a `Config`; no later code checks it again.
This module imports no torch, so that --help stays quick.
"""

import re
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from gch_bench.checks import check, check_choice, check_whole_number
from gch_bench.config.data import AugmentConfig, DataConfig
from gch_bench.config.parse import NOT_IN_IDENTITY, identity_of
from gch_bench.errors import FieldError, UserError
from gch_bench.suites import SUITES

# Version of the random numbers that the noise is made from. It is raised when the same seed gives other noise, so that no run
# is continued with other noise than it began with. Runs without noise keep their identity.
NOISE_DRAWS = 2
DEVICES = ("auto", "cpu", "cuda")
MEMORY = ("auto", "system")


@dataclass(frozen=True)
class ModelConfig:
    """The backbone: a timm name, or `factory="package.module:function"`, which is called with `kwargs` and, if it takes
    it, num_classes. Raises FieldError on a value out of its range."""

    name: str
    pretrained: bool = False
    # File of a state dict (.pt, .pth or .safetensors), see model/weights.py.
    checkpoint: str | None = field(default=None, metadata=NOT_IN_IDENTITY)
    reset_head: bool = False  # start with a new classifier where the checkpoint's has another number of classes
    # Dilate convolutions so that the side of the last feature map is size / output_stride, where the backbone supports that.
    output_stride: int | None = None
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


NO_OPTION = {"option": False}  # metadata that marks a field of NoiseConfig as no option of a law or kernel


@dataclass(frozen=True)
class NoiseConfig:
    """The internal noise: its law and kernel with their options, and where and when it is injected.

    The mechanism itself (gch_bench.noise) checks the ranges of the options. Raises FieldError on mc_samples out of its range.
    """

    name: str = field(metadata=NO_OPTION)
    law: str | None = field(default=None, metadata=NO_OPTION)  # a law of gch_bench/noise/table.py; null: no noise
    # A kernel of gch_bench/noise/kernels.py, for the laws that take one.
    kernel: str = field(default="dirichlet_green", metadata=NO_OPTION)
    # multiplicative | additive | branch | removal | attention (gch_bench/noise/injection.py); null: the law's own
    injection: str | None = field(default=None, metadata=NO_OPTION)
    stages: list[str] = field(default_factory=lambda: ["L4"], metadata=NO_OPTION)  # L1..L4 (early..late), or module names
    train: bool = field(default=True, metadata=NO_OPTION)  # whether the noise acts in training
    eval: bool = field(default=False, metadata=NO_OPTION)  # whether the noise acts at test time
    # Number of noisy forward passes per image at test time, whose softmax outputs are averaged; above 1 it needs eval: true.
    mc_samples: int = field(default=1, metadata=NO_OPTION)
    # Every further field is an option of a law or kernel; null: the default of the law or kernel.
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
    channel_rms: bool | None = None

    def __post_init__(self) -> None:
        check(self.mc_samples >= 1, "mc_samples", ">= 1", self.mc_samples)

    @property
    def options(self) -> dict[str, Any]:
        """The options of law and kernel that are set: every field without the mark NO_OPTION that is not null."""
        named = {each.name: getattr(self, each.name) for each in fields(self) if each.metadata.get("option", True)}
        return {name: value for name, value in named.items() if value is not None}


@dataclass(frozen=True)
class CorruptionsConfig:
    """Which corruptions are evaluated at which severities, and where the images come from: generated here or stored on disk.

    Raises FieldError or UserError on a value out of its range and on options that exclude each other.
    """

    name: str = field(metadata=NOT_IN_IDENTITY)
    # Groups of the table of corruptions: all their corruptions are evaluated, unless `names` is given.
    groups: list[str] = field(default_factory=list, metadata=NOT_IN_IDENTITY)
    # Single corruptions of the table; given, they replace the groups.
    names: list[str] = field(default_factory=list, metadata=NOT_IN_IDENTITY)
    severities: list[int] = field(default_factory=lambda: [1, 2, 3, 4, 5], metadata=NOT_IN_IDENTITY)
    parameters: str = "auto"  # imagenet_224 | tiny_64 | cifar_32; auto: the set whose image size is nearest to the run's
    seed: int = 0  # seed of the corruptions' random draws
    jpeg_roundtrip: bool = False  # encode and decode generated images as JPEG of quality 85, as the published set was stored
    # Folder of stored images, ROOT/CORRUPTION/SEVERITY/CLASS/*.JPEG; null: the images are generated here.
    root: str | None = field(default=None, metadata=NOT_IN_IDENTITY)
    needs_root: bool = field(default=False, metadata=NOT_IN_IDENTITY)  # refuse to generate images where no root is given
    # Resize and crop the stored images like the clean ones, which makes another protocol; false: they are used as they are.
    resize: bool = False
    # A published suite of stored images with corruptions of its own, see gch_bench/suites.py; null: ImageNet-C's corruptions.
    suite: str | None = None
    # Evaluate all cells, the clean one included, on this many images; null: on all.
    subset: int | None = None
    subset_seed: int = 0  # seed of the draw of the subset

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
            raise FieldError("resize=true", "is for stored images: give corruptions.root=/path, or leave it out")
        self._check_suite_and_subset()

    def _check_suite_and_subset(self) -> None:
        if self.suite is not None:
            check_choice("suite", self.suite, SUITES)
            check(self.stored, "root", f"the folder of the stored suite {self.suite}, corruptions.root=/path", self.root)
            check(not self.groups, "groups", f"empty with corruptions.suite={self.suite}", self.groups)
        if self.subset is not None:
            check_whole_number("subset", self.subset, low=1)
        check(0 <= self.subset_seed < 2**63, "subset_seed", ">= 0 and < 2^63", self.subset_seed)
        if self.subset is None and self.subset_seed:
            raise FieldError("subset_seed", f"is for a subset: give corruptions.subset=NUMBER, got seed {self.subset_seed}")

    @property
    def stored(self) -> bool:
        """Whether the corrupted images are read from `root`, not generated."""
        return bool(self.root)


@dataclass(frozen=True)
class EvaluationConfig:
    """How the forward passes of an evaluation run."""

    batch_size: int = field(default=64, metadata=NOT_IN_IDENTITY)  # images per forward pass and process
    # Several noisy passes go through the part of the network after the noise together while they have at most so many rows.
    noisy_rows: int = field(default=256, metadata=NOT_IN_IDENTITY)
    precision: str = "fp32"  # fp32 | bf16 (torch's autocast)
    # The order of the numbers in memory for convolutions, which changes rounding alone; null: channels last on a CPU, elsewhere
    # as in training.
    channels_last: bool | None = field(default=None, metadata=NOT_IN_IDENTITY)

    def __post_init__(self) -> None:
        for name in ("batch_size", "noisy_rows"):
            check(getattr(self, name) >= 1, name, ">= 1", getattr(self, name))
        check_choice("precision", self.precision, ("fp32", "bf16"))


@dataclass(frozen=True)
class RecordsConfig:
    """What is recorded of each image beside the atoms of the metrics."""

    logits: bool = False  # record the logits in float16, so that other metrics and temperatures need no second evaluation
    # The cells whose logits are recorded, such as [clean,fog-3], or fog for all severities; empty: all cells.
    logits_cells: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        check(self.logits or not self.logits_cells, "logits_cells", "empty without records.logits=true", self.logits_cells)


@dataclass(frozen=True)
class RecipeConfig:
    """How to train. Optimiser, schedule, EMA, mixup, cutmix and augmentation are timm's, under timm's names.

    Raises FieldError on a value out of its range.
    """

    name: str
    epochs: int
    batch_size: int  # images per optimiser step, summed over all processes and accumulation steps
    lr: float  # learning rate; where lr_batch is set, the rate is lr * batch_size / lr_batch
    lr_batch: int | None = None
    optimizer: str = "sgd"  # timm's name of the optimiser
    momentum: float = 0.9
    weight_decay: float = 1e-4
    schedule: str = "cosine"  # timm's name of the learning-rate schedule: cosine | multistep | step | ...
    milestones: list[int] = field(default_factory=list)  # epochs at which the multistep schedule lowers the learning rate
    decay_rate: float = 0.1  # factor by which the step schedules lower the learning rate
    min_lr: float = 0.0
    warmup_epochs: int = 0  # epochs over which the learning rate rises linearly from a hundredth of its value
    label_smoothing: float = 0.0
    mixup: float = 0.0  # alpha of mixup's beta distribution; 0: off
    cutmix: float = 0.0  # alpha of cutmix's beta distribution; 0: off
    # Decay of the exponential moving average (EMA) of the weights, which is then what is evaluated; null: no average. The decay
    # starts lower and rises to this value (training/optim.py).
    ema_decay: float | None = None
    grad_clip: float | None = None  # gradients of a larger norm are scaled down to this norm; null: never
    grad_accumulation: int = 1  # backward passes per optimiser step
    amp: str = "none"  # mixed precision: none | bf16 | fp16
    channels_last: bool = False
    compile: bool = False
    freeze: str | None = None  # train only what lies after this stage (L1..L4 or a module's name); null: train everything
    # A folder for what the frozen stages give for the training images, epoch by epoch. It is computed once and read by all runs
    # with the same seed, images, augmentation and frozen weights, so that each trains only what lies behind; null: not kept.
    trunk_cache: str | None = field(default=None, metadata=NOT_IN_IDENTITY)
    sync_bn: bool = False  # with several processes, on GPUs: BatchNorm's batch statistics are over the images of all of them
    # Within an epoch a checkpoint is written whenever so many minutes have passed; at the end of an epoch always.
    checkpoint_minutes: float = field(default=10, metadata=NOT_IN_IDENTITY)
    # Also keep checkpoints/epoch-N.pt of the start and after every so many epochs, for trajectories; null: last.pt alone.
    keep_every: int | None = field(default=None, metadata=NOT_IN_IDENTITY)
    recalibrate_bn: bool = False  # re-estimate BatchNorm's running statistics without noise before the evaluation
    # The recipe is meant for trained weights (model.pretrained or model.checkpoint): warn if training starts from random ones.
    expects_weights: bool = False
    augment: AugmentConfig = field(default_factory=AugmentConfig)

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "grad_accumulation"):
            check(getattr(self, name) >= 1, name, ">= 1", getattr(self, name))
        for name in ("lr", "weight_decay", "mixup", "cutmix", "min_lr", "warmup_epochs", "momentum"):
            check(0 <= getattr(self, name) < float("inf"), name, "finite and >= 0", getattr(self, name))
        check(self.checkpoint_minutes > 0, "checkpoint_minutes", "> 0", self.checkpoint_minutes)
        check(self.keep_every is None or self.keep_every >= 1, "keep_every", ">= 1 or null", self.keep_every)
        check(0 <= self.label_smoothing < 1, "label_smoothing", "in [0, 1)", self.label_smoothing)
        check(self.ema_decay is None or 0 < self.ema_decay < 1, "ema_decay", "in (0, 1) or null", self.ema_decay)
        check(self.grad_clip is None or self.grad_clip > 0, "grad_clip", "> 0 or null", self.grad_clip)
        check_choice("amp", self.amp, ("none", "bf16", "fp16"))
        check(
            self.batch_size % self.grad_accumulation == 0,
            "batch_size", f"a multiple of grad_accumulation={self.grad_accumulation}", self.batch_size,
        )  # fmt: skip
        if self.trunk_cache is not None:
            check(self.freeze is not None, "trunk_cache", "null without recipe.freeze=STAGE", self.trunk_cache)
            others = {"mixup": self.mixup > 0, "cutmix": self.cutmix > 0, "amp": self.amp != "none", "compile": self.compile}
            set_too = ", ".join(name for name, value in others.items() if value)
            check(not set_too, "trunk_cache", f"null with recipe.{set_too}, which it cannot do", self.trunk_cache)

    @property
    def scaled_lr(self) -> float:
        return self.lr if self.lr_batch is None else self.lr * self.batch_size / self.lr_batch


@dataclass(frozen=True)
class LoggerConfig:
    """Where metrics go besides the run folder's own files: wandb, csv (metrics.csv) or none.

    Raises FieldError on a name or mode that is not among the choices.
    """

    name: str
    project: str = "gch-bench"  # wandb's project
    entity: str | None = None  # wandb's user or team; null: the account's default
    mode: str = "offline"  # wandb's mode: offline | online | disabled

    def __post_init__(self) -> None:
        check_choice("name", self.name, ("wandb", "csv", "none"))
        check_choice("mode", self.mode, ("offline", "online", "disabled"))


@dataclass(frozen=True)
class Config:
    """One run of train.py or evaluate.py. `recipe` is null for evaluate.py, which trains nothing.

    Raises FieldError on a value out of its range.
    """

    model: ModelConfig
    noise: NoiseConfig
    data: DataConfig
    corruptions: CorruptionsConfig
    logger: LoggerConfig = field(metadata=NOT_IN_IDENTITY)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    records: RecordsConfig = field(default_factory=RecordsConfig, metadata=NOT_IN_IDENTITY)
    # For evaluate.py: the networks that are evaluated in one pass over the images: run folders, files of weights, patterns such
    # as runs/x/* of them, timm:NAME.
    checkpoints: list[str] = field(default_factory=list, metadata=NOT_IN_IDENTITY)
    recipe: RecipeConfig | None = None
    seed: int = 0
    device: str = field(default="auto", metadata=NOT_IN_IDENTITY)  # auto | cpu | cuda
    threads: int | None = field(default=None, metadata=NOT_IN_IDENTITY)  # number of CPU threads; null: torch's choice
    # auto: the process keeps and reuses freed memory (Linux with glibc), which is faster; system: the allocator is unchanged.
    memory: str = field(default="auto", metadata=NOT_IN_IDENTITY)
    # Run folder; null: <output_parent>/<run_name>-<first digits of the identity's hash>.
    output: str | None = field(default=None, metadata=NOT_IN_IDENTITY)
    output_parent: str = field(default="runs", metadata=NOT_IN_IDENTITY)
    # auto: continue the run that the run folder holds; never: refuse a folder that holds a run.
    resume: str = field(default="auto", metadata=NOT_IN_IDENTITY)

    def __post_init__(self) -> None:
        if self.noise.mc_samples > 1 and not (self.noise.eval and (self.noise.law or self.checkpoints)):
            rule = "needs noise at test time: set noise.eval=true and a noise"
            raise FieldError(f"noise.mc_samples={self.noise.mc_samples}", rule)
        rule = "left out with train.py; evaluate.py takes it"
        check(not (self.checkpoints and self.recipe), "checkpoints", rule, self.checkpoints)
        check_choice("resume", self.resume, ("auto", "never"))
        check_choice("device", self.device, DEVICES)
        check(0 <= self.seed < 2**63, "seed", ">= 0 and < 2^63", self.seed)
        check_choice("memory", self.memory, MEMORY)
        check(self.threads is None or 1 <= self.threads <= 1024, "threads", "in 1..1024 or null", self.threads)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def identity(self) -> dict[str, Any]:
        """What determines the weights and the results of each cell: the fields that differ from their defaults, `stored`, and
        with noise the version of its draws. All values are plain."""
        plain = identity_of(self)
        if self.noise.law:
            plain["noise"] = {**plain["noise"], "draws": NOISE_DRAWS}
        if self.corruptions.stored:  # the root itself is no part of it: what lies there is in each record
            plain["corruptions"] = {**plain.get("corruptions", {}), "stored": True}
        return plain

    @property
    def run_name(self) -> str:
        """<data>-<model>-<noise>-s<seed>, with eval- in front for evaluate.py: the readable part of a run folder's name."""
        model = re.sub(r"[^\w.]+", "_", self.model.factory or self.model.name)
        kind = "" if self.recipe else "eval-"
        return f"{kind}{self.data.name}-{model}-{self.noise.name}-s{self.seed}"
