"""OpenCV's Canny edges, chamfer distance and histogram equalisation, in whole numbers and for a batch of images.

Shapes: B images of H x W pixels; K pixels of all images together that something is known of, as places in flat padded fields.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from gch_bench.corruptions.spatter import DIAGONAL, DISTANCE_UNIT, KNIGHT, REACH, STRAIGHT, TANGENT

# The steps of the chamfer distance: (cost, doublings, the steps of this cost as (rows, columns)). With so many doublings
# 1, 2, 4, ... steps at a time cover REACH.
CHAMFER = (
    (STRAIGHT, 5, ((0, 1), (1, 0))),
    (DIAGONAL, 4, ((1, 1), (1, -1))),
    (KNIGHT, 4, ((1, 2), (2, 1), (1, -2), (2, -1))),
)
LINKS = 8  # so many rounds link weak edges before the host asks whether any changed; spatter's layers need 6 at most


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
    # As few pixels have a large gradient, only these are looked at: (K,) of them.
    place = (magnitude > low).nonzero().flatten()
    x, y = (gradient.index_select(0, place).to(torch.int32) for gradient in (gx, gy))
    # A gradient is compared with those of two neighbours across the edge, one step before and one after, in one of four
    # directions.
    row = width + 2
    tangent = x.abs() * TANGENT
    flat = y.abs() << 15 < tangent
    steep = y.abs() << 15 > tangent + (x.abs() << 16)
    diagonal = ~(flat | steep)
    step = diagonal * torch.where((x < 0) == (y < 0), row + 1, row - 1) + steep * row + flat
    here, before, after = (magnitude.index_select(0, at) for at in (place, place - step, place + step))
    peak = (here > before) & ((here > after) | ((here == after) & ~diagonal))
    edges = torch.zeros(len(magnitude), dtype=torch.bool, device=grey.device)
    edges[place] = peak & (here > high)
    _link(edges, place[peak & (here <= high)], row)
    return edges.view(batch, height + 2, row)[:, 1:-1, 1:-1]


def _link(edges: Tensor, weak_K: Tensor, row: int) -> None:
    """Make edges of the weak pixels that a chain of weak pixels links to an edge; ``row`` is the length of a padded row.

    A round adds the neighbours of the edges, so the number of rounds is the length of the longest chain in the batch, which no
    bound is known for: the host must ask whether the last round changed anything.
    """
    around = torch.tensor([-row - 1, -row, -row + 1, -1, 1, row - 1, row, row + 1], device=edges.device)
    around_K8 = weak_K[:, None] + around
    while True:
        for _ in range(LINKS):
            linked = edges[around_K8].any(1)
            changed = linked != edges.index_select(0, weak_K)
            edges[weak_K] = linked  # who is linked stays so, because edges remain edges
        if not changed.any():
            return


def distance_to_edges(edges: Tensor) -> Tensor:
    """The chamfer distance to the nearest edge, as cv2.distanceTransform with a 5 x 5 mask computes it.

    A shortest path may take its steps in any order. Therefore all steps of one direction are taken together, 1, 2, 4, ... of
    them at a time, in 204 operations on whole images; the usual algorithm is a sequential scan. Source: Borgefors, CVGIP 1986.

    Returns:
        int16 (B, H, W): DISTANCE_UNIT times the distance in pixels, which is cut off at REACH.
    """
    distance = edges.to(torch.int16).sub_(1).mul_(-REACH * DISTANCE_UNIT)
    farther = torch.empty_like(distance)
    height, width = edges.shape[1:]
    for cost, doublings, steps in CHAMFER:
        for rows, columns in steps:
            for count in (1 << k for k in range(doublings)):
                y, x = rows * count, columns * count
                if y < height and abs(x) < width:
                    here, above = (field[:, : height - y, max(0, -x) : width - max(0, x)] for field in (distance, farther))
                    there, below = (field[:, y:, max(0, x) : width - max(0, -x)] for field in (distance, farther))
                    torch.add(distance, cost * count, out=farther)
                    torch.minimum(here, below, out=here)
                    torch.minimum(there, above, out=there)
    return distance


def equalize(values_BHW: Tensor, levels: int) -> Tensor:
    """Equalise the histogram of each image of int32 values 0..levels - 1 to int16 values 0..255, as cv2.equalizeHist does."""
    batch = len(values_BHW)
    row = torch.arange(batch, device=values_BHW.device, dtype=torch.int32).mul_(levels)
    cell = (values_BHW + row[:, None, None]).flatten()
    count = torch.bincount(cell, minlength=batch * levels).view(batch, levels)
    total = values_BHW[0].numel()
    below = count.cumsum(1)
    first = count.gather(1, (count > 0).int().argmax(1, keepdim=True))  # how many pixels have the lowest value
    rest = (total - first).clamp_(min=1).to(torch.float32)
    table = ((below - first).clamp_(min=0) * (torch.full_like(rest, 255) / rest)).round_()
    flat = torch.arange(levels, device=values_BHW.device)
    table = torch.where(first == total, flat, table).to(torch.int16)  # an image with one value only stays as it is
    return table.flatten().index_select(0, cell).view(values_BHW.shape)
