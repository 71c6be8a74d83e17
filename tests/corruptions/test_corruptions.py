"""Properties of every corruption in the table, the table's numbers, and bad input."""

import json

import numpy as np
import pytest
import torch
from corruption_references import DEVICES, INDEPENDENT, LAWS, REFERENCE, REPLAYED, ids, needs_reference, photos

from gch_bench.corruptions.engine import corrupt, corrupt_all, jpeg_roundtrip
from gch_bench.corruptions.parameters import ALEXNET_CLEAN_ERROR_PERCENT, ALEXNET_ERROR_PERCENT, PARAMETER_SETS
from gch_bench.corruptions.shared import Shared
from gch_bench.corruptions.table import CORRUPTIONS, SEVERITIES, Corruption, parameters_for
from gch_bench.corruptions.weather import _scaled
from gch_bench.metrics import EXTRA

# of the photographs: fx of cv2.resize in frost() of make_imagenet_c.py (none), make_tinyimagenet_c.py and make_cifar_c.py
FROST_SCALE = {"imagenet_224": 1, "tiny_64": 0.3, "cifar_32": 0.2}
every_corruption = pytest.mark.parametrize("name", CORRUPTIONS)
every_severity = pytest.mark.parametrize("severity", SEVERITIES)
every_set = pytest.mark.parametrize("parameters", PARAMETER_SETS)
every_device = pytest.mark.parametrize("device", DEVICES)

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
@pytest.mark.parametrize("inference", [True, False])
def test_threads_do_not_matter(name: str, inference: bool) -> None:
    images = photos(40, 48).repeat(3, 1, 1, 1)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            with torch.inference_mode(inference):
                results.append(corrupt(images, name, 3, ids(12)))
            assert results[-1].is_inference() == inference
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*results)


@pytest.mark.parametrize("count", [1, 3])
def test_a_snowflake_at_the_threshold_does_not_depend_on_the_batch(count: int) -> None:
    """160 images of 224 pixels: enough for some value within a rounding of the threshold."""
    images = torch.full((160, 3, 224, 224), 60, dtype=torch.uint8)
    whole = corrupt(images, "snow", 3, ids(160))
    for first in range(0, 160, count):
        some = slice(first, first + count)
        assert torch.equal(corrupt(images[some], "snow", 3, ids(160)[some]), whole[some])


@every_corruption
@pytest.mark.parametrize("threads", [1, 2])
def test_the_callers_modes_do_not_matter(name: str, threads: int) -> None:
    images, before = photos(40, 48), torch.get_num_threads()
    expected = corrupt(images, name, 3, ids(4))
    try:
        torch.set_num_threads(threads)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(expected, corrupt(images, name, 3, ids(4)))
        torch.set_default_dtype(torch.float64)
        assert torch.equal(expected, corrupt(images, name, 3, ids(4)))
        numbers = ids(4)
        _scaled.cache_clear()
        with torch.device("meta"):
            assert torch.equal(expected, corrupt(images, name, 3, numbers))
        torch.set_float32_matmul_precision("medium")  # bfloat16 products where the processor has them
        assert torch.equal(expected, corrupt(images, name, 3, ids(4)))
    finally:
        torch.set_float32_matmul_precision("highest")
        torch.set_default_dtype(torch.float32)
        torch.set_num_threads(before)


@pytest.mark.parametrize("one", [torch.tensor(1), np.int64(1)])
def test_whole_numbers_of_other_types_name_the_same_draws(one) -> None:
    images = photos(40, 48)
    expected = corrupt(images, "fog", 1, ids(4), seed=1)
    assert torch.equal(expected, corrupt(images, "fog", one, ids(4), seed=one))


def test_an_error_in_a_thread_reaches_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(image: Shared, out: np.ndarray, level: object) -> None:
        raise ValueError("this image")

    monkeypatch.setitem(CORRUPTIONS, "contrast", Corruption(fail, fail, group="digital"))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        with pytest.raises(ValueError, match="this image"):
            corrupt(photos(40, 48), "contrast", 1, ids(4))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


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


@pytest.mark.parametrize("name", LAWS)
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


@pytest.mark.parametrize("name", [*INDEPENDENT, *LAWS])  # the others' levels change several things at once
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


# ---- several corruptions of the same images ----

ALL_CELLS = [(name, severity) for name in CORRUPTIONS for severity in SEVERITIES]


@every_set
def test_corrupt_all_gives_what_corrupt_gives_in_any_order(parameters: str) -> None:
    images = photos(40, 48)
    before = images.clone()
    forth = list(corrupt_all(images, ALL_CELLS, ids(4), 1, parameters))
    back = list(corrupt_all(images, ALL_CELLS[::-1], ids(4), 1, parameters))[::-1]
    for (name, severity), one, other in zip(ALL_CELLS, forth, back, strict=True):
        assert torch.equal(one, corrupt(images, name, severity, ids(4), 1, parameters)), (name, severity)
        assert torch.equal(one, other), (name, severity)
    assert torch.equal(images, before)
    assert list(corrupt_all(images, [], ids(4))) == []


