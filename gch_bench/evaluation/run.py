"""Evaluates several networks in one pass over the images.

Each clean image is decoded once. All its corrupted versions are made from the decoded image, those of the severities of one
corruption together, and every corrupted batch goes through every network. A stored corrupted image is decoded once, too. The
work is cut into shards of images: a process that has finished a shard writes its rows for every network (results/shards.py), so
that a pass which was stopped goes on from there.

The batches are cut from the list of images alone and not from the number of processes, so that on a CPU the rows are the same,
bit for bit, for one network or many, for one process or several, and after a restart.

Memory: a process holds the networks, two batches of uint8 images for every loader process, the corrupted batches of all
severities of one corruption, the activations of one batch, and the rows (and logits, where these are recorded) of one shard.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from gch_bench.corruptions import corrupt_all, jpeg_roundtrip
from gch_bench.data.images import ImageSet
from gch_bench.data.loaders import EvalBatch, Source, eval_loader, loader_workers, refuse_bad, whole
from gch_bench.data.stored import StoredImages
from gch_bench.data.transforms import Preparation, normalise
from gch_bench.distributed import World
from gch_bench.errors import UserError
from gch_bench.evaluation.predict import Predictor, features_of, predict
from gch_bench.metrics import sample_atoms, scored_labels
from gch_bench.model.trunk import Features
from gch_bench.results.records import Cell, Rows
from gch_bench.results.shards import BadRow, Span, write_shard

SHARD_IMAGES = 256  # images of a shard: how much work a kill can cost


class EvaluatedImages(NamedTuple):
    """The images of every cell, and how they are loaded and corrupted. All networks of a pass share them."""

    clean: ImageSet
    ids: np.ndarray  # int64 (N,), sorted: the ids of the images that are evaluated
    cells: list[Cell]
    stored: Mapping[Cell, StoredImages]  # images of the corrupted cells that are read from disk; {} where they are generated
    corruption_seed: int
    jpeg_roundtrip: bool  # whether generated corrupted images are encoded and decoded as JPEG
    batch_size: int
    workers: int | None  # loader processes, see loader_workers
    skip_bad: bool


@dataclass(eq=False)
class NetworkTask:
    """One network of a pass: how it predicts, what it still needs, and the rows of the shard that is being made."""

    predictor: Predictor
    folder: Path  # the run folder
    facts: dict[str, str]  # the facts of its records
    preparations: Mapping[Cell | None, Preparation]  # of the images of a cell; None: of all cells that are not named
    parameters: str  # name of the corruption parameter set, for generated images
    needed: np.ndarray  # bool (cells, N): the cells and images that it has no row of yet
    logits: frozenset[Cell]  # the cells whose logits are recorded
    spans: dict[Cell, list[Span]] = field(default_factory=lambda: defaultdict(list))  # the positions that rows and bad cover
    rows: dict[Cell, list[Rows]] = field(default_factory=lambda: defaultdict(list))
    bad: list[BadRow] = field(default_factory=list)

    def preparation(self, cell: Cell) -> Preparation:
        return self.preparations.get(cell, self.preparations[None])


class Work(NamedTuple):
    """One batch of a pass: the images at the positions start..stop-1 in the list of evaluated images, out of one source."""

    shard: int
    source: int
    start: int
    stop: int


class Batches:
    """The batch sampler of a pass: for each Work the list of (source, image id), made when it is asked for.

    All lists at once would take 380 MB for 76 stored cells of 50,000 images.
    """

    def __init__(self, work: Sequence[Work], ids: np.ndarray) -> None:
        self.work, self.ids = work, ids

    def __len__(self) -> int:
        return len(self.work)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for each in self.work:
            yield [(each.source, int(i)) for i in self.ids[each.start : each.stop]]


def evaluate(
    tasks: Sequence[NetworkTask],
    images: EvaluatedImages,
    world: World,
    progress: Callable[[str, int], None] = lambda note, rows: None,
) -> None:
    """Evaluate what the networks need, and write it to the shards of their run folders. Each process does its part.

    Args:
        progress: called after every version of a batch with a note and the number of rows that all processes together have
            probably made.

    Raises:
        UserError: an unreadable image without `skip_bad`, an output of a network that is not finite, a full disk.
    """
    sources = _sources(tasks, images)
    work, count = _planned(tasks, images, [cells for _, cells in sources], world)
    workers = loader_workers(images.workers, images.clean, world.local_size)
    loader = eval_loader([source for source, _ in sources], Batches(work, images.ids), workers)
    for task in tasks:
        task.predictor.network.eval()
    with torch.inference_mode():
        for number, (each, batch) in enumerate(zip(work, whole(loader), strict=True)):
            refuse_bad(batch.bad, images.skip_bad)
            source, cells = sources[each.source]
            span = (each.start, each.stop)
            for cell, alike, pixels in _versions(tasks, images, cells, span, batch, source.preparations, world.device):
                bad = [BadRow(cell, number, *image[:2]) for number, image in zip(batch.bad_ids, batch.bad, strict=True)]
                for task in alike:
                    task.spans[cell].append(span)
                    task.bad += bad
                rows = _evaluate(alike, cell, pixels, batch, images)
                progress(f"shard {each.shard + 1}/{count}", rows * world.size)  # the others are assumed to be as fast
            if number + 1 == len(work) or work[number + 1].shard != each.shard:
                _write(tasks)


def _sources(tasks: Sequence[NetworkTask], images: EvaluatedImages) -> list[tuple[Source, list[Cell]]]:
    """The sources of images, and the cells that are made from each: clean images first, then the stored ones of each cell."""
    clean = [cell for cell in images.cells if cell not in images.stored]
    stored = [cell for cell in images.cells if cell in images.stored]
    sources = []
    for own, cells in [(images.clean, clean), *((images.stored[cell], [cell]) for cell in stored)]:
        rows = [images.cells.index(cell) for cell in cells]
        wanted = [
            task.preparation(cell) for cell, row in zip(cells, rows, strict=True) for task in tasks if task.needed[row].any()
        ]
        sources.append((Source(own, tuple(dict.fromkeys(wanted))), cells))
    return sources


def _planned(
    tasks: Sequence[NetworkTask], images: EvaluatedImages, cells_of: Sequence[list[Cell]], world: World
) -> tuple[list[Work], int]:
    """The batches that this process evaluates, in order, and the number of all shards."""
    rows = {cell: number for number, cell in enumerate(images.cells)}
    needed_CN = np.logical_or.reduce([task.needed for task in tasks])
    size = images.batch_size
    starts = [start for start in range(0, len(images.ids), size) if needed_CN[:, start : start + size].any()]
    length = max(1, min(SHARD_IMAGES // size, -(-len(starts) // world.size)))  # batches of a shard
    shards = [starts[i : i + length] for i in range(0, len(starts), length)]
    work = []
    for number in range(world.rank, len(shards), world.size):
        for source, cells in enumerate(cells_of):
            chosen = [rows[cell] for cell in cells]
            for start in shards[number]:
                if needed_CN[chosen, start : start + size].any():
                    work.append(Work(number, source, start, min(start + size, len(images.ids))))
    return work, len(shards)


def _versions(
    tasks: Sequence[NetworkTask],
    images: EvaluatedImages,
    cells: Sequence[Cell],
    span: Span,
    batch: EvalBatch,
    prepared: Sequence[Preparation],
    device: torch.device,
) -> Iterator[tuple[Cell, list[NetworkTask], Tensor | None]]:
    """The versions of a batch that networks need: the cell, the networks that take its images, and these, uint8 (B, 3, H, W).

    Networks with the same preparation and parameter set take the same version. All versions that are made from the same pixels
    are made one corruption after the other: its severities share work, and only they are held in memory. The images are None
    where none is readable.
    """
    groups: dict[tuple[Preparation, str], dict[Cell, list[NetworkTask]]] = defaultdict(lambda: defaultdict(list))
    for cell in cells:
        row = images.cells.index(cell)
        for task in tasks:
            if task.needed[row, slice(*span)].any():
                groups[(task.preparation(cell), task.parameters)][cell].append(task)
    for (preparation, parameters), needing in groups.items():
        if not len(batch.ids):
            yield from ((cell, alike, None) for cell, alike in needing.items())
            continue
        pixels = batch.images[prepared.index(preparation)].to(device, non_blocking=True)
        generated = [cell for cell in needing if cell.severity > 0 and cell not in images.stored]
        corrupted = corrupt_all(pixels, generated, batch.ids, images.corruption_seed, parameters)
        for cell, alike in needing.items():
            if cell not in generated:
                yield cell, alike, pixels
            else:
                yield cell, alike, jpeg_roundtrip(next(corrupted)) if images.jpeg_roundtrip else next(corrupted)


def _evaluate(
    tasks: Sequence[NetworkTask], cell: Cell, pixels: Tensor | None, batch: EvalBatch, images: EvaluatedImages
) -> int:
    """Make the rows of a batch in one cell for networks that see the same pixels; return how many were made."""
    if pixels is None:
        return 0
    for normalisation in dict.fromkeys(task.predictor.normalisation for task in tasks):
        inputs = normalise(pixels, normalisation)
        features: dict[str, Features | None] = {}  # of these inputs, computed once for all networks with the same trunk
        for task in tasks:
            predictor = task.predictor
            if predictor.normalisation != normalisation:
                continue
            if predictor.trunk_id not in features:
                features[predictor.trunk_id] = features_of(predictor, inputs)
            logits_BC = predict(predictor, inputs, cell, batch.ids, features[predictor.trunk_id])
            _add_rows(task, cell, logits_BC, batch, images.clean.label_sets)
    return len(batch.ids) * len(tasks)


def _add_rows(
    task: NetworkTask,
    cell: Cell,
    logits_BC: Tensor,
    batch: EvalBatch,
    label_sets: Sequence[tuple[int, ...]] | None,
) -> None:
    """Add the rows of a batch. An image with several labels is scored by `metrics.scored_labels`."""
    logp_BC = logits_BC.log_softmax(1).cpu().numpy()
    where = f"{task.folder.name}: the network's output for {cell.corruption}-{cell.severity}"
    if not np.isfinite(logp_BC).any(1).all():
        raise UserError(f"{where} is not finite: its weights are broken")
    ids, labels = batch.ids.numpy(), batch.labels.numpy()
    if label_sets is not None:
        labels = scored_labels(logp_BC, [label_sets[i] for i in ids])
    atoms = sample_atoms(logp_BC, labels)._asdict()
    half = None
    if cell in task.logits:
        half = logits_BC.to(torch.float16).cpu().numpy()
        if not np.isfinite(half).all():
            raise UserError(f"{where} does not fit into float16 (at most 65504): leave out records.logits")
    task.rows[cell].append(Rows(pd.DataFrame({"id": ids, "label": labels, **atoms}), half))


def _write(tasks: Sequence[NetworkTask]) -> None:
    """Write the rows that were made since the last shard, for every network that has some, and forget them."""
    for task in tasks:
        if task.spans:
            rows = {cell: Rows.joined(own) for cell, own in task.rows.items()}
            write_shard(task.folder, task.facts, task.spans, rows, task.bad)
        task.spans.clear()
        task.rows.clear()
        task.bad.clear()
