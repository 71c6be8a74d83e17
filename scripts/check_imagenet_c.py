"""Say what a stored set of corrupted images holds and lacks:

  python scripts/check_imagenet_c.py ROOT [--clean DATA_ROOT [--data NAME]] [--corruptions NAME ...] [--severities N ...]

ROOT is ImageNet-C, with or without its group folders, ImageNet-C-bar, ImageNet-3DCC, Tiny-ImageNet-C or CIFAR-10/100-C.
Each cell is listed with the number of its images and the sizes of some of them. A cell with another number or other sizes than
most cells is wrong. With --clean every cell must also hold exactly the images of that data set, in the size in which it is
evaluated. --corruptions and --severities are for a set that holds only these. The exit code is 0 if nothing is missing or
wrong, 1 if something is, and 2 if ROOT is no such folder.
"""

import argparse
import signal
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
    parser.add_argument("--corruptions", metavar="NAME", nargs="+", default=[], help="default: all of each group in ROOT")
    parser.add_argument("--severities", metavar="N", nargs="+", type=int, choices=range(1, 6), help="default: 1 2 3 4 5")
    with reported():
        options = parser.parse_args(arguments)
        from gch_bench.apps.check_stored import DATA, SEVERITIES, check_stored  # not at the top: torch would delay --help

        if options.data not in DATA:
            raise UserError(f"--data must be one of {', '.join(DATA)}, got {options.data}")
        severities = options.severities or SEVERITIES
        problems = check_stored(options.root, options.clean, options.data, options.corruptions, severities)
        sys.exit(1 if problems else 0)


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # a reader such as head may close the pipe: end then without a traceback
    main()
