"""What several batched corruptions use: truncation to grey levels, and the dtype of matrix products."""

import torch
from torch import Tensor

from gch_bench.corruptions.filters import TIE_MARGIN


def truncate(field: Tensor) -> Tensor:
    """Clip a field in grey levels to 0..255 and drop the fractions: uint8 of the same shape. The field is overwritten."""
    return field.clamp_(0, 255).to(torch.int16).to(torch.uint8)  # direct conversion to uint8 takes torch 4 times as long


def truncate_blur(field: Tensor, margin: float = TIE_MARGIN) -> Tensor:
    """Turn a blurred field in grey levels into uint8, with TIE_MARGIN added before truncation. The field is overwritten."""
    return truncate(field.add_(margin))


def product_dtype(device: torch.device) -> torch.dtype:
    """The dtype for matrix products whose rounding must not depend on the user's settings or on the batch.

    It is float64 on a GPU, which may choose a matrix-product kernel by the size of the batch, and wherever the user's settings
    may make float32 products coarser (TF32, bfloat16). Otherwise it is float32.
    """
    exact = device.type == "cpu" and torch.get_float32_matmul_precision() == "highest"
    return torch.float32 if exact else torch.float64
