"""The peers: other packages with the same corruptions, which bench_corruptions.py and corruption_parity.py compare with.

They conflict with each other and with this project's dependencies, so `make peers` installs each without its dependencies into
a folder of its own below .peers, and `load` imports them from there without a change of Python's search path. Two packages have
the import name `imagecorruptions`; the other one, which is never imported, is the source of our photographs of frost.
"""

import importlib.util
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import distributions
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from verify_corruptions import agreement, features

from gch_bench.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from gch_bench.errors import UserError

PACKAGES = {"imgcorr": "imgcorr", "imagecorruptions-imaug": "imagecorruptions", "corrupt-tta": "corrupt_tta"}  # import names
ALIAS = {"imagecorruptions": "imagecorruptions_imaug"}  # import names that are taken, and the names used instead
PEERS = Path(".peers")
WITHIN_ONE = 0.99  # the least share of values within 1 level at which outputs of a deterministic corruption agree
DRAWS = 32  # of a random corruption, by which outputs are compared
CorruptOne = Callable[[np.ndarray, str, int], np.ndarray]  # (image_HW3 uint8, name, severity) -> the same, corrupted


class Peer(NamedTuple):
    """A package whose corruptions are compared with ours."""

    name: str
    version: str
    corrupt: CorruptOne


def load(folder: Path, name: str) -> Peer:
    """The peer `name`, a key of PACKAGES, from folder/name.

    Raises:
        UserError: the folder does not hold the package.
    """
    path = folder / name / PACKAGES[name] / "__init__.py"
    found = list(distributions(path=[str(folder / name)]))
    if not path.is_file() or not found:
        raise UserError(f"{folder} lacks the package {name}: install the packages to compare with by `make peers`")
    alias = ALIAS.get(PACKAGES[name], PACKAGES[name])
    spec = importlib.util.spec_from_file_location(alias, path, submodule_search_locations=[str(path.parent)])
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[alias] = module
    with _pkg_resources():
        spec.loader.exec_module(module)
    return Peer(name, found[0].version, lambda image, corruption, level: module.corrupt(image, level, corruption))


def load_all(folder: Path) -> list[Peer]:
    """All peers of PACKAGES. Raises UserError as `load` does."""
    return [load(folder, name) for name in PACKAGES]


@contextmanager
def _pkg_resources() -> Iterator[None]:
    """Within the context `pkg_resources`, which setuptools has no longer, can be imported; imgcorr needs one function of it."""
    stub = types.ModuleType("pkg_resources")
    stub.resource_filename = lambda module, path: str(Path(sys.modules[module].__file__).parent / path)
    before = sys.modules.get("pkg_resources")
    sys.modules["pkg_resources"] = stub
    try:
        yield
    finally:
        del sys.modules["pkg_resources"]
        if before is not None:
            sys.modules["pkg_resources"] = before


class Likeness(NamedTuple):
    """Whether a peer's outputs of one corruption agree with ours, and the figure that this rests on."""

    agree: bool
    figure: str


def likeness(peers: Sequence[CorruptOne], name: str, images: Tensor, draws: int = DRAWS) -> list[Likeness]:
    """Compare the outputs of each peer, as uint8, with ours at all severities.

    Deterministic corruptions: the share of values within 1 level, on all images, at the severity where it is least. Random
    ones: the 20 feature means of verify_corruptions.py, over draws on the first image, with the tolerance there.

    Args:
        images: uint8 (B, 3, H, W).
    """
    random = CORRUPTIONS[name].random
    photos = photos_HW3(images[:1].expand(draws, -1, -1, -1) if random else images)
    measure = _errors_of_means if random else _share_within_one
    figures: list[list[np.ndarray]] = [[] for _ in peers]
    for severity in SEVERITIES:
        batch = torch.from_numpy(np.stack(photos)).permute(0, 3, 1, 2)
        ours = photos_HW3(corrupt(batch, name, severity, torch.arange(len(photos))))
        for peer, own in zip(peers, figures, strict=True):
            own.append(measure(ours, [np.uint8(peer(photo, name, severity)) for photo in photos], photos[0]))
    return [_of_errors(np.array(own)) if random else _of_share(float(np.min(own))) for own in figures]


def _share_within_one(ours: list[np.ndarray], theirs: list[np.ndarray], _: np.ndarray) -> np.ndarray:
    return (np.abs(np.stack(ours).astype(int) - np.stack(theirs)) <= 1).mean()


def _errors_of_means(ours: list[np.ndarray], theirs: list[np.ndarray], photo: np.ndarray) -> np.ndarray:
    """The differences of the feature means, (20,), in units of their tolerances."""
    ours_DF, theirs_DF = (np.array([features(image, photo) for image in images]) for images in (ours, theirs))
    return agreement(ours_DF, theirs_DF.mean(0), theirs_DF.std(0, ddof=1), len(theirs)).mean_error


def _of_share(share: float) -> Likeness:
    return Likeness(share >= WITHIN_ONE, f"{np.floor(1e4 * share) / 100:.2f}%")


def _of_errors(errors: np.ndarray) -> Likeness:
    off = int((errors > 1).sum())
    return Likeness(off == 0, f"{off} of {errors.size} off, worst {errors.max():.2f}")


def photos_HW3(images: Tensor) -> list[np.ndarray]:
    """uint8 (B, 3, H, W) -> B contiguous arrays (H, W, 3)."""
    return list(images.permute(0, 2, 3, 1).contiguous().numpy())
