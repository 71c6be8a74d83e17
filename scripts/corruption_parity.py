"""What a real network makes of our corrupted images and of another package's: python scripts/corruption_parity.py FOLDER

FOLDER holds photographs, with subfolders or without. Each is prepared as ImageNet-C's own images (Resize 256, centre crop 224)
and corrupted by us, by a peer (`make peers` installs the peers) and, if the corruption is random, by us with another seed.
EfficientNet-Lite0, trained on ImageNet, predicts a class for every version (weights: the extra `weights`).

The photographs need no labels. The accuracy here is the share of images that keep the class predicted without corruption, with
Wilson's interval. The difference of two such shares of the same images has the interval of Agresti and Min (2005, Statistics in
Medicine 24). What other draws alone change is shown by the agreement between two seeds of ours.
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from corruption_peers import PACKAGES, PEERS, CorruptOne, load, photos_HW3
from measure import machine, positive, write_report
from numpy.typing import NDArray
from PIL import Image
from scipy.stats import norm
from statsmodels.stats.proportion import proportion_confint
from torch import Tensor, nn

from gch_bench.config.run import ModelConfig
from gch_bench.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from gch_bench.data.transforms import EvalTransform, normalise
from gch_bench.errors import UserError
from gch_bench.memory import keep_freed_memory
from gch_bench.model.build import build_network, normalisation

NETWORK, SIZE, RESIZE = "tf_efficientnet_lite0", 224, 256
ENDINGS = (".jpg", ".jpeg", ".png")
BATCH = 50
Classes = NDArray[np.int64]  # (N,), the class predicted for each image

HEADER = """\
{network} on {count} photographs, severity {severity}; reference: {peer}.
Without corruption the mean confidence is {confidence:.1%}, and {classes} classes are predicted. "Kept" is the share of images,
in percent, with the same class as without corruption, with Wilson's 95% interval; "reference - ours" is the difference on the
same images, with its 95% interval (Agresti and Min 2005). "Agreement" is the share of images with the same class from our image
and from the reference's. "Two seeds" is the same for two seeds of ours: what other draws alone change, nothing where a
corruption is deterministic. An image that lies between two classes may change its class by single grey levels, which rounding
moves. About one interval of a difference in 20 does not hold 0 by chance.

| corruption | kept, ours | kept, reference | reference - ours | agreement | two seeds | agreement - two seeds |
|---|---:|---:|---:|---:|---:|---:|"""


class Interval(NamedTuple):
    """A share or a difference of shares, and the bounds of its 95% interval."""

    estimate: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{100 * self.estimate:.1f} ({100 * self.low:.1f}..{100 * self.high:.1f})"


def share(hits: NDArray[np.bool_]) -> Interval:
    """The share of true among hits (N,), with Wilson's interval."""
    return Interval(hits.mean(), *proportion_confint(int(hits.sum()), len(hits), method="wilson"))


