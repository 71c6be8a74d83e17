"""Snow, frost and fog. Source: hendrycks/robustness, make_imagenet_c.py.

Every corruption takes images, the level of one severity and the keys of the draws, and returns new images; see
``table.Corruption``.
"""

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from gch_bench.corruptions.batched.draws import normal, signed, uniform
from gch_bench.corruptions.batched.filters import enlarge, motion_blur_at, truncate, truncate_blur
from gch_bench.corruptions.filters import zoom_crop
from gch_bench.corruptions.shared import Shared
from gch_bench.corruptions.weather import (
    ANGLE,
    ANGLES,
    CROP,
    FLAKES,
    LUMA,
    PLASMA,
    frost_photographs,
    frost_texture,
    plasma_side,
    wibbles,
)


def snow(images: Shared[Tensor], level: tuple[float, ...], keys: Tensor) -> Tensor:
    """See ``compiled.weather.snow``."""
    mean, sd, zoom, threshold, radius, sigma, keep = level
    height, width = images.pixels.shape[2:]
    crop = zoom_crop(height, zoom), zoom_crop(width, zoom)
    flakes_B1hw = normal(keys, FLAKES, crop[0] * crop[1]).mul_(sd).add_(mean).view(-1, 1, *crop)
    flakes_B1HW = enlarge(flakes_B1hw, zoom, (height, width))
    layer_B1HW = truncate(flakes_B1HW.mul(255).mul_(flakes_B1HW >= threshold))
    low, high = ANGLES
    angles_B = low + (high - low) * uniform(keys, ANGLE, 1)[:, 0]
    layer_B1HW = truncate_blur(motion_blur_at(layer_B1HW, radius, sigma, angles_B)).to(torch.float32)
    x = images.pixels.to(torch.float32)
    red, green, blue = x.split(1, 1)
    whitened_B1HW = (red * LUMA[0] + green * LUMA[1] + blue * LUMA[2]).mul_(1.5).add_(127.5)
    snowy = torch.maximum(x, whitened_B1HW).mul_(1 - keep).add_(x * keep)
    return truncate(snowy.add_(layer_B1HW + layer_B1HW.rot90(2, (2, 3))))


def frost(images: Shared[Tensor], level: tuple[float, float, float], keys: Tensor) -> Tensor:
    """See ``compiled.weather.frost``."""
    image_weight, frost_weight, scale = level
    height, width = images.pixels.shape[2:]
    device = keys.device
    pixels_3N, facts_T3 = _joined_textures(scale, height, width, str(device))
    which, down, across = uniform(keys, CROP, 3).unbind(1)
    start_B, free_rows_B, row_B = facts_T3[(which * len(facts_T3)).long()].unbind(1)
    top_B, left_B = (down * free_rows_B).long(), (across * (row_B - width)).long()
    y_H1, x_W = torch.arange(height, device=device)[:, None], torch.arange(width, device=device)
    place_BHW = (start_B + left_B)[:, None, None] + (top_B[:, None, None] + y_H1) * row_B[:, None, None] + x_W
    crops_3BHW = pixels_3N.index_select(1, place_BHW.flatten()).view(3, *place_BHW.shape)
    frosted = images.pixels.to(torch.float32).mul_(image_weight)
    return truncate(frosted.add_(crops_3BHW.transpose(0, 1).to(torch.float32).mul_(frost_weight)))


@lru_cache(maxsize=8)
def _joined_textures(scale: float, height: int, width: int, device: str) -> tuple[Tensor, Tensor]:
    """What ``frost_texture`` gives of all photographs, in one tensor, so that crops of different ones are taken together.

    Returns:
        uint8 (3, N): the pixels of all of them, row by row; int64 (T, 3): for each of them, where it begins among the N pixels,
        how many rows it has more than the image, and the length of its rows.
    """
    textures = [frost_texture(number, scale, height, width) for number in range(len(frost_photographs()))]
    pixels_3N = torch.cat([torch.from_numpy(texture).flatten(1) for texture in textures], 1)
    starts = np.cumsum([0, *(texture[0].size for texture in textures[:-1])])
    facts = [
        (start, texture.shape[1] - height, texture.shape[2]) for start, texture in zip(starts.tolist(), textures, strict=True)
    ]
    return pixels_3N.to(device), torch.tensor(facts, device=device)


def fog(images: Shared[Tensor], level: tuple[float, float], keys: Tensor) -> Tensor:
    """See ``compiled.weather.fog``."""
    strength, decay = level
    x = images.pixels
    height, width = x.shape[2:]
    side = plasma_side(height, width)
    fog_BHW = plasma(signed(keys, PLASMA, side * side), wibbles(side, decay))[:, :height, :width] * (255 * strength)
    brightest_B111 = x.amax((1, 2, 3), keepdim=True).to(torch.float32)
    scale_B111 = brightest_B111 / (brightest_B111 + 255 * strength)
    return truncate((x.to(torch.float32) + fog_BHW[:, None]).mul_(scale_B111))


def plasma(draws_BN: Tensor, factors: np.ndarray) -> Tensor:
    """Diamond-square plasma (see corruptions/weather.py), shifted and scaled to [0, 1]: float32 (B, side, side).

    Args:
        draws_BN: N = side^2 draws of U(-1, 1) per map.
        factors: what ``wibbles`` gives.
    """
    corners = torch.zeros(len(draws_BN), 1, 1, dtype=draws_BN.dtype, device=draws_BN.device)
    for factor in factors.tolist():
        side = corners.shape[1]
        draws = draws_BN[:, side * side : 4 * side * side].unflatten(1, (3, side, side)) * factor
        right, below = corners.roll(-1, 2), corners.roll(-1, 1)
        middle = (corners + right).add_(below).add_(right.roll(-1, 1)).mul_(0.25).add_(draws[:, 0])
        top = (corners + right).add_(middle).add_(middle.roll(1, 1)).mul_(0.25).add_(draws[:, 1])
        left = (corners + below).add_(middle).add_(middle.roll(1, 2)).mul_(0.25).add_(draws[:, 2])
        rows = torch.stack([torch.stack([corners, top], 3), torch.stack([left, middle], 3)], 2)
        corners = rows.reshape(-1, 2 * side, 2 * side)
    low, high = corners.amin((1, 2), keepdim=True), corners.amax((1, 2), keepdim=True)
    return corners.sub_(low).div_(high - low)
