"""Writes corrupted copies of ImageNet's validation images, or of any folder of images: the work of scripts/make_imagenet_c.py.

An image is prepared as for the published ImageNet-C: RGB, shorter side resized to 256 pixels (bilinear, on the PIL image),
centre crop of 224, corruption, JPEG of quality 85. The id of an image, which names its random draws, is its index in SRC, the
folder of source images, sorted class by class as in data=imagenet. DEST is the folder of the results (tree.py).

Legend: N source images, B images of a batch, H W pixels.
"""

import hashlib
import io
import os
import shlex
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from gch_bench import __version__
from gch_bench.apps.make_imagenet_c.processes import in_processes
from gch_bench.apps.make_imagenet_c.tree import ELSEWHERE, Files, Tree, whole_jpeg
from gch_bench.checks import check
from gch_bench.corruptions import CORRUPTIONS, SEVERITIES, corrupt_all
from gch_bench.corruptions.draws import ALGORITHM
from gch_bench.data.folders import fingerprint_of, image_folder
from gch_bench.data.images import BadImage, FileImages
from gch_bench.data.transforms import EvalTransform
from gch_bench.display import Display
from gch_bench.errors import UserError
from gch_bench.evaluation.cells import try_corruptions
from gch_bench.files import locked, making, write_atomic
from gch_bench.provenance import provenance
from gch_bench.results.records import Cell

RESIZE, SIZE, PARAMETERS = 256, 224, "imagenet_224"
BATCH = 16  # source images that are decoded together, once, and then corrupted in every way
VERIFIED_AT_ONCE = 1000  # files whose checksums one call compares


@dataclass(frozen=True)
class Options:
    """The options of the command line. Raises UserError on a value out of its range."""

    src: Path
    dest: Path
    corruptions: list[str] | None  # None: all corruptions of the table; with verify: all that DEST has
    severities: list[int] | None  # None: all five; with verify: all that DEST has
    seed: int
    workers: int
    device: str
    quality: int
    verify: bool

    def __post_init__(self) -> None:
        for name in self.corruptions or ():
            if name not in CORRUPTIONS:
                raise UserError(f"unknown corruption {name!r}: choose from {', '.join(CORRUPTIONS)}")
        for severity in self.severities or ():
            check(severity in SEVERITIES, "--severities", "in 1..5", severity)
        check(self.seed >= 0, "--seed", ">= 0", self.seed)
        check(self.workers >= 1, "--workers", ">= 1", self.workers)
        check(1 <= self.quality <= 100, "--quality", "1..100", self.quality)
        if self.device == "cuda" and not torch.cuda.is_available():
            raise UserError("--device cuda needs a GPU that torch can use, found none: use --device cpu")

    def cells(self, of: list[Cell]) -> list[Cell]:
        """The cells of the list `of` that --corruptions and --severities choose; all cells where neither is given."""
        names, severities = self.corruptions or CORRUPTIONS, self.severities or SEVERITIES
        return [cell for cell in of if cell.corruption in names and cell.severity in severities]


class Source(NamedTuple):
    images: FileImages
    names: list[str]  # each image's name in DEST, <class>/<stem>.JPEG
    identity: dict[str, Any]  # what determines the content of every file of DEST


class _File(NamedTuple):
    sha256: bytes
    size: int  # in bytes

    @classmethod
    def of(cls, data: bytes) -> "_File":
        return cls(hashlib.sha256(data).digest(), len(data))


class WrittenBatch(NamedTuple):
    """The files of one batch of source images in one cell."""

    cell: Cell
    ids: range  # of the source images
    files: Files
    new: int  # number of files that were not there before