def paired_difference(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> Interval:
    """The share of true among second (N,) less that among first (N,), rows of the same images.

    The interval is Wald's after 1/2 is added to each of the four counts of pairs (Agresti and Min 2005, section 3), so it has a
    width even where no pair differs.
    """
    n = len(first)
    gained, lost = int((second & ~first).sum()), int((first & ~second).sum())
    middle = (gained - lost) / (n + 2)
    variance = (gained + lost + 1) / (n + 2) - middle**2
    half = norm.ppf(0.975) * np.sqrt(variance / (n + 2))
    return Interval((gained - lost) / n, max(middle - half, -1.0), min(middle + half, 1.0))


class Row(NamedTuple):
    """The predictions for one corruption, compared."""

    ours: Interval  # share of images whose clean class is kept
    theirs: Interval
    difference: Interval  # theirs - ours
    agreement: Interval
    seeds: Interval  # the agreement between two seeds of ours
    excess: Interval  # agreement - seeds

    @classmethod
    def of(cls, clean: Classes, ours: Classes, theirs: Classes, again: Classes) -> "Row":
        """From the classes predicted for clean images, for ours, for the reference's, and for ours with another seed."""
        kept, kept_theirs, same, same_again = ours == clean, theirs == clean, ours == theirs, ours == again
        return cls(
            share(kept), share(kept_theirs), paired_difference(kept, kept_theirs),
            share(same), share(same_again), paired_difference(same_again, same),
        )  # fmt: skip


Predict = Callable[[Tensor], Tensor]  # uint8 (B, 3, H, W) -> logits (B, C)


def compare(name: str, severity: int, images: Tensor, clean: Classes, predict: Predict, peer: CorruptOne, seed: int) -> Row:
    """Corrupt the images by us and by the peer, batch by batch, and compare what is predicted.

    Args:
        images: uint8 (N, 3, H, W).
        clean: the classes predicted for them.
    """
    ids = torch.arange(len(images))
    ours, theirs, again = [], [], []
    for batch, numbers in zip(images.split(BATCH), ids.split(BATCH), strict=True):
        ours.append(predict(corrupt(batch, name, severity, numbers, seed)).argmax(1))
        other = np.stack([np.uint8(peer(photo, name, severity)) for photo in photos_HW3(batch)])
        theirs.append(predict(torch.from_numpy(other).permute(0, 3, 1, 2)).argmax(1))
        if CORRUPTIONS[name].random:
            again.append(predict(corrupt(batch, name, severity, numbers, seed + 1)).argmax(1))
    return Row.of(clean, *(torch.cat(each).numpy() for each in (ours, theirs, again or ours)))


def photographs(folder: Path, count: int) -> Tensor:
    """uint8 (N, 3, SIZE, SIZE): as many photographs of the folder, evenly over the sorted paths.

    Raises:
        UserError: the folder holds fewer.
    """
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in ENDINGS)
    if len(paths) < count:
        raise UserError(f"{folder} must hold at least {count} photographs ({', '.join(ENDINGS)}), it holds {len(paths)}")
    prepare = EvalTransform(SIZE, RESIZE)
    chosen = [paths[number * len(paths) // count] for number in range(count)]
    return torch.stack([prepare(Image.open(path).convert("RGB")) for path in chosen])


def predictor(network: nn.Module) -> Predict:
    def predict(images: Tensor) -> Tensor:
        with torch.inference_mode():
            return network(normalise(images, normalisation(network)))

    return predict


def report(options: argparse.Namespace) -> Iterator[str]:
    """The lines of the report. Raises UserError where photographs, the peer or the weights are missing."""
    peer = load(options.peers, options.peer)
    images = photographs(options.folder, options.images)
    network = build_network(ModelConfig(NETWORK, pretrained=True), 1000, SIZE)[0].eval()
    predict = predictor(network)
    logits = torch.cat([predict(batch) for batch in images.split(BATCH)])
    clean = logits.argmax(1).numpy()
    np.random.seed(options.seed)  # peers draw from NumPy's global generator
    yield HEADER.format(
        network=NETWORK, count=len(images), severity=options.severity, peer=f"{peer.name} {peer.version}",
        confidence=float(logits.softmax(1).amax(1).mean()), classes=len(set(clean.tolist())),
    )  # fmt: skip
    yield line("clean", Row.of(clean, clean, clean, clean))
    for name in options.only or list(CORRUPTIONS):
        row = compare(name, options.severity, images, clean, predict, peer.corrupt, options.seed)
        yield line(name, row)


def line(name: str, row: Row) -> str:
    return f"| {name} | {' | '.join(map(str, row))} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=positive, default=1000, metavar="N")
    parser.add_argument("--severity", type=int, choices=SEVERITIES, default=3)
    parser.add_argument("--peer", choices=tuple(PACKAGES), default="imagecorruptions-imaug", help="the reference")
    parser.add_argument("--peers", type=Path, default=PEERS, help="where `make peers` has installed the peers")
    parser.add_argument("--only", nargs="+", choices=tuple(CORRUPTIONS), metavar="NAME", help=", ".join(CORRUPTIONS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="also write the report to this Markdown file")
    options = parser.parse_args()
    keep_freed_memory()
    lines = [f"{machine(torch.device('cpu'))}.\n"]
    try:
        for text in report(options):
            print(text, flush=True)
            lines.append(text)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    if options.output:
        write_report(options.output, "What a network makes of our corrupted images and of another package's", lines)


if __name__ == "__main__":
    main()
