"""A folder of real photographs for data=folder, from installed packages: python scripts/save_photographs.py FOLDER

The photographs are those that ship with scikit-image and scikit-learn, and those of frost that the corruption `frost` uses (of
the extra `frost`). Each is cut several times, at changing places. They have no labels of ImageNet: the three classes are the
packages they come from. Use them to look at activations, not to measure accuracy.

    python diagnose.py mode=compatibility model=efficientnet_lite0 model.pretrained=true data=folder data.root=FOLDER
"""

import argparse
from pathlib import Path

from measure import crop, positive, shipped
from PIL import Image

from gch_bench.corruptions.weather import frost_photographs


def save(folder: Path, crops: int, side: int) -> int:
    """Write FOLDER/val/PACKAGE/*.png, `crops` square crops of each photograph; returns how many files there are."""
    images = {name: [Image.open(path).convert("RGB") for path in paths] for name, paths in shipped().items()}
    images["frost"] = frost_photographs()
    count = 0
    for name, originals in images.items():
        own = folder / "val" / name
        own.mkdir(parents=True, exist_ok=True)
        for number, image in enumerate(originals):
            for i in range(crops):
                shorter = min(image.size)  # half of the cuts show the photograph at about full size, half a part of it
                wide = shorter - 1 if i % 2 else max(side, shorter // 2)
                cut = crop(image, (wide, wide), 1 + 5 * i + number).resize((side, side), Image.Resampling.BICUBIC)
                cut.save(own / f"{number}-{i}.png")
                count += 1
    return count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--crops", type=positive, default=6, help="of each photograph")
    parser.add_argument("--side", type=positive, default=256, help="in pixels")
    arguments = parser.parse_args()
    print(f"{arguments.folder}: {save(arguments.folder, arguments.crops, arguments.side)} images")


if __name__ == "__main__":
    main()
