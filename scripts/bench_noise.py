"""Measures what noise costs: python scripts/bench_noise.py [--model resnet50 --size 224 --batch 64 --steps 3] (make bench)

Two times are measured in one run: that of a whole training step (forward, backward, SGD) without noise, and that of the forward
and backward pass of each mechanism alone, on the feature map of stage L4 with its dtype and memory layout. The share is the
second divided by the first, because the difference between two whole steps would be lost in the variation between steps. Times
are medians. The ratio to timm's DropBlock is the median of the ratios within each turn; the range says how noisy the machine
was. The mechanisms draw as in training, from one key per image; the layers of torch and timm draw from the global generator.
"""

import argparse
import statistics
from collections.abc import Callable
from typing import Any

import timm
import torch
import yaml
from measure import machine, positive, seconds
from timm.layers import DropBlock2d
from torch import Tensor, nn

from gch_bench.config.run import NoiseConfig
from gch_bench.noise.draws import KeyedDraws, image_keys
from gch_bench.noise.mechanism import Mechanism
from gch_bench.noise.stages import find_stage
from gch_bench.noise.table import make_mechanism

NAMES = (
    "gch",
    "gch_wick",
    "lognormal_iid",
    "hard_mask",
    "additive",
    "additive_green",
    "dropout",
    "spatial_dropout",
    "dropblock",
    "dropblock_channel",
)
# The libraries' own layers with the options of the presets dropblock and dropout.
LIBRARIES = {"timm DropBlock2d": DropBlock2d(0.1, block_size=3), "torch Dropout": nn.Dropout(0.1)}


def timed(action: Callable[[], object], repeats: int, device: torch.device) -> list[float]:
    """The seconds of each of `repeats` calls, after a first call that is not counted."""
    return [seconds(action, device) for _ in range(repeats + 1)][1:]


def stage_output(model: nn.Module, images: Tensor, stage: str) -> Tensor:
    kept: list[Tensor] = []
    handle = model.get_submodule(find_stage(model, stage)).register_forward_hook(lambda m, i, output: kept.append(output))
    with torch.no_grad():
        model(images)
    handle.remove()
    return kept[0]


def preset(name: str) -> dict[str, Any]:
    """The options of a preset, on top of those of the preset that it starts from."""
    with open(f"configs/noise/{name}.yaml") as file:
        own = yaml.safe_load(file)
    above = [preset(parent) for parent in own.pop("defaults", []) if parent != "_self_"]
    return {key: value for options in (*above, own) for key, value in options.items()}


def mechanism(name: str) -> Mechanism:
    config = NoiseConfig(**preset(name))
    assert config.law is not None
    return make_mechanism(config.law, config.kernel, config.options, config.injection)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for option, default in (("size", 224), ("batch", 64), ("steps", 3), ("repeats", 30)):
        parser.add_argument(f"--{option}", type=positive, default=default)
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--stage", default="L4")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    device = torch.device(options.device)
    model = timm.create_model(options.model).to(device).to(memory_format=torch.channels_last)
    images = torch.randn(options.batch, 3, options.size, options.size, device=device).to(memory_format=torch.channels_last)
    labels = torch.randint(1000, (options.batch,), device=device)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()

    print(f"{options.model}, {options.size} px, batch {options.batch}, stage {options.stage}; {machine(device)}")
    steps = timed(step, options.steps, device)
    whole = statistics.median(steps)
    print(f"training step without noise: {whole:.3f} s ({min(steps):.3f}..{max(steps):.3f}, {options.steps} steps)")
    features = stage_output(model, images, options.stage)
    gradient = torch.randn_like(features)
    print(
        f"feature map {tuple(features.shape)}\n"
        "\n| noise | ms a step | range | share of the step | of timm's DropBlock |\n|---|---:|---:|---:|---:|"
    )
    own: dict[str, list[float]] = {name: [] for name in (*NAMES, *LIBRARIES)}
    layers: dict[str, nn.Module] = {**{name: mechanism(name).train() for name in NAMES}, **LIBRARIES}
    ids = torch.arange(options.batch, device=device)
    leaf = features.clone().requires_grad_()
    for _ in range(options.repeats + 1):  # in turn, so that a slow moment of the machine meets all of them
        for name, layer in layers.items():

            def forward_backward(layer: nn.Module = layer) -> None:
                leaf.grad = None
                if isinstance(layer, Mechanism):
                    noisy = layer.apply_noise(leaf, KeyedDraws(image_keys(ids, 0, "bench")))
                else:
                    noisy = layer(leaf)
                noisy.backward(gradient)

            own[name] += timed(forward_backward, 1, device)
    for name, times in own.items():
        median = statistics.median(times)
        ratio = statistics.median(mine / theirs for mine, theirs in zip(times, own["timm DropBlock2d"], strict=True))
        spread = f"{1000 * min(times):.2f}..{1000 * max(times):.2f}"
        print(f"| {name} | {1000 * median:.2f} | {spread} | {median / whole:.3%} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
