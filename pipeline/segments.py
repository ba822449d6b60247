"""Stage ``segments``: cuts the labelled items out of their scans (paper section 3.1).

The table also records which scans show the same bag (`near_duplicates`) and which items are incomplete.
"""

from __future__ import annotations

import argparse
import sys

from pipeline.pairing.segments import write_segments
from pipeline.tables import segment_table
from segloc.common import cli
from segloc.common.datasets import near_duplicates
from segloc.common.skips import require
from segloc.common.text import shortened


def _command(args: argparse.Namespace) -> None:
    made = write_segments(
        args.annotations, args.images, args.out, args.workers, args.executor, args.white, args.same_bag_bits
    )
    counts, bags, skips = made.segments, made.scans_of_bag, made.skips
    classes = ", ".join(f"{n} {shortened(name)}" for name, n in counts.items())
    print(f"{args.out}: {counts.total()} segments ({classes})")
    most = max(bags.values())
    print(f"{bags.total()} scans of {len(bags)} bags, grouped by image similarity; at most {most} scans of one bag")
    if skips.counts:
        print(skips.summary())
    require([skips], args.max_skipped, "check --annotations and --images", str(args.out))


def _bits(text: str) -> int:
    most = 8 * near_duplicates.FINGERPRINT_BYTES
    value = cli.whole(text)
    if not 0 <= value <= most:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 to {most}")
    return value


def main(argv: list[str] | None = None) -> int:
    """Run the command."""
    options = cli.parser(
        "pipeline.segments",
        "Cut labelled items out of training scans.",
        "  python -m pipeline.segments --annotations data/raw/pidray --out data/segments.parquet\n"
        "  python -m pipeline.segments --annotations train.json --images train --out segments.parquet",
    )
    add = options.add_argument
    add("--annotations", type=cli.path, required=True, metavar="PATH", help="a COCO instance file, or PIDray's root")
    add("--images", type=cli.optional_path, metavar="DIR", help="the scans (default: found from --annotations)")
    add(
        "--out",
        type=cli.OutputFile(segment_table.FILE),
        required=True,
        metavar="FILE",
        help="the table to write (Parquet)",
    )
    bits = f"scans that differ in at most N of 256 bits show one bag (default: {near_duplicates.THRESHOLD_BITS})"
    add("--same-bag-bits", type=_bits, default=near_duplicates.THRESHOLD_BITS, metavar="N", help=bits)
    cli.add_white(options)
    cli.add_max_skipped(options)
    cli.add_executor_options(options)
    return cli.run(_command, options, argv)


if __name__ == "__main__":
    sys.exit(main())
