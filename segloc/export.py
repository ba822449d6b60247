"""``python -m segloc.export``: export backbone weights for other libraries, or insert batch norm."""

from __future__ import annotations

import argparse
import sys

from segloc.common import cli
from segloc.common.errors import InputError
from segloc.common.skips import Skips, require
from segloc.exporting.batch_norm import Measuring
from segloc.exporting.export import WEIGHTS, export, report_beside, summary
from segloc.exporting.formats import FORMATS

EXAMPLES = """\
  python -m segloc.export --weights runs/pretrain --format detectron2 --out segloc_r101_d2.pth
  python -m segloc.export --weights runs/finetune-segloc --format timm --out segloc_r101_timm.pth
  python -m segloc.export --weights runs/paper --insert-bn --shards data/shards --format segloc --out runs/paper-bn.pth
The report is written next to the file, as NAME.report.json.
Formats: segloc is read by segloc.finetune and by this command; only it keeps the RoI head of pretraining. detectron2 is
for segloc.detection.detectron2 (with attention) and for Detectron2's FPN (without). detectron2-sda is for Detectron2
models with PyramidBackbone.
--insert-bn inserts batch norm into weights pretrained with norm=none, without changing the outputs of the network: its
statistics are measured on the shards, and its affine part undoes the normalisation.
"""


def main(argv: list[str] | None = None) -> int:
    """Run the command; return its exit code."""
    options = cli.parser("segloc.export", "Export backbone weights for another library.", EXAMPLES)
    options.add_argument(
        "--weights", type=cli.place, required=True, help="pretraining or fine-tuning run or checkpoint"
    )
    out_help = "file to write, such as NAME.pth; beside it NAME.report.json is written"
    options.add_argument("--format", required=True, choices=FORMATS, help="library to export for")
    options.add_argument("--out", type=cli.OutputFile(WEIGHTS, beside=report_beside), required=True, help=out_help)
    group = options.add_argument_group("batch norm")
    group.add_argument("--insert-bn", action="store_true", help="turn norm=none into norm=bn first; needs --shards")
    group.add_argument("--shards", type=cli.place, metavar="DIR_OR_URL", help="shards to measure statistics on")
    group.add_argument("--views", type=cli.whole, default=512, help="number of images to measure (default: 512)")
    group.add_argument("--seed", type=cli.whole, default=0, help="seed of the order of the pairs (default: 0)")
    group.add_argument(
        "--image-size", type=cli.whole, default=500, metavar="PX", help="longest image side (default: %(default)s)"
    )
    cli.add_max_skipped(options)
    return cli.run(_command, options, argv)


def _command(args: argparse.Namespace) -> None:
    if args.insert_bn != bool(args.shards):
        raise InputError("--insert-bn measures statistics on --shards; give both or neither")
    measuring = Measuring(args.shards, args.views, args.seed, args.image_size) if args.insert_bn else None
    report, report_path = export(args.weights, args.format, args.out, measuring)
    print(summary(report))
    print(f"wrote {args.out} and {report_path}")
    if report["inserted"]:
        skips = Skips.from_json(report["inserted"]["skipped"])
        if skips.skipped:
            print(skips.summary())
        require([skips], args.max_skipped, "run pipeline.audit on the shards", str(args.out))


if __name__ == "__main__":
    sys.exit(main())
