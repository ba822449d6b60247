"""InsLoc's data: rectangular crops of unlabelled scans instead of labelled items, as a baseline (paper section 1).

The output is a segment table. ``pipeline.synthesize`` pastes its crops upright and takes both items of a pair from one
scan (instance discrimination). With ``--blend paste`` this is InsLoc's composition, with two differences: crops are
pasted into the authentic region, and each scan has a fixed set of two or more crops.
"""

from __future__ import annotations

import argparse
import sys

from pipeline.pairing.crops import write_crops
from pipeline.tables import segment_table
from segloc.common import cli
from segloc.common.skips import require


def _command(args: argparse.Namespace) -> None:
    crops, skips = write_crops(
        args.backgrounds, args.regions, args.out, args.scans, args.per_scan, args.seed, args.workers, args.executor
    )
    print(f"{args.out}: {crops} crops of {skips.total - skips.skipped} scans")
    if skips.skipped:
        print(skips.summary())
    require([skips], args.max_skipped, "run pipeline.regions again", str(args.out))


def main(argv: list[str] | None = None) -> int:
    """Run the command."""
    options = cli.parser(
        "pipeline.crops",
        "Cut random rectangles out of unlabelled scans, for InsLoc's pairs. pipeline.synthesize reads the table.",
        "  python -m pipeline.crops --backgrounds data/raw/sixray --regions data/regions.parquet \\\n"
        "      --out data/crops.parquet\n"
        "  python -m pipeline.synthesize --backgrounds data/raw/sixray --regions data/regions.parquet \\\n"
        "      --segments data/crops.parquet --blend paste --scale 0.5:1 --out data/insloc_shards",
    )
    add = options.add_argument
    add("--backgrounds", type=cli.path, required=True, metavar="DIR", help="folder of scans, as for pipeline.regions")
    add("--regions", type=cli.path, required=True, metavar="FILE", help="table that pipeline.regions wrote")
    add(
        "--out",
        type=cli.OutputFile(segment_table.FILE),
        required=True,
        metavar="FILE",
        help="the table to write (Parquet)",
    )
    add("--scans", type=cli.whole, default=10_000, metavar="N", help="most scans to draw (default: 10000; 1 MB each)")
    add("--per-scan", type=cli.whole, default=2, metavar="N", help="crops per scan (default: 2)")
    add("--seed", type=cli.whole, default=0, metavar="S", help="random seed (default: 0)")
    cli.add_max_skipped(options)
    cli.add_executor_options(options)
    return cli.run(_command, options, argv)


if __name__ == "__main__":
    sys.exit(main())
