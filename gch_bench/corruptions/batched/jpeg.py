"""JPEG compression and decompression of a batch, with the same pixels as libjpeg-turbo bit by bit.

The entropy coding, which comes between the two and loses nothing, is left out. See jpeg_tables.py for the sources; also
libjpeg's jcsample.c, jcprepct.c and jdsample.c.

libjpeg adds whole numbers and shifts the sums to the right. Here float64 holds the sums exactly, because only floats have
matrix products on a GPU, and division and ``floor`` take the place of the shift.

Shapes: B images, N planes (B of luma, 2B of chroma); H, W height and width; h, w height and width of the halved chroma. In the
DCT the height and width of a plane are multiples of 8.
"""

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from gch_bench.corruptions.batched.filters import truncate
from gch_bench.corruptions.jpeg_tables import (
    BLUE_OF_CHROMA,
    BLUE_OF_RGB,
    CHROMA,
    EVEN,
    FORWARD_COLUMNS_BITS,
    FORWARD_ROWS_BITS,
    GREEN_OF_CHROMA,
    INVERSE_COLUMNS_BITS,
    INVERSE_ROWS_BITS,
    LUMA,
    LUMA_OF_RGB,
    ODD,
    RED_OF_CHROMA,
    RED_OF_RGB,
    quantisation,
)
from gch_bench.corruptions.shared import Shared


