"""``python -m segloc.pictures``: ground truth and detections side by side, for the best, median and worst images."""

from __future__ import annotations

import argparse
import sys

from segloc.common import cli
from segloc.reporting.pictures import write_picture

EXAMPLES = """\
  python -m segloc.pictures --results runs/segloc/evaluation.hidden.results.json --out hidden.png \\
      --annotations data/raw/pidray/annotations/xray_test_hidden.json --images data/raw/pidray/hidden
  python -m segloc.report runs/segloc runs/random --picture "Hidden=hidden.png" --out report.html
Left the annotated items, right what was found; dashed is what was missed and what is a false alarm. Images are ranked
by the sum of the IoU of the items found / (number of items + false alarms), over detections of at least --score. An
item is found by a detection of its class with an IoU of at least 0.5; a detection is a false alarm if it finds no item
that a better one has not taken. Images with neither items nor detections are left out.
"""


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    options = cli.parser("segloc.pictures", "Show detections beside the ground truth.", EXAMPLES)
    add = options.add_argument
    add("--results", required=True, metavar="FILE", help="COCO results, as segloc.evaluate writes them")
    add("--annotations", required=True, metavar="FILE", help="COCO file of the test set")
    add("--images", required=True, metavar="DIR", help="its images")
    add("--out", required=True, metavar="FILE", help="PNG file")
    add("--score", type=float, default=0.5, help="weakest detection to show (default: %(default)s)")
    add("--each", type=int, default=2, metavar="N", help="images of each kind (default: %(default)s)")
    return cli.run(_command, options, argv)


def _command(args: argparse.Namespace) -> None:
    print(write_picture(args.results, args.annotations, args.images, args.out, args.score, args.each).resolve())


if __name__ == "__main__":
    sys.exit(main())
