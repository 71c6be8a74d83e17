"""JPEG compression, batched: what libjpeg-turbo loses and returns, bit by bit, without the lossless entropy code between.

Sources: ITU-T T.81 (1992), and the arithmetic of libjpeg's jccolor.c, jcsample.c, jcprepct.c, jfdctint.c, jcdctmgr.c,
jcparam.c, jidctint.c, jdsample.c, jdcolor.c as Pillow uses them: 4:2:0, islow DCT, triangle ("fancy") chroma upsampling.

libjpeg computes in fixed point: whole sums, shifted right. Here a sum is a float that holds it exactly, scaled by a power of 2,
and the shift is ``floor``. float32 holds whole numbers to 2**24 and carries most sums; the DCT's larger ones are split in two.

Shapes: B images, N planes (B of luma, 2B of chroma); H, W height and width; h, w those of halved chroma. Where the DCT works,
a plane's rows and columns are whole blocks of 8.
"""

from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from gch_bench.corruptions.pixel import product_dtype

# The 8 x 8 DCT of jfdctint.c, times 2**13, from its even and odd halves: rows are frequencies, columns samples 0..3.
# The inverse is the transposed matrix. The odd numbers come from libjpeg's sums of rounded constants; rounding gives others.
_EVEN = ((8192, 8192, 8192, 8192), (10703, 4433, -4433, -10703), (8192, -8192, -8192, 8192), (4433, -10704, 10704, -4433))
_ODD = ((11363, 9633, 6437, 2260), (9633, -2259, -11362, -6436), (6437, -11362, 2261, 9633), (2260, -6436, 9633, -11363))
_SPLIT_BITS = 7

# T.81, tables K.1 and K.2: quantisation of luma and chroma at quality 50.
_LUMA = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
_CHROMA = (
    (17, 18, 24, 47, 99, 99, 99, 99),
    (18, 21, 26, 66, 99, 99, 99, 99),
    (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99),
    *((99,) * 8,) * 4,
)

# (bias, red, green, blue) times 2**16 of jccolor.c; luma and chroma shifted to -128..127, chroma's halves rounded down.
_LUMA_OF_RGB = (32768 - (128 << 16), 19595, 38470, 7471)
_BLUE_OF_RGB = (32767, -11059, -21709, 32768)
_RED_OF_RGB = (32767, 32768, -27439, -5329)


