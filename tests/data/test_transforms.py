import numpy as np
import pytest
import skimage
import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_data_config

from gch_bench.config.data import AugmentConfig
from gch_bench.data.loaders import seeded
from gch_bench.data.transforms import EvalTransform, Normalisation, TimmTransform, normalise, timm_preparation, train_transform
from gch_bench.errors import UserError

NORMALISATION = Normalisation((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def photo(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def pixels(tensor: torch.Tensor) -> np.ndarray:
    assert tensor.dtype == torch.uint8
    return tensor.permute(1, 2, 0).numpy()


@pytest.mark.parametrize("interpolation", FILTERS)
@pytest.mark.parametrize(("width", "height"), [(61, 47), (47, 61), (30, 80)])
def test_eval_transform_is_pillow_resize_and_centre_crop(interpolation, width, height):
    size, resize = 28, 36
    image = photo(width, height)
    short = min(width, height)
    resized = image.resize((int(resize * width / short), int(resize * height / short)), FILTERS[interpolation])
    left, top = round((resized.width - size) / 2), round((resized.height - size) / 2)
    expected = np.asarray(resized.crop((left, top, left + size, top + size)))
    assert np.array_equal(pixels(EvalTransform(size, resize, interpolation)(image)), expected)


def test_without_resize_an_image_of_the_size_is_untouched():
    image = photo(28, 28)
    assert np.array_equal(pixels(EvalTransform(28)(image)), np.asarray(image))
    assert not np.array_equal(pixels(EvalTransform(28, 32)(image)), np.asarray(image))


def test_without_resize_another_image_is_resized_in_imagenets_proportion():
    image = photo(60, 50)
    assert torch.equal(EvalTransform(28)(image), EvalTransform(28, 32)(image))  # 28 * 256 / 224 = 32


def test_normalise_is_the_equation_and_keeps_its_input():
    images = torch.randint(0, 256, (2, 3, 5, 4), dtype=torch.uint8)
    kept = images.clone()
    mean, std = (np.array(values).reshape(3, 1, 1) for values in NORMALISATION)
    expected = (images.double().numpy() / 255 - mean) / std
    result = normalise(images, NORMALISATION)
    assert (result.dtype, result.shape) == (torch.float32, images.shape)
    np.testing.assert_allclose(result.numpy(), expected, atol=1e-6)
    assert torch.equal(images, kept)


def test_normalise_refuses_floats():
    with pytest.raises(TypeError, match=r"images must be uint8 in 0..255, got torch.float32"):
        normalise(torch.rand(1, 3, 2, 2), NORMALISATION)


def test_train_transform_without_augmentation_is_the_eval_path():
    image = photo(32, 32)
    plain = AugmentConfig(scale=(1.0, 1.0), ratio=(1.0, 1.0), hflip=0.0)
    assert torch.equal(train_transform(plain, 32, NORMALISATION)(image), normalise(EvalTransform(32)(image), NORMALISATION))


@pytest.mark.parametrize(
    "augment",
    [
        AugmentConfig(),
        AugmentConfig(color_jitter=0.4),
        AugmentConfig(auto_augment="rand-m9-mstd0.5-inc1", random_erasing=0.25),
        AugmentConfig(auto_augment="augmix-m3-w2"),
        AugmentConfig(auto_augment="3a", color_jitter=0.3),
    ],
)
def test_train_transform_gives_normalised_tensors(augment):
    transform = train_transform(augment, 24, NORMALISATION, "bicubic")
    with seeded(0):
        first, second = transform(photo(40, 30)), transform(photo(40, 30))
    assert (first.shape, first.dtype) == ((3, 24, 24), torch.float32)
    assert not torch.equal(first, second)
    assert first.abs().max() < 10


def test_flip_and_erasing_probabilities_reach_timm():
    image = photo(16, 16)
    plain = {"scale": (1.0, 1.0), "ratio": (1.0, 1.0)}
    straight = train_transform(AugmentConfig(**plain, hflip=0.0), 16, NORMALISATION)(image)
    flipped = train_transform(AugmentConfig(**plain, hflip=1.0), 16, NORMALISATION)(image)
    assert torch.equal(flipped, straight.flip(-1))
    erased = train_transform(AugmentConfig(**plain, hflip=0.0, random_erasing=1.0), 16, NORMALISATION)(image)
    changed = (erased != straight).any(0)
    assert 0.01 < changed.float().mean() < 0.5


def test_auto_augment_that_timm_rejects_is_one_line():
    with pytest.raises(UserError, match=r"^augment.auto_augment must be a timm string such as rand-m9-mstd0.5, got 'rand-zz9'"):
        train_transform(AugmentConfig(auto_augment="rand-zz9"), 16, NORMALISATION)


@pytest.mark.parametrize("name", ["resnet50.tv_in1k", "resnet50", "tf_efficientnet_lite0.in1k", "vit_small_patch16_224"])
def test_timms_preparation_is_timms_own(name):
    """Bit for bit, on a real photograph, for networks with other sizes, crops, filters and normalisations."""
    network = timm.create_model(name, pretrained=False)
    config = resolve_data_config(model=network, use_test_size=True)
    image = Image.fromarray(skimage.data.coffee())
    expected = create_transform(**config)(image)
    prepared = timm_preparation(name)(image)
    assert prepared.dtype == torch.uint8
    assert torch.equal(normalise(prepared[None], Normalisation(config["mean"], config["std"]))[0], expected)


@pytest.mark.parametrize("mode", ["center", "squash", "border"])
def test_timms_crop_modes(mode):
    config = {
        "input_size": (3, 60, 60),
        "crop_pct": 0.9,
        "crop_mode": mode,
        "interpolation": "bicubic",
        **NORMALISATION._asdict(),
    }
    image = photo(90, 70)
    prepared = TimmTransform(60, 0.9, mode, "bicubic", NORMALISATION.mean)(image)
    assert torch.equal(normalise(prepared[None], NORMALISATION)[0], create_transform(**config)(image))


def test_when_timms_preparation_is_imagenet_cs():
    assert timm_preparation("resnet50.tv_in1k").equals(EvalTransform(224, 256))
    assert not timm_preparation("resnet50.tv_in1k").equals(EvalTransform(224, 232))
    assert not timm_preparation("tf_efficientnet_lite0").equals(EvalTransform(224, 256))


def test_networks_without_a_preparation_of_timm():
    with pytest.raises(UserError, match=r"needs a network that timm has trained weights of, got model\.name=nonsense"):
        timm_preparation("nonsense")
