"""Every corruption against OpenCV, SciPy, scikit-image, NumPy and Pillow, and against the reference generator's own outputs.

tests/golden/corruptions.npz is a part of ../shared/reference (outputs and statistics of hendrycks/robustness,
make_imagenet_c.py): photographs, exact outputs at severity 3 (HWC uint8), and ``stats/...``, whose rows are the mean, sd and
number of draws of FEATURES.
"""

import importlib.metadata
import json
import math
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import pytest
import scipy.ndimage
import torch
from corruption_references import (
    DEVICES,
    FORMS,
    INDEPENDENT,
    LAWS,
    REFERENCE,
    REPLAYED,
    Draws,
    ids,
    needs_reference,
    photos,
    pillow_pixelate,
    scipy_enlarge,
    sequential_scan,
)
from verify_corruptions import FEATURES, PHOTOS, agreement, draw_features, features

from gch_bench.corruptions import ALEXNET_ERROR_PERCENT, CORRUPTIONS, PARAMETER_SETS, SEVERITIES, corrupt
from gch_bench.corruptions.batched.blur import scan_sources
from gch_bench.corruptions.batched.filters import enlarge, gaussian_filter, motion_blur_at, truncate_blur
from gch_bench.corruptions.compiled import filters as compiled_filters
from gch_bench.corruptions.compiled.blur import scan
from gch_bench.corruptions.compiled.zoom import enlarge as compiled_enlarge
from gch_bench.corruptions.draws import image_keys
from gch_bench.corruptions.weather import _scaled, frost_photographs

GOLDEN = Path(__file__).parents[1] / "golden" / "corruptions.npz"
PUBLISHED = [name for name in CORRUPTIONS if name in ALEXNET_ERROR_PERCENT]  # those whose outputs by the reference are there
DETERMINISTIC = [name for name in PUBLISHED if name in INDEPENDENT]
RANDOM = [name for name in PUBLISHED if CORRUPTIONS[name].random]
every_severity = pytest.mark.parametrize("severity", SEVERITIES)
every_set = pytest.mark.parametrize("parameters", PARAMETER_SETS)
every_device = pytest.mark.parametrize("device", DEVICES)


