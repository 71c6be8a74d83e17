"""From a batch of normalised images to logits: the network with or without noise, and the classes that are scored.

Legend: B images of a batch, C scored classes, H W pixels, T noisy forward passes at test time.
"""

import contextlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from gch_bench.data.transforms import Normalisation
from gch_bench.noise.hooks import image_seeds
from gch_bench.results.records import Cell
from gch_bench.rng import seed_of


class Predictor(NamedTuple):
    """How normalised images become logits: everything that a prediction depends on except the images."""

    network: nn.Module
    normalisation: Normalisation
    precision: str  # fp32 | bf16
    noise_passes: int = 0  # T, the number of noisy passes; 0: one pass without noise
    noise_seed: int = 0
    classes: tuple[int, ...] | None = None  # which of the network's outputs are scored, in this order; None: all


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
def predict(predictor: Predictor, inputs: Tensor, cell: Cell, ids: Tensor) -> Tensor:
    """The logits (B, C), float64 on the device of the inputs, that the predictor gives for images of a cell.

    With T noisy passes they are the log of the mean softmax over the passes. The noise of a pass on an image depends on (seed,
    cell, image id, number of the pass) alone.

    Args:
        inputs: float32 (B, 3, H, W), normalised, on the network's device.
        ids: int64 (B,) on the CPU, the ids of the images, which name the random draws.
    """
    if not predictor.noise_passes:
        return _forward(predictor, inputs)
    passes = []
    for t in range(predictor.noise_passes):
        with image_seeds(predictor.network, [seed_of(predictor.noise_seed, "test noise", *cell, int(i), t) for i in ids]):
            passes.append(_forward(predictor, inputs).log_softmax(1))
    return torch.stack(passes).logsumexp(0) - np.log(len(passes))


def _forward(predictor: Predictor, inputs: Tensor) -> Tensor:
    with torch.autocast(inputs.device.type, torch.bfloat16, enabled=predictor.precision == "bf16"):
        logits = predictor.network(inputs)
    if predictor.classes is not None:
        logits = logits[:, predictor.classes]
    return logits.double()
