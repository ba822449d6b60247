"""InsLoc's data: rectangular crops of unlabelled scans instead of labelled items, as a baseline (paper section 1).

The table is one of segments, which ``pipeline.synthesize`` pastes upright; the two items of a pair are two crops of one
scan (instance discrimination), as the table itself says. With ``--blend paste`` that is InsLoc's composition, but that
crops lie in the authentic region and keep to two or more fixed crops a scan.
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections import Counter
from collections.abc import Iterator

import numpy as np
from tqdm import tqdm

from pipeline.common.executors import run_tasks
from pipeline.common.seeds import generator
from pipeline.pairing.crops import CLASS, cut
from pipeline.pairing.segments import Row
from pipeline.tables import region_table, segment_table
from segloc.common import cli
from segloc.common.errors import InputError
from segloc.common.files import check_output, existing_folder


def _command(args: argparse.Namespace) -> int:
    check_output(args.out)
    if args.per_scan < 2:
        raise InputError(f"--per-scan is {args.per_scan}, a pair needs two crops of one scan")
    if args.scans < 1:
        raise InputError(f"--scans is {args.scans}, it must be at least 1")
    root = existing_folder(args.backgrounds, "backgrounds").absolute()
    names = region_table.load(args.regions).images
    chosen = np.sort(generator(args.seed, "crops").permutation(len(names))[: args.scans]).tolist()
    task = functools.partial(cut, root=root, per_scan=args.per_scan, seed=args.seed)
    scans = [(number, names[number].as_py()) for number in chosen]
    results: Iterator[list[Row] | str] = run_tasks(task, scans, workers=args.workers, executor=args.executor, chunk=4)
    counts, skipped = Counter[str](), Counter[str]()
    with segment_table.writer(args.out) as table:
        for result in tqdm(results, total=len(scans), unit="scan", desc="crops", disable=None):
            skipped.update([result] if isinstance(result, str) else [])
            for row in result if isinstance(result, list) else ():
                counts[CLASS] += 1
                table.write(row)
        if not counts:
            raise InputError(f"{args.backgrounds}: not one scan can be read; run pipeline.regions again")
        table.parameters |= {
            "classes": [CLASS], "counts": dict(counts), "skipped": dict(sorted(skipped.items())), "seed": args.seed,
            "positives": "instance", "per_scan": args.per_scan,
        }  # fmt: skip
    print(f"{args.out}: {counts.total()} crops of {len(scans) - skipped.total()} scans, {skipped.total()} unreadable")
    return 0


def main(argv: list[str] | None = None) -> int:
    """Run the command."""
    options = cli.parser(
        "pipeline.crops",
        "Cut random rectangles out of unlabelled scans, for InsLoc's pairs. The table goes to pipeline.synthesize.",
        "  python -m pipeline.crops --backgrounds data/raw/sixray --regions data/regions.parquet \\\n"
        "      --out data/crops.parquet\n"
        "  python -m pipeline.synthesize --backgrounds data/raw/sixray --regions data/regions.parquet \\\n"
        "      --segments data/crops.parquet --blend paste --scale 0.5:1 --out data/insloc_shards",
    )
    options.add_argument("--backgrounds", type=cli.path, required=True, metavar="DIR", help="those of pipeline.regions")
    options.add_argument("--regions", type=cli.path, required=True, metavar="FILE", help="table of pipeline.regions")
    options.add_argument("--out", type=cli.path, required=True, metavar="FILE", help="the table to write (Parquet)")
    options.add_argument(
        "--scans", type=int, default=10_000, metavar="N", help="at most so many, drawn (default: 10000; 1 MB each)"
    )
    options.add_argument("--per-scan", type=int, default=2, metavar="N", help="crops of each (default: 2)")
    options.add_argument("--seed", type=int, default=0, metavar="S", help="another seed, other crops (default: 0)")
    cli.add_executor_options(options)
    return cli.run(_command, options, argv)


if __name__ == "__main__":
    sys.exit(main())
