"""Data that timm's readers read: ``data=timm data.reader=wds/NAME`` or ``hfds/NAME``.

Images are needed by their id, in any order. timm's reader of Hugging Face data sets gives them so. Its reader of WebDataset
shards only streams, so the shards are read here (webdataset.py). TFDS and hfids stream, too, and are refused.
"""

import functools
import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from gch_bench.config.data import DataConfig
from gch_bench.data import webdataset
from gch_bench.data.folders import root_of
from gch_bench.data.images import ImageSet, Subset, spread
from gch_bench.errors import UserError

VAL_SPLITS = ("validation", "val", "test")  # the names that data sets give to their evaluation images; the first found is taken


@dataclass(frozen=True, eq=False)
class ReaderImages(ImageSet):
    """The images of a timm reader that gives an image's file and label by its index."""

    reader: Any

    def load(self, index: int) -> Image.Image:
        with self.reader[index][0] as file:
            return Image.open(file).convert("RGB")


def read(config: DataConfig, split: str, other: str | None) -> Subset:
    """One split of the data. Its classes are the labels 0..C-1; without ``config.num_classes`` the largest label tells C.

    Raises:
        UserError: ``config.reader`` names no reader that gives images by their id, or the data is missing or malformed.
    """
    kind, slash, name = (config.reader or "").partition("/")
    if not slash or kind not in ("wds", "hfds"):
        raise UserError(
            "data.reader must be wds/NAME or hfds/NAME, as images are read by their id, which readers that stream (tfds, hfids)"
            f" cannot, got {config.reader}"
        )
    if split != "train":  # load_data reads these first: what an earlier call has read may have changed on disk
        _images.cache_clear()
    images, fingerprint = _images(config, kind, name, split)
    labels_N = images.labels
    if config.num_classes is None:
        others = [_images(config, kind, name, other)[0].labels] if other else []
        count = 1 + int(max(labels.max() for labels in (labels_N, *others)))
    else:
        count = config.num_classes
    if labels_N.min() < 0 or labels_N.max() >= count:
        found = f"{labels_N.min()}..{labels_N.max()}"
        raise UserError(f"data.num_classes must be more than every label of {split}, got {count} and labels {found}")
    return Subset([str(label) for label in range(count)], images, fingerprint)


@functools.lru_cache(maxsize=2)  # both splits are needed twice, as either may have the largest label
def _images(config: DataConfig, kind: str, name: str, split: str) -> tuple[ImageSet, str]:
    names = (split,) if split == "train" else VAL_SPLITS
    if kind == "wds":
        return webdataset.read_shards(root_of(config), names, heads=split != "train")
    return _hugging_face(config, name, names)


def _hugging_face(config: DataConfig, name: str, splits: tuple[str, ...]) -> tuple[ImageSet, str]:
    try:
        from timm.data.readers.reader_hfds import ReaderHfds
    except ImportError as error:
        raise UserError(
            f"data.reader=hfds/{name} needs the package datasets, which is not installed: pip install datasets"
        ) from error
    problems = []
    for split in splits:
        try:
            reader = ReaderHfds(name, root=str(root_of(config)), split=split)
            labels_N = np.array(list(reader.iter_targets()), dtype=np.int64)
            break
        except Exception as error:  # the package raises its own errors, OSError, ValueError, KeyError, ...
            problems.append(f"{split}: {error}")
    else:
        raise UserError(f"data.reader=hfds/{name} cannot be read from {config.root}: {'; '.join(problems)[:500]}")
    digest = hashlib.sha256(labels_N.astype("<i8").tobytes())
    for index in spread(len(labels_N)):  # the package's own fingerprint of a data set depends on where it lies
        with reader[index][0] as file:
            digest.update(file.read())
    names = [f"{split}/{i:08d}" for i in range(len(labels_N))]
    return ReaderImages(names, labels_N, reader), digest.hexdigest()[:16]
