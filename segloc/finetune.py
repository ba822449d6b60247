"""``python -m segloc.finetune``: train a detector on labelled scans from pretrained or random initial weights."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from segloc.common import cli
from segloc.common.files import check_output_folder
from segloc.detection.finetuning import run_name, train
from segloc.settings.finetuning import FinetuneConfig
from segloc.settings.loader import load
from segloc.training.processes import run_on

EXAMPLES = """\
  python -m segloc.finetune --weights runs/pretrain --config detectron_configs/finetune/sdanet_r101_fair.yaml \\
      --data data/raw/pidray --out runs/finetune-segloc
  python -m segloc.finetune --weights imagenet --config detectron_configs/finetune/sdanet_r101_published.yaml \\
      --data data/raw/pidray --out runs/finetune-imagenet
  python -m segloc.finetune --weights random --config detectron_configs/finetune/demo_r18.yaml \\
      --data data/simulated/pidray --out runs/demo-random train.iterations=20 optim.batch=2
  python -m segloc.finetune --weights runs/pretrain --config detectron_configs/finetune/sdanet_r101_fair.yaml \\
      --data data/raw/pidray --processes 4    # one per GPU of this machine
  torchrun --nproc-per-node 8 -m segloc.finetune --weights runs/pretrain \\
      --config detectron_configs/finetune/sdanet_r101_fair.yaml --data data/raw/pidray
Run the same command again to resume a stopped run. A stop (Ctrl-C, SIGTERM, SIGHUP) saves a checkpoint first.
"""


def main(argv: list[str] | None = None) -> int:
    """Run the command; return its exit code."""
    options = cli.parser("segloc.finetune", "Fine-tune a detector.", EXAMPLES, cli.CONTINUES)
    options.add_argument(
        "--weights",
        type=cli.place,
        required=True,
        help="initial weights of the backbone: a pretraining run or checkpoint, a .pth of a torchvision ResNet, "
        "'random', or 'imagenet' (torchvision's ResNet, downloaded)",
    )
    options.add_argument(
        "--config", type=cli.path, required=True, help="recipe: a YAML file as in detectron_configs/finetune"
    )
    options.add_argument(
        "--data", type=cli.place, help="PIDray folder of either release (default: the recipe's data section)"
    )
    options.add_argument("--out", type=cli.output_folder, help="run folder (default: runs/finetune-CONFIG-WEIGHTS)")
    cli.add_processes(options)
    cli.add_max_skipped(options)
    cli.add_overrides(options)
    return cli.run(_command, options, argv)


def _command(args: argparse.Namespace) -> int:
    config = load(FinetuneConfig, args.config, args.overrides).with_data(args.data)
    out = args.out or Path(f"runs/finetune-{args.config.stem}-{run_name(args.weights)}")
    check_output_folder(out)
    return run_on(args.processes, train, config, args.weights, out, args.max_skipped)


if __name__ == "__main__":
    sys.exit(main())
