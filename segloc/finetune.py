"""``python -m segloc.finetune``: train a detector on labelled scans, starting from pretrained weights or from none."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from segloc.common import cli
from segloc.detection.finetuning import finetune, run_name
from segloc.settings.finetuning import FinetuneConfig
from segloc.settings.loader import load

EXAMPLES = """\
  python -m segloc.finetune --weights runs/pretrain --config detectron_configs/finetune/sdanet_r101_fair.yaml \\
      --data data/raw/pidray --out runs/finetune-segloc
  python -m segloc.finetune --weights imagenet --config detectron_configs/finetune/sdanet_r101_published.yaml \\
      --data data/raw/pidray --out runs/finetune-imagenet
  python -m segloc.finetune --weights random --config detectron_configs/finetune/demo_r18.yaml \\
      --data data/simulated/pidray --out runs/demo-random train.iterations=20 optim.batch=2
The same command resumes a run that was stopped, by SIGTERM or otherwise.
"""


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    options = cli.parser("segloc.finetune", "Fine-tune a detector.", EXAMPLES)
    options.add_argument(
        "--weights",
        required=True,
        help="start of the backbone: a pretraining run or checkpoint, a torchvision ResNet's .pth, 'random', or "
        "'imagenet' (torchvision's ResNet, downloaded)",
    )
    options.add_argument("--config", required=True, help="recipe, a YAML file of detectron_configs/finetune")
    options.add_argument("--data", help="PIDray folder of either release; otherwise the recipe's data section")
    options.add_argument("--out", help="run folder (default: runs/finetune-CONFIG-WEIGHTS)")
    cli.add_overrides(options)
    return cli.run(_command, options, argv)


def _command(args: argparse.Namespace) -> None:
    """Carry out the command, which ends well also when SIGTERM stopped the training."""
    config = load(FinetuneConfig, args.config, args.overrides).with_data(args.data)
    out = args.out or f"runs/finetune-{Path(args.config).stem}-{run_name(args.weights)}"
    print(finetune(config, args.weights, Path(out)))


if __name__ == "__main__":
    sys.exit(main())
