import dataclasses

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from gch_bench.config.data import DataConfig
from gch_bench.data.sets import load_data
from gch_bench.errors import UserError


@pytest.fixture(scope="module")
def source():
    return load_data(DataConfig("digits", size=64))


def test_description_and_geometry(source):
    assert source.description == "digits (embedded: 1437 train / 360 val images, 10 classes, 64x64)"
    assert (source.size, source.geometry, source.classes) == (64, "none", [str(i) for i in range(10)])
    assert dataclasses.is_dataclass(source)


def test_split_is_fixed_and_stratified(source):
    assert np.bincount(source.val.labels).tolist() == [36, 36, 35, 37, 36, 37, 36, 36, 35, 36]
    assert np.bincount(source.train.labels).tolist() == [142, 146, 142, 146, 145, 145, 145, 143, 139, 144]
    assert (source.fingerprint, source.train_fingerprint) == ("99ac20baf448e93e", "cf523fcf146ab6c4")
    assert source.val.labels.dtype == np.int64


def test_every_scan_is_in_exactly_one_half_and_names_are_sorted(source):
    assert sorted(source.train.names + source.val.names) == [f"digits/{i:04d}" for i in range(1797)]
    assert source.val.names == sorted(source.val.names)


def test_images_are_the_scans_of_their_names(source):
    scans = load_digits()
    for index in (0, 100, 359):
        scan = int(source.val.names[index].split("/")[1])
        grey = Image.fromarray(np.rint(scans.images[scan] * 255 / 16).astype(np.uint8)).resize(
            (64, 64), Image.Resampling.BICUBIC
        )
        image = source.val.load(index)
        assert (image.mode, image.size) == ("RGB", (64, 64))
        assert np.array_equal(np.asarray(image), np.repeat(np.asarray(grey)[..., None], 3, axis=2))
        assert source.val.labels[index] == scans.target[scan]


def test_size_and_train_do_not_change_the_fingerprint(source):
    small = load_data(DataConfig("digits", size=32), train=False)
    assert (small.fingerprint, small.train, small.train_fingerprint, small.size) == (source.fingerprint, None, None, 32)
    assert load_data(DataConfig("digits")).size == 64


def test_explicit_resize_is_named():
    assert load_data(DataConfig("digits", size=32, resize=36)).geometry == "resize36-bilinear-centercrop32"


def test_class_count_is_checked():
    with pytest.raises(UserError, match=r"^data.num_classes must be the number of classes in the data, 10, got 100"):
        load_data(DataConfig("digits", num_classes=100))
