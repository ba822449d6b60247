"""Stage ``segments``: cuts the labelled items out of their scans (paper section 3.1).

The table also tells which scans show the same bag (`near_duplicates`) and which items are not whole.
"""

from __future__ import annotations

import argparse
import functools
import pickle
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator

from tqdm import tqdm

from pipeline.common.executors import run_tasks
from pipeline.pairing.segments import RING_PX, Row, _report, _tasks, cut
from pipeline.tables import segment_table
from segloc.common import cli, datasets
from segloc.common.datasets import near_duplicates
from segloc.common.errors import InputError
from segloc.common.files import check_output


def _command(args: argparse.Namespace) -> int:
    check_output(args.out)
    source = datasets.training_source(args.annotations, args.images)
    found = datasets.read(source)
    tasks = _tasks(found.instances)
    skipped, counts = Counter(found.skipped), Counter[str]()
    fingerprints: dict[str, bytes] = {}
    task = functools.partial(cut, images=source.images.absolute(), classes=found.classes)
    results: Iterator[tuple[list[Row], list[str]]] = run_tasks(
        task, tasks, workers=args.workers, executor=args.executor, chunk=4
    )
    # The groups are known when all scans are; until then the rows wait on disk, in a file that ends with the process.
    with (
        segment_table.writer(args.out) as table,
        tempfile.TemporaryFile(dir=args.out.parent) as waiting,
    ):
        for rows, reasons in tqdm(results, total=len(tasks), unit="scan", desc="segments", disable=None):
            skipped.update(reasons)
            for row in rows:
                counts[row["class_name"]] += 1
                fingerprints[row["image"]] = row["scan_fingerprint"]
                pickle.dump(row, waiting)
        if not counts:
            why = ", ".join(f"{reason} ({count})" for reason, count in skipped.most_common(3)) or "no annotations"
            raise InputError(f"{source.annotations}: not one usable segment: {why}")
        groups = near_duplicates.group(fingerprints)
        waiting.seek(0)
        for _ in range(counts.total()):
            row = pickle.load(waiting)
            table.write(row | {"scan_group": groups[row["image"]]})
        table.parameters |= {
            "classes": list(found.classes),
            "counts": {name: counts[name] for name in found.classes},
            "skipped": dict(sorted(skipped.items())),
            "ring_px": list(RING_PX),
            "scan_group_threshold_bits": near_duplicates.THRESHOLD_BITS,
        }
    _report(args.out, counts, skipped, Counter(groups.values()))
    return 0


def main(argv: list[str] | None = None) -> int:
    """Run the command."""
    options = cli.parser(
        "pipeline.segments",
        "Cut labelled items out of training scans.",
        "  python -m pipeline.segments --annotations data/raw/pidray --out data/segments.parquet\n"
        "  python -m pipeline.segments --annotations train.json --images train --out segments.parquet",
    )
    options.add_argument(
        "--annotations", type=cli.path, required=True, metavar="PATH", help="a COCO instance file, or PIDray's root"
    )
    options.add_argument("--images", type=cli.optional_path, metavar="DIR", help="the scans (default: found by itself)")
    options.add_argument("--out", type=cli.path, required=True, metavar="FILE", help="the table to write (Parquet)")
    cli.add_executor_options(options)
    return cli.run(_command, options, argv)


if __name__ == "__main__":
    sys.exit(main())