def jpeg_compression(images: Shared[Tensor], level: int) -> Tensor:
    """See ``compiled.jpeg.jpeg_compression``."""
    height, width = images.pixels.shape[2:]
    rgb_B3HW = _extend(images.pixels.to(torch.float64), height + height % 2, -(-width // 16) * 16)
    chroma_Nhw = torch.cat([_halve(_mix(rgb_B3HW, BLUE_OF_RGB)), _halve(_mix(rgb_B3HW, RED_OF_RGB))])
    chroma_Nhw = _transform_and_quantise(chroma_Nhw, CHROMA, level)
    luma_BHW = _transform_and_quantise(_mix(rgb_B3HW, LUMA_OF_RGB), LUMA, level)
    chroma_NHW = _double(chroma_Nhw[:, : (height + 1) // 2, : (width + 1) // 2])[:, :height, :width]
    return _to_rgb(luma_BHW[:, :height, :width], *chroma_NHW.chunk(2))


def _extend(planes: Tensor, height: int, width: int) -> Tensor:
    """Extend planes to (..., ``height``, ``width``) by repeating the last row downwards and the last column to the right."""
    down, right = height - planes.shape[-2], width - planes.shape[-1]
    return F.pad(planes, (0, right, 0, down), "replicate")


def _mix(rgb_B3HW: Tensor, weights: tuple[int, int, int, int]) -> Tensor:
    """(B, H, W): luma, blue difference or red difference, according to ``weights`` = (bias, red, green, blue)."""
    bias, *of_rgb = weights
    red, green, blue = (channel * weight for channel, weight in zip(rgb_B3HW.unbind(1), of_rgb, strict=True))
    return (red + green + blue + bias).div_(2**16).floor_()


def _halve(chroma_NHW: Tensor) -> Tensor:
    """(N, h, w): the mean of every 2 x 2 pixels; halves are rounded down in even columns and up in odd ones."""
    rows = chroma_NHW[:, ::2] + chroma_NHW[:, 1::2]
    sums = rows[..., ::2] + rows[..., 1::2]
    bias_w = torch.tensor([1, 2], device=sums.device).repeat(sums.shape[2] // 2)
    return (sums + bias_w).div_(4).floor_()


def _transform_and_quantise(planes_NHW: Tensor, table: tuple[tuple[int, ...], ...], quality: int) -> Tensor:
    """DCT, quantisation and inverse DCT of planes (N, H, W) of whole numbers -128..127; returns whole numbers 0..255.

    ``table`` holds the quantisation steps at quality 50. The planes are extended downwards to a multiple of 8 rows, and so is
    the result.
    """
    height, width = planes_NHW.shape[1:]
    planes_NHW = _extend(planes_NHW, -(-height // 8) * 8, width)
    dct_88, device = _dct(str(planes_NHW.device)), str(planes_NHW.device)
    step_8W, per_step_8W = _steps(table, quality, width, device)
    rows = _shift(planes_NHW.reshape(-1, 8) @ dct_88.T, FORWARD_ROWS_BITS)
    coefficients = _shift(dct_88 @ rows.view(-1, 8, width), FORWARD_COLUMNS_BITS)
    coefficients = coefficients.mul_(per_step_8W).round_().mul_(step_8W)
    columns = _shift(dct_88.T @ coefficients, INVERSE_COLUMNS_BITS)
    pixels = _shift(columns.view(-1, 8) @ dct_88, INVERSE_ROWS_BITS)
    return pixels.add_(128).clamp_(0, 255).view(planes_NHW.shape)


def _shift(sums: Tensor, bits: int) -> Tensor:
    """Whole numbers shifted to the right by ``bits`` and rounded, halves up. They are overwritten."""
    return sums.add_(2 ** (bits - 1)).div_(2**bits).floor_()


@lru_cache(maxsize=8)
def _dct(device: str) -> Tensor:
    """The DCT matrix times 2**13, float64 (8, 8): a row for each frequency."""
    even, odd = torch.tensor(EVEN, dtype=torch.float64), torch.tensor(ODD, dtype=torch.float64)
    rows = torch.stack([torch.cat([even, even.flip(1)], 1), torch.cat([odd, -odd.flip(1)], 1)], 1)
    return rows.view(8, 8).to(device)


@lru_cache(maxsize=64)
def _steps(table: tuple[tuple[int, ...], ...], quality: int, width: int, device: str) -> tuple[Tensor, Tensor]:
    """What ``quantisation`` gives, float64 (8, ``width``): a block repeated side by side."""
    step, per_step = (torch.from_numpy(array).double().repeat(1, width // 8) for array in quantisation(table, quality))
    return step.to(device), per_step.to(device)


def _double(chroma_Nhw: Tensor) -> Tensor:
    """Enlarge chroma planes (N, h, w) of 0..255 to (N, 2h, 2w), minus 128.

    Each new pixel is 9/16 of the old pixel in which it lies, 3/16 of each of the two nearest neighbours beside and above or
    below it, and 1/16 of the nearest one across the corner; edges are repeated. In planes of 1 or 2 columns pixels are only
    repeated.
    """
    count, height, width = chroma_Nhw.shape
    chroma_Nhw = chroma_Nhw - 128
    if width <= 2:
        return chroma_Nhw.repeat_interleave(2, 1).repeat_interleave(2, 2)
    padded = F.pad(chroma_Nhw, (1, 1, 1, 1), "replicate")
    above, own, below = padded[:, :-2], 3 * padded[:, 1:-1], padded[:, 2:]
    rows = torch.stack([own + above, own + below], 2).view(count, 2 * height, width + 2)
    left, own, right = rows[..., :-2], 3 * rows[..., 1:-1], rows[..., 2:]
    return torch.stack([own + left + 8, own + right + 7], 3).flatten(2).div_(16).floor_()


def _to_rgb(luma_BHW: Tensor, blue_BHW: Tensor, red_BHW: Tensor) -> Tensor:
    """uint8 (B, 3, H, W) from luma (0..255) and blue and red difference (-128..127), each (B, H, W)."""
    rgb = [
        (blue_BHW * of_blue + red_BHW * of_red + 2**15).div_(2**16).add_(luma_BHW)
        for of_blue, of_red in (RED_OF_CHROMA, GREEN_OF_CHROMA, BLUE_OF_CHROMA)
    ]
    return truncate(torch.stack(rgb, 1))
