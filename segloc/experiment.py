"""``python -m segloc.experiment``: run a grid of initial weights, protocols and seeds, from pretraining to tables."""

from __future__ import annotations

import argparse
import sys

from segloc.common import cli
from segloc.common.files import check_output_folder
from segloc.experiments.devices import find_devices
from segloc.experiments.jobs import plan
from segloc.experiments.progress import show
from segloc.experiments.run import chosen_cells, experiment_folder, run_experiment
from segloc.settings.experiments import Experiment
from segloc.settings.loader import load

EXAMPLES = """\
  python -m segloc.experiment detectron_configs/experiment/demo.yaml --out runs/experiment
  python -m segloc.experiment detectron_configs/experiment/table1.yaml --out runs/table1 --list
  python -m segloc.experiment detectron_configs/experiment/table1.yaml --out runs/table1 data=/data/pidray seeds=[0]
  python -m segloc.experiment detectron_configs/experiment/table1.yaml --out runs/table1 --cell random-fair-seed1
Jobs that do not need each other run side by side, each on a GPU of its own; one with `processes: N` takes N GPUs at
once. Run the same command again after a stop: it skips finished jobs. Several may run at once, also on other machines
that share the folder; they never work on the same job or GPU. For a job array, run each cell with --cell. Then run the
command without --cell to write report.html, table.md and table.csv of the finished cells. A recipe has protocols,
`probe`, or both. Its paths are relative to the working directory:
  data: data/raw/pidray                       # a PIDray folder (default: the data of the fine-tuning recipes)
  seeds: [0, 1, 2]
  pretrainings:                               # one pretraining per seed; with `seed: 0` all seeds share one
    paper: {config: detectron_configs/pretrain/paper_r101.yaml, shards: data/shards}
    random_dictionary: {config: ..., shards: data/shards, overrides: [queue.init=random]}
  starts:                                     # initial weights
    random: {weights: random}                 # or imagenet, or a path
    segloc: {pretraining: paper, insert_bn: true, overrides: [model.backbone.sda_norm=ln]}
  protocols:
    fair: {config: detectron_configs/finetune/sdanet_r101_fair.yaml, overrides: [optim.batch=8], processes: 1}
  probe:                                      # segloc.probe of every start, a cheap proxy for AP; it runs first
    shards: data/probe_shards                 # should hold items that no pretraining has seen
    config: detectron_configs/pretrain/paper_r101.yaml    # the network of random and imagenet; also `overrides`
    starts: [random, segloc]                  # default: all; also train: 2000, test: 1000, image_size: 500
Probing writes probe.md (mean and standard deviation over seeds) and probe.csv (each seed). All starts are tested on the
same views. A start with the same weights for all seeds is probed once.
"""


def main(argv: list[str] | None = None) -> int:
    """Run the command; return its exit code."""
    options = cli.parser(
        "segloc.experiment", "Pretrain, fine-tune, evaluate and compare a grid of runs.", EXAMPLES, cli.CONTINUES
    )
    options.add_argument("recipe", type=cli.path, metavar="RECIPE.yaml", help="recipe of the grid")
    options.add_argument(
        "--out", type=cli.path, required=True, metavar="DIR", help="folder of the experiment, with a folder per cell"
    )
    options.add_argument(
        "--list", action="store_true", help="show state and commands of every cell and estimate the rest; run nothing"
    )
    options.add_argument(
        "--cell",
        metavar="NAME",
        help="run only this cell and the jobs it needs, or this pretraining (pretrain-NAME-seedN); write no report",
    )
    options.add_argument(
        "--devices",
        metavar="GPU,...",
        help="GPUs to use, such as 0,1,2; each runs one job at a time (default: all, or those of "
        "CUDA_VISIBLE_DEVICES; without a GPU one job runs at a time)",
    )
    cli.add_max_skipped(options)
    cli.add_overrides(options)
    return cli.run(_command, options, argv)


def _command(args: argparse.Namespace) -> int:
    """Run the command; return 1 if a job failed."""
    experiment = load(Experiment, args.recipe, args.overrides)
    out = experiment_folder(args.out)
    cells = chosen_cells(plan(experiment, out, args.max_skipped), args.cell)
    devices = find_devices(args.devices)
    if args.list:
        show(cells, devices.slots)
        return 0
    check_output_folder(out)
    failures = run_experiment(experiment, cells, out, devices, with_report=not args.cell)
    for failure in failures:
        print(f"failed: {failure}", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
