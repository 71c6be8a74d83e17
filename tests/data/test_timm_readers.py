"""WebDataset shards, made here with tarfile alone, and timm's readers that cannot be used."""

import io
import json
import tarfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from conftest import batches_of
from PIL import Image

from gch_bench.config.data import DataConfig
from gch_bench.data.sets import DataSource, load_data
from gch_bench.data.transforms import EvalTransform
from gch_bench.errors import UserError

PIXELS = np.random.default_rng(0).integers(0, 256, (7, 20, 24, 3), dtype=np.uint8)
LABELS = (2, 0, 1, 0, 2, 1, 0)


def add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def png(index: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(PIXELS[index]).save(file, "PNG")
    return file.getvalue()


def shard(path: Path, ids: Sequence[int], json_label: bool = False) -> None:
    with tarfile.open(path, "w") as archive:
        for i in ids:
            add(archive, f"part/{i:03d}.cls", str(LABELS[i]).encode())
            add(archive, f"part/{i:03d}.png", png(i))
            if json_label:
                add(archive, f"part/{i:03d}.json", json.dumps({"real": LABELS[i] if i != 3 else -1}).encode())


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Seven images: 0..3 in two shards for training, 4..6 in one for validation, with timm's _info.json."""
    shard(tmp_path / "mini-train-0000.tar", [0, 1, 2])
    shard(tmp_path / "mini-train-0001.tar", [3])
    shard(tmp_path / "mini-validation-0000.tar", [4, 5, 6])
    info(tmp_path, train=([3, 1], ""), validation=([3], ""))
    return tmp_path


def info(root: Path, **splits: tuple[list[int], str]) -> None:
    facts = {
        name: {
            "name": name, "num_samples": sum(lengths), "shard_lengths": lengths, "alt_label": alt,
            "filenames": [f"mini-{name}-{i:04d}.tar" for i in range(len(lengths))],
        }
        for name, (lengths, alt) in splits.items()
    }  # fmt: skip
    (root / "_info.json").write_text(json.dumps({"splits": facts}))


def load(root: Path, train: bool = True, **fields) -> DataSource:
    return load_data(DataConfig("timm", root=str(root), reader="wds/mini", **fields), train)


def message(root: Path, **fields) -> str:
    with pytest.raises(UserError) as caught:
        load(root, **fields)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_images_and_labels_by_id(root: Path) -> None:
    source = load(root)
    assert source.train is not None
    assert source.train.names == [
        "mini-train-0000.tar/part/000.png", "mini-train-0000.tar/part/001.png", "mini-train-0000.tar/part/002.png",
        "mini-train-0001.tar/part/003.png",
    ]  # fmt: skip
    assert (source.train.labels.tolist(), source.val.labels.tolist()) == (list(LABELS[:4]), list(LABELS[4:]))
    for i in (3, 0, 2):
        assert np.array_equal(np.asarray(source.train.load(i)), PIXELS[i])
    assert (source.classes, source.class_ids) == (["0", "1", "2"], None)
    assert len(load(root, num_classes=1000).classes) == 1000


def test_loader_processes_read_them_too(root: Path) -> None:
    batches = batches_of(load(root).val, EvalTransform(20, 20), 2, workers=1)
    assert [batch.ids.tolist() for batch in batches] == [[0, 1], [2]]


def test_shards_are_indexed_once(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened, tar_open = [], tarfile.open
    monkeypatch.setattr(tarfile, "open", lambda *args, **kw: (opened.append(kw["fileobj"].name), tar_open(*args, **kw))[1])
    for _ in range(2):
        load(root)
        assert sorted(Path(name).name for name in opened) == sorted(path.name for path in root.glob("*.tar"))
        opened.clear()


def test_without_info_the_names_of_shards_tell_the_split(root: Path) -> None:
    before = load(root)
    (root / "_info.json").unlink()
    after = load(root)
    assert (after.fingerprint, after.train_fingerprint) == (before.fingerprint, before.train_fingerprint)
    (root / "mini-validation-0000.tar").rename(root / "mini-medieval-train-0000.tar")  # val is no word of this name
    assert "shards named by their split, such as NAME-validation-0000.tar" in message(root)


def test_fingerprint_follows_content_and_labels(root: Path) -> None:
    before = load(root)
    PIXELS[4, 0, 0, 0] ^= 255
    try:
        shard(root / "mini-validation-0000.tar", [4, 5, 6])
    finally:
        PIXELS[4, 0, 0, 0] ^= 255
    after = load(root)
    assert (after.fingerprint != before.fingerprint, after.train_fingerprint) == (True, before.train_fingerprint)


def test_labels_from_json_where_the_split_says_so(root: Path) -> None:
    shard(root / "mini-train-0000.tar", [0, 1, 2, 3], json_label=True)
    info(root, train=([4], "real"), validation=([3], ""))
    train = load(root).train
    assert train is not None
    assert train.labels.tolist() == list(LABELS[:3]), "timm leaves out samples with a negative label"
    info(root, train=([4], "other"), validation=([3], ""))
    assert "must have a number in part/000.json as other, got KeyError" in message(root)


def test_shards_that_are_cut_missing_compressed_or_of_another_length(root: Path) -> None:
    path = root / "mini-validation-0000.tar"
    whole = path.read_bytes()
    assert tarfile.BLOCKSIZE == 512
    for length in (1700, 1536 + -(-len(png(4)) // 512) * 512, 512 + 200):  # inside an image, after one, inside a label's block
        path.write_bytes(whole[:length])
        assert f"{path} must be a whole, uncompressed tar file, and cannot be read so" in message(root)
    path.write_bytes(b"not a tar file" * 100)
    assert "must be a whole, uncompressed tar file" in message(root)
    with tarfile.open(path, "w:gz") as archive:
        add(archive, "4.png", png(4))
    assert "must be a whole, uncompressed tar file" in message(root)
    shard(path, [4, 5])
    assert f"{path} must have 3 samples by _info.json, got 2" in message(root)
    path.unlink()
    assert "No such file or directory" in message(root)


def test_samples_and_splits_that_are_malformed(root: Path) -> None:
    path = root / "mini-validation-0000.tar"
    for members, text in (
        ({"a.cls": b"1"}, "sample a of"),
        ({"a.png": png(0)}, "must have a number in a.cls, got KeyError"),
        ({"a.png": png(0), "a.cls": b"one"}, "must have a number in a.cls, got ValueError"),
    ):
        with tarfile.open(path, "w") as archive:
            for name, content in members.items():
                add(archive, name, content)
        assert text in message(root)
    info(root, train=([3, 1], ""))
    assert "must have a split validation or val or test, got train" in message(root)
    (root / "_info.json").write_text('{"splits": {"validation": {"filenames": ["a.tar"]}}}')
    assert "must hold splits with filenames and as many shard_lengths" in message(root)
    (root / "_info.json").write_text('{"splits": {"validation": {"filenames": ["a.tar"], "shard_lengths": [1, 2]}}}')
    assert "cannot be read so (ValueError: 1 filenames and 2 shard_lengths)" in message(root)


def test_labels_beyond_the_number_of_classes(root: Path) -> None:
    assert "data.num_classes must be more than every label of val, got 2 and labels 0..2" in message(root, num_classes=2)


@pytest.mark.parametrize("reader", [None, "imagenet", "tfds/imagenet2012", "hfids/timm/mini", "wds"])
def test_readers_that_stream_are_refused(root: Path, reader: str | None) -> None:
    with pytest.raises(UserError, match=r"data.reader must be wds/NAME or hfds/NAME, as images are read by their id"):
        load_data(DataConfig("timm", root=str(root), reader=reader))
    with pytest.raises(UserError, match=r"data.reader must be null for data=folder, as only data=timm has it"):
        load_data(DataConfig("folder", root=str(root), reader="wds/x"))


@pytest.mark.skipif(find_spec("datasets") is not None, reason="the package datasets is installed")
def test_hugging_face_needs_its_package(root: Path) -> None:
    with pytest.raises(UserError, match=r"data.reader=hfds/timm/mini needs the package datasets, which is not installed"):
        load_data(DataConfig("timm", root=str(root), reader="hfds/timm/mini"))


@pytest.mark.skipif(find_spec("datasets") is None, reason="the package datasets is not installed")
def test_hugging_face_by_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for split in ("train", "validation"):
        for i in range(4):
            path = tmp_path / "mini" / split / ("ant" if i < 2 else "bee") / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(png(i))
    source = load_data(DataConfig("timm", root=str(tmp_path), reader=f"hfds/{tmp_path / 'mini'}"))
    assert (source.classes, source.val.labels.tolist()) == (["0", "1"], [0, 0, 1, 1])
    assert all(np.array_equal(np.asarray(source.val.load(i)), PIXELS[i]) for i in (3, 0, 2))
    with pytest.raises(UserError, match=r"data.reader=hfds/nowhere cannot be read from"):
        load_data(DataConfig("timm", root=str(tmp_path), reader="hfds/nowhere"))


@pytest.mark.skipif(find_spec("webdataset") is None, reason="the package webdataset is not installed")
def test_the_same_images_and_labels_as_timms_reader(root: Path) -> None:
    from timm.data.readers.reader_wds import ReaderWds

    theirs = list(ReaderWds(str(root), split="validation"))
    ours = load(root).val
    assert [label for _, label in theirs] == ours.labels.tolist()
    assert all(np.array_equal(np.asarray(image), np.asarray(ours.load(i))) for i, (image, _) in enumerate(theirs))
