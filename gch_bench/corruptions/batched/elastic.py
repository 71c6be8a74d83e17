"""Elastic transform. Source: hendrycks/robustness, make_imagenet_c.py."""

import torch
import torch.nn.functional as F
from torch import Tensor

from gch_bench.corruptions.batched.draws import signed, uniform
from gch_bench.corruptions.batched.filters import gaussian_filter, truncate_blur
from gch_bench.corruptions.elastic import CUT, MOVES_X, MOVES_Y, SHIFTS, affine_map
from gch_bench.corruptions.shared import Shared


def elastic_transform(images: Shared[Tensor], level: tuple[float, float, float], keys: Tensor) -> Tensor:
    """See ``compiled.elastic.elastic_transform``."""
    alpha, sigma, affine = level
    height, width = images.pixels.shape[2:]
    y_HW, x_HW = torch.meshgrid(
        *(torch.arange(n, dtype=torch.float32, device=keys.device) for n in (height, width)), indexing="ij"
    )
    map_6B = torch.stack(affine_map(uniform(keys, SHIFTS, 6).unbind(1), affine, height, width))
    xx, xy, x0, yx, yy, y0 = map_6B.to(torch.float32)[..., None, None]
    field = images.pixels.to(torch.float32)
    field = _sample(field, x_HW * xx + y_HW * xy + x0, x_HW * yx + y_HW * yy + y0, about_centres=True)
    if alpha > 0:
        draws_B2N = torch.stack([signed(keys, stream, height * width) for stream in (MOVES_X, MOVES_Y)], 1)
        dx_BHW, dy_BHW = gaussian_filter(draws_B2N.unflatten(2, (height, width)), sigma, "symmetric", CUT).unbind(1)
        field = _sample(field, dx_BHW * alpha + x_HW, dy_BHW * alpha + y_HW, about_centres=False)
    return truncate_blur(field)


def _sample(field_B3HW: Tensor, x_BHW: Tensor, y_BHW: Tensor, about_centres: bool) -> Tensor:
    """Bilinear values at pixel coordinates (x, y) of the field, reflected about its edge pixels' centres or outer sides."""
    height, width = x_BHW.shape[1:]
    # The coordinates of grid_sample run from -1 to 1, either between the centres of the first and last pixel, or between their
    # outer sides.
    if about_centres:
        grid_BHW2 = torch.stack([x_BHW * (2 / max(width - 1, 1)) - 1, y_BHW * (2 / max(height - 1, 1)) - 1], 3)
    else:
        grid_BHW2 = torch.stack([(x_BHW + 0.5) * (2 / width) - 1, (y_BHW + 0.5) * (2 / height) - 1], 3)
    return F.grid_sample(field_B3HW, grid_BHW2, "bilinear", "reflection", align_corners=about_centres)
