import hashlib
import pickle
import urllib.error

import numpy as np
import pytest
import torchvision
from PIL import Image

from gch_bench.config.data import DataConfig
from gch_bench.data.sets import load_data
from gch_bench.errors import UserError

NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


@pytest.fixture
def cifar_root(tmp_path, monkeypatch):
    """CIFAR-10's own file format with 20 images a file; torchvision's list of md5 sums replaced by those of these files."""
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    sums = {}
    for k, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
        data = np.random.default_rng(k).integers(0, 256, (20, 3072), dtype=np.uint8)
        content = pickle.dumps({"data": data, "labels": [i % 10 for i in range(20)]})
        (folder / name).write_bytes(content)
        sums[name] = hashlib.md5(content).hexdigest()
    meta = pickle.dumps({"label_names": NAMES})
    (folder / "batches.meta").write_bytes(meta)
    cifar = torchvision.datasets.CIFAR10
    monkeypatch.setattr(cifar, "train_list", [[name, sums[name]] for name in sums if name != "test_batch"])
    monkeypatch.setattr(cifar, "test_list", [["test_batch", sums["test_batch"]]])
    monkeypatch.setattr(cifar, "meta", {**cifar.meta, "md5": hashlib.md5(meta).hexdigest()})
    return tmp_path


@pytest.fixture
def pets_root(tmp_path):
    base = tmp_path / "oxford-iiit-pet"
    (base / "annotations").mkdir(parents=True)
    (base / "images").mkdir()
    for split, start in (("trainval", 0), ("test", 10)):
        lines = []
        for label, breed in ((2, "beagle"), (1, "Abyssinian")):
            for i in range(start, start + 3):
                Image.new("RGB", (50, 40), (label * 50, i, 0)).save(base / "images" / f"{breed}_{i}.jpg")
                lines.append(f"{breed}_{i} {label} 1 1")
        (base / "annotations" / f"{split}.txt").write_text("\n".join(lines) + "\n")
    return tmp_path


def message(config: DataConfig) -> str:
    with pytest.raises(UserError) as caught:
        load_data(config)
    return str(caught.value)


def test_cifar10(cifar_root):
    source = load_data(DataConfig("cifar10", root=str(cifar_root), size=32, num_classes=10))
    assert source.description == f"cifar10 ({cifar_root}: 100 train / 20 val images, 10 classes, 32x32)"
    assert (source.classes, source.geometry, source.val.labels.tolist()) == (NAMES, "none", [i % 10 for i in range(20)])
    pixels = np.random.default_rng(5).integers(0, 256, (20, 3072), dtype=np.uint8)
    assert np.array_equal(np.asarray(source.val.load(7)), pixels[7].reshape(3, 32, 32).transpose(1, 2, 0))
    alone = load_data(DataConfig("cifar10", root=str(cifar_root)), train=False)
    assert (alone.fingerprint, alone.train) == (source.fingerprint, None)


def test_cifar10_at_another_size_is_resized(cifar_root):
    assert load_data(DataConfig("cifar10", root=str(cifar_root), size=64)).geometry == "resize73-bilinear-centercrop64"


def test_cifar10_absent_or_corrupted(cifar_root, tmp_path):
    (cifar_root / "cifar-10-batches-py" / "data_batch_3").write_bytes(b"broken")
    assert message(DataConfig("cifar10", root=str(cifar_root))) == (
        f"data.root: {cifar_root} must hold CIFAR-10, got: Dataset not found or corrupted; "
        "pass data.download=true or another data.root"
    )


def test_missing_root_without_download(tmp_path):
    root = tmp_path / "none"
    assert message(DataConfig("pets", root=str(root))).startswith(
        f"data.root must be an existing folder, got {root} (no such folder)"
    )


