"""Truncation to grey levels, which the batched corruptions end with."""

import torch
from torch import Tensor

from gch_bench.corruptions.filters import TIE_MARGIN


def truncate(field: Tensor) -> Tensor:
    """Clip a field in grey levels to 0..255 and drop the fractions: uint8 of the same shape. The field is overwritten."""
    return field.clamp_(0, 255).to(torch.int16).to(torch.uint8)  # direct conversion to uint8 takes torch 4 times as long


def truncate_blur(field: Tensor, margin: float = TIE_MARGIN) -> Tensor:
    """Turn a blurred field in grey levels into uint8, with TIE_MARGIN added before truncation. The field is overwritten."""
    return truncate(field.add_(margin))
