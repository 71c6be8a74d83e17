"""Write ImageNet-C's corruptions of a folder of images: python scripts/make_imagenet_c.py SRC DEST [--workers 16]

From SRC/<class>/<file> (ImageNet's validation images, sorted into class folders) it makes, as ImageNet-C is published,
DEST/<corruption>/<severity>/<class>/<stem>.JPEG: RGB, shorter side 256, centre crop 224, corrupted, JPEG of quality 85.
The same seed gives the same files, whatever the number of workers and the choice of corruptions. The same command continues a
run that was stopped, and corruptions and severities can be added later. DEST/manifest.json says what the files were made from;
cd DEST && sha256sum -c --quiet */*.sha256 checks them.
"""

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from gch_bench.apps.cli import reported
from gch_bench.cores import usable_cores
from gch_bench.errors import UserError


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; --help explains")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("src", metavar="SRC", type=Path, help="folder of class folders of images")
    parser.add_argument("dest", metavar="DEST", type=Path, help="new or empty folder, or one that this script made")
    parser.add_argument("--corruptions", metavar="NAME", nargs="+", help="default: all, the 15 and the 4 extra")
    parser.add_argument("--severities", metavar="N", nargs="+", type=int, help="in 1..5, default: all")
    parser.add_argument("--seed", type=int, default=0, help="of the random draws")
    parser.add_argument(
        "--workers", metavar="N", type=int, default=usable_cores(), help="processes (with cuda: threads), default: %(default)s"
    )
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), default="cpu", help="of the corruptions; results differ by rounding"
    )
    parser.add_argument("--quality", metavar="Q", type=int, default=85, help="of the JPEG files, 1..100")
    parser.add_argument("--verify", action="store_true", help="compare DEST with its checksums instead; SRC is not looked at")
    return parser.parse_args(arguments)


def interrupt(number: int, frame: object) -> None:
    """Raise KeyboardInterrupt(number). Further signals are ignored, so that they do not interrupt the tidying up."""
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, lambda number, frame: None)
    raise KeyboardInterrupt(number)


def main(arguments: Sequence[str] | None = None) -> None:
    with reported():
        options = parse(arguments)
        try:
            from gch_bench.apps.make_imagenet_c import generate  # not at the top: torch would delay --help

            checked = generate.Options(**vars(options))
            generate.verify(checked) if options.verify else generate.generate(checked)
        except KeyboardInterrupt as stopped:
            number = signal.Signals(stopped.args[0] if stopped.args else signal.SIGINT)
            print(f"stopped by {number.name}; the same command continues", file=sys.stderr, flush=True)
            sys.exit(128 + number)


if __name__ == "__main__":
    for stopping in (signal.SIGINT, signal.SIGTERM):
        signal.signal(stopping, interrupt)
    main()
