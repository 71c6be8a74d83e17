import dataclasses
import re

import pytest
from conftest import configuration

from gch_bench.data.sets import load_data
from gch_bench.data.transforms import Normalisation
from gch_bench.evaluation.protocol import NOT_APPLICABLE, Protocol, protocol_of

BASE = Protocol(
    source="generated",
    data="digits",
    data_fingerprint="99ac20baf448e93e",
    size=64,
    geometry="none",
    mean=(0.5, 0.5, 0.5),
    std=(0.25, 0.25, 0.25),
    precision="fp32",
    parameters="tiny_64",
    jpeg_roundtrip=False,
    num_images=360,
    corruption_seed=0,
    noise_at_test="off",
)
CHANGES = {
    "source": "stored",
    "data": "folder",
    "data_fingerprint": "0" * 16,
    "size": 32,
    "geometry": "resize256-bilinear-centercrop224",
    "mean": (0.5, 0.5, 0.51),
    "std": (0.25, 0.25, 0.26),
    "precision": "bf16",
    "parameters": "tiny_64@32",
    "jpeg_roundtrip": True,
    "num_images": 359,
    "corruption_seed": 1,
    "noise_at_test": "on-T10",
    "draws": "cuda",
    "subset_seed": 0,
}


def test_id_is_readable_and_stable():
    assert re.fullmatch(r"generated-digits-64px-tiny_64-fp32-n360-noise_off-[0-9a-f]{10}", BASE.id)
    assert BASE.id == "generated-digits-64px-tiny_64-fp32-n360-noise_off-b6b6ffd8d9"


def test_id_says_what_the_corrupted_images_went_through():
    assert "-64px-tiny_64-jpeg85-fp32-" in dataclasses.replace(BASE, jpeg_roundtrip=True).id
    stored = dataclasses.replace(BASE, source="stored", parameters=NOT_APPLICABLE, jpeg_roundtrip=True, corruption_seed=None)
    assert re.fullmatch(r"stored-digits-64px-fp32-n360-noise_off-[0-9a-f]{10}", stored.id)


def test_every_field_is_covered():
    assert set(CHANGES) == {field.name for field in dataclasses.fields(Protocol)}


@pytest.mark.parametrize("field", CHANGES)
def test_id_changes_with_every_field(field):
    assert dataclasses.replace(BASE, **{field: CHANGES[field]}).id != BASE.id


@pytest.mark.parametrize(
    ("settings", "draws"),
    [
        ([], {"philox"}),
        (["noise=gch"], {"philox"}),
        (["noise=gch", "noise.eval=true"], {"philox, cpu", "philox, cuda"}),
        (["corruptions=stored", "corruptions.root=somewhere"], {"n/a"}),
        (["corruptions=stored", "corruptions.root=somewhere", "noise=gch", "noise.eval=true"], {"cpu", "cuda"}),
    ],
)
def test_draws_name_the_device_only_for_noise(settings: list[str], draws: set[str]) -> None:
    config = configuration(*settings)
    data = load_data(configuration().data, train=False)
    normalisation = Normalisation(BASE.mean, BASE.std)
    assert {protocol_of(config, data, normalisation, device).draws for device in ("cpu", "cuda")} == draws


def test_equal_numbers_give_equal_ids():
    assert dataclasses.replace(BASE, mean=[0.5, 0.5, 0.5]) == BASE  # type: ignore[arg-type]
    assert dataclasses.replace(BASE, mean=(0, 0, 0)).id == dataclasses.replace(BASE, mean=(0.0, 0.0, 0.0)).id


def test_malformed_fields():
    with pytest.raises(ValueError, match="mean must have 3 values"):
        dataclasses.replace(BASE, mean=(0.5,))
    with pytest.raises(ValueError, match="noise_at_test must be off or on-T<passes>, got 'on'"):
        dataclasses.replace(BASE, noise_at_test="on")


def test_other_images_of_the_same_number_are_another_protocol():
    ids = set()
    for seed in (0, 1):
        config = configuration("corruptions.subset=10", f"corruptions.subset_seed={seed}")
        data = load_data(config.data, train=False)
        ids.add(protocol_of(config, data, Normalisation(BASE.mean, BASE.std), "cpu").id)
    assert len(ids) == 2
