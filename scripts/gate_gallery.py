"""Draw one gate of each mechanism on one real feature map: python scripts/gate_gallery.py [--output FILE]

This makes the picture docs/gates.png: the maps of EfficientNet-Lite0 with its ImageNet weights at L3 and L4 for scikit-image's
photograph of a cat. Each map is shown in its four channels with the largest variance over sites, because some mechanisms treat
every channel alike and others do not. All gates share one colour scale, and so do all maps of a stage.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import skimage.data
import torch
from matplotlib.figure import Figure
from PIL import Image, ImageOps
from torch import Tensor

from gch_bench.config.run import ModelConfig
from gch_bench.data.transforms import normalise
from gch_bench.model.build import build_network, normalisation
from gch_bench.noise.mechanism import Mechanism
from gch_bench.noise.stages import stage_modules
from gch_bench.noise.table import make_mechanism
from gch_bench.report.figure_style import DOUBLE, save, styled

SIZE, STAGES = 224, ("L3", "L4")
SEED = 2  # with this one spatial dropout sets some of the channels shown to zero, and not all
GREEN, WHITE = "dirichlet_green", "white"
UNIT = {"match_variance": True}
# Name of the preset in configs/noise/ -> law, kernel, options. Some are stronger than the preset, so that one draw shows them.
MECHANISMS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "gch": ("samplewise", GREEN, {"gamma": 1.0}),
    "gch_wick": ("wick", GREEN, {"gamma": 1.0}),
    "lognormal_iid": ("wick", WHITE, {"gamma": 0.6}),
    "hard_mask": ("hard_mask", GREEN, {"p": 0.2}),
    "dropblock": ("block", GREEN, {"p": 0.2, "block_size": 3}),
    "dropout": ("bernoulli", GREEN, {"p": 0.2}),
    "spatial_dropout": ("bernoulli_channel", GREEN, {"p": 0.2}),
    "additive": ("gaussian", WHITE, {"sigma": 0.5, **UNIT}),
    "additive_green": ("gaussian", GREEN, {"sigma": 0.5, **UNIT}),
}
PAIRS = 2  # mechanisms beside each other


def features(image: Tensor) -> dict[str, Tensor]:
    """Stage -> feature map (1, C, H, W) of one uint8 image (1, 3, SIZE, SIZE)."""
    network = build_network(ModelConfig("tf_efficientnet_lite0", pretrained=True), 1000, SIZE)[0].eval()
    found: dict[str, Tensor] = {}
    for stage, name in stage_modules(network).items():
        network.get_submodule(name).register_forward_hook(
            lambda module, inputs, output, stage=stage: found.__setitem__(stage, output)
        )
    with torch.no_grad():
        network(normalise(image, normalisation(network)))
    return {stage: found[stage] for stage in STAGES}


def gate_and_map(mechanism: Mechanism, features_1CHW: Tensor) -> tuple[Tensor, Tensor]:
    """One draw of the noise: its gate and the features with it, both (C, H, W).

    The gate is what the same draw makes of a map of ones. For additive noise this is 1 + the noise, in units of the RMS of the
    features.
    """
    torch.manual_seed(SEED)
    gate_CHW = mechanism.apply_noise(torch.ones_like(features_1CHW))[0]
    torch.manual_seed(SEED)
    return gate_CHW, mechanism.apply_noise(features_1CHW)[0]


def tiled(values_4HW: Tensor) -> np.ndarray:
    """Four channels of a map as a square of two by two, with a line of NaN between them: (2 H + 1, 2 W + 1)."""
    tiles = [np.pad(tile, ((0, 1), (0, 1)), constant_values=np.nan) for tile in values_4HW.numpy()]
    return np.block([tiles[:2], tiles[2:]])[:-1, :-1]


@styled
def gallery(image: Tensor) -> Figure:
    """Mechanisms in rows of PAIRS, each with its gate and the noisy map at every stage; the first block is without noise."""
    maps, names = features(image), [None, *MECHANISMS]
    lines, width = -(-len(names) // PAIRS), 2 * len(STAGES)
    figure = Figure(figsize=(DOUBLE, 0.98 * lines + 0.6), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.03, wspace=0, hspace=0)
    axes = figure.subplots(lines, PAIRS * width, squeeze=False)
    for number, name in enumerate(names):
        own = axes[number // PAIRS, number % PAIRS * width :][:width]
        for (gate_axis, map_axis), (stage, map_1CHW) in zip(own.reshape(-1, 2), maps.items(), strict=True):
            channels = map_1CHW[0].flatten(1).var(1).topk(4).indices
            before = map_1CHW[0][channels]
            scale = {"cmap": "magma", "vmin": float(before.min()), "vmax": 1.5 * float(before.max())}
            gate_CHW, noisy_CHW = torch.ones_like(map_1CHW[0]), map_1CHW[0]
            if name is not None:
                gate_CHW, noisy_CHW = gate_and_map(make_mechanism(*MECHANISMS[name]), map_1CHW)
            gate = gate_axis.imshow(tiled(gate_CHW[channels]), cmap="cividis", vmin=0, vmax=2)
            map_axis.imshow(tiled(noisy_CHW[channels]), **scale)
            if number < PAIRS:
                gate_axis.set_title(f"\n{stage}: gate", loc="left", pad=2)
                map_axis.set_title(f"\n{stage}: map", loc="left", pad=2)
        headed = own[0].get_title(loc="left")
        own[0].set_title((describe(name) if name else "no noise") + headed, loc="left", pad=2)
    for axis in axes.flat:
        axis.axis("off")
    bar = figure.colorbar(gate, ax=axes, location="bottom", aspect=60, shrink=0.5, extend="both", ticks=(0, 0.5, 1, 1.5, 2))
    bar.set_label("gate (additive noise: 1 + noise / RMS of the features)")
    figure.set_label("One draw of each mechanism on the feature maps of one image, in four channels each.")
    return figure


def describe(name: str) -> str:
    options = MECHANISMS[name][2]
    return f"{name}, " + ", ".join(f"{key}={value:g}" for key, value in options.items() if key not in UNIT)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("docs/gates.png"), help="ends in .png, .svg or .pdf")
    output = parser.parse_args().output
    photo = ImageOps.fit(Image.fromarray(skimage.data.chelsea()), (SIZE, SIZE), Image.Resampling.BICUBIC)
    image = torch.from_numpy(np.array(photo)).permute(2, 0, 1)[None]
    save({output.stem: gallery(image)}, output.parent, (output.suffix.removeprefix("."),), dpi=200)
    print(f"{output}: {len(MECHANISMS)} mechanisms")


if __name__ == "__main__":
    main()
