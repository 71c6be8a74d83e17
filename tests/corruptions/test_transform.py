"""ImageNetC: the pixels of `corrupt`, in pipelines of torchvision, in loader processes, and what it refuses."""

import copy
import pickle
import re
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2

from gch_bench.corruptions import CORRUPTIONS, ImageNetC, corrupt, parameters_for
from gch_bench.corruptions.transform import pixels_id

PIXELS = torch.from_numpy(np.random.default_rng(3).integers(0, 256, (4, 3, 40, 48), dtype=np.uint8))
IDS = torch.tensor([pixels_id(image.numpy()) for image in PIXELS])


def pillow(image: Tensor) -> Image.Image:
    return Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_the_pixels_are_those_of_corrupt(name: str) -> None:
    """For all kinds of images, with the ids of their pixels and the levels for the shorter side."""
    expected = corrupt(PIXELS, name, 3, IDS, parameters="cifar_32")
    assert parameters_for(40) == "cifar_32"
    transform = ImageNetC(name, 3)
    assert torch.equal(transform(PIXELS), expected)
    assert torch.equal(transform(PIXELS[1]), expected[1])
    image = transform(tv_tensors.Image(PIXELS[2]))
    assert type(image) is tv_tensors.Image
    assert torch.equal(image, expected[2])
    assert transform(pillow(PIXELS[3])).tobytes() == pillow(expected[3]).tobytes()


def test_seed_and_parameters() -> None:
    transform = ImageNetC("gaussian_noise", 2, seed=5, parameters="imagenet_224")
    assert torch.equal(transform(PIXELS), corrupt(PIXELS, "gaussian_noise", 2, IDS, 5, "imagenet_224"))
    assert not torch.equal(transform(PIXELS), ImageNetC("gaussian_noise", 2, parameters="imagenet_224")(PIXELS))


def test_ids_of_pixels() -> None:
    """Images that differ in a pixel or in their shape have other draws."""
    other = PIXELS[0].clone()
    other[0, 0, 0] += 1
    ids = {*IDS.tolist(), pixels_id(other.numpy()), pixels_id(PIXELS[0].reshape(3, 48, 40).numpy())}
    assert len(ids) == len(PIXELS) + 2
    assert all(0 <= each < 2**63 for each in ids)


def test_the_input_stays_as_it_is_and_so_does_the_global_generator() -> None:
    before, state = PIXELS.clone(), torch.get_rng_state()
    ImageNetC("spatter", 4)(PIXELS)
    assert torch.equal(PIXELS, before)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_pipeline_with_labels_boxes_and_masks() -> None:
    pipeline = v2.Compose(
        [v2.Resize(40), v2.CenterCrop(32), ImageNetC("fog", 3), v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
    )
    boxes = tv_tensors.BoundingBoxes([[1, 2, 20, 30]], format="XYXY", canvas_size=(32, 32))
    mask, label = tv_tensors.Mask(torch.ones(32, 32, dtype=torch.uint8)), torch.tensor(7)
    prepared = v2.CenterCrop(32)(v2.Resize(40)(pillow(PIXELS[0])))
    found = pipeline(pillow(PIXELS[0]))
    assert torch.equal(found, v2.ToDtype(torch.float32, scale=True)(v2.ToImage()(ImageNetC("fog", 3)(prepared))))
    sample = {"image": prepared, "target": (boxes, mask, label)}
    corrupted = ImageNetC("fog", 3)(sample)
    assert corrupted["image"].tobytes() == ImageNetC("fog", 3)(prepared).tobytes() != prepared.tobytes()
    assert all(ours is theirs for ours, theirs in zip(corrupted["target"], (boxes, mask, label), strict=True))
    pixels, same = ImageNetC("fog", 3)(PIXELS[0], label)
    assert torch.equal(pixels, ImageNetC("fog", 3)(PIXELS[0]))
    assert same is label


class Images(Dataset):
    def __init__(self, transform: Any) -> None:
        self.transform = transform

    def __len__(self) -> int:
        return len(PIXELS)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(PIXELS[index]), index


def loaded(transform: Any, workers: int, seed: int = 0) -> Tensor:
    """All images in the order of their numbers, from a loader that shuffles."""
    torch.manual_seed(seed)
    batches = list(DataLoader(Images(transform), batch_size=2, shuffle=True, num_workers=workers))
    order = torch.cat([indices for _, indices in batches]).argsort()
    return torch.cat([images for images, _ in batches])[order]


def test_order_and_workers_do_not_matter() -> None:
    transform = ImageNetC("shot_noise", 1)
    assert torch.equal(loaded(transform, 2), transform(PIXELS))
    assert torch.equal(loaded(transform, 0, seed=1), transform(PIXELS))


def test_fresh_draws_come_from_the_global_generator() -> None:
    transform = ImageNetC("shot_noise", 1, fresh=True)
    torch.manual_seed(0)
    first, second = transform(PIXELS), transform(PIXELS)
    torch.manual_seed(0)
    assert torch.equal(transform(PIXELS), first)
    assert not torch.equal(first, second)
    twice = transform(PIXELS[:1].expand(2, -1, -1, -1))
    assert not torch.equal(twice[0], twice[1]), "images of a batch have draws of their own"
    assert torch.equal(loaded(transform, 2), loaded(transform, 2))
    assert not torch.equal(loaded(transform, 2), loaded(transform, 2, seed=1))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda transform: pickle.loads(pickle.dumps(transform))])