def generate(options: Options) -> None:
    """Write all chosen files that are missing in DEST.

    Raises:
        UserError: a user's mistake. Most mistakes are found before the first byte is written.
    """
    show = Display(main=True)
    if options.device == "cpu":
        torch.set_num_threads(1)  # because the worker processes share the cores
    source = read_source(options)
    show.line(f"source: {options.src}: {len(source.names)} images")
    with making(options.dest, ELSEWHERE), locked(options.dest, "DEST"):
        tree = Tree(options.dest)
        tree.check(source.identity)
        sizes = tree.scan(source.names)
        cells = options.cells([Cell(name, severity) for name in CORRUPTIONS for severity in SEVERITIES])
        none_N = np.zeros(len(source.names), dtype=np.int64)
        todo = [cell for cell in cells if not tree.complete(cell, sizes.get(cell, none_N))]
        if not todo:
            show.line(f"nothing left to do: {options.dest} holds these {len(cells)} cells; --verify compares their checksums")
            return
        if not tree.manifest:
            _check_images(source.images, options.workers, show)
        try_corruptions(todo, SIZE, PARAMETERS, torch.device(options.device), show.line)
        start = time.monotonic()
        session = {"started": _now(), "command": shlex.join(sys.argv), "device": options.device, **provenance()}
        _warn_of_versions(tree, session, show)
        tree.begin(source.identity, todo, session)
        found = {cell: sizes.get(cell, none_N) > 0 for cell in todo}
        files, new = _fill(tree, source, found, options, show)
        seconds = time.monotonic() - start
        tree.finish(files, source.names, {"ended": _now(), "files": new, "seconds": round(seconds, 1)})
    old = len(todo) * len(source.names) - new
    show.line(f"wrote {new} images ({old} were there) in {seconds:.1f} s, {new / seconds:.1f} images/s")
    show.line(f"{options.dest}: {len(cells)} cells of {len(source.names)} images; {len(tree.cells)} cells in all")
    show.line(f"to check it: cd {shlex.quote(str(options.dest))} && sha256sum -c --quiet */*.sha256, or --verify")


def read_source(options: Options) -> Source:
    """The images of SRC, their names in DEST, and the identity of the files that are made from them.

    Raises:
        UserError: SRC is no folder, or holds no class folders or images, or two images that would get one name; DEST lies
            inside SRC.
    """
    folder = Path(os.path.abspath(options.src))
    real, real_dest = Path(os.path.realpath(folder)), Path(os.path.realpath(options.dest))
    if not folder.is_dir():
        raise UserError(f"SRC must be an existing folder that holds CLASS/* images, got {options.src}")
    if options.dest.exists() and not options.dest.is_dir():
        raise UserError(f"DEST must be a folder, got the file {options.dest}: choose another")
    if real == real_dest or real in real_dest.parents:
        raise UserError(f"DEST must lie outside SRC, got {options.dest} for SRC {options.src}")
    images = image_folder(folder.parent, folder.name, other=None, field="SRC").images
    assert isinstance(images, FileImages)
    first: dict[str, str] = {}
    for name in images.names:
        target = os.path.splitext(name)[0] + ".JPEG"
        if target in first:
            raise UserError(
                f"SRC must hold no two images of one name, got {first[target]} and {name}, both {target} in DEST: rename one"
            )
        if set(name) & set("\\\n\r"):
            raise UserError(f"SRC's names must be free of backslashes and line breaks, got {name!r}: rename it")
        first[target] = name
    identity = {
        "source_fingerprint": fingerprint_of(images, sizes=True),
        "images": len(images),
        "geometry": f"resize{RESIZE}-bilinear-centercrop{SIZE}",
        "parameters": PARAMETERS,
        "seed": options.seed,
        "quality": options.quality,
        "draws": ALGORITHM,
        "version": __version__,
    }
    return Source(images, list(first), identity)


def _warn_of_versions(tree: Tree, session: dict[str, Any], show: Display) -> None:
    """Warn if the last session used other versions of libraries or another device, which may give slightly other pixels."""
    for earlier in tree.manifest.get("sessions", [])[-1:]:
        if earlier["device"] != session["device"]:
            show.warn(f"{tree.folder} holds files made with device {earlier['device']}, now it is {session['device']}")
        for name in ("torch", "torchvision", "numpy", "numba", "pillow"):
            was, now = earlier["versions"].get(name), session["versions"][name]
            if was != now:
                show.warn(f"{tree.folder} holds files made with {name} {was}, now it is {now}")


