"""Blurs. Source: hendrycks/robustness, make_imagenet_c.py.

Every function takes uint8 images (B, 3, H, W) and one severity's level and returns new uint8 images.
"""

from functools import lru_cache

import torch
from torch import Tensor

# A flat area is a tie for truncation: its blur is a whole level plus rounding of either sign (below 2e-4 in float32), and the
# reference mostly keeps it. This much is added before truncating; it moves 1 value in 2000 up by one level.
FLAT_AREA_MARGIN = 5e-4


def gaussian_blur(images: Tensor, sigma: float) -> Tensor:
    """Gaussian filter of standard deviation ``sigma`` pixels, cut at 4 sigma, edge pixels repeated outwards.

    Separable, so two matrix products: ``S_HH @ x_HW @ S_WW.T``. One image at a time: a product's rounding may depend on its
    shape, and the result must not depend on the batch.
    """
    height, width = images.shape[2:]
    S_HH, S_WW = (_gaussian_matrix(n, sigma, str(images.device)) for n in (height, width))
    blurred = torch.empty(images.shape, dtype=torch.uint8, device=images.device)
    for image_3HW, out_3HW in zip(images, blurred, strict=True):
        field_3HW = S_HH @ (image_3HW.contiguous().to(torch.float32) @ S_WW.T)
        out_3HW.copy_(field_3HW.add_(FLAT_AREA_MARGIN).clamp_(0, 255))
    return blurred


@lru_cache(maxsize=64)
def _gaussian_matrix(n: int, sigma: float, device: str) -> Tensor:
    """float32 (n, n): row i holds the weights of output i; weights beyond an edge fall on the edge pixel."""
    radius = int(4 * sigma + 0.5)
    offset = torch.arange(-radius, radius + 1)
    weight = torch.exp(-0.5 * (offset.to(torch.float64) / sigma) ** 2)
    weight /= weight.sum()
    source = (torch.arange(n)[:, None] + offset).clamp_(0, n - 1)
    S_nn = torch.zeros(n, n, dtype=torch.float64).scatter_add_(1, source, weight.expand(n, -1).contiguous())
    return S_nn.to(device, torch.float32)