def test_copies(copied: Any) -> None:
    transform = ImageNetC("snow", 2, seed=4)
    assert torch.equal(copied(transform)(PIXELS), transform(PIXELS))


def test_representation() -> None:
    assert repr(ImageNetC("fog", 3)) == "ImageNetC('fog', 3)"
    options = {"seed": 1, "parameters": "tiny_64", "fresh": True}
    assert repr(ImageNetC("fog", 3, **options)) == "ImageNetC('fog', 3, seed=1, parameters='tiny_64', fresh=True)"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "fogg"}, "corruption must be one of gaussian_noise, "),
        ({"severity": 6}, "severity must be 1..5, got 6"),
        ({"severity": "3"}, "severity must be a whole number, got '3'"),
        ({"seed": 0.5}, "seed must be a whole number, got 0.5"),
        ({"parameters": "imagenet"}, "parameters must be one of auto, imagenet_224, "),
        ({"fresh": 1}, "fresh must be True or False, got 1"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        ImageNetC(**{"name": "fog", "severity": 3, **arguments})


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (PIXELS[0] / 255, "needs uint8 pixels, got torch.float32: put it before v2.ToDtype"),
        (PIXELS[0, :1], "got (1, 40, 48): grey images need v2.RGB() before it"),
        (PIXELS[0, 0], "needs shape (3, H, W) or (B, 3, H, W), got (40, 48)"),
        (PIXELS[None], "got (1, 4, 3, 40, 48)"),
        (PIXELS[0, :, :0], "got (3, 0, 48)"),
        (pillow(PIXELS[0]).convert("L"), "needs RGB images, got mode L: put v2.RGB() before it"),
        (pillow(PIXELS[0]).convert("RGBA"), "needs RGB images, got mode RGBA"),
        (PIXELS[0].permute(1, 2, 0).numpy(), "got ndarray: put v2.ToImage() before it"),
        (tv_tensors.Video(PIXELS), "got a Video: give it the frames as a tensor (B, 3, H, W)"),
        ({"label": 3, "mask": tv_tensors.Mask(PIXELS[0])}, "got int, Mask"),
    ],
)
def test_bad_images(image: Any, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=re.escape(message)) as refused:
        ImageNetC("fog", 3)(image)
    assert "\n" not in str(refused.value)
