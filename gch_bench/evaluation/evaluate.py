"""Run a network over the images of one cell: per-sample atoms, exactly one row per image, whatever the batches and ranks.

Shapes: B batch, C classes, T test-time passes.
"""

import contextlib
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from gch_bench import distributed
from gch_bench.corruptions import corrupt, jpeg_roundtrip
from gch_bench.data.images import BadImage
from gch_bench.data.loaders import Batch, checked
from gch_bench.data.transforms import normalise
from gch_bench.distributed import World
from gch_bench.errors import UserError
from gch_bench.metrics import sample_atoms
from gch_bench.noise.inject import image_seeds
from gch_bench.records import CELL_CLEAN, Cell
from gch_bench.rng import seed_of


class View(NamedTuple):
    """How images become log-probabilities: everything about an evaluation but the images."""

    model: nn.Module
    mean: Sequence[float]
    std: Sequence[float]
    parameters: str | None  # corruption parameter set; None: the images are stored, and come corrupted
    corruption_seed: int
    jpeg_roundtrip: bool  # of generated corrupted images
    precision: str  # fp32 | bf16
    noise_passes: int  # T noisy passes, or 0: noise off
    noise_seed: int


def log_probabilities(view: View, cell: Cell, images: Tensor, ids: Tensor) -> Tensor:
    """uint8 images (B, 3, H, W) with ids (B,) on the CPU -> log-probabilities (B, C), float64 on the CPU.

    With T noisy passes: the log of the mean softmax over passes whose noise depends on (seed, cell, image id, pass)."""
    if cell != CELL_CLEAN and view.parameters is not None:
        images = corrupt(images, cell.corruption, cell.severity, ids, view.corruption_seed, view.parameters)
        if view.jpeg_roundtrip:
            images = jpeg_roundtrip(images)
    inputs = normalise(images, view.mean, view.std)  # type: ignore[arg-type]
    passes = []
    for t in range(max(1, view.noise_passes)):
        seeds = [seed_of(view.noise_seed, "test noise", *cell, int(i), t) for i in ids] if view.noise_passes else []
        with image_seeds(view.model, seeds) if seeds else contextlib.nullcontext():
            passes.append(_forward(view, inputs).log_softmax(1))
    return (torch.stack(passes).logsumexp(0) - np.log(len(passes))).cpu()


def _forward(view: View, inputs: Tensor) -> Tensor:
    device = inputs.device.type
    with torch.autocast(device, torch.bfloat16, enabled=view.precision == "bf16"):
        logits = view.model(inputs)
    return logits.double()


def evaluate_cell(
    view: View,
    cell: Cell,
    loader: Iterable[Batch],
    num_images: int,
    world: World,
    skip_bad: bool,
    skipped: list[BadImage],
    progress: Callable[[int], None] = lambda images: None,
) -> pd.DataFrame:
    """One row per image of the cell (records.COLUMNS), gathered over the processes and sorted by id.

    Raises:
        UserError: an unreadable image without `skip_bad`; non-finite outputs of the network.
        RuntimeError: rows lost or doubled (a bug; never padded or cut to fit).
    """
    view.model.eval()
    parts = []
    with torch.inference_mode():
        for batch in checked(loader, skip_bad, skipped):
            images, ids = batch.images.to(world.device, non_blocking=True), batch.ids
            logp_BC = log_probabilities(view, cell, images, ids).numpy()
            if not np.isfinite(logp_BC).any(1).all():
                raise UserError(
                    f"the network's output for {cell.corruption}-{cell.severity} is not finite: its weights are broken"
                )
            atoms = sample_atoms(logp_BC, batch.labels.numpy())
            parts.append(pd.DataFrame({"id": ids.numpy(), "label": batch.labels.numpy(), **atoms._asdict()}))
            progress(len(ids) * world.size)  # the other processes keep pace
    rows = pd.concat([part for gathered in distributed.gather(parts, world) for part in gathered]).sort_values("id")
    bad = len({image for gathered in distributed.gather(skipped, world) for image in gathered})
    if len(rows) != num_images - bad or rows["id"].duplicated().any():
        raise RuntimeError(f"{num_images} images ({bad} skipped) must give as many rows, got {len(rows)} for {cell}")
    return rows.astype({"confidence": "float32", "nll": "float32", "brier": "float32", "entropy": "float32"})
