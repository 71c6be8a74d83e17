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
from gch_bench.model.trunk import Features, Trunk, run_tail, trunk_outputs
from gch_bench.noise.draws import image_keys
from gch_bench.noise.hooks import keyed_noise
from gch_bench.results.records import Cell


class Predictor(NamedTuple):
    """How normalised images become logits: everything that a prediction depends on except the images."""

    network: nn.Module
    normalisation: Normalisation
    precision: str  # fp32 | bf16
    noise_passes: int = 0  # T, the number of noisy passes; 0: one pass without noise
    noise_seed: int = 0
    noisy_rows: int = 256  # most rows of a forward pass of the tail in which several noisy passes go together
    classes: tuple[int, ...] | None = None  # which of the network's outputs are scored, in this order; None: all
    # The part of the network that is computed once for all noisy passes, and for all networks with the same trunk_id.
    trunk: Trunk | None = None
    trunk_id: str = ""


def laid_out(network: nn.Module, channels_last: bool | None, device: torch.device) -> nn.Module:
    """The network, with its weights in the order in which its convolutions are to compute; the inputs need not be in it.

    Args:
        channels_last: None: on a CPU, where it is quicker (results/bench_evaluation.md); elsewhere the order stays as it is.
    """
    if channels_last is None and device.type != "cpu":
        return network
    return network.to(memory_format=torch.contiguous_format if channels_last is False else torch.channels_last)


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
def features_of(predictor: Predictor, inputs: Tensor) -> Features | None:
    """What the predictor's trunk gives for normalised images; None if the predictor has no trunk."""
    if predictor.trunk is None:
        return None
    with _autocast(predictor, inputs):
        return trunk_outputs(predictor.network, predictor.trunk, inputs)


@exact_fp32()
def predict(predictor: Predictor, inputs: Tensor, cell: Cell, ids: Tensor, features: Features | None = None) -> Tensor:
    """The logits (B, C), float64 on the device of the inputs, that the predictor gives for images of a cell.

    With T noisy passes they are the log of the mean softmax over the passes. The noise of a pass on an image depends on (seed,
    cell, image id, number of the pass) alone.

    Args:
        inputs: float32 (B, 3, H, W), normalised, on the network's device.
        ids: int64 (B,) on the CPU, the ids of the images, which name the random draws.
        features: what `features_of` gives for these inputs; None: the whole network is computed.
    """
    if not predictor.noise_passes:
        return _forward(predictor, inputs, features)
    together = 1 if features is None else max(1, predictor.noisy_rows // len(ids))
    passes: list[Tensor] = []
    for first in range(0, predictor.noise_passes, together):
        numbers = range(first, min(first + together, predictor.noise_passes))
        keys = [image_keys(ids, predictor.noise_seed, "test noise", *cell, t) for t in numbers]
        with keyed_noise(predictor.network, torch.cat(keys)):
            logits = _forward(predictor, inputs, features, repeats=len(numbers))
        passes += logits.log_softmax(1).split(len(ids))
    return torch.stack(passes).logsumexp(0) - np.log(len(passes))


def _forward(predictor: Predictor, inputs: Tensor, features: Features | None, repeats: int = 1) -> Tensor:
    with _autocast(predictor, inputs):
        if features is None or predictor.trunk is None:
            logits = predictor.network(inputs)
        else:
            logits = run_tail(predictor.network, predictor.trunk, features, inputs, repeats)
    if predictor.classes is not None:
        logits = logits[:, predictor.classes]
    return logits.double()


def _autocast(predictor: Predictor, inputs: Tensor) -> torch.autocast:
    return torch.autocast(inputs.device.type, torch.bfloat16, enabled=predictor.precision == "bf16")
