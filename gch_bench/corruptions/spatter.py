"""Spatter: water or mud on the lens. Source: hendrycks/robustness, make_imagenet_c.py, which calls OpenCV's Canny,
distanceTransform, equalizeHist, filter2D and blur; the functions here equal them and are compared with them in the tests.

Shapes: B images of H x W pixels; a border is reflected about the edge pixels unless said otherwise.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from gch_bench.corruptions.blur import gaussian_filter
from gch_bench.corruptions.pixel import truncate

Spatter = tuple[float, float, float, float, float, int]
WATER = (175, 238, 238)  # RGB, pale turquoise
MUD = (63, 42, 20)  # RGB
EMBOSS = ((-2, -1, 0), (-1, 1, 1), (0, 1, 2))
DISTANCE_UNIT = 700  # int16 steps per pixel: 20 pixels and a long step fit
# OpenCV's 5 x 5 chamfer distance: cost of each step, and the step's (rows, columns) with the counts that 20 pixels need
CHAMFER = (
    (1.0, 5, ((0, 1), (1, 0))),
    (1.4, 4, ((1, 1), (1, -1))),
    (2.1969, 4, ((1, 2), (2, 1), (1, -2), (2, -1))),
)


def spatter(images: Tensor, level: Spatter, generators: Sequence[Generator]) -> Tensor:
    """Drops where a smooth random layer exceeds a threshold.

    Level: layer N(``mean``, ``sd``), Gaussian blur ``sigma``, ``threshold``, ``strength`` of water or second sigma of mud, and
    0 for water or 1 for mud.
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
    """Brown where the blurred ``drops`` (bool) are at least 0.8."""
    cover_B1HW = gaussian_filter(drops_BHW[:, None], sigma)
    cover_B1HW.mul_(cover_B1HW >= 0.8)
    return truncate(torch.lerp(images.to(torch.float32), _color(MUD, images), cover_B1HW))


def water(images: Tensor, layer_BHW: Tensor, strength: float) -> Tensor:
    """Turquoise added in proportion to the ``layer`` times an embossed relief of the distance to the drops' edges."""
    height, width = layer_BHW.shape[1:]
    liquid = (layer_BHW * 255).to(torch.int16).to(torch.uint8)  # above 1 it wraps around, as in the reference
    near = distance_to_edges(canny(liquid, 50, 150)).to(torch.float32)
    relief = equalize(_box_sum(near).div_(9 * DISTANCE_UNIT).to(torch.int32), levels=21).to(torch.float32)
    padded = _pad(relief)
    embossed = torch.zeros_like(relief)
    for row, weights in enumerate(EMBOSS):
        for column, weight in enumerate(weights):
            if weight:
                embossed.add_(padded[:, row : row + height, column : column + width], alpha=weight)
    relief = _box_sum(embossed.clamp_(0, 255)).add_(4).div_(9).floor_()  # OpenCV rounds a uint8 mean, as here
    amount = relief.mul_(liquid.to(torch.float32))
    most = amount.amax((1, 2), keepdim=True)
    amount_B1HW = amount.mul_(strength / most.clamp(min=1))[:, None]
    return truncate(images.to(torch.float32).addcmul_(amount_B1HW, _color(WATER, images)))


def _color(rgb: tuple[int, int, int], images: Tensor) -> Tensor:
    return torch.tensor(rgb, dtype=torch.float32, device=images.device).view(1, 3, 1, 1)


def _pad(field_BHW: Tensor) -> Tensor:
    """One pixel more on each side, reflected about the edge pixels."""
    mode = "reflect" if min(field_BHW.shape[1:]) > 1 else "replicate"  # one row or column has nothing to reflect
    return F.pad(field_BHW[:, None], (1, 1, 1, 1), mode=mode)[:, 0]


def _box_sum(field_BHW: Tensor) -> Tensor:
    """Sum over 3 x 3 pixels."""
    padded = _pad(field_BHW)
    rows = padded[:, :-2] + padded[:, 1:-1] + padded[:, 2:]
    return rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]


def equalize(values_BHW: Tensor, levels: int) -> Tensor:
    """int16: histogram equalisation to 0..255 of each image of int32 values 0..levels - 1, as cv2.equalizeHist."""
    batch = len(values_BHW)
    row = torch.arange(batch, device=values_BHW.device, dtype=torch.int32).mul_(levels)
    cell = (values_BHW + row[:, None, None]).flatten()
    count = torch.bincount(cell, minlength=batch * levels).view(batch, levels)
    total = values_BHW[0].numel()
    below = count.cumsum(1)
    first = count.gather(1, (count > 0).int().argmax(1, keepdim=True))  # how many hold the lowest value
    scale = 255.0 / (total - first).clamp_(min=1).to(torch.float32)
    table = ((below - first).clamp_(min=0) * scale).round_()
    flat = torch.arange(levels, device=values_BHW.device)
    table = torch.where(first == total, flat, table).to(torch.int16)  # an image of one value stays
    return table.flatten().index_select(0, cell).view(values_BHW.shape)


def canny(grey: Tensor, low: int, high: int) -> Tensor:
    """bool (B, H, W) edges of a uint8 (B, H, W) image, as cv2.Canny with 3 x 3 Sobel and the L1 norm of the gradient.

    Source: Canny, IEEE PAMI 1986: thinned to the maxima across the edge; above ``high``, or above ``low`` and linked to such.
    """
    batch, height, width = grey.shape
    p = F.pad(grey.to(torch.float32)[:, None], (1, 1, 1, 1), mode="replicate")[:, 0].to(torch.int16)
    across, down = p[..., 2:] - p[..., :-2], p[:, 2:] - p[:, :-2]
    gx = F.pad(across[:, :-2] + 2 * across[:, 1:-1] + across[:, 2:], (1, 1, 1, 1)).flatten()
    gy = F.pad(down[..., :-2] + 2 * down[..., 1:-1] + down[..., 2:], (1, 1, 1, 1)).flatten()
    magnitude = gx.abs() + gy.abs()
    # Only few pixels have a large gradient: (K,) of them, as places in the flat padded maps.
    place = (magnitude > low).nonzero().flatten()
    x, y = (gradient.index_select(0, place).to(torch.int32) for gradient in (gx, gy))
    # Across the edge lie two neighbours, one step before and after, in one of four directions. In OpenCV's fixed point
    # 13573 / 2^15 is tan(22.5 degrees).
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
    """int16 (B, H, W): chamfer distance to the nearest edge in DISTANCE_UNITs, at most 20 pixels, as cv2.distanceTransform with
    a 5 x 5 mask.

    Source: Borgefors, CVGIP 1986. A shortest path may take its steps in any order, so the steps of one direction are taken
    together, and 1, 2, 4, ... of them at a time: 204 whole-image operations, where the usual algorithm is a sequential scan.
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
