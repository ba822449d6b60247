"""``python -m segloc.pictures``: draw ground truth and detections of the best, median and worst images."""

from __future__ import annotations

import argparse
import sys

from segloc.common import cli
from segloc.common.output_kinds import PNG
from segloc.common.skips import require
from segloc.reporting.pictures import write_picture

EXAMPLES = """\
  python -m segloc.pictures --results runs/segloc/evaluation.hidden.results.json --out hidden.png \\
      --annotations data/raw/pidray/annotations/xray_test_hidden.json --images data/raw/pidray/hidden
  python -m segloc.report runs/segloc runs/random --picture "Hidden=hidden.png" --out report.html
The left panel shows the annotated items, the right panel the detections. Missed items and false alarms are dashed.
Images are ranked by the sum of the IoU of the found items / (number of items + false alarms), over detections of at
least --score. A detection finds an item of its class with an IoU of at least 0.5 that no better detection has found;
otherwise it is a false alarm. Images with neither items nor detections are left out. Another image takes the place of
one that cannot be read.
"""


def main(argv: list[str] | None = None) -> int:
    """Run the command; return its exit code."""
    options = cli.parser("segloc.pictures", "Draw detections beside the ground truth.", EXAMPLES)
    add = options.add_argument
    add("--results", type=cli.path, required=True, metavar="FILE", help="COCO results, as written by segloc.evaluate")
    add("--annotations", type=cli.path, required=True, metavar="FILE", help="COCO file of the test set")
    add("--images", type=cli.path, required=True, metavar="DIR", help="images of the test set")
    add("--out", type=cli.OutputFile(PNG), required=True, metavar="FILE", help="PNG file to write")
    add("--score", type=cli.number, default=0.5, help="lowest score of a detection to show (default: %(default)s)")
    add(
        "--each",
        type=cli.whole,
        default=2,
        metavar="N",
        help="best, median and worst images, N each (default: 2)",
    )
    cli.add_white(options)
    cli.add_max_skipped(options)
    return cli.run(_command, options, argv)


def _command(args: argparse.Namespace) -> None:
    files = args.results, args.annotations, args.images, args.out
    picture, skipped = write_picture(*files, args.score, args.each, args.white)
    for part in skipped:
        if part.counts:
            print(part.summary())
    print(picture.resolve())
    require(skipped, args.max_skipped, "check --annotations and --images", str(args.out))


if __name__ == "__main__":
    sys.exit(main())
