"""Properties of every corruption in the table, and comparison with scikit-image, Pillow, SciPy and the reference's own outputs.

tests/golden/corruptions.npz is a part of ../shared/reference (outputs and statistics of hendrycks/robustness,
make_imagenet_c.py): the photograph ``coffee``, its exact outputs at severity 3 (HWC uint8), and ``stats/...``, whose rows are
the mean, sd and number of draws of FEATURES.
"""

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import skimage.color
import skimage.data
import skimage.filters
import torch
from corruption_references import INDEPENDENT, pillow_pixelate, to_uint8
from PIL import Image
from scipy import stats

from gch_bench.corruptions import (
    ALEXNET_CLEAN_ERROR_PERCENT,
    ALEXNET_ERROR_PERCENT,
    CORRUPTIONS,
    PARAMETER_SETS,
    SEVERITIES,
    corrupt,
    parameters_for,
)
from gch_bench.corruptions.digital import pixelate

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden" / "corruptions.npz"
REFERENCE = ROOT.parent / "shared" / "reference"
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
RANDOM = [name for name, corruption in CORRUPTIONS.items() if corruption.random]
DETERMINISTIC = [name for name in CORRUPTIONS if name not in RANDOM]
FEATURES = ["mean_r", "mean_g", "mean_b", "std_r", "std_g", "std_b", "rmse", "mae", "p01", "p50", "p99"]

needs_reference = pytest.mark.skipif(not REFERENCE.is_dir(), reason=f"{REFERENCE} is absent")
every_corruption = pytest.mark.parametrize("name", CORRUPTIONS)
every_severity = pytest.mark.parametrize("severity", SEVERITIES)
every_set = pytest.mark.parametrize("parameters", PARAMETER_SETS)
every_device = pytest.mark.parametrize("device", DEVICES)


