"""The blurs of many images at once, except zoom blur. Source: hendrycks/robustness, make_imagenet_c.py.

Shapes: B images of H x W pixels, N = H W.
"""

import math
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from gch_bench.corruptions.batched import draws
from gch_bench.corruptions.batched.filters import gaussian_filter, motion_blur_at, truncate_blur
from gch_bench.corruptions.filters import ANGLE, ANGLES, border_pixels, fft_length, smoothed_disk
from gch_bench.corruptions.shared import Shared


def gaussian_blur(images: Shared[Tensor], sigma: float) -> Tensor:
    """See ``compiled.blur.gaussian_blur``."""
    return _gaussian_blur(images.pixels, sigma)


def _gaussian_blur(images: Tensor, sigma: float) -> Tensor:
    return truncate_blur(gaussian_filter(images, sigma))


def defocus_blur(images: Shared[Tensor], radius_alias: tuple[float, float]) -> Tensor:
    """See ``compiled.defocus.defocus_blur``.

    The convolution is done by FFT, because a disk of up to 21 x 21 weights is not separable, and in float64, because the
    rounding of an FFT may depend on the batch.
    """
    height, width = images.pixels.shape[2:]
    disk = smoothed_disk(*radius_alias)
    size, rows, columns, spectrum = _disk_spectrum(*radius_alias, height, width, str(images.pixels.device))
    padded = images.pixels.index_select(2, rows).index_select(3, columns).to(torch.float64)
    waves = torch.fft.rfft2(padded, size).mul_(spectrum)
    return truncate_blur(torch.fft.irfft2(waves, size)[..., :height, :width].to(torch.float32), disk.margin)


@lru_cache(maxsize=64)
def _disk_spectrum(
    radius: float, alias: float, height: int, width: int, device: str
) -> tuple[tuple[int, int], Tensor, Tensor, Tensor]:
    """The size of the FFT; which rows and columns the padded image consists of; the disk's real FFT at this size."""
    kernel = smoothed_disk(radius, alias).kernel
    side = len(kernel)
    size = (fft_length(height + side - 1), fft_length(width + side - 1))
    rows, columns = (torch.from_numpy(border_pixels(n, side // 2, "reflect")).to(device) for n in (height, width))
    # The disk's corner lies at the origin, and the conjugate mirrors the disk: output (0, 0) is then the weighted sum over the
    # first side x side pixels of the padded image.
    spectrum = np.fft.rfft2(kernel.astype(float), size).conj()
    return size, rows, columns, torch.from_numpy(spectrum).to(device)


def glass_blur(images: Shared[Tensor], level: tuple[float, int, int], keys_B: Tensor) -> Tensor:
    """See ``compiled.blur.glass_blur``."""
    sigma, max_delta, iterations = level
    blurred_B3N = images.once(_gaussian_blur, sigma).flatten(2)
    batch, _, height, width = images.pixels.shape
    source_BN = torch.arange(height * width, device=keys_B.device).expand(batch, -1)
    for iteration in range(iterations):
        source_BN = source_BN.gather(1, scan_sources(height, width, max_delta, keys_B, iteration))
    scanned_B3N = blurred_B3N.gather(2, source_BN[:, None].expand(-1, 3, -1))
    return _gaussian_blur(scanned_B3N.view(images.pixels.shape), sigma)


def scan_sources(height: int, width: int, max_delta: int, keys_B: Tensor, stream: int) -> Tensor:
    """One scan of glass blur: the number of the pixel from which each pixel gets its value, int64 (B, N).

    The scan goes from the bottom right to the top left pixel, without a margin at the border. It gives each pixel the value
    that a random neighbour has at that time (the reference means to swap the two values, but copies one). The draws are the
    numbers of the neighbours, row by row, in the square of displacements from -max_delta to max_delta - 1 in both directions.

    If the scan has passed the neighbour already, that neighbour has got the value of a neighbour of its own, and so on. These
    links from pixel to pixel form a forest; pointer doubling follows all its paths to the end in log2(longest path) steps. No
    path is longer than there are pixels.
    """
    rows, columns, side = max(0, height - 2 * max_delta), max(0, width - 2 * max_delta), 2 * max_delta
    drawn_BN = draws.below(keys_B, stream, rows * columns, side**2)
    moves_BN = (drawn_BN // side - max_delta) * width + drawn_BN % side - max_delta
    batch, pixels = len(keys_B), height * width
    here, ends = torch.arange(2 * pixels, device=keys_B.device).expand(batch, -1).chunk(2, dim=1)
    link = here.clone().view(batch, height, width)
    inside = (..., slice(max_delta + 1, height - max_delta + 1), slice(max_delta + 1, width - max_delta + 1))
    link[inside] += moves_BN.view(batch, rows, columns)
    link = link.flatten(1)
    # A link must be followed on if it leads to a larger number, because the scan has passed that pixel before (a pixel in the
    # margin links to itself). Any other link is final, and leads to one of the `ends`, which link to themselves.
    link = torch.cat([torch.where(link > here, link, link + pixels), ends], dim=1)
    for _ in range(math.ceil(math.log2(max(2, rows * columns)))):
        link = link.gather(1, link)
    return link[:, :pixels] - pixels


def motion_blur(images: Shared[Tensor], radius_sigma: tuple[float, float], keys_B: Tensor) -> Tensor:
    """See ``compiled.blur.motion_blur``."""
    low, high = ANGLES
    angles_B = low + (high - low) * draws.uniform(keys_B, ANGLE, 1)[:, 0]
    return truncate_blur(motion_blur_at(images.pixels, *radius_sigma, angles_B))
