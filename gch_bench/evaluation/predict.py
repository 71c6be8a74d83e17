"""From a batch of uint8 images to log-probabilities: corruption, normalisation, and the network with or without noise.

Legend: B images of a batch, C classes, H W pixels, T noisy forward passes at test time.
"""

import contextlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from gch_bench.corruptions import corrupt, jpeg_roundtrip
from gch_bench.data.transforms import Normalisation, normalise
from gch_bench.noise.draws import image_keys
from gch_bench.noise.hooks import keyed_noise
from gch_bench.results.records import CELL_CLEAN, Cell


class Predictor(NamedTuple):
    """How images become log-probabilities: everything that an evaluation depends on except the images."""

    network: nn.Module
    normalisation: Normalisation
    parameters: str | None  # name of the corruption parameter set; None: stored images, which are corrupted already
    corruption_seed: int
    jpeg_roundtrip: bool  # whether generated corrupted images are encoded and decoded as JPEG
    precision: str  # fp32 | bf16
    noise_passes: int  # T, the number of noisy passes; 0: one pass without noise
    noise_seed: int


# The (backend, operation) pairs of torch's settings that allow TF32 or bfloat16 inside float32 operations.
FP32_PRECISIONS = [(backend, operation) for backend in ("cuda", "mkldnn") for operation in ("matmul", "conv", "rnn")]


@contextlib.contextmanager
def exact_fp32() -> Iterator[None]:
    """Within the context float32 products and convolutions use no TF32 or bfloat16. Afterwards the settings are as before.

    torch has an older and a newer set of switches for this, and raises an error where they contradict each other. Therefore
    both are set here, and both are restored.
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
    """The state of the older switch for convolutions; None where the newer switches have a state that it cannot express."""
    try:
        return bool(torch.backends.cudnn.allow_tf32)
    except RuntimeError:
        return None


@exact_fp32()
def log_probabilities(predictor: Predictor, cell: Cell, images: Tensor, ids: Tensor) -> Tensor:
    """The log-probabilities (B, C) in nats, float64 on the CPU, that the predictor gives for images of a cell.

    With T noisy passes they are the log of the mean softmax over the passes. The noise of a pass on an image depends on (seed,
    cell, image id, number of the pass) alone.

    Args:
        images: uint8 (B, 3, H, W) on the network's device, corrupted already only where the cell's images are stored ones.
        ids: int64 (B,) on the CPU, the ids of the images, which name their random draws.
    """
    if cell != CELL_CLEAN and predictor.parameters is not None:
        images = corrupt(images, cell.corruption, cell.severity, ids, predictor.corruption_seed, predictor.parameters)
        if predictor.jpeg_roundtrip:
            images = jpeg_roundtrip(images)
    inputs = normalise(images, predictor.normalisation)
    passes = []
    for t in range(max(1, predictor.noise_passes)):
        keys_B = image_keys(ids, predictor.noise_seed, "test noise", *cell, t)
        with keyed_noise(predictor.network, keys_B) if predictor.noise_passes else contextlib.nullcontext():
            passes.append(_forward(predictor, inputs).log_softmax(1))
    return (torch.stack(passes).logsumexp(0) - np.log(len(passes))).cpu()


def _forward(predictor: Predictor, inputs: Tensor) -> Tensor:
    device = inputs.device.type
    with torch.autocast(device, torch.bfloat16, enabled=predictor.precision == "bf16"):
        logits = predictor.network(inputs)
    return logits.double()