@cache
def photos(height: int, width: int) -> torch.Tensor:
    """uint8 (4, 3, height, width): three photographs, and one that is grey, black and white in parts."""
    sources = [skimage.data.astronaut(), skimage.data.chelsea(), skimage.data.coffee(), skimage.data.rocket()]
    arrays = [np.asarray(Image.fromarray(source).resize((width, height), Image.Resampling.BILINEAR)) for source in sources]
    patched = arrays[3].copy()
    third = height // 3
    patched[:third, : width // 2], patched[:third, width // 2 :] = 0, 255
    patched[third : 2 * third] = patched[third : 2 * third, :, :1]
    return torch.from_numpy(np.stack([*arrays[:3], patched])).permute(0, 3, 1, 2).contiguous()


def ids(n: int) -> torch.Tensor:
    return torch.arange(100, 100 + n)


@cache
def npz(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as file:
        return dict(file)


# ---- properties of the whole table ----


@every_corruption
@every_severity
@every_set
@every_device
def test_result_depends_on_the_image_and_its_keys_only(name: str, severity: int, parameters: str, device: str) -> None:
    images = photos(40, 48).to(device)
    before = images.clone()
    n = len(images)
    whole = corrupt(images, name, severity, ids(n), parameters=parameters)
    assert whole.shape == images.shape
    assert whole.dtype == torch.uint8
    assert whole.device == images.device
    assert torch.equal(images, before)
    assert not torch.equal(whole, images)
    assert torch.equal(whole, corrupt(images, name, severity, ids(n), parameters=parameters))
    for i in range(n):
        assert torch.equal(whole[i], corrupt(images[i : i + 1], name, severity, ids(n)[i : i + 1], parameters=parameters)[0])
    order = torch.tensor([2, 0, 3])
    shuffled = corrupt(images[order], name, severity, ids(n)[order], parameters=parameters)
    assert torch.equal(whole[order], shuffled)
    neighbours = torch.cat([255 - images, images, images])
    many = corrupt(neighbours, name, severity, torch.cat([ids(n) + 50, ids(n), ids(n) + 70]), parameters=parameters)
    assert torch.equal(whole, many[n : 2 * n])


@every_corruption
def test_memory_layout_does_not_matter(name: str) -> None:
    images = photos(40, 48)
    expected = corrupt(images, name, 3, ids(4))
    assert torch.equal(expected, corrupt(images.to(memory_format=torch.channels_last), name, 3, ids(4)))
    assert torch.equal(expected, corrupt(images.repeat_interleave(2, dim=3)[..., ::2], name, 3, ids(4)))


@every_corruption
def test_empty_batch_and_tiny_images(name: str) -> None:
    assert corrupt(torch.zeros(0, 3, 8, 8, dtype=torch.uint8), name, 1, ids(0)).shape == (0, 3, 8, 8)
    assert corrupt(torch.full((2, 3, 1, 2), 90, dtype=torch.uint8), name, 5, ids(2)).shape == (2, 3, 1, 2)


@every_corruption
def test_seed_and_id_change_random_draws_only(name: str) -> None:
    images = photos(40, 48)[:1].expand(2, -1, -1, -1)
    first = corrupt(images, name, 3, torch.tensor([1, 2]), seed=0)
    other_seed = corrupt(images, name, 3, torch.tensor([1, 2]), seed=1)
    assert torch.equal(first[0], first[1]) != CORRUPTIONS[name].random
    assert torch.equal(first, other_seed) != CORRUPTIONS[name].random


@pytest.mark.parametrize("name", RANDOM)
def test_draws_are_uncorrelated_over_ids_channels_and_pixels(name: str) -> None:
    images = torch.full((2, 3, 128, 128), 128, dtype=torch.uint8)
    noise = corrupt(images, name, 3, ids(2)).double()
    noise = (noise - noise.mean()) / noise.std()
    pairs = [
        (noise[0], noise[1]),
        (noise[:, 0], noise[:, 1]),
        (noise[:, 1], noise[:, 2]),
        (noise[..., 1:], noise[..., :-1]),
        (noise[..., 1:, :], noise[..., :-1, :]),
    ]
    for a, b in pairs:
        assert abs((a * b).mean()) < 5 / a.numel() ** 0.5


@every_corruption
@every_set
def test_distortion_grows_with_severity(name: str, parameters: str) -> None:
    size = PARAMETER_SETS[parameters].size
    images = photos(size, size)[:3]
    rmse = [
        (corrupt(images, name, severity, ids(3), parameters=parameters).double() - images).square().mean().sqrt().item()
        for severity in SEVERITIES
    ]
    runs = [rmse[:2], rmse[2:]] if name == "saturate" else [rmse]  # 1, 2 take colour away; 3, 4, 5 add it
    assert all(run == sorted(set(run)) for run in runs), rmse


# ---- independent implementations ----


@pytest.mark.parametrize("name", DETERMINISTIC)
@every_severity
@every_set
@every_device
def test_deterministic_equals_an_independent_implementation(name: str, severity: int, parameters: str, device: str) -> None:
    implementation, differing = INDEPENDENT[name]
    level = PARAMETER_SETS[parameters].levels[name][severity - 1]
    images = photos(96, 80).to(device)
    got = corrupt(images, name, severity, ids(4), parameters=parameters).cpu().permute(0, 2, 3, 1).numpy()
    expected = np.stack([implementation(image, level) for image in images.cpu().permute(0, 2, 3, 1).numpy()])
    difference = np.abs(got.astype(int) - expected)
    assert difference.max() <= 1
    assert (difference > 0).mean() <= differing


def test_pixelate_equals_pillow_at_every_size() -> None:
    for size in range(4, 120, 3):
        image = torch.randint(
            0, 256, (1, 3, size, 130 - size // 2), dtype=torch.uint8, generator=torch.Generator().manual_seed(size)
        )
        for scale in (0.25, 0.3, 0.4, 0.5, 0.6, 0.65, 0.75, 0.85, 0.9, 0.95):
            expected = pillow_pixelate(image[0].permute(1, 2, 0).contiguous().numpy(), scale)
            assert np.array_equal(pixelate(image, scale)[0].permute(1, 2, 0).numpy(), expected), (size, scale)


@pytest.mark.parametrize("sigma_severity", SEVERITIES)
@every_set
def test_blur_leaves_flat_areas_as_they_are(sigma_severity: int, parameters: str) -> None:
    flat = torch.arange(256, dtype=torch.uint8)[:, None, None, None].expand(256, 3, 16, 20)
    assert torch.equal(corrupt(flat, "gaussian_blur", sigma_severity, ids(256), parameters=parameters), flat)


def _normal_law(v, sd):
    below = stats.norm.cdf(np.arange(1, 256), loc=v, scale=max(255 * sd, 1e-9))
    return np.append(below, 1)


def _speckle_law(v, sd):
    return _normal_law(v, sd * v / 255)


def _impulse_law(v, amount):
    probability = np.zeros(256)
    probability[v] = 1 - amount
    probability[[0, 255]] += amount / 2
    return probability.cumsum()


def _poisson_law(v, photons):
    k = np.arange(4 * photons + 60)
    probability = np.zeros(256)
    np.add.at(probability, to_uint8(k / photons), stats.poisson.pmf(k, v / 255 * photons))
    return probability.cumsum()


LAWS = {  # name: (grey level, severity's level) -> P(output <= g), g = 0..255
    "gaussian_noise": _normal_law,
    "shot_noise": _poisson_law,
    "impulse_noise": _impulse_law,
    "speckle_noise": _speckle_law,
}


@pytest.mark.parametrize("name", RANDOM)
@every_severity
@every_set
@every_device
def test_random_follows_the_exact_law_at_each_grey_level(name: str, severity: int, parameters: str, device: str) -> None:
    level = PARAMETER_SETS[parameters].levels[name][severity - 1]
    greys = [0, 1, 17, 128, 240, 255]
    images = torch.tensor(greys, dtype=torch.uint8, device=device)[:, None, None, None].expand(-1, 3, 80, 80)
    got = corrupt(images, name, severity, ids(len(greys)), parameters=parameters).cpu()
    n = got[0].numel()
    for grey, image in zip(greys, got, strict=True):
        below = np.bincount(image.flatten(), minlength=256).cumsum() / n
        # Dvoretzky-Kiefer-Wolfowitz: exceeded with probability 2 exp(-2 * 9) = 3e-8
        assert np.abs(below - LAWS[name](grey, level)).max() < 3 / n**0.5, grey


# ---- the reference's own outputs ----


def _assert_close_to_golden(name: str, severity: int, photo: np.ndarray, expected: np.ndarray) -> None:
    image = torch.from_numpy(photo).permute(2, 0, 1)[None]
    got = corrupt(image, name, severity, ids(1))[0].permute(1, 2, 0).numpy()
    difference = np.abs(got.astype(int) - expected)
    assert difference.mean() <= 0.6
    assert (difference <= 3).mean() >= 0.999
    if name in ("jpeg_compression", "pixelate"):
        assert (difference <= 1).mean() >= 0.99


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_deterministic_equals_committed_golden(name: str) -> None:
    golden = npz(GOLDEN)
    _assert_close_to_golden(name, 3, golden["input/coffee"], golden[f"{name}/3/coffee"])


@needs_reference
@pytest.mark.parametrize("name", DETERMINISTIC)
@every_severity
def test_deterministic_equals_reference(name: str, severity: int) -> None:
    golden = npz(REFERENCE / "imagenet_c_exact.npz")
    found = [key for key in golden if key.startswith(f"{name}/{severity}/")]
    assert found
    for key in found:
        _assert_close_to_golden(name, severity, golden[f"input/{key.split('/')[2]}"], golden[key])


def _features(out: np.ndarray, photo: np.ndarray) -> list[float]:
    """FEATURES of one HWC output, as the reference statistics define them."""
    difference = out.astype(float) - photo
    spread = [np.sqrt((difference**2).mean()), np.abs(difference).mean()]
    return [*out.mean((0, 1)), *out.std((0, 1)), *spread, *np.percentile(out, [1, 50, 99])]


def _assert_features_agree(
    name: str, severity: int, photo: np.ndarray, mean: np.ndarray, sd: np.ndarray, n: np.ndarray
) -> None:
    draws = 8
    images = torch.from_numpy(photo).permute(2, 0, 1)[None].expand(draws, -1, -1, -1)
    got = corrupt(images, name, severity, ids(draws)).permute(0, 2, 3, 1).numpy()
    features = np.mean([_features(out, photo) for out in got], axis=0)
    allowed = 4 * sd * np.sqrt(1 / n + 1 / draws) + 0.01 * np.abs(mean)
    rows = zip(FEATURES, features, mean, allowed, strict=True)
    bad = [row for row in rows if abs(row[1] - row[2]) > row[3]]
    assert not bad, bad


@pytest.mark.parametrize("name", RANDOM)
@every_severity
def test_random_features_equal_committed_statistics(name: str, severity: int) -> None:
    golden = npz(GOLDEN)
    _assert_features_agree(name, severity, golden["input/coffee"], *golden[f"stats/{name}/{severity}/coffee"])


@needs_reference
@pytest.mark.parametrize("name", RANDOM)
@every_severity
@pytest.mark.parametrize("photo", ["astronaut", "chelsea", "rocket"])
def test_random_features_equal_reference_statistics(name: str, severity: int, photo: str) -> None:
    reference = json.loads((REFERENCE / "imagenet_c_stats.json").read_text())
    assert reference["features"][: len(FEATURES)] == FEATURES
    cell = reference["cells"][f"{name}/{severity}/{photo}"]
    mean, sd = (np.array(cell[key][: len(FEATURES)]) for key in ("mean", "sd"))
    image = npz(REFERENCE / "imagenet_c_exact.npz")[f"input/{photo}"]
    _assert_features_agree(name, severity, image, mean, sd, np.array(cell["n"]))


# ---- the tables ----


def test_tables_name_the_same_corruptions() -> None:
    assert set(INDEPENDENT) | set(LAWS) == set(CORRUPTIONS)
    assert set(CORRUPTIONS) <= set(ALEXNET_ERROR_PERCENT)
    assert len(ALEXNET_ERROR_PERCENT) == 19
    for parameters in PARAMETER_SETS.values():
        assert set(parameters.levels) == set(CORRUPTIONS)
        assert all(len(levels) == len(SEVERITIES) for levels in parameters.levels.values())


@needs_reference
def test_tables_hold_the_published_numbers() -> None:
    facts = json.loads((REFERENCE / "imagenet_c.json").read_text())
    for set_name, parameters in PARAMETER_SETS.items():
        assert parameters.size == facts[set_name]["map"]
        for name, levels in parameters.levels.items():
            assert json.loads(json.dumps(levels)) == facts[set_name][name]
    for name, corruption in CORRUPTIONS.items():
        assert name in facts["groups"][corruption.group]
    errors = facts["alexnet_top1_error_percent"]
    assert {"clean": ALEXNET_CLEAN_ERROR_PERCENT, "source": errors["source"], **ALEXNET_ERROR_PERCENT} == errors


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        *((8, "cifar_32"), (32, "cifar_32"), (45, "cifar_32")),
        *((46, "tiny_64"), (64, "tiny_64"), (119, "tiny_64")),
        *((120, "imagenet_224"), (224, "imagenet_224"), (512, "imagenet_224")),
    ],
)
def test_parameters_for_takes_the_nearest_in_log_size(size: int, expected: str) -> None:
    assert parameters_for(size) == expected


# ---- bad input ----

GOOD = {"images": torch.zeros(2, 3, 8, 8, dtype=torch.uint8), "severity": 1, "ids": torch.arange(2)}
BAD_INPUT = [
    ({"severity": 7}, "severity must be 1..5, got 7"),
    ({"severity": 0}, "severity must be 1..5, got 0"),
    ({"parameters": "lsun"}, "parameters must be one of imagenet_224, tiny_64, cifar_32, got 'lsun'"),
    ({"images": torch.zeros(2, 3, 8, 8)}, "images must be uint8, got torch.float32"),
    ({"images": GOOD["images"][0]}, "images must have shape (B, 3, H, W), got (3, 8, 8)"),
    ({"images": GOOD["images"][:, :1]}, "images must have shape (B, 3, H, W), got (2, 1, 8, 8)"),
    ({"images": GOOD["images"][..., :0]}, "images must have shape (B, 3, H, W), got (2, 3, 8, 0)"),
    ({"ids": torch.arange(3)}, "ids must be int64 of shape (2,), got torch.int64 of shape (3,)"),
    ({"ids": torch.zeros(2)}, "ids must be int64 of shape (2,), got torch.float32 of shape (2,)"),
]


@every_corruption
@pytest.mark.parametrize(("change", "message"), BAD_INPUT)
def test_bad_input_is_refused_in_one_line(name: str, change: dict, message: str) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the whole message is compared
        corrupt(**{**GOOD, "name": name, **change})
    assert str(error.value) == message


def test_unknown_corruption_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=f"corruption must be one of {', '.join(CORRUPTIONS)}, got 'rain'"):
        corrupt(**GOOD, name="rain")


def test_image_size_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="image size must be at least 1 pixel, got 0"):
        parameters_for(0)
