"""JPEG compression and decompression of a batch, with the same pixels as libjpeg-turbo bit by bit.

The entropy coding, which comes between the two and loses nothing, is left out.

See jpeg_tables.py for the sources; also libjpeg's jcsample.c, jcprepct.c and jdsample.c.

libjpeg computes in fixed point: it adds whole numbers and shifts the sum to the right. Here a sum is a float that holds it
exactly, scaled by a power of 2, and ``floor`` takes the place of the shift. float32 holds whole numbers up to 2**24 exactly,
which is enough for most sums; the larger ones of the DCT are split in two.

Shapes: B images, N planes (B of luma, 2B of chroma); H, W height and width; h, w height and width of the halved chroma. In the
DCT the height and width of a plane are multiples of 8.
"""

from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from gch_bench.corruptions.batched.common import product_dtype
from gch_bench.corruptions.jpeg_tables import (
    BLUE_OF_CHROMA,
    BLUE_OF_RGB,
    CHROMA,
    EVEN,
    GREEN_OF_CHROMA,
    LUMA,
    LUMA_OF_RGB,
    ODD,
    RED_OF_CHROMA,
    RED_OF_RGB,
    quantisation,
)
from gch_bench.corruptions.shared import Shared

_SPLIT_BITS = 7  # see _Matrices


