"""Batches of images that depend on (seed, epoch, image id) alone: not on workers, batch size, ranks or global generators."""

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

FEW_IMAGES = 10_000  # of fewer images in memory a pass takes less time than starting loader processes
MOST_WORKERS = 32  # loader processes that are worth their memory: each keeps batches ready


class Sample(NamedTuple):
    image: torch.Tensor
    label: int
    id: int
    bad: tuple[BadImage, ...] = ()  # unreadable images that this one stands in for


class Batch(NamedTuple):
    """The good images of a batch, and which could not be read.

    ``images`` (B, 3, H, W), float32 normalised (train) or uint8 (eval); ``labels`` and ``ids`` (B,) int64.
    """

    images: torch.Tensor
    labels: torch.Tensor
    ids: torch.Tensor
    bad: list[BadImage]


class EvalDataset(Dataset):
    """id -> Sample or BadImage."""

    def __init__(self, images: ImageSet, transform: Transform) -> None:
        self.images = images
        self.transform = transform

    def __getitem__(self, index: int) -> Sample | BadImage:
        image = self.images.load_or_bad(index)
        if isinstance(image, BadImage):
            return image
        return Sample(self.transform(image), int(self.images.labels[index]), index)


class TrainDataset(EvalDataset):
    """(epoch, id) -> Sample, augmented with the draws of (seed, epoch, id); the next readable image stands in for a bad one."""

    def __init__(self, images: ImageSet, transform: Transform, seed: int) -> None:
        super().__init__(images, transform)
        self.seed = seed

    def __getitem__(self, position: tuple[int, int]) -> Sample | BadImage:  # type: ignore[override]
        epoch, index = position
        bad: list[BadImage] = []
        with seeded(rng.seed_of(self.seed, "augment", epoch, index)):
            for id_ in (index, *range(index + 1, len(self.images)), *range(index)):
                sample = super().__getitem__(id_)
                if isinstance(sample, Sample):  # all batches keep their size, or processes would get out of step
                    return sample._replace(bad=tuple(bad))
                bad.append(sample)
        return bad[0]


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Inside, the global CPU generators of ``random``, numpy and torch start from ``seed``; afterwards they are as before.

    torchvision and timm draw from these. ``torch.manual_seed`` would also reset the GPU's generator, which noise may use.
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
    """Samples -> Batch; with no good image the image tensor is empty."""
    good = [sample for sample in samples if isinstance(sample, Sample)]
    return Batch(
        images=torch.stack([sample.image for sample in good]) if good else torch.empty(0),
        labels=torch.tensor([sample.label for sample in good], dtype=torch.int64),
        ids=torch.tensor([sample.id for sample in good], dtype=torch.int64),
        bad=[bad for sample in samples for bad in ([sample] if isinstance(sample, BadImage) else sample.bad)],
    )


def checked(batches: Iterable[Batch], skip_bad: bool, skipped: list[BadImage]) -> Iterator[Batch]:
    """The batches that hold good images. Bad ones raise UserError, or with ``skip_bad`` are added to ``skipped``, each once.

    An image of a forbidden size always raises it.
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
    """Batch sampler of (epoch, id) pairs; the same permutation on all ranks, of which each takes every ``world``-th."""

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
    """See ``train_loader``."""

    def __init__(self, dataset: TrainDataset, order: _EpochOrder, workers: int) -> None:
        self._order = order
        self._loader = _data_loader(dataset, workers, batch_sampler=order)
        self.steps_per_epoch = order.steps

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """Batches ``start_step`` to ``steps_per_epoch - 1``; earlier ones are not decoded. One epoch at a time."""
        if not 0 <= start_step <= self.steps_per_epoch:
            raise ValueError(f"start_step must be 0..{self.steps_per_epoch}, got {start_step}")
        self._order.epoch, self._order.start_step = epoch, start_step
        return iter(self._loader)


def train_loader(
    images: ImageSet, transform: Transform, batch_size: int, seed: int, workers: int = 0, rank: int = 0, world: int = 1
) -> TrainLoader:
    """Shuffled, augmented batches of ``batch_size`` images per rank, N // (batch_size * world) steps per epoch.

    Incomplete last batches are dropped. Raises UserError if no step is left.
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
    """Batches of ids rank, rank + world, ... in order: each image on exactly one rank, no padding. Iterate repeatedly."""
    return _data_loader(EvalDataset(images, transform), workers, batch_size=batch_size, sampler=range(rank, len(images), world))


def loader_workers(wanted: int | None, images: ImageSet, processes: int) -> int:
    """The loader processes of one of ``processes`` processes on this host: ``wanted``, else one a core that it may use.

    A few images in memory (the embedded digits) are loaded by the process itself: 0.
    """
    if wanted is not None:
        return wanted
    if isinstance(images, ArrayImages) and len(images) < FEW_IMAGES:
        return 0
    return min(MOST_WORKERS, usable_cores(processes))


def workers_warning(wanted: int | None, processes: int) -> str | None:
    """What to tell a user who wants more loader processes than there are cores; None if all is well."""
    cores = usable_cores(processes)
    if wanted is None or wanted <= cores:
        return None
    return (
        f"data.workers={wanted} is more than the cores that this process may use, {cores}, and may make loading slower:"
        " leave it out for one worker a core"
    )


def _data_loader(dataset: Dataset, workers: int, **options: object) -> DataLoader:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="This DataLoader will create")  # too many: workers_warning has said so
        return DataLoader(
            dataset,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=torch.cuda.is_available(),
            collate_fn=collate,
            generator=torch.Generator(),  # each pass draws a worker seed: not from the global generator
            **options,  # type: ignore[arg-type]
        )
