"""The validation images that a diagnosis looks at."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from gch_bench.data.images import BadImage
from gch_bench.data.sets import DataSource
from gch_bench.errors import UserError


def spread_images(data: DataSource, count: int, field: str) -> list[int]:
    """The ids of `count` images that are spread evenly over the validation set.

    Raises:
        UserError: the set has fewer images; the message names the `field`.
    """
    if count > len(data.val):
        raise UserError(f"{field} must be at most {len(data.val)}, the validation images of {data.name}, got {count}")
    return [int((i + 0.5) * len(data.val) / count) for i in range(count)]


def prepared(data: DataSource, ids: Sequence[int], size: int) -> Tensor:
    """These images as the evaluation would prepare them for a network of this image size: uint8 (B, 3, size, size).

    Raises:
        UserError: an image cannot be read.
    """
    transform = replace(data.preparation, size=size)
    made = []
    for i in ids:
        image = data.val.load_or_bad(i)
        if isinstance(image, BadImage):
            raise UserError(f"{image.path} cannot be read: {image.reason}; repair it or choose another number of images")
        made.append(transform(image))
    return torch.stack(made)
