"""Blurs. Source: hendrycks/robustness, make_imagenet_c.py.

Every function takes uint8 images (B, 3, H, W) and one severity's level, where random also one generator per image, and
returns new uint8 images. The rounding of a matrix product or an FFT may depend on its shape, and the result must not depend on
the batch: each image has a product, an FFT of its own. Most else takes all images of a part at once: two threads then seldom
want Python's lock at the same time. Motion blur goes image by image, as each has its own angle.
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

from gch_bench.corruptions.pixel import product_dtype, truncate

# A flat area is a tie for truncation: its blur is a whole level plus rounding of either sign (below 2e-4 in float32), and the
# reference mostly keeps it. This much is added before truncating; it moves 1 value in 2000 up by one level.
TIE_MARGIN = 5e-4
GAUSSIAN_BLOCK = 56  # rows of a filter matrix multiplied at a time
# Planes are enlarged together as channels, last in memory: 10 times as quick as one by one on a CPU. Always a multiple of so
# many, that of a processor's vectors, empty ones too: the rounding of a plane cannot depend on how many others there are.
ZOOM_PLANES = 16


def truncate_blur(field: Tensor, margin: float = TIE_MARGIN) -> Tensor:
    """uint8 of a blurred field in grey levels, which is overwritten."""
    return truncate(field.add_(margin))


def gaussian_blur(images: Tensor, sigma: float) -> Tensor:
    """Gaussian filter of standard deviation ``sigma`` pixels, cut at 4 sigma, edge pixels repeated outwards."""
    return truncate_blur(gaussian_filter(images, sigma)).contiguous()


def gaussian_filter(field_BCHW: Tensor, sigma: float, border: str = "edge", cut: float = 4.0) -> Tensor:
    """float32 (B, C, H, W) filtered with a Gaussian of ``sigma`` pixels cut at ``cut`` sigma; ``border``: a mode of numpy.pad.

    Separable, so two matrix products, x @ S_WW.T along the rows, S_HH @ x along the columns, by blocks: away from its diagonal
    a matrix is 0. Both are products of plain matrices, one for each image, in the order of axes B, H, C, W.
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
    """The filter matrix (n, n) in blocks of rows without their zero columns: the rows, the columns, float32 (rows, columns)."""
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
    """Convolved with a disk of ``radius`` pixels whose edge is smoothed with ``alias``; borders reflected without the edge.

    By FFT: a disk of 21 x 21 weights has no short separable form.
    """
    height, width = images.shape[2:]
    spectrum, side, margin = _disk_spectrum(*radius_alias, height, width, str(images.device))
    source = _reflected(height, width, side // 2, str(images.device))
    size = _fft_size(height, width, side)
    padded = images.flatten(2).gather(2, source.flatten().expand(len(images), 3, -1)).to(torch.float32)
    blurred = torch.empty(images.shape, dtype=torch.float32, device=images.device)
    for padded_3HW, out_3HW in zip(padded.unflatten(2, source.shape), blurred, strict=True):
        # One axis at a time, each the last one in memory, and back only for the rows wanted: faster than rfft2 and irfft2.
        waves_3WH = torch.fft.rfft(padded_3HW, size[1]).transpose(1, 2).contiguous()
        waves_3WH = torch.fft.ifft(torch.fft.fft(waves_3WH, size[0]).mul_(spectrum))
        out_3HW.copy_(torch.fft.irfft(waves_3WH[..., :height].transpose(1, 2).contiguous(), size[1])[..., :width])
    return truncate_blur(blurred, margin)


def _fft_size(height: int, width: int, side: int) -> tuple[int, int]:
    return next_fast_len(height + side - 1, real=True), next_fast_len(width + side - 1, real=True)


@lru_cache(maxsize=64)
def _disk_spectrum(radius: float, alias: float, height: int, width: int, device: str) -> tuple[Tensor, int, float]:
    """The disk's real FFT (W, H) at the padded size; its side in pixels, 17 or more for a radius above 8; the tie margin."""
    half, smooth = (8, 1) if radius <= 8 else (math.ceil(radius), 2)
    grid = np.arange(-half, half + 1)
    disk = (grid[:, None] ** 2 + grid**2 <= radius**2).astype(np.float32)
    disk /= disk.sum()
    # The edge is smoothed with 3 x 3 or 5 x 5 Gaussian weights, the array reflected: the sum exceeds 1 where the disk fills it.
    weight = np.exp(-0.5 * (np.arange(-smooth, smooth + 1) / alias) ** 2)
    weight = (weight / weight.sum()).astype(np.float32)
    kernel = disk
    for axis in (1, 0):
        kernel = scipy.ndimage.correlate1d(kernel, weight, axis, mode="mirror")
    # All this in float32, as the reference: the sign of the rounding of the weights' sum decides the ties.
    margin = math.copysign(TIE_MARGIN, kernel.astype(float).sum() - 1)
    # The disk's corner at the origin, mirrored: output (0, 0) is the sum over the padded image's first side x side pixels.
    at_origin = np.zeros(_fft_size(height, width, len(grid)))
    at_origin[: len(grid), : len(grid)] = kernel
    spectrum = torch.fft.rfft2(torch.from_numpy(at_origin)).conj().resolve_conj()
    return spectrum.T.contiguous().to(device, torch.complex64), len(grid), margin


@lru_cache(maxsize=64)
def _reflected(height: int, width: int, margin: int, device: str) -> Tensor:
    """int64 (H + 2 margin, W + 2 margin): the pixel that each place of a padded image shows; reflected about the edges."""
    return torch.from_numpy(np.pad(np.arange(height * width).reshape(height, width), margin, mode="reflect")).to(device)


def glass_blur(images: Tensor, level: tuple[float, int, int], generators: Sequence[Generator]) -> Tensor:
    """Gaussian blur, pixels displaced by up to ``max_delta``, Gaussian blur; level: (sigma, max_delta, iterations)."""
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
    """int32 (B H W,): where each pixel's value comes from after one scan, among the pixels of all images.

    The scan goes from the bottom right to the top left pixel, a margin left out, and gives each the value that a random
    neighbour has at that time (the reference means to swap the two, but copies). A neighbour met earlier in the scan has been
    replaced already: its value comes from its own neighbour, and so on. These links form a forest; pointer doubling resolves
    all its paths in log2(longest path) steps.

    Args:
        draw_BHW: uint8 (B, H - 2 max_delta, W - 2 max_delta), the neighbour of each scanned pixel: row by row, of the square
            from -max_delta to max_delta - 1.
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
    # A link to a pixel scanned before, or never scanned, whose link is itself, is followed on; any other ends: it becomes the
    # pixel's number + count. The shift gives -1 where link > here, else 0.
    link += (here - link).bitwise_right_shift_(31).add_(1).mul_(count)
    while int(link.min()) < count:
        link = torch.cat([link, ends]).index_select(0, link)
    return link.sub_(count)


def motion_blur(images: Tensor, radius_sigma: tuple[float, float], generators: Sequence[Generator]) -> Tensor:
    """ImageMagick's motion blur at an angle uniform in -45..45 degrees."""
    angles = draw_angles(-45, 45, generators, images.device)
    return torch.stack([motion_blur_at(image, *radius_sigma, angle) for image, angle in zip(images, angles, strict=True)])


def draw_angles(low: float, high: float, generators: Sequence[Generator], device: torch.device) -> list[float]:
    """Degrees, uniform."""
    angles = torch.empty(len(generators), dtype=torch.float32, device=device)
    for angle, generator in zip(angles, generators, strict=True):
        angle.uniform_(low, high, generator=generator)
    return angles.tolist()


def motion_blur_at(image: Tensor, radius: float, sigma: float, angle: float) -> Tensor:
    """uint8 (C, H, W) -> the same: a mean along the ray at ``angle`` degrees with one-sided Gaussian weights.

    Facts of ImageMagick's kernel, from its outputs: tap i = 0..2 ceil(radius) has weight exp(-i^2 / (2 sigma^2)), normalised,
    and reads the pixel ceil(i cos(angle) - 1/2) columns and ceil(i sin(angle) - 1/2) rows away, edges repeated.
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
    windows = padded.as_strided((max(starts) + 1, *image.shape), (1, *padded.stride()))  # that start at each pixel
    for weight, start in zip(weights.tolist(), starts, strict=True):
        blurred.add_(windows[start], alpha=weight)
    return truncate_blur(blurred)


def zoom_blur(images: Tensor, start_stop_step: tuple[float, float, float]) -> Tensor:
    """The mean of the image and its enlargements by the factors ``numpy.arange(start, stop, step)``."""
    factors = np.arange(*start_stop_step).tolist()
    batch, _, height, width = images.shape
    planes = -(-3 * batch // ZOOM_PLANES) * ZOOM_PLANES
    x_HWN = torch.zeros(height, width, planes, dtype=torch.float32, device=images.device)
    x_HWN[..., : 3 * batch] = images.flatten(0, 1).permute(1, 2, 0)
    x_NHW = x_HWN.permute(2, 0, 1)
    total_NHW = x_NHW.clone()
    for factor in factors:
        total_NHW += clipped_zoom(x_NHW, factor)
    return truncate_blur(total_NHW.div_(len(factors) + 1))[: 3 * batch].unflatten(0, (batch, 3)).contiguous()


def clipped_zoom(field: Tensor, factor: float) -> Tensor:
    """float32 (C, H, W) -> the same: the middle enlarged by ``factor`` >= 1, bilinear between the corner pixels' centres."""
    if factor == 1:
        return field
    height, width = field.shape[1:]
    crop_height, crop_width = zoom_crop(height, factor), zoom_crop(width, factor)
    top, left = (height - crop_height) // 2, (width - crop_width) // 2
    crop = field[None, :, top : top + crop_height, left : left + crop_width].contiguous(memory_format=torch.channels_last)
    return enlarge(crop, factor, (height, width))[0]


def zoom_crop(n: int, factor: float) -> int:
    """How many of ``n`` pixels are left to enlarge."""
    return math.ceil(n / factor)


def enlarge(crops: Tensor, factor: float, size: tuple[int, int]) -> Tensor:
    """float32 (B, C, h, w) enlarged by ``factor``, then trimmed to ``size``."""
    enlarged = [round(n * factor) for n in crops.shape[2:]]
    field = F.interpolate(crops, enlarged, mode="bilinear", align_corners=True)
    top, left = ((n - wanted) // 2 for n, wanted in zip(enlarged, size, strict=True))
    return field[..., top : top + size[0], left : left + size[1]]
