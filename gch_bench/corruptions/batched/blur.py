"""The five blurs. Source: hendrycks/robustness, make_imagenet_c.py.

Every corruption takes uint8 images (B, 3, H, W) and the level of one severity; the random ones also take one generator per
image. All return new uint8 images.

The rounding of a matrix product or an FFT may depend on its shape, but the result for an image must not depend on the batch.
Therefore each image has a matrix product or an FFT of its own. Motion blur also goes image by image, because each image has its
own angle. Most other operations take all given images at once, so that threads seldom compete for Python's global lock.
"""

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import scipy.ndimage
import torch
import torch.nn.functional as F
from scipy.fft import next_fast_len
from torch import Generator, Tensor

from gch_bench.corruptions.batched.common import TIE_MARGIN, product_dtype, truncate_blur

GAUSSIAN_BLOCK = 56  # how many rows of a filter matrix are multiplied at a time


def gaussian_blur(images: Tensor, sigma: float) -> Tensor:
    """Gaussian filter with standard deviation ``sigma`` in pixels, cut at 4 sigma; the edge pixels are repeated outwards."""
    return truncate_blur(gaussian_filter(images, sigma)).contiguous()


def gaussian_filter(field_BCHW: Tensor, sigma: float, border: str = "edge", cut: float = 4.0) -> Tensor:
    """Filter a field (B, C, H, W) with a Gaussian; returns float32 of the same shape.

    The filter is separable, so it is two matrix products, x @ S_WW.T along the rows and S_HH @ x along the columns. Away from
    the diagonal these matrices are 0, so only blocks around it are multiplied. With the axes in the order B, H, C, W both
    products are of plain matrices, one for each image.

    Args:
        sigma: standard deviation in pixels.
        border: how the field continues outside, a mode of numpy.pad.
        cut: where the Gaussian ends, in units of ``sigma``.
    """
    height, width, device = *field_BCHW.shape[2:], str(field_BCHW.device)
    x_BHCW = field_BCHW.transpose(1, 2).contiguous().to(product_dtype(field_BCHW.device))
    rows_BHCW, columns_BHCW = torch.empty_like(x_BHCW), torch.empty_like(x_BHCW)
    x, out = x_BHCW.flatten(1, 2), rows_BHCW.flatten(1, 2)
    for outputs, inputs, S in gaussian_blocks(width, sigma, border, cut, device):
        torch.bmm(x[..., inputs], S.T.to(x.dtype).expand(len(x), -1, -1), out=out[..., outputs])
    x, out = rows_BHCW.flatten(2, 3), columns_BHCW.flatten(2, 3)
    for outputs, inputs, S in gaussian_blocks(height, sigma, border, cut, device):
        torch.bmm(S.to(x.dtype).expand(len(x), -1, -1), x[:, inputs], out=out[:, outputs])
    return columns_BHCW.transpose(1, 2).to(torch.float32)


@lru_cache(maxsize=64)
def gaussian_blocks(n: int, sigma: float, border: str, cut: float, device: str) -> list[tuple[slice, slice, Tensor]]:
    """The filter matrix (n, n) in blocks of rows, from which the zero columns at both sides are left out.

    Returns:
        For each block its rows, its columns and its values, float32 (rows, columns).
    """
    radius = int(cut * sigma + 0.5)
    offset = np.arange(-radius, radius + 1)
    weight = np.exp(-0.5 * (offset / sigma) ** 2)
    source = np.pad(np.arange(n), radius, mode=border)  # type: ignore[call-overload]  # a mode known at run time
    S_nn = np.zeros((n, n))
    np.add.at(S_nn, (np.arange(n)[:, None], source[np.arange(n)[:, None] + offset + radius]), weight / weight.sum())
    blocks = []
    for first in range(0, n, GAUSSIAN_BLOCK):
        rows = S_nn[first : first + GAUSSIAN_BLOCK]
        used = np.flatnonzero(rows.any(0))
        inputs = slice(int(used[0]), int(used[-1]) + 1)
        outputs = slice(first, first + len(rows))
        blocks.append((outputs, inputs, torch.tensor(rows[:, inputs], dtype=torch.float32, device=device)))
    return blocks


