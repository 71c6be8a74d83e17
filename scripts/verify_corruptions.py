"""Compare gch_bench.corruptions with outputs of the reference generator: python scripts/verify_corruptions.py REFERENCE

REFERENCE is a folder that holds imagenet_c_exact.npz (outputs of make_imagenet_c.py of hendrycks/robustness) and
imagenet_c_stats.json (statistics of its random corruptions). The script prints the table of docs/corruptions.md.

The standard deviation of a few draws is itself uncertain. Therefore the table gives two counts of standard deviations that are
off by over 25%: of our draws compared with the reference's, and of our draws compared with equally many draws of another seed
of ours, which shows what chance alone does.
"""

import argparse
import json
from multiprocessing import Pool
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from measure import machine, positive, write_report

from gch_bench.corruptions import CORRUPTIONS, PARAMETER_SETS, SEVERITIES, corrupt
from gch_bench.corruptions.compiled.filters import motion_blur_at

PHOTOS = ("astronaut", "chelsea", "coffee", "rocket")
FEATURES = (
    *("mean_r", "mean_g", "mean_b", "std_r", "std_g", "std_b", "rmse", "mae", "p01", "p50", "p99", "laplacian_rms"),
    *(f"logpsd_diff_{band}" for band in range(8)),
)


def features(out: np.ndarray, photo: np.ndarray) -> list[float]:
    """The FEATURES (20,) of a corrupted photograph.

    They are those of the statistics file. How that file computes them was found by trial on the exact outputs: grey is the mean
    of the channels; the Laplacian has 4 neighbours and leaves out the border; the power is that of the orthonormal FFT of the
    grey difference, averaged over the band [k / 8, (k + 1) / 8) of the Nyquist frequency.

    Args:
        out: the corrupted image, uint8 (H, W, 3).
        photo: the original photograph, of the same shape.
    """
    difference = out.astype(float) - photo
    grey = out.mean(2)
    laplacian = grey[2:, 1:-1] + grey[:-2, 1:-1] + grey[1:-1, 2:] + grey[1:-1, :-2] - 4 * grey[1:-1, 1:-1]
    power = np.abs(np.fft.fft2(difference.mean(2), norm="ortho")) ** 2
    band = (8 * np.hypot(*np.meshgrid(*(2 * np.fft.fftfreq(n) for n in power.shape), indexing="ij"))).astype(int)
    return [
        *out.mean((0, 1)), *out.std((0, 1)), np.sqrt((difference**2).mean()), np.abs(difference).mean(),
        *np.percentile(out, [1, 50, 99]), np.sqrt((laplacian**2).mean()),
        *(np.log10(power[band == k].mean()) for k in range(8)),
    ]  # fmt: skip


def draw_features(photo: np.ndarray, name: str, severity: int, draws: int, seed: int) -> np.ndarray:
    """The FEATURES, (draws, 20), of ``draws`` corrupted versions of the photograph, uint8 (H, W, 3)."""
    images = torch.from_numpy(photo).permute(2, 0, 1)[None].expand(draws, -1, -1, -1)
    out = corrupt(images, name, severity, torch.arange(draws), seed).permute(0, 2, 3, 1).numpy()
    return np.array([features(image, photo) for image in out])


class Agreement(NamedTuple):
    """How well the features of our draws agree with the reference's; each field is (20,), one value per feature."""

    mean_error: np.ndarray  # |difference of means| / (4 standard errors + 1% of the value, or + 0.02 for log-power)
    sd_ratio: np.ndarray  # our standard deviation / the reference's; NaN where either is 0 (a percentile that never changes)


def agreement(ours: np.ndarray, mean: np.ndarray, sd: np.ndarray, n: int) -> Agreement:
    own_mean, own_sd = ours.mean(0), ours.std(0, ddof=1)
    slack = np.where(np.char.startswith(FEATURES, "logpsd"), 0.02, 0.01 * np.abs(mean))
    allowed = 4 * np.sqrt(sd**2 / n + own_sd**2 / len(ours)) + slack
    both = (sd > 0) & (own_sd > 0)
    ratio = np.divide(own_sd, sd, out=np.full(len(sd), np.nan), where=both)
    return Agreement(np.abs(own_mean - mean) / np.maximum(allowed, 1e-9), ratio)


class Row(NamedTuple):
    """A line of the table, and the counts of its standard deviations."""

    text: str
    compared: int = 0  # number of standard deviations that were compared
    off: int = 0  # how many are off by over 25% of the reference's
    chance: int = 0  # how many are off by over 25% between two seeds of ours