@pytest.mark.parametrize("cells", [("fog", 1), [("fog",)], [("fog", 1, 2)], ["fo"], [3]])
def test_corrupt_all_refuses_what_is_no_pair(cells) -> None:
    with pytest.raises(ValueError, match=r"cells must be pairs \(name, severity\), got "):
        corrupt_all(photos(40, 48), cells, ids(4))


@pytest.mark.parametrize(("size", "parameters"), [((40, 300), "cifar_32"), ((224, 512), "imagenet_224")])
def test_the_shorter_side_chooses_the_levels(size: tuple[int, int], parameters: str) -> None:
    images = photos(*size)[:1]
    assert torch.equal(corrupt(images, "fog", 3, ids(1)), corrupt(images, "fog", 3, ids(1), parameters=parameters))


def test_corrupt_all_refuses_bad_input_at_the_call() -> None:
    with pytest.raises(ValueError, match=r"severity must be 1\.\.5, got 6"):
        corrupt_all(photos(40, 48), [("fog", 1), ("fog", 6)], ids(4))
    with pytest.raises(ValueError, match=r"cells must be pairs \(name, severity\), got 'fog'"):
        corrupt_all(photos(40, 48), ["fog"], ids(4))


def test_what_severities_share_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    computed = []

    def negative(image: np.ndarray) -> np.ndarray:
        computed.append(1)
        return 255 - image

    def negate(image: Shared, out: np.ndarray, level: object) -> None:
        out[...] = image.once(negative)

    monkeypatch.setitem(CORRUPTIONS, "contrast", Corruption(negate, negate, group="digital"))
    images = photos(40, 48)
    for corrupted in corrupt_all(images, [("contrast", 1), ("contrast", 4)], ids(4)):
        assert torch.equal(corrupted, 255 - images)
    assert len(computed) == len(images)


# ---- the tables ----


def test_tables_name_the_same_corruptions() -> None:
    assert sorted([*INDEPENDENT, *LAWS, *REPLAYED]) == sorted(CORRUPTIONS)
    assert set(ALEXNET_ERROR_PERCENT) <= set(CORRUPTIONS)
    assert len(ALEXNET_ERROR_PERCENT) == 19
    assert {name for name, corruption in CORRUPTIONS.items() if corruption.group == "extra"} == set(EXTRA)
    for parameters in PARAMETER_SETS.values():
        assert set(parameters.levels) == set(CORRUPTIONS)
        assert all(len(levels) == len(SEVERITIES) for levels in parameters.levels.values())


@needs_reference
def test_tables_hold_the_published_numbers() -> None:
    facts = json.loads((REFERENCE / "imagenet_c.json").read_text())
    for set_name, parameters in PARAMETER_SETS.items():
        assert parameters.size == facts[set_name]["map"]
        for name in ALEXNET_ERROR_PERCENT:
            levels, published = parameters.levels[name], facts[set_name][name]
            if name == "zoom_blur":
                published = [list(level.values()) for level in published]
            elif name == "frost":
                published = [[*level, FROST_SCALE[set_name]] for level in published]
            elif name == "elastic_transform":
                published = [[published["unit"] * value for value in level] for level in published["levels"]]
            assert json.loads(json.dumps(levels)) == published
    for name in ALEXNET_ERROR_PERCENT:
        assert name in facts["groups"][CORRUPTIONS[name].group]
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
    ({"severity": 1.0}, "severity must be a whole number, got 1.0"),
    ({"severity": True}, "severity must be a whole number, got True"),
    ({"severity": torch.tensor(True)}, "severity must be a whole number, got tensor(True)"),
    ({"seed": 0.0}, "seed must be a whole number, got 0.0"),
    ({"images": [1, 2]}, "images must be a torch tensor, got list"),
    ({"ids": range(2)}, "ids must be a torch tensor, got range"),
    ({"images": GOOD["images"].to("meta")}, "images must be on one of cpu, cuda, got meta"),
    ({"parameters": ["x"]}, "parameters must be one of auto, imagenet_224, tiny_64, cifar_32, got ['x']"),
    ({"parameters": "lsun"}, "parameters must be one of auto, imagenet_224, tiny_64, cifar_32, got 'lsun'"),
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


@pytest.mark.parametrize(("change", "message"), [row for row in BAD_INPUT if "images" in row[0]])
def test_jpeg_roundtrip_refuses_the_same_images(change: dict, message: str) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the whole message is compared
        jpeg_roundtrip(**change)
    assert str(error.value) == message


def test_unknown_corruption_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=f"corruption must be one of {', '.join(CORRUPTIONS)}, got 'rain'"):
        corrupt(**GOOD, name="rain")


def test_image_size_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="image size must be at least 1 pixel, got 0"):
        parameters_for(0)
