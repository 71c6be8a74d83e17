"""Draw every corruption at every severity on one photograph: python scripts/corruption_gallery.py [--output FILE]

This makes the picture of docs/corruptions.md: scikit-image's photograph of a cat, 224 x 224 pixels, with one draw of each
random corruption.
"""

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import skimage.data
import torch
from PIL import Image, ImageOps

from gch_bench.corruptions import CORRUPTIONS, SEVERITIES, corrupt


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("docs/corruptions.jpg"), help="any image format of matplotlib")
    output = parser.parse_args().output
    photo = ImageOps.fit(Image.fromarray(skimage.data.chelsea()), (224, 224), Image.Resampling.BICUBIC)
    image = torch.from_numpy(np.array(photo)).permute(2, 0, 1)[None]
    figure, axes = plt.subplots(len(CORRUPTIONS), len(SEVERITIES), figsize=(5.6, 19.4), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.01, h_pad=0.01, wspace=0, hspace=0)
    for (name, corruption), row in zip(CORRUPTIONS.items(), axes, strict=True):
        row[0].set_ylabel(f"{name}\n({corruption.group})", fontsize=6)
        for severity, axis in zip(SEVERITIES, row, strict=True):
            corrupted = corrupt(image, name, severity, torch.zeros(1, dtype=torch.int64))
            axis.imshow(corrupted[0].permute(1, 2, 0))
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
    for severity, axis in zip(SEVERITIES, axes[0], strict=True):
        axis.set_title(f"severity {severity}", fontsize=7)
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=120)
    print(f"{output}: {len(CORRUPTIONS)} corruptions x {len(SEVERITIES)} severities")


if __name__ == "__main__":
    main()
