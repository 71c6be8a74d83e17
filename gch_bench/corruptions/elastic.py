"""The random affine map of elastic transform, for one image and for many.

Source: hendrycks/robustness, make_imagenet_c.py, which follows Simard, Steinkraus and Platt, Best Practices for Convolutional
Neural Networks Applied to Visual Document Analysis, ICDAR 2003.
"""

from collections.abc import Sequence
from typing import TypeVar

from torch import Tensor

Number = TypeVar("Number", float, Tensor)

SHIFTS, MOVES_X, MOVES_Y = 0, 1, 2  # streams: the six draws of the affine map, and the moves of the pixels in x and in y
CUT = 3.0  # where the Gaussian that blurs the moves ends, in units of its sigma


def affine_map(draws: Sequence[Number], affine: float, height: int, width: int) -> tuple[Number, ...]:
    """The map from the places of the new image to those of the old one that they show, in pixels.

    It is determined by three points, which lie from the middle of the old image along its diagonals by a third of the shorter
    side in each direction. In the new image they lie elsewhere, by up to ``affine`` pixels in each direction.

    Args:
        draws: six draws of U(0, 1): for x and y of the first point, of the second, and of the third.

    Returns:
        (xx, xy, x0, yx, yy, y0): the new image shows at (x, y) what the old one shows at (xx x + xy y + x0, yx x + yy y + y0).
    """
    dx_a, dy_a, dx_b, dy_b, dx_c, dy_c = (affine * (2 * draw - 1) for draw in draws)
    middle_x, middle_y = height // 2, width // 2  # as in the reference, which uses (height, width) as (x, y)
    reach = max(1, min(height, width) // 3)
    # The old points are a = middle + (reach, reach), b = middle + (reach, -reach), c = middle + (-reach, -reach). The map turns
    # the new vector from b to a into (0, 2 reach), and the new vector from c to b into (2 reach, 0).
    ba_x, ba_y = dx_a - dx_b, dy_a - dy_b + 2 * reach
    cb_x, cb_y = dx_b - dx_c + 2 * reach, dy_b - dy_c
    scale = 2 * reach / (ba_x * cb_y - cb_x * ba_y)
    xx, xy, yx, yy = -scale * ba_y, scale * ba_x, scale * cb_y, -scale * cb_x
    old_x, old_y = middle_x + reach, middle_y - reach
    new_x, new_y = old_x + dx_b, old_y + dy_b
    return xx, xy, old_x - (xx * new_x + xy * new_y), yx, yy, old_y - (yx * new_x + yy * new_y)
