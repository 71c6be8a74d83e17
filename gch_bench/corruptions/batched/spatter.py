"""Spatter: water or mud on the lens. Source: hendrycks/robustness, make_imagenet_c.py.

The reference calls OpenCV's Canny, distanceTransform, equalizeHist, filter2D and blur. The functions here give the same
results, which the tests check against OpenCV.

Shapes: B images of H x W pixels. Images are reflected about the centres of their edge pixels unless something else is said.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from gch_bench.corruptions.batched.blur import gaussian_filter
from gch_bench.corruptions.batched.common import truncate

Spatter = tuple[float, float, float, float, float, int]
WATER = (175, 238, 238)  # RGB, pale turquoise
MUD = (63, 42, 20)  # RGB
EMBOSS = ((-2, -1, 0), (-1, 1, 1), (0, 1, 2))
DISTANCE_UNIT = 700  # int16 distances count 700 per pixel: 20 pixels plus the longest step fit into int16
# The steps of OpenCV's 5 x 5 chamfer distance: (cost in pixels, doublings, the steps of this cost as (rows, columns)). With so
# many doublings 1, 2, 4, ... steps at a time cover 20 pixels.
CHAMFER = (
    (1.0, 5, ((0, 1), (1, 0))),
    (1.4, 4, ((1, 1), (1, -1))),
    (2.1969, 4, ((1, 2), (2, 1), (1, -2), (2, -1))),
)


def spatter(images: Tensor, level: Spatter, generators: Sequence[Generator]) -> Tensor:
    """Drops of water or mud wherever a smooth random layer exceeds a threshold.

    Level: (``mean`` and ``sd`` of the layer's normal draws, ``sigma`` in pixels of the Gaussian blur that makes it smooth,
    ``threshold``, ``strength`` of water or sigma in pixels of mud's second blur, 0 for water or 1 for mud).
    """
    mean, sd, sigma, threshold, strength, kind = level
    layer_B1HW = torch.empty(images[:, :1].shape, dtype=torch.float32, device=images.device)
    for layer_1HW, generator in zip(layer_B1HW, generators, strict=True):
        layer_1HW.normal_(mean, sd, generator=generator)
    layer_BHW = gaussian_filter(layer_B1HW, sigma)[:, 0]
    if kind == 0:
        return water(images, layer_BHW * (layer_BHW >= threshold), strength)
    return mud(images, layer_BHW > threshold, strength)


def mud(images: Tensor, drops_BHW: Tensor, sigma: float) -> Tensor:
    """Blend brown into the images where the drops (bool), blurred by ``sigma`` pixels, are at least 0.8."""
    cover_B1HW = gaussian_filter(drops_BHW[:, None], sigma)
    cover_B1HW.mul_(cover_B1HW >= 0.8)
    return truncate(torch.lerp(images.to(torch.float32), _color(MUD, images), cover_B1HW))


def water(images: Tensor, layer_BHW: Tensor, strength: float) -> Tensor:
    """Add turquoise in proportion to the layer of water times an embossed relief of the distance to the drops' edges."""
    height, width = layer_BHW.shape[1:]
    liquid = (layer_BHW * 255).to(torch.int16).to(torch.uint8)  # a layer above 1 wraps around, as in the reference
    near = distance_to_edges(canny(liquid, 50, 150)).to(torch.float32)
    relief = equalize(_box_sum(near).div_(9 * DISTANCE_UNIT).to(torch.int32), levels=21).to(torch.float32)
    padded = _pad(relief)
    embossed = torch.zeros_like(relief)
    for row, weights in enumerate(EMBOSS):
        for column, weight in enumerate(weights):
            if weight:
                embossed.add_(padded[:, row : row + height, column : column + width], alpha=weight)
    relief = _box_sum(embossed.clamp_(0, 255)).add_(4).div_(9).floor_()  # rounded to whole levels, as OpenCV does
    amount = relief.mul_(liquid.to(torch.float32))
    most = amount.amax((1, 2), keepdim=True)
    amount_B1HW = amount.mul_(strength / most.clamp(min=1))[:, None]
    return truncate(images.to(torch.float32).addcmul_(amount_B1HW, _color(WATER, images)))


def _color(rgb: tuple[int, int, int], images: Tensor) -> Tensor:
    return torch.tensor(rgb, dtype=torch.float32, device=images.device).view(1, 3, 1, 1)


def _pad(field_BHW: Tensor) -> Tensor:
    """Pad by one pixel on each side, reflected about the centres of the edge pixels."""
    mode = "reflect" if min(field_BHW.shape[1:]) > 1 else "replicate"  # a single row or column has nothing to reflect
    return F.pad(field_BHW[:, None], (1, 1, 1, 1), mode=mode)[:, 0]


def _box_sum(field_BHW: Tensor) -> Tensor:
    """The sum over the 3 x 3 pixels around each pixel."""
    padded = _pad(field_BHW)
    rows = padded[:, :-2] + padded[:, 1:-1] + padded[:, 2:]
    return rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]


