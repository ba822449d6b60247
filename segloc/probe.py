"""``python -m segloc.probe``: measure how well features predict the classes of items, a cheap proxy for AP.

Fine-tuning a detector takes hours; the probe trains only a linear layer. The features are the 7x7 RoIAlign cells of the
item's box, averaged to one vector per level.
"""

from __future__ import annotations

import argparse
import sys

from segloc.common import cli
from segloc.common.files import write_json
from segloc.probing.probe import REPORT, probe, table

EXAMPLES = """\
  python -m segloc.probe --weights runs/pretrain --shards data/shards --out runs/pretrain/probe.json
  python -m segloc.probe --weights imagenet --shards data/shards
  python -m segloc.probe --weights random --shards data/shards --config detectron_configs/pretrain/demo_r18.yaml
--config is the recipe of the network for random and imagenet; a checkpoint contains its own settings.

Split: the last third of the shards and a third of every class's segments are held out. Test views show held-out
segments in held-out shards, so training and test views have no item and no image in common.
Pretraining ignores this split. If it used the same shards, it has seen the test views and their classes. To measure
generalisation to new items, use shards made from other segments.
k-NN: the 20 training views of highest cosine similarity vote with weight exp(cosine / 0.07). Linear: logistic
regression on standardised features by L-BFGS, L2 0.001. Chance is the share of the largest class in the test views.
"""


def main(argv: list[str] | None = None) -> int:
    """Run the command; return its exit code."""
    options = cli.parser("segloc.probe", "Measure how well features predict the classes of held-out items.", EXAMPLES)
    options.add_argument("--weights", type=cli.place, required=True, help="run or checkpoint, random, or imagenet")
    options.add_argument(
        "--shards", type=cli.place, required=True, metavar="DIR_OR_URL", help="folder or URL of finished shards"
    )
    options.add_argument("--out", type=cli.OutputFile(REPORT), metavar="FILE", help="JSON file to write")
    options.add_argument(
        "--config", type=cli.path, metavar="YAML", help="pretraining recipe, for --weights random and imagenet"
    )
    options.add_argument("--train", type=cli.whole, default=2000, metavar="N", help="training views (default: 2000)")
    options.add_argument("--test", type=cli.whole, default=1000, metavar="N", help="test views (default: %(default)s)")
    options.add_argument("--seed", type=cli.whole, default=0, help="seed of the choice of views (default: %(default)s)")
    options.add_argument(
        "--image-size", type=cli.whole, default=500, metavar="PX", help="longest image side (default: %(default)s)"
    )
    cli.add_overrides(options)
    return cli.run(_command, options, argv)


def _command(args: argparse.Namespace) -> None:
    report = probe(
        args.weights, args.shards, args.config, args.overrides, args.train, args.test, args.seed, args.image_size
    )
    print(table(report))
    if args.out:
        write_json(args.out, report)
        print(f"wrote {args.out}")


if __name__ == "__main__":
    sys.exit(main())
