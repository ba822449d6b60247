"""Stage ``audit``: verifies shards and writes statistics and a gallery."""

from __future__ import annotations

import argparse
import sys

from pipeline.checks.audit import MAX_OFF_MATTER, REPORT, audit, check_segments, draw_pair_gallery, report
from pipeline.checks.pair_checks import off_matter, wanted_on_matter
from pipeline.checks.pair_statistics import TABLES
from segloc.common import cli
from segloc.common.files import write_atomic, write_json
from segloc.common.output_kinds import PNG, check_replaces
from segloc.common.stores import open_store
from segloc.common.text import printable

_SHOWN = 50  # violations printed; the report holds all


def _command(args: argparse.Namespace) -> int:
    for name, kind in TABLES.items() if args.tables else ():
        check_replaces(args.tables / f"{name}.csv", kind)
    folder = open_store(args.shards)
    index = folder.index()
    segments = args.segments and check_segments(args.segments, index)
    violations, statistics = audit(folder, index, segments, args.workers, args.executor, args.max_off_matter)
    if args.report:
        write_json(args.report, report(index, violations, statistics))
    for name, table in statistics.tables().items() if args.tables else ():
        write_atomic(args.tables / f"{name}.csv", table.encode())
    if args.gallery:
        draw_pair_gallery(args.gallery, folder, index, damaged=bool(violations))
    for violation in violations[:_SHOWN]:
        print(printable(violation))
    if len(violations) > _SHOWN:
        print(f"... and {len(violations) - _SHOWN} more")
    if index.lacks:
        print(f"{folder}: format {index.format_version}, without {', '.join(index.lacks)}")
    wanted, off = wanted_on_matter(index), off_matter(statistics.on_matter, index)
    matter = f", {off:.1%} of the items below on_matter {wanted:g}" if wanted else ""
    print(f"{folder}: {statistics.pairs} pairs in {len(index.shards)} shards, {len(violations)} violations{matter}")
    return 1 if violations else 0


def main(argv: list[str] | None = None) -> int:
    """Run the command."""
    options = cli.parser(
        "pipeline.audit",
        "Verify shards against their index and the shard contract. Exit code 1 if there are violations.",
        "  python -m pipeline.audit --shards data/shards\n"
        "  python -m pipeline.audit --shards data/shards --segments data/segments.parquet --report audit.json\n"
        "  python -m pipeline.audit --shards s3://bucket/shards --gallery pairs.png",
    )
    add = options.add_argument
    add("--shards", type=cli.place, required=True, metavar="DIR_OR_URL", help="output folder of pipeline.synthesize")
    add("--segments", type=cli.path, metavar="FILE", help="segment table of the shards, to redraw and compare items")
    add("--report", type=cli.OutputFile(REPORT), metavar="FILE", help="write violations and statistics as JSON")
    add(
        "--tables",
        type=cli.output_folder,
        metavar="DIR",
        help="write distributions (classes.csv, boxes.csv, ...) for `dvc plots`",
    )
    add("--gallery", type=cli.OutputFile(PNG), metavar="PNG", help="draw some pairs with their boxes")
    most = f"largest share of items on less matter than the recipe's on_matter (default: {MAX_OFF_MATTER:g})"
    add("--max-off-matter", type=cli.share, default=MAX_OFF_MATTER, metavar="SHARE", help=most)
    cli.add_executor_options(options)
    return cli.run(_command, options, argv)


if __name__ == "__main__":
    sys.exit(main())
