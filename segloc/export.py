"""``python -m segloc.export``: the backbone's weights for other libraries, or with batch norm put in."""

from __future__ import annotations

import argparse
import io
import json
import sys
from pathlib import Path

import torch

from segloc.common import cli
from segloc.common.files import check_output, write_atomic
from segloc.exporting import batch_norm
from segloc.exporting.export import summary
from segloc.exporting.formats import FORMATS, convert, notes, with_head, wrapped
from segloc.models.initial_weights import BACKBONE_SETTINGS, check_tensors, read_backbone

EXAMPLES = """\
  python -m segloc.export --weights runs/pretrain --format detectron2 --out segloc_r101_d2.pth
  python -m segloc.export --weights runs/finetune-segloc --format timm --out segloc_r101_timm.pth
  python -m segloc.export --weights runs/paper --insert-bn --shards data/shards --format segloc --out runs/paper-bn.pth
The report goes beside the file, as NAME.report.json. segloc is this project's own format, which segloc.finetune and
this command read; it alone keeps the head of pretraining. detectron2-sda keeps the attention, for Detectron2 models on
this project's own backbone.
--insert-bn gives weights that were pretrained with norm=none the batch norm layers of norm=bn without changing what
the network computes: each starts from statistics measured on the shards and has an affine part that undoes them.
"""


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    options = cli.parser("segloc.export", "Write the backbone's weights for another library.", EXAMPLES)
    options.add_argument("--weights", required=True, help="pretraining or fine-tuning run or checkpoint")
    options.add_argument("--format", required=True, choices=FORMATS)
    options.add_argument("--out", required=True, help="file to write")
    batch_norm.add_arguments(options)
    return cli.run(run, options, argv)


def run(args: argparse.Namespace) -> None:
    """Carry out the command."""
    check_output(args.out)
    batch_norm.check_arguments(args)
    content = read_backbone(args.weights)
    # Fine-tuning here can start its box heads from the head of pretraining; other libraries have no place for it.
    head = content.get("head", {})
    check_tensors(head, str(args.weights))
    content = {name: content.get(name) for name in (*BACKBONE_SETTINGS, "iteration", "backbone")}
    inserted = None
    if args.insert_bn:
        content, inserted = batch_norm.insert_batch_norm(content, args)
    about = {name: value for name, value in content.items() if name != "backbone"}
    export = with_head(convert(content["backbone"], args.format, content["norm"]), head, args.format)
    report = {
        "format": args.format,
        "weights": str(args.weights),
        **about,
        "inserted": inserted,
        "notes": notes(args.format, content["norm"], content["fpn_channels"]),
        **{name: getattr(export, name) for name in ("matched", "renamed", "left_out")},
    }
    out = Path(args.out)
    buffer = io.BytesIO()
    torch.save(wrapped(export, args.format, about), buffer)
    write_atomic(out, buffer.getvalue())
    report_path = out.with_name(f"{out.stem}.report.json")
    write_atomic(report_path, (json.dumps(report, indent=1, ensure_ascii=False) + "\n").encode())
    print(summary(report))
    print(f"wrote {out} and {report_path}")


if __name__ == "__main__":
    sys.exit(main())