def exact_row(reference: Path, name: str, severity: int) -> Row:
    """The table's row for a deterministic corruption, or for motion blur at the angles of the exact outputs."""
    golden = np.load(reference / "imagenet_c_exact.npz")
    level = PARAMETER_SETS["imagenet_224"].levels[name][severity - 1]
    differences = []
    for key in (key for key in golden if key.startswith(f"{name}/{severity}/")):
        image = torch.from_numpy(golden[f"input/{key.split('/')[2]}"]).permute(2, 0, 1)
        if name == "motion_blur":
            out = torch.empty(image.shape, dtype=torch.uint8)
            motion_blur_at(image.contiguous().numpy(), *level, float(key.split("angle=")[1]), out.numpy())
        else:
            out = corrupt(image[None], name, severity, torch.zeros(1, dtype=torch.int64))[0]
        differences.append(np.abs(out.permute(1, 2, 0).numpy().astype(int) - golden[key]))
    d = np.stack(differences)
    compared = f"{len(d)} exact outputs" + (" at fixed angles" if name == "motion_blur" else "")
    figures = f"mean difference {d.mean():.4f} levels, largest {d.max()}, {100 * (d <= 1).mean():.2f}% within 1 level"
    return Row(f"| {name} | {severity} | {compared} | {figures} |")


def random_row(reference: Path, name: str, severity: int, draws: int) -> Row:
    """The table's row for a random corruption: 20 features of each of 4 photographs."""
    golden = np.load(reference / "imagenet_c_exact.npz")
    cells = json.loads((reference / "imagenet_c_stats.json").read_text())["cells"]
    found, again = [], []
    for number, photo in enumerate(PHOTOS):
        cell = cells[f"{name}/{severity}/{photo}"]
        ours = draw_features(golden[f"input/{photo}"], name, severity, draws, seed=number)
        other = draw_features(golden[f"input/{photo}"], name, severity, cell["n"], seed=4 + number)
        found.append(agreement(ours, np.array(cell["mean"]), np.array(cell["sd"]), cell["n"]))
        again.append(agreement(ours, other.mean(0), other.std(0, ddof=1), cell["n"]))
    worst = max(a.mean_error.max() for a in found)
    ratios, by_chance = (np.concatenate([a.sd_ratio for a in agreements]) for agreements in (found, again))
    pooled = np.exp(np.nanmean(np.log(ratios)))
    off, chance = (int((np.abs(np.log(each[~np.isnan(each)])) > np.log(1.25)).sum()) for each in (ratios, by_chance))
    text = (
        f"| {name} | {severity} | 80 feature means and sds, {draws} draws against {cell['n']} | worst mean {worst:.2f} of the "
        f"tolerance; sd ratio {pooled:.2f}; {off} single sds off by over 25% (two seeds of ours: {chance}) |"
    )
    return Row(text, len(ratios), off, chance)


def _row(task: tuple[Path, str, int, int, bool]) -> Row:
    torch.set_num_threads(1)
    reference, name, severity, draws, exact = task
    return exact_row(reference, name, severity) if exact else random_row(reference, name, severity, draws)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reference", type=Path)
    parser.add_argument("--draws", type=positive, default=256, help="of each random corruption on each photograph")
    parser.add_argument("--workers", type=positive, default=2)
    parser.add_argument("--output", type=Path, help="also write the table to this Markdown file")
    arguments = parser.parse_args()
    for name in ("imagenet_c_exact.npz", "imagenet_c_stats.json"):
        if not (arguments.reference / name).is_file():
            parser.error(f"REFERENCE must hold {name}, {arguments.reference} does not")
    tasks = [
        (arguments.reference, name, severity, arguments.draws, exact)
        for name, corruption in CORRUPTIONS.items()
        for exact in ([True] if not corruption.random else [True, False] if name == "motion_blur" else [False])
        for severity in SEVERITIES
    ]
    lines = [f"{machine(torch.device('cpu'))}\n", "| corruption | severity | compared | figure |\n| --- | --- | --- | --- |"]
    print("\n".join(lines))
    with Pool(arguments.workers) as pool:
        rows = []
        for row in pool.imap(_row, tasks):
            print(row.text, flush=True)
            rows.append(row)
    compared, off, chance = (sum(numbers) for numbers in list(zip(*rows, strict=True))[1:])
    total = f"\n{off} of {compared:,} standard deviations off by over 25%; two seeds of ours: {chance}."
    print(total)
    if arguments.output:
        title = "Our corrupted images and the reference generator's"
        write_report(arguments.output, title, [*lines, *(row.text for row in rows), total])


if __name__ == "__main__":
    main()
