"""Loaders that make batches of images for training and evaluation.

The augmentation of an image depends on (seed, epoch, image id) alone, and the order of an epoch on (seed, epoch): not on
workers, batch size, ranks or the global generators.
"""

import contextlib
import random
import warnings
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from gch_bench import rng
from gch_bench.cores import usable_cores
from gch_bench.data.images import ArrayImages, BadImage, ImageSet, WrongSize
from gch_bench.data.transforms import Transform
from gch_bench.errors import UserError

FEW_IMAGES = 10_000  # a pass over fewer images in memory takes less time than starting loader processes
MOST_WORKERS = 32  # more loader processes would not be worth the memory: each keeps batches ready


class Sample(NamedTuple):
    image: torch.Tensor
    label: int
    id: int
    bad: tuple[BadImage, ...] = ()  # the unreadable images that this one replaces


class Batch(NamedTuple):
    """The readable images of a batch, and ``bad``, those that could not be read.

    ``images`` is (B, 3, H, W), normalised float32 for training and uint8 for evaluation; ``labels`` and ``ids`` are (B,) int64.
    """

    images: torch.Tensor
    labels: torch.Tensor
    ids: torch.Tensor
    bad: list[BadImage]


class EvalDataset(Dataset):
    """Returns the Sample of an image id, or BadImage if the image cannot be used."""

    def __init__(self, images: ImageSet, transform: Transform) -> None:
        self.images = images
        self.transform = transform

    def __getitem__(self, index: int) -> Sample | BadImage:
        image = self.images.load_or_bad(index)
        if isinstance(image, BadImage):
            return image
        return Sample(self.transform(image), int(self.images.labels[index]), index)


