"""Prepares one run of train.py or evaluate.py: loads and checks everything before the first byte is written."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gch_bench import distributed
from gch_bench.apps.networks import origin
from gch_bench.config.data import DataConfig
from gch_bench.config.run import Config
from gch_bench.data.imagenet import wordnet_ids
from gch_bench.data.sets import DATASETS, DataSource, load_data
from gch_bench.data.stored import StoredImages, stored_images
from gch_bench.data.transforms import EvalTransform, Preparation, timm_preparation
from gch_bench.display import Display
from gch_bench.distributed import World
from gch_bench.errors import FieldError, UserError
from gch_bench.evaluation.cells import logits_cells, parameter_set, subset_ids, wanted_cells
from gch_bench.evaluation.predict import Predictor, laid_out
from gch_bench.evaluation.protocol import Protocol, protocol_of
from gch_bench.evaluation.run import EvaluatedImages, NetworkTask
from gch_bench.model.build import NoisyNetwork, accepts, build
from gch_bench.model.weights import OtherClasses, UnfitWeights, weights_digest
from gch_bench.results import shards
from gch_bench.results.records import CELL_CLEAN_TIMM, Cell
from gch_bench.results.runfacts import RunFile, identity_hash


@dataclass(frozen=True, eq=False)
class Job:
    """A run that is prepared: everything is loaded and checked, and nothing is written yet."""

    config: Config
    world: World
    data: DataSource
    noisy: NoisyNetwork
    cells: list[Cell]
    timm: Preparation | None  # of the cell CELL_CLEAN_TIMM; None: the run has no such cell
    ids: np.ndarray  # int64, sorted: the ids of the images that are evaluated
    stored: dict[Cell, StoredImages]  # the stored images of the corrupted cells; {} where the images are generated
    protocol: Protocol
    folder: Path
    run_file: RunFile
    display: Display

    @property
    def logits(self) -> frozenset[Cell]:
        return logits_cells(self.config.records, self.cells)

    def facts(self, weights: str) -> dict[str, str]:
        """The facts that a record of this run must have: the protocol id and the digest of the weights."""
        return {"protocol": self.protocol.id, "weights": weights}

    @property
    def stored_facts(self) -> dict[Cell, str]:
        """Cell -> fingerprint of its stored images; {} where the images are generated."""
        return {cell: images.fingerprint for cell, images in self.stored.items()}

    @property
    def images(self) -> EvaluatedImages:
        """What is evaluated. All jobs of a pass have the same images, as they differ in their networks alone."""
        corruptions = self.config.corruptions
        return EvaluatedImages(
            clean=self.data.val,
            ids=self.ids,
            cells=self.cells,
            stored=self.stored,
            corruption_seed=corruptions.seed,
            jpeg_roundtrip=corruptions.jpeg_roundtrip,
            batch_size=self.config.evaluation.batch_size,
            workers=self.config.data.workers,
            skip_bad=self.config.data.skip_bad,
        )

    def task(self, network: torch.nn.Module, weights: str, missing: list[Cell], cells: list[Cell]) -> NetworkTask:
        """The part of this run in a pass over `cells`: `network` is evaluated on what no record and no shard holds yet."""
        images, size = self.images, self.data.size
        held = shards.done(self.folder, self.facts(weights), cells, len(images.ids), self.logits)
        wanted = np.array([cell in missing for cell in cells])
        return NetworkTask(
            predictor=Predictor(
                network=laid_out(network, self.config.evaluation.channels_last, self.world.device),
                normalisation=self.noisy.normalisation,
                precision=self.config.evaluation.precision,
                noise_passes=self.config.noise.mc_samples if self.protocol.noise_at_test != "off" else 0,
                noise_seed=self.config.seed,
                noisy_rows=self.config.evaluation.noisy_rows,
                classes=_scored(self.config, self.data),
            ),
            folder=self.folder,
            facts=self.facts(weights),
            preparations=preparations(self),
            parameters=parameter_set(self.config.corruptions, size),
            needed=wanted[:, None] & ~held,
            logits=self.logits,
        )


class Loaded:
    """Data sets that were loaded already: the networks of one pass share the images of one data set."""

    def __init__(self, world: World) -> None:
        self.world = world
        self._data: dict[DataConfig, DataSource] = {}

    def data(self, config: Config) -> DataSource:
        """The data of a run, prepared for its network."""
        if config.data not in self._data:
            self._data[config.data] = _load(config, self.world)
        data = self._data[config.data]
        if config.data.preprocess != "timm":
            return data
        if config.model.factory:
            raise UserError(f"data.preprocess=timm needs a network of timm, got model.factory={config.model.factory}")
        return data.prepared(timm_preparation(config.model.name))


def prepare(config: Config, world: World, loaded: Loaded) -> Job:
    """Load and build everything, and raise UserError at whatever is wrong, before the first byte is written."""
    cells = wanted_cells(config.corruptions)
    data = loaded.data(config)
    torch.manual_seed(config.seed)  # the initial weights
    outputs = len(data.classes) if _scored(config, data) is None else len(wordnet_ids())
    noisy = _built(config, outputs, data.size)
    _check_weights(config, noisy, outputs)
    timm = _timm_cell(config, data, noisy)
    if timm is not None:
        cells.insert(1, CELL_CLEAN_TIMM)
    logits_cells(config.records, cells)
    protocol = protocol_of(config, data, noisy.normalisation, world.device.type)
    ids = subset_ids(len(data.val), config.corruptions.subset, config.corruptions.subset_seed)
    stored = _stored(config, data, cells, ids)
    same = run_identity(config, data, noisy)
    folder = Path(config.output or f"{config.output_parent}/{config.run_name}-{identity_hash(same)[:8]}")
    run_file = RunFile(folder, same, config.resume, world)
    return Job(config, world, data, noisy, cells, timm, ids, stored, protocol, folder, run_file, Display(world.main))


def _built(config: Config, outputs: int, size: int) -> NoisyNetwork:
    """The network of a run. An error about its weights names the key that the user typed, and what the user can do."""
    try:
        return build(config.model, config.noise, outputs, size)
    except UnfitWeights as error:
        if config.checkpoints:
            raise FieldError(f"checkpoints: {config.checkpoints[0]}", error.problem) from error
        if config.recipe is not None and isinstance(error, OtherClasses):
            advice = ", or model.reset_head=true to train a new classifier"
            raise FieldError(error.field, error.problem + advice) from error
        raise


def preparations(job: Job) -> dict[Cell | None, Preparation]:
    """Cell -> preparation of its images; None -> that of all other cells."""
    data, resized = job.data, job.config.corruptions.resize
    found: dict[Cell | None, Preparation] = {None: data.preparation}
    if job.timm is not None:
        found[CELL_CLEAN_TIMM] = job.timm
    # Without corruptions.resize a stored image already has the network's size, and EvalTransform leaves it untouched.
    return found | {cell: data.preparation if resized else EvalTransform(data.size) for cell in job.stored}


def _scored(config: Config, data: DataSource) -> tuple[int, ...] | None:
    """Which outputs of the network are scored: for data with some of ImageNet's classes these, else None, which means all.

    A network that is or was trained on such data has outputs for its classes alone. Sets that are for evaluation only, and
    networks with timm's weights, have all 1,000.
    """
    for_imagenet = config.model.pretrained or not DATASETS[data.name].trainable
    return data.class_ids if config.recipe is None and for_imagenet else None


def _timm_cell(config: Config, data: DataSource, noisy: NoisyNetwork) -> Preparation | None:
    """timm's preparation for its trained network, if clean images are to be evaluated in it, too.

    They are where evaluate.py scores timm's own weights on ImageNet's classes and prepares the images in another way.
    """
    if config.recipe or not config.model.pretrained or data.class_ids is None:
        return None
    try:
        own = timm_preparation(config.model.name)
    except UserError:  # not square, for instance
        return None
    return own if not own.equals(data.preparation) and accepts(noisy.network, own.size) else None


def _stored(config: Config, data: DataSource, cells: list[Cell], ids: np.ndarray) -> dict[Cell, StoredImages]:
    """The stored images of each corrupted cell; {} where they are generated. Raises UserError if an image is missing."""
    if not config.corruptions.root:
        return {}
    if config.corruptions.resize and getattr(data.preparation, "resize", data.size) is None:
        raise FieldError("corruptions.resize=true", "resizes like the clean images: give data.resize=PIXELS, it is null")
    root = Path(config.corruptions.root).expanduser()
    corrupted = [cell for cell in cells if cell.severity > 0]
    found = stored_images(root, corrupted, data.val, None if config.corruptions.resize else data.size, ids)
    return {cell: found[cell] for cell in corrupted}


def run_identity(config: Config, data: DataSource, noisy: NoisyNetwork) -> dict[str, Any]:
    """What determines the weights and the results of each cell: the configuration, the images, and the given initial weights.

    All values are plain JSON. Paths are not part of an identity; fingerprints of the content are.
    """
    given = config.model.checkpoint or config.model.pretrained
    inputs = {
        "images": data.fingerprint,
        "train_images": data.train_fingerprint,
        "size": data.size,
        "geometry": data.geometry,
        "weights": weights_digest(noisy.network) if given else None,
    }
    plain: dict[str, Any] = json.loads(json.dumps(config.identity | {"inputs": inputs}))
    return plain


def described(job: Job) -> dict[str, Any]:
    """The fields of RunFacts that say what was run, for RunFile.begin."""
    data = job.data
    made = origin(job.config) if job.config.recipe is None else None
    return {
        "origin": made.identity if made else None,
        "protocol_id": job.protocol.id,
        "protocol": asdict(job.protocol),
        "mechanism": job.noisy.mechanism,
        "stages": [stage.facts() for stage in job.noisy.stages],
        "warnings": job.noisy.warnings,
        "data": {
            "description": data.description,
            "fingerprint": data.fingerprint,
            "train_fingerprint": data.train_fingerprint,
            "num_classes": len(data.classes),
            "imagenet_1k": data.is_imagenet_1k,
            "several_labels": data.val.label_sets is not None,
        },
        "parameters": sum(parameter.numel() for parameter in job.noisy.network.parameters()),
        "config": job.config.as_dict(),
    }


def _check_weights(config: Config, noisy: NoisyNetwork, num_classes: int) -> None:
    """Raise UserError if evaluate.py would score untrained weights; add a warning if a fine-tuning starts from random ones."""
    model = config.model
    given = model.checkpoint or model.pretrained
    if config.recipe is None:
        theirs = (getattr(noisy.network, "pretrained_cfg", None) or {}).get("num_classes")
        if not given:
            raise UserError(
                "evaluate.py needs trained weights: give model.checkpoint=FILE, model.pretrained=true or checkpoints=[...]"
            )
        if model.reset_head:
            raise UserError("model.reset_head=true makes a new classifier, which evaluate.py would not train: use train.py")
        if model.pretrained and theirs != num_classes:
            raise UserError(
                f"model.pretrained=true has {theirs} classes and the data {num_classes}: evaluate.py would score an untrained"
                f" classifier of {model.name}; train one with train.py recipe=finetune, or for data=timm with labels of these"
                f" {theirs} classes give data.num_classes={theirs}"
            )
    elif config.recipe.expects_weights and not given:
        noisy.warnings.append(
            f"recipe={config.recipe.name} starts from random weights: give model.pretrained=true or model.checkpoint=FILE"
        )


def _load(config: Config, world: World) -> DataSource:
    data = None
    if config.data.download:
        with distributed.failing_together(world):  # rank 0 downloads while the others wait
            if world.main:
                data = load_data(config.data, train=config.recipe is not None)
    return data or load_data(config.data, train=config.recipe is not None)
