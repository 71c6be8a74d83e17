"""Elastic transform. To be converted."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from gch_bench.corruptions.batched.blur import gaussian_filter
from gch_bench.corruptions.batched.common import truncate_blur


def elastic_transform(images: Tensor, level: tuple[float, float, float], generators: Sequence[Generator]) -> Tensor:
    """A random affine map, then a smooth random displacement; level in pixels: (``alpha``, ``sigma``, ``affine``).

    Three points around the middle move by U(-affine, affine) in each direction, which determines the affine map. Then each
    pixel moves in each direction by alpha times a field of U(-1, 1) draws that is blurred with ``sigma``. Both steps sample
    bilinearly; the first reflects the image about the centres of its edge pixels, the second about their outer sides.
    """
    alpha, sigma, affine = level
    height, width = images.shape[2:]
    device = images.device
    y_HW, x_HW = torch.meshgrid(*(torch.arange(n, dtype=torch.float32, device=device) for n in (height, width)), indexing="ij")
    shifts_B32 = torch.empty(len(images), 3, 2, dtype=torch.float64, device=device)
    moves_B2HW = torch.empty(len(images), 2, height, width, dtype=torch.float32, device=device)
    for shift_32, move_2HW, generator in zip(shifts_B32, moves_B2HW, generators, strict=True):
        shift_32.uniform_(-affine, affine, generator=generator)
        if alpha > 0:
            move_2HW.uniform_(-alpha, alpha, generator=generator)
    maps = np.stack([_affine_from_points(height, width, shift_32) for shift_32 in shifts_B32.cpu().numpy()])
    (xx, yx), (xy, yy), (x0, y0) = torch.from_numpy(maps).to(device, torch.float32)[..., None, None].movedim(0, 2)
    field = images.to(torch.float32)
    field = _sample(field, x_HW * xx + y_HW * xy + x0, x_HW * yx + y_HW * yy + y0, about_centres=True)
    if alpha > 0:
        dx_BHW, dy_BHW = gaussian_filter(moves_B2HW, sigma, "symmetric", cut=3.0).unbind(1)
        field = _sample(field, dx_BHW + x_HW, dy_BHW + y_HW, about_centres=False)
    return truncate_blur(field)


def _affine_from_points(height: int, width: int, shift: np.ndarray) -> np.ndarray:
    """The matrix A (3, 2) for which (x, y, 1) A is the place in the old image that pixel (x, y) of the new image shows.

    The map is determined by three points, which lie from the middle of the image along its diagonals by a third of the shorter
    side in each direction. The map moves them by ``shift`` (3, 2).
    """
    middle = np.array([height // 2, width // 2], dtype=float)  # as in the reference, which uses (height, width) as (x, y)
    reach = max(1, min(height, width) // 3)
    old = middle + reach * np.array([[1, 1], [1, -1], [-1, -1]])
    return np.linalg.lstsq(np.column_stack([old + shift, np.ones(3)]), old, rcond=None)[0]


def _sample(field_B3HW: Tensor, x_BHW: Tensor, y_BHW: Tensor, about_centres: bool) -> Tensor:
    """Bilinear values at pixel coordinates (x, y) of the field, reflected about its edge pixels' centres or outer sides."""
    height, width = x_BHW.shape[1:]
    # The coordinates of grid_sample run from -1 to 1, either between the centres of the first and last pixel, or between their
    # outer sides. Joining x and y as a complex number is, on a CPU, 6 times as quick as torch.stack.
    if about_centres:
        grid_BHW = torch.complex(x_BHW * (2 / max(width - 1, 1)) - 1, y_BHW * (2 / max(height - 1, 1)) - 1)
    else:
        grid_BHW = torch.complex((x_BHW + 0.5) * (2 / width) - 1, (y_BHW + 0.5) * (2 / height) - 1)
    grid_BHW2 = torch.view_as_real(grid_BHW)
    return F.grid_sample(field_B3HW, grid_BHW2, "bilinear", "reflection", align_corners=about_centres)
