"""Stage ``regions``: measures the authentic region of every background scan (paper section 3.2)."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from pipeline.bags.regions import MODES, draw_region_gallery, draw_steps, write_regions
from pipeline.common import gallery
from pipeline.tables import region_table
from segloc.common import cli, white_level
from segloc.common.datasets import backgrounds, folder
from segloc.common.errors import InputError
from segloc.common.images import ImageError
from segloc.common.output_kinds import PNG, check_replaces
from segloc.common.skips import require


def _command(args: argparse.Namespace) -> None:
    check_replaces(args.out, PNG if args.steps else region_table.FILE)
    if args.steps:
        try:
            white = _level_of_folder(args.steps) if args.white is None else args.white
            gallery.write_png(args.out, draw_steps(args.steps, args.mode, white))
        except ImageError as error:
            raise InputError(f"{args.steps}: {error}") from error
        return
    names = backgrounds(args.backgrounds)
    white, text = white_level.choose((args.backgrounds / name for name in white_level.sample(names)), args.white)
    if text:
        print(text)
    counts, skips = write_regions(args.backgrounds, names, args.out, args.mode, args.workers, args.executor, white)
    summary = ", ".join(f"{count} {status}" for status, count in sorted(counts.items()))
    print(f"{args.out}: {len(names)} backgrounds ({summary})")
    if skips.counts:
        print(skips.summary())
    if args.gallery:
        draw_region_gallery(args.backgrounds, names, args.gallery, args.mode, white)
        print(f"{args.gallery}: red: the paper's region, blue: region of mode {args.mode}, green: its bags")
    require([skips], args.max_skipped, "replace these files, or remove them from --backgrounds", str(args.out))


def _level_of_folder(scan: Path) -> int | None:
    """White level of the folder that a scan lies in. It is measured only for a scan of 16 bits."""
    if white_level.choose([scan]).level is None:
        return None
    white, text = white_level.choose(scan.parent / name for name in white_level.sample(folder.scans(scan.parent)))
    print(text)
    return white


def main(argv: list[str] | None = None) -> int:
    """Run the command."""
    options = cli.parser(
        "pipeline.regions",
        "Find the part of each benign scan that shows bags rather than empty belt.",
        "  python -m pipeline.regions --backgrounds data/raw/sixray --out data/regions.parquet\n"
        "  python -m pipeline.regions --backgrounds scans --out regions.parquet --mode paper --gallery regions.png\n"
        "  python -m pipeline.regions --steps scans/N0000001.jpg --out steps.png",
    )
    source = options.add_mutually_exclusive_group(required=True)
    source.add_argument("--backgrounds", type=cli.path, metavar="DIR", help="root of SIXray, or any folder of scans")
    source.add_argument("--steps", type=cli.path, metavar="IMAGE", help="only draw the steps for one scan")
    add = options.add_argument
    add(
        "--out",
        type=cli.OutputFile(region_table.FILE, PNG),
        required=True,
        metavar="FILE",
        help="the table to write (Parquet); with --steps, a PNG",
    )
    add("--mode", choices=MODES, default="adaptive", help="method that finds the region (default: adaptive)")
    add("--gallery", type=cli.OutputFile(PNG), metavar="PNG", help="also draw the regions of up to 60 scans")
    cli.add_white(options)
    cli.add_max_skipped(options)
    cli.add_executor_options(options)
    return cli.run(_command, options, argv)


if __name__ == "__main__":
    sys.exit(main())