def jpeg_compression(images: Shared[Tensor], level: int) -> Tensor:
    """What Pillow reads after saving the images as JPEG of quality ``level``, 1..100."""
    pixels = images.pixels
    height, width = pixels.shape[2:]
    dtype = product_dtype(pixels.device)
    rgb = [_extend(channel.to(dtype), height + height % 2, -(-width // 16) * 16) for channel in pixels.unbind(1)]
    chroma_Nhw = torch.cat([_halve(_mix(rgb, BLUE_OF_RGB)), _halve(_mix(rgb, RED_OF_RGB))])
    chroma_Nhw = _transform_and_quantise(chroma_Nhw, CHROMA, level)
    luma_BHW = _transform_and_quantise(_mix(rgb, LUMA_OF_RGB), LUMA, level)
    chroma_NHW = _double(chroma_Nhw[:, : (height + 1) // 2, : (width + 1) // 2])[:, :height, :width]
    return _to_rgb(luma_BHW[:, :height, :width], *chroma_NHW.chunk(2))


def _mix(rgb: list[Tensor], weights: tuple[int, int, int, int]) -> Tensor:
    """(B, H, W): luma, blue difference or red difference, according to ``weights`` = (bias, red, green, blue)."""
    bias, *of_rgb = (weight / 65536 for weight in weights)
    red, green, blue = rgb
    mixed = torch.add(torch.tensor(bias), red, alpha=of_rgb[0])
    return mixed.add_(green, alpha=of_rgb[1]).add_(blue, alpha=of_rgb[2]).floor_()


def _extend(planes_NHW: Tensor, height: int, width: int) -> Tensor:
    """Extend planes to (N, ``height``, ``width``) by repeating the last row downwards and the last column to the right."""
    down, right = height - planes_NHW.shape[1], width - planes_NHW.shape[2]
    return F.pad(planes_NHW[:, None], (0, right, 0, down), "replicate")[:, 0] if down or right else planes_NHW


def _halve(chroma_NHW: Tensor) -> Tensor:
    """(N, h, w): the mean of every 2 x 2 pixels; halves are rounded down in even columns and up in odd ones."""
    rows = chroma_NHW[:, ::2] + chroma_NHW[:, 1::2]
    bias_w = torch.tensor([0.25, 0.5], dtype=rows.dtype, device=rows.device).repeat(rows.shape[2] // 4)
    return torch.add(bias_w, rows[..., ::2] + rows[..., 1::2], alpha=0.25).floor_()


def _transform_and_quantise(planes_NHW: Tensor, table: tuple[tuple[int, ...], ...], quality: int) -> Tensor:
    """DCT, quantisation and inverse DCT of planes (N, H, W) of whole numbers -128..127; returns whole numbers 0..255.

    ``table`` holds the quantisation steps at quality 50. The planes are extended downwards to a multiple of 8 rows, and so is
    the result.
    """
    height, width = planes_NHW.shape[1:]
    planes_NHW = _extend(planes_NHW, -(-height // 8) * 8, width)
    m = _matrices(planes_NHW.dtype, str(planes_NHW.device))
    step_8W, per_step_8W, bias_8W = _steps(table, quality, width, planes_NHW.dtype, str(planes_NHW.device))
    # The rows of two blocks are multiplied at once, because products with 16 columns are quicker than with 8. A product is
    # added to 1/2, so that floor rounds it.
    rows = torch.full_like(planes_NHW.view(-1, 16), 0.5).addmm_(planes_NHW.view(-1, 16), m.forward_rows).floor_()
    blocks = rows.view(-1, 8, width)
    high, low = (factor.expand(len(blocks), 8, 8) for factor in m.forward_columns)
    coefficients = torch.full_like(blocks, 128).baddbmm_(low, blocks).floor_().baddbmm_(high, blocks, beta=2**-8).floor_()
    blocks = torch.addcmul(bias_8W, coefficients.mul_(per_step_8W).round_(), step_8W, out=blocks)
    high, low = (factor.expand(len(blocks), 8, 8) for factor in m.inverse_columns)
    columns = torch.bmm(low, blocks, out=coefficients).floor_().baddbmm_(high, blocks, beta=2**-4).floor_().view(-1, 16)
    high, low = m.inverse_rows
    pixels = torch.mm(columns, low, out=rows).floor_().addmm_(columns, high, beta=2**-11)
    return pixels.clamp_(0, 255).floor_().view(planes_NHW.shape)


@dataclass(frozen=True)
class _Matrices:
    """The matrices of the DCT and its inverse, along the rows and along the columns.

    A sum S >> s that may exceed 2**24 is computed as ``floor(high x + floor(low x) / 2**(s - 7))``. ``high`` holds the
    multiples of 2**7 in the matrix, divided by 2**s, and ``low`` the rest, divided by 2**7, so that both products are exact. A
    pair of matrices is (high, low). Along the columns the matrices are (8, 8); along the rows they treat two blocks at once and
    are (16, 16).
    """

    forward_rows: Tensor
    forward_columns: tuple[Tensor, Tensor]
    inverse_columns: tuple[Tensor, Tensor]
    inverse_rows: tuple[Tensor, Tensor]


@lru_cache(maxsize=8)
def _matrices(dtype: torch.dtype, device: str) -> _Matrices:
    even, odd = torch.tensor(EVEN, dtype=torch.float64), torch.tensor(ODD, dtype=torch.float64)
    dct = torch.stack([torch.cat([even, even.flip(1)], 1), torch.cat([odd, -odd.flip(1)], 1)], 1).view(8, 8)
    high = (dct / 2**_SPLIT_BITS).round()
    low = dct / 2**_SPLIT_BITS - high
    two = torch.eye(2, dtype=torch.float64)

    def on_device(matrix: Tensor) -> Tensor:
        return matrix.contiguous().to(device, dtype)

    return _Matrices(
        forward_rows=on_device(torch.kron(two, dct.T.contiguous() / 2**11)),
        forward_columns=(on_device(high / 2**8), on_device(low)),
        inverse_columns=(on_device(high.T / 2**4), on_device(low.T)),
        inverse_rows=(on_device(torch.kron(two, high / 2**11)), on_device(torch.kron(two, low))),
    )


@lru_cache(maxsize=64)
def _steps(
    table: tuple[tuple[int, ...], ...], quality: int, width: int, dtype: torch.dtype, device: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Quantisation steps, their inverses, and a bias for the coefficients: each (8, width), a block repeated side by side."""
    step, per_step = (torch.from_numpy(array).double() for array in quantisation(table, quality))
    # What is added to frequency 0 reaches all samples alike, so the bias adds the halves for rounding in both passes of the
    # inverse DCT, and the shift of the levels by 128.
    bias = torch.zeros(8, 8, dtype=torch.float64)
    bias[0] = 2**10 / 2**13
    bias[0, 0] += (128 + 0.5) * 8
    step, per_step, bias = (each.repeat(1, width // 8).to(device, dtype) for each in (step, per_step, bias))
    return step, per_step, bias


def _double(chroma_Nhw: Tensor) -> Tensor:
    """Enlarge chroma planes (N, h, w) of 0..255 to (N, 2h, 2w), minus 128.

    Each new pixel is 9/16 of the old pixel in which it lies, 3/16 of each of the two nearest neighbours beside and above or
    below it, and 1/16 of the nearest one across the corner; edges are repeated. In planes of 1 or 2 columns pixels are only
    repeated.
    """
    count, height, width = chroma_Nhw.shape
    if width <= 2:
        return chroma_Nhw.sub(128).repeat_interleave(2, 1).repeat_interleave(2, 2)
    padded = F.pad(chroma_Nhw[:, None], (1, 1, 1, 1), "replicate")[:, 0].to(torch.int16).sub_(128)
    above, own, below = padded[:, :-2], padded[:, 1:-1], padded[:, 2:]
    rows = padded.new_empty(count, height, 2, width + 2)
    torch.add(above, own, alpha=3, out=rows[:, :, 0])
    torch.add(below, own, alpha=3, out=rows[:, :, 1])
    rows = rows.view(count, 2 * height, width + 2)
    left, own, right = rows[..., :-2], rows[..., 1:-1], rows[..., 2:]
    own = own * 3
    even = torch.add(left, own).add_(8).bitwise_right_shift_(4)
    odd = own.add_(right).add_(7).bitwise_right_shift_(4)
    # Even and odd columns must alternate: the byte of an even one and that of an odd one are joined to a little-endian int16.
    return odd.mul_(256).add_(even.bitwise_and_(255)).view(torch.int8).to(chroma_Nhw.dtype)


def _to_rgb(luma_BHW: Tensor, blue_BHW: Tensor, red_BHW: Tensor) -> Tensor:
    """uint8 (B, 3, H, W) from luma (0..255) and blue and red difference (-128..127), each (B, H, W).

    Some sums need 25 bits, one more than float32 holds exactly; they are all at least 256, so clamping hides the error.
    """
    rgb = torch.empty(len(luma_BHW), 3, *luma_BHW.shape[1:], dtype=torch.uint8, device=luma_BHW.device)
    luma_BHW = luma_BHW + 0.5
    for channel, (of_blue, of_red) in ((1, GREEN_OF_CHROMA), (0, RED_OF_CHROMA), (2, BLUE_OF_CHROMA)):
        level = torch.add(luma_BHW, red_BHW, alpha=of_red / 65536) if of_red else luma_BHW
        level = torch.add(level, blue_BHW, alpha=of_blue / 65536) if of_blue else level
        rgb[:, channel] = level.clamp_(0, 255).to(torch.int16)  # conversion by way of int16 is several times as quick
    return rgb
