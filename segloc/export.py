"""``python -m segloc.export``: the backbone's weights for other libraries, or with batch norm put in."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from segloc.common import cli
from segloc.common.errors import InputError
from segloc.common.files import check_output
from segloc.exporting.batch_norm import Measuring
from segloc.exporting.export import export, summary
from segloc.exporting.formats import FORMATS

EXAMPLES = """\
  python -m segloc.export --weights runs/pretrain --format detectron2 --out segloc_r101_d2.pth
  python -m segloc.export --weights runs/finetune-segloc --format timm --out segloc_r101_timm.pth
  python -m segloc.export --weights runs/paper --insert-bn --shards data/shards --format segloc --out runs/paper-bn.pth
The report goes beside the file, as NAME.report.json. segloc is this project's own format, which segloc.finetune and
this command read; it alone keeps the head of pretraining. detectron2 is for segloc.detection.detectron2 (with the
attention) and for Detectron2's own FPN (which skips it), detectron2-sda for Detectron2 models on PyramidBackbone.
--insert-bn gives weights that were pretrained with norm=none the batch norm layers of norm=bn without changing what
the network computes: each starts from statistics measured on the shards and has an affine part that undoes them.
"""


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    options = cli.parser("segloc.export", "Write the backbone's weights for another library.", EXAMPLES)
    options.add_argument("--weights", required=True, help="pretraining or fine-tuning run or checkpoint")
    options.add_argument("--format", required=True, choices=FORMATS)
    options.add_argument("--out", required=True, help="file to write")
    group = options.add_argument_group("batch norm")
    group.add_argument("--insert-bn", action="store_true", help="turn norm=none into norm=bn first; needs --shards")
    group.add_argument("--shards", metavar="DIR_OR_URL", help="where the statistics are measured")
    group.add_argument("--views", type=int, default=512, help="images to measure (default: %(default)s)")
    group.add_argument("--seed", type=int, default=0, help="of the order of the pairs (default: %(default)s)")
    group.add_argument(
        "--image-size", type=int, default=500, metavar="PX", help="images are shrunk to fit (default: %(default)s)"
    )
    return cli.run(_command, options, argv)


def _command(args: argparse.Namespace) -> None:
    check_output(args.out)
    if args.insert_bn != bool(args.shards):
        raise InputError("--insert-bn measures its statistics on --shards: give both or neither")
    measuring = Measuring(args.shards, args.views, args.seed, args.image_size) if args.insert_bn else None
    report, report_path = export(args.weights, args.format, Path(args.out), measuring)
    print(summary(report))
    print(f"wrote {args.out} and {report_path}")


if __name__ == "__main__":
    sys.exit(main())
