"""Say what a stored set of corrupted images holds and lacks: python scripts/check_imagenet_c.py ROOT [--clean DATA_ROOT]

ROOT is ImageNet-C, with or without its group folders, ImageNet-C-bar, ImageNet-3DCC, Tiny-ImageNet-C or CIFAR-10/100-C.
Each cell is listed with the number of its images and the sizes of some of them. With --clean every cell must also hold exactly
the images of that data set. The exit code is 0 if nothing is missing, 1 if something is, and 2 if ROOT is no such folder.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from gch_bench.apps.cli import reported
from gch_bench.errors import UserError


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; --help explains")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("root", metavar="ROOT", type=Path, help="the stored set, as in corruptions.root")
    parser.add_argument("--clean", metavar="DATA_ROOT", type=Path, help="the data set that was corrupted, as in data.root")
    parser.add_argument(
        "--data", metavar="NAME", default="imagenet", help="which data set that is, as in data=; default: imagenet"
    )
    with reported():
        options = parser.parse_args(arguments)
        from gch_bench.apps.check_stored import check_stored  # not at the top: torch would delay --help

        problems = check_stored(options.root, options.clean, options.data)
        sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
