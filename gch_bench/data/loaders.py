"""Loaders that make batches of images for training and evaluation.

The augmentation of an image depends on (seed, epoch, image id) alone, and the order of an epoch on (seed, epoch): not on
workers, batch size, ranks or the global generators.
"""

import contextlib
import itertools
import random
import signal
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from gch_bench import rng
from gch_bench.cores import usable_cores
from gch_bench.data.images import ArrayImages, BadImage, ChosenImages, ImageSet, LostImage, WrongSize
from gch_bench.data.transforms import Preparation, Transform
from gch_bench.errors import UserError

FEW_IMAGES = 10_000  # a pass over fewer images in memory takes less time than starting loader processes
T = TypeVar("T")
MOST_WORKERS = 32  # more loader processes would not be worth the memory: each keeps batches ready


class Sample(NamedTuple):
    image: torch.Tensor
    label: int
    id: int
    bad: tuple[BadImage, ...] = ()  # the unreadable images that this one replaces


class Batch(NamedTuple):
    """The readable images of a training batch, and ``bad``, those that could not be read.

    ``images`` is (B, 3, H, W), normalised float32; ``labels`` and ``ids`` are (B,) int64.
    """

    images: torch.Tensor
    labels: torch.Tensor
    ids: torch.Tensor
    bad: list[BadImage]


class Source(NamedTuple):
    """Images that are evaluated, and the preparations of them that are wanted. Each image is decoded once for all of these."""

    images: ImageSet
    preparations: tuple[Preparation, ...]


class EvalSample(NamedTuple):
    images: tuple[torch.Tensor, ...]  # one for each preparation of the source
    label: int
    id: int


class EvalBatch(NamedTuple):
    """The readable images of a batch, all of one source, and those that could not be read."""

    images: tuple[torch.Tensor, ...]  # for each preparation uint8 (B, 3, H, W)
    labels: torch.Tensor  # (B,) int64
    ids: torch.Tensor  # (B,) int64
    bad: list[BadImage]
    bad_ids: list[int]  # of the images in `bad`


class EvalDataset(Dataset):
    """Returns the EvalSample of (number of the source, image id), or (id, BadImage) if the image cannot be used."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self.sources = sources

    def __getitem__(self, position: tuple[int, int]) -> EvalSample | tuple[int, BadImage]:
        number, index = position
        images, preparations = self.sources[number]
        image = images.load_or_bad(index)
        if isinstance(image, BadImage):
            return index, image
        return EvalSample(tuple(prepare(image) for prepare in preparations), int(images.labels[index]), index)


def collate_evaluation(samples: Sequence[EvalSample | tuple[int, BadImage]]) -> EvalBatch:
    """Join samples of one source to a batch. If no image is readable, there are no tensors of images."""
    good = [sample for sample in samples if isinstance(sample, EvalSample)]
    bad = [sample for sample in samples if not isinstance(sample, EvalSample)]
    return EvalBatch(
        images=tuple(torch.stack(images) for images in zip(*(sample.images for sample in good), strict=True)),
        labels=torch.tensor([sample.label for sample in good], dtype=torch.int64),
        ids=torch.tensor([sample.id for sample in good], dtype=torch.int64),
        bad=[image for _, image in bad],
        bad_ids=[index for index, _ in bad],
    )


class TrainDataset(Dataset):
    """Returns the Sample of (epoch, image id), augmented by random draws that depend on (seed, epoch, id) alone.

    The next readable image takes the place of an unreadable one. BadImage is returned only if no image is readable or one is
    lost.
    """

    def __init__(self, images: ImageSet, transform: Transform, seed: int) -> None:
        self.images = images
        self.transform = transform
        self.seed = seed

    def __getitem__(self, position: tuple[int, int]) -> Sample | BadImage:
        epoch, index = position
        bad: list[BadImage] = []
        with seeded(rng.seed_of(self.seed, "augment", epoch, index)):
            for id_ in itertools.chain(range(index, len(self.images)), range(index)):
                image = self.images.load_or_bad(id_)
                if not isinstance(image, BadImage):  # so all batches keep their size, and processes stay in step
                    return Sample(self.transform(image), int(self.images.labels[id_]), id_, tuple(bad))
                bad.append(image)
                if isinstance(image, LostImage):  # and so, probably, are all others
                    return image
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
        UserError: see ``refuse_bad``.
    """
    for batch in batches:
        refuse_bad(batch.bad, skip_bad)
        skipped.extend(bad for bad in dict.fromkeys(batch.bad) if bad not in skipped)
        if len(batch.ids):
            yield batch


def refuse_bad(images: Iterable[BadImage], skip_bad: bool) -> None:
    """Raise UserError if an image is unreadable and ``skip_bad`` is false, is lost, or has a forbidden size."""
    for bad in images:
        if isinstance(bad, WrongSize | LostImage):
            raise UserError(f"{bad.path} {bad.reason}")
        if not skip_bad:
            raise UserError(f"unreadable image {bad.path}: {bad.reason}; remove it or set data.skip_bad=true")


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
        self._loader = _data_loader(dataset, workers, batch_sampler=order, collate_fn=collate)
        self.steps_per_epoch = order.steps

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """The batches ``start_step`` to ``steps_per_epoch - 1`` of an epoch; the images of earlier ones are not read.

        Only one epoch at a time can be iterated over.
        """
        if not 0 <= start_step <= self.steps_per_epoch:
            raise ValueError(f"start_step must be 0..{self.steps_per_epoch}, got {start_step}")
        self._order.epoch, self._order.start_step = epoch, start_step
        return whole(self._loader)


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


def eval_loader(sources: Sequence[Source], batches: Iterable[Sequence[tuple[int, int]]], workers: int = 0) -> DataLoader:
    """A loader of EvalBatch in the order of ``batches``, each of which lists (number of the source, image id) of one source.

    ``batches`` must have a length.
    """
    return _data_loader(EvalDataset(sources), workers, batch_sampler=batches, collate_fn=collate_evaluation)


def loader_workers(wanted: int | None, images: ImageSet, processes: int) -> int:
    """How many loader processes each of the ``processes`` processes on this host starts.

    It is ``wanted`` if that is given, otherwise one for each core that the process may use. A few images in memory (the
    embedded digits) are loaded by the process itself; the number is then 0.
    """
    if wanted is not None:
        return wanted
    whole = images.whole if isinstance(images, ChosenImages) else images
    if isinstance(whole, ArrayImages) and len(images) < FEW_IMAGES:
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


def whole(batches: Iterable[T]) -> Iterator[T]:
    """The batches of a loader. Raises UserError if one of its processes is killed."""
    try:
        yield from batches
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise UserError(
            f"a loader process was killed, perhaps for lack of memory ({str(error).splitlines()[0]}): lower data.workers"
        ) from error


def _ignore_signals(worker: int) -> None:
    """In a loader process: leave signals that stop the run to the main process, which ends its loaders when it has stopped.

    SLURM and terminals send them to all processes at once.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)


def _data_loader(dataset: Dataset, workers: int, **options: object) -> DataLoader:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="This DataLoader will create")  # see workers_warning
        return DataLoader(
            dataset,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=_ignore_signals,
            generator=torch.Generator(),  # from it each pass draws a seed for the workers, and not from the global one
            **options,  # type: ignore[arg-type]
        )
