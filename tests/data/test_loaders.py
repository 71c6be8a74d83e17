import random
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import batches_of
from PIL import Image

from gch_bench.config.data import AugmentConfig
from gch_bench.data.images import ArrayImages, FileImages
from gch_bench.data.loaders import Batch, Source, checked, eval_loader, refuse_bad, train_loader
from gch_bench.data.transforms import EvalTransform, Normalisation, train_transform
from gch_bench.errors import UserError

N, SIZE = 43, 16
NORMALISATION = Normalisation((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
TRAIN = train_transform(AugmentConfig(auto_augment="rand-m5-mstd0.5", random_erasing=0.5), SIZE, NORMALISATION)
EVAL = EvalTransform(SIZE)


@pytest.fixture(scope="module")
def images() -> ArrayImages:
    pixels = np.random.default_rng(0).integers(0, 256, (N, SIZE, SIZE, 3), dtype=np.uint8)
    return ArrayImages([f"{i:02d}" for i in range(N)], np.arange(N) % 5, pixels)


@pytest.fixture
def files(images, tmp_path) -> FileImages:
    for i in range(12):
        images.load(i).save(tmp_path / f"{i:02d}.png")
    return FileImages([f"{i:02d}.png" for i in range(12)], np.arange(12), str(tmp_path))


def by_id(batches) -> dict[int, torch.Tensor]:
    return {i: image for batch in batches for i, image in zip(batch.ids.tolist(), batch.images, strict=True)}


def ids(batches) -> list[list[int]]:
    return [batch.ids.tolist() for batch in batches]


def same(first: list[Batch], second: list[Batch]) -> bool:
    pairs = list(zip(first, second, strict=True))
    return all(torch.equal(a, b) for x, y in pairs for a, b in zip(x[:3], y[:3], strict=True))


def test_training_batches_are_identical_for_any_worker_count(images):
    alone, helped = (train_loader(images, TRAIN, 8, seed=3, workers=workers) for workers in (0, 2))
    for epoch in (0, 1):
        assert same(list(alone.epoch(epoch)), list(helped.epoch(epoch)))


def test_an_image_depends_on_seed_epoch_and_id_alone(images):
    def epoch(batch_size=4, seed=3, epoch=1, **ranks):
        return by_id(train_loader(images, TRAIN, batch_size, seed, **ranks).epoch(epoch))

    reference = epoch()
    for other in (epoch(batch_size=7), epoch(rank=1, world=3)):
        assert all(torch.equal(reference[i], image) for i, image in other.items() if i in reference)
    shared = set(reference) & set(epoch(seed=4))
    assert any(not torch.equal(reference[i], epoch(seed=4)[i]) for i in list(shared)[:5])
    assert any(not torch.equal(reference[i], epoch(epoch=2)[i]) for i in list(set(reference) & set(epoch(epoch=2)))[:5])


def test_order_differs_between_epochs_and_seeds_and_repeats(images):
    loader = train_loader(images, TRAIN, 8, seed=0)
    first, second = ids(loader.epoch(0)), ids(loader.epoch(1))
    assert (ids(loader.epoch(0)), first != second) == (first, True)
    assert ids(train_loader(images, TRAIN, 8, seed=1).epoch(0)) != first
    assert (len(first), loader.steps_per_epoch, {len(batch) for batch in first}) == (5, 5, {8})


def test_ranks_share_each_global_batch(images):
    whole = ids(train_loader(images, TRAIN, 12, seed=0).epoch(2))
    ranks = [ids(train_loader(images, TRAIN, 4, seed=0, rank=rank, world=3).epoch(2)) for rank in range(3)]
    assert [len(rank) for rank in ranks] == [3, 3, 3]
    for step, batch in enumerate(whole):
        parts = [i for rank in ranks for i in rank[step]]
        assert (sorted(parts), len(set(parts))) == (sorted(batch), 12)


@pytest.mark.parametrize("workers", [0, 2])
def test_restart_gives_the_tail_of_the_epoch(images, workers):
    full = list(train_loader(images, TRAIN, 8, seed=3).epoch(1))
    loader = train_loader(images, TRAIN, 8, seed=3, workers=workers)
    assert same(list(loader.epoch(1, start_step=3)), full[3:])
    assert same(list(loader.epoch(1)), full)
    assert list(loader.epoch(1, start_step=5)) == []
    with pytest.raises(ValueError, match=r"start_step must be 0..5, got 6"):
        loader.epoch(1, start_step=6)


def test_restart_does_not_decode_skipped_images(images, monkeypatch):
    loaded = []
    load = ArrayImages.load
    monkeypatch.setattr(ArrayImages, "load", lambda self, index: loaded.append(index) or load(self, index))
    batches = list(train_loader(images, TRAIN, 8, seed=3).epoch(0, start_step=4))
    assert loaded == batches[0].ids.tolist()


def test_an_abandoned_epoch_does_not_leak_into_the_next(images):
    full = list(train_loader(images, TRAIN, 8, seed=3).epoch(1))
    loader = train_loader(images, TRAIN, 8, seed=3, workers=2)
    next(loader.epoch(0))
    assert same(list(loader.epoch(1)), full)


@pytest.mark.parametrize("workers", [0, 2])
def test_global_generators_are_undisturbed(images, workers):
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    expected = random.random(), np.random.rand(), torch.rand(1)
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    batches = train_loader(images, TRAIN, 8, seed=0, workers=workers).epoch(0)
    next(batches)
    list(batches)
    list(batches_of(images, EVAL, 8, workers))
    assert (random.random(), np.random.rand(), torch.rand(1)) == expected


def test_draws_are_independent_of_the_global_generators(images):
    first = list(train_loader(images, TRAIN, 8, seed=0).epoch(0))
    random.seed(7), np.random.seed(7), torch.manual_seed(7)
    assert same(list(train_loader(images, TRAIN, 8, seed=0).epoch(0)), first)


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_batches_are_the_images(images, workers):
    loader = batches_of(images, EVAL, 10, workers)
    for _ in range(2):  # one loader serves many passes
        batches = list(loader)
        assert [tuple(batch.images[0].shape) for batch in batches] == [(10, 3, SIZE, SIZE)] * 4 + [(3, 3, SIZE, SIZE)]
        assert all(
            batch.images[0].dtype == torch.uint8 and batch.labels.dtype == batch.ids.dtype == torch.int64 for batch in batches
        )
        assert np.array_equal(torch.cat([batch.images[0] for batch in batches]).permute(0, 2, 3, 1).numpy(), images.pixels)
        assert np.array_equal(torch.cat([batch.labels for batch in batches]).numpy(), images.labels)


def test_more_batch_than_images(images):
    with pytest.raises(UserError) as caught:
        train_loader(images, TRAIN, 64, seed=0)
    assert str(caught.value) == "batch size must be at most the number of training images, 43, got 64; lower recipe.batch_size"
    with pytest.raises(UserError, match=r"43, got 16 x 4 ranks; lower recipe\.batch_size"):
        train_loader(images, TRAIN, 16, seed=0, world=4)


@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_image_stops_with_its_name(files, workers):
    path = Path(files.path(5))
    path.write_bytes(b"no image")
    for batches in (batches_of(files, EVAL, 4, workers), train_loader(files, TRAIN, 4, seed=0, workers=workers).epoch(0)):
        with pytest.raises(UserError) as caught:
            refuse_bad([bad for batch in batches for bad in batch.bad], skip_bad=False)
        assert str(caught.value) == (
            f"unreadable image {path}: not an image in a format Pillow knows; remove it or set data.skip_bad=true"
        )


@pytest.mark.parametrize("workers", [0, 2])
def test_skipped_training_images_are_counted_once(files, workers):
    for i in (1, 4, 5, 6, 7):
        Path(files.path(i)).write_bytes(b"")
    skipped = []
    loader = train_loader(files, TRAIN, 4, seed=0, workers=workers)
    for epoch in range(2):
        batches = list(checked(loader.epoch(epoch), skip_bad=True, skipped=skipped))
        assert all(len(batch.images) == len(batch.labels) == len(batch.ids) == 4 for batch in batches)
    assert sorted(Path(bad.path).name for bad in skipped) == ["01.png", "04.png", "05.png", "06.png", "07.png"]


@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_evaluation_images_are_named_in_their_batch(files, workers):
    for i in (1, 4, 5, 6, 7):
        Path(files.path(i)).write_bytes(b"")
    batches = list(batches_of(files, EVAL, 4, workers))
    assert [batch.ids.tolist() for batch in batches] == [[0, 2, 3], [], [8, 9, 10, 11]]
    assert [batch.bad_ids for batch in batches] == [[1], [4, 5, 6, 7], []]
    assert [Path(bad.path).name for bad in batches[1].bad] == ["04.png", "05.png", "06.png", "07.png"]


def test_an_image_is_decoded_once_for_all_preparations(images, monkeypatch):
    decoded = []
    load = type(images).load
    monkeypatch.setattr(type(images), "load", lambda self, index: (decoded.append(index), load(self, index))[1])
    other = EvalTransform(SIZE, 2 * SIZE)
    (batch,) = eval_loader([Source(images, (EVAL, other))], [[(0, 3), (0, 5)]])
    assert decoded == [3, 5]
    assert torch.equal(batch.images[1], torch.stack([other(load(images, i)) for i in (3, 5)]))
    assert not torch.equal(batch.images[0], batch.images[1])


def test_a_fault_of_the_transform_is_not_taken_for_a_bad_image(files):
    def broken(image: Image.Image) -> torch.Tensor:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        list(eval_loader([Source(files, (broken,))], [[(0, 0)]]))
