"""Evaluates a network on the images of a cell: exactly one row per image, whatever the batches, workers and processes."""

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch

from gch_bench import distributed
from gch_bench.data.images import BadImage, ImageSet
from gch_bench.data.loaders import Batch, checked, eval_loader, loader_workers
from gch_bench.data.stored import StoredImages
from gch_bench.data.transforms import eval_transform
from gch_bench.distributed import World
from gch_bench.errors import UserError
from gch_bench.evaluation.predict import Predictor, log_probabilities
from gch_bench.metrics import sample_atoms
from gch_bench.results.records import Cell


class CellImages(NamedTuple):
    """The images of every cell, and how they are loaded."""

    clean: ImageSet
    stored: Mapping[Cell, StoredImages]  # images of the corrupted cells that are read from disk; {} where they are generated
    size: int  # side in pixels of the images that the network sees
    resize: int | None  # resize of the clean images, see eval_transform
    stored_resize: int | None  # resize of the stored images, see eval_transform; None: they are used as they are
    interpolation: str
    batch_size: int
    workers: int | None  # loader processes, see loader_workers
    skip_bad: bool

    def loaders(self, world: World) -> Callable[[Cell], Iterable[Batch]]:
        """A function that gives the batches of a cell for this process.

        All cells that are not stored share one loader and its worker processes.
        """

        def loader(images: ImageSet, resize: int | None) -> Iterable[Batch]:
            transform = eval_transform(self.size, resize, self.interpolation)
            workers = loader_workers(self.workers, images, world.local_size)
            return eval_loader(images, transform, self.batch_size, workers, world.rank, world.size)

        clean = loader(self.clean, self.resize)
        return lambda cell: loader(self.stored[cell], self.stored_resize) if cell in self.stored else clean


def evaluate_cell(
    predictor: Predictor,
    cell: Cell,
    loader: Iterable[Batch],
    num_images: int,
    world: World,
    skip_bad: bool,
    skipped: list[BadImage],
    progress: Callable[[int], None] = lambda images: None,
) -> pd.DataFrame:
    """One row per readable image of the cell, from all processes, sorted by id. All processes must call it.

    Args:
        loader: the cell's batches on this process.
        num_images: the number of images of the cell over all processes.
        skipped: unreadable images are added to this list where `skip_bad` allows them.
        progress: called after every batch with the number of images that all processes together have probably done.

    Returns:
        A table with the columns records.COLUMNS.

    Raises:
        UserError: an unreadable image without `skip_bad`, or an output of the network that is not finite.
        RuntimeError: rows are missing or doubled, which is a bug; rows are never padded or cut to fit.
    """
    predictor.network.eval()
    parts = []
    with torch.inference_mode():
        for batch in checked(loader, skip_bad, skipped):
            images, ids = batch.images.to(world.device, non_blocking=True), batch.ids
            logp_BC = log_probabilities(predictor, cell, images, ids).numpy()
            if not np.isfinite(logp_BC).any(1).all():
                raise UserError(
                    f"the network's output for {cell.corruption}-{cell.severity} is not finite: its weights are broken"
                )
            atoms = sample_atoms(logp_BC, batch.labels.numpy())
            parts.append(pd.DataFrame({"id": ids.numpy(), "label": batch.labels.numpy(), **atoms._asdict()}))
            progress(len(ids) * world.size)  # the other processes are assumed to be as fast as this one
    rows = pd.concat([part for gathered in distributed.all_gather(parts, world) for part in gathered]).sort_values("id")
    bad = len({image for gathered in distributed.all_gather(skipped, world) for image in gathered})
    if len(rows) != num_images - bad or rows["id"].duplicated().any():
        raise RuntimeError(f"{num_images} images ({bad} skipped) must give as many rows, got {len(rows)} for {cell}")
    return rows.astype({"confidence": "float32", "nll": "float32", "brier": "float32", "entropy": "float32"})