@pytest.mark.parametrize(("name", "title"), [("cifar10", "CIFAR-10"), ("pets", "Oxford-IIIT Pet")])
def test_download_without_network_is_one_line(tmp_path, monkeypatch, name, title):
    def no_network(*args, **kwargs):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr("urllib.request.urlopen", no_network)
    root = tmp_path / "new"
    assert message(DataConfig(name, root=str(root), download=True)) == (
        f"data.root: could not download {title} to {root}: <urlopen error no network>; check the network or the folder"
    )


def test_download_is_only_asked_for_when_configured(cifar_root, monkeypatch):
    asked = []
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "download", lambda self: asked.append(self.root))
    load_data(DataConfig("cifar10", root=str(cifar_root)))
    assert asked == []
    load_data(DataConfig("cifar10", root=str(cifar_root), download=True))
    assert len(asked) == 2  # train and val


def test_pets(pets_root):
    source = load_data(DataConfig("pets", root=str(pets_root), num_classes=2))
    assert source.description == f"pets ({pets_root}: 6 train / 6 val images, 2 classes, 224x224)"
    assert (source.classes, source.geometry) == (["Abyssinian", "Beagle"], "resize256-bilinear-centercrop224")
    assert source.val.names == [
        "Abyssinian_10.jpg",
        "Abyssinian_11.jpg",
        "Abyssinian_12.jpg",
        "beagle_10.jpg",
        "beagle_11.jpg",
        "beagle_12.jpg",
    ]
    assert source.val.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert source.val.load(3).size == (50, 40)


def test_pets_absent_malformed_or_with_other_classes(pets_root):
    config = DataConfig("pets", root=str(pets_root), num_classes=2)
    test = pets_root / "oxford-iiit-pet" / "annotations" / "test.txt"
    test.write_text("beagle_10 1 1 1\n")
    assert message(config) == (
        f"data.root: train and val images of {pets_root} must have the same classes, "
        "got ['Abyssinian', 'Beagle'] and ['Beagle']"
    )
    test.write_text("beagle_10 1\n")
    assert message(config).startswith(f"data.root: {pets_root} must hold Oxford-IIIT Pet, got: not enough values to unpack")
    test.unlink()
    assert "No such file or directory" in message(config)
    with pytest.raises(UserError, match=r"must hold Oxford-IIIT Pet, got: Dataset not found; pass data.download=true"):
        load_data(DataConfig("pets", root=str(pets_root / "oxford-iiit-pet")))


def test_cifar100(tmp_path, monkeypatch):
    """CIFAR-100's own file format with 20 images, of which torchvision's list of md5 sums is replaced."""
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    sums = {}
    for k, name in enumerate(("train", "test")):
        data = np.random.default_rng(k).integers(0, 256, (20, 3072), dtype=np.uint8)
        content = pickle.dumps({"data": data, "fine_labels": [99 - i for i in range(20)], "coarse_labels": [0] * 20})
        (folder / name).write_bytes(content)
        sums[name] = hashlib.md5(content).hexdigest()
    meta = pickle.dumps({"fine_label_names": [f"class {i}" for i in range(100)]})
    (folder / "meta").write_bytes(meta)
    cifar = torchvision.datasets.CIFAR100
    monkeypatch.setattr(cifar, "train_list", [["train", sums["train"]]])
    monkeypatch.setattr(cifar, "test_list", [["test", sums["test"]]])
    monkeypatch.setattr(cifar, "meta", {**cifar.meta, "md5": hashlib.md5(meta).hexdigest()})
    source = load_data(DataConfig("cifar100", root=str(tmp_path)))
    assert source.description == f"cifar100 ({tmp_path}: 20 train / 20 val images, 100 classes, 32x32)"
    assert (source.val.labels.tolist(), source.val.names[3]) == ([99 - i for i in range(20)], "cifar100/test/00003")
    (folder / "test").unlink()
    assert message(DataConfig("cifar100", root=str(tmp_path))).startswith(f"data.root: {tmp_path} must hold CIFAR-100, got:")