def equalize(values_BHW: Tensor, levels: int) -> Tensor:
    """Equalise the histogram of each image of int32 values 0..levels - 1 to int16 values 0..255, as cv2.equalizeHist does."""
    batch = len(values_BHW)
    row = torch.arange(batch, device=values_BHW.device, dtype=torch.int32).mul_(levels)
    cell = (values_BHW + row[:, None, None]).flatten()
    count = torch.bincount(cell, minlength=batch * levels).view(batch, levels)
    total = values_BHW[0].numel()
    below = count.cumsum(1)
    first = count.gather(1, (count > 0).int().argmax(1, keepdim=True))  # how many pixels have the lowest value
    scale = 255.0 / (total - first).clamp_(min=1).to(torch.float32)
    table = ((below - first).clamp_(min=0) * scale).round_()
    flat = torch.arange(levels, device=values_BHW.device)
    table = torch.where(first == total, flat, table).to(torch.int16)  # an image with one value only stays as it is
    return table.flatten().index_select(0, cell).view(values_BHW.shape)


def canny(grey: Tensor, low: int, high: int) -> Tensor:
    """The edges, bool (B, H, W), of uint8 images (B, H, W), as cv2.Canny finds them with 3 x 3 Sobel filters and the L1 norm.

    A pixel is an edge if its gradient is the largest across the edge, and either exceeds ``high``, or exceeds ``low`` where
    edge pixels link it to such a pixel. Source: Canny, IEEE PAMI 1986.
    """
    batch, height, width = grey.shape
    p = F.pad(grey.to(torch.float32)[:, None], (1, 1, 1, 1), mode="replicate")[:, 0].to(torch.int16)
    across, down = p[..., 2:] - p[..., :-2], p[:, 2:] - p[:, :-2]
    gx = F.pad(across[:, :-2] + 2 * across[:, 1:-1] + across[:, 2:], (1, 1, 1, 1)).flatten()
    gy = F.pad(down[..., :-2] + 2 * down[..., 1:-1] + down[..., 2:], (1, 1, 1, 1)).flatten()
    magnitude = gx.abs() + gy.abs()
    # As few pixels have a large gradient, only these are looked at: (K,) of them, as indices of the flat padded maps.
    place = (magnitude > low).nonzero().flatten()
    x, y = (gradient.index_select(0, place).to(torch.int32) for gradient in (gx, gy))
    # A gradient is compared with those of two neighbours across the edge, one step before and one after, in one of four
    # directions. 13573 / 2^15 is tan(22.5 degrees) in OpenCV's fixed point.
    row = width + 2
    tangent = x.abs() * 13573
    flat = y.abs() << 15 < tangent
    steep = y.abs() << 15 > tangent + (x.abs() << 16)
    diagonal = ~(flat | steep)
    step = diagonal * torch.where((x < 0) == (y < 0), row + 1, row - 1) + steep * row + flat
    here, before, after = (magnitude.index_select(0, at) for at in (place, place - step, place + step))
    peak = (here > before) & ((here > after) | ((here == after) & ~diagonal))
    edges = torch.zeros(len(magnitude), dtype=torch.bool, device=grey.device)
    edges[place[peak & (here > high)]] = True
    weak = place[peak & (here <= high)]
    around = torch.tensor([-row - 1, -row, -row + 1, -1, 1, row - 1, row, row + 1], device=grey.device)
    while True:
        linked = edges.index_select(0, (weak[:, None] + around).flatten()).view(-1, 8).any(1)
        if not linked.any():
            return edges.view(batch, height + 2, row)[:, 1:-1, 1:-1]
        edges[weak[linked]] = True
        weak = weak[~linked]


def distance_to_edges(edges: Tensor) -> Tensor:
    """The chamfer distance to the nearest edge, as cv2.distanceTransform with a 5 x 5 mask computes it.

    Returns int16 (B, H, W): DISTANCE_UNIT times the distance in pixels, which is cut off at 20 pixels.

    A shortest path may take its steps in any order. Therefore all steps of one direction are taken together, 1, 2, 4, ... of
    them at a time, in 204 operations on whole images; the usual algorithm is a sequential scan. Source: Borgefors, CVGIP 1986.
    """
    distance = edges.to(torch.int16).sub_(1).mul_(-20 * DISTANCE_UNIT)
    farther = torch.empty_like(distance)
    height, width = edges.shape[1:]
    for cost, doublings, steps in CHAMFER:
        for rows, columns in steps:
            for count in (1 << k for k in range(doublings)):
                y, x = rows * count, columns * count
                if y < height and abs(x) < width:
                    here, above = (field[:, : height - y, max(0, -x) : width - max(0, x)] for field in (distance, farther))
                    there, below = (field[:, y:, max(0, x) : width - max(0, -x)] for field in (distance, farther))
                    torch.add(distance, round(cost * count * DISTANCE_UNIT), out=farther)
                    torch.minimum(here, below, out=here)
                    torch.minimum(there, above, out=there)
    return distance
