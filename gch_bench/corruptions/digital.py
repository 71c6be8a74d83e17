"""Digital corruptions: pixelate, JPEG compression, elastic transform. Source: hendrycks/robustness, make_imagenet_c.py.

Every corruption takes uint8 images (B, 3, H, W) and the level of one severity; the random one also takes one generator per
image. All return new uint8 images.
"""

import io
import os
from collections.abc import Sequence
from functools import lru_cache
from typing import BinaryIO

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Generator, Tensor

from gch_bench.corruptions import jpeg
from gch_bench.corruptions.blur import gaussian_filter, truncate_blur

_FIXED_POINT_BITS = 22  # after the binary point of Pillow's weights for resampling 8-bit images


def pixelate(images: Tensor, scale: float) -> Tensor:
    """Shrink each side to int(side * ``scale``) pixels, at least 1, and enlarge it again, both with a box filter.

    The result equals Pillow's bit by bit, unless an image is over twice as tall as wide (Pillow 13 then takes the columns
    first). Enlarging by a box filter copies the nearest pixel.
    """
    height, width = images.shape[2:]
    # As in Pillow: first along the rows, with rounding to 8 bits, then along the columns. Shrinking the number of rows is
    # quicker than that of columns, so the image is transposed for the first step.
    shrunk = _box_shrink_rows(images.transpose(2, 3).contiguous(), max(1, int(width * scale)))
    shrunk = _box_shrink_rows(shrunk.transpose(2, 3).contiguous(), max(1, int(height * scale)))
    rows = _nearest(shrunk.shape[2], height, str(images.device))
    columns = _nearest(shrunk.shape[3], width, str(images.device))
    return shrunk.gather(3, columns.expand(*shrunk.shape[:3], -1)).index_select(2, rows)


def _box_shrink_rows(images: Tensor, size: int) -> Tensor:
    """Box filter from H rows down to ``size`` rows, in Pillow's fixed point (int32).

    All input rows (taps) of an output row have the same weight, so they are added first, in int16, and multiplied once.
    """
    source, present, weight = _box_taps(images.shape[2], size, str(images.device))
    total = images.index_select(2, source[0]).to(torch.int16)
    for tap_source, tap_present in zip(source[1:], present[1:], strict=True):
        total.addcmul_(images.index_select(2, tap_source).to(torch.int16), tap_present)
    total = total.to(torch.int32).mul_(weight).add_(1 << (_FIXED_POINT_BITS - 1))
    return total.bitwise_right_shift_(_FIXED_POINT_BITS).to(torch.uint8)


@lru_cache(maxsize=64)
def _box_taps(size_in: int, size_out: int, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """The input rows (taps) of each output row, as in Pillow's Resample.c: at most 5 if an image shrinks to a quarter.

    Returns:
        source: int64 (taps, size_out), the input rows; the first tap of each output row is always present.
        present: int16 (taps, size_out, 1), 1 if the output row has this tap, else 0.
        weight: int32 (size_out, 1), 2**22 / number of taps of the output row.
    """
    scale = size_in / size_out
    center = (np.arange(size_out) + 0.5) * scale
    first = np.maximum((center - scale / 2 + 0.5).astype(int), 0)
    last = np.minimum((center + scale / 2 + 0.5).astype(int), size_in)
    source = first + np.arange((last - first).max())[:, None]
    position = (source - center + 0.5) * (1 / scale)
    present = (position > -0.5) & (position <= 0.5) & (source < last)
    weight = ((1 / present.sum(0)) * (1 << _FIXED_POINT_BITS) + 0.5).astype(np.int32)
    arrays = (source.clip(max=size_in - 1), present[..., None].astype(np.int16), weight[:, None])
    source, present, weight = (torch.from_numpy(array).to(device) for array in arrays)
    return source, present, weight


@lru_cache(maxsize=64)
def _nearest(size_in: int, size_out: int, device: str) -> Tensor:
    """int64 (size_out,): the input pixel that lies under the centre of each output pixel."""
    return torch.from_numpy(((np.arange(size_out) + 0.5) * (size_in / size_out)).astype(np.int64)).to(device)


def jpeg_compression(images: Tensor, quality: int) -> Tensor:
    """Save the images as JPEG of this ``quality`` (libjpeg's scale 1..100, chroma 4:2:0) and read them back.

    On a CPU Pillow does this, one image at a time. On a GPU jpeg.py does it, which gives the same pixels.
    """
    if images.device.type != "cpu":
        return jpeg.jpeg_compression(images, quality)
    decoded = np.empty(images.shape, dtype=np.uint8)
    with _file_in_memory() as file:
        for image_3HW, out_3HW in zip(images.contiguous().numpy(), decoded, strict=True):
            file.seek(0)
            file.truncate()
            Image.merge("RGB", [Image.fromarray(channel) for channel in image_3HW]).save(file, "JPEG", quality=quality)
            file.seek(0)
            image = Image.open(io.BytesIO(file.read()))
            for channel, out_HW in zip("RGB", out_3HW, strict=True):
                out_HW[:] = np.frombuffer(image.tobytes("raw", channel), np.uint8).reshape(out_HW.shape)
    return torch.from_numpy(decoded)


def _file_in_memory() -> BinaryIO:
    """A file in memory; on Linux the operating system's, because other threads can run while Pillow compresses into it."""
    return os.fdopen(os.memfd_create("jpeg"), "w+b", buffering=0) if hasattr(os, "memfd_create") else io.BytesIO()


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
