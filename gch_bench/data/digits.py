"""The embedded data: scikit-learn's handwritten digits (UCI, Alpaydin & Kaynak 1998), 1,797 real 8x8 scans in 10 classes."""

import hashlib

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from gch_bench.config.data import DataConfig
from gch_bench.data.images import ArrayImages, Subset

SPLIT_SEED = 0  # the split is part of the data set, so no seed of a run changes it
CLASSES = [str(digit) for digit in range(10)]


def read(config: DataConfig, split: str, other: str | None) -> Subset:
    """The 1,437 training or 360 validation images, split so that each class has the same share in both.

    They are grey uint8 (N, size, size), enlarged from 8x8 by Pillow's bicubic filter. The fingerprint is a hash of the 8x8
    scans and their labels, so it does not depend on ``config.size``. ``other`` is not used.
    """
    assert config.size is not None
    scans = load_digits()
    scans_N88 = np.rint(scans.images * (255 / 16)).astype(np.uint8)  # the scans measure ink from 0 to 16
    labels_N = scans.target.astype(np.int64)
    train_ids, val_ids = train_test_split(np.arange(len(labels_N)), test_size=0.2, random_state=SPLIT_SEED, stratify=labels_N)
    ids = np.sort(train_ids if split == "train" else val_ids)
    names = [f"digits/{i:04d}" for i in ids.tolist()]
    images = ArrayImages(names, labels_N[ids], _upscale(scans_N88[ids], config.size))
    return Subset(CLASSES, images, _fingerprint(scans_N88[ids], labels_N[ids]))


def _upscale(scans_N88: np.ndarray, size: int) -> np.ndarray:
    return np.stack([np.asarray(Image.fromarray(scan).resize((size, size), Image.Resampling.BICUBIC)) for scan in scans_N88])


def _fingerprint(scans_N88: np.ndarray, labels_N: np.ndarray) -> str:
    return hashlib.sha256(scans_N88.tobytes() + labels_N.astype("<i8").tobytes()).hexdigest()[:16]
