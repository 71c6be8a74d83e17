"""The corruptions as a transform for pipelines of torchvision.transforms.v2."""

import hashlib
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from gch_bench.corruptions.engine import corrupt, corrupt_all
from gch_bench.corruptions.table import CORRUPTIONS


class ImageNetC(v2.Transform):
    """Corrupt images as in ImageNet-C, e.g. ``v2.Compose([v2.Resize(256), v2.CenterCrop(224), ImageNetC("fog", 3)])``.

    Images are RGB images of Pillow, and uint8 tensors (3, H, W) or (B, 3, H, W), also as tv_tensors.Image; the output has the
    type of the input. As in all transforms of v2, images may lie in tuples and dicts together with other things, and of several
    plain tensors the first is the image. Everything else (labels, boxes, masks) passes through untouched, although corruptions
    such as elastic_transform move the pixels under a box or mask a little.

    The random draws of an image depend on its own pixels (and on seed, name and severity), so that it is always corrupted in
    the same way, in any order, worker or epoch. To choose the ids that name the draws yourself, call ``corrupt``.

    Args:
        name: a key of CORRUPTIONS.
        severity: 1..5.
        seed: another seed gives other draws.
        parameters: a key of PARAMETER_SETS, which gives the levels; "auto": the one made for images of about this size, see
            ``parameters_for``, by the shorter side.
        fresh: take new draws every time, from torch's global generator, as other random transforms do. torch.manual_seed and
            the workers of a DataLoader then have their usual effect.

    Raises:
        ValueError: an argument breaks its rule. Applied to something else than such images, ValueError or TypeError. All
            messages are one line.
    """

    def __init__(self, name: str, severity: int, seed: int = 0, parameters: str = "auto", fresh: bool = False) -> None:
        super().__init__()
        if not isinstance(fresh, bool):
            raise ValueError(f"fresh must be True or False, got {fresh!r}")
        no_images, no_ids = torch.empty(0, 3, 1, 1, dtype=torch.uint8), torch.empty(0, dtype=torch.int64)
        corrupt_all(no_images, [(name, severity)], no_ids, seed, parameters)  # checks the arguments
        self.name, self.severity, self.seed, self.parameters, self.fresh = name, int(severity), int(seed), parameters, fresh

    def extra_repr(self) -> str:
        defaults = {"seed": 0, "parameters": "auto", "fresh": False}
        options = [f"{key}={getattr(self, key)!r}" for key, value in defaults.items() if getattr(self, key) != value]
        return ", ".join([repr(self.name), str(self.severity), *options])

    def check_inputs(self, flat_inputs: list[Any]) -> None:
        """Raise TypeError if nothing among the inputs may be an image."""
        if not any(isinstance(item, Image.Image | Tensor) and not _passes(item) for item in flat_inputs):
            types = ", ".join(type(item).__name__ for item in flat_inputs) or "nothing"
            raise TypeError(f"ImageNetC needs an image of Pillow or a uint8 tensor, got {types}: put v2.ToImage() before it")

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """One image or batch of images corrupted; boxes and masks as they are."""
        if _passes(inpt):
            return inpt
        if isinstance(inpt, Image.Image):
            if inpt.mode != "RGB":
                raise ValueError(f"ImageNetC needs RGB images, got mode {inpt.mode}: put v2.RGB() before it")
            pixels_3HW = torch.from_numpy(np.array(inpt)).permute(2, 0, 1)
            return Image.fromarray(self._corrupted(pixels_3HW[None])[0].permute(1, 2, 0).contiguous().numpy())
        if isinstance(inpt, tv_tensors.Video):
            raise TypeError("ImageNetC needs images, got a Video: give it the frames as a tensor (B, 3, H, W)")
        if inpt.dtype != torch.uint8:
            raise TypeError(f"ImageNetC needs uint8 pixels, got {inpt.dtype}: put it before v2.ToDtype and v2.Normalize")
        if inpt.ndim not in (3, 4) or inpt.shape[-3] != 3 or 0 in inpt.shape[-2:]:
            raise ValueError(
                f"ImageNetC needs shape (3, H, W) or (B, 3, H, W), got {tuple(inpt.shape)}: grey images need v2.RGB() before it"
            )
        pixels = inpt.as_subclass(Tensor)
        corrupted = self._corrupted(pixels) if pixels.ndim == 4 else self._corrupted(pixels[None])[0]
        return tv_tensors.wrap(corrupted, like=inpt) if isinstance(inpt, tv_tensors.Image) else corrupted

    def _corrupted(self, images_B3HW: Tensor) -> Tensor:
        return corrupt(images_B3HW, self.name, self.severity, self._ids(images_B3HW), self.seed, self.parameters)

    def _ids(self, images_B3HW: Tensor) -> Tensor:
        if not CORRUPTIONS[self.name].random:
            return torch.zeros(len(images_B3HW), dtype=torch.int64)
        if self.fresh:
            return torch.randint(2**63 - 1, (len(images_B3HW),))
        return torch.tensor([pixels_id(image_3HW) for image_3HW in images_B3HW.cpu().numpy()], dtype=torch.int64)


def _passes(item: Any) -> bool:
    """Whether it is a box, a mask or the like."""
    return isinstance(item, tv_tensors.TVTensor) and not isinstance(item, tv_tensors.Image | tv_tensors.Video)


def pixels_id(image_3HW: np.ndarray) -> int:
    """The id that names an image's draws where it has no other: 63 bits of the BLAKE2b digest of its shape and bytes."""
    digest = hashlib.blake2b(f"{image_3HW.shape} ".encode() + image_3HW.tobytes(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
