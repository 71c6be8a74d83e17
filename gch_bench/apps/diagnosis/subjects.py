"""The subjects of diagnose.py: networks with their weights, files of weights, and finished runs."""

import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from safetensors import SafetensorError, safe_open
from timm.models import load_state_dict
from torch import Tensor, nn

from gch_bench.apps.diagnosis.weight_files import epoch_of, expanded
from gch_bench.apps.patterns import natural
from gch_bench.config.diagnosis import DiagnoseConfig
from gch_bench.config.run import ModelConfig
from gch_bench.data.transforms import Normalisation
from gch_bench.errors import FieldError, UserError
from gch_bench.files import read_json, slug
from gch_bench.geometry.network import head_dim_of
from gch_bench.model.build import build_network, normalisation
from gch_bench.model.packaged import pretrained_origin
from gch_bench.model.weights import weights_digest
from gch_bench.results.records import LAST_CHECKPOINT
from gch_bench.results.runfacts import read_run_facts


class Build(NamedTuple):
    """What a network is built from."""

    model: ModelConfig
    size: int  # side of its images in pixels
    classes: int


class Subject(NamedTuple):
    """Weights to diagnose, and their network if it could be built (a file of weights alone has none)."""

    label: str  # short, unique among the subjects
    origin: str  # the file, or which pretrained weights
    weights: Mapping[str, Tensor]
    digest: str  # 16 hex digits, a hash of the weights
    network: nn.Module | None
    size: int | None  # image side of the network
    normalisation: Normalisation | None
    head_dim: int | None  # rows of an attention head; None if unknown
    warnings: list[str]
    trained: bool = True  # False: random weights
    epoch: int | None = None  # number of finished epochs of the training, as far as the file of weights or its name says
    build: Build | None = None  # its architecture, without weights


