"""Where noise reaches the logits, for one backbone of each family: python scripts/placement_table.py (takes 2 minutes)

Prints the table of docs/definitions.md: the relative change of the logits by GCh with gamma = 1, on perturbed random weights
(gch_bench/noise/placement.py), at L1..L4 and at the last stage that timm names, which often lies where noise has no effect.
"""

import argparse

import timm
import torch
from measure import machine

from gch_bench.noise import GaussianChaosNoise, Placement
from gch_bench.noise.placement import MINIMUM_CHANGE, Probe, own_size, random_images
from gch_bench.noise.stages import feature_stages, stage_modules

NAMES = (
    "resnet50",
    "convnext_tiny",
    "efficientnet_b0",
    "mobilenetv3_large_100",
    "vit_tiny_patch16_224",
    "deit_small_patch16_224",
    "swin_tiny_patch4_window7_224",
    "mixer_s16_224",
    "maxvit_nano_rw_256",
    "cait_xxs24_224",
    "edgenext_small",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    print(f"GCh, gamma = 1, random weights of seed 0; {machine(torch.device('cpu'))}\n")
    print("| backbone | L1 | L2 | L3 | timm's last stage | L4 |\n|---|---:|---:|---:|---:|---:|")
    for name in NAMES:
        torch.manual_seed(0)
        model = timm.create_model(name, num_classes=1000)
        size = own_size(model)
        assert size is not None
        probe = Probe(model, random_images(*size))
        stages = stage_modules(model)
        modules = [stages["L1"], stages["L2"], stages["L3"], feature_stages(model)["L4"], stages["L4"]]
        cells = []
        for module in modules:
            change = probe.change(GaussianChaosNoise(), [Placement(module, module)]).logits
            cells.append(f"`{module}` {change:.1e}{'' if change >= MINIMUM_CHANGE else ' refused'}")
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