@cache
def npz(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as file:
        return dict(file)


# ---- independent implementations ----


@pytest.mark.parametrize("name", INDEPENDENT)
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


@pytest.mark.parametrize("form", FORMS)
def test_pixelate_equals_pillow_at_every_size(form: Callable) -> None:
    for size in range(4, 120, 3):
        image = torch.randint(
            0, 256, (1, 3, size, 130 - size // 2), dtype=torch.uint8, generator=torch.Generator().manual_seed(size)
        )
        for scale in (0.25, 0.3, 0.4, 0.5, 0.6, 0.65, 0.75, 0.85, 0.9, 0.95):
            expected = pillow_pixelate(image[0].permute(1, 2, 0).contiguous().numpy(), scale)
            got = form("pixelate", image, scale)
            assert np.array_equal(got[0].permute(1, 2, 0).numpy(), expected), (size, scale)


@pytest.mark.parametrize("name", ["glass_blur", "motion_blur", "zoom_blur", "elastic_transform", "gaussian_blur"])
@every_severity
@every_set
def test_blur_leaves_flat_areas_as_they_are(name: str, severity: int, parameters: str) -> None:
    flat = torch.arange(256, dtype=torch.uint8)[:, None, None, None].expand(256, 3, 16, 20)
    assert torch.equal(corrupt(flat, name, severity, ids(256), parameters=parameters), flat)


@pytest.mark.parametrize("name", REPLAYED)
@every_severity
@every_set
def test_random_equals_an_independent_implementation_with_the_same_draws(name: str, severity: int, parameters: str) -> None:
    implementation, differing, most = REPLAYED[name]
    level = PARAMETER_SETS[parameters].levels[name][severity - 1]
    side = min(96, PARAMETER_SETS[parameters].size)
    images = photos(side, side * 5 // 6)[2:]
    got = corrupt(images, name, severity, ids(2), parameters=parameters).permute(0, 2, 3, 1).numpy()
    photographs = images.permute(0, 2, 3, 1).contiguous().numpy()
    draws = [Draws(key) for key in image_keys(ids(2).tolist(), 0, name, severity)]
    expected = np.stack([implementation(image, level, draw) for image, draw in zip(photographs, draws, strict=True)])
    difference = np.abs(got.astype(int) - expected)
    assert difference.max() <= most
    assert (difference > 0).mean() <= differing


@pytest.mark.parametrize("max_delta", [1, 2, 3, 4])
def test_scan_equals_the_sequential_copy(max_delta: int) -> None:
    height, width, stream = 37, 41, 2
    rows, columns = height - 2 * max_delta, width - 2 * max_delta
    keys = image_keys(range(20), 0, "glass_blur", 1)
    sources = scan_sources(height, width, max_delta, torch.tensor(keys), stream).numpy()
    for key, source in zip(keys, sources, strict=True):
        expected = np.arange(height * width, dtype=np.uint32)
        pixels = expected.copy()
        draw = Draws(key).below(stream, rows * columns, (2 * max_delta) ** 2).reshape(rows, columns)
        sequential_scan(expected.reshape(height, width), max_delta, draw)
        scan(pixels, height, width, max_delta, key, stream)
        assert np.array_equal(pixels, expected)
        assert np.array_equal(source, expected)


@pytest.mark.parametrize("border", ["edge", "symmetric", "reflect"])
@pytest.mark.parametrize("size", [(224, 224), (65, 97), (33, 224), (5, 3), (2, 1)])
@pytest.mark.parametrize(("sigma", "cut"), [(0.05, 4.0), (1.0, 4.0), (6.0, 4.0), (19.5, 3.0), (171.0, 3.0)])
def test_gaussian_filter_equals_scipy(border: str, size: tuple[int, int], sigma: float, cut: float) -> None:
    field = np.random.default_rng(0).normal(size=size).astype(np.float32)
    mode = {"edge": "nearest", "symmetric": "reflect", "reflect": "mirror"}[border]
    expected = scipy.ndimage.gaussian_filter(field.astype(float), sigma, mode=mode, truncate=cut)
    batch = torch.from_numpy(field)[None, None]
    for got in (compiled_filters.gaussian_filter(field, sigma, border, cut), gaussian_filter(batch, sigma, border, cut)[0, 0]):
        assert np.abs(np.asarray(got) - expected).max() < 2e-6


@pytest.mark.parametrize("size", [(90, 70), (33, 1), (1, 1), (8, 5)])
@pytest.mark.parametrize("factor", [1, 1.11, 1.75, 3, 4.5])
def test_enlargement_equals_scipy(size: tuple[int, int], factor: float) -> None:
    crop = np.random.default_rng(0).random([math.ceil(n / factor) for n in size], np.float32)
    expected = scipy_enlarge(crop.astype(float), factor, size)
    got = compiled_enlarge(crop, factor, size)
    assert np.abs(got - expected).max() < 1e-6
    assert np.array_equal(got, enlarge(torch.from_numpy(crop)[None], factor, size)[0].numpy())  # snow has a threshold


def test_frost_draws_five_photographs_and_crops_of_them() -> None:
    black = torch.zeros(60, 3, 32, 32, dtype=torch.uint8)
    crops = corrupt(black, "frost", 3, ids(60), parameters="imagenet_224")[:, 0].numpy()
    assert PARAMETER_SETS["imagenet_224"].levels["frost"][2] == (0.7, 0.7, 1)
    photographs = [np.asarray(photograph)[..., 0] for photograph in frost_photographs()]
    assert np.array_equal(photographs[1], photographs[2])  # the second and the third file hold the same photograph
    frosts = [(photographs[i] * 0.7).astype(np.uint8) for i in (0, 1, 3, 4)]
    best = [[cv2.minMaxLoc(cv2.matchTemplate(frost, crop, cv2.TM_SQDIFF))[0] for frost in frosts] for crop in crops]
    assert np.min(best, axis=1).max() <= crops[0].size  # at most 1 level off at each value
    drawn = np.bincount(np.argmin(best, axis=1), minlength=4)
    assert (drawn >= [3, 9, 3, 3]).all(), drawn


def test_frost_enlarges_photographs_for_large_images() -> None:
    assert corrupt(torch.zeros(1, 3, 700, 1000, dtype=torch.uint8), "frost", 1, ids(1)).double().std() > 5


def test_frost_enlarges_only_the_photograph_that_is_drawn() -> None:
    """Five of them take a second where every image has a size of its own."""
    _scaled.cache_clear()
    corrupt(torch.zeros(1, 3, 700, 1000, dtype=torch.uint8), "frost", 1, ids(1))
    assert _scaled.cache_info().currsize == 1


def test_frost_without_the_photographs_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", absent)
    for cached in (frost_photographs, _scaled):
        cached.cache_clear()
    with pytest.raises(ValueError, match=re.escape("pip install 'gch-bench[frost]'")):
        corrupt(photos(40, 48), "frost", 1, ids(4))


@pytest.mark.parametrize("name", LAWS)
@every_severity
@every_set
@every_device
def test_noise_follows_the_exact_law_at_each_grey_level(name: str, severity: int, parameters: str, device: str) -> None:
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
    assert difference.max() <= (0 if name in ("contrast", "pixelate") else 1)  # JPEG: other builds of libjpeg
    assert difference.mean() <= 0.01


def _assert_motion_close_to_golden(key: str, photo: np.ndarray, expected: np.ndarray) -> None:
    _, severity, _, angle = key.split("/")
    radius, sigma = PARAMETER_SETS["imagenet_224"].levels["motion_blur"][int(severity) - 1]
    degrees = float(angle.removeprefix("angle="))
    image = np.ascontiguousarray(photo.transpose(2, 0, 1))
    got = np.empty_like(image)
    compiled_filters.motion_blur_at(image, radius, sigma, degrees, got)
    degrees_B = torch.tensor([degrees], dtype=torch.float64)
    batched = truncate_blur(motion_blur_at(torch.from_numpy(image)[None], radius, sigma, degrees_B))[0].numpy()
    for blurred in (got, batched):
        difference = np.abs(blurred.transpose(1, 2, 0).astype(int) - expected)
        assert difference.max() <= 1
        assert difference.mean() <= 0.01


def test_motion_blur_equals_committed_golden() -> None:
    key = "motion_blur/3/astronaut/angle=33"
    _assert_motion_close_to_golden(key, npz(GOLDEN)["input/astronaut"], npz(GOLDEN)[key])


@needs_reference
def test_motion_blur_equals_reference_at_its_angles() -> None:
    golden = npz(REFERENCE / "imagenet_c_exact.npz")
    found = [key for key in golden if key.startswith("motion_blur/")]
    assert len(found) == 20
    for key in found:
        _assert_motion_close_to_golden(key, golden["input/astronaut"], golden[key])


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


def _assert_means_agree(draws: np.ndarray, mean: np.ndarray, sd: np.ndarray, n: int) -> None:
    error = agreement(draws, mean, sd, n).mean_error
    bad = [row for row in zip(FEATURES, error, draws.mean(0), mean, strict=True) if row[1] > 1]
    assert not bad, bad


@pytest.mark.parametrize("name", RANDOM)
@every_severity
def test_random_feature_means_equal_committed_statistics(name: str, severity: int) -> None:
    golden = npz(GOLDEN)
    mean, sd, n = golden[f"stats/{name}/{severity}/coffee"]
    _assert_means_agree(draw_features(golden["input/coffee"], name, severity, 24, seed=0), mean, sd, int(n[0]))


@needs_reference
@pytest.mark.parametrize("name", RANDOM)
def test_random_features_equal_reference_statistics(name: str) -> None:
    reference = json.loads((REFERENCE / "imagenet_c_stats.json").read_text())
    assert tuple(reference["features"]) == FEATURES
    log_ratios = np.empty((len(SEVERITIES), len(PHOTOS), len(FEATURES)))
    for severity in SEVERITIES:
        for i, photo in enumerate(PHOTOS):
            cell = reference["cells"][f"{name}/{severity}/{photo}"]
            image = npz(REFERENCE / "imagenet_c_exact.npz")[f"input/{photo}"]
            facts = (np.array(cell["mean"]), np.array(cell["sd"]), cell["n"])
            draws = draw_features(image, name, severity, 24, seed=i)
            _assert_means_agree(draws, *facts)
            log_ratios[severity - 1, i] = np.log(agreement(draws, *facts).sd_ratio)
    # A single standard deviation of 24 draws is off by 25% by chance, so each feature's is pooled over severities and
    # photographs, and each severity's over features and photographs. A percentile that never moves (at 255, say) has none: nan.
    moves = ~np.isnan(log_ratios)
    for axis in ((0, 1), (1, 2)):
        pooled = np.nansum(log_ratios, axis=axis) / np.maximum(1, moves.sum(axis=axis))
        assert (np.abs(pooled[moves.mean(axis=axis) >= 0.5]) < np.log(1.25)).all(), np.exp(pooled)


@needs_reference
def test_features_are_those_of_the_statistics_file() -> None:
    cells = json.loads((REFERENCE / "imagenet_c_stats.json").read_text())["cells"]
    golden = npz(REFERENCE / "imagenet_c_exact.npz")
    for key in (key for key in golden if key.endswith("/coffee") and not key.startswith(("input", "motion"))):
        assert features(golden[key], golden["input/coffee"]) == pytest.approx(cells[key]["mean"], abs=6e-5), key