class SafetensorsWeights(Mapping[str, Tensor]):
    """The tensors of one or several .safetensors files, in natural order of their names (layer 2 before layer 10).

    A tensor is read only when it is asked for, and the file is opened anew for it: a file that stayed open would stay mapped,
    and what was read of it would count as memory of the process.
    """

    def __init__(self, source: str) -> None:
        """``source`` is a .safetensors file, a folder of such files, or a .safetensors.index.json.

        Raises:
            UserError: if there is no such file or folder, or it cannot be read as safetensors.
        """
        path = Path(source).expanduser()
        if path.is_dir():
            self.files = sorted(path.glob("*.safetensors"))
        elif path.name.endswith(".safetensors.index.json"):
            listed = read_json(path).get("weight_map")
            if not isinstance(listed, dict) or not all(isinstance(name, str) for name in listed.values()):
                raise UserError(f"source={source} has no weight_map from names to files: it is no index of safetensors")
            self.files = sorted({path.parent / name for name in listed.values()})
        else:
            self.files = [path]
        if not self.files:
            raise UserError(f"source={source} holds no .safetensors file: give one, a folder of them, or their index")
        self.file_of: dict[str, Path] = {}
        for file in self.files:
            try:
                with safe_open(file, "pt") as opened:
                    self.file_of |= dict.fromkeys(opened.keys(), file)
            except (OSError, SafetensorError) as error:
                raise UserError(f"source={file} cannot be read as safetensors: {error}") from error
        self.names = sorted(self.file_of, key=natural)

    def __getitem__(self, name: str) -> Tensor:
        try:
            with safe_open(self.file_of[name], "pt") as opened:
                tensor: Tensor = opened.get_tensor(name)
        except (OSError, SafetensorError) as error:
            raise UserError(f"{self.file_of[name]}: {name} cannot be read: {error}") from error
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)

    def digest(self) -> str:
        """16 hex digits, a hash of the files' bytes."""
        digest = hashlib.sha256()
        for file in self.files:
            with open(file, "rb") as opened:
                digest.update(hashlib.file_digest(opened, "sha256").digest())
        return digest.hexdigest()[:16]

    def head_dim(self) -> int | None:
        """Rows of an attention head, from config.json (transformers' format) beside the files; None if it does not say."""
        file = self.files[0].parent / "config.json"
        if not file.is_file():
            return None
        facts = read_json(file)
        if isinstance(facts.get("head_dim"), int):
            return int(facts["head_dim"])
        for width, heads in (("hidden_size", "num_attention_heads"), ("n_embd", "n_head")):
            if isinstance(facts.get(width), int) and isinstance(facts.get(heads), int) and facts[heads] > 0:
                return int(facts[width] // facts[heads])
        return None


def subjects(config: DiagnoseConfig) -> Iterator[Subject]:
    """Yield the subjects that the configuration names, one after the other, so that only one network is in memory at a time.

    With `random_initialisation` each architecture among them comes once more, with random weights.

    Raises:
        UserError: if the configuration names no weights, or names a file that does not exist or does not fit the model.
    """
    built: list[Build] = []
    for subject in _named(config):
        if subject.build is not None and subject.build not in built:
            built.append(subject.build)
        yield subject
    if config.random_initialisation:
        for number, build in enumerate(built or [_build_of(config, config.model)]):
            label = f"{build.model.name} random" + (f" {number}" if len(built) > 1 else "")
            yield _with_branches(_random(config, build, label))


def _named(config: DiagnoseConfig) -> Iterator[Subject]:
    """The subjects whose weights the configuration names."""
    config, notes = expanded(config)
    if config.source:
        weights = SafetensorsWeights(config.source)
        digest, head_dim = weights.digest(), config.head_dim or weights.head_dim()
        yield Subject(_source_label(config.source), config.source, weights, digest, None, None, None, head_dim, [])
    elif config.runs:
        for folder, label in zip(config.runs, labels(config.runs), strict=True):
            yield run_subject(Path(folder), label, config.head_dim)
    else:
        paths = config.checkpoints or ([config.checkpoint] if config.checkpoint else [])
        models = [replace(config.model, checkpoint=path) for path in paths] or [config.model]
        if not paths and not (config.model.checkpoint or config.model.pretrained):
            if config.random_initialisation:
                return
            raise UserError(
                "diagnose.py needs weights: give checkpoint=FILE, checkpoints=[FILE,FILE], model.pretrained=true,"
                " source=FILE.safetensors, runs=[FOLDER,FOLDER], or random_initialisation=true for random ones"
            )
        for model, label in zip(models, labels(paths) if len(paths) > 1 else [config.model.name], strict=True):
            try:
                subject = _of_model(_build_of(config, model), label, config.head_dim)
            except FieldError as error:  # the file may come from `checkpoint` or from `model.checkpoint`
                raise error.in_group("" if paths else "model") from error
            subject.warnings.extend(notes.get(model.checkpoint or "", []))
            yield subject


def one_network(config: DiagnoseConfig) -> Subject:
    """The network that mode=compatibility looks at. Without weights it is the network of model= with random ones.

    Raises:
        UserError: the configuration names several networks, or a file of weights without network.
    """
    config = expanded(config).config
    if config.source or len(config.checkpoints) > 1 or len(config.runs) > 1:
        raise UserError(
            f"mode={config.mode} looks at one network: give checkpoint=FILE, runs=[FOLDER] or model.pretrained=true, or nothing"
            " for random weights"
        )
    model = config.model
    if config.checkpoint or config.checkpoints or config.runs or model.checkpoint or model.pretrained:
        return next(iter(subjects(config)))
    return _random(config, _build_of(config, model), model.name)


def _random(config: DiagnoseConfig, build: Build, label: str) -> Subject:
    torch.manual_seed(config.seed)
    subject = _of_model(build, label, config.head_dim)
    return subject._replace(origin=f"random weights of seed {config.seed}", trained=False)


def _with_branches(subject: Subject) -> Subject:
    """The subject with gains of 1 where they are zero, as many start: a branch that is switched off shows nothing."""
    assert subject.network is not None
    with torch.no_grad():
        for name, value in subject.network.named_parameters():
            if name.endswith("weight") and value.ndim == 1 and not value.any():
                value.fill_(1.0)
    return subject._replace(digest=weights_digest(subject.network))


def _build_of(config: DiagnoseConfig, model: ModelConfig) -> Build:
    """How the network of `model` is built: by the configuration, else by the run that its checkpoint is of, else by itself."""
    facts = _run_facts(model.checkpoint)
    size = config.size or facts.get("size") or _own_size(model)
    classes = config.num_classes or facts.get("classes") or _classes(model)
    return Build(replace(model, output_stride=model.output_stride or facts.get("output_stride")), size, classes)


def labels(paths: list[str]) -> list[str]:
    """Short unique names for paths: the parts in which the paths differ; numbered, if those names are not unique."""
    stems = [Path(os.path.abspath(re.sub(r"\.(pt|pth|bin|safetensors)$", "", path))) for path in paths]
    names = [
        "-".join(part for part in own.parts if not all(part in other.parts for other in stems)) or own.name for own in stems
    ]
    return names if len(set(map(slug, names))) == len(names) else [f"{i}-{name}" for i, name in enumerate(names)]


def _source_label(source: str) -> str:
    """The file's or folder's name; for a file with the usual name model.safetensors, the name of its folder."""
    path = Path(os.path.abspath(os.path.expanduser(source)))
    stem = re.sub(r"\.safetensors(\.index\.json)?$", "", path.name)
    return path.parent.name if stem == "model" and path.parent.name else stem


def _of_model(build: Build, label: str, head_dim: int | None) -> Subject:
    model, size = build.model, build.size
    network, warnings = build_network(model, build.classes, size)
    network.eval()
    origin = model.checkpoint or pretrained_origin(model.name)
    state = network.state_dict()
    head_dim = head_dim or head_dim_of(network)
    architecture = build._replace(model=replace(model, checkpoint=None, pretrained=False))
    digest, epoch = weights_digest(network), epoch_of(model.checkpoint) if model.checkpoint else None
    normal = normalisation(network)
    return Subject(label, origin, state, digest, network, size, normal, head_dim, warnings, epoch=epoch, build=architecture)


def run_subject(folder: Path, label: str, head_dim: int | None = None) -> Subject:
    """The network of a run, or the one that a run of evaluate.py was given.

    Raises:
        UserError: the folder holds no run, or its weights are gone.
    """
    facts = read_run_facts(folder)
    try:
        model = ModelConfig(**facts.config["model"])
        size, classes = facts.protocol["size"], facts.data["num_classes"]
    except (KeyError, TypeError) as error:
        raise UserError(f"{folder}/run.json was written by another version: {error}") from error
    last = folder / LAST_CHECKPOINT
    if last.exists():
        model = replace(model, checkpoint=str(last), pretrained=False)
    elif not (model.checkpoint or model.pretrained):
        raise UserError(f"{folder} has no checkpoints/last.pt: its weights are gone")
    return _of_model(Build(model, size, classes), label, head_dim)


def _run_facts(checkpoint: str | None) -> dict[str, Any]:
    """Image size, number of classes and output stride of the run that the checkpoint is of; {} if it is in no run folder."""
    file = Path(checkpoint or "").parent.parent / "run.json"
    if not checkpoint or not file.is_file():
        return {}
    try:
        facts = read_run_facts(file.parent)
        stride = facts.config["model"]["output_stride"]
        return {"size": facts.protocol["size"], "classes": facts.data["num_classes"], "output_stride": stride}
    except (UserError, KeyError, TypeError):
        return {}


def _own_size(model: ModelConfig) -> int:
    """The side in pixels of the images that timm made the network for; 224 where it does not say."""
    facts = None if model.factory else timm.get_pretrained_cfg(model.name, allow_unregistered=True)
    return int(facts.input_size[-1]) if facts is not None and facts.input_size else 224


def _classes(model: ModelConfig) -> int:
    """Number of classes that the weights are for.

    It is read from the checkpoint's classifier, by timm's name for it, or else from the last matrix of the checkpoint. If there
    is no readable checkpoint, it is the number that timm states for the model, or 1000.
    """
    facts = None if model.factory else timm.get_pretrained_cfg(model.name, allow_unregistered=True)
    known = int(facts.num_classes) if facts is not None and facts.num_classes else 1000
    if not model.checkpoint or not Path(model.checkpoint).is_file():
        return known
    try:
        state = load_state_dict(model.checkpoint, use_ema=True, weights_only=True)
    except Exception:  # the later load of the same file says in one line what is wrong
        return known
    word: Any = facts.classifier if facts is not None and facts.classifier else ()
    names = (word,) if isinstance(word, str) else word
    heads = [state[f"{name}.weight"] for name in names if f"{name}.weight" in state]
    matrices = [value for key, value in state.items() if key.endswith(".weight") and value.ndim == 2]
    return len((heads or matrices[-1:] or [range(known)])[0])
