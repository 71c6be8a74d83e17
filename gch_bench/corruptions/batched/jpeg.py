"""JPEG compression and decompression of a batch, with the same pixels as libjpeg-turbo bit by bit.

The entropy coding, which comes between the two and loses nothing, is left out.

Sources: ITU-T T.81 (1992) and the arithmetic of libjpeg's jccolor.c, jcsample.c, jcprepct.c, jfdctint.c, jcdctmgr.c,
jcparam.c, jidctint.c, jdsample.c, jdcolor.c as Pillow uses them: 4:2:0, islow DCT, triangle ("fancy") chroma upsampling.

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

# The 8 x 8 DCT matrix of jfdctint.c times 2**13, given by the rows of its even and of its odd frequencies. The columns are the
# samples 0..3; those of the samples 4..7 mirror them. The inverse DCT is the transposed matrix. Some numbers differ from the
# rounded entries of the exact matrix, because libjpeg adds constants that are rounded one by one.
_EVEN = ((8192, 8192, 8192, 8192), (10703, 4433, -4433, -10703), (8192, -8192, -8192, 8192), (4433, -10704, 10704, -4433))
_ODD = ((11363, 9633, 6437, 2260), (9633, -2259, -11362, -6436), (6437, -11362, 2261, 9633), (2260, -6436, 9633, -11363))
_SPLIT_BITS = 7  # see _Matrices

# The quantisation steps of luma and chroma at quality 50: T.81, tables K.1 and K.2.
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

# (bias, weight of red, of green, of blue) times 2**16, from jccolor.c. The biases also shift luma and chroma to -128..127 and
# decide the rounding: luma rounds halves up, chroma rounds them down.
_LUMA_OF_RGB = (32768 - (128 << 16), 19595, 38470, 7471)
_BLUE_OF_RGB = (32767, -11059, -21709, 32768)
_RED_OF_RGB = (32767, 32768, -27439, -5329)


def jpeg_compression(images: Tensor, quality: int) -> Tensor:
    """What Pillow reads after saving the images, uint8 (B, 3, H, W), as JPEG of ``quality`` 1..100; on the images' device."""
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
    """Quantisation steps, their inverses, and a bias for the coefficients: each (8, width), a block repeated side by side."""
    scale = 5000 // quality if quality < 50 else 200 - 2 * quality
    step = torch.tensor(table).mul(scale).add(50).div(100, rounding_mode="floor").clamp(1, 255).double()
    # The DCT's output is 8 times the coefficient. libjpeg rounds halves away from zero: an inverse that is slightly too large
    # leaves no halves to round. It moves nothing else, because the next number is at least 1 / (8 step) away, a relative
    # 2**-14.
    per_step = (1 + 2**-18) / (8 * step)
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
    for channel, of_blue, of_red in ((1, -22554, -46802), (0, 0, 91881), (2, 116130, 0)):
        level = torch.add(luma_BHW, red_BHW, alpha=of_red / 65536) if of_red else luma_BHW
        level = torch.add(level, blue_BHW, alpha=of_blue / 65536) if of_blue else level
        rgb[:, channel] = level.clamp_(0, 255).to(torch.int16)  # conversion by way of int16 is several times as quick
    return rgb