def jpeg_compression(images: Tensor, quality: int) -> Tensor:
    """uint8 (B, 3, H, W), saved as JPEG of this ``quality`` (1..100) and read back as Pillow does, on the images' device."""
    height, width = images.shape[2:]
    dtype = product_dtype(images.device)
    with torch.autocast(images.device.type, enabled=False):
        rgb = [_extend(channel.to(dtype), height + height % 2, -(-width // 16) * 16) for channel in images.unbind(1)]
        chroma_Nhw = torch.cat([_halve(_mix(rgb, _BLUE_OF_RGB)), _halve(_mix(rgb, _RED_OF_RGB))])
        chroma_Nhw = _transform_and_quantise(chroma_Nhw, _CHROMA, quality)
        luma_BHW = _transform_and_quantise(_mix(rgb, _LUMA_OF_RGB), _LUMA, quality)
        chroma_NHW = _double(chroma_Nhw[:, : (height + 1) // 2, : (width + 1) // 2])[:, :height, :width]
        return _to_rgb(luma_BHW[:, :height, :width], *chroma_NHW.chunk(2))


def _mix(rgb: list[Tensor], weights: tuple[int, int, int, int]) -> Tensor:
    """(B, H, W): one of luma, blue difference and red difference."""
    bias, *of_rgb = (weight / 65536 for weight in weights)
    red, green, blue = rgb
    mixed = torch.add(torch.tensor(bias), red, alpha=of_rgb[0])
    return mixed.add_(green, alpha=of_rgb[1]).add_(blue, alpha=of_rgb[2]).floor_()


def _extend(planes_NHW: Tensor, height: int, width: int) -> Tensor:
    """(N, ``height``, ``width``): the last row and column repeated downwards and to the right."""
    down, right = height - planes_NHW.shape[1], width - planes_NHW.shape[2]
    return F.pad(planes_NHW[:, None], (0, right, 0, down), "replicate")[:, 0] if down or right else planes_NHW


def _halve(chroma_NHW: Tensor) -> Tensor:
    """(N, h, w): mean of each 2 x 2 pixels; its half is rounded down in even columns, up in odd ones."""
    rows = chroma_NHW[:, ::2] + chroma_NHW[:, 1::2]
    bias_w = torch.tensor([0.25, 0.5], dtype=rows.dtype, device=rows.device).repeat(rows.shape[2] // 4)
    return torch.add(bias_w, rows[..., ::2] + rows[..., 1::2], alpha=0.25).floor_()


def _transform_and_quantise(planes_NHW: Tensor, table: tuple[tuple[int, ...], ...], quality: int) -> Tensor:
    """Whole numbers -128..127 -> 0..255 after DCT, quantisation and inverse DCT; rows extended to whole blocks."""
    height, width = planes_NHW.shape[1:]
    planes_NHW = _extend(planes_NHW, -(-height // 8) * 8, width)
    m = _matrices(planes_NHW.dtype, str(planes_NHW.device))
    step_8W, per_step_8W, bias_8W = _steps(table, quality, width, planes_NHW.dtype, str(planes_NHW.device))
    # Rows of two blocks: products with 16 columns are quicker than with 8. Products start from the halves for rounding.
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
    """The DCT's factors. A sum S >> s that may pass 2**24 is taken as ``high x + floor(low x) / 2**(s - 7)``, then floored:
    high holds the matrix's multiples of 2**7, low the rest, so that both products are exact. Passes along columns have high
    before low, (8, 8) each; passes along rows treat two blocks at once, (16, 16).
    """

    forward_rows: Tensor
    forward_columns: tuple[Tensor, Tensor]
    inverse_columns: tuple[Tensor, Tensor]
    inverse_rows: tuple[Tensor, Tensor]


@lru_cache(maxsize=8)
def _matrices(dtype: torch.dtype, device: str) -> _Matrices:
    even, odd = torch.tensor(_EVEN, dtype=torch.float64), torch.tensor(_ODD, dtype=torch.float64)
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
    """Quantisation steps, their inverses and what is added to the coefficients, all (8, width), one block beside the other."""
    scale = 5000 // quality if quality < 50 else 200 - 2 * quality
    step = torch.tensor(table).mul(scale).add(50).div(100, rounding_mode="floor").clamp(1, 255).double()
    # The DCT's output is 8 times the coefficient. Halves round away from zero: a little more than the inverse, and no half is
    # left; the next number is at least 1 / (8 step) away, a relative 2**-14.
    per_step = (1 + 2**-18) / (8 * step)
    # What the first frequency holds goes to all samples alike: the halves for rounding in both passes, the level shift by 128.
    bias = torch.zeros(8, 8, dtype=torch.float64)
    bias[0] = 2**10 / 2**13
    bias[0, 0] += (128 + 0.5) * 8
    step, per_step, bias = (each.repeat(1, width // 8).to(device, dtype) for each in (step, per_step, bias))
    return step, per_step, bias


def _double(chroma_Nhw: Tensor) -> Tensor:
    """0..255 -> -128..127 (N, 2h, 2w): each new pixel is 9/16 its own, 3/16 the neighbour beside and below or above, 1/16 the
    one across; the edges repeated. Planes of 1 or 2 columns repeat their pixels instead.
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
    # Columns by turns: an even one's byte, then an odd one's, make a little-endian int16.
    return odd.mul_(256).add_(even.bitwise_and_(255)).view(torch.int8).to(chroma_Nhw.dtype)


def _to_rgb(luma_BHW: Tensor, blue_BHW: Tensor, red_BHW: Tensor) -> Tensor:
    """uint8 (B, 3, H, W). Sums of 25 bits, one too many, are at least 256 and are clamped."""
    rgb = torch.empty(len(luma_BHW), 3, *luma_BHW.shape[1:], dtype=torch.uint8, device=luma_BHW.device)
    luma_BHW = luma_BHW + 0.5
    for channel, of_blue, of_red in ((1, -22554, -46802), (0, 0, 91881), (2, 116130, 0)):
        level = torch.add(luma_BHW, red_BHW, alpha=of_red / 65536) if of_red else luma_BHW
        level = torch.add(level, blue_BHW, alpha=of_blue / 65536) if of_blue else level
        rgb[:, channel] = level.clamp_(0, 255).to(torch.int16)  # float to uint8 is several times as slow as by way of int16
    return rgb
