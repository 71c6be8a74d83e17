"""Snow, frost and fog. Source: hendrycks/robustness, make_imagenet_c.py.

Every corruption takes uint8 images (B, 3, H, W), the level of one severity and one generator per image, and returns new uint8
images.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from gch_bench.corruptions.batched.blur import draw_angles, motion_blur_at
from gch_bench.corruptions.batched.common import truncate
from gch_bench.corruptions.batched.zoom import enlarge, zoom_crop
from gch_bench.corruptions.frost import frost_photographs

Snow = tuple[float, float, float, float, float, float, float]
LUMA = (0.299, 0.587, 0.114)


def snow(images: Tensor, level: Snow, generators: Sequence[Generator]) -> Tensor:
    """A layer of snowflakes, and the same layer turned by 180 degrees, added to a whitened image.

    Level: (``mean`` and ``sd`` of the flakes' normal draws, factor ``zoom`` of their enlargement, ``threshold`` below which the
    layer is 0, ``radius`` and ``sigma`` in pixels of its motion blur, weight ``keep`` of the image against its whitened
    version). The angle of the motion blur is uniform in -135..-45 degrees.
    """
    mean, sd, zoom, threshold, radius, sigma, keep = level
    height, width = images.shape[2:]
    size = (len(images), zoom_crop(height, zoom), zoom_crop(width, zoom))
    crops_Bhw = torch.empty(size, dtype=torch.float32, device=images.device)
    for crop_hw, generator in zip(crops_Bhw, generators, strict=True):
        crop_hw.normal_(mean, sd, generator=generator)
    flakes_BHW = enlarge(crops_Bhw[:, None], zoom, (height, width))[:, 0]
    flakes_BHW = truncate(flakes_BHW.mul(255).mul_(flakes_BHW >= threshold))
    angles = draw_angles(-135, -45, generators, images.device)
    for flakes_1HW, angle in zip(flakes_BHW.split(1), angles, strict=True):
        flakes_1HW.copy_(motion_blur_at(flakes_1HW, radius, sigma, angle))
    layer_BHW = flakes_BHW.to(torch.int16) + flakes_BHW.rot90(2, (1, 2))
    x = images.to(torch.float32)
    red, green, blue = x.unbind(1)
    whitened_BHW = (red * LUMA[0]).add_(green, alpha=LUMA[1]).add_(blue, alpha=LUMA[2]).mul_(1.5).add_(127.5)
    snowy = torch.maximum(x, whitened_BHW[:, None]).mul_(1 - keep).add_(x.mul_(keep))
    return truncate(snowy.add_(layer_BHW[:, None]))


def frost(images: Tensor, level: tuple[float, float, float], generators: Sequence[Generator]) -> Tensor:
    """The weighted sum of the image and a random crop of a photograph of frost, clipped.

    Level: (weight of the image, weight of the frost, scale of the photographs). A photograph that is too small for the image is
    enlarged further. Five photographs are used: the reference has a sixth, but never draws it.
    """
    image_weight, frost_weight, scale = level
    height, width = images.shape[2:]
    device = images.device
    textures = []
    for number, photograph in enumerate(frost_photographs()):
        fitting = max(scale, (height + 1) / photograph.height, (width + 1) / photograph.width)
        textures.append(_frost_texture(number, fitting, str(device)))
    draws_B3 = torch.empty(len(images), 3, dtype=torch.float64, device=device)
    for draws_3, generator in zip(draws_B3, generators, strict=True):
        draws_3.uniform_(generator=generator)
    crops = []
    for which, down, across in draws_B3.tolist():
        texture = textures[int(which * len(textures))]
        top, left = int(down * (texture.shape[1] - height)), int(across * (texture.shape[2] - width))
        crops.append(texture[:, top : top + height, left : left + width])
    frosted = images.to(torch.float32).mul_(image_weight)
    return truncate(frosted.add_(torch.stack(crops), alpha=frost_weight))


@lru_cache(maxsize=32)
def _frost_texture(number: int, scale: float, device: str) -> Tensor:
    """The photograph of this number, scaled by ``scale``: uint8 (3, h, w)."""
    photograph = frost_photographs()[number]
    # Bilinear without antialiasing, as in the reference, which shrinks the photographs for small images.
    size = (round(photograph.height * scale), round(photograph.width * scale))
    texture = torch.tensor(np.asarray(photograph), dtype=torch.float32).permute(2, 0, 1)[None]
    return F.interpolate(texture, size, mode="bilinear", align_corners=False)[0].round().to(device, torch.uint8)


def fog(images: Tensor, level: tuple[float, float], generators: Sequence[Generator]) -> Tensor:
    """A random map of fog (plasma) added to the image; the sum is scaled so that it cannot exceed the image's brightest value.

    Level: (``strength`` of the plasma in units of the full range of levels, ``decay`` of its finer details, see ``plasma``).
    """
    strength, decay = level
    height, width = images.shape[2:]
    side = 1 << max(1, (max(height, width) - 1).bit_length())
    draws_BN = torch.empty(len(images), side * side, dtype=torch.float32, device=images.device)
    for draws_N, generator in zip(draws_BN, generators, strict=True):
        draws_N.uniform_(-1, 1, generator=generator)
    plasma_BHW = plasma(draws_BN, decay)[:, :height, :width]
    brightest_B111 = images.amax((1, 2, 3), keepdim=True).to(torch.float32)
    scale_B111 = brightest_B111 / (brightest_B111 + 255 * strength)
    foggy = images.to(torch.float32).add_(plasma_BHW[:, None], alpha=255 * strength)
    return truncate(foggy.mul_(scale_B111))


def plasma(draws_BN: Tensor, decay: float) -> Tensor:
    """Diamond-square plasma, shifted and scaled to [0, 1]: float32 (B, side, side), where ``side`` is a power of two.

    A map is doubled again and again. Each new point is the mean of its four neighbours (with wrap-around) plus
    ``wibble`` * U(-``wibble``, ``wibble``); ``wibble`` starts at 100 and is divided by ``decay`` at each doubling.

    Args:
        draws_BN: N = side^2 draws of U(-1, 1) per map. Doubling a map of k x k points uses the draws k^2 to 4 k^2 - 1: first
            for the points in the middle of four old ones, then for the points above these, then for those to their left.
        decay: see above.
    """
    batch, size = draws_BN.shape
    corners = torch.zeros(batch, 1, 1, dtype=draws_BN.dtype, device=draws_BN.device)
    wibble = 100.0
    while (side := corners.shape[1]) ** 2 < size:
        draws = draws_BN[:, side * side : 4 * side * side].view(batch, 3, side, side) * wibble**2
        right, below = corners.roll(-1, 2), corners.roll(-1, 1)
        middle = (corners + right).add_(below).add_(right.roll(-1, 1)).mul_(0.25).add_(draws[:, 0])
        top = (corners + right).add_(middle).add_(middle.roll(1, 1)).mul_(0.25).add_(draws[:, 1])
        left = (corners + below).add_(middle).add_(middle.roll(1, 2)).mul_(0.25).add_(draws[:, 2])
        finer = torch.empty(batch, side, 2, side, 2, dtype=draws_BN.dtype, device=draws_BN.device)
        pairs = torch.view_as_complex(finer)  # the quickest way to write two columns that alternate
        torch.complex(corners, top, out=pairs[:, :, 0])
        torch.complex(left, middle, out=pairs[:, :, 1])
        corners = finer.view(batch, 2 * side, 2 * side)
        wibble /= decay
    low, high = corners.amin((1, 2), keepdim=True), corners.amax((1, 2), keepdim=True)
    return corners.sub_(low).div_(high - low)
