"""recipe.trunk_cache: the outputs of the frozen trunk for all training images, kept on disk for other runs.

With recipe.freeze the trunk's output for an augmented image depends on (seed, epoch, image id) and the trunk's weights alone.
Runs that differ only in the noise behind the trunk, or in another part of the recipe, therefore train on the same outputs. They
are computed once for each epoch, written to a file, and read by all these runs, also by those at work at the same time: of
several that lack a file one makes it, and the others wait for it. On one machine, with one number of threads, the
trained weights are the same bit for bit.
"""

import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from gch_bench.errors import UserError
from gch_bench.files import locked, remove_temporary, write_atomic, writing
from gch_bench.model.trunk import Call, Features, NotKept, Trunk, check_trunk, run_tail, trunk_digest, trunk_outputs
from gch_bench.noise.placement import random_images

ELSEWHERE = "choose another folder with recipe.trunk_cache="
PATIENCE = 3600.0  # seconds to wait for a process that makes the file of an epoch


class TrunkBatch(NamedTuple):
    """A training batch of B images, of which only the outputs of the trunk are there."""

    features: Features
    labels: Tensor  # (B,) int64
    ids: Tensor  # (B,) int64


# torch.load may make these types when it reads a file. The list belongs to the whole process, so that a type that is
# taken off it again, as by torch.serialization.safe_globals, would be missing where another thread is reading.
torch.serialization.add_safe_globals([TrunkBatch, Call, NotKept])


class TrunkCache:
    """The files of one trunk on the batches of one loader: one for each epoch, with its batches in order.

    A file takes as much space as the trunk's output for all images: 29 KB an image for EfficientNet-Lite0 up to L3 on 128
    pixels. While it is made all of it is in memory.
    """

    def __init__(self, folder: Path, network: nn.Module, trunk: Trunk, batches: Any, size: int) -> None:
        """
        Args:
            folder: where the files lie, in a folder that is named by all that the outputs depend on.
            batches: a value whose repr says all that the batches depend on: images, libraries, augmentation, seed, sizes.
            size: the side in pixels of the square images.

        Raises:
            UserError: the network cannot be computed from the trunk's outputs alone.
        """
        self.network, self.trunk, self.size = network, trunk, size
        device = next(network.parameters()).device
        if trunk.keeps_inputs or not self._exact(device):
            raise UserError(
                f"recipe.trunk_cache: {type(network).__name__} cannot be continued from {trunk.stage}: leave it out"
            )
        said = f"{trunk_digest(network, trunk)} {batches!r} {torch.__version__} {device.type}"
        self.folder = folder / hashlib.sha256(said.encode()).hexdigest()[:16]

    def _exact(self, device: torch.device) -> bool:
        """Whether trunk and tail give bit for bit the logits of a plain forward pass, on random images in eval mode."""
        mode = self.network.training
        self.network.eval()
        with torch.no_grad():
            same = check_trunk(self.network, self.trunk, random_images(self.size, self.size).to(device))
        self.network.train(mode)
        return same

    def epoch(
        self,
        number: int,
        images: Iterable[tuple[Tensor, Tensor, Tensor]],
        start_step: int,
        waiting: Callable[[], None] = lambda: None,
    ) -> Iterator[TrunkBatch]:
        """The batches of an epoch from `start_step` on.

        Args:
            images: (images on the network's device, labels, ids) of all batches of the epoch, in order. They are computed and
                written if there is no file of the epoch yet; the network is left in eval mode then.
            waiting: called while another process makes the file; it may raise to end that.

        Raises:
            UserError: the file cannot be written, is damaged, or another process has been making one for PATIENCE seconds.
        """
        path = self.folder / f"epoch-{number}.pt"
        if not path.exists():
            self._make(path, images, waiting)
        try:
            batches = torch.load(path, mmap=True, weights_only=True)
        except Exception as error:  # torch and pickle each raise their own
            raise UserError(f"recipe.trunk_cache: {path} cannot be read, it is truncated or foreign: delete it") from error
        return itertools.islice(batches, start_step, None)

    def _make(self, path: Path, images: Iterable[tuple[Tensor, Tensor, Tensor]], waiting: Callable[[], None]) -> None:
        """Write the file, unless another process writes it while this one waits for the folder's lock."""
        with writing(self.folder, ELSEWHERE):
            self.folder.mkdir(parents=True, exist_ok=True)
        with locked(self.folder, "recipe.trunk_cache", PATIENCE, waiting) as alone:
            if alone:
                remove_temporary(self.folder)
            if path.exists():
                return
            self.network.eval()
            with torch.no_grad():
                made = [TrunkBatch(self._outputs(x), labels, ids) for x, labels, ids in images]
            write_atomic(path, lambda file: torch.save(made, file), ELSEWHERE, durable=False)

    def _outputs(self, images: Tensor) -> Features:
        return _moved(trunk_outputs(self.network, self.trunk, images), torch.device("cpu"))

    def logits(self, batch: TrunkBatch, device: torch.device) -> Tensor:
        """The logits (B, C) that the network, in its present mode, gives for a batch."""
        shape = (len(batch.ids), 3, self.size, self.size)
        images = torch.zeros((), device=device).expand(shape)  # the network never reads them
        return run_tail(self.network, self.trunk, _moved(batch.features, device), images)


def _moved(features: Features, device: torch.device) -> Features:
    return [Call(call.module, tree_map_only(Tensor, lambda tensor: tensor.to(device), call.output)) for call in features]