class TrainDataset(EvalDataset):
    """Returns the Sample of (epoch, image id), augmented by random draws that depend on (seed, epoch, id) alone.

    The next readable image takes the place of an unreadable one; BadImage is returned only if no image is readable.
    """

    def __init__(self, images: ImageSet, transform: Transform, seed: int) -> None:
        super().__init__(images, transform)
        self.seed = seed

    def __getitem__(self, position: tuple[int, int]) -> Sample | BadImage:  # type: ignore[override]
        epoch, index = position
        bad: list[BadImage] = []
        with seeded(rng.seed_of(self.seed, "augment", epoch, index)):
            for id_ in (index, *range(index + 1, len(self.images)), *range(index)):
                sample = super().__getitem__(id_)
                if isinstance(sample, Sample):  # so all batches keep their size, and processes stay in step
                    return sample._replace(bad=tuple(bad))
                bad.append(sample)
        return bad[0]


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Within the context the global CPU generators of ``random``, numpy and torch start from ``seed``; then they are as before.

    torchvision and timm draw from these generators. ``torch.manual_seed`` is not used, because it would also reset the GPU's
    generator, from which noise may be drawn.
    """
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


def collate(samples: list[Sample | BadImage]) -> Batch:
    """Join samples to a batch. If no image is readable, the tensor of images is empty."""
    good = [sample for sample in samples if isinstance(sample, Sample)]
    return Batch(
        images=torch.stack([sample.image for sample in good]) if good else torch.empty(0),
        labels=torch.tensor([sample.label for sample in good], dtype=torch.int64),
        ids=torch.tensor([sample.id for sample in good], dtype=torch.int64),
        bad=[bad for sample in samples for bad in ([sample] if isinstance(sample, BadImage) else sample.bad)],
    )


def checked(batches: Iterable[Batch], skip_bad: bool, skipped: list[BadImage]) -> Iterator[Batch]:
    """The batches that hold readable images.

    With ``skip_bad`` each unreadable image is added once to ``skipped``.

    Raises:
        UserError: an image is unreadable and ``skip_bad`` is false, or an image has a forbidden size.
    """
    for batch in batches:
        for bad in batch.bad:
            if isinstance(bad, WrongSize):
                raise UserError(f"{bad.path} {bad.reason}")
            if not skip_bad:
                raise UserError(f"unreadable image {bad.path}: {bad.reason}; remove it or set data.skip_bad=true")
            if bad not in skipped:
                skipped.append(bad)
        if len(batch.ids):
            yield batch


class _EpochOrder:
    """Batch sampler of (epoch, image id) pairs.

    All ``world`` ranks draw the same permutation of the images, and each takes every ``world``-th id from its own offset.
    """

    def __init__(self, num_images: int, batch_size: int, seed: int, rank: int, world: int) -> None:
        self.num_images, self.batch_size, self.seed, self.rank, self.world = num_images, batch_size, seed, rank, world
        self.steps = num_images // (batch_size * world)
        self.epoch, self.start_step = 0, 0

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return self._batches(self.epoch, self.start_step)

    def _batches(self, epoch: int, start_step: int) -> Iterator[list[tuple[int, int]]]:
        ids = torch.randperm(self.num_images, generator=rng.generator(self.seed, "order", epoch))[
            self.rank :: self.world
        ].tolist()
        for step in range(start_step, self.steps):
            yield [(epoch, index) for index in ids[step * self.batch_size : (step + 1) * self.batch_size]]


class TrainLoader:
    """Batches of training images, epoch by epoch; made by ``train_loader``."""

    def __init__(self, dataset: TrainDataset, order: _EpochOrder, workers: int) -> None:
        self._order = order
        self._loader = _data_loader(dataset, workers, batch_sampler=order)
        self.steps_per_epoch = order.steps

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """The batches ``start_step`` to ``steps_per_epoch - 1`` of an epoch; the images of earlier ones are not read.

        Only one epoch at a time can be iterated over.
        """
        if not 0 <= start_step <= self.steps_per_epoch:
            raise ValueError(f"start_step must be 0..{self.steps_per_epoch}, got {start_step}")
        self._order.epoch, self._order.start_step = epoch, start_step
        return iter(self._loader)


def train_loader(
    images: ImageSet, transform: Transform, batch_size: int, seed: int, workers: int = 0, rank: int = 0, world: int = 1
) -> TrainLoader:
    """A loader of shuffled and augmented batches of ``batch_size`` images per rank.

    An epoch of N images has N // (batch_size * world) steps; the incomplete last batch is dropped. Raises UserError if that
    leaves no step.
    """
    order = _EpochOrder(len(images), batch_size, seed, rank, world)
    if order.steps == 0:
        ranks = f" x {world} ranks" if world > 1 else ""
        raise UserError(
            f"batch size must be at most the number of training images, {len(images)}, got {batch_size}{ranks};"
            " lower recipe.batch_size"
        )
    return TrainLoader(TrainDataset(images, transform, seed), order, workers)


def eval_loader(
    images: ImageSet, transform: Transform, batch_size: int, workers: int = 0, rank: int = 0, world: int = 1
) -> DataLoader:
    """A loader of the images with the ids rank, rank + world, ..., in this order; it may be iterated over repeatedly.

    Each image is on exactly one rank, and nothing is padded.
    """
    return _data_loader(EvalDataset(images, transform), workers, batch_size=batch_size, sampler=range(rank, len(images), world))


def loader_workers(wanted: int | None, images: ImageSet, processes: int) -> int:
    """How many loader processes each of the ``processes`` processes on this host starts.

    It is ``wanted`` if that is given, otherwise one for each core that the process may use. A few images in memory (the
    embedded digits) are loaded by the process itself; the number is then 0.
    """
    if wanted is not None:
        return wanted
    if isinstance(images, ArrayImages) and len(images) < FEW_IMAGES:
        return 0
    return min(MOST_WORKERS, usable_cores(processes))


def workers_warning(wanted: int | None, processes: int) -> str | None:
    """A warning for a user who asks for more loader processes than the process may use cores; None otherwise."""
    cores = usable_cores(processes)
    if wanted is None or wanted <= cores:
        return None
    return (
        f"data.workers={wanted} is more than the cores that this process may use, {cores}, and may make loading slower:"
        " leave it out for one worker a core"
    )


def _data_loader(dataset: Dataset, workers: int, **options: object) -> DataLoader:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="This DataLoader will create")  # see workers_warning
        return DataLoader(
            dataset,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=torch.cuda.is_available(),
            collate_fn=collate,
            generator=torch.Generator(),  # from it each pass draws a seed for the workers, and not from the global one
            **options,  # type: ignore[arg-type]
        )