def _check_images(images: FileImages, workers: int, show: Display) -> None:
    """Decode every image once before anything is written. This takes a few percent of the time of the whole work.

    Raises:
        UserError: an image cannot be read.
    """
    batches = _batches(len(images), workers)
    bad: list[BadImage] = []
    with (
        in_processes(partial(_unreadable, images), batches, workers) as results,
        show.bar("check", len(images), "images") as advance,
    ):
        for count, found in results:
            bad += found
            advance(f"{len(bad)} unreadable", count)
    if bad:
        first = min(bad)
        more = f" (and {len(bad) - 1} more)" if len(bad) > 1 else ""
        raise UserError(
            f"unreadable image {first.path}: {first.reason}{more}; replace or remove it and repeat the command:"
            " nothing is written yet"
        )


def _unreadable(images: FileImages, ids: range) -> Iterator[tuple[int, list[BadImage]]]:
    loaded = [images.load_or_bad(i) for i in ids]
    yield len(ids), [image for image in loaded if isinstance(image, BadImage)]


def _batches(count: int, workers: int) -> list[range]:
    size = max(1, min(BATCH, -(-count // workers)))
    return [range(start, min(start + size, count)) for start in range(0, count, size)]


def _fill(
    tree: Tree, source: Source, found: dict[Cell, np.ndarray], options: Options, show: Display
) -> tuple[dict[Cell, Files], int]:
    """Make the missing files of the cells in `found`.

    Args:
        found: cell -> whether each of its images is there already, bool (N,).

    Returns:
        The digests and sizes of all files of these cells, old and new, and the number of new files.
    """
    count = len(source.names)
    files = {cell: Files(np.zeros((count, 32), dtype=np.uint8), np.zeros(count, dtype=np.int64)) for cell in found}
    new = seen = 0
    with ExitStack() as stack:
        if options.device == "cuda":  # one process uses the GPU, and its threads decode and encode images
            many: Callable[..., Iterator[Any]] = stack.enter_context(ThreadPoolExecutor(options.workers)).map
            workers, batches = 1, _batches(count, 1)
        else:
            many, workers, batches = map, options.workers, _batches(count, options.workers)
        make = _Maker(tree, source, found, options, many)
        results: Iterator[WrittenBatch] = stack.enter_context(in_processes(make, batches, workers))
        advance = stack.enter_context(show.bar("corrupt", len(found) * count, "images"))
        start = time.monotonic()
        for made in results:
            for all_N, own_B in zip(files[made.cell], made.files, strict=True):
                all_N[made.ids.start : made.ids.stop] = own_B
            new += made.new
            seen += len(made.ids)
            advance(f"{new / (time.monotonic() - start):.0f} images/s", len(made.ids))
    if seen != len(found) * count:
        raise RuntimeError(f"{len(found)} cells of {count} images must give as many files, got {seen}")
    return files, new


@dataclass(frozen=True)
class _Maker:
    """Makes the missing files of all cells for a batch of source images. `many` is `map`, or the map of a thread pool."""

    tree: Tree
    source: Source
    found: dict[Cell, np.ndarray]
    options: Options
    many: Callable[..., Iterator[Any]]

    def __call__(self, ids: range) -> Iterator[WrittenBatch]:
        """Yield the batch's files cell by cell. Raises UserError if an image cannot be read or a file cannot be written."""
        there = {cell: [self._kept(cell, i) for i in ids] for cell in self.found}
        alike: dict[tuple[int, ...], list[Cell]] = defaultdict(list)  # the cells that lack the same images, and so share work
        for cell, kept in there.items():
            alike[tuple(b for b, file in enumerate(kept) if file is None)].append(cell)
        images_B3HW: torch.Tensor | None = None
        for missing, cells in alike.items():
            corrupted: Iterator[torch.Tensor] = iter(())
            if missing:
                if images_B3HW is None:
                    images_B3HW = torch.stack(list(self.many(self._load, ids))).to(self.options.device)
                missing_ids = torch.tensor([ids[b] for b in missing])
                corrupted = corrupt_all(images_B3HW[list(missing)], cells, missing_ids, self.options.seed, PARAMETERS)
            for cell in cells:
                made: Iterator[_File] = iter(())
                if missing:
                    pixels_BHW3 = next(corrupted).permute(0, 2, 3, 1).contiguous().cpu().numpy()
                    paths = [self.tree.path(cell, self.source.names[ids[b]]) for b in missing]
                    made = self.many(self._save, paths, pixels_BHW3)
                files = [next(made) if file is None else file for file in there[cell]]
                sha256_B32 = np.frombuffer(b"".join(file.sha256 for file in files), dtype=np.uint8).reshape(-1, 32)
                yield WrittenBatch(cell, ids, Files(sha256_B32, np.array([file.size for file in files])), len(missing))

    def _kept(self, cell: Cell, id_: int) -> "_File | None":
        """The file of an image in a cell that is there already and whole; None if there is none."""
        data = whole_jpeg(self.tree.path(cell, self.source.names[id_])) if self.found[cell][id_] else None
        return None if data is None else _File.of(data)

    def _load(self, id_: int) -> torch.Tensor:
        image = self.source.images.load_or_bad(id_)
        if isinstance(image, BadImage):
            raise UserError(f"unreadable image {image.path}: {image.reason}; restore it, the same command continues")
        return EvalTransform(SIZE, RESIZE)(image)

    def _save(self, path: Path, pixels_HW3: np.ndarray) -> "_File":
        """Write one image, uint8 (H, W, 3), as a JPEG file."""
        with io.BytesIO() as file:
            # The reference generator sets optimize, too. It makes the files smaller and changes no pixel.
            Image.fromarray(pixels_HW3).save(file, "JPEG", quality=self.options.quality, optimize=True)
            data = file.getvalue()
        write_atomic(path, lambda file: file.write(data), ELSEWHERE, durable=False)  # millions of fsyncs would take hours
        return _File.of(data)


def verify(options: Options) -> None:
    """Compare the files of DEST with their checksums. SRC is not read.

    Raises:
        UserError: a file differs from its checksum or is missing (the first one found), a chosen cell is unfinished or missing.
    """
    show = Display(main=True)
    with locked(options.dest, "DEST"):
        tree = Tree(options.dest)
        cells = options.cells(tree.cells)
        asked = {*(options.corruptions or ()), *(options.severities or ())}
        missing = sorted(str(value) for value in asked - {value for cell in cells for value in cell})
        if missing or not cells:
            raise UserError(
                f"DEST must hold what --verify compares, got {options.dest} without {', '.join(missing) or 'a cell'}"
            )
        for cell in cells:
            if not tree.finished(cell):
                raise UserError(
                    f"{tree.checksums(cell)} is not the one in the manifest, or the cell is unfinished: run without --verify"
                )
        names = tree.names(cells[0])
        tree.scan(names)
        parts = [(cell, start) for cell in cells for start in range(0, len(names), VERIFIED_AT_ONCE)]
        total = len(cells) * len(names)
        with (
            in_processes(partial(_compare, tree), parts, options.workers) as results,
            show.bar("verify", total, "images") as advance,
        ):
            for count in results:
                advance("", count)
    show.line(f"{options.dest}: all {total} images of {len(cells)} cells match their checksums")


def _compare(tree: Tree, part: tuple[Cell, int]) -> Iterator[int]:
    cell, start = part
    count, wrong = tree.compare(cell, start, start + VERIFIED_AT_ONCE)
    if wrong:
        raise UserError(f"{wrong}: delete it, and the command without --verify makes it again")
    yield count


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
