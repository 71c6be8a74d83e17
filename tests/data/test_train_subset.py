"""data.train_subset: training on some of the images, the same ones in every run."""

import numpy as np
import pytest
from conftest import configuration

from gch_bench.data.sets import load_data
from gch_bench.errors import UserError


def test_a_subset_of_the_training_images() -> None:
    whole = load_data(configuration().data)
    some, again, other = (load_data(configuration(f"data.train_subset={count}").data) for count in (100, 100, 99))
    assert whole.train is not None
    assert some.train is not None
    assert again.train is not None
    ids = [whole.train.names.index(name) for name in some.train.names]
    assert ids == sorted(set(ids))
    assert len(ids) == len(some.train) == 100
    assert some.train.names == again.train.names
    assert some.train.labels.tolist() == whole.train.labels[ids].tolist()
    for position in (0, 57, 99):
        assert np.array_equal(np.asarray(some.train.load(position)), np.asarray(whole.train.load(ids[position])))
        assert some.train.path(position) == whole.train.path(ids[position])
    assert len({each.train_fingerprint for each in (whole, some, other)}) == 3, "other images make another run"
    assert some.train_fingerprint == again.train_fingerprint
    assert {each.fingerprint for each in (some, other)} == {whole.fingerprint}, "the evaluation is the same"
    assert "100 train / 360 val images" in some.description


def test_a_subset_must_not_be_larger_than_the_set() -> None:
    with pytest.raises(UserError, match=r"^data\.train_subset must be at most the number of training images, 1437, got 1438$"):
        load_data(configuration("data.train_subset=1438").data)
    with pytest.raises(UserError, match=r"data\.train_subset must be a whole number >= 1, got 0"):
        configuration("data.train_subset=0")
