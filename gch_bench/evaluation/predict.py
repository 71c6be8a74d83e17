"""Run a network over the images of one cell: per-sample atoms, exactly one row per image, whatever the batches and ranks.

Shapes: B batch, C classes, T test-time passes.
"""

import contextlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from gch_bench.corruptions import corrupt, jpeg_roundtrip
from gch_bench.data.transforms import Normalisation, normalise
from gch_bench.noise.hooks import image_seeds
from gch_bench.results.records import CELL_CLEAN, Cell
from gch_bench.rng import seed_of


class Predictor(NamedTuple):
    """How images become log-probabilities: everything about an evaluation but the images."""

    network: nn.Module
    normalisation: Normalisation
    parameters: str | None  # corruption parameter set; None: the images are stored, and come corrupted
    corruption_seed: int
    jpeg_roundtrip: bool  # of generated corrupted images
    precision: str  # fp32 | bf16
    noise_passes: int  # T noisy passes, or 0: noise off
    noise_seed: int


# The settings by which torch may compute float32 operations in TF32 or bfloat16: backend and operation.
FP32_PRECISIONS = [(backend, operation) for backend in ("cuda", "mkldnn") for operation in ("matmul", "conv", "rnn")]


@contextlib.contextmanager
def exact_fp32() -> Iterator[None]:
    """Within the context fp32 means fp32: no TF32 or bfloat16 inside float32 products and convolutions; afterwards as before.

    torch has two sets of switches for this, and complains where they contradict each other: both are set, and put back.
    """
    cudnn = _legacy_cudnn()
    matmul = torch.get_float32_matmul_precision()
    precisions = {each: torch._C._get_fp32_precision_getter(*each) for each in FP32_PRECISIONS}
    try:
        torch.backends.cudnn.allow_tf32 = False
        torch.set_float32_matmul_precision("highest")
        for each in FP32_PRECISIONS:
            torch._C._set_fp32_precision_setter(*each, "ieee")
        yield
    finally:
        torch.set_float32_matmul_precision(matmul)
        if cudnn is not None:
            torch.backends.cudnn.allow_tf32 = cudnn
        for each, precision in precisions.items():
            torch._C._set_fp32_precision_setter(*each, precision)


def _legacy_cudnn() -> bool | None:
    """The older switch for convolutions; None where someone has set the newer ones to something it cannot express."""
    try:
        return bool(torch.backends.cudnn.allow_tf32)
    except RuntimeError:
        return None


@exact_fp32()
def log_probabilities(predictor: Predictor, cell: Cell, images: Tensor, ids: Tensor) -> Tensor:
    """uint8 images (B, 3, H, W) with ids (B,) on the CPU -> log-probabilities (B, C), float64 on the CPU.

    With T noisy passes: the log of the mean softmax over passes whose noise depends on (seed, cell, image id, pass)."""
    if cell != CELL_CLEAN and predictor.parameters is not None:
        images = corrupt(images, cell.corruption, cell.severity, ids, predictor.corruption_seed, predictor.parameters)
        if predictor.jpeg_roundtrip:
            images = jpeg_roundtrip(images)
    inputs = normalise(images, predictor.normalisation)
    passes = []
    for t in range(max(1, predictor.noise_passes)):
        seeds = [seed_of(predictor.noise_seed, "test noise", *cell, int(i), t) for i in ids] if predictor.noise_passes else []
        with image_seeds(predictor.network, seeds) if seeds else contextlib.nullcontext():
            passes.append(_forward(predictor, inputs).log_softmax(1))
    return (torch.stack(passes).logsumexp(0) - np.log(len(passes))).cpu()


def _forward(predictor: Predictor, inputs: Tensor) -> Tensor:
    device = inputs.device.type
    with torch.autocast(device, torch.bfloat16, enabled=predictor.precision == "bf16"):
        logits = predictor.network(inputs)
    return logits.double()
