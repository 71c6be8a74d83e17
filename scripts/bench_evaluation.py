"""Measures the evaluation pass: python scripts/bench_evaluation.py [--images 32 --turns 3] (make bench)

EfficientNet-Lite0 with its ImageNet weights evaluates JPEG files of photographs, cut from those that ship with scikit-image and
scikit-learn (or those below --root). All times are of one process on the CPU without loader processes, and the ways that are
compared take turns, so that a slow moment of the machine meets all of them.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from measure import machine, photographs, positive, write_report
from PIL import Image
from timm.data import create_loader, resolve_data_config
from timm.data.dataset import ImageDataset
from torch import nn
from torchvision.io import ImageReadMode, decode_jpeg, read_file

from gch_bench.config.run import ModelConfig
from gch_bench.corruptions import CORRUPTIONS, corrupt
from gch_bench.data.images import FileImages
from gch_bench.data.transforms import EvalTransform, normalise, timm_preparation
from gch_bench.distributed import World
from gch_bench.evaluation.predict import Predictor, features_of, laid_out, predict
from gch_bench.evaluation.run import EvaluatedImages, NetworkTask, evaluate
from gch_bench.evaluation.sharing import with_trunks
from gch_bench.memory import keep_freed_memory
from gch_bench.model.build import build_network, normalisation
from gch_bench.noise import GaussianChaosNoise, inject
from gch_bench.results.records import CELL_CLEAN, Cell

MODEL, SIZE, BATCH, NETWORKS, PASSES = "tf_efficientnet_lite0", 224, 32, 4, 10
FIFTEEN = [name for name, row in CORRUPTIONS.items() if row.group != "extra"]
CELLS = [CELL_CLEAN, *(Cell(name, severity) for name in FIFTEEN for severity in (1, 2, 3, 4, 5))]
ALONE = World(0, 1, torch.device("cpu"))
HEADER = "| what (A / B: the time of A divided by that of B) | measured | goal | met |"
MARK = {True: "yes", False: "NO"}


class Bench(NamedTuple):
    files: FileImages
    networks: list[nn.Module]
    folder: Path  # where runs are written


def saved(folder: Path, images: Iterator[Image.Image]) -> FileImages:
    """The images as JPEG files in one class folder."""
    (folder / "all").mkdir(parents=True)
    for number, image in enumerate(images):
        image.save(folder / "all" / f"{number:04d}.jpg", quality=92)
    names = sorted(path.name for path in (folder / "all").iterdir())
    return FileImages(names, np.zeros(len(names), np.int64), str(folder / "all"))


def images_of(bench: Bench, cells: list[Cell]) -> EvaluatedImages:
    return EvaluatedImages(bench.files, np.arange(len(bench.files)), cells, {}, 0, False, BATCH, 0, False)


def run_pass(bench: Bench, networks: list[nn.Module], cells: list[Cell], timm: bool = False) -> None:
    """One pass of the networks over the cells, records and all."""
    with tempfile.TemporaryDirectory(dir=bench.folder) as place:
        tasks = [
            NetworkTask(
                predictor=Predictor(network, normalisation(network), "fp32"),
                folder=Path(place) / str(number),
                facts={},
                preparations={None: timm_preparation(MODEL) if timm else EvalTransform(SIZE, 256)},
                parameters="imagenet_224",
                needed=np.ones((len(cells), len(bench.files)), bool),
                logits=frozenset(),
            )
            for number, network in enumerate(networks)
        ]
        evaluate(tasks, images_of(bench, cells), ALONE)


def timed(ways: dict[str, Callable[[], object]], turns: int) -> dict[str, list[float]]:
    """The seconds of each way in each turn. The first round, which warms up, is not counted."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(turns + 1):
        for name, action in ways.items() if turn % 2 else reversed(ways.items()):
            begun = time.perf_counter()
            action()
            if turn:
                found[name].append(time.perf_counter() - begun)
    return found


def ratio(slow: list[float], quick: list[float]) -> tuple[float, str]:
    """The median of the ratios of the turns, and its text with the range."""
    ratios = [first / second for first, second in zip(slow, quick, strict=True)]
    return statistics.median(ratios), f"{statistics.median(ratios):.2f} ({min(ratios):.2f}..{max(ratios):.2f})"


class Parts:
    """Decoding, corruption and forward pass of c15, each by itself, on all images of a bench."""

    def __init__(self, bench: Bench) -> None:
        self.files, self.network = bench.files, bench.networks[0]
        self.prepare = EvalTransform(SIZE, 256)
        self.pixels = torch.stack([self.prepare(bench.files.load(i)) for i in range(len(bench.files))])
        self.ids = torch.arange(len(self.pixels))

    def decode(self) -> None:
        for i in range(len(self.files)):
            self.prepare(self.files.load(i))

    def corrupt(self) -> None:
        for cell in CELLS[1:]:
            for part in self.ids.split(BATCH):
                corrupt(self.pixels[part], *cell, part)

    def forward(self, network: nn.Module) -> None:
        predictor = Predictor(network, normalisation(network), "fp32")
        with torch.inference_mode():
            for part in self.ids.split(BATCH):
                predict(predictor, normalise(self.pixels[part], predictor.normalisation), CELL_CLEAN, part)

    def all_of(self, networks: list[nn.Module]) -> None:
        """The data once and the forward passes of all networks in all cells: what a pass cannot do without."""
        self.decode()
        self.corrupt()
        for network in networks:
            for _ in CELLS:
                self.forward(network)


