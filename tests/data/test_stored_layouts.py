"""Stored sets as they are published: in groups, with levels as severities, a subset of the images, and as arrays."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from conftest import batches_of
from PIL import Image

from gch_bench.data.images import ArrayImages, FileImages
from gch_bench.data.stored import stored_images
from gch_bench.data.stored_layout import severity_folders
from gch_bench.data.transforms import EvalTransform
from gch_bench.errors import UserError
from gch_bench.evaluation.cells import subset_ids

CLEAN = FileImages([f"cat/{i}.JPEG" for i in range(6)], np.zeros(6, dtype=np.int64), "/clean")
COUNT = 8
PIXELS = np.random.default_rng(0).integers(0, 256, (5 * COUNT, 32, 32, 3), dtype=np.uint8)
LABELS = np.arange(COUNT) % 3
CIFAR = ArrayImages([f"cifar10/test/{i:05d}" for i in range(COUNT)], LABELS, PIXELS[:COUNT])


def cell(folder: Path, ids: list[int], shade: int = 0) -> None:
    for i in ids:
        path = folder / "cat" / f"{i}.JPEG"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16), (20 * i + shade, 0, 0)).save(path)


def refusal(root: Path, *arguments: object) -> str:
    with pytest.raises(UserError) as caught:
        stored_images(root, *arguments)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_groups_may_have_a_folder(tmp_path: Path) -> None:
    cell(tmp_path / "noise" / "gaussian_noise" / "3", list(range(6)))
    cell(tmp_path / "fog" / "1", list(range(6)))
    found = stored_images(tmp_path, [("gaussian_noise", 3), ("fog", 1)], CLEAN, 16)
    assert found["gaussian_noise", 3].path(1) == str(tmp_path / "noise" / "gaussian_noise" / "3" / "cat" / "1.JPEG")
    assert found["gaussian_noise", 3].fingerprint == found["fog", 1].fingerprint
    cell(tmp_path / "weather" / "fog" / "1", list(range(6)))
    message = refusal(tmp_path, [("fog", 1)], CLEAN, 16)
    assert f"must hold fog once, got {tmp_path}/fog and {tmp_path}/weather/fog; remove one" in message


@pytest.mark.parametrize(
    ("names", "severities"),
    [
        (["1", "2", "3", "4", "5"], {1: "1", 2: "2", 3: "3", 4: "4", 5: "5"}),
        (["2", "5"], {2: "2", 5: "5"}),
        (["4.75", "7.0", "8.5", "9.25", "10.0"], {1: "4.75", 2: "7.0", 3: "8.5", 4: "9.25", 5: "10.0"}),
        (["2.0", "3.0", "4.0", "5.0", "6.0"], {1: "2.0", 2: "3.0", 3: "4.0", 4: "5.0", 5: "6.0"}),
        (["1.0", "2.0", "3.0", "5.0", "6.0"], {1: "1.0", 2: "2.0", 3: "3.0", 4: "5.0", 5: "6.0"}),
        (["0.8", "1.6"], None),
        (["2.0", "3.0", "4.0", "5.0"], None),
        (["1", "1.0"], None),
        (["0", "1", "2", "3", "4", "5"], None),
    ],
)
def test_levels_in_ascending_order_are_the_severities(tmp_path: Path, names: list[str], severities: dict | None) -> None:
    for name in (*names, "log"):
        (tmp_path / "sparkles" / name).mkdir(parents=True)
    if severities is not None:
        assert severity_folders(tmp_path / "sparkles") == severities
        return
    with pytest.raises(UserError, match="or five levels, which in ascending order are the severities"):
        severity_folders(tmp_path / "sparkles")


def test_a_cell_of_levels(tmp_path: Path) -> None:
    for number, name in enumerate(["4.75", "7.0", "8.5", "9.25", "10.0"]):
        cell(tmp_path / "plasma_noise" / name, list(range(6)), shade=30 * number)
    images = stored_images(tmp_path, [("plasma_noise", 5)], CLEAN, 16)["plasma_noise", 5]
    assert abs(int(np.asarray(images.load(0))[0, 0, 0]) - 120) < 4


def test_a_subset_needs_its_images_alone(tmp_path: Path) -> None:
    ids = np.array([1, 4])
    one, some, full = (tmp_path / name for name in ("one", "some", "full"))
    cell(one / "fog" / "1", [1, 4])
    cell(some / "fog" / "1", [0, 1, 4])
    cell(full / "fog" / "1", list(range(6)))
    sets = [stored_images(root, [("fog", 1)], CLEAN, 16, ids)["fog", 1] for root in (one, some, full)]
    for images in sets:
        assert len(images) == 6
        assert round(np.asarray(images.load(4))[0, 0, 0] / 20) == 4
        assert images.fingerprint == sets[0].fingerprint
    assert "4 missing (first: cat/0)" in refusal(one, [("fog", 1)], CLEAN, 16)
    assert "1 missing (first: cat/2)" in refusal(some, [("fog", 1)], CLEAN, 16, np.array([1, 2]))
    cell(some / "fog" / "1", [77])
    assert "1 too many (first: cat/77.JPEG)" in refusal(some, [("fog", 1)], CLEAN, 16, ids)
    assert stored_images(full, [("fog", 1)], CLEAN, 16)["fog", 1].fingerprint != sets[0].fingerprint


def test_subset_ids() -> None:
    ids = subset_ids(50_000, 5000, seed=0)
    assert (ids.dtype, len(set(ids.tolist())), ids[0] >= 0, ids[-1] < 50_000) == (np.int64, 5000, True, True)
    assert (np.diff(ids) > 0).all()
    assert np.array_equal(ids, subset_ids(50_000, 5000, seed=0))
    assert not np.array_equal(ids, subset_ids(50_000, 5000, seed=1))
    assert abs(ids.mean() - 25_000) < 1000
    assert subset_ids(10, 4, seed=0).tolist() == [2, 4, 7, 9]  # these ids are what results name: they must never change
    assert subset_ids(4, None, 0).tolist() == [0, 1, 2, 3]
    with pytest.raises(UserError, match=r"corruptions.subset must be at most the number of evaluated images, 4, got 5"):
        subset_ids(4, 5, 0)


@pytest.fixture
def arrays(tmp_path: Path) -> Path:
    np.save(tmp_path / "fog.npy", PIXELS)
    np.save(tmp_path / "labels.npy", np.tile(LABELS, 5).astype(np.uint8))
    return tmp_path


@pytest.mark.parametrize("workers", [0, 1])
def test_arrays(arrays: Path, workers: int) -> None:
    images = stored_images(arrays, [("fog", 2), ("fog", 5)], CIFAR, 32)["fog", 5]
    seen = {}
    for batch in batches_of(images, EvalTransform(32), 3, workers):
        for image, label, i in zip(batch.images[0], batch.labels.tolist(), batch.ids.tolist(), strict=True):
            assert label == LABELS[i]
            seen[i] = image.permute(1, 2, 0).numpy()
    assert all(np.array_equal(seen[i], PIXELS[4 * COUNT + i]) for i in range(COUNT))
    assert len(pickle.dumps(images)) < 2000, "a loader process opens the file itself"
    assert images.path(3) == f"{arrays}/fog.npy[{4 * COUNT + 3}]"


def test_fingerprints_of_arrays_follow_the_pixels(arrays: Path) -> None:
    found = stored_images(arrays, [("fog", 1), ("fog", 2)], CIFAR, 32)
    assert found["fog", 1].fingerprint != found["fog", 2].fingerprint
    part = stored_images(arrays, [("fog", 1)], CIFAR, 32, np.array([2, 3]))["fog", 1]
    assert (len(part), part.fingerprint != found["fog", 1].fingerprint) == (COUNT, True)


def test_arrays_that_do_not_fit(arrays: Path) -> None:
    assert f"must hold snow.npy, got {arrays} without it (it holds fog.npy, labels.npy)" in refusal(
        arrays, [("snow", 1)], CIFAR, 32
    )
    assert f"{arrays}/fog.npy[0] must be 40x40 pixels" in refusal(arrays, [("fog", 1)], CIFAR, 40)
    for name, content, text in (
        ("count", PIXELS[:-1], "must be a uint8 array (5 x 8, H, W, 3)"),
        ("type", PIXELS.astype(np.float32), "got float32 (40, 32, 32, 3)"),
    ):
        np.save(arrays / f"{name}.npy", content)
        assert text in refusal(arrays, [(name, 1)], CIFAR, 32)
    (arrays / "cut.npy").write_bytes((arrays / "fog.npy").read_bytes()[:5000])
    assert "cut.npy must be a whole .npy file" in refusal(arrays, [("cut", 1)], CIFAR, 32)
    other = ArrayImages(CIFAR.names, (LABELS + 1) % 3, CIFAR.pixels)
    assert "labels.npy must hold the labels of the 8 clean images five times" in refusal(arrays, [("fog", 1)], other, 32)
    fewer = ArrayImages(CIFAR.names[:7], LABELS[:7], CIFAR.pixels[:7])
    assert "got shape (40,)" in refusal(arrays, [("fog", 1)], fewer, 32)