def defocus_blur(images: Tensor, radius_alias: tuple[float, float]) -> Tensor:
    """Convolution with a disk whose edge is smoothed; level in pixels: (``radius`` of the disk, ``alias``, a Gaussian's sigma).

    The image is reflected about the centres of its edge pixels. The convolution is done by FFT, because a disk of up to 21 x 21
    weights is not separable.
    """
    height, width = images.shape[2:]
    spectrum, side, margin = _disk_spectrum(*radius_alias, height, width, str(images.device))
    source = _reflected(height, width, side // 2, str(images.device))
    size = _fft_size(height, width, side)
    padded = images.flatten(2).gather(2, source.flatten().expand(len(images), 3, -1)).to(torch.float32)
    blurred = torch.empty(images.shape, dtype=torch.float32, device=images.device)
    for padded_3HW, out_3HW in zip(padded.unflatten(2, source.shape), blurred, strict=True):
        # Each axis is transformed while it is the last one in memory, and only the wanted rows are transformed back: this is
        # faster than rfft2 and irfft2.
        waves_3WH = torch.fft.rfft(padded_3HW, size[1]).transpose(1, 2).contiguous()
        waves_3WH = torch.fft.ifft(torch.fft.fft(waves_3WH, size[0]).mul_(spectrum))
        out_3HW.copy_(torch.fft.irfft(waves_3WH[..., :height].transpose(1, 2).contiguous(), size[1])[..., :width])
    return truncate_blur(blurred, margin)


def _fft_size(height: int, width: int, side: int) -> tuple[int, int]:
    return next_fast_len(height + side - 1, real=True), next_fast_len(width + side - 1, real=True)


@lru_cache(maxsize=64)
def _disk_spectrum(radius: float, alias: float, height: int, width: int, device: str) -> tuple[Tensor, int, float]:
    """The smoothed disk in the form that ``defocus_blur`` needs.

    Returns:
        The disk's real FFT at the padded size, complex64 with the axes (frequencies of W, frequencies of H); the side of the
        array that holds the disk, in pixels: 17 up to radius 8, more above; the margin to add before truncation.
    """
    half, smooth = (8, 1) if radius <= 8 else (math.ceil(radius), 2)
    grid = np.arange(-half, half + 1)
    disk = (grid[:, None] ** 2 + grid**2 <= radius**2).astype(np.float32)
    disk /= disk.sum()
    # The edge is smoothed with 3 x 3 or 5 x 5 Gaussian weights, and the array is reflected at its border: if the disk reaches
    # the border, the sum of the weights exceeds 1, as in the reference.
    weight = np.exp(-0.5 * (np.arange(-smooth, smooth + 1) / alias) ** 2)
    weight = (weight / weight.sum()).astype(np.float32)
    kernel = disk
    for axis in (1, 0):
        kernel = scipy.ndimage.correlate1d(kernel, weight, axis, mode="mirror")
    # All this is done in float32, as in the reference: whether the rounded weights add up to more or less than 1 decides
    # whether truncation keeps the level of a flat area.
    margin = math.copysign(TIE_MARGIN, kernel.astype(float).sum() - 1)
    # The disk's corner lies at the origin, and the conjugate mirrors the disk: output (0, 0) is then the weighted sum over the
    # first side x side pixels of the padded image.
    at_origin = np.zeros(_fft_size(height, width, len(grid)))
    at_origin[: len(grid), : len(grid)] = kernel
    spectrum = torch.fft.rfft2(torch.from_numpy(at_origin)).conj().resolve_conj()
    return spectrum.T.contiguous().to(device, torch.complex64), len(grid), margin


@lru_cache(maxsize=64)
def _reflected(height: int, width: int, margin: int, device: str) -> Tensor:
    """int64 (H + 2 margin, W + 2 margin): which pixel (row-major number) a reflected image shows at each place."""
    return torch.from_numpy(np.pad(np.arange(height * width).reshape(height, width), margin, mode="reflect")).to(device)


def glass_blur(images: Tensor, level: tuple[float, int, int], generators: Sequence[Generator]) -> Tensor:
    """Gaussian blur, random displacement of the pixels, and Gaussian blur again.

    Level: (``sigma`` of the blurs in pixels, largest displacement ``max_delta`` in pixels, number of ``iterations``).
    """
    sigma, max_delta, iterations = level
    blurred = gaussian_blur(images, sigma)
    batch, _, height, width = images.shape
    scanned = (batch, max(0, height - 2 * max_delta), max(0, width - 2 * max_delta))
    source = torch.arange(batch * height * width, dtype=torch.int32, device=images.device)
    for _ in range(iterations):
        draw_BHW = torch.empty(scanned, dtype=torch.uint8, device=images.device)
        for draw_HW, generator in zip(draw_BHW, generators, strict=True):
            draw_HW.random_(0, 4 * max_delta**2, generator=generator)
        source = source.index_select(0, scan_sources(height, width, max_delta, draw_BHW))
    for channel_BHW in blurred.unbind(1):
        channel_BHW.copy_(channel_BHW.flatten().index_select(0, source).view(channel_BHW.shape))
    return gaussian_blur(blurred, sigma)


def scan_sources(height: int, width: int, max_delta: int, draw_BHW: Tensor) -> Tensor:
    """One scan of glass blur: the number of the pixel, among those of all images, from which each pixel gets its value.

    The scan goes from the bottom right to the top left pixel, without a margin at the border. It gives each pixel the value
    that a random neighbour has at that time (the reference means to swap the two values, but copies one). If the scan has
    passed the neighbour already, that neighbour has got the value of a neighbour of its own, and so on. These links from pixel
    to pixel form a forest; pointer doubling resolves all its paths in log2(longest path) steps.

    Args:
        draw_BHW: uint8 (B, H - 2 max_delta, W - 2 max_delta), the neighbour of each scanned pixel, as a row-major number in the
            square of displacements from -max_delta to max_delta - 1 in both directions.

    Returns:
        int32 (B H W,).
    """
    batch, device = len(draw_BHW), draw_BHW.device
    count = batch * height * width
    moves = torch.arange(-max_delta, max_delta, dtype=torch.int32, device=device)
    moves = (moves[:, None] * width + moves).flatten()
    here, ends = torch.arange(2 * count, dtype=torch.int32, device=device).chunk(2)
    link = here.clone().view(batch, height, width)
    inside = (..., slice(max_delta + 1, height - max_delta + 1), slice(max_delta + 1, width - max_delta + 1))
    link[inside] += moves.index_select(0, draw_BHW.flatten().int()).view(draw_BHW.shape)
    link = link.flatten()
    # A link must be followed on if it leads to a larger number, because the scan has passed that pixel before (a pixel in the
    # margin links to itself). Any other link is final, which is marked by adding `count`. The shift gives -1 where link > here,
    # and 0 elsewhere.
    link += (here - link).bitwise_right_shift_(31).add_(1).mul_(count)
    while int(link.min()) < count:
        link = torch.cat([link, ends]).index_select(0, link)
    return link.sub_(count)


def motion_blur(images: Tensor, radius_sigma: tuple[float, float], generators: Sequence[Generator]) -> Tensor:
    """ImageMagick's motion blur at a uniform random angle in -45..45 degrees; level in pixels: (``radius``, ``sigma``)."""
    angles = draw_angles(-45, 45, generators, images.device)
    return torch.stack([motion_blur_at(image, *radius_sigma, angle) for image, angle in zip(images, angles, strict=True)])


def draw_angles(low: float, high: float, generators: Sequence[Generator], device: torch.device) -> list[float]:
    """One angle in degrees per generator, uniform between ``low`` and ``high``."""
    angles = torch.empty(len(generators), dtype=torch.float32, device=device)
    for angle, generator in zip(angles, generators, strict=True):
        angle.uniform_(low, high, generator=generator)
    return angles.tolist()


def motion_blur_at(image: Tensor, radius: float, sigma: float, angle: float) -> Tensor:
    """Weighted mean of the pixels along a ray at ``angle`` degrees: uint8 (C, H, W) -> the same.

    The kernel is ImageMagick's, as found from its outputs. Tap i = 0..2 ceil(radius) has the weight exp(-i^2 / (2 sigma^2)),
    normalised, and reads the pixel ceil(i cos(angle) - 1/2) columns and ceil(i sin(angle) - 1/2) rows away; the edge pixels
    are repeated outwards.
    """
    taps = np.arange(2 * math.ceil(radius) + 1)
    weights = np.exp(-0.5 * (taps / sigma) ** 2)
    weights /= weights.sum()
    rows = np.ceil(taps * math.sin(math.radians(angle)) - 0.5).astype(int)
    columns = np.ceil(taps * math.cos(math.radians(angle)) - 0.5).astype(int)
    top, left = max(0, -rows.min()), max(0, -columns.min())
    margins = (left, max(0, columns.max()), top, max(0, rows.max()))
    padded = F.pad(image.to(torch.float32)[None], margins, mode="replicate")[0].contiguous()
    blurred = torch.zeros(image.shape, dtype=torch.float32, device=image.device)
    starts = ((top + rows) * padded.stride(1) + left + columns).tolist()
    windows = padded.as_strided((max(starts) + 1, *image.shape), (1, *padded.stride()))  # one image for each start
    for weight, start in zip(weights.tolist(), starts, strict=True):
        blurred.add_(windows[start], alpha=weight)
    return truncate_blur(blurred)