def parts_alone(bench: Bench, turns: int) -> Iterator[str]:
    parts = Parts(bench)
    ways: dict[str, Callable[[], object]] = {
        "decode": parts.decode, "corrupt": parts.corrupt, "forward": lambda: parts.forward(bench.networks[0])
    }  # fmt: skip
    seconds = {name: statistics.median(values) for name, values in timed(ways, turns).items()}
    count = len(bench.files)
    yield f"| decode and prepare once | {1000 * seconds['decode'] / count:.1f} ms an image | | |"
    yield f"| corrupt, mean over the 75 cells | {1000 * seconds['corrupt'] / count / 75:.2f} ms an image | | |"
    yield f"| forward pass | {1000 * seconds['forward'] / count:.1f} ms an image | | |"
    seconds["forward"] *= len(CELLS)
    yield f"| the largest part of one network's c15 | {max(seconds, key=lambda name: seconds[name])} | | |"


def before_and_now(bench: Bench, turns: int) -> Iterator[str]:
    one = bench.networks[:1]
    ways: dict[str, Callable[[], object]] = {
        "one pass": lambda: run_pass(bench, one, CELLS),
        "a pass for each cell": lambda: [run_pass(bench, one, [cell]) for cell in CELLS],
    }
    found = timed(ways, turns)
    _, text = ratio(found["a pass for each cell"], found["one pass"])
    yield f"| c15, one network: a pass for each cell (as before) / one pass | {text} | | |"


def many_networks(bench: Bench, turns: int) -> Iterator[str]:
    parts = Parts(bench)
    ways: dict[str, Callable[[], object]] = {
        "together": lambda: run_pass(bench, bench.networks, CELLS),
        "alone": lambda: [run_pass(bench, [network], CELLS) for network in bench.networks],
        "parts": lambda: parts.all_of(bench.networks),
    }
    found = timed(ways, turns)
    yield f"| c15: {NETWORKS} runs / one pass of {NETWORKS} networks | {ratio(found['alone'], found['together'])[1]} | | |"
    over, text = ratio(found["together"], found["parts"])
    yield (
        f"| c15: one pass of {NETWORKS} networks / data once and {NETWORKS} forward passes without the rest of the program |"
        f" {text} | <= 1.25 | {MARK[over <= 1.25]} |"
    )


def predictions(predictors: list[Predictor], inputs: torch.Tensor) -> None:
    """The logits of all predictors for a batch, with each trunk computed once, as a pass does it."""
    ids, features = torch.arange(len(inputs)), {}
    with torch.inference_mode():
        for predictor in predictors:
            if predictor.trunk_id not in features:
                features[predictor.trunk_id] = features_of(predictor, inputs)
            predict(predictor, inputs, CELL_CLEAN, ids, features[predictor.trunk_id])


def shared_trunks(bench: Bench, turns: int) -> Iterator[str]:
    """Networks that differ only after L3, and noisy passes of one network, with and without the trunk computed once."""
    inputs = torch.randn(BATCH, 3, SIZE, SIZE)
    plain = [Predictor(network, normalisation(network), "fp32") for network in bench.networks]
    shared = with_trunks(plain, ["L3"] * NETWORKS, [SIZE] * NETWORKS)
    noisy = deepcopy(bench.networks[0])
    inject(noisy, GaussianChaosNoise(), ["L4"], test=True)
    passes = Predictor(noisy.eval(), normalisation(noisy), "fp32", noise_passes=PASSES)
    (quick,) = with_trunks([passes], [None], [SIZE])
    found = timed(
        {"one": lambda: predictions(plain[:1], inputs), "plain": lambda: predictions(plain, inputs),
         "shared": lambda: predictions(shared, inputs), "noisy": lambda: predictions([passes._replace(noise_passes=1)], inputs),
         "passes": lambda: predictions([passes], inputs), "quick": lambda: predictions([quick], inputs)}, turns,
    )  # fmt: skip
    extra = 1000 * (statistics.median(found["noisy"]) - statistics.median(found["one"]))
    for what, slow, quick_way in (
        (f"{NETWORKS} networks, frozen up to L3: sharing the trunk / computing each", "shared", "plain"),
        (f"{PASSES} noisy passes at L4: sharing the trunk / computing each", "quick", "passes"),
        (f"{PASSES} noisy passes at L4, sharing the trunk / one pass without noise", "quick", "one"),
    ):
        yield f"| {what} | {ratio(found[slow], found[quick_way])[1]} | | |"
    yield f"| test-time noise at L4: what one pass of {BATCH} images takes more | {extra:.1f} ms | | |"


