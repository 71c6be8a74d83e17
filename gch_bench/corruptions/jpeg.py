"""The numbers of libjpeg-turbo's codec as Pillow uses it: the DCT, the steps of quantisation, the weights of the colours.

Sources: ITU-T T.81 (1992) and libjpeg's jccolor.c, jfdctint.c, jcdctmgr.c, jcparam.c, jidctint.c, jdcolor.c.
"""

from functools import lru_cache

import numpy as np

# The 8 x 8 DCT matrix of jfdctint.c times 2**13, given by the rows of its even and of its odd frequencies. The columns are the
# samples 0..3; those of the samples 4..7 mirror them. The inverse DCT is the transposed matrix. Some numbers differ from the
# rounded entries of the exact matrix, because libjpeg adds constants that are rounded one by one.
EVEN = ((8192, 8192, 8192, 8192), (10703, 4433, -4433, -10703), (8192, -8192, -8192, 8192), (4433, -10704, 10704, -4433))
ODD = ((11363, 9633, 6437, 2260), (9633, -2259, -11362, -6436), (6437, -11362, 2261, 9633), (2260, -6436, 9633, -11363))
# By how many bits the sums are shifted to the right (rounded) after each pass.
FORWARD_ROWS_BITS, FORWARD_COLUMNS_BITS, INVERSE_COLUMNS_BITS, INVERSE_ROWS_BITS = 11, 15, 11, 18

# The quantisation steps of luma and chroma at quality 50: T.81, tables K.1 and K.2.
LUMA = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
CHROMA = (
    (17, 18, 24, 47, 99, 99, 99, 99),
    (18, 21, 26, 66, 99, 99, 99, 99),
    (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99),
    *((99,) * 8,) * 4,
)

# (bias, weight of red, of green, of blue) times 2**16, from jccolor.c. The biases also shift luma and chroma to -128..127 and
# decide the rounding: luma rounds halves up, chroma rounds them down.
LUMA_OF_RGB = (32768 - (128 << 16), 19595, 38470, 7471)
BLUE_OF_RGB = (32767, -11059, -21709, 32768)
RED_OF_RGB = (32767, 32768, -27439, -5329)
# (weight of the blue difference, of the red difference) times 2**16, from jdcolor.c; they are added to luma.
RED_OF_CHROMA = (0, 91881)
GREEN_OF_CHROMA = (-22554, -46802)
BLUE_OF_CHROMA = (116130, 0)


@lru_cache(maxsize=64)
def quantisation(table: tuple[tuple[int, ...], ...], quality: int) -> tuple[np.ndarray, np.ndarray]:
    """The steps (8, 8) of ``table`` at ``quality``, and the factors that turn the DCT's output into multiples of a step.

    The DCT's output is 8 times the coefficient. libjpeg rounds halves away from zero: a factor that is slightly too large
    leaves no halves to round. It moves nothing else, because the next number is at least 1 / (8 step) away, a relative 2**-14.
    """
    scale = 5000 // quality if quality < 50 else 200 - 2 * quality
    step = ((np.array(table) * scale + 50) // 100).clip(1, 255)
    return step, (1 + 2**-18) / (8 * step)
