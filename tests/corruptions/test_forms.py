"""The two forms of each corruption against each other: compiled code, and torch for a whole batch (here on a CPU)."""

import pytest
import torch
from corruption_references import batched, compiled, ids, photos

from gch_bench.corruptions import CORRUPTIONS, PARAMETER_SETS
from gch_bench.corruptions.draws import image_keys

SIZES = {"imagenet_224": (65, 97), "tiny_64": (40, 48), "cifar_32": (32, 32)}
CASES = [
    *((parameters, size, severity) for parameters, size in SIZES.items() for severity in (1, 3, 5)),
    ("imagenet_224", (512, 384), 3),
    ("cifar_32", (33, 224), 3),
]
# How far the forms may be apart, where they are not equal: (largest difference in levels, share of the values that differ).
# Both take the same draws. Those that are equal use one table, whole numbers, or float64 in the same order.
EXACT = (0, 0.0)
FORMS_DIFFER = {
    # Sums of floats in another order: a value that is a whole level but for rounding may be truncated to the level below.
    # Measured here: 1 level on at most 0.00013 of the values (elastic_transform).
    **dict.fromkeys(("defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "gaussian_blur"), (1, 0.001)),
    **dict.fromkeys(("frost", "fog", "elastic_transform", "spatter"), (1, 0.001)),
    "snow": (255, 0.002),  # a flake exactly at the threshold may be there or not
}


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize(("parameters", "size", "severity"), CASES)
def test_both_forms_agree(name: str, parameters: str, size: tuple[int, int], severity: int) -> None:
    level = PARAMETER_SETS[parameters].levels[name][severity - 1]
    images = photos(*size)
    keys = image_keys(ids(4).tolist(), 0, name, severity) if CORRUPTIONS[name].random else None
    difference = (compiled(name, images, level, keys).int() - batched(name, images, level, keys)).abs()
    most, share = FORMS_DIFFER.get(name, EXACT)
    assert difference.max() <= most
    assert (difference > 0).double().mean() <= share


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize("size", [(1, 1), (1, 2), (2, 1), (3, 5)])
def test_both_forms_take_tiny_images(name: str, size: tuple[int, int]) -> None:
    """One image of a colour and one that is grey."""
    images = torch.tensor([[90, 20, 250], [7, 7, 7]], dtype=torch.uint8)[:, :, None, None].expand(-1, -1, *size).contiguous()
    level = PARAMETER_SETS["cifar_32"].levels[name][4]
    keys = image_keys(ids(2).tolist(), 0, name, 5) if CORRUPTIONS[name].random else None
    difference = (compiled(name, images, level, keys).int() - batched(name, images, level, keys)).abs()
    assert difference.max() <= FORMS_DIFFER.get(name, EXACT)[0]