def against_timm(bench: Bench, turns: int) -> Iterator[str]:
    """Clean images: ours, with a record, against the loop of timm's validate.py (its loader, preparation and network)."""
    network = bench.networks[0]
    config = resolve_data_config(model=network, use_test_size=True)

    def plain(channels_last: bool) -> None:
        theirs = laid_out(deepcopy(network), channels_last, ALONE.device)
        images = ImageDataset(Path(bench.files.folder).parent)
        loader = create_loader(
            images, input_size=config["input_size"], batch_size=BATCH, use_prefetcher=False,
            interpolation=config["interpolation"], mean=config["mean"], std=config["std"], num_workers=0,
            crop_pct=config["crop_pct"], device=torch.device("cpu"),
        )  # fmt: skip
        correct = 0
        with torch.inference_mode():
            for inputs, labels in loader:
                logits = theirs(inputs.contiguous(memory_format=torch.channels_last) if channels_last else inputs)
                nn.functional.cross_entropy(logits, labels)
                correct += int((logits.topk(5).indices == labels[:, None]).sum())

    found = timed(
        {"ours": lambda: run_pass(bench, [network], [CELL_CLEAN], timm=True),
         "": lambda: plain(False), " --channels-last": lambda: plain(True)}, turns,
    )  # fmt: skip
    for way in ("", " --channels-last"):
        middle, text = ratio(found[way], found["ours"])
        yield f"| clean images: a plain loop as in timm's validate.py{way} / ours | {text} | >= 1.0 | {MARK[middle >= 1.0]} |"


def decoders(bench: Bench, turns: int) -> Iterator[str]:
    paths = [bench.files.path(i) for i in range(len(bench.files))]

    def by_torchvision(path: str) -> torch.Tensor:
        return decode_jpeg(read_file(path), ImageReadMode.RGB)

    pillow = [torch.from_numpy(np.array(bench.files.load(i))).permute(2, 0, 1) for i in range(len(paths))]
    difference = [(a.int() - by_torchvision(path).int()).abs() for a, path in zip(pillow, paths, strict=True)]
    worst, share = max(int(d.max()) for d in difference), np.mean([float((d > 0).float().mean()) for d in difference])
    found = timed(
        {"pillow": lambda: [bench.files.load(i) for i in range(len(paths))],
         "torchvision": lambda: [by_torchvision(path) for path in paths]}, turns,
    )  # fmt: skip
    _, text = ratio(found["pillow"], found["torchvision"])
    yield f"| decoding: Pillow / torchvision.io.decode_jpeg | {text} | | |"
    yield f"| pixels of these two: largest difference, share that differs | {worst} grey levels, {100 * share:.2g}% | | |"
    if not torch.cuda.is_available():
        yield "| nvJPEG | not measured: no GPU | | |"
        return
    encoded = [read_file(path) for path in paths]
    found = timed(
        {"cpu": lambda: [decode_jpeg(each, ImageReadMode.RGB) for each in encoded],
         "nvjpeg": lambda: (decode_jpeg(encoded, ImageReadMode.RGB, device="cuda"), torch.cuda.synchronize())}, turns,
    )  # fmt: skip
    yield f"| decoding: torchvision.io.decode_jpeg on the CPU / nvJPEG | {ratio(found['cpu'], found['nvjpeg'])[1]} | | |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=positive, default=12, help="photographs for c15, which has 76 cells")
    parser.add_argument("--clean", type=positive, default=128, help="photographs for the comparisons on clean images")
    parser.add_argument("--turns", type=positive, default=3)
    parser.add_argument("--threads", type=positive, default=2)
    parser.add_argument("--root", type=Path, help="a folder of JPEG photographs to take instead of the shipped ones")
    parser.add_argument("--output", type=Path, help="also write the report to this Markdown file")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_freed_memory("auto")
    with tempfile.TemporaryDirectory() as place:
        built = (build_network(ModelConfig(MODEL, pretrained=True), 1000, SIZE)[0].eval() for _ in range(NETWORKS))
        networks = [laid_out(network, None, ALONE.device) for network in built]
        few, many = (
            Bench(saved(Path(place) / str(count), photographs(count, (500, 375), options.root)), networks, Path(place))
            for count in (options.images, options.clean)
        )
        counts = f"{options.clean} clean ones, {options.images} for c15"
        lines = [f"{MODEL}, {SIZE} px, batch {BATCH}, photographs of 500 x 375 pixels ({counts}), {options.turns} turns;"
                 f" {machine(torch.device('cpu'))}.", "", HEADER, "|---|---|---|---|"]  # fmt: skip
        print("\n".join(lines))
        parts = (
            (decoders, many),
            (against_timm, many),
            (shared_trunks, few),
            (before_and_now, few),
            (parts_alone, few),
            (many_networks, few),
        )
        for part, bench in parts:
            for line in part(bench, options.turns):
                print(line, flush=True)
                lines.append(line)
    if options.output:
        write_report(options.output, "What one pass over the images brings", lines)


if __name__ == "__main__":
    main()
