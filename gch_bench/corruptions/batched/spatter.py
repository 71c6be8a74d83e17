"""Spatter: water or mud on the lens. See corruptions/spatter.py.

Shapes: B images of H x W pixels. Images are reflected about the centres of their edge pixels unless something else is said.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from gch_bench.corruptions.batched.draws import normal
from gch_bench.corruptions.batched.edges import canny, distance_to_edges, equalize
from gch_bench.corruptions.batched.filters import gaussian_filter, truncate, truncate_blur
from gch_bench.corruptions.shared import Shared
from gch_bench.corruptions.spatter import DISTANCE_UNIT, EDGE, EMBOSS, LAYER, LEAST_COVER, MUD, REACH, WATER, WEAK_EDGE


def spatter(images: Shared[Tensor], level: tuple[float, ...], keys: Tensor) -> Tensor:
    """See ``compiled.spatter.spatter``."""
    mean, sd, sigma, threshold, strength, mud = level
    height, width = images.pixels.shape[2:]
    z_B1HW = normal(keys, LAYER, height * width).view(-1, 1, height, width)
    layer_BHW = gaussian_filter(z_B1HW, sigma)[:, 0].mul_(sd).add_(mean)
    if mud:
        return _mud(images.pixels, layer_BHW > threshold, strength)
    return _water(images.pixels, layer_BHW * (layer_BHW >= threshold), strength)


def _mud(images: Tensor, drops_BHW: Tensor, sigma: float) -> Tensor:
    """Blend brown into the images where the drops (bool), blurred by ``sigma`` pixels, cover enough of a pixel."""
    cover_B1HW = gaussian_filter(drops_BHW[:, None], sigma)
    cover_B1HW.mul_(cover_B1HW >= LEAST_COVER)
    clean = images.to(torch.float32)
    return truncate_blur((_color(MUD, images) - clean).mul_(cover_B1HW).add_(clean))


def _water(images: Tensor, layer_BHW: Tensor, strength: float) -> Tensor:
    """Add turquoise in proportion to the layer of water times an embossed relief of the distance to the drops' edges."""
    liquid = (layer_BHW * 255).to(torch.int16).to(torch.uint8)  # a layer above 1 wraps around, as in the reference
    amount = _relief(distance_to_edges(canny(liquid, WEAK_EDGE, EDGE))).mul_(liquid.to(torch.float32))
    most = amount.amax((1, 2), keepdim=True).clamp_(min=1)
    amount_B1HW = amount.mul_(torch.full_like(most, strength) / most)[:, None]
    return truncate((amount_B1HW * _color(WATER, images)).add_(images))


def _relief(distance_BHW: Tensor) -> Tensor:
    """The embossed relief of int16 distances: whole levels 0..255, float32 (B, H, W)."""
    height, width = distance_BHW.shape[1:]
    pixels = _box_sum(distance_BHW.to(torch.float32)).div_(9 * DISTANCE_UNIT).to(torch.int32)  # the mean distance
    padded = _pad(equalize(pixels, REACH + 1).to(torch.float32))
    embossed = torch.zeros(distance_BHW.shape, dtype=torch.float32, device=distance_BHW.device)
    for (row, column), weight in np.ndenumerate(EMBOSS):
        if weight:
            embossed.add_(padded[:, row : row + height, column : column + width], alpha=int(weight))
    return _box_sum(embossed.clamp_(0, 255)).add_(4).div_(9).floor_()  # rounded to whole levels, as OpenCV does


def _color(rgb: tuple[int, int, int], images: Tensor) -> Tensor:
    return torch.tensor(rgb, dtype=torch.float32, device=images.device).view(1, 3, 1, 1)


def _pad(field_BHW: Tensor) -> Tensor:
    """Pad by one pixel on each side. A single row or column has nothing to reflect and is repeated."""
    height, width = field_BHW.shape[1:]
    field = F.pad(field_BHW[:, None], (1, 1, 0, 0), mode="reflect" if width > 1 else "replicate")
    return F.pad(field, (0, 0, 1, 1), mode="reflect" if height > 1 else "replicate")[:, 0]


def _box_sum(field_BHW: Tensor) -> Tensor:
    """The sum over the 3 x 3 pixels around each pixel."""
    padded = _pad(field_BHW)
    rows = padded[:, :-2] + padded[:, 1:-1] + padded[:, 2:]
    return rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]
