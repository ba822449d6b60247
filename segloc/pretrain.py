"""Pretraining: ``python -m segloc.pretrain --shards DIR`` (paper section 4)."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from segloc.common import cli
from segloc.common.errors import InputError
from segloc.contrast.run import train
from segloc.data.stream import ShardFolder
from segloc.settings.pretraining import load_config
from segloc.training.processes import join, launch


def _command(args: argparse.Namespace) -> int:
    config = load_config(args.config, args.overrides)
    if args.processes < 1:
        raise InputError(f"--processes is {args.processes}, it must be at least 1")
    if args.processes > 1:
        if "WORLD_SIZE" in os.environ:
            raise InputError("--processes starts processes, and so does torchrun; use one of them")
        ShardFolder.open(args.shards)  # so that what is wrong with it is said once
        return launch(train, args.processes, config, args.shards, Path(args.out))
    with join() as group:
        return train(config, args.shards, Path(args.out), group)


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    options = cli.parser(
        "segloc.pretrain",
        "Pretrain a backbone on shards of positive pairs. The same command resumes a run that was stopped.",
        "  python -m segloc.pretrain --shards data/shards\n"
        "  python -m segloc.pretrain --shards data/shards --config detectron_configs/pretrain/paper_r101.yaml\n"
        "  python -m segloc.pretrain --shards data/shards --out runs/r50 model.arch=resnet50 optim.micro_batch=16\n"
        "  python -m segloc.pretrain --shards data/shards --processes 4    # one for each GPU of this machine\n"
        "  torchrun --nnodes 2 --nproc_per_node 8 ... -m segloc.pretrain --shards s3://bucket/shards",
    )
    options.add_argument(
        "--shards",
        required=True,
        metavar="DIR_OR_URL",
        help="finished folder of shards, local or s3://, https:// and what else fsspec opens; or some of its shards, "
        "FOLDER/pairs-{000000..000003}.tar",
    )
    options.add_argument("--config", metavar="YAML", help="recipe (default: the recommended ResNet-101 recipe)")
    options.add_argument("--out", default="runs/pretrain", metavar="RUN", help="run folder (default: %(default)s)")
    options.add_argument("--processes", type=int, default=1, metavar="N", help="processes on this machine (default: 1)")
    cli.add_overrides(options)
    return cli.run(_command, options, argv)


if __name__ == "__main__":
    raise SystemExit(main())
