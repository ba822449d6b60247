"""``python -m segloc.probe``: how well the features of an item tell its class, a cheap stand-in for AP.

A detector has to be fine-tuned for hours to show what pretraining was worth. Here nothing is trained but a linear
layer: the features are RoIAlign's 7x7 cells of the item's box, averaged to one vector a level.
"""

from __future__ import annotations

import argparse
import sys

from segloc.common import cli
from segloc.common.files import check_output, write_json
from segloc.probing.probe import probe, table

EXAMPLES = """\
  python -m segloc.probe --weights runs/pretrain --shards data/shards --out runs/pretrain/probe.json
  python -m segloc.probe --weights imagenet --shards data/shards
  python -m segloc.probe --weights random --shards data/shards --config detectron_configs/pretrain/demo_r18.yaml
The recipe is for random (fresh weights of its network) and imagenet; a checkpoint knows its own.

The shards are split once: the last third of the shards and a third of every class's segments are held out, and the
test views are the held-out segments in the held-out shards, so no item and no picture is on both sides.
Pretraining knows nothing of this split: on the shards it ran on it has seen the test views and their classes. To see
what it is worth on items that are new to it, give shards made of other segments.
k-NN: the 20 training views of highest cosine similarity vote with the weight exp(cosine / 0.07). Linear: logistic
regression on standardised features by L-BFGS, L2 0.001. Chance is the share of the largest class among the test views.
"""


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    options = cli.parser("segloc.probe", "Measure how well features of held-out items tell their class.", EXAMPLES)
    options.add_argument("--weights", required=True, help="pretraining or fine-tuning run or checkpoint, or a start")
    options.add_argument("--shards", required=True, metavar="DIR_OR_URL", help="finished folder of shards")
    options.add_argument("--out", metavar="FILE", help="JSON file to write")
    options.add_argument("--config", metavar="YAML", help="recipe of pretraining, for --weights random and imagenet")
    options.add_argument("--train", type=int, default=2000, metavar="N", help="views to learn from (%(default)s)")
    options.add_argument("--test", type=int, default=1000, metavar="N", help="views to test on (%(default)s)")
    options.add_argument("--seed", type=int, default=0, help="of the choice of views (%(default)s)")
    options.add_argument(
        "--image-size", type=int, default=500, metavar="PX", help="images are shrunk to it (%(default)s)"
    )
    cli.add_overrides(options)
    return cli.run(_command, options, argv)


def _command(args: argparse.Namespace) -> None:
    check_output(args.out)
    report = probe(
        args.weights, args.shards, args.config, args.overrides, args.train, args.test, args.seed, args.image_size
    )
    print(table(report))
    if args.out:
        write_json(args.out, report)
        print(f"wrote {args.out}")


if __name__ == "__main__":
    sys.exit(main())
