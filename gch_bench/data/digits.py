"""The embedded data: scikit-learn's handwritten digits (UCI, Alpaydin & Kaynak 1998), 1,797 real 8x8 scans in 10 classes."""

import hashlib
from typing import NamedTuple

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from gch_bench.data.images import ArrayImages

SPLIT_SEED = 0  # the split belongs to the data set: no seed of a run changes it
CLASSES = [str(digit) for digit in range(10)]


class Digits(NamedTuple):
    train: ArrayImages
    val: ArrayImages
    train_fingerprint: str
    val_fingerprint: str


def digits(size: int) -> Digits:
    """1,437 train and 360 val images, stratified by class: grey uint8 (N, size, size), upscaled from 8x8 by Pillow's bicubic.

    The fingerprints are over the 8x8 scans, so they do not depend on ``size``.
    """
    scans = load_digits()
    scans_N88 = np.rint(scans.images * (255 / 16)).astype(np.uint8)  # the scans count ink in 0..16
    labels_N = scans.target.astype(np.int64)
    train_ids, val_ids = train_test_split(np.arange(len(labels_N)), test_size=0.2, random_state=SPLIT_SEED, stratify=labels_N)
    subsets = [np.sort(ids) for ids in (train_ids, val_ids)]
    train, val = (
        ArrayImages([f"digits/{i:04d}" for i in ids.tolist()], labels_N[ids], _upscale(scans_N88[ids], size)) for ids in subsets
    )
    return Digits(train, val, *(_fingerprint(scans_N88[ids], labels_N[ids]) for ids in subsets))


def _upscale(scans_N88: np.ndarray, size: int) -> np.ndarray:
    return np.stack([np.asarray(Image.fromarray(scan).resize((size, size), Image.Resampling.BICUBIC)) for scan in scans_N88])


def _fingerprint(scans_N88: np.ndarray, labels_N: np.ndarray) -> str:
    return hashlib.sha256(scans_N88.tobytes() + labels_N.astype("<i8").tobytes()).hexdigest()[:16]
