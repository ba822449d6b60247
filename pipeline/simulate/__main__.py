"""``python -m pipeline.simulate``: simulated scans, to run the whole pipeline without a data set."""

from __future__ import annotations

import argparse
import sys

from pipeline.simulate.dataset import Parameters
from pipeline.simulate.generate import make
from segloc.common import cli

DESCRIPTION = """Simulate a dual-energy X-ray baggage scanner and write its scans in the on-disk layouts of PIDray
(OUT/pidray: train, easy, hard, hidden, annotations) and SIXray (OUT/sixray: scans without prohibited items).
Of N scans 40 % are SIXray negatives, 36 % PIDray train and 8 % each PIDray easy (one item), hard (two or more) and
hidden (one, concealed). All 12 classes occur in every PIDray subset. Training and test scans share no product
("brand"), for any seed. The same arguments give the same bytes. See docs/simulator.md."""

EXAMPLES = """  python -m pipeline.simulate --out data/raw
  python -m pipeline.simulate --out data/raw --scans 300 --width 320 --seed 1 --workers 2
  python -m pipeline.simulate --out dual-energy --scans 200 --raw"""

RAW_HELP = """also write the two energies and the effective atomic number as 16-bit images: OUT/energies/.../\
NAME_low.png and NAME_high.png (transmissions; an empty belt is 50000), NAME_z.png (the number times 1000)"""
SWAP_HELP = """swap the brands of training and test scans, to test a network that was trained on a simulation without
this option"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that set what is simulated."""
    parser.add_argument("--scans", type=cli.whole, default=1200, metavar="N", help="scans in all (default: 1200)")
    parser.add_argument("--seed", type=cli.whole, default=0, metavar="S", help="0 or more (default: %(default)s)")
    parser.add_argument("--width", type=cli.whole, default=500, metavar="PX", help="width of a scan (default: 500)")
    share = "share of the negatives on a grey belt (default: %(default)s)"
    parser.add_argument("--grey-belts", type=cli.number, default=0.15, metavar="SHARE", help=share)


def _command(args: argparse.Namespace) -> None:
    parameters = Parameters(args.scans, args.seed, args.width, args.grey_belts, args.raw, args.swap_brands)
    if not make(args.out, parameters, args.workers, args.executor, args.if_changed):
        print(f"{args.out}: already there, nothing to do")


def main(argv: list[str] | None = None) -> int:
    """Run the command and return the exit code."""
    parser = cli.parser("pipeline.simulate", DESCRIPTION, EXAMPLES)
    parser.add_argument("--out", type=cli.output_folder, required=True, metavar="DIR", help="output folder")
    add_options(parser)
    parser.add_argument("--raw", action="store_true", help=RAW_HELP)
    parser.add_argument("--swap-brands", action="store_true", help=SWAP_HELP)
    cli.add_if_changed(parser)
    cli.add_executor_options(parser)
    return cli.run(_command, parser, argv)


if __name__ == "__main__":
    sys.exit(main())
