"""The placement atlas: python scripts/placement_atlas.py (takes some minutes)

Which mechanism reaches the logits from which stage of which backbone, and how much it changes them. EfficientNet-Lite0 has its
ImageNet weights; the other networks have random weights, perturbed as in gch_bench/noise/placement.py, so that their numbers
say where noise can act and not what it does to a trained network. The images are photographs that ship with scikit-image,
scikit-learn and the extra `frost`. Writes OUTPUT/atlas.csv, .svg, .png, .pdf and a README.md.
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
import timm
import torch
import yaml
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from measure import crop, machine, positive, shipped
from PIL import Image
from torch import Tensor

from gch_bench.apps.compatibility.atlas import atlas, settle
from gch_bench.config.run import ModelConfig, NoiseConfig
from gch_bench.corruptions.weather import frost_photographs
from gch_bench.data.transforms import normalise
from gch_bench.display import Display
from gch_bench.files import write_atomic, write_csv
from gch_bench.memory import keep_freed_memory
from gch_bench.model.build import build_network, normalisation
from gch_bench.model.packaged import packaged_name
from gch_bench.noise.mechanism import Mechanism
from gch_bench.noise.placement import MINIMUM_CHANGE
from gch_bench.noise.table import make_mechanism
from gch_bench.report.figure_style import DOUBLE, save, styled

TRAINED = "efficientnet_lite0"
NETWORKS = {
    TRAINED: "EfficientNet-Lite0, trained",
    "resnet50": "ResNet-50, random",
    "convnext_tiny": "ConvNeXt-T, random",
    "vit_small_patch16_224": "ViT-S, random",
    "swin_tiny_patch4_window7_224": "Swin-T, random",
}
PRESETS = Path(__file__).parents[1] / "configs" / "noise"
SIZE = 224


def presets() -> dict[str, Mechanism]:
    """Every preset of configs/noise/ but none, by name."""
    made = {}
    for path in sorted(PRESETS.glob("*.yaml")):
        values = yaml.safe_load(path.read_text())
        for base in values.pop("defaults", []):
            if base != "_self_":
                values = {**yaml.safe_load((PRESETS / f"{base}.yaml").read_text()), **values}
        config = NoiseConfig(**values)
        if config.law is not None:
            made[config.name] = make_mechanism(config.law, config.kernel, config.options, config.injection)
    return made


def photographs(count: int) -> Tensor:
    """`count` crops of the shipped photographs, as uint8 (count, 3, SIZE, SIZE)."""
    originals = [Image.open(path).convert("RGB") for paths in shipped().values() for path in paths] + frost_photographs()
    crops = [crop(originals[i % len(originals)], (SIZE, SIZE), i) for i in range(count)]
    return torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in crops])


@styled
def figure_of(table: pd.DataFrame) -> Figure:
    """Mechanisms in rows; networks and their stages in columns; the change of the logits in percent."""
    mechanisms = list(dict.fromkeys(table["mechanism"]))
    networks = list(dict.fromkeys(table["network"]))
    figure = Figure(figsize=(DOUBLE, 0.19 * len(mechanisms) + 1.1), layout="constrained")
    axes = figure.subplots(1, len(networks), sharey=True)
    norm = LogNorm(1e-4, 1)
    for axis, network in zip(axes, networks, strict=True):
        own = table[table["network"] == network]
        stages = list(dict.fromkeys(own["stage"]))
        grid = own.pivot(index="mechanism", columns="stage", values="logit_change").loc[mechanisms, stages].to_numpy()
        image = axis.imshow(np.clip(grid, 1e-4, 1), cmap="cividis", norm=norm, aspect="auto")
        for (i, j), value in np.ndenumerate(grid):
            text = "" if np.isnan(value) else "×" if value < MINIMUM_CHANGE else percent(value)
            axis.text(j, i, text, ha="center", va="center", color="black" if value > 0.03 else "white")
        axis.set_title("\n".join(network.split(", ")))
        axis.set_xticks(range(len(stages)), stages)
        axis.set_yticks(range(len(mechanisms)), mechanisms)
        axis.tick_params(length=0)
        axis.set_facecolor("0.85")
        for spine in axis.spines.values():
            spine.set_visible(False)
    bar = figure.colorbar(image, ax=axes, location="bottom", aspect=60, shrink=0.6, extend="both")
    bar.set_label("relative change of the logits (numbers: percent)")
    figure.set_label(
        "Relative change of the logits by each mechanism at its preset strength, in percent, at the stages L1 to L4. A cross:"
        f" under {MINIMUM_CHANGE:g}, so that the noise does nothing and is refused. Grey: the mechanism cannot act there (no"
        " residual branch, no attention, no tokens). Presets are not equally strong: compare within a row."
    )
    return figure


def percent(value: float) -> str:
    return f"{100 * value:.0f}" if value >= 0.095 else f"{100 * value:.1f}" if value >= 0.001 else "<0.1"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("results/compatibility"))
    parser.add_argument("--images", type=positive, default=12)
    parser.add_argument("--passes", type=positive, default=2)
    arguments = parser.parse_args()
    keep_freed_memory("auto")
    mechanisms, images, display, places = presets(), photographs(arguments.images), Display(True), []
    with display.bar("atlas", 4 * len(NETWORKS) * len(mechanisms), "places") as advance:
        for name, label in NETWORKS.items():
            torch.manual_seed(0)
            if name == TRAINED:
                network, _ = build_network(ModelConfig(packaged_name(name), pretrained=True), 1000, SIZE)
            else:
                network = timm.create_model(name, num_classes=1000)
            inputs = normalise(images, normalisation(network))
            if name != TRAINED:
                settle(network, inputs)
            places += list(atlas(network, label, inputs, mechanisms, arguments.passes, advance))
    table = pd.DataFrame(places)
    write_csv(arguments.output / "atlas.csv", table)
    save({"atlas": figure_of(table)}, arguments.output)
    refused = table[table["logit_change"] < MINIMUM_CHANGE]
    by_network = refused.groupby("network", sort=False)["stage"].count().to_dict()
    text = f"""# Placement atlas

![atlas](atlas.png)

`python scripts/placement_atlas.py`, {machine(torch.device("cpu"))}.

{arguments.images} photographs, {arguments.passes} noisy passes, {len(mechanisms)} mechanisms at the strength of their presets.
[atlas.csv](atlas.csv) has all numbers, with the module of each stage, the change of the stage's own map, and why a mechanism
cannot act. The networks with random weights say where noise can act, not what it does to a trained network.

Noise that does nothing (a relative change of the logits under {MINIMUM_CHANGE:g}), of {len(table)} places:
{", ".join(f"{count} in {network}" for network, count in by_network.items()) or "none"}.
"""
    write_atomic(arguments.output / "README.md", lambda file: file.write(text.encode()))
    print(text)


if __name__ == "__main__":
    main()
