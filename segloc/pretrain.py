"""``python -m segloc.pretrain --shards DIR``: pretrain a backbone (paper section 4)."""

from __future__ import annotations

import argparse

from segloc.common import cli
from segloc.contrast.run import train
from segloc.data.stream import ShardFolder
from segloc.settings.pretraining import load_config
from segloc.training.processes import run_on


def _command(args: argparse.Namespace) -> int:
    config = load_config(args.config, args.overrides)
    if args.processes > 1:
        ShardFolder.open(args.shards)  # so that errors in the shards are printed once
    return run_on(args.processes, train, config, args.shards, args.out, args.max_skipped)


def main(argv: list[str] | None = None) -> int:
    """Run the command; return its exit code."""
    options = cli.parser(
        "segloc.pretrain",
        "Pretrain a backbone on shards of positive pairs. Run the same command again to resume a stopped run. A stop "
        "(Ctrl-C, SIGTERM, SIGHUP) saves a checkpoint first.",
        "  python -m segloc.pretrain --shards data/shards\n"
        "  python -m segloc.pretrain --shards data/shards --config detectron_configs/pretrain/paper_r101.yaml\n"
        "  python -m segloc.pretrain --shards data/shards --out runs/r50 model.arch=resnet50\n"
        "  python -m segloc.pretrain --shards data/shards --processes 4    # one per GPU of this machine\n"
        "  torchrun --nnodes 2 --nproc_per_node 4 ... -m segloc.pretrain --shards s3://bucket/shards",
        cli.CONTINUES,
    )
    options.add_argument(
        "--shards",
        type=cli.place,
        required=True,
        metavar="DIR_OR_URL",
        help="folder of finished shards, local or any URL of fsspec (s3://, https://, ...); or a part of it, "
        "FOLDER/pairs-{000000..000003}.tar",
    )
    options.add_argument(
        "--config", type=cli.path, metavar="YAML", help="recipe (default: the recommended ResNet-101 recipe)"
    )
    options.add_argument(
        "--out",
        type=cli.output_folder,
        default="runs/pretrain",
        metavar="RUN",
        help="run folder (default: %(default)s)",
    )
    cli.add_processes(options)
    cli.add_max_skipped(options)
    cli.add_overrides(options)
    return cli.run(_command, options, argv)


if __name__ == "__main__":
    raise SystemExit(main())
