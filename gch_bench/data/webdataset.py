"""WebDataset shards: tar files whose members KEY.jpg and KEY.cls are an image and its label. Images are read by their offset.

ROOT/_info.json or info.json names the splits with their shards (``filenames``) and their counts (``shard_lengths``). Without it
a shard belongs to a split whose name is a word of its file name. The label is the number in KEY.cls, or where the split has an
``alt_label``, that field of KEY.json; a negative one means that the sample is left out. An image's id is its place in the list
of shards, in the order of their members.
"""

import hashlib
import io
import json
import re
import tarfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from PIL import Image

from gch_bench.data.images import ImageSet
from gch_bench.errors import UserError

IMAGE_SUFFIXES = ("jpg", "png", "webp", "jpeg")


@dataclass(frozen=True, eq=False)
class ShardImages(ImageSet):
    """N images inside tar files: the one with id i is ``size_N[i]`` bytes from ``offset_N[i]`` of ``shards[shard_N[i]]``."""

    shards: list[str]
    shard_N: np.ndarray
    offset_N: np.ndarray
    size_N: np.ndarray

    def load(self, index: int) -> Image.Image:
        with open(self.shards[self.shard_N[index]], "rb") as file:
            file.seek(self.offset_N[index])
            return Image.open(io.BytesIO(file.read(self.size_N[index]))).convert("RGB")


class _Split(NamedTuple):
    shards: list[Path]
    lengths: list[int | None]  # the number of samples that each shard must have; None: not known
    label_field: str  # the field of the JSON file that holds the label; "": the label is in KEY.cls


class _Sample(NamedTuple):
    name: str
    label: int
    offset: int
    size: int
    head: int | None  # checksum of the first 4 KiB


def read_shards(root: Path, splits: Sequence[str], heads: bool) -> tuple[ShardImages, str]:
    """The images of the first of ``splits`` that the data has, and their fingerprint. This reads the shards' headers once.

    The fingerprint covers names, labels and sizes, and with ``heads`` also the first 4 KiB of each image.

    Raises:
        UserError: there is no such split, a shard is missing, truncated or compressed, has another number of samples than
            _info.json says, or a sample has no image or no label.
    """
    split = _split(root, splits)
    samples, shard_of = [], []
    for number, (shard, length) in enumerate(zip(split.shards, split.lengths, strict=True)):
        found = _samples(shard, split.label_field, heads)
        if length is not None and found[1] != length:
            raise UserError(f"data.root: {shard} must have {length} samples by _info.json, got {found[1]}; download it again")
        samples += found[0]
        shard_of += [number] * len(found[0])
    if not samples:
        raise UserError(f"data.root: the shards of {splits[0]} in {root} must hold images, got none")
    digest = hashlib.sha256("\n".join("\0".join(map(str, sample._replace(offset=0))) for sample in samples).encode())
    columns = [np.array(values, dtype=np.int64) for values in zip(*(sample[1:4] for sample in samples), strict=True)]
    names = [sample.name for sample in samples]
    shards = [str(shard) for shard in split.shards]
    return ShardImages(names, columns[0], shards, np.array(shard_of), *columns[1:]), digest.hexdigest()[:16]


def _split(root: Path, splits: Sequence[str]) -> _Split:
    path = next((root / name for name in ("_info.json", "info.json") if (root / name).is_file()), None)
    if path is not None:
        try:
            known: dict[str, Any] = json.loads(path.read_text())["splits"]
            name = next((name for name in splits if name in known), None)
            if name is None:
                raise UserError(f"data.root: {path} must have a split {' or '.join(splits)}, got {', '.join(known)}")
            facts = known[name]
            shards = [root / file for file in facts["filenames"]]
            lengths = [int(length) for length in facts["shard_lengths"]]
            if len(shards) != len(lengths):
                raise ValueError(f"{len(shards)} filenames and {len(lengths)} shard_lengths")
            return _Split(shards, list(lengths), facts.get("alt_label", ""))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"data.root: {path} must hold splits with filenames and as many shard_lengths, and cannot be read so"
                f" ({type(error).__name__}: {error})"
            ) from error
    files = sorted(root.glob("*.tar"))
    for name in splits:
        shards = [file for file in files if name in re.split(r"[^a-z]+", file.stem.lower())]
        if shards:
            return _Split(shards, [None] * len(shards), "")
    raise UserError(
        f"data.root must hold _info.json or shards named by their split, such as NAME-{splits[0]}-0000.tar, got {root} with"
        f" {len(files)} other .tar files"
    )


def _samples(shard: Path, label_field: str, heads: bool) -> tuple[list[_Sample], int]:
    """The samples of a shard that have a label, and the number of all."""
    parts: dict[str, dict[str, tarfile.TarInfo]] = {}
    try:
        with open(shard, "rb") as file, tarfile.open(fileobj=file, mode="r:") as archive:
            for member in archive:
                folder, _, base = member.name.rpartition("/")
                key, _, suffix = base.partition(".")
                if member.isfile() and key:
                    parts.setdefault(f"{folder}/{key}" if folder else key, {})[suffix.lower()] = member
            file.seek(archive.offset)
            if file.read(512) != bytes(512):  # tarfile takes an archive that ends before a header for a whole one
                raise tarfile.ReadError("it has no end mark")
            samples = [_sample(file, shard, key, found, label_field, heads) for key, found in parts.items()]
    except (OSError, tarfile.TarError) as error:
        raise UserError(
            f"data.root: {shard} must be a whole, uncompressed tar file, and cannot be read so ({error}); download it again"
        ) from error
    return [sample for sample in samples if sample.label >= 0], len(samples)


def _sample(file: BinaryIO, shard: Path, key: str, parts: dict[str, tarfile.TarInfo], label_field: str, heads: bool) -> _Sample:
    def content(member: tarfile.TarInfo, most: int | None = None) -> bytes:
        file.seek(member.offset_data)
        return file.read(member.size if most is None else min(most, member.size))

    suffix = next((suffix for suffix in IMAGE_SUFFIXES if suffix in parts), None)
    if suffix is None:
        raise UserError(f"data.root: sample {key} of {shard} must have one of {', '.join(IMAGE_SUFFIXES)}, got {list(parts)}")
    try:
        label = int(json.loads(content(parts["json"]))[label_field] if label_field else content(parts["cls"]))
    except (ValueError, KeyError, TypeError) as error:
        where = f"a number in {key}.json as {label_field}" if label_field else f"a number in {key}.cls"
        raise UserError(f"data.root: sample {key} of {shard} must have {where}, got {type(error).__name__}: {error}") from error
    image = parts[suffix]
    head = zlib.crc32(content(image, 4096)) if heads else None
    return _Sample(f"{shard.name}/{key}.{suffix}", label, image.offset_data, image.size, head)
